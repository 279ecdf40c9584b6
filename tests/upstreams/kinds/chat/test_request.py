"""Requests of the Messages API become chat requests that OpenAI's own types accept; what cannot be said is refused."""

import contextlib
import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from openai.types.chat.completion_create_params import (
    CompletionCreateParamsNonStreaming,
    CompletionCreateParamsStreaming,
)
from pydantic import TypeAdapter

from farebox.errors import InvalidRequest
from farebox.upstreams.kinds.chat.manner import Manner
from farebox.upstreams.kinds.chat.request import to_chat

WHOLE: TypeAdapter[Any] = TypeAdapter(CompletionCreateParamsNonStreaming)
STREAMED: TypeAdapter[Any] = TypeAdapter(CompletionCreateParamsStreaming)
USER = {"role": "user", "content": "Hi"}
PIXEL = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}}
SHOWN = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
PDF = {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0="}}
TOOL = {
    "name": "f",
    "description": "Does f",
    "input_schema": {"type": "object", "properties": {"x": {"type": "integer"}}},
}
USE = {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"x": 1}}
RESULT = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "2"}
CALL = {"id": "toolu_1", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}}


def put(manner: Manner | None = None, **asked: Any) -> dict[str, Any]:
    """Translate a request; what comes out must be one that OpenAI's client could have made."""
    body = {"model": "sold", "max_tokens": 100, "messages": [USER], **asked}
    chat: dict[str, Any] = json.loads(to_chat(json.dumps(body).encode(), "theirs", manner or Manner()))
    (STREAMED if chat.get("stream") else WHOLE).validate_python(chat)
    return chat


def said(*messages: dict[str, Any], manner: Manner | None = None) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = put(manner, messages=list(messages))["messages"]
    return found


def user(*blocks: dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": list(blocks)}


def assistant(*blocks: dict[str, Any]) -> dict[str, Any]:
    return {"role": "assistant", "content": list(blocks)}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


MESSAGES: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {
    "a string": ([USER], [USER]),
    "texts": ([user(text("a"), text("b"))], [{"role": "user", "content": "a\n\nb"}]),
    "an image": ([user(text("See"), PIXEL)], [user(text("See"), SHOWN)]),
    "an image by address": (
        [user({"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}})],
        [user({"type": "image_url", "image_url": {"url": "https://example.com/a.png"}})],
    ),
    "a document of text": (
        [
            user(
                {
                    "type": "document",
                    "title": "T",
                    "source": {"type": "text", "media_type": "text/plain", "data": "long"},
                }
            )
        ],
        [{"role": "user", "content": "T\n\nlong"}],
    ),
    "a document of content": (
        [user({"type": "document", "source": {"type": "content", "content": [text("x"), PIXEL]}})],
        [user(text("x"), SHOWN)],
    ),
    "a search result": (
        [user({"type": "search_result", "title": "T", "source": "S", "content": [text("x")]})],
        [{"role": "user", "content": "T\n\nS\n\nx"}],
    ),
    "a system message in the middle": (
        [USER, {"role": "system", "content": [text("# Environment")], "output_config": {}}],
        [USER, {"role": "system", "content": "# Environment"}],
    ),
    "a call and its result, thinking left out": (
        [USER, assistant({"type": "thinking", "thinking": "hm", "signature": "x"}, text("Wait"), USE), user(RESULT)],
        [
            USER,
            {"role": "assistant", "content": "Wait", "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "toolu_1", "content": "2"},
        ],
    ),
    "results before what is said beside them": (
        [USER, assistant(USE), user(text("And now?"), RESULT)],
        [
            USER,
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "toolu_1", "content": "2"},
            {"role": "user", "content": "And now?"},
        ],
    ),
    "a result that is an error, and one with a picture": (
        [
            USER,
            assistant(USE, {**USE, "id": "toolu_2"}),
            user({**RESULT, "is_error": True}, {**RESULT, "tool_use_id": "toolu_2", "content": [text("ok"), PIXEL]}),
        ],
        [
            USER,
            {"role": "assistant", "content": None, "tool_calls": [CALL, {**CALL, "id": "toolu_2"}]},
            {"role": "tool", "tool_call_id": "toolu_1", "content": "Error: 2"},
            {"role": "tool", "tool_call_id": "toolu_2", "content": "ok"},
            user(text("What the tool answered to toolu_2:"), SHOWN),
        ],
    ),
    "a result without content": (
        [USER, assistant(USE), user({"type": "tool_result", "tool_use_id": "toolu_1"})],
        [
            USER,
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "toolu_1", "content": ""},
        ],
    ),
    "an answer of thinking alone": (
        [USER, assistant({"type": "redacted_thinking", "data": "x"}), USER],
        [USER, {"role": "assistant", "content": ""}, USER],
    ),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_messages_are_translated(name: str) -> None:
    messages, wanted = MESSAGES[name]
    assert said(*messages) == wanted


def test_the_system_prompt_comes_first_without_claude_code_s_attribution() -> None:
    blocks = [
        text("x-anthropic-billing-header: cc_version=2.1.330;"),
        {**text("You are"), "cache_control": {"type": "ephemeral"}},
    ]
    assert put(system=[*blocks, text("kind")])["messages"] == [{"role": "system", "content": "You are\n\nkind"}, USER]
    assert put(system="Be kind")["messages"] == [{"role": "system", "content": "Be kind"}, USER]
    assert put(system=[])["messages"] == [USER]


def test_a_later_system_message_can_be_put_as_the_user_s() -> None:
    system = {"role": "system", "content": "Now"}
    assert said(USER, system, manner=Manner(later_system="user")) == [USER, {"role": "user", "content": "Now"}]


def test_earlier_thinking_goes_up_where_the_server_wants_it() -> None:
    thinking = assistant({"type": "thinking", "thinking": "hm", "signature": ""}, text("a"))
    manner = Manner(thinking_history="reasoning_content")
    assert said(USER, thinking, USER, manner=manner)[1] == {
        "role": "assistant",
        "content": "a",
        "reasoning_content": "hm",
    }


def test_a_pdf_goes_up_where_the_server_reads_them() -> None:
    part = said(user(PDF), manner=Manner(takes=frozenset({"pdf"})))[0]["content"][0]
    assert part == {
        "type": "file",
        "file": {"filename": "document.pdf", "file_data": "data:application/pdf;base64,JVBERi0="},
    }


FUNCTION = {"name": "f", "description": "Does f", "parameters": TOOL["input_schema"]}
FIELDS: dict[str, tuple[Manner, dict[str, Any], dict[str, Any]]] = {
    "limits": (
        Manner(),
        {"temperature": 0.5, "top_p": 0.9, "top_k": 5, "stop_sequences": ["END"]},
        {"max_tokens": 100, "temperature": 0.5, "top_p": 0.9, "stop": ["END"]},
    ),
    "top_k": (Manner(takes=frozenset({"top_k"})), {"top_k": 5}, {"max_tokens": 100, "top_k": 5}),
    "another name": (Manner(max_tokens_as="max_completion_tokens"), {}, {"max_completion_tokens": 100}),
    "at most": (Manner(output_tokens=50), {}, {"max_tokens": 50}),
    "a stream": (
        Manner(), {"stream": True}, {"max_tokens": 100, "stream": True, "stream_options": {"include_usage": True}},
    ),
    "a stream that tells all along": (
        Manner(takes=frozenset({"continuous_usage"})),
        {"stream": True},
        {
            "max_tokens": 100,
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        },
    ),
    "tools": (
        Manner(),
        {
            "tools": [{**TOOL, "type": "custom", "strict": True, "cache_control": {"type": "ephemeral"}}],
            "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
        },
        {
            "max_tokens": 100,
            "tools": [{"type": "function", "function": {**FUNCTION, "strict": True}}],
            "tool_choice": "required",
            "parallel_tool_calls": False,
        },
    ),
    "one tool": (
        Manner(),
        {"tools": [{**TOOL, "defer_loading": True}], "tool_choice": {"type": "tool", "name": "f"}},
        {
            "max_tokens": 100,
            "tools": [{"type": "function", "function": FUNCTION}],
            "tool_choice": {"type": "function", "function": {"name": "f"}},
        },
    ),
    "no tools to choose from": (Manner(), {"tools": [], "tool_choice": {"type": "auto"}}, {"max_tokens": 100}),
    "a user": (Manner(), {"metadata": {"user_id": "u1"}}, {"max_tokens": 100, "user": "u1"}),
    "thinking that is not asked for": (
        Manner(), {"thinking": {"type": "adaptive"}, "output_config": {"effort": "high"}}, {"max_tokens": 100},
    ),
    "effort": (
        Manner(thinking="reasoning_effort"),
        {"thinking": {"type": "adaptive"}, "output_config": {"effort": "xhigh"}},
        {"max_tokens": 100, "reasoning_effort": "high"},
    ),
    "a budget": (
        Manner(thinking="reasoning_effort"),
        {"thinking": {"type": "enabled", "budget_tokens": 10000}},
        {"max_tokens": 100, "reasoning_effort": "medium"},
    ),
    "no thinking": (
        Manner(thinking="reasoning_effort"),
        {"thinking": {"type": "disabled"}, "output_config": {"effort": "low"}},
        {"max_tokens": 100},
    ),
    "a format": (
        Manner(),
        {"output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}}},
        {
            "max_tokens": 100,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "answer", "schema": {"type": "object"}, "strict": True},
            },
        },
    ),
    "what means nothing there": (
        Manner(),
        {
            "cache_control": {"type": "ephemeral"}, "service_tier": "auto", "diagnostics": {}, "speed": "standard",
            "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
            "inference_geo": "global", "thread": None, "output_config": {"task_budget": {"type": "tokens", "total": 9}},
        },
        {"max_tokens": 100},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FIELDS)
def test_fields_are_translated(name: str) -> None:
    manner, asked, wanted = FIELDS[name]
    assert put(manner, **asked) == {"model": "theirs", "messages": [USER], **wanted}


def test_a_user_s_long_name_goes_up_as_its_digest() -> None:
    name = put(metadata={"user_id": json.dumps({"device_id": "d" * 64, "session_id": "s"})})["user"]
    assert len(name) == 64
    assert "device" not in name


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a tool of Anthropic's": (
        {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
        "web_search_20250305",
    ),
    "a client tool of Anthropic's": (
        {"tools": [TOOL, {"type": "bash_20250124", "name": "bash"}]},
        "tools.1: bash_20250124",
    ),
    "a tool without schema": ({"tools": [{"name": "f"}]}, "input_schema"),
    "safeguards": ({"safeguards": [{"type": "dangerous_tool_use"}]}, "safeguards"),
    "servers": ({"mcp_servers": [{"url": "https://example.com"}]}, "mcp_servers"),
    "a container": ({"container": "c"}, "container"),
    "the United States": ({"inference_geo": "us"}, "inference_geo"),
    "speed": ({"speed": "fast"}, "speed"),
    "compaction": ({"context_management": {"edits": [{"type": "compact_20260112"}]}}, "compact"),
    "what nobody knows": ({"brand_new": 1}, "brand_new: Extra inputs are not permitted"),
    "a setting nobody knows": ({"output_config": {"brand_new": 1}}, "output_config.brand_new"),
    "no output": ({"max_tokens": 0}, "max_tokens"),
    "a PDF": ({"messages": [user(PDF)]}, "PDF"),
    "a PDF by address": (
        {"messages": [user({"type": "document", "source": {"type": "url", "url": "https://example.com"}})]},
        "document by 'url'",
    ),
    "a file": ({"messages": [user({"type": "image", "source": {"type": "file", "file_id": "f"}})]}, "image by 'file'"),
    "a block of a server tool": (
        {"messages": [USER, assistant({"type": "server_tool_use", "id": "s", "name": "w", "input": {}}), USER]},
        "messages.1.content.0: a block of type 'server_tool_use'",
    ),
    "an answer begun": ({"messages": [USER, assistant(text("The"))]}, "messages.1"),
    "another role": ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
    "no tools": ({"tool_choice": {"type": "any"}}, "tool_choice"),
    "another choice": ({"tools": [TOOL], "tool_choice": {"type": "x"}}, "tool_choice.type"),
    "another format": ({"output_config": {"format": {"type": "xml"}}}, "output_config.format"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_said_there_is_refused_by_name(name: str) -> None:
    asked, words = REFUSED[name]
    with pytest.raises(InvalidRequest) as refused:
        put(**asked)
    assert words in refused.value.message


ANY = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
KINDS = ["text", "image", "document", "tool_use", "tool_result", "thinking", "search_result", "tool_reference", "?"]
SOURCES = st.fixed_dictionaries(
    {"type": st.sampled_from(["base64", "text", "url", "content", "file"]) | ANY},
    optional={"data": st.text(max_size=5) | ANY, "url": ANY, "media_type": ANY, "content": ANY},
)
BLOCKS = st.fixed_dictionaries(
    {"type": st.sampled_from(KINDS) | ANY},
    optional={
        "text": st.text(max_size=5) | ANY, "source": SOURCES | ANY, "id": st.text(max_size=5) | ANY, "name": ANY,
        "input": ANY, "content": ANY, "tool_use_id": st.text(max_size=5) | ANY, "title": ANY,
    },
)  # fmt: skip
TURNS = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["user", "assistant", "system"]) | ANY,
        "content": st.text(max_size=5) | st.lists(BLOCKS) | ANY,
    }
)
ASKED = st.fixed_dictionaries(
    {"messages": st.lists(TURNS, max_size=4) | ANY, "max_tokens": st.integers(-5, 500) | ANY},
    optional={
        "system": st.text(max_size=5) | st.lists(BLOCKS, max_size=2) | ANY,
        "tools": st.lists(st.just(TOOL) | ANY, max_size=2) | ANY,
        "tool_choice": st.fixed_dictionaries({"type": st.sampled_from(["auto", "any", "tool", "none"]) | ANY}) | ANY,
        "thinking": ANY, "output_config": ANY, "output_format": ANY, "metadata": ANY, "stop_sequences": ANY,
        "stream": ANY, "temperature": ANY, "context_management": ANY, "inference_geo": ANY,
    },
)  # fmt: skip


@example({"messages": [{"role": "system", "content": ""}], "max_tokens": 1})
@given(ASKED)
def test_nothing_that_is_asked_fails_otherwise_than_by_a_refusal(asked: dict[str, Any]) -> None:
    body = json.dumps({"model": "sold", **asked}).encode()
    with contextlib.suppress(InvalidRequest):
        assert json.loads(to_chat(body, "theirs", Manner(thinking="reasoning_effort")))["messages"]


@pytest.mark.parametrize("body", [b"", b"[]", b"\xff", b'{"a":"\\ud800"}', b"[" * 100_000])
def test_what_is_no_request_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        to_chat(body, "theirs", Manner())


def test_half_a_character_in_a_prompt_is_no_reason_to_refuse_it() -> None:
    body = rb'{"model":"m","max_tokens":5,"messages":[{"role":"user","content":"cut \ud83d"}]}'
    assert json.loads(to_chat(body, "theirs", Manner()))["messages"] == [{"role": "user", "content": "cut \ufffd"}]
