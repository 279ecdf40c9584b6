"""Requests that are not HTTP, or that two parsers might read as different requests (RFC 9112 section 11.2)."""

import pytest

from tests.databases import on_sqlite
from tests.hostile.raw import ask, check_refusal, dial, exchange, head, request
from tests.stage import Stage

pytestmark = [pytest.mark.asyncio(loop_scope="module"), on_sqlite]

BODY = ask()
CHUNKED = "transfer-encoding: chunked"
CHUNKED_BODY = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
LENGTH = f"content-length: {len(BODY)}"
GET = b"GET /api/proxy/v1/models HTTP/1.1\r\n"

SMUGGLED = {
    "length and chunks": ((LENGTH, CHUNKED), CHUNKED_BODY),
    "chunks and length": ((CHUNKED, LENGTH), CHUNKED_BODY),
    "two equal lengths": ((LENGTH, LENGTH), BODY),
    "two different lengths": ((LENGTH, "content-length: 0"), BODY),
    "a list of lengths": ((f"{LENGTH}, {len(BODY)}",), BODY),
    "a length with a sign": ((f"content-length: +{len(BODY)}",), BODY),
    "a negative length": (("content-length: -1",), BODY),
    "a hexadecimal length": (("content-length: 0x10",), BODY),
    "a length past 64 bits": (("content-length: 99999999999999999999999",), BODY),
    "an empty length": (("content-length: ",), BODY),
    "a chunk size that is no number": ((CHUNKED,), b"zz\r\nabc\r\n0\r\n\r\n"),
    "a chunk size with 0x": ((CHUNKED,), b"0x3\r\nabc\r\n0\r\n\r\n"),
    "a negative chunk size": ((CHUNKED,), b"-3\r\nabc\r\n0\r\n\r\n"),
    "a chunk size past 64 bits": ((CHUNKED,), b"fffffffffffffffff\r\nabc\r\n0\r\n\r\n"),
    "a chunk size and a space": ((CHUNKED,), b"3 \r\nabc\r\n0\r\n\r\n"),
    "a chunk longer than its size": ((CHUNKED,), b"3\r\nabcd\r\n0\r\n\r\n"),
    "a chunk extension with a bare LF": ((CHUNKED,), b"3;a=b\nabc\r\n0\r\n\r\n"),
    "chunks with bare LF": ((CHUNKED,), b"3\nabc\n0\n\n"),
    "chunked twice": ((CHUNKED, CHUNKED), CHUNKED_BODY),
    "chunked, identity": (("transfer-encoding: chunked, identity",), CHUNKED_BODY),
    "gzip, chunked": (("transfer-encoding: gzip, chunked",), CHUNKED_BODY),
    "identity": (("transfer-encoding: identity",), CHUNKED_BODY),
    "xchunked": (("transfer-encoding: xchunked",), CHUNKED_BODY),
    "quoted chunked": (('transfer-encoding: "chunked"',), CHUNKED_BODY),
    "vertical tab before chunked": (("transfer-encoding: \x0bchunked",), CHUNKED_BODY),
    "a space before the colon": (("transfer-encoding : chunked",), CHUNKED_BODY),
    "a folded line": (("x-a: 1\r\n transfer-encoding: chunked", LENGTH), BODY),
    "a line that begins with a space": ((" transfer-encoding: chunked", LENGTH), BODY),
    "NUL in a value": (("x-a: a\x00b", LENGTH), BODY),
    "NUL in a name": (("x-\x00a: b", LENGTH), BODY),
    "a bare CR in a value": (("x-a: a\rx-b: c", LENGTH), BODY),
    "a bare LF in a value": (("x-a: a\nx-b: c", LENGTH), BODY),
    "a line without a colon": (("nonsense", LENGTH), BODY),
    "a line without a name": ((": nonsense", LENGTH), BODY),
    "two hosts": (("host: other.test", LENGTH), BODY),
}


@pytest.mark.parametrize("name", SMUGGLED)
async def test_ambiguous_framing_is_refused_and_the_connection_ends(shared: Stage, name: str) -> None:
    lines, body = SMUGGLED[name]
    async with dial(shared.gateway.port) as line:
        await line.write(head(shared.alice, *lines) + b"\r\n" + body + request(shared.alice, ask()))
        reply = await line.reply()
        check_refusal(reply, 400)
        assert reply.headers["connection"] == "close"
        assert await line.closed() == b"", "what followed was read as a request"


NO_HTTP = {
    "a TLS hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 100,
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/1.2": b"GET / HTTP/1.2\r\nhost: a\r\n\r\n",
    "HTTP/0.9": b"GET /\r\n\r\n",
    "an unknown method": b"FETCH / HTTP/1.1\r\nhost: a\r\n\r\n",
    "a method in lower case": b"get / HTTP/1.1\r\nhost: a\r\n\r\n",
    "a path with a space": b"GET /a b HTTP/1.1\r\nhost: a\r\n\r\n",
    "a path with bytes": b"GET /\xff\xfe HTTP/1.1\r\nhost: a\r\n\r\n",
    "a path with NUL": b"GET /\x00 HTTP/1.1\r\nhost: a\r\n\r\n",
    "bare LF throughout": b"GET / HTTP/1.1\nhost: a\n\n",
    "CONNECT": b"CONNECT farebox.test:443 HTTP/1.1\r\nhost: a\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "a chunked HTTP/1.0": b"POST / HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("name", NO_HTTP)
async def test_what_is_not_http_gets_a_400_and_the_connection_ends(shared: Stage, name: str) -> None:
    async with dial(shared.gateway.port) as line:
        await line.write(NO_HTTP[name])
        check_refusal(await line.reply(), 400)
        assert await line.closed() == b""


async def test_chunk_extensions_are_ignored_and_trailers_never_become_headers(shared: Stage) -> None:
    body = ask(max_tokens=-1)
    chunks = b"%x;name=value\r\n%b\r\n0\r\nx-evil: 1\r\nhost: other\r\nx-api-key: x\r\n\r\n" % (len(body), body)
    async with dial(shared.gateway.port) as line:
        await line.write(head(shared.alice, CHUNKED) + b"\r\n" + chunks)
        check_refusal(await line.reply(), 400, "max_tokens")
        await line.write(request(shared.alice, b"", method="GET", path="/api/proxy/v1/models"))
        assert (await line.reply()).status == 200


HEADERS_TOO_LARGE = {
    "one long value": b"x-a: " + b"a" * 70_000,
    "many lines": b"\r\n".join(b"x-%d: %b" % (i, b"a" * 1000) for i in range(70)),
    "more than 200 lines": b"\r\n".join(b"x-%d: a" % i for i in range(201)),
    "a long path": b"",
}


@pytest.mark.parametrize("name", HEADERS_TOO_LARGE)
@pytest.mark.parametrize("piece", [1_000_000, 3_000])
async def test_headers_beyond_64_kb_are_refused(shared: Stage, name: str, piece: int) -> None:
    path = "/" + "a" * 70_000 if name == "a long path" else "/api/proxy/v1/messages"
    data = head(shared.alice, path=path) + HEADERS_TOO_LARGE[name] + b"\r\n\r\n"
    async with dial(shared.gateway.port) as line:
        for at in range(0, len(data), piece):
            await line.write(data[at : at + piece])
        check_refusal(await line.reply(), 431, "headers")
        assert await line.closed() == b""


async def test_headers_without_an_end_are_refused_before_they_fill_the_memory(shared: Stage) -> None:
    async with dial(shared.gateway.port) as line:
        await line.write(head(shared.alice) + b"x-a: ")
        for _ in range(30):
            await line.write(b"a" * 4_000)
        check_refusal(await line.reply(), 431)


TARGETS = {
    "absolute form": ("http://farebox.test/api/proxy/v1/models", 200),
    "absolute form with a query": ("http://farebox.test/api/proxy/v1/models?limit=1", 200),
    "absolute form without a path": ("http://farebox.test", 200),
    "dot segments": ("/api/proxy/../proxy/v1/models", 404),
    "an encoded path": ("/api/proxy/v1/%6dodels", 404),
    "two slashes": ("//api/proxy/v1/models", 404),
    "nothing there": ("/api/proxy/v2/models", 404),
    "a slash too many": ("/api/proxy/v1/messages/", 404),
    "a wordpress": ("/wp-login.php", 404),
    "a bare star": ("*", 404),
}


@pytest.mark.parametrize("name", TARGETS)
async def test_a_target_is_found_or_a_404_says_where_calls_go(shared: Stage, name: str) -> None:
    target, status = TARGETS[name]
    reply = await exchange(shared.gateway.port, request(shared.alice, method="GET", path=target))
    if status == 200:
        assert reply.status == 200
    else:
        check_refusal(reply, 404, "/v1/messages")


METHODS = {
    ("GET", "/messages"): "POST",
    ("HEAD", "/messages"): "POST",
    ("PUT", "/messages"): "POST",
    ("DELETE", "/messages"): "POST",
    ("OPTIONS", "/messages"): "POST",
    ("PATCH", "/messages/count_tokens"): "POST",
    ("POST", "/models"): "GET",
    ("DELETE", "/models/claude-sonnet-4-6"): "GET",
}


@pytest.mark.parametrize(("method", "path"), METHODS)
async def test_a_wrong_method_is_a_405_that_names_the_right_one(shared: Stage, method: str, path: str) -> None:
    data = request(shared.alice, method=method, path=f"/api/proxy/v1{path}")
    reply = await exchange(shared.gateway.port, data, method)
    assert reply.status == 405
    assert METHODS[method, path] in reply.headers["allow"]
    if method != "HEAD":
        check_refusal(reply, 405, METHODS[method, path])
