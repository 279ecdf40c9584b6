"""The samples in deploy/ before real gateways: streams flow, bytes stay as they are, hang-ups and refusals pass."""

import asyncio
import base64
import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from farebox.http.client import Answer, HttpClient, Origin
from tests.databases import Databases
from tests.deploy.balancers import Balancer, dial
from tests.deploy.conftest import CANARY, KEYS, Balance
from tests.gateway.play import Heard, asked_upstream, books, envelope, listen, message, script, upstream
from tests.hostile.raw import head
from tests.stage import MODEL, Person, Stage, open_stage

Front = tuple[Stage, Balancer]
WAIT_S = 5.0

ODD_BODY = (
    b' \r\n\t{ "model" :"claude-sonnet-4-6",\n\n "max_tokens":  50 ,"hologram":{"n":1E30,"z":-0.0,"n":1.0},'
    b'"messages":[{"role":"user","content":"\\u00e9\\/\\ud83d\\ude00\\u0000 '
    + "žluť 😀 \u2028".encode()
    + b' gzip"}] }\n '
)
"""Odd spacing, a key twice, escapes beside raw UTF-8, numbers that would be written otherwise."""


def named(head: bytes) -> bytes:
    """End a head, for the host that the balancers know."""
    return head.replace(b"host: farebox.test", b"host: localhost") + b"\r\n"


# streams


async def test_events_arrive_one_by_one_while_the_stream_goes_on(front: Front) -> None:
    """The upstream falls silent in the middle of its answer: what it said before is there, the rest is not."""
    stage, _ = front
    heard = await listen(stage, stage.alice, "[[sim tokens=40 ttft=0 stall_after=9]]")
    await heard.until(lambda: len(heard.names) >= 9, WAIT_S)
    assert stage.simulator.requests[-1].outcome == "open"
    assert not heard.ended
    assert "message_stop" not in heard.names


async def test_events_keep_the_pace_of_the_upstream(front: Front) -> None:
    """Twenty-five events, one each 20 ms, come over half a second at moments of their own, and not in a few lots."""
    stage, _ = front
    heard = await listen(stage, stage.alice, "[[sim tokens=50 rate=100 ttft=0 delta=2]]")
    loop = asyncio.get_running_loop()
    moments: list[float] = []

    def note() -> bool:
        moments.extend([loop.time()] * (heard.names.count("content_block_delta") - len(moments)))
        return heard.ended

    await heard.until(note, WAIT_S)
    assert heard.names[-1] == "message_stop"
    assert len(moments) == 25
    assert len(set(moments)) > 12
    assert moments[-1] - moments[0] > 0.3


async def test_a_stream_over_http_2_flows_and_its_hang_up_is_heard(front: Front) -> None:
    """By cURL, which speaks it, unlike the official clients."""
    stage, balancer = front
    body = json.dumps(message("[[sim tokens=40 ttft=0 stall_after=9]] " + CANARY, stream=True)).encode()
    words = ("--http2", "--no-buffer", "--silent", "--show-error", "--include", "--cacert", str(balancer.certificate))
    curl = await asyncio.create_subprocess_exec(
        "curl", *words, "-H", f"x-api-key: {stage.alice.key}", "-H", "content-type: application/json",
        "--data-binary", "@-", f"https://localhost:{balancer.port}/api/proxy/v1/messages",
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert curl.stdin is not None
    assert curl.stdout is not None
    curl.stdin.write(body)
    curl.stdin.close()
    said = b""
    async with asyncio.timeout(WAIT_S):
        while said.count(b"event: content_block_delta") < 5:
            said += await curl.stdout.read(65_536)
    assert said.startswith(b"HTTP/2 200")
    assert stage.simulator.requests[-1].body == body
    curl.terminate()
    await curl.wait()
    async with asyncio.timeout(WAIT_S):
        row = await books(stage, stage.alice)
    assert row["outcome"] == "client_gone"


# hang-ups


async def test_a_client_that_hangs_up_in_a_stream_is_noticed_at_once(front: Front) -> None:
    """Nothing flows at that moment, so no failed write could have told of it."""
    stage, _ = front
    heard = await listen(stage, stage.alice, f"[[sim tokens=40 ttft=0 stall_after=9]] {CANARY}")
    await heard.has(b"content_block_delta")
    heard.hang_up()
    async with asyncio.timeout(WAIT_S):
        row = await books(stage, stage.alice)
    assert (row["kind"], row["outcome"]) == ("estimated", "client_gone")
    assert next(one for one in stage.simulator.requests if one.path == "/v1/messages").outcome == "gone"


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "json"])
async def test_a_client_that_hangs_up_before_the_first_byte_is_noticed(front: Front, *, stream: bool) -> None:
    stage, _ = front
    asking = asyncio.create_task(stage.post(stage.alice, message("[[sim delay=30000]]", stream=stream)))
    await asked_upstream(stage)
    asking.cancel()
    async with asyncio.timeout(WAIT_S):
        row = await books(stage, stage.alice)
    assert (row["kind"], row["outcome"], row["charged_nanos"]) == ("waived", "client_gone", 0)


# bytes


async def test_an_odd_body_goes_up_byte_for_byte(front: Front) -> None:
    stage, _ = front
    answer = await stage.post(stage.alice, ODD_BODY, headers={"x_of_tomorrow": "Kept As Is; Q=0.5"})
    assert answer.status == 200, await answer.read(2**20)
    assert stage.simulator.requests[-1].body == ODD_BODY
    assert stage.simulator.requests[-1].header(b"x_of_tomorrow") == b"Kept As Is; Q=0.5"


@pytest.mark.parametrize("framing", ["content-length", "chunked", "expect"])
async def test_a_body_of_twenty_megabytes_goes_up_whole(front: Front, framing: str) -> None:
    """However it is sent; and nothing of it goes to a file on the way."""
    stage, balancer = front
    body = picture(20_000_000)
    lines = ["transfer-encoding: chunked"] if framing == "chunked" else [f"content-length: {len(body)}"]
    lines += ["expect: 100-continue"] if framing == "expect" else []
    async with dial(balancer) as line:
        await line.write(named(head(stage.alice, *lines)))
        if framing == "expect":
            async with asyncio.timeout(WAIT_S):
                assert await line.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        for at in range(0, len(body), 2**20):
            piece = body[at : at + 2**20]
            await line.write(b"%x\r\n%b\r\n" % (len(piece), piece) if framing == "chunked" else piece)
        await line.write(b"0\r\n\r\n" if framing == "chunked" else b"")
        reply = await line.reply()
    assert reply.status == 200, reply.body
    assert stage.simulator.requests[-1].body == body
    assert b"buffered to a temporary file" not in balancer.traces()


def picture(size: int) -> bytes:
    """Write a body of so many bytes: a picture."""
    source = {"type": "base64", "media_type": "image/png", "data": base64.b64encode(os.urandom(size // 4 * 3)).decode()}
    content = [{"type": "image", "source": source}, {"type": "text", "text": CANARY}]
    return json.dumps({"model": MODEL, "max_tokens": 50, "messages": [{"role": "user", "content": content}]}).encode()


ODD_ANSWER = (
    b'event: message_start\ndata:  {"type":"message_start","message":{"id":"msg_1","model":"claude-sonnet-4-6",',
    b'"content":[],"usage":{"input_tokens":10,"output_tokens":1},"hologram":1E0}}\r\n\r\n',
    b": a comment\n\nevent: of_tomorrow\ndata: {}\n\n",
    b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,"delta":{"text":"\\u00e9 \xc5',
    b'\xbe","type":"text_delta"}}\n\nevent: message_delta\ndata: {"type":"message_delta",',
    b'"delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":5}}\n\n',
    b'event: message_stop\ndata: {"type":"message_stop"}\n\n',
)
"""A stream in pieces, one of which ends in the middle of a character."""


async def test_an_odd_answer_comes_down_byte_for_byte(tmp_path: Path, balanced: Balance) -> None:
    """Headers too: one of 40,000 bytes, and those by which an upstream might try to steer nginx."""
    head = (
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nx-of-tomorrow: " + b"a" * 40_000 + b"\r\n"
        b"x-accel-redirect: /etc/\r\nx-accel-limit-rate: 1\r\nconnection: close\r\n\r\n"
    )
    async with (
        script([head, *ODD_ANSWER]) as theirs,
        open_stage(tmp_path, upstreams=upstream("theirs", theirs.port)) as stage,
        balanced(stage.gateway.port, stage.gateway.port) as balancer,
    ):
        stage.client = balancer.client
        compressible = {"accept-encoding": "gzip, deflate, br, zstd"}
        heard = Heard(await stage.post(stage.alice, message(stream=True), headers=compressible))
        await heard.end(WAIT_S)
    assert heard.status == 200
    assert heard.data == b"".join(ODD_ANSWER)
    assert dict(heard.answer.headers)[b"x-of-tomorrow"] == b"a" * 40_000


async def test_a_long_head_goes_up(front: Front) -> None:
    stage, _ = front
    answer = await stage.post(stage.alice, message(), headers={"anthropic-beta": "b" * 50_000})
    assert answer.status == 200
    assert stage.simulator.requests[-1].header(b"anthropic-beta") == b"b" * 50_000


# refusals

OF_THE_SERVER = {b"date", b"server", b"connection", b"keep-alive", b"alt-svc", b"via"}
OF_THE_MOMENT = {b"anthropic-ratelimit-requests-remaining", b"anthropic-ratelimit-tokens-remaining"} | {
    b"anthropic-ratelimit-requests-reset",
    b"anthropic-ratelimit-tokens-reset",
}
REFUSALS: Mapping[str, tuple[int, bytes, Mapping[str, str]]] = {
    "no such key": (401, json.dumps(message()).encode(), {"x-api-key": f"{CANARY}nobodys"}),
    "no JSON": (400, b"{", {}),
    "a compressed body": (400, b"{}", {"content-encoding": "gzip"}),
    "no money": (402, json.dumps(message()).encode(), {"x-api-key": "bob"}),
    "too large": (413, b" " * (32 * 2**20 + 1), {}),
    "an upstream's own": (404, json.dumps(message("[[sim error=404]]")).encode(), {}),
    "an upstream that fails": (502, json.dumps(message("[[sim error=401]]")).encode(), {}),
    "an upstream that is overloaded": (529, json.dumps(message("[[sim error=529]]")).encode(), {}),
}


@pytest.mark.parametrize("name", REFUSALS)
async def test_a_refusal_is_the_one_the_gateway_gave(front: Front, name: str) -> None:
    """Status, headers and envelope are those that a client gets without a balancer."""
    stage, balancer = front
    status, body, fields = REFUSALS[name]
    headers = {name: stage.bob.key if value == "bob" else value for name, value in fields.items()}
    direct = HttpClient(Origin("http", "127.0.0.1", stage.gateway.port, ""), connect_s=5, connections=1)
    told = []
    for stage.client in (direct, balancer.client):
        answer = await stage.post(stage.alice, body, headers=headers)
        told.append((answer.status, as_told(answer), json.loads(await answer.read(2**20))))
    await direct.close()
    (_, _, right), (got, _, said) = told
    assert right.pop("request_id") != said.pop("request_id")
    assert got == status
    assert told[0] == told[1]


def as_told(answer: Answer) -> dict[bytes, bytes]:
    """The headers of an answer, without those of the server and the moment; the request id as the shape it has."""
    fields = {name: value for name, value in answer.headers if name not in OF_THE_SERVER | OF_THE_MOMENT}
    assert len(fields.pop(b"request-id")) == 36
    return {name: b"" if name == b"content-length" else value for name, value in fields.items()}


async def test_where_no_gateway_can_be_reached_the_balancer_says_so_in_the_envelope(
    balanced: Balance, unused: tuple[int, int]
) -> None:
    """As a status, and in words and headers, that make a client try again."""
    async with balanced(*unused) as balancer:
        async with dial(balancer) as line:
            lines = (f"x-api-key: {CANARY}", f"authorization: Bearer {CANARY}", "content-length: 2")
            await line.write(named(head(None, *lines)) + b"{}")
            reply = await line.reply()
        assert reply.status in {502, 503}
        assert envelope(reply.body)[0] == "api_error"
        assert "try again" in envelope(reply.body)[1]
        assert reply.headers["content-type"] == "application/json"
        assert reply.headers["x-should-retry"] == "true"
        assert reply.headers["request-id"] == reply.json()["request_id"]


async def test_a_reload_of_the_balancer_leaves_streams_whole(front: Front) -> None:
    stage, balancer = front
    heard = await listen(stage, stage.alice, "[[sim tokens=60 rate=100 ttft=0]]")
    await heard.has(b"content_block_delta")
    await balancer.reload()
    assert not heard.ended
    await heard.end(WAIT_S)
    assert heard.names[-1] == "message_stop"
    assert (await stage.ask(stage.alice))[0] == 200


# two gateways


async def ask_on(stage: Stage, person: Person, body: bytes, balancer: Balancer) -> int:
    """Ask as the SDKs do: a refusal is tried again where it says so. Answers the number of refusals."""
    for refusals in range(3):
        answer = await stage.post(person, body)
        said = await answer.read(2**20)
        if answer.status == 200:
            return refusals
        assert not balancer.sample.replaces, said
        assert (answer.status, dict(answer.headers)[b"x-should-retry"]) == (502, b"true")
        assert envelope(said)[0] == "api_error"
    raise AssertionError("it was refused again and again")


async def test_a_gateway_that_is_not_there_is_skipped(
    tmp_path: Path, balanced: Balance, unused: tuple[int, int]
) -> None:
    """Every call is answered, with its whole body, by the one that is; each reaches the upstream once."""
    body = picture(1_000_000)
    async with (
        open_stage(tmp_path, KEYS) as stage,
        balanced(unused[0], stage.gateway.port) as balancer,
    ):
        stage.client = balancer.client
        refusals = [await ask_on(stage, stage.alice, body, balancer) for _ in range(8)]
        assert sum(refusals) <= 1
        assert [request.body == body for request in stage.simulator.requests] == [True] * 8
        await books(stage, stage.alice, calls=8)


async def test_a_gateway_that_stops_ends_its_streams_while_new_calls_go_to_the_other(
    tmp_path: Path, balanced: Balance, shared_books: str
) -> None:
    """A restart of one of two is not noticed by any customer."""
    (tmp_path / "second").mkdir()
    async with (
        open_stage(tmp_path, KEYS, database_url=shared_books) as first,
        open_stage(tmp_path / "second", KEYS, database_url=shared_books) as second,
        balanced(first.gateway.port, second.gateway.port) as balancer,
    ):
        first.client, alice = balancer.client, first.alice
        streams = [await listen(first, alice, "[[sim tokens=250 rate=100 ttft=0]]") for _ in range(2)]
        assert (len(first.simulator.requests), len(second.simulator.requests)) == (1, 1)
        async with asyncio.TaskGroup() as group:
            group.create_task(first.gateway.stop())
            body = json.dumps(message()).encode()
            refusals = [await ask_on(first, alice, body, balancer) for _ in range(6)]
            assert sum(refusals) <= 1
            assert len(second.simulator.requests) == 7
            assert not any(heard.ended for heard in streams)
            for heard in streams:
                await heard.end(WAIT_S)
                assert heard.names[-1] == "message_stop"
        await books(second, alice, calls=8)


@pytest.fixture
def shared_books(databases: Databases, tmp_path: Path) -> Iterator[str]:
    with databases.fresh("postgresql", tmp_path) as url:
        yield url


@pytest.fixture
def unused(unused_tcp_port_factory: Any) -> tuple[int, int]:
    return unused_tcp_port_factory(), unused_tcp_port_factory()
