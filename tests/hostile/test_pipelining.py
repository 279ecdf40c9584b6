"""Several requests on one connection: answered in order, each by itself; one that cannot be read ends it."""

import asyncio

import pytest

from tests.databases import on_sqlite
from tests.gateway.play import message
from tests.hostile.raw import ask, check_refusal, dial, head, request
from tests.stage import Stage

pytestmark = [pytest.mark.asyncio(loop_scope="module"), on_sqlite]

MODELS = ("claude-opus-4-6", "claude-haiku-4-5", "claude-sonnet-4-6")
BAD = {
    "bad framing": (b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n", 400),
    "nonsense": (b"nonsense\r\n\r\n", 400),
    "too many headers": (b"GET / HTTP/1.1\r\nhost: a\r\n" + b"x: y\r\n" * 201 + b"\r\n", 431),
    "a bad chunk": (b"POST /v1/messages HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", 400),
}


def look_up(stage: Stage, model: str) -> bytes:
    return request(stage.alice, method="GET", path=f"/api/proxy/v1/models/{model}")


async def test_three_requests_in_one_packet_are_answered_in_order(shared: Stage) -> None:
    async with dial(shared.gateway.port) as line:
        await line.write(b"".join(look_up(shared, model) for model in MODELS))
        assert [(await line.reply()).json()["id"] for _ in MODELS] == list(MODELS)


async def test_bodies_in_one_packet_are_kept_apart(shared: Stage) -> None:
    async with dial(shared.gateway.port) as line:
        await line.write(b"".join(request(shared.alice, ask(max_tokens=-n)) for n in (1, 2, 3)))
        for n in (1, 2, 3):
            check_refusal(await line.reply(), 400, f"got -{n}")


@pytest.mark.parametrize("piece", [1, 7, 100])
async def test_requests_cut_anywhere_are_the_same_requests(shared: Stage, piece: int) -> None:
    data = look_up(shared, MODELS[0]) + request(shared.alice, ask(max_tokens=-7)) + look_up(shared, MODELS[1])
    async with dial(shared.gateway.port) as line:
        for at in range(0, len(data), piece):
            await line.write(data[at : at + piece])
        assert (await line.reply()).json()["id"] == MODELS[0]
        check_refusal(await line.reply(), 400, "got -7")
        assert (await line.reply()).json()["id"] == MODELS[1]


@pytest.mark.parametrize("name", BAD)
async def test_a_bad_second_request_is_refused_after_the_first_is_answered(shared: Stage, name: str) -> None:
    data, status = BAD[name]
    async with dial(shared.gateway.port) as line:
        await line.write(look_up(shared, MODELS[0]) + data + look_up(shared, MODELS[1]))
        assert (await line.reply()).json()["id"] == MODELS[0]
        check_refusal(await line.reply(), status)
        assert await line.closed() == b""


async def test_a_refused_request_leaves_the_connection_for_the_next(shared: Stage) -> None:
    async with dial(shared.gateway.port) as line:
        for _ in range(3):
            await line.write(request(shared.alice, b"{"))
            check_refusal(await line.reply(), 400)
        await line.write(request(None, ask()))
        check_refusal(await line.reply(), 401)
        await line.write(request(shared.alice, method="GET", path="/nowhere"))
        check_refusal(await line.reply(), 404)
        await line.write(look_up(shared, MODELS[0]))
        assert (await line.reply()).json()["id"] == MODELS[0]


async def test_more_than_sixteen_requests_may_not_wait(shared: Stage) -> None:
    async with dial(shared.gateway.port) as line:
        await line.write(look_up(shared, MODELS[0]) * 30)
        for _ in range(17):
            assert (await line.reply()).status == 200
        check_refusal(await line.reply(), 400, "at most 16 requests")
        assert await line.closed() == b""


async def test_an_unread_body_is_not_taken_for_the_next_request(shared: Stage) -> None:
    """A 401 leaves before the body has been read; the body holds a request, which must not be served."""
    inner = look_up(shared, MODELS[0])
    async with dial(shared.gateway.port) as line:
        await line.write(head(None, f"content-length: {len(inner)}") + b"\r\n")
        check_refusal(await line.reply(), 401)
        await line.write(inner)
        assert await line.closed() == b""


UPGRADE = ("connection: Upgrade, HTTP2-Settings", "upgrade: h2c", "http2-settings: AAMAAABkAAQCAAAAAAIAAAAA")


async def test_upgrades_are_ignored_and_the_request_is_served(shared: Stage) -> None:
    async with dial(shared.gateway.port) as line:
        await line.write(request(shared.alice, b"", *UPGRADE, method="GET", path="/api/proxy/v1/models"))
        assert (await line.reply()).status == 200
        assert await line.closed() == b""


async def test_an_upgrade_with_a_body_is_refused_whole(shared: Stage) -> None:
    async with dial(shared.gateway.port) as line:
        await line.write(request(shared.alice, ask(), *UPGRADE))
        check_refusal(await line.reply(), 400, "upgrade")
        assert await line.closed() == b""


async def test_http_1_0_gets_an_answer_it_can_read_and_the_end_of_the_connection(shared: Stage) -> None:
    data = look_up(shared, MODELS[0]).replace(b"HTTP/1.1", b"HTTP/1.0")
    async with dial(shared.gateway.port) as line:
        await line.write(data)
        reply = await line.reply()
        assert reply.json()["id"] == MODELS[0]
        assert "transfer-encoding" not in reply.headers
        assert await line.closed() == b""


async def test_head_gets_headers_alone(shared: Stage) -> None:
    async with dial(shared.gateway.port) as line:
        for path in ("/", "/api/hello", "/api/proxy/api/hello"):
            await line.write(b"HEAD %b HTTP/1.1\r\nhost: a\r\n\r\n" % path.encode())
            assert (await line.reply("HEAD")).status == 200
        await line.write(look_up(shared, MODELS[0]))
        assert (await line.reply()).json()["id"] == MODELS[0]


async def test_a_body_that_waits_to_be_invited_is_invited_once(shared: Stage) -> None:
    body = ask(max_tokens=-1)
    async with dial(shared.gateway.port) as line:
        await line.write(head(shared.alice, "expect: 100-continue", f"content-length: {len(body)}") + b"\r\n")
        assert (await line.reply()).status == 100
        await line.write(body)
        check_refusal(await line.reply(), 400, "max_tokens")


async def test_a_body_that_would_be_refused_is_not_invited(shared: Stage) -> None:
    for person, size, status in ((None, 10, 401), (shared.alice, 40 * 2**20, 413)):
        async with dial(shared.gateway.port) as line:
            await line.write(head(person, "expect: 100-continue", f"content-length: {size}") + b"\r\n")
            check_refusal(await line.reply(), status)


async def test_after_a_large_body_that_comes_all_at_once_the_connection_takes_the_next_request(shared: Stage) -> None:
    """It is read faster than it is asked for while its key is looked up; what was stopped for that goes on."""
    for _ in range(4):
        shared.parts.keys.forget()
        answer = await asyncio.wait_for(shared.post(shared.alice, message("word " * 90_000, max_tokens=-1)), 10)
        await answer.read(2**20)
        assert answer.status == 400
