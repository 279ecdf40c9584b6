"""The client upstream: whatever the other side does, a whole answer or the right error, and never another's bytes."""

import asyncio
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farebox.http.client import HttpClient, Origin, read_origin
from farebox.http.failures import AnswerTimeout, BadAnswer, ConnectFailed, Cut, Stalled, UpstreamError
from farebox.upstreams.checks import problems
from farebox.upstreams.settings import UpstreamSettings
from tests.upstreams.wire import Line, ask, chunked, outcome, saying, serving, split, until, whole

TO_THE_END = b"HTTP/1.1 200 OK\r\nx-kind: text\r\n\r\nhello world"
BODY = b"hello world"
LARGE = 300_000


@pytest.mark.parametrize("answer", [whole(BODY), chunked(b"hello ", b"world")])
async def test_an_answer_cut_at_any_byte_is_an_error_and_never_a_short_body(answer: bytes) -> None:
    async def peer(line: Line) -> None:
        await line.request()
        await line.say(answer[: line.number])

    async with serving(peer) as (_, client):
        for place in range(len(answer)):
            got = await outcome(client)
            assert isinstance(got, Cut), (place, got)
            assert got.sent
        assert await outcome(client) == BODY


async def test_an_answer_that_ends_with_its_connection_is_whole_whatever_came_after_its_head() -> None:
    head = len(TO_THE_END) - len(BODY)

    async def peer(line: Line) -> None:
        await line.request()
        await line.say(TO_THE_END[: line.number])

    async with serving(peer) as (_, client):
        for place in range(len(TO_THE_END) + 1):
            got = await outcome(client)
            if place < head:
                assert isinstance(got, Cut), place
            else:
                assert got == TO_THE_END[head:place]


async def test_a_reset_is_no_end_of_an_answer_that_ends_with_its_connection() -> None:
    async def peer(line: Line) -> None:
        await line.request()
        await line.say(TO_THE_END)
        await asyncio.sleep(0.05)
        line.reset()

    async with serving(peer) as (_, client):
        assert isinstance(await outcome(client), Cut)


@pytest.mark.parametrize(
    "answer",
    [whole(BODY), chunked(b"hello ", b"w", b"orld"), TO_THE_END, b"HTTP/1.1 100 Continue\r\n\r\n" + whole(BODY)],
)
def test_any_split_of_the_bytes_gives_the_same_answer(answer: bytes) -> None:
    """Byte by byte, and wherever else it pleases."""

    @settings(max_examples=15, deadline=None)
    @given(st.lists(st.integers(0, 10_000), max_size=12))
    def check(cuts: list[int]) -> None:
        assert asyncio.run(_told_in(split(answer, cuts))) == (200, BODY)

    check()
    assert asyncio.run(_told_in([answer[at : at + 1] for at in range(len(answer))])) == (200, BODY)


async def _told_in(pieces: list[bytes]) -> tuple[int, bytes]:
    """Feed an answer piece by piece to a connection, as a transport would."""

    async def peer(line: Line) -> None:
        await line.request()
        await line.gone()

    async with serving(peer) as (server, client):
        asking = asyncio.create_task(ask(client))
        await until(lambda: server.lines)
        (connection,) = client.opened
        for piece in pieces:
            connection.data_received(piece)
        answer = await asking
        reading = asyncio.create_task(answer.read(2**20))
        await asyncio.sleep(0)
        if not reading.done():
            server.lines[0].close()
        return answer.status, await reading


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, LARGE, 3_000_000])
@pytest.mark.parametrize("framed", [whole, chunked])
async def test_a_connection_serves_again_after_an_answer_of_any_size(framed: Any, size: int) -> None:
    body = bytes(size)
    answer = framed(body) if size or framed is whole else chunked()
    async with serving(saying(answer, requests=3)) as (server, client):
        for _ in range(3):
            assert await (await ask(client)).read(2**26) == body
        assert len(server.lines) == 1


@pytest.mark.parametrize(
    "early",
    [
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 102 Processing\r\nx-a: 1\r\n\r\n" * 3,
        b"HTTP/1.1 103 Early Hints\r\nlink: </style.css>\r\ncontent-length: 5\r\n\r\n",
    ],
)
async def test_answers_of_the_100s_are_passed_over_with_their_headers(early: bytes) -> None:
    async with serving(saying(early, whole(BODY, b"x-b: 2"), requests=2)) as (server, client):
        for _ in range(2):
            answer = await ask(client)
            assert answer.status == 200
            assert answer.headers == [(b"x-b", b"2"), (b"content-length", b"11")]
            assert await answer.read(100) == BODY
        assert len(server.lines) == 1


@pytest.mark.parametrize(
    "noise",
    [
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"\x15\x03\x01\x00\x02\x02\x50",
        b"HTTP/1.1 200 OK\r\n" + b"x-long: " + b"a" * 70_000,
        b"HTTP/1.1 200 OK\r\n" + b"x-many: a\r\n" * 7_000,
        b"HTTP/1.1 102 Processing\r\n\r\n" * 3_000,
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n" + b"x-trailer: a\r\n" * 7_000,
    ],
)
async def test_what_is_no_answer_is_refused_and_its_connection_dropped(noise: bytes) -> None:
    async def peer(line: Line) -> None:
        await line.request()
        await line.say(noise)
        await line.gone()

    async with serving(peer) as (_, client), asyncio.timeout(3):
        assert isinstance(await outcome(client), BadAnswer)
        await _settled(client)


async def _settled(client: HttpClient) -> None:
    await until(lambda: not client.opened)
    assert client._idle == []


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 200 OK\r\ncontent-length: 11\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n", whole(BODY)]
)
async def test_an_answer_to_head_has_no_body_whatever_it_announces(answer: bytes) -> None:
    async def peer(line: Line) -> None:
        await line.request()
        await line.say(answer)
        await line.gone()

    async with serving(peer) as (server, client), asyncio.timeout(3):
        for _ in range(2):
            got = await ask(client, b"", method="HEAD")
            assert (got.status, await got.read(100)) == (200, b"")
        assert len(server.lines) == 2


@pytest.mark.parametrize("head", [b"204 No Content", b"304 Not Modified"])
async def test_an_answer_without_a_body_keeps_its_connection(head: bytes) -> None:
    async with serving(saying(b"HTTP/1.1 " + head + b"\r\n\r\n", requests=2)) as (server, client):
        for _ in range(2):
            assert await (await ask(client)).read(100) == b""
        assert len(server.lines) == 1


@pytest.mark.parametrize("reset", [False, True])
async def test_a_kept_connection_that_has_died_is_replaced_silently(*, reset: bool) -> None:
    """It closes when the next request is on its way; each request is answered once."""
    heard: list[int] = []

    async def peer(line: Line) -> None:
        await line.request()
        heard.append(line.number)
        await line.say(whole(b"%d" % line.number))
        await line.request()
        if reset:
            line.reset()

    async with serving(peer) as (_, client):
        got = [await outcome(client) for _ in range(4)]
    assert got == [b"0", b"1", b"2", b"3"]
    assert heard == [0, 1, 2, 3]


async def test_a_fresh_connection_that_dies_is_not_replaced() -> None:
    async with serving(saying(b"")) as (server, client):
        assert isinstance(await outcome(client), Cut)
        assert len(server.lines) == 1


async def test_a_kept_connection_that_breaks_off_its_answer_is_not_replaced() -> None:
    async def peer(line: Line) -> None:
        await line.request()
        await line.say(whole(b"first"))
        await line.request()
        await line.say(b"H")

    async with serving(peer) as (server, client):
        assert await outcome(client) == b"first"
        assert isinstance(await outcome(client), Cut)
        assert len(server.lines) == 1


async def test_answers_never_reach_another_request() -> None:
    """Fast answers over few connections that are always on to the next request; some hang up, some run out of time."""

    async def peer(line: Line) -> None:
        while True:
            request = await line.request()
            said = request.rpartition(b"\r\n\r\n")[2]
            number = int(said)
            if number % 7 == 3:
                await asyncio.sleep(0.02)
            answer = chunked(said, b"-" * (number % 50)) if number % 2 else whole(said + b"-" * (number % 50))
            for piece in split(answer, [number * 31, number * 17] if number % 5 == 0 else []):
                await line.say(piece)

    async with serving(peer, connections=8) as (server, client):

        async def call(number: int) -> None:
            said = b"%d" % number
            try:
                async with asyncio.timeout(0.005 if number % 11 == 5 else 5):
                    answer = await ask(client, said, first_byte_s=0.01 if number % 7 == 3 else 5)
                    assert await answer.read(1000) == said + b"-" * (number % 50)
            except AnswerTimeout:
                assert number % 7 == 3
            except TimeoutError:
                assert number % 11 == 5

        await asyncio.gather(*(call(number) for number in range(1_000)))
        assert len(client.opened) <= 8
        assert len(set(client._idle)) == len(client._idle)
        assert 8 <= len(server.lines) < 400


async def test_an_answer_that_comes_too_late_is_nobodys() -> None:
    async def peer(line: Line) -> None:
        await line.request()
        if line.number == 0:
            await asyncio.sleep(0.1)
        await line.say(whole(b"%d" % line.number))

    async with serving(peer) as (_, client):
        with pytest.raises(AnswerTimeout) as late:
            await ask(client, first_byte_s=0.03)
        assert late.value.sent
        assert await outcome(client) == b"1"
        await asyncio.sleep(0.1)
        assert await outcome(client) == b"2"


async def test_a_request_that_is_cancelled_takes_its_connection_with_it() -> None:
    async def peer(line: Line) -> None:
        await line.request()
        await line.gone()

    async with serving(peer) as (server, client):
        asking = asyncio.create_task(ask(client))
        await until(lambda: server.lines)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await _settled(client)


async def test_when_all_connections_are_busy_a_call_waits_for_the_next_that_is_free() -> None:
    async def peer(line: Line) -> None:
        while True:
            await line.request()
            await asyncio.sleep(0.02)
            await line.say(whole(BODY))

    async with serving(peer, connections=2, connect_s=3) as (server, client):
        begun = time.monotonic()
        assert await asyncio.gather(*(outcome(client) for _ in range(10))) == [BODY] * 10
        assert time.monotonic() - begun < 1
        assert len(server.lines) == 2


async def test_a_call_that_waits_gets_its_turn_when_another_breaks_is_cancelled_or_cannot_connect() -> None:
    async def peer(line: Line) -> None:
        await line.request()
        if line.number == 0:
            await asyncio.sleep(0.02)  # then it closes without an answer
        elif line.number == 1:
            await line.gone()
        else:
            await line.say(whole(BODY))

    async with serving(peer, connections=1, connect_s=2) as (server, client), asyncio.timeout(3):
        broken, stuck, last = (asyncio.create_task(outcome(client)) for _ in range(3))
        assert isinstance(await broken, Cut)
        await until(lambda: len(server.lines) == 2)
        stuck.cancel()
        assert await last == BODY


async def test_a_call_that_finds_no_free_connection_in_time_was_never_sent() -> None:
    async def peer(line: Line) -> None:
        await line.request()
        await line.gone()

    async with serving(peer, connections=2, connect_s=0.5) as (server, client):
        busy = [asyncio.create_task(ask(client)) for _ in range(2)]
        await until(lambda: len(server.lines) == 2)
        got = await outcome(client)
        assert isinstance(got, ConnectFailed)
        assert not got.sent
        assert "no free connection" in str(got)
        assert len(server.lines) == 2
        for task in busy:
            task.cancel()


async def test_a_refused_connection_gives_its_place_back() -> None:
    async with serving(saying(b"")) as (server, _):
        port = server.port
    client = HttpClient(Origin("http", "127.0.0.1", port, ""), connect_s=1, connections=1)
    for _ in range(3):
        got = await outcome(client)
        assert isinstance(got, ConnectFailed)
        assert "no free connection" not in str(got)


async def test_a_connection_that_has_idled_too_long_is_not_used_again() -> None:
    async with serving(saying(whole(BODY), requests=2)) as (server, client):
        client._idle_s = 0.02
        assert await outcome(client) == BODY
        await asyncio.sleep(0.05)
        assert await outcome(client) == BODY
        assert len(server.lines) == 2


async def test_a_body_that_falls_silent_or_is_too_large_is_given_up() -> None:
    async def peer(line: Line) -> None:
        await line.request()
        await line.say(whole(bytes(1000))[:-1])
        await line.gone()

    async with serving(peer, stall_s=0.05) as (_, client):
        with pytest.raises(Stalled):
            await (await ask(client)).read(1000)
        with pytest.raises(BadAnswer, match="larger than 500"):
            await (await ask(client)).read(500)
        await _settled(client)


async def test_an_answer_that_nobody_reads_yet_waits_in_bounds_and_loses_nothing() -> None:
    body = bytes(range(256)) * 40_000
    async with serving(saying(whole(body))) as (_, client):
        answer = await ask(client)
        await asyncio.sleep(0.1)
        assert answer._size < 2**20
        assert await answer.read(2**24) == body


async def test_a_request_goes_out_as_it_was_given() -> None:
    heard: list[bytes] = []

    async def peer(line: Line) -> None:
        heard.append(await line.request())
        await line.say(whole(b""))

    async with serving(peer) as (server, client):
        client.origin = read_origin(f"http://127.0.0.1:{server.port}/base/")
        await client.request("POST", "/v1?a=b", [(b"x-a", b"\xe9")], b"{}", first_byte_s=5)
        host = b"127.0.0.1:%d" % server.port
        assert heard == [b"POST /base/v1?a=b HTTP/1.1\r\nhost: %b\r\nx-a: \xe9\r\ncontent-length: 2\r\n\r\n{}" % host]


@pytest.mark.parametrize(
    "url", ["", "example.com", "ftp://example.com", "https://", "https://a:b@example.com", "https://example.com/?a=b"]
)
def test_a_base_url_is_read_or_refused(url: str) -> None:
    with pytest.raises(ValueError, match="a base URL is"):
        read_origin(url)


def test_the_authority_leaves_out_a_default_port_only() -> None:
    assert read_origin("https://example.com/x/") == Origin("https", "example.com", 443, "/x")
    assert read_origin("https://example.com").authority == b"example.com"
    assert read_origin("https://example.com:80").authority == b"example.com:80"
    assert read_origin("http://[::1]:9").authority == b"[::1]:9"
    assert issubclass(ConnectFailed, UpstreamError)


@pytest.mark.parametrize(
    "url",
    [
        "https://me:geheim@host", "https://:geheim@host", "https://me:geheim@host?x=1", "https://me:geheim/x@host",
        "https://me:geheim\u2100@host", "https://me:geheim@[::1", "https://me:geheim@host:99999",
    ],
)  # fmt: skip
def test_a_password_in_a_url_is_refused_and_never_quoted(url: str) -> None:
    with pytest.raises(ValueError, match="without a password") as refused:
        read_origin(url)
    assert "geheim" not in f"{refused.value!r} {refused.value.__cause__!r}"
    assert "geheim" not in "".join(words for _, words in problems(UpstreamSettings("a", "chat", base_url=url), {}))


@pytest.mark.parametrize("host", ["bücher.example", "a..b", ".", "a" * 64, "ho st", "host/a b", "host/é", "host/\0"])
def test_a_url_that_no_request_can_be_written_to_is_refused_at_once(host: str) -> None:
    """Else every call to it would fail in a way that the pool does not know of."""
    with pytest.raises(ValueError, match="a base URL is"):
        read_origin(f"https://{host}")
    assert list(problems(UpstreamSettings("a", "chat", base_url=f"https://{host}"), {}))
