"""Event streams: frames that botocore reads, wherever they are cut; nothing that is broken is believed."""

import itertools
import json
import struct
import zlib

import pytest
from botocore.eventstream import EventStreamBuffer
from hypothesis import given
from hypothesis import strategies as st

from farebox.http.failures import BadAnswer
from farebox.upstreams.kinds.eventstream import FRAME_BYTES, Frames, MessageEvents
from tests.upstreams.kinds.clouds import chunk, events_of, exception, frame, sse

EVENTS = events_of({}, metrics=True)
STREAM = b"".join(chunk(event) for event in EVENTS)
SSE = b"".join(sse(event) for event in EVENTS)


def decoded(data: bytes, *cuts: int) -> bytes:
    events = MessageEvents()
    places = [0, *cuts, len(data)]
    return b"".join(events.feed(data[a:b]) for a, b in itertools.pairwise(places)) + events.end()


def test_botocore_reads_our_frames() -> None:
    """The frames that these tests are made of are those of AWS."""
    buffer = EventStreamBuffer()
    buffer.add_data(STREAM + exception("throttlingException", "Too many requests"))
    read = list(buffer)
    assert [event.headers[":event-type"] for event in read[:-1]] == ["chunk"] * len(EVENTS)
    assert read[-1].to_response_dict()["status_code"] == 400
    ours = Frames().feed(STREAM)
    assert [one.payload for one in ours] == [event.payload for event in read[:-1]]
    assert [one.headers for one in ours] == [event.headers for event in read[:-1]]


def test_every_cut_gives_the_same_events() -> None:
    for cut in range(len(STREAM) + 1):
        assert decoded(STREAM, cut) == SSE
    assert decoded(STREAM, *range(1, len(STREAM))) == SSE


@given(
    events=st.lists(
        st.dictionaries(st.text(max_size=8), st.one_of(st.text(), st.integers(), st.booleans()), max_size=4), max_size=5
    ),
    cuts=st.lists(st.integers(0, 3000), max_size=6),
)
def test_what_an_event_holds_comes_out_byte_for_byte(events: list[dict[str, object]], cuts: list[int]) -> None:
    wanted = [{**event, "type": "future_event"} for event in events]
    data = b"".join(chunk(event) for event in wanted)
    assert decoded(data, *sorted(cut % (len(data) + 1) for cut in cuts)) == b"".join(sse(event) for event in wanted)


@given(data=st.binary(max_size=300))
def test_whatever_comes_is_refused_or_waited_for(data: bytes) -> None:
    frames = Frames()
    try:
        assert frames.feed(data) == []
    except BadAnswer:
        return
    assert len(data) < 12


def test_every_flipped_byte_is_found() -> None:
    one = chunk(EVENTS[0])
    for at in range(len(one)):
        broken = bytearray(one)
        broken[at] ^= 0x10
        with pytest.raises(BadAnswer):
            decoded(bytes(broken))


def test_a_stream_that_ends_within_a_frame_is_broken() -> None:
    for size in (1, 11, 12, len(STREAM) - 1):
        with pytest.raises(BadAnswer):
            decoded(STREAM[:size])


def test_a_frame_that_is_too_large_is_not_waited_for() -> None:
    prelude = struct.pack(">II", FRAME_BYTES + 1, 0)
    with pytest.raises(BadAnswer, match="frame of"):
        Frames().feed(prelude + struct.pack(">I", zlib.crc32(prelude)))


@pytest.mark.parametrize(
    ("kind", "wire_type"),
    [
        ("throttlingException", "rate_limit_error"),
        ("modelStreamErrorException", "api_error"),
        ("modelTimeoutException", "timeout_error"),
        ("internalServerException", "api_error"),
        ("serviceUnavailableException", "overloaded_error"),
        ("validationException", "invalid_request_error"),
        ("accessDeniedException", "permission_error"),
        ("somethingNewException", "api_error"),
    ],
)
def test_an_exception_becomes_an_error_event_and_ends_the_stream(kind: str, wire_type: str) -> None:
    said = decoded(chunk(EVENTS[0]) + exception(kind, "words as they came") + chunk(EVENTS[1]))
    error = {"type": "error", "error": {"type": wire_type, "message": "words as they came"}}
    assert (
        said == sse(EVENTS[0]) + b"event: error\ndata: " + json.dumps(error, separators=(",", ":")).encode() + b"\n\n"
    )


def test_an_error_that_is_no_exception_is_told_as_well() -> None:
    said = decoded(frame(b"", message_type="error", error_code="InternalError", error_message="it broke"))
    assert b'"message":"it broke"' in said
    assert said.startswith(b"event: error\n")


def test_events_that_are_not_chunks_are_left_out() -> None:
    assert decoded(frame(b"{}", message_type="event", event_type="initial-response") + chunk({"type": "ping"})) == sse(
        {"type": "ping"}
    )


@pytest.mark.parametrize("payload", [b"[]", b"{}", b'{"type":"a\\nb"}', b'{"type":1}', b"\xff", b'{"a":' * 5000])
def test_a_chunk_that_is_no_event_is_not_passed_on(payload: bytes) -> None:
    with pytest.raises(BadAnswer):
        decoded(chunk(payload))


def test_a_chunk_over_several_lines_stays_one_event() -> None:
    assert decoded(chunk(b'{\n"type": "ping"\r\n}')) == b'event: ping\ndata: {\ndata: "type": "ping"\ndata: }\n\n'


def test_headers_are_no_larger_than_awss_own_limit() -> None:
    """Millions of them would keep everybody else waiting for seconds."""
    prelude = struct.pack(">II", 20 * 2**20, 10 * 2**20)
    with pytest.raises(BadAnswer, match="has a frame of"):
        Frames().feed(prelude + struct.pack(">I", zlib.crc32(prelude)))
