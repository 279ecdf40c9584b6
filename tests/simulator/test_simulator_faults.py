"""Each fault breaks what it says, where it says, and the record tells; nothing is made for who has left."""

import asyncio
import gzip
import json
import time
from typing import Any

import anthropic
import pytest

from farebox.upstreams.simulator import Simulator

from .client import OPUS, Ask, Reply, body_of, receive, send, to_the_end


async def _until_done(simulator: Simulator) -> None:
    for _ in range(500):
        if simulator.requests[-1].outcome != "open":
            return
        await asyncio.sleep(0.01)
    raise AssertionError("the request is still open")


@pytest.mark.parametrize(
    ("knobs", "count", "complete", "was_reset"),
    [
        ("cut_after=4", 4, False, False),
        ("cut_after", 3, False, False),
        ("cut_after=0", 0, False, False),
        ("reset_after=4", 4, False, True),
        ("truncate=5", 5, True, False),
        ("cut_after=4; chunk=7", 4, False, False),
        ("cut_after=4; events_per_chunk=3", 4, False, False),
    ],
)
async def test_a_stream_breaks_after_so_many_events(
    simulator: Simulator,
    ask: Ask,
    knobs: str,
    count: int,
    complete: bool,  # noqa: FBT001
    was_reset: bool,  # noqa: FBT001
) -> None:
    reply = await ask(knobs=knobs + "; pings=0", stream=True)
    assert reply.status == (200 if count else reply.status)
    assert len(reply.events()) == count
    assert (reply.complete, reply.was_reset) == (complete, was_reset)
    assert (simulator.requests[-1].outcome, simulator.requests[-1].events) == ("cut", count)


async def test_a_bare_truncate_leaves_out_only_the_last_event(ask: Ask) -> None:
    reply = await ask(knobs="truncate", stream=True)
    assert reply.complete
    assert reply.names()[-1] == "message_delta"


async def test_an_error_event_has_the_type_asked_for(ask: Ask, client: anthropic.AsyncAnthropic) -> None:
    reply = await ask(knobs="error_after=2; pings=0", stream=True)
    assert reply.names()[-1] == "error"
    assert reply.events()[-1][1]["error"] == {"type": "overloaded_error", "message": "Overloaded"}
    with pytest.raises(anthropic.APIStatusError) as caught:
        async with client.messages.stream(
            model=OPUS,
            max_tokens=99,
            messages=[{"role": "user", "content": "[[sim error_after=4 error=500:api_error]]"}],
        ) as stream:
            await stream.get_final_message()
    assert "Internal server error" in str(caught.value)


async def test_garbage_html_and_broken_json(ask: Ask) -> None:
    garbage = await ask(knobs="garbage_after=2", stream=True)
    assert b"\x00\xff\xfe<garbage>" in garbage.body
    html = await ask(knobs="html", stream=True)
    assert (html.status, html.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert html.body.startswith(b"<!doctype html>")
    broken = await ask(knobs="bad_json", stream=True)
    with pytest.raises(json.JSONDecodeError):
        broken.events()
    for knobs in ("bad_json", "garbage_after", "truncate"):
        whole = await ask(knobs=knobs)
        assert whole.complete
        with pytest.raises((json.JSONDecodeError, UnicodeDecodeError)):
            whole.json()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_wrong_length_promises_more_than_comes(ask: Ask, stream: bool) -> None:  # noqa: FBT001
    reply = await ask(knobs="wrong_length", stream=stream)
    assert not reply.complete
    assert int(reply.headers["content-length"]) > len(reply.body) > 0


@pytest.mark.parametrize(("knobs", "was_reset"), [("cut_after", False), ("reset_after", True)])
async def test_a_json_answer_breaks_in_its_middle(ask: Ask, knobs: str, was_reset: bool) -> None:  # noqa: FBT001
    reply = await ask(knobs=knobs)
    assert len(reply.body) == int(reply.headers["content-length"]) // 2
    assert reply.was_reset == was_reset


async def test_a_connection_closed_before_an_answer_has_no_bytes(simulator: Simulator, ask: Ask) -> None:
    assert await ask(knobs="close_before") == Reply()
    assert simulator.requests[-1].outcome == "cut"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_stall_lasts_as_long_as_asked_and_pings_can_fill_it(ask: Ask, stream: bool) -> None:  # noqa: FBT001
    begun = time.monotonic()
    reply = await ask(
        knobs="stall_after=5; stall=0.2; ping_every=50" if stream else "stall_after; stall=0.2", stream=stream
    )
    assert time.monotonic() - begun > 0.2
    assert reply.complete
    if stream:
        assert reply.names()[-1] == "message_stop"
        assert sum(name == "ping" for name, _ in reply.events()) >= 3


async def test_a_stall_before_sends_the_headers_first(simulator: Simulator) -> None:
    begun = time.monotonic()
    connection = await send(simulator.port, body_of(stream=True), "stall_before=0.2")
    await connection.reader.readuntil(b"\r\n\r\n")
    assert time.monotonic() - begun < 0.15
    await connection.reader.readline()
    assert time.monotonic() - begun > 0.19
    assert (await to_the_end(connection)).endswith(b"0\r\n\r\n")


async def test_delay_holds_the_headers_back(simulator: Simulator) -> None:
    begun = time.monotonic()
    connection = await send(simulator.port, body_of(stream=True), "delay=200")
    await connection.reader.readuntil(b"\r\n\r\n")
    assert time.monotonic() - begun > 0.19
    assert (await to_the_end(connection)).endswith(b"0\r\n\r\n")


@pytest.mark.parametrize(
    "knobs", ["stall_after=2", "delay=60000", "stall_before=60", "rate=5", "hidden_think=500; rate=5"]
)
async def test_a_client_that_hangs_up_ends_production_at_once(simulator: Simulator, knobs: str) -> None:
    connection = await send(simulator.port, body_of("x", stream=True), knobs + "; ttft=0; tokens=900")
    await asyncio.sleep(0.1)
    connection.hang_up()
    await _until_done(simulator)
    assert simulator.requests[-1].outcome == "gone"
    assert simulator.requests[-1].tokens < 10


async def test_a_client_that_does_not_read_stops_production_until_it_does(simulator: Simulator) -> None:
    said = body_of("x", stream=True, max_tokens=120_000)
    connection = await send(simulator.port, said, "tokens=120000; delta=1")
    connection.pause_reading()
    await asyncio.sleep(0.3)
    assert [request.outcome for request in simulator.requests] == ["open"]
    connection.resume_reading()
    reply = await receive(connection)
    assert len(reply.text()) == 480_000
    assert [request.outcome for request in simulator.requests] == ["finished"]


async def test_full_speed_does_not_block_the_loop(simulator: Simulator) -> None:
    connection = await send(simulator.port, body_of("x", stream=True, max_tokens=120_000), "tokens=100000; delta=1")
    receiving = asyncio.create_task(receive(connection))
    longest, last = 0.0, time.monotonic()
    while not receiving.done():
        await asyncio.sleep(0)
        now = time.monotonic()
        longest, last = max(longest, now - last), now
    assert longest < 0.5
    assert receiving.result().complete


@pytest.mark.parametrize(
    ("knobs", "status", "kind", "retry"),
    [
        ("error=529", 529, "overloaded_error", "true"),
        ("error=429; retry_after=7", 429, "rate_limit_error", "true"),
        ("error=500", 500, "api_error", "true"),
        ("error=400", 400, "invalid_request_error", "false"),
        ("error=402", 402, "billing_error", "false"),
        ("error=503:strange_error; should_retry=false", 503, "strange_error", "false"),
    ],
)
async def test_errors_on_request(
    simulator: Simulator, ask: Ask, knobs: str, status: int, kind: str, retry: str
) -> None:
    reply = await ask(knobs=knobs)
    assert (reply.status, reply.json()["error"]["type"]) == (status, kind)
    assert reply.headers["x-should-retry"] == retry
    assert reply.headers.get("retry-after") == ("7" if "retry_after" in knobs else None)
    counted = await receive(await send(simulator.port, body_of(), knobs, path="/v1/messages/count_tokens"))
    models = await receive(await send(simulator.port, b"", knobs, method="GET", path="/v1/models"))
    assert counted.status == models.status == status


async def test_fail_first_counts_the_tries_of_one_body(ask: Ask) -> None:
    async def statuses(said: str) -> list[int]:
        return [(await ask(said)).status for _ in range(4)]

    assert await statuses("[[sim fail_first=2 error=503]]") == [503, 503, 200, 200]
    assert await statuses("another [[sim fail_first=1]]") == [529, 200, 200, 200]
    assert await statuses("third [[sim fail_first=2 close_before]]") == [0, 0, 200, 200]
    assert [(await ask("fourth", knobs="fail_first=1 html")).headers["content-type"] for _ in range(2)] == [
        "text/html; charset=utf-8",
        "application/json",
    ]


async def test_the_sdk_gets_through_a_bad_patch(simulator: Simulator) -> None:
    base = f"http://127.0.0.1:{simulator.port}"
    async with anthropic.AsyncAnthropic(api_key="k", base_url=base, max_retries=2) as client:
        said = "[[sim fail_first=2 error=429 retry_after=0]]"
        message = await client.messages.create(model=OPUS, max_tokens=50, messages=[{"role": "user", "content": said}])
    assert message.id.startswith("msg_sim_")
    assert [request.status for request in simulator.requests] == [429, 429, 200]


async def test_knobs_of_the_simulator_can_change_while_it_runs(simulator: Simulator, ask: Ask) -> None:
    simulator.knobs = "error=529"
    assert (await ask()).status == 529
    simulator.knobs = ""
    assert (await ask()).status == 200


async def test_closing_cuts_what_is_open(simulator: Simulator) -> None:
    connection = await send(simulator.port, body_of(stream=True), "stall_after=1")
    await connection.reader.readuntil(b"message_start")
    begun = time.monotonic()
    await simulator.close()
    assert time.monotonic() - begun < 1
    assert b"message_stop" not in await to_the_end(connection)


# the bytes


@pytest.mark.parametrize("knobs", ["chunk=1", "chunk=13", "events_per_chunk=1", "events_per_chunk=1000"])
async def test_any_cut_of_the_bytes_gives_the_same_bytes(ask: Ask, knobs: str) -> None:
    said = "Caf\u00e9 \u2603 \U0001f600"
    plain = await ask(said, knobs="echo", stream=True)
    cut = await ask(said, knobs="echo; " + knobs, stream=True)
    assert plain.text() == said
    assert [event for event in cut.events() if event[0] != "message_start"] == [
        event for event in plain.events() if event[0] != "message_start"
    ]


async def test_chunks_have_the_size_asked_for(simulator: Simulator) -> None:
    connection = await send(simulator.port, body_of(stream=True), "chunk=100")
    await connection.reader.readuntil(b"\r\n\r\n")
    sizes = []
    while size := int(await connection.reader.readline(), 16):
        sizes.append(size)
        await connection.reader.readexactly(size + 2)
    assert set(sizes[:-1]) == {100}


async def test_line_ends_and_compression(ask: Ask) -> None:
    crlf = await ask(knobs="crlf", stream=True)
    assert b"\r\n\r\n" in crlf.body
    assert b"\n" not in crlf.body.replace(b"\r\n", b"")
    plain = await ask()
    for stream in (False, True):
        zipped = await ask(knobs="gzip", stream=stream)
        assert zipped.headers["content-encoding"] == "gzip"
        zipped.body = gzip.decompress(zipped.body)
        said = zipped.text() if stream else zipped.json()["content"][0]["text"]
        assert said == plain.json()["content"][0]["text"]


# the pace


async def test_the_demo_pace_is_about_sixty_tokens_a_second() -> None:
    simulator = Simulator(seed=1)
    await simulator.listen()
    begun = time.monotonic()
    connection = await send(simulator.port, body_of(stream=True), "tokens=30")
    await connection.reader.readuntil(b"text_delta")
    first = time.monotonic() - begun
    await to_the_end(connection)
    whole = time.monotonic() - begun
    await simulator.close()
    assert 0.14 < first < 0.4
    assert 0.6 < whole < 1.0


async def test_hidden_thinking_takes_its_time_in_silence(ask: Ask) -> None:
    begun = time.monotonic()
    reply = await ask(knobs="hidden_think=40; rate=100; tokens=4", stream=True)
    assert time.monotonic() - begun > 0.43
    kinds = [data["delta"]["type"] for name, data in reply.events() if name == "content_block_delta"]
    assert kinds == ["signature_delta", "text_delta", "text_delta"]
    assert dict(reply.events())["message_delta"]["usage"]["output_tokens"] == 44


async def test_two_hundred_streams_at_once(simulator: Simulator) -> None:
    async def one(number: int) -> Reply:
        return await receive(await send(simulator.port, body_of(f"stream {number}", stream=True), "tokens=200"))

    replies = await asyncio.gather(*[one(number) for number in range(200)])
    assert all(len(reply.text()) == 800 for reply in replies)
    starts: list[Any] = [dict(reply.events())["message_start"]["message"]["id"] for reply in replies]
    assert len(set(starts)) == 200
