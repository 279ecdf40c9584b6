"""Chat completions requests become requests of the Messages API: each field is put, passed on, ignored or refused."""

import json
from itertools import pairwise
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farebox.errors import InvalidRequest
from farebox.gateway.ask import read_request
from farebox.gateway.chat.asked import EFFORTS, IGNORED, JSON_ONLY, NOTHING, PASSED, ChatRequest, to_messages
from tests.house.pages import ROOT, codes, rows, section

USER: Final[Any] = {"role": "user", "content": "Hello"}
TURN: Final[Any] = {"role": "user", "content": [{"type": "text", "text": "Hello"}]}
PNG: Final = "data:image/png;base64,iVBORw0KGgo="
CALL: Final[Any] = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1e400}'}}
TOOL: Final[Any] = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def put(*messages: Any, **fields: Any) -> dict[str, Any]:
    asked = to_messages(json.dumps({"model": "m", "messages": messages or [USER], **fields}).encode())
    assert asked.model == "m"
    body: dict[str, Any] = json.loads(asked.body)
    return body


def more(**fields: Any) -> dict[str, Any]:
    """Give what becomes of fields, beside model and messages."""
    body = put(**fields)
    assert body.pop("messages") == [TURN]
    assert body.pop("model") == "m"
    return body


@pytest.mark.parametrize(
    ("fields", "becomes"),
    [
        ({"max_tokens": 5}, {"max_tokens": 5}),
        ({"max_tokens": 5, "max_completion_tokens": 7}, {"max_tokens": 7}),
        ({"temperature": 1}, {"temperature": 1}),
        ({"temperature": 0.25, "top_p": 0.5}, {"temperature": 0.25, "top_p": 0.5}),
        ({"stop": "END"}, {"stop_sequences": ["END"]}),
        ({"stop": ["a", "", "b"]}, {"stop_sequences": ["a", "b"]}),
        ({"stop": ""}, {}),
        ({"stop": []}, {}),
        ({"stream": True, "stream_options": {"include_usage": True, "include_obfuscation": False}}, {"stream": True}),
        ({"stream": False}, {}),
        ({"user": "u", "safety_identifier": "s"}, {"metadata": {"user_id": "u"}}),
        ({"safety_identifier": "s"}, {"metadata": {"user_id": "s"}}),
        ({"thinking": {"type": "enabled"}}, {"thinking": {"type": "enabled"}}),
        ({"top_k": 5, "cache_control": {"type": "ephemeral"}}, {"top_k": 5, "cache_control": {"type": "ephemeral"}}),
        ({"response_format": {"type": "text"}}, {}),
        ({"response_format": {"type": "json_object"}}, {"system": [{"type": "text", "text": JSON_ONLY}]}),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}},
            {"output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}}},
        ),
        ({"reasoning_effort": "none"}, {"thinking": {"type": "disabled"}}),
        ({"reasoning_effort": "minimal"}, {"output_config": {"effort": "low"}}),
        ({"reasoning_effort": "low", "temperature": 1}, {"output_config": {"effort": "low"}, "temperature": 1}),
        (
            {"reasoning_effort": "high", "thinking": {"type": "disabled"}},
            {"output_config": {"effort": "high"}, "thinking": {"type": "disabled"}},
        ),
        ({"tools": [], "tool_choice": "auto", "parallel_tool_calls": True}, {}),
    ],
)  # fmt: skip
def test_fields_are_put(fields: Any, becomes: Any) -> None:
    assert more(**fields) == becomes


@pytest.mark.parametrize("effort", sorted(EFFORTS.keys() - {"minimal"}))
def test_effort_thinks(effort: str) -> None:
    thinking = {"type": "adaptive", "display": "summarized"}
    assert more(reasoning_effort=effort) == {"output_config": {"effort": EFFORTS[effort]}, "thinking": thinking}


@pytest.mark.parametrize(
    ("choice", "becomes"),
    [
        ({}, None),
        ({"tool_choice": "none"}, {"type": "none"}),
        ({"tool_choice": "auto"}, {"type": "auto"}),
        ({"tool_choice": "required"}, {"type": "any"}),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, {"type": "tool", "name": "f"}),
        ({"parallel_tool_calls": False}, {"type": "auto", "disable_parallel_tool_use": True}),
        ({"parallel_tool_calls": False, "tool_choice": "none"}, {"type": "none"}),
        (
            {"parallel_tool_calls": False, "tool_choice": "required"},
            {"type": "any", "disable_parallel_tool_use": True},
        ),
    ],
)
def test_the_choice_of_tools_is_put(choice: Any, becomes: Any) -> None:
    assert more(tools=[TOOL], **choice).get("tool_choice") == becomes


@pytest.mark.parametrize(
    ("function", "becomes"),
    [
        ({}, {"input_schema": {"type": "object", "properties": {}}}),
        ({"parameters": {}}, {"input_schema": {"type": "object"}}),
        ({"description": "D"}, {"description": "D", "input_schema": {"type": "object", "properties": {}}}),
        ({"parameters": {"properties": {"a": {}}}}, {"input_schema": {"type": "object", "properties": {"a": {}}}}),
        ({"parameters": {"type": "object"}, "strict": True}, {"input_schema": {"type": "object"}, "strict": True}),
        ({"parameters": {"type": "object"}, "strict": False}, {"input_schema": {"type": "object"}}),
    ],
)  # fmt: skip
def test_tools_are_put(function: Any, becomes: Any) -> None:
    tool = {"type": "function", "function": {"name": "f", **function}, "cache_control": {"type": "ephemeral"}}
    assert more(tools=[tool])["tools"] == [{"name": "f", **becomes, "cache_control": {"type": "ephemeral"}}]


def text(*texts: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": one} for one in texts]


def test_a_conversation_is_put_with_its_tools_pictures_and_files() -> None:
    pdf = "data:application/pdf;base64,JVBERi0="
    body = put(
        {"role": "system", "content": "One"},
        {"role": "user", "content": [
            {"type": "text", "text": "See", "cache_control": {"type": "ephemeral"}},
            {"type": "image_url", "image_url": {"url": PNG, "detail": "high"}},
            {"type": "image_url", "image_url": "https://example.com/a.png"},
            {"type": "file", "file": {"file_data": pdf, "filename": "a.pdf"}},
        ]},
        {"role": "developer", "content": [{"type": "text", "text": "Two"}]},
        {"role": "user", "content": "and this", "name": "alice"},
        {"role": "assistant", "content": None, "tool_calls": [CALL, {"id": "call_2", "function": {"name": "g"}}],
         "reasoning_content": "Hm", "audio": None, "annotations": []},
        {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
        {"role": "tool", "tool_call_id": "call_2", "content": [{"type": "image_url", "image_url": {"url": PNG}}]},
        {"role": "tool", "tool_call_id": "call_3", "content": ""},
        {"role": "user", "content": "So?"},
        {"role": "assistant", "content": "", "refusal": "No."},
        {"role": "assistant", "content": ""},
    )  # fmt: skip
    picture = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}}
    assert body["system"] == text("One", "Two")
    assert [turn["role"] for turn in body["messages"]] == ["user", "assistant", "user", "assistant"]
    asked, called, results, refused = [turn["content"] for turn in body["messages"]]
    assert asked == [
        {"type": "text", "text": "See", "cache_control": {"type": "ephemeral"}},
        picture,
        {"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}},
        {
            "type": "document",
            "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0="},
            "title": "a.pdf",
        },
        *text("and this"),
    ]
    assert called == [
        {"type": "tool_use", "id": "call_1", "name": "f", "input": {"a": float("inf")}},
        {"type": "tool_use", "id": "call_2", "name": "g", "input": {}},
    ]
    assert results == [
        {"type": "tool_result", "tool_use_id": "call_1", "content": text("rain")},
        {"type": "tool_result", "tool_use_id": "call_2", "content": [picture]},
        {"type": "tool_result", "tool_use_id": "call_3"},
        *text("So?"),
    ]
    assert refused == text("No.")


def said(**message: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", **message}]}


def called(arguments: str) -> dict[str, Any]:
    return {"id": "call_1", "function": {"name": "f", "arguments": arguments}}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"messages": []}, "messages: an array of at least one"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages: at least one of a user"),
        ({"messages": [{"role": "user", "content": ""}]}, "messages: at least one of a user"),
        ({"messages": [{"role": "robot"}]}, "messages[0].role must be system, developer"),
        ({"messages": [{"content": "x"}]}, "missing required field role"),
        ({"messages": "x"}, "messages: Expected"),
        (said(content=5), "messages[0].content: Expected"),
        (said(content=[{"type": "input_audio", "input_audio": {}}]), "messages[0].content[0]: parts of type text"),
        (said(content=[{"type": "text"}]), "messages[0].content[0].text: field required"),
        (said(content=[{"type": "image_url"}]), "messages[0].content[0].image_url: field required"),
        (said(content=[{"type": "image_url", "image_url": "http://a/b"}]), "image_url.url must be https://"),
        (said(content=[{"type": "image_url", "image_url": "data:text/plain;base64,AA"}]), "must be a picture"),
        (said(content=[{"type": "file", "file": {"file_id": "file_1"}}]), "files by file_id are not kept"),
        (said(content=[{"type": "file", "file": {"file_data": PNG}}]), "must be a PDF"),
        (said(role="tool", content="x"), "messages[0].tool_call_id: field required"),
        (said(role="function", content="x"), "messages[0].role must be"),
        (said(role="assistant", function_call={"name": "f"}), "messages[0].function_call: give calls as tool_calls"),
        (said(role="assistant", tool_calls=[{"id": "c"}]), "messages[0].tool_calls: calls of functions"),
        (said(role="assistant", tool_calls=[called("{")]), "must be a JSON object"),
        (said(role="assistant", tool_calls=[called("[]")]), "must be a JSON object"),
        ({"temperature": 1.5}, "temperature must be 0…1 with these models, got 1.5"),
        ({"temperature": "hot"}, "temperature: Expected"),
        ({"max_tokens": 0}, "max_completion_tokens must be 1 or more"),
        ({"max_tokens": 2**60}, "max_completion_tokens must be 1 or more"),
        ({"n": 2}, "n: not offered here: one answer a call"),
        ({"logprobs": True}, "logprobs: not offered"),
        ({"logit_bias": {"5": 1}}, "logit_bias: not offered"),
        ({"modalities": ["text", "audio"]}, "modalities: not offered here: answers are text"),
        ({"audio": {}}, "audio: not offered"),
        ({"functions": [{}]}, "functions: not offered here: give them as `tools`"),
        ({"function_call": "auto"}, "function_call: not offered"),
        ({"a" * 200: 1}, "a" * 100 + ": this endpoint does not know the field"),
        ({"tools": [{"type": "custom"}]}, "tools[0]: tools of type function"),
        ({"tools": [{"type": "function"}]}, "tools[0]: tools of type function"),
        ({"tools": [{**TOOL, "function": {"name": "f", "parameters": []}}]}, "tools[0].function.parameters"),
        ({"tools": [TOOL], "tool_choice": "any"}, "tool_choice must be none, auto"),
        ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools"}}, "tool_choice: name a function"),
        ({"tool_choice": "required"}, "tool_choice: there are no tools"),
        ({"response_format": {"type": "xml"}}, "response_format.type must be"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema: an object"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": []}}}, "json_schema.schema: an"),
        ({"reasoning_effort": "ultra"}, "reasoning_effort must be none, minimal"),
    ],
)  # fmt: skip
def test_what_cannot_be_put_is_refused_by_name(fields: Any, words: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        to_messages(json.dumps({"model": "m", "messages": [USER], **fields}).encode())
    assert words in refused.value.message


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not valid JSON"),
        (b"[]", "must be a JSON object"),
        (b"nul", "not valid JSON"),
        (b'{"model":"m","messages":[{"role":"user","content":"\xff"}]}', "UTF-8"),
        (b'{"model":"m","messages":' + b"[" * 100_000, "nested too deeply"),
        (
            b'{"model":"m","messages":[{"role":"user","content":"x"}],"top_p":' + b"[" * 5000 + b"]" * 5000 + b"}",
            "deep",
        ),
        (b'{"model":"m","messages":[' + b'{"role":"user"},' * 300_000 + b"{}]}", "more than 250000"),
        (b'{"messages":[]}', "missing required field model"),
    ],
)
def test_hostile_bodies_are_refused(body: bytes, words: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        to_messages(body)
    assert words in refused.value.message


@pytest.mark.parametrize("name", sorted(IGNORED))
@pytest.mark.parametrize("value", [None, 0, "x", {"a": [1]}, ["y"]])
def test_hints_are_ignored_whatever_they_are(name: str, value: Any) -> None:
    assert more(**{name: value}) == {}


@pytest.mark.parametrize(
    ("name", "value"), [(name, one) for name, values in NOTHING.items() for one in (None, *values)]
)
def test_asking_for_nothing_is_no_error(name: str, value: Any) -> None:
    assert more(**{name: value}) == {}


def test_half_a_character_does_not_spoil_a_request() -> None:
    asked = to_messages(rb'{"model":"m","messages":[{"role":"user","content":"a\ud83d b"}]}')
    assert json.loads(asked.body)["messages"][0]["content"][0]["text"] == "a\ufffd b"


JSON: Final = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=12,
)
NAMES: Final = st.sampled_from(
    [*ChatRequest.__struct_fields__, *NOTHING, *PASSED, "role", "content", "type", "function"]
)


@given(st.dictionaries(NAMES, JSON, max_size=6), st.lists(st.dictionaries(NAMES, JSON, max_size=5), max_size=3))
def test_whatever_is_sent_is_put_or_refused(fields: dict[str, Any], messages: list[Any]) -> None:
    """And what is put can be read as a request."""
    try:
        asked = to_messages(json.dumps({"model": "m", "messages": [*messages, USER], **fields}).encode())
    except InvalidRequest:
        return
    assert read_request(asked.body).model == asked.model


@given(st.lists(st.tuples(st.sampled_from(["user", "assistant", "system"]), st.text(max_size=20)), max_size=12))
def test_no_text_is_lost_and_turns_take_turns(spoken: list[tuple[str, str]]) -> None:
    body = put(*({"role": role, "content": words} for role, words in spoken), USER)
    for role in ("user", "assistant"):
        parts = [block["text"] for turn in body["messages"] if turn["role"] == role for block in turn["content"]]
        assert parts == [words for who, words in spoken if who == role and words] + ["Hello"] * (role == "user")
    assert [part["text"] for part in body.get("system", [])] == [
        words for who, words in spoken if who == "system" and words
    ]
    roles = [turn["role"] for turn in body["messages"]]
    assert all(one != other for one, other in pairwise(roles))


def test_every_field_is_documented_with_what_becomes_of_it() -> None:
    told = {
        codes(row[0])[0]: row[1] for row in rows(section((ROOT / "docs/openai.md").read_text(), "Fields of a request"))
    }
    assert told.keys() == {*ChatRequest.__struct_fields__, *IGNORED, *NOTHING, *PASSED}
    assert {name for name, words in told.items() if words.startswith("ignored")} == IGNORED
    assert {name for name, words in told.items() if words.startswith("refused")} == NOTHING.keys()
    assert {name for name, words in told.items() if words.startswith("passed on")} == PASSED
