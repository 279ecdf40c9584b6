"""Upstreams that smuggle: such an answer ends its connection, and nobody pays for what was broken."""

import asyncio
import json

import pytest

from farebox.http.failures import BadAnswer, UpstreamError
from tests.databases import on_sqlite
from tests.gateway.play import script, upstream
from tests.stage import MODEL, OpenStage
from tests.upstreams.wire import Line, chunked, outcome, serving, until, whole

OK = b"HTTP/1.1 200 OK\r\n"
JSON = b"content-type: application/json\r\n"
CHUNKED = OK + JSON + b"transfer-encoding: chunked\r\n"
STRAY = b"stray: this must reach nobody"

BROKEN = {
    "length and chunks": CHUNKED + b"content-length: 5\r\n\r\n0\r\n\r\n" + whole(STRAY),
    "chunks and length": OK + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "two lengths": OK + b"content-length: 5\r\ncontent-length: 6\r\n\r\nhello!",
    "a list of lengths": OK + b"content-length: 5, 5\r\n\r\nhello",
    "a length with a sign": OK + b"content-length: +5\r\n\r\nhello",
    "a negative length": OK + b"content-length: -5\r\n\r\nhello",
    "a length past 64 bits": OK + b"content-length: 18446744073709551621\r\n\r\nhello",
    "a space before the colon": OK + b"content-length : 5\r\n\r\nhello",
    "a folded line": OK + b"x-a: b\r\n content-length: 5\r\n\r\nhello",
    "a head with bare LF": b"HTTP/1.1 200 OK\ncontent-length: 5\n\nhello",
    "a bare LF in a head": OK + b"x-a: b\nx-b: c\r\ncontent-length: 5\r\n\r\nhello",
    "a bare CR in a head": OK + b"x-a: b\rx-b: c\r\ncontent-length: 5\r\n\r\nhello",
    "NUL in a head": OK + b"x-a: b\x00\r\ncontent-length: 5\r\n\r\nhello",
    "a chunk that is no number": CHUNKED + b"\r\nzz\r\nhello\r\n0\r\n\r\n",
    "a chunk with 0x": CHUNKED + b"\r\n0x5\r\nhello\r\n0\r\n\r\n",
    "a negative chunk": CHUNKED + b"\r\n-5\r\nhello\r\n0\r\n\r\n",
    "a chunk past 64 bits": CHUNKED + b"\r\n10000000000000005\r\nhello\r\n0\r\n\r\n",
    "a chunk longer than it says": CHUNKED + b"\r\n3\r\nhello\r\n0\r\n\r\n",
    "a chunk with bare LF": CHUNKED + b"\r\n5\nhello\n0\n\n",
    "an extension with LF": CHUNKED + b"\r\n5;a\nhello\r\n0\r\n\r\n",
    "trailers without end": CHUNKED + b"\r\n0\r\n" + b"x-trailer: a\r\n" * 7_000,
    "a huge line": OK + b"x-a: " + b"a" * 70_000 + b"\r\n\r\n",
    "too many lines": OK + b"x-a: b\r\n" * 9_000 + b"\r\n",
    "102 without end": b"HTTP/1.1 102 Processing\r\n\r\n" * 3_000,
    "103 with huge heads": (b"HTTP/1.1 103 Early Hints\r\nx-a: " + b"a" * 8_000 + b"\r\n\r\n") * 10,
    "another protocol": b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n",
    "HTTP/2": b"\x00\x00\x12\x04\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x64",
    "a status of letters": b"HTTP/1.1 abc OK\r\n\r\n",
    "a status below 100": b"HTTP/1.1 002 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "no status": b"HTTP/1.1\r\n\r\n",
    "no HTTP": b"* OK IMAP4 ready\r\n",
}
"""None of it is an answer."""

USAGE = {"input_tokens": 5, "output_tokens": 5}
MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "model": MODEL,
    "content": [{"type": "text", "text": "hi"}],
    "usage": USAGE,
}
GOOD = whole(json.dumps(MESSAGE).encode(), b"content-type: application/json")
BEHIND = {
    "another answer": whole(STRAY),
    "half of another answer": whole(STRAY)[:30],
    "one byte": b"H",
    "garbage": b"\x00\xff garbage",
    "an early answer": b"HTTP/1.1 103 Early Hints\r\n\r\n",
    "a chunk": b"5\r\nhello\r\n0\r\n\r\n",
    "a time-out": b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\n\r\n",
}
"""What comes after a whole answer, unasked."""


@pytest.mark.parametrize("name", BROKEN)
async def test_what_is_no_answer_is_an_error_and_its_connection_is_dropped(name: str) -> None:
    async def peer(line: Line) -> None:
        await line.request()
        if line.number:
            await line.say(whole(b"later"))
        else:
            await line.say(BROKEN[name])
        await line.gone()

    async with serving(peer) as (server, client), asyncio.timeout(5):
        assert isinstance(await outcome(client), UpstreamError)
        assert await outcome(client) == b"later"
        assert len(server.lines) == 2
        assert client.running == 0


async def test_a_request_that_was_answered_with_nonsense_is_not_sent_again() -> None:
    """Found by fuzzing: a kept connection that closed after a status below 100 was taken for one that had been dead."""

    async def peer(line: Line) -> None:
        await line.request()
        await line.say(whole(b"first"))
        await line.request()
        await line.say(BROKEN["a status below 100"])

    async with serving(peer) as (server, client), asyncio.timeout(5):
        assert await outcome(client) == b"first"
        assert isinstance(await outcome(client), BadAnswer)
        assert len(server.lines) == 1


@pytest.mark.parametrize("late", [False, True], ids=["at once", "later"])
@pytest.mark.parametrize("framed", [whole, chunked])
@pytest.mark.parametrize("name", BEHIND)
async def test_a_connection_on_which_more_came_than_was_asked_for_is_not_used_again(
    name: str, framed: object, *, late: bool
) -> None:
    async def peer(line: Line) -> None:
        await line.request()
        answer = framed(b"later" if line.number else b"first")  # type: ignore[operator]
        if line.number:
            await line.say(answer)
        elif late:
            await line.say(answer)
            await line.say(BEHIND[name])
        else:
            await line.say(answer + BEHIND[name])
        await line.gone()

    async with serving(peer) as (server, client), asyncio.timeout(5):
        assert await outcome(client) == b"first"
        await until(lambda: not client.opened)
        assert await outcome(client) == b"later"
        assert len(server.lines) == 2
        assert client.running == 0


@on_sqlite
async def test_customers_get_an_honest_error_for_each_and_pay_for_none(open_stage: OpenStage) -> None:
    answers = [[data] for data in BROKEN.values()]
    async with (
        script(*answers, [GOOD]) as theirs,
        open_stage(upstreams=upstream("theirs", theirs.port), limits="attempts = 1\nstall_s = 2") as stage,
    ):
        before = await stage.balance(stage.alice)
        for name in BROKEN:
            status, body = await stage.ask(stage.alice)
            assert status == 502, (name, status, body)
            assert json.loads(body)["type"] == "error"
            assert STRAY not in body
            assert await stage.balance(stage.alice) == before, name
        assert await stage.rows("SELECT count(*) FROM hold") == [(0,)]
        status, body = await stage.ask(stage.alice)
        assert (status, b"msg_1" in body) == (200, True)
        assert (await stage.balance(stage.alice))[0] < before[0]


@on_sqlite
@pytest.mark.parametrize("name", BEHIND)
async def test_an_answer_is_charged_once_whatever_comes_behind_it(open_stage: OpenStage, name: str) -> None:
    async with (
        script([GOOD + BEHIND[name]], [GOOD], keep=True) as theirs,
        open_stage(upstreams=upstream("theirs", theirs.port)) as stage,
    ):
        for count in (1, 2):
            status, body = await stage.ask(stage.alice)
            assert (status, json.loads(body)["id"]) == (200, "msg_1")
            assert STRAY not in body
            assert await stage.rows("SELECT count(*) FROM usage") == [(count,)]
        assert await stage.rows("SELECT count(*) FROM hold") == [(0,)]
