"""The meter beside the stream: any split of the bytes gives the same bytes, the same usage, the same count of text."""

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farebox.gateway.sse import EVENT_BYTES, Meter

START = {
    "type": "message_start",
    "message": {
        "id": "msg_1",
        "model": "claude-x",
        "usage": {"input_tokens": 11, "output_tokens": 1, "cache_read_input_tokens": 5},
    },
}
DELTA = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 42}}
STOP = {"type": "message_stop"}


def event(data: dict[str, Any] | str, *, name: str | None = None, end: str = "\n", spaced: bool = True) -> bytes:
    text = data if isinstance(data, str) else json.dumps(data, separators=(", ", ": ") if spaced else (",", ":"))
    if name is None:
        name = data["type"] if isinstance(data, dict) else "odd"
    lines = [f"event: {name}"] if name else []
    return "".join(line + end for line in [*lines, *(f"data: {line}" for line in text.split("\n")), ""]).encode()


def delta(text: str) -> dict[str, Any]:
    return {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}}


texts = st.text(max_size=30) | st.sampled_from(
    ['say "message_stop"', "error\\", "event: message_stop\n\n", "\r\n\r\n", '}\\"']
)
extras = (
    st.builds(lambda text: event(delta(text)), texts)
    | st.builds(lambda text: event(delta(text), spaced=False), texts)
    | st.builds(lambda text: event(delta(text), end="\r\n"), texts)
    | st.builds(lambda text: event(delta(text), name=""), texts)
    | st.sampled_from(
        [
            b": a comment\n\n",
            b"\n",
            b"\n\n\n",
            b"id: 7\nretry: 10\n\n",
            event({"type": "ping"}),
            event({"type": "ping"}, end="\r"),
            event({"type": "hologram", "usage": {"output_tokens": 999_999}}),
            event("no JSON at all", name="from_the_future"),
            event('{"type": "content_block_delta",\n"delta": {}}', name="content_block_delta"),
            event({**DELTA, "usage": {"output_tokens": 7, "input_tokens": 13}}),
        ]
    )
)


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    end = draw(st.sampled_from(["\n", "\r\n", "\r"]))
    name = draw(st.sampled_from([None, ""]))
    parts = [event(START, end=end, name=name), *draw(st.lists(extras, max_size=12)), event(DELTA, end=end, name=name)]
    parts += draw(st.lists(st.sampled_from([event({"type": "ping"}), b": last words\n\n"]), max_size=1))
    parts.append(event(STOP, end=end, name=name))
    if draw(st.integers(0, 3)) == 0:
        parts = parts[: draw(st.integers(1, len(parts)))]
    return b"".join(parts)


def feed(data: bytes, cuts: list[int]) -> tuple[Meter, bytes]:
    meter = Meter()
    places = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    passed = b"".join(meter.feed(data[begin:end]) for begin, end in pairwise(places) if begin < end)
    return meter, passed


def learned(meter: Meter) -> tuple[Any, ...]:
    return (
        meter.started, meter.finished, meter.broken, meter.model, meter.message_id, meter.stop_reason, meter.usage,
        meter.usage_is_final, meter.visible_bytes,
    )  # fmt: skip


@given(streams(), st.lists(st.integers(0, 10_000), max_size=30))
@settings(max_examples=600, deadline=None)
def test_any_split_of_the_bytes_gives_the_same_bytes_and_the_same_figures(data: bytes, cuts: list[int]) -> None:
    """What was passed on, what is held and what is still incomplete are together what came in."""
    meter, passed = feed(data, cuts)
    assert passed + meter.held + bytes(meter._tail) == data
    assert learned(meter) == learned(feed(data, [])[0])
    assert meter.broken is None


@given(streams())
@settings(max_examples=100, deadline=None)
def test_byte_by_byte_is_a_split_too(data: bytes) -> None:
    meter, passed = feed(data, list(range(len(data))))
    assert passed + meter.held + bytes(meter._tail) == data
    assert learned(meter) == learned(feed(data, [])[0])


@given(streams(), st.lists(st.integers(0, 10_000), max_size=30))
@settings(max_examples=200, deadline=None)
def test_the_end_of_a_message_is_never_among_the_bytes_that_are_passed_on(data: bytes, cuts: list[int]) -> None:
    meter, passed = feed(data, cuts)
    if meter.finished:
        assert b'"type": "message_stop"' not in passed
        assert b'"output_tokens": 42' not in passed


@given(st.binary(max_size=300), st.lists(st.integers(0, 10_000), max_size=10))
@settings(max_examples=300, deadline=None)
def test_no_bytes_make_the_meter_raise_or_believe_in_an_end(data: bytes, cuts: list[int]) -> None:
    meter, passed = feed(data, cuts)
    assert not meter.finished
    assert (passed + meter.held + bytes(meter._tail) == data) or meter.broken


WHOLE = event(START) + event(delta("Hello")) + event(DELTA) + event(STOP)


def test_the_figures_of_a_plain_stream() -> None:
    meter, passed = feed(WHOLE, [])
    assert passed == event(START) + event(delta("Hello"))
    assert meter.held == event(DELTA) + event(STOP)
    assert meter.usage == {"input_tokens": 11, "output_tokens": 42, "cache_read_input_tokens": 5}
    assert (meter.model, meter.message_id, meter.stop_reason) == ("claude-x", "msg_1", "end_turn")
    assert (meter.visible_bytes, meter.finished, meter.usage_is_final) == (5, True, True)


def test_a_later_delta_replaces_field_by_field_and_null_replaces_nothing() -> None:
    later = {**DELTA, "usage": {"output_tokens": 50, "input_tokens": None, "cache_read_input_tokens": 9}}
    meter, _ = feed(event(START) + event(DELTA) + event(later) + event(STOP), [])
    assert meter.usage == {"input_tokens": 11, "output_tokens": 50, "cache_read_input_tokens": 9}


def test_content_after_a_message_delta_lets_the_held_events_go_in_their_order() -> None:
    meter, passed = feed(event(START) + event(DELTA) + event(delta("more")), [])
    assert passed == event(START) + event(DELTA) + event(delta("more"))
    assert meter.held == b""


def test_what_comes_after_message_stop_is_held_with_it() -> None:
    meter, passed = feed(WHOLE + event(delta("late")) + event({**DELTA, "usage": {"output_tokens": 10_000}}), [])
    assert passed == event(START) + event(delta("Hello"))
    assert meter.usage["output_tokens"] == 42


@pytest.mark.parametrize("kind", ["text", "thinking", "partial_json"])
def test_all_visible_output_is_counted_in_bytes_as_they_stand_on_the_wire(kind: str) -> None:
    shown = {"type": "content_block_delta", "index": 0, "delta": {"type": f"{kind}_delta", kind: "žluť"}}
    data = event(json.dumps(shown, ensure_ascii=False), name="content_block_delta")
    assert feed(event(START) + data, [])[0].visible_bytes == len("žluť".encode())


def test_a_huge_event_passes_whole() -> None:
    huge = event(delta("x" * 3_000_000))
    meter, passed = feed(event(START) + huge, list(range(0, 3_000_000, 65_536)))
    assert passed == event(START) + huge
    assert meter.visible_bytes == 3_000_000


def test_an_event_without_end_is_broken_before_it_fills_the_memory() -> None:
    meter = Meter()
    meter.feed(event(START))
    for _ in range(EVENT_BYTES // 65_536 + 2):
        meter.feed(b"x" * 65_536)
    assert meter.broken is not None


@pytest.mark.parametrize(
    "bad",
    [
        b"event: message_delta\ndata: {\n\n",
        b"event: message_delta\ndata: [1]\n\n",
        b'event: message_delta\ndata: {"usage": [1]}\n\n',
        b'event: message_delta\ndata: {"usage": 3}\n\n',
        b"event: message_delta\n\n",
        b"event: error\ndata: nonsense\n\n",
    ],
)
def test_an_event_about_money_that_cannot_be_read_breaks_the_stream_and_is_not_passed_on(bad: bytes) -> None:
    meter, passed = feed(event(START) + bad + event(STOP), [])
    assert passed == event(START)
    assert meter.broken is not None
    assert not meter.finished


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00\xff<garbage>\r\r\n",
        b"<html>\n\n",
        b'data: {"choices": []}\n\n',
        b"data: [DONE]\n\n",
        b'{"type":"message"}\n\n',
    ],
)
def test_garbage_in_the_place_of_a_first_event_breaks_the_stream_and_is_not_passed_on(garbage: bytes) -> None:
    """So another try can still be made: nothing has reached the client."""
    meter, passed = feed(garbage + WHOLE, [])
    assert passed == b""
    assert meter.broken is not None


@pytest.mark.parametrize(
    "prelude",
    [b": hello\n\n", b"retry: 100\n\n", b"\n", b"\xef\xbb\xbf", event({"type": "ping"}), event({"type": "new"})],
)
def test_comments_pings_and_unknown_events_may_come_before_the_first_one(prelude: bytes) -> None:
    meter, passed = feed(prelude + WHOLE, [])
    assert passed + meter.held == prelude + WHOLE
    assert meter.finished


def test_an_error_event_ends_the_stream_and_is_kept_aside() -> None:
    error = event({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}})
    meter, passed = feed(event(START) + error + event(delta("more")), [])
    assert passed == event(START)
    assert meter.error_event == error
    assert meter.error is not None


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("blank", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7])
def test_an_event_goes_on_as_soon_as_it_is_whole_whatever_ends_its_lines(end: str, blank: str, size: int) -> None:
    """A CR that may be half of a CRLF waits for one more byte; LF after CR is no blank line."""
    if (end, blank) == ("\r", "\n"):
        return
    meter = Meter()
    meter.feed(event(START))
    whole = f'event: ping{end}data: {{"type": "ping"}}{end}{blank}'.encode()
    pieces = [whole[begin : begin + size] for begin in range(0, len(whole), size)]
    passed = b"".join(map(meter.feed, pieces))
    waits = end.endswith("\n") and blank == "\r"
    assert passed in ({b""} if waits else {whole, whole[:-1]})
    assert (passed + meter.feed(b"e")).rstrip(b"\n") == whole.rstrip(b"\n")


def test_an_event_may_be_so_large_and_not_a_byte_larger() -> None:
    meter = Meter()
    meter.feed(event(START))
    assert meter.feed(b"data: ".ljust(EVENT_BYTES, b"x")) == b""
    assert meter.broken is None
    assert meter.feed(b"x") == b""
    assert meter.broken is not None


@pytest.mark.parametrize(
    "beginning", [b": hello\n\n", b"id: 7\n\n", b"retry: 10\n\n", b"\xef\xbb\xbf: hello\n\n", b"\n\n"]
)
def test_what_says_nothing_may_come_before_the_beginning(beginning: bytes) -> None:
    meter = Meter()
    assert meter.feed(beginning) == beginning
    meter.feed(event(START))
    assert meter.broken is None
    assert meter.started


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"])
@pytest.mark.parametrize("last", ["cut off", "cut off\\"])
def test_a_text_that_is_not_closed_does_not_reach_into_the_next_event(end: str, last: str) -> None:
    """Found by fuzzing: what came in one piece counted more than what came in two."""
    odd = f'event: odd{end}data: {{"text": "{last}{end}{end}'.encode()
    data = event(START, end=end) + odd + event(delta("hello"), end=end)
    whole, _ = feed(data, [])
    pieces, _ = feed(data, list(range(len(data))))
    assert whole.visible_bytes == pieces.visible_bytes == len("hello")


@pytest.mark.parametrize("kind", ["message_stop", "error"])
def test_a_nameless_event_means_what_its_bytes_say_however_it_is_cut(kind: str) -> None:
    """A kind that is spelled with escapes is unknown, also beside an event that has all of them looked at."""
    spelled = "".join(f"\\u{ord(letter):04x}" for letter in kind)
    data = event(START) + f'data: {{"type": "{spelled}"}}\n\n'.encode() + event(delta("error"))
    for cuts in ([], list(range(len(data)))):
        meter, _ = feed(data, cuts)
        assert (meter.finished, meter.error, meter.broken) == (False, None, None)
