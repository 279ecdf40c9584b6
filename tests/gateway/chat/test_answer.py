"""Answers of the Messages API become chat completions: whole, streamed at any split of their bytes, and errors."""

import json
from itertools import pairwise
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farebox.errors import InvalidRequest, MethodNotAllowed, NotFound, Overloaded, RateLimited
from farebox.gateway.chat.answer import completion_of, error_body_of, finish_reason, refusal_of, usage_of
from farebox.gateway.chat.stream import Chunks
from tests.gateway.chat.play import chunks, error_of, text_of
from tests.house.pages import ROOT, codes, rows, section

USAGE: Final[Any] = {
    "input_tokens": 5, "cache_creation_input_tokens": 20, "cache_read_input_tokens": 300, "output_tokens": 40,
    "output_tokens_details": {"thinking_tokens": 12},
}  # fmt: skip
PUT: Final[Any] = {
    "prompt_tokens": 325,
    "completion_tokens": 40,
    "total_tokens": 365,
    "prompt_tokens_details": {"cached_tokens": 300, "cache_write_tokens": 20},
    "completion_tokens_details": {"reasoning_tokens": 12},
}


def whole(**fields: Any) -> dict[str, Any]:
    message = {"id": "msg_1", "model": "m", "content": [], "stop_reason": "end_turn", "usage": USAGE, **fields}
    put: dict[str, Any] = json.loads(completion_of(json.dumps(message).encode(), "chatcmpl-1", 77))
    return put


def test_a_whole_answer_is_put() -> None:
    content = [
        {"type": "thinking", "thinking": "Hm", "signature": "s"},
        {"type": "redacted_thinking", "data": "x"},
        {"type": "text", "text": "Hé", "citations": None},
        {"type": "text", "text": "llo"},
        {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"a": [1, 2.50]}},
        {"type": "from_the_future", "text": 5},
    ]
    assert whole(content=content, stop_reason="tool_use") == {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 77,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": "Héllo",
                    "refusal": None,
                    "reasoning_content": "Hm",
                    "tool_calls": [
                        {"id": "toolu_1", "type": "function", "function": {"name": "f", "arguments": '{"a": [1, 2.5]}'}}
                    ],
                },
                "logprobs": None,
                "finish_reason": "tool_calls",
            }
        ],
        "usage": PUT,
    }


def test_only_calls_have_no_content_and_nothing_is_an_empty_one() -> None:
    call = {"type": "tool_use", "id": "t", "name": "f", "input": {}}
    assert whole(content=[call])["choices"][0]["message"]["content"] is None
    assert whole(content=[])["choices"][0]["message"]["content"] == ""


def test_every_end_is_put_as_documented() -> None:
    told = rows(section((ROOT / "docs/openai.md").read_text(), "Answers"))
    ends = {stop: codes(row[1])[-1] for row in told[4:8] for stop in codes(row[0])}
    assert len(ends) == 7
    for stop, finish in ends.items():
        assert finish_reason(stop) == finish, stop
    assert finish_reason(None) == finish_reason("new") == finish_reason(5) == "stop"


JSON: Final = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=10,
)
FIELDS: Final = st.sampled_from(
    ["id", "model", "content", "stop_reason", "usage", "type", "text", "input", "name", "delta"]
)


@given(st.dictionaries(FIELDS, JSON | st.lists(st.dictionaries(FIELDS, JSON)), max_size=6))
def test_whatever_is_answered_is_put(message: dict[str, Any]) -> None:
    """It is paid for by then: a field that cannot be read is left out."""
    put = json.loads(completion_of(json.dumps(message).encode(), "c", 1))
    assert put["choices"][0]["message"]["role"] == "assistant"
    assert put["usage"]["total_tokens"] >= 0


# streams


def event(name: str, **fields: Any) -> bytes:
    return f"event: {name}\ndata: {json.dumps({'type': name, **fields}, ensure_ascii=False)}\n\n".encode()


def block(index: int, content: dict[str, Any], *deltas: dict[str, Any]) -> bytes:
    pieces = [event("content_block_start", index=index, content_block=content)]
    pieces += [event("content_block_delta", index=index, delta=delta) for delta in deltas]
    return b"".join([*pieces, event("content_block_stop", index=index)])


START: Final = event("message_start", message={"id": "msg_1", "model": "m", "usage": {**USAGE, "output_tokens": 1}})
END: Final = event("message_delta", delta={"stop_reason": "tool_use"}, usage={"output_tokens": 40}) + event(
    "message_stop"
)
STREAM: Final = b"".join(
    [
        START,
        event("ping"),
        block(0, {"type": "thinking", "thinking": ""}, {"type": "thinking_delta", "thinking": "Hm"},
              {"type": "signature_delta", "signature": "s"}),
        block(1, {"type": "text", "text": ""}, {"type": "text_delta", "text": "Grüße "},
              {"type": "text_delta", "text": "🦦"}),
        b": keep-alive\n\n",
        block(2, {"type": "tool_use", "id": "t1", "name": "f", "input": {}},
              {"type": "input_json_delta", "partial_json": ""}, {"type": "input_json_delta", "partial_json": '{"a":'},
              {"type": "input_json_delta", "partial_json": ' "ü"}'}),
        block(3, {"type": "tool_use", "id": "t2", "name": "g", "input": {}}),
        event("from_the_future", delta=5),
        END,
    ]
)  # fmt: skip


def feed(pieces: list[bytes], *, include_usage: bool = False) -> bytes:
    stream = Chunks("chatcmpl-1", 77, include_usage=include_usage)
    return b"".join(map(stream.feed, pieces))


def test_a_stream_is_put() -> None:
    data = feed([STREAM], include_usage=True)
    assert data.count(b": keep-alive\n\n") == 2
    assert data.endswith(b"data: [DONE]\n\n")
    told = chunks(data)
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 77, "model": "m"}
    assert all(head.items() <= one.items() for one in told)
    deltas = [choice["delta"] for one in told for choice in one["choices"]]
    assert deltas == [
        {"role": "assistant", "content": "", "refusal": None},
        {"reasoning_content": "Hm"},
        {"content": "Grüße "},
        {"content": "🦦"},
        {"tool_calls": [{"index": 0, "id": "t1", "type": "function", "function": {"name": "f", "arguments": ""}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"a":'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": ' "ü"}'}}]},
        {"tool_calls": [{"index": 1, "id": "t2", "type": "function", "function": {"name": "g", "arguments": ""}}]},
        {"tool_calls": [{"index": 1, "function": {"arguments": "{}"}}]},
        {},
    ]
    assert [one["choices"][0]["finish_reason"] for one in told[:-1]] == [None] * 9 + ["tool_calls"]
    assert (told[-1]["choices"], told[-1]["usage"]) == ([], {**PUT})
    assert all(one["usage"] is None for one in told[:-1])
    assert all("usage" not in one for one in chunks(feed([STREAM])))


@given(st.sets(st.integers(1, len(STREAM) - 1), max_size=30), st.sampled_from([b"\n", b"\r\n", b"\r"]))
def test_any_split_gives_the_same_chunks(cuts: set[int], newline: bytes) -> None:
    stream = STREAM.replace(b"\n", newline)
    places = [0, *sorted(cuts), len(stream)]
    pieces = [stream[begin:end] for begin, end in pairwise(places)]
    assert feed(pieces) == feed([STREAM])


def test_byte_by_byte_gives_the_same_chunks() -> None:
    for newline in (b"\n", b"\r\n", b"\r"):
        stream = STREAM.replace(b"\n", newline)
        assert feed([stream[at : at + 1] for at in range(len(stream))]) == feed([STREAM])


def test_nothing_tells_the_end_before_the_last_event() -> None:
    """Promise 1: what the meter holds back cannot be told of."""
    early = feed([STREAM.removesuffix(END)]) + feed([STREAM.removesuffix(event("message_stop"))])
    assert b"[DONE]" not in early
    assert b'"finish_reason":"' not in early
    assert b'"usage"' not in early


def test_an_error_ends_a_stream_and_nothing_comes_after() -> None:
    broken = event("error", error={"type": "overloaded_error", "message": "Overloaded"})
    data = feed([START, broken, STREAM])
    assert chunks(data)[-1] == {
        "error": {"message": "Overloaded", "type": "server_error", "param": None, "code": "overloaded"}
    }
    assert b"[DONE]" not in data
    assert "error" in chunks(feed([event("error", error=5), event("error")]))[-1]


@given(
    st.lists(
        st.dictionaries(st.sampled_from(["type", "delta", "index", "message", "content_block", "usage", "error"]), JSON)
    )
)
def test_whatever_events_come_are_put_or_left_out(events: list[dict[str, Any]]) -> None:
    feed([START, *(event("x", **{name: value for name, value in one.items() if name != "type"}) for one in events),
          *(b"data: " + json.dumps(one).encode() + b"\n\n" for one in events), b"data: {\n\n", END])  # fmt: skip


@given(st.lists(st.text(min_size=1), max_size=10))
def test_text_comes_through_whole(texts: list[str]) -> None:
    deltas = [{"type": "text_delta", "text": text} for text in texts]
    written = START + block(0, {"type": "text", "text": ""}, *deltas) + END
    assert text_of(chunks(feed([written]))) == "".join(texts)


def test_half_a_character_in_a_delta_does_not_lose_it() -> None:
    half = rb'data: {"type":"content_block_delta","delta":{"type":"text_delta","text":"a\ud83d"}}' + b"\n\n"
    assert text_of(chunks(feed([START, half, END]))) == "a\ufffd"


# errors


@pytest.mark.parametrize(
    ("refusal", "status", "expected"),
    [
        (InvalidRequest("temperature must be 0…1, got 5"), 400, ("invalid_request_error", "temperature", None)),
        (InvalidRequest("messages[3].content: no"), 400, ("invalid_request_error", "messages[3].content", None)),
        (RateLimited("slow down", retry_after_s=3), 429, ("rate_limit_error", None, "rate_limit_exceeded")),
        (NotFound("model: 'x' is not sold here"), 404, ("invalid_request_error", "model", "model_not_found")),
        (Overloaded("full", retry_after_s=2), 503, ("server_error", None, "overloaded")),
        (MethodNotAllowed("no", "POST"), 405, ("invalid_request_error", None, None)),
        (InvalidRequest("x", error_code="own_code"), 400, ("invalid_request_error", None, "own_code")),
    ],
)
def test_refusals_are_put(refusal: Any, status: int, expected: tuple[str, str | None, str | None]) -> None:
    told, headers, body = refusal_of(refusal, "req_1")
    error = error_of(body)
    assert told == status
    assert (error["type"], error["param"], error["code"]) == expected
    assert error["message"] == refusal.message
    assert (b"x-request-id", b"req_1") in headers
    assert dict(headers)[b"x-should-retry"] in {b"true", b"false"}
    if refusal.retry_after_s:
        assert dict(headers)[b"retry-after"] == b"%d" % refusal.retry_after_s


def test_an_upstreams_errors_are_put_whatever_they_are() -> None:
    body = json.dumps({"type": "error", "error": {"type": "not_found_error", "message": "model: m"}}).encode()
    status, put = error_body_of(404, body)
    assert (status, error_of(put)["code"], error_of(put)["message"]) == (404, "model_not_found", "model: m")
    for odd in (b"", b"<html>", b"[]", b'{"error":"no"}', b"\xff"):
        status, put = error_body_of(529, odd)
        assert (status, error_of(put)["type"]) == (503, "server_error")


def test_usage_that_makes_no_sense_counts_as_none() -> None:
    nothing: dict[str, Any] = {"input_tokens": -5, "output_tokens": "x", "output_tokens_details": 3}
    assert usage_of(nothing)["total_tokens"] == 0
