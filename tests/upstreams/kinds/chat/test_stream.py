"""Streams of chat completions become streams of messages, whatever server wrote them and however they are cut."""

import json
import re
import time
from typing import Any

import pytest
from anthropic.types import RawMessageStreamEvent
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletionChunk
from pydantic import TypeAdapter

from farebox.gateway.sse import Meter
from farebox.http.failures import BadAnswer
from farebox.upstreams.kinds.chat.stream import StreamDecoder
from tests.upstreams.kinds.chat.recorded import BROKEN, DONE, STREAMS, call, chunk, counted
from tests.upstreams.wire import split

STOPS = frozenset({"END"})
MADE_UP = re.compile(rb"(msg|toolu)_[0-9a-f]{24}")
"""Ids that servers left out."""
EVENT: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)


def decoded(text: bytes, *cuts: int) -> bytes:
    decoder = StreamDecoder("claude-sold", STOPS)
    return b"".join(decoder.feed(piece) for piece in split(text, cuts)) + decoder.end()


def events(data: bytes) -> list[dict[str, Any]]:
    """Read events, checking that each is named by its type."""
    found = []
    for event in data.decode().split("\n\n")[:-1]:
        name, payload = event.split("\n")
        found.append(json.loads(payload.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


def message(data: bytes) -> dict[str, Any]:
    """Put a message together as clients do; blocks come one after the other, each begun, gone on with and ended."""
    whole: dict[str, Any] = {}
    written = ""
    is_open = False
    for event in events(data):
        match event["type"]:
            case "message_start":
                whole = event["message"]
            case "content_block_start":
                assert not is_open
                assert event["index"] == len(whole["content"])
                whole["content"].append(event["content_block"])
                is_open, written = True, ""
            case "content_block_delta":
                assert is_open
                assert event["index"] == len(whole["content"]) - 1
                block, delta = whole["content"][-1], event["delta"]
                if delta["type"] == "input_json_delta":
                    written += delta["partial_json"]
                    continue
                field = delta["type"].removesuffix("_delta")
                block[field] += delta[field]
            case "content_block_stop":
                assert is_open
                is_open = False
                if whole["content"][-1]["type"] == "tool_use" and written:
                    whole["content"][-1]["input"] = json.loads(written)
            case "message_delta":
                whole.update(event["delta"])
                whole["usage"] = {**whole["usage"], **event["usage"]}
    assert not is_open
    return whole


@pytest.mark.parametrize("name", STREAMS)
def test_a_recorded_stream_becomes_the_message_it_is(name: str) -> None:
    recorded = STREAMS[name]
    data = decoded(recorded.text)
    for event in events(data):
        if event["type"] != "ping":
            EVENT.validate_python(event)
    whole = message(data)
    assert whole["model"] == "claude-sold"
    assert whole["id"].startswith("msg_")
    for block, wanted in zip(whole["content"], recorded.content, strict=True):
        assert {**block, **wanted} == block
    assert (whole["stop_reason"], whole["stop_sequence"]) == (recorded.stop_reason, recorded.stop_sequence)
    assert whole["usage"] == recorded.usage


@pytest.mark.parametrize("name", [name for name in STREAMS if name.startswith("OpenAI")])
def test_the_recordings_of_openai_are_what_its_own_client_reads(name: str) -> None:
    for line in STREAMS[name].text.split(b"\n\n"):
        if line.startswith(b"data: {"):
            ChatCompletionChunk.model_validate_json(line[6:], strict=True)


@given(st.sampled_from(sorted(STREAMS)), st.lists(st.integers(0, 5000), max_size=40))
def test_any_split_gives_the_same_events(name: str, cuts: list[int]) -> None:
    text = STREAMS[name].text
    assert MADE_UP.sub(b"", decoded(text, *cuts)) == MADE_UP.sub(b"", decoded(text))


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_every_line_end_is_one_wherever_it_is_cut(end: bytes) -> None:
    text = STREAMS["OpenAI, text"].text.replace(b"\n", end)
    whole = decoded(STREAMS["OpenAI, text"].text)
    for cut in range(len(text)):
        assert decoded(text, cut) == whole
    assert decoded(text, *range(len(text))) == whole


@pytest.mark.parametrize("name", BROKEN)
def test_a_stream_that_breaks_ends_with_an_error_and_never_with_an_end(name: str) -> None:
    _, text, (kind, words) = BROKEN[name]
    data = decoded(text)
    last = events(data)[-1]
    assert last["type"] == "error"
    assert last["error"]["type"] == kind
    assert words in last["error"]["message"]
    assert b"message_stop" not in data
    assert b"Hel" in data
    assert decoded(text, *range(len(text))) == data


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_that_is_cut_before_its_end_is_broken(name: str) -> None:
    text = STREAMS[name].text
    decoder = StreamDecoder("m", STOPS)
    said = decoder.feed(
        text[: text.index(b'"finish_reason": "' if b'"finish_reason": "' in text else b'"finish_reason":"')]
    )
    with pytest.raises(BadAnswer):
        decoder.end()
    assert b"message_stop" not in said


def test_without_usage_the_end_carries_none_so_that_the_meter_takes_it_for_broken() -> None:
    data = decoded(chunk({"content": "Hi"}) + chunk({}, "stop") + DONE)
    meter = Meter()
    meter.feed(data)
    assert meter.finished
    assert not meter.usage_is_final
    assert "usage" not in events(data)[-2]


@pytest.mark.parametrize(
    "usage", [{}, counted(-1, 3), {"prompt_tokens": 1.5, "completion_tokens": 2}, "12", {"prompt_tokens": 3}]
)
def test_usage_that_is_none_is_not_believed(usage: Any) -> None:
    assert "usage" not in events(decoded(chunk({"content": "Hi"}) + chunk({}, "stop", usage=usage) + DONE))[-2]


@pytest.mark.parametrize("later", [None, counted(-1, 500)])
def test_usage_that_was_told_before_the_output_came_is_not_that_of_the_whole(later: Any) -> None:
    """Else all that came after it would be free, and nobody would ever know."""
    first, rest = chunk({"role": "assistant"}, usage=counted(100, 0)), chunk({"content": "Hi"}) + chunk({}, "stop")
    data = decoded(first + rest + (chunk(usage=later) if later else b"") + DONE)
    assert "usage" not in events(data)[-2]
    meter = Meter()
    meter.feed(data)
    assert not meter.usage_is_final


def test_usage_that_was_told_with_the_last_output_is_that_of_the_whole() -> None:
    pieces = chunk({"content": "Hi"}, usage=counted(5, 1)), chunk({"content": "!"}, usage=counted(5, 2))
    said = events(decoded(b"".join(pieces) + chunk({"content": ""}, "stop", usage=None) + DONE))
    assert said[-2]["usage"]["output_tokens"] == 2


def test_an_id_that_is_no_text_and_characters_that_are_cut_in_two_spoil_nothing() -> None:
    cut = b'data: {"id":7,"choices":[{"index":0,"delta":{"content":"a\\ud83d"}}]}\n\n'
    whole = message(decoded(cut + chunk({"content": "b"}, "stop", usage=counted(3, 1)) + DONE))
    assert whole["content"] == [{"type": "text", "text": "a\ufffdb"}]


def test_usage_that_comes_with_the_first_chunk_is_told_at_the_start() -> None:
    first = events(decoded(STREAMS["vLLM, reasoning, usage in every chunk, stop sequence"].text))[0]
    assert first["message"]["usage"]["input_tokens"] == 12


def test_a_call_that_goes_on_after_its_end_is_broken() -> None:
    pieces = call(0, "{}", "a", "f"), call(1, "{}", "b", "f"), call(0, ',"x":1}')
    data = decoded(b"".join(map(chunk, pieces)))
    assert "went on after its end" in events(data)[-1]["error"]["message"]


def test_arguments_that_never_become_json_go_on_as_they_came() -> None:
    pieces = call(0, '{"x": ', "a", "f"), call(1, '{"y": 1}', "b", "f"), call(0, "oops")
    data = decoded(b"".join(map(chunk, pieces)) + chunk({}, "tool_calls", usage=counted(1, 2)))
    written = [event["delta"]["partial_json"] for event in events(data) if event["type"] == "content_block_delta"]
    assert written == ['{"x": ', "oops", '{"y": 1}']


def test_what_waits_is_bounded() -> None:
    decoder = StreamDecoder("m", STOPS)
    decoder.feed(chunk(call(0, '{"x": ', "a", "f")) + chunk(call(1, "", "b", "f")))
    said = [decoder.feed(chunk(call(1, "x" * 2**20))) for _ in range(20)]
    assert b"longer than" in b"".join(said)


def test_a_chunk_without_end_is_bounded() -> None:
    decoder = StreamDecoder("m", STOPS)
    said = [decoder.feed(b"data: " + b"x" * 2**20) for _ in range(20)]
    assert b"larger than" in b"".join(said)


def test_data_lines_without_data_are_bounded_as_well() -> None:
    decoder = StreamDecoder("m", STOPS)
    said = [decoder.feed(b"data:\n" * 2**18) for _ in range(13)]
    assert b"larger than" in b"".join(said)


def test_a_call_of_many_pieces_takes_time_by_its_length_alone() -> None:
    """Put together anew with each piece, these were 10 GB of copies."""
    decoder = StreamDecoder("m", STOPS)
    decoder.feed(chunk(call(0, '{"x": "', "a", "f")))
    many = chunk(call(0, "y" * 40)) * 1000
    began = time.process_time()
    for _ in range(20):
        decoder.feed(many)
    assert time.process_time() - began < 2
    data = decoder.feed(chunk(call(0, '"}')) + chunk({}, "tool_calls", usage=counted(1, 2)) + DONE)
    assert events(data)[-2]["delta"]["stop_reason"] == "tool_use"


def test_a_whole_completion_becomes_events_for_a_client_that_wants_them() -> None:
    body = {
        "id": "c1",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}],
        "usage": counted(3, 1),
    }
    whole = message(StreamDecoder("m", STOPS).whole(json.dumps(body).encode()))
    assert (whole["content"], whole["stop_reason"]) == ([{"type": "text", "text": "Hi"}], "end_turn")
