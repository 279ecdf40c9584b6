"""Upstreams that refuse, fall silent or die: before the first byte another try is made, after it nothing is charged."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from farebox.upstreams.simulator import Simulator
from tests.gateway.play import (
    WAIT,
    Script,
    books,
    envelope,
    exact,
    listen,
    message,
    nanos,
    script,
    upstream,
    usage_rows,
)
from tests.stage import MODEL, OpenStage, Stage

BEFORE = [
    ("error=429", 429, "rate_limit_error"),
    ("error=500", 502, "upstream_error"),
    ("error=503", 502, "upstream_error"),
    ("error=529", 529, "overloaded_error"),
    ("error=401", 502, "upstream_error"),
    ("error=402", 502, "upstream_error"),
    ("error=403", 502, "upstream_error"),
    ("error=307", 502, "upstream_error"),
    ("html", 502, "upstream_error"),
    ("close_before", 502, "upstream_error"),
    ("stall_before=3600", 502, "upstream_error"),
    ("cut_after=0", 502, "upstream_error"),
    ("truncate=0", 502, "upstream_error"),
    ("reset_after=0", 502, "upstream_error"),
    ("garbage_after=0", 502, "upstream_error"),
    ("gzip html", 502, "upstream_error"),
]
"""Faults before the first byte of an answer, and what the customer is told when no try helps."""
ONLY_JSON = [
    ("bad_json", 502, "upstream_error"),
    ("wrong_length", 502, "upstream_error"),
]
ONLY_STREAM = [("error_after=0", 502, "upstream_error")]
CASES = [(stream, *case) for stream in (False, True) for case in BEFORE + (ONLY_STREAM if stream else ONLY_JSON)]
IMPATIENT = "stall_s = 0.3\nfirst_byte_s = 0.3"


@pytest.mark.parametrize(("stream", "knobs", "status", "kind"), CASES)
async def test_a_fault_before_the_first_byte_that_stays_is_told_and_free(
    open_stage: OpenStage, *, stream: bool, knobs: str, status: int, kind: str
) -> None:
    async with open_stage(limits=IMPATIENT) as stage:
        answer = await stage.post(stage.alice, message(f"[[sim {knobs}]]", stream=stream))
        body = await answer.read(2**20)
        row = await books(stage, stage.alice)
        assert (answer.status, envelope(body)[0]) == (status, kind)
        assert answer.header(b"x-should-retry") == b"true"
        assert answer.header(b"retry-after") is not None
        assert (row["kind"], row["outcome"], row["charged_nanos"]) == ("waived", "upstream_broke", 0)
        assert (row["status"], row["attempts"]) == (status, 3)
        assert len(stage.simulator.requests) == 3


@pytest.mark.parametrize(("stream", "knobs"), [case[:2] for case in CASES])
async def test_a_fault_before_the_first_byte_that_passes_is_not_seen(
    open_stage: OpenStage, *, stream: bool, knobs: str
) -> None:
    if knobs.startswith("gzip"):
        knobs = "html"  # compression is no fault to the simulator, so fail_first does not end it
    async with open_stage(limits=IMPATIENT) as stage:
        status, _ = await stage.ask(stage.alice, f"[[sim fail_first=1 {knobs} tokens=20]]", stream=stream)
        row = await books(stage, stage.alice)
        assert status == 200
        assert (row["kind"], row["outcome"], row["output_tokens"]) == ("exact", "finished", 20)
        assert (row["attempts"], row["status"]) == (2, 200)
        assert row["charged_nanos"] == nanos(exact(input=row["input_tokens"], output=20))


AFTER = [
    "cut_after=8", "reset_after=8", "truncate=8", "truncate", "garbage_after=8", "error_after=8", "stall_after=8",
    "error_after=8 error=401:authentication_error", "bad_json", "no_usage", "no_usage=delta",
    "wrong_length cut_after=8",
]  # fmt: skip


@pytest.mark.parametrize("knobs", AFTER)
async def test_a_stream_that_breaks_after_output_ends_in_an_error_and_is_free(
    open_stage: OpenStage, knobs: str
) -> None:
    """Never a forged message_stop, never a second upstream, nothing charged; the leak is booked as waived."""
    async with open_stage(limits="stall_s = 0.3") as stage:
        heard = await (await listen(stage, stage.alice, f"[[sim tokens=60 events_per_chunk=1 {knobs}]]")).end()
        row = await books(stage, stage.alice)
        name, event = heard.last
        assert heard.status == 200
        assert heard.error is None
        assert name == "error"
        assert event["error"]["type"] in {"upstream_error", "overloaded_error"}
        assert not {"message_stop", "message_delta"} & set(heard.names)
        assert (row["kind"], row["outcome"], row["charged_nanos"]) == ("waived", "upstream_broke", 0)
        assert (row["attempts"], len(stage.simulator.requests)) == (1, 1)
        if "no_usage" not in knobs:
            assert row["waived_nanos"] > nanos(exact(input=row["input_tokens"]))


async def test_an_error_event_of_the_upstream_is_passed_on_as_it_came(stage: Stage) -> None:
    heard = await (await listen(stage, stage.alice, "[[sim tokens=60 error_after=8]]")).end()
    assert heard.last == ("error", {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}})


@pytest.mark.parametrize("kind", ["authentication_error", "permission_error", "billing_error"])
async def test_an_error_event_about_the_operators_account_is_not_shown(stage: Stage, kind: str) -> None:
    heard = await (await listen(stage, stage.alice, f"[[sim tokens=60 error_after=8 error=401:{kind}]]")).end()
    assert heard.last[1]["error"]["type"] == "upstream_error"
    assert kind.encode() not in heard.data


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("status", [400, 404, 409, 413, 422])
async def test_an_upstreams_own_refusal_comes_through_byte_for_byte_and_is_free(
    open_stage: OpenStage, status: int, *, stream: bool
) -> None:
    words = b'{"type":"error", "error": {"type":"theirs","message":"prompt is too long"}}'
    head = b"HTTP/1.1 %d Whatever\r\ncontent-type: application/json\r\nrequest-id: req_theirs\r\n"
    head += b"content-length: %d\r\n\r\n"
    async with script([head % (status, len(words)), words]) as theirs:  # noqa: SIM117
        async with open_stage(upstreams=upstream("theirs", theirs.port)) as stage:
            answer = await stage.post(stage.alice, message(stream=stream))
            assert (answer.status, await answer.read(2**20)) == (status, words)
            row = await books(stage, stage.alice)
            assert (row["kind"], row["outcome"], row["cost_nanos"]) == ("failed", "refused_upstream", 0)
            assert (row["status"], row["attempts"]) == (status, 1)
            assert len(theirs.heard) == 1
            assert (answer.header(b"request-id") or b"").startswith(b"req_")
            assert answer.header(b"request-id") != b"req_theirs"


async def test_another_upstream_takes_over_when_one_refuses_connections(open_stage: OpenStage) -> None:
    with socket.socket() as plug:  # bound, not listening: connections are refused
        plug.bind(("127.0.0.1", 0))
        dead = upstream("dead", plug.getsockname()[1], weight="1000")
        sim = '[[upstreams]]\nname = "sim"\nkind = "simulator"\n'
        async with open_stage(upstreams=dead + sim) as stage:
            for number in range(4):
                headers = {"x-claude-code-session-id": f"conversation-{number}"}
                answer = await stage.post(stage.alice, message(), headers=headers)
                assert answer.status == 200
                await answer.read(2**20)
            await books(stage, stage.alice, calls=4)
            rows = await usage_rows(stage, stage.alice)
            assert {row["upstream"] for row in rows} == {"sim"}
            assert max(row["attempts"] for row in rows) == 2


@pytest.mark.parametrize("knobs", ["error=401", "error=429;retry_after=30", "error=529", "close_before", "html"])
async def test_another_upstream_takes_over_at_once_when_one_is_sick(open_stage: OpenStage, knobs: str) -> None:
    sick = Simulator(speed=0, knobs=knobs)
    await sick.listen()
    try:
        upstreams = upstream("sick", sick.port, weight="1000") + '[[upstreams]]\nname = "sim"\nkind = "simulator"\n'
        async with open_stage(upstreams=upstreams) as stage:
            async with asyncio.timeout(2):
                assert (await stage.ask(stage.alice, "Hello", stream=True))[0] == 200
            row = await books(stage, stage.alice)
            assert (row["upstream"], row["attempts"], row["kind"]) == ("sim", 2, "exact")
            assert len(sick.requests) == 1
    finally:
        await sick.close()


async def test_a_stream_is_never_taken_over_once_its_first_byte_has_left(open_stage: OpenStage) -> None:
    sick = Simulator(speed=0, knobs="tokens=60; cut_after=8; events_per_chunk=1")
    await sick.listen()
    try:
        upstreams = (
            upstream("sick", sick.port, weight="1000") + '[[upstreams]]\nname = "sim"\nkind = "simulator"\nweight = 0\n'
        )
        async with open_stage(upstreams=upstreams) as stage:
            heard = await (await listen(stage, stage.alice)).end()
            assert heard.last[0] == "error"
            assert len(stage.simulator.requests) == 0
            assert (await books(stage, stage.alice))["charged_nanos"] == 0
    finally:
        await sick.close()


async def test_a_short_retry_after_is_waited_for(stage: Stage) -> None:
    loop = asyncio.get_running_loop()
    begun = loop.time()
    status, _ = await stage.ask(stage.alice, "[[sim error=529 fail_first=1 retry_after=1]]")
    assert status == 200
    assert 1 <= loop.time() - begun < 2


@pytest.mark.parametrize(("error", "status"), [(429, 429), (529, 529), (503, 502)])
async def test_a_long_retry_after_is_handed_on_at_once(stage: Stage, error: int, status: int) -> None:
    answer = await stage.post(stage.alice, message(f"[[sim error={error} retry_after=45]]"))
    assert (answer.status, answer.header(b"retry-after")) == (status, b"45")
    row = await books(stage, stage.alice)
    assert (row["attempts"], row["charged_nanos"]) == (1, 0)


async def test_the_upstreams_rate_limit_is_not_mistaken_for_the_customers(stage: Stage) -> None:
    _, body = await stage.ask(stage.alice, "[[sim error=429 retry_after=45]]")
    assert "your own limits are not touched" in envelope(body)[1]
    assert "organization" not in envelope(body)[1]


async def test_retries_stop_when_their_budget_is_spent(open_stage: OpenStage) -> None:
    """Ten retries to begin with, and one for every five calls."""
    async with open_stage(limits="retry_budget = 0.2") as stage:
        for _ in range(30):
            assert (await stage.ask(stage.alice, "[[sim error=500]]"))[0] == 502
        assert 30 < len(stage.simulator.requests) <= 30 + 10 + 30 // 5
        await books(stage, stage.alice, calls=30)


async def test_without_a_budget_nothing_is_tried_twice(open_stage: OpenStage) -> None:
    async with open_stage(limits="retry_budget = 0") as stage:
        assert (await stage.ask(stage.alice, "[[sim error=500 fail_first=1]]"))[0] == 502
        assert len(stage.simulator.requests) == 1


async def test_a_stalled_drain_ends_and_is_free_since_the_upstream_broke_it(open_stage: OpenStage) -> None:
    async with open_stage(limits="stall_s = 0.3\ndrain_s = 5") as stage:
        heard = await listen(stage, stage.alice, "[[sim tokens=60 stall_after=8 events_per_chunk=1]]")
        await heard.has(b"content_block_delta")
        heard.hang_up()
        row = await books(stage, stage.alice)
        assert (row["kind"], row["outcome"], row["charged_nanos"]) == ("waived", "upstream_broke", 0)


async def test_a_silent_upstream_gets_the_client_a_ping_before_it_gives_up(open_stage: OpenStage) -> None:
    async with open_stage(limits="keep_alive_ping_s = 0.5") as stage:
        heard = await listen(stage, stage.alice, "[[sim tokens=60 stall_after=8 stall=2.5 events_per_chunk=1 pings=0]]")
        await heard.end()
        row = await books(stage, stage.alice)
        assert heard.names.count("ping") in {1, 2, 3}
        assert heard.names[-1] == "message_stop"
        assert (row["kind"], row["output_tokens"]) == ("exact", 60)


async def test_an_upstream_silent_before_its_first_event_gets_the_client_headers_and_a_comment(
    open_stage: OpenStage,
) -> None:
    async with open_stage(limits="keep_alive_ping_s = 0.5") as stage:
        heard = await listen(stage, stage.alice, "[[sim tokens=20 stall_before=2.5]]")
        await heard.has(b": keep-alive\n\n")
        assert heard.names == []
        await heard.end()
        assert heard.names[-1] == "message_stop"
        assert (await books(stage, stage.alice))["kind"] == "exact"


async def test_pings_of_the_upstream_are_passed_on_at_once(stage: Stage) -> None:
    heard = await listen(stage, stage.alice, "[[sim tokens=20 ttft=400 ping_every=50 pings=0]]")
    await heard.until(lambda: heard.names.count("ping") >= 3)
    assert "content_block_delta" not in heard.names
    await heard.end()
    await books(stage, stage.alice)


async def test_a_json_answer_to_a_call_that_asked_for_a_stream_is_charged_too(open_stage: OpenStage) -> None:
    body = json.dumps(
        {"id": "msg_1", "model": "claude-sonnet-4-6", "usage": {"input_tokens": 7, "output_tokens": 9}}
    ).encode()
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
    async with script([head, body]) as theirs:  # noqa: SIM117
        async with open_stage(upstreams=upstream("theirs", theirs.port)) as stage:
            assert await stage.ask(stage.alice, stream=True) == (200, body)
            row = await books(stage, stage.alice)
            assert (row["kind"], row["charged_nanos"]) == ("exact", nanos(exact(input=7, output=9)))


async def test_an_upstream_that_does_not_sell_the_model_is_no_other_way_out(open_stage: OpenStage) -> None:
    """So a long retry-after of the only one that does is handed on at once."""
    upstreams = upstream("other", 9, models='["claude-opus-4-6"]') + '[[upstreams]]\nname = "sim"\nkind = "simulator"\n'
    async with open_stage(upstreams=upstreams) as stage:
        answer = await stage.post(stage.alice, message("[[sim error=529 retry_after=45]]"))
        assert (answer.status, answer.header(b"retry-after")) == (529, b"45")
        assert len(stage.simulator.requests) == 1


def _whole(text: str) -> bytes:
    usage = {"input_tokens": 5, "output_tokens": 5}
    content = [{"type": "text", "text": text}]
    body = json.dumps({"id": "msg_1", "model": MODEL, "content": content, "usage": usage}).encode()
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    return head % len(body) + body


@asynccontextmanager
async def _scripted(
    open_stage: OpenStage, *answers: Sequence[bytes], limits: str = "", keep: bool = False
) -> AsyncIterator[tuple[Stage, Script]]:
    async with (
        script(*answers, keep=keep) as theirs,
        open_stage(upstreams=upstream("theirs", theirs.port), limits=limits) as stage,
    ):
        yield stage, theirs


@pytest.mark.parametrize("kept_back", [0, 1, 20, len(_whole("stray")) - 10])
async def test_an_answer_nobody_asked_for_reaches_nobody(open_stage: OpenStage, kept_back: int) -> None:
    stray = _whole("stray")
    cut = len(stray) - kept_back
    first, later = [_whole("first") + stray[:cut]], [stray[cut:] + _whole("later")]
    async with _scripted(open_stage, first, later, [_whole("later")], keep=True) as (stage, _):
        assert b"first" in (await stage.ask(stage.alice))[1]
        answers = await asyncio.gather(*(stage.ask(stage.alice) for _ in range(3)))
        assert [b"later" in body for _, body in answers] == [True] * 3
        idle = stage.gateway.pool.upstreams[0].client._idle if stage.gateway.pool else []
        assert len(set(idle)) == len(idle)


async def test_trailers_of_an_answer_do_not_become_headers(open_stage: OpenStage) -> None:
    body = _whole("hello").partition(b"\r\n\r\n")[2]
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
    answer = [head + b"%x\r\n%b\r\n0\r\nx-trailer: late\r\n\r\n" % (len(body), body)]
    async with _scripted(open_stage, answer) as (stage, _):
        got = await stage.post(stage.alice, message())
        assert (got.status, await got.read(2**20)) == (200, body)
        assert got.header(b"x-trailer") is None


@pytest.mark.parametrize("head", [b"500 Oops\r\n", b"200 OK\r\ncontent-type: application/json\r\n"])
@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
async def test_an_answer_that_stalls_in_its_body_is_given_up_like_a_stream_that_does(
    open_stage: OpenStage, head: bytes, path: str
) -> None:
    stalling = [b"HTTP/1.1 " + head + b"content-length: 100\r\n\r\n{", WAIT]
    async with _scripted(open_stage, stalling, limits="stall_s = 0.3") as (stage, _), asyncio.timeout(6):
        answer = await stage.post(stage.alice, message(), path=path)
        assert answer.status == 502
        assert not await stage.rows("SELECT 1 FROM hold")
        assert stage.gateway.pool is not None
        assert not stage.gateway.pool.upstreams[0].client._idle


@pytest.mark.parametrize("wait", [b"nan", b"inf", b"-5", b"1e999", b"0", b"soon"])
async def test_a_retry_after_that_is_no_time_is_as_if_it_had_not_been_sent(open_stage: OpenStage, wait: bytes) -> None:
    busy = [b"HTTP/1.1 503 Busy\r\nretry-after: " + wait + b"\r\ncontent-length: 0\r\n\r\n"]
    async with _scripted(open_stage, busy) as (stage, theirs):
        answer = await stage.post(stage.alice, message())
        assert (answer.status, answer.header(b"retry-after")) == (502, b"2")
        assert len(theirs.heard) == 3


@pytest.mark.parametrize("knobs", ["html", "cut_after=0", "tokens=60; cut_after=8; events_per_chunk=1", "truncate=4"])
async def test_an_upstream_whose_answers_begin_well_and_break_comes_to_rest(open_stage: OpenStage, knobs: str) -> None:
    sick = Simulator(speed=0, knobs=knobs)
    await sick.listen()
    try:
        upstreams = upstream("sick", sick.port, weight="1000") + '[[upstreams]]\nname = "sim"\nkind = "simulator"\n'
        async with open_stage(upstreams=upstreams) as stage:
            for number in range(8):  # conversations of their own: one that was served elsewhere stays there
                await (await listen(stage, stage.alice, f"Hello {number}")).end()
            assert len(sick.requests) == 5
            assert len(stage.simulator.requests) >= 3
    finally:
        await sick.close()


@pytest.mark.parametrize(
    ("words", "status"),
    [
        ("Your credit balance is too low to access the Anthropic API.", 502),
        ("You have reached your specified API usage limits.", 502),
        ("tools.0.name: 'Your credit balance is too low \"billing_error\"' is no name", 400),
    ],
)
async def test_a_customer_cannot_have_an_upstream_taken_for_broke(
    open_stage: OpenStage, words: str, status: int
) -> None:
    """An upstream's 400 may quote the request: only how it begins tells of the operator's own account."""
    error = {"type": "error", "error": {"type": "invalid_request_error", "message": words}}
    body = json.dumps(error).encode()
    head = b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
    async with _scripted(open_stage, [head + body], limits="attempts = 1") as (stage, _):
        got = await stage.post(stage.alice, message())
        said = await got.read(2**20)
        assert (got.status, said == body) == (status, status == 400)
        assert stage.gateway.pool is not None
        assert stage.gateway.pool.upstreams[0].failures == (status == 502)
