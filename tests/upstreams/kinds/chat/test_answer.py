"""Whole chat completions become messages: blocks, stop reason and usage."""

import json
from typing import Any

import pytest
from anthropic.types import Message

from farebox.http.failures import BadAnswer
from farebox.upstreams.kinds.chat.answer import AnswerDecoder, to_message
from tests.upstreams.kinds.chat.recorded import counted, used


def completion(said: dict[str, Any], finish: str | None = "stop", **more: Any) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", **said}, "finish_reason": finish}
    body = {"id": "chatcmpl-1", "object": "chat.completion", "model": "theirs", "choices": [choice]}
    return json.dumps({**body, "usage": counted(10, 5), **more}).encode()


def told(body: bytes) -> dict[str, Any]:
    message: dict[str, Any] = json.loads(to_message(body, "claude-sold", frozenset({"END"})))
    Message.model_validate(message)
    return message


def calls(*arguments: Any, **more: Any) -> dict[str, Any]:
    """Give a message with tool calls."""
    made = [
        {"id": f"c{at}", "type": "function", "function": {"name": "f", "arguments": one}}
        for at, one in enumerate(arguments)
    ]
    return {"content": None, "tool_calls": made, **more}


BLOCKS: dict[str, tuple[dict[str, Any], str, list[dict[str, Any]], str]] = {
    "text": ({"content": "Hi"}, "stop", [{"type": "text", "text": "Hi"}], "end_turn"),
    "parts": (
        {"content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]},
        "stop",
        [{"type": "text", "text": "Hi"}],
        "end_turn",
    ),
    "nothing": ({"content": None}, "stop", [], "end_turn"),
    "white space": ({"content": "\n\n"}, "stop", [], "end_turn"),
    "reasoning_content": (
        {"content": "Hi", "reasoning_content": "hm"},
        "length",
        [{"type": "thinking", "thinking": "hm", "signature": ""}, {"type": "text", "text": "Hi"}],
        "max_tokens",
    ),
    "calls": (
        calls('{"a": 1}', "", content="See"),
        "tool_calls",
        [
            {"type": "text", "text": "See"},
            {"type": "tool_use", "id": "c0", "name": "f", "input": {"a": 1}},
            {"type": "tool_use", "id": "c1", "name": "f", "input": {}},
        ],
        "tool_use",
    ),
    "calls that stop": (calls("{}"), "stop", [{"type": "tool_use", "id": "c0", "name": "f", "input": {}}], "tool_use"),
    "an object for arguments": (
        calls({"a": 1}),
        "stop",
        [{"type": "tool_use", "id": "c0", "name": "f", "input": {"a": 1}}],
        "tool_use",
    ),
    "arguments that are no JSON": (
        calls('{"a": '),
        "length",
        [{"type": "tool_use", "id": "c0", "name": "f", "input": {"INVALID_JSON": '{"a": '}}],
        "max_tokens",
    ),
    "arguments that are a list": (
        calls("[1]"),
        "tool_calls",
        [{"type": "tool_use", "id": "c0", "name": "f", "input": {"INVALID_JSON": "[1]"}}],
        "tool_use",
    ),
    "refusal": ({"content": None, "refusal": "No."}, "stop", [{"type": "text", "text": "No."}], "refusal"),
    "filtered": ({"content": ""}, "content_filter", [], "refusal"),
    "another reason": ({"content": "Hi"}, "eos", [{"type": "text", "text": "Hi"}], "end_turn"),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_a_completion_becomes_a_message(name: str) -> None:
    said, finish, content, stop_reason = BLOCKS[name]
    message = told(completion(said, finish))
    assert message["content"] == content
    assert message["stop_reason"] == stop_reason
    assert (message["id"], message["model"]) == ("msg_chatcmpl-1", "claude-sold")
    assert message["usage"] == used(10, 5)


def test_a_call_without_id_gets_one_made() -> None:
    said = {"tool_calls": [{"id": "", "function": {"name": "f", "arguments": "{}"}}]}
    assert told(completion(said))["content"][0]["id"].startswith("toolu_")


def test_an_old_function_call_is_a_call() -> None:
    said = {"content": None, "function_call": {"name": "f", "arguments": '{"a":1}'}}
    message = told(completion(said, "function_call"))
    assert (message["content"][0]["input"], message["stop_reason"]) == ({"a": 1}, "tool_use")


def test_a_reason_that_was_cached_and_thought_about_is_counted_as_such() -> None:
    details = {"prompt_tokens_details": {"cached_tokens": 6}, "completion_tokens_details": {"reasoning_tokens": 3}}
    message = told(completion({"content": "Hi"}, usage=counted(10, 5, **details)))
    assert message["usage"] == {**used(4, 5, 6), "output_tokens_details": {"thinking_tokens": 3}}


BROKEN = {
    "an error": b'{"error":{"message":"Provider returned error","code":502}}',
    "an error as a string": b'{"error":"model runner has unexpectedly stopped"}',
    "an error of an old vLLM": b'{"object":"error","message":"bad","code":400}',
    "no usage": completion({"content": "Hi"}, usage=None),
    "no choices": completion({"content": "Hi"}, choices=[]),
    "no reason": completion({"content": "Hi"}, None),
    "a reason that is an error": completion({"content": "Hi"}, "error"),
    "a call without a name": completion({"tool_calls": [{"id": "a", "function": {"arguments": "{}"}}]}),
    "no JSON": b"<html>",
    "half of it": completion({"content": "Hi"})[:-9],
    "nothing": b"",
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("cut", [1, 7])
def test_an_answer_that_is_no_whole_completion_is_broken(name: str, cut: int) -> None:
    decoder = AnswerDecoder("m", frozenset())
    body = BROKEN[name]
    for at in range(0, len(body), cut):
        assert decoder.feed(body[at : at + cut]) == b""
    with pytest.raises(BadAnswer):
        decoder.end()
