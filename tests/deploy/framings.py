"""Requests that two servers might read as different ones (RFC 9112 11.2), and a server that bears witness of each.

Every case is sent with a whole request behind it. Many hide a third one in what another reading takes for a body.
"""

import asyncio
import re
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from farebox.http.exchange import Exchange
from farebox.http.server import HttpServer, ServerLimits

SERVED: Final = "served"
"""Read as the request it is, and the one behind it as well."""
ONCE: Final = "once"
"""Read as the request it is; then the connection ends."""
REFUSED: Final = "refused"
"""400-class, the end of the connection, and nothing of it or behind it is read as a request."""
FORWARDED: Final = b"127.0.0.1"
"""What either balancer writes into X-Forwarded-For of each request that it means to send."""
CHUNKED: Final = b"Transfer-Encoding: chunked"
FIVE: Final = b"5\r\nhello\r\n0\r\n\r\n"
_ANSWER: Final = re.compile(rb"<seen (\d+) (\w+)>")
_STATUS: Final = re.compile(rb"HTTP/1\.[01] (\d{3}) ")


@dataclass(frozen=True)
class Case:
    """What is sent for {n}, the number of the case, before the request that follows it."""

    name: str
    verdict: str
    data: bytes
    behind: bytes = b"GET /{n}/second HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"

    def bytes_for(self, number: int) -> bytes:
        return (self.data + self.behind).replace(b"{n}", b"%d" % number)


def post(name: str, verdict: str, *lines: bytes, body: bytes = b"", version: bytes = b"HTTP/1.1") -> Case:
    """A POST with these lines of head, which are all it has but Host."""
    head = b"\r\n".join([b"POST /{n}/first " + version, b"Host: localhost", *lines, b"", b""])
    return Case(name, verdict, head + body)


def get(name: str, verdict: str, first: bytes, *lines: bytes, host: bool = True) -> Case:
    """A request line of any kind."""
    return Case(name, verdict, b"\r\n".join([first, *([b"Host: localhost"] if host else []), *lines, b"", b""]))


HIDDEN: Final = b"GET /{n}/hidden HTTP/1.1\r\nHost: localhost\r\n\r\n"
_BOTH: Final = b"0\r\n\r\n" + HIDDEN
_GET: Final = b"GET /{n}/first HTTP/1.1"


def _length(body: bytes) -> bytes:
    return b"Content-Length: %d" % len(body)


def _encodings() -> list[Case]:
    """Lines of Transfer-Encoding beside a length that hides a request, and chunked in many disguises."""
    disguises = {
        "xchunked": b"Transfer-Encoding: xchunked",
        "chunkedx": b"Transfer-Encoding: chunkedx",
        "x, chunked": b"Transfer-Encoding: x, chunked",
        "chunked, x": b"Transfer-Encoding: chunked, x",
        "chunked, chunked": b"Transfer-Encoding: chunked, chunked",
        "chunked;q=1": b"Transfer-Encoding: chunked;q=1",
        "identity": b"Transfer-Encoding: identity",
        "gzip, chunked": b"Transfer-Encoding: gzip, chunked",
        "chunked, identity": b"Transfer-Encoding: chunked, identity",
        "empty": b"Transfer-Encoding: ",
        "a comma": b"Transfer-Encoding: ,chunked",
        "a comma behind": b"Transfer-Encoding: chunked,",
        "quoted": b'Transfer-Encoding: "chunked"',
        "single quotes": b"Transfer-Encoding: 'chunked'",
        "a vertical tab": b"Transfer-Encoding: \x0bchunked",
        "a form feed": b"Transfer-Encoding: \x0cchunked",
        "NUL behind": b"Transfer-Encoding: chunked\x00",
        "NUL before": b"Transfer-Encoding: \x00chunked",
        "a byte past ASCII": b"Transfer-Encoding: chunked\xa0",
        "a soft hyphen": b"Transfer-Encoding: chun\xadked",
        "0x85": b"Transfer-Encoding: \x85chunked",
        "DEL": b"Transfer-Encoding: chunked\x7f",
        "a space before the colon": b"Transfer-Encoding : chunked",
        "a tab before the colon": b"Transfer-Encoding\t: chunked",
        "a space before the name": b" Transfer-Encoding: chunked",
        "folded": b"Transfer-Encoding:\r\n chunked",
        "folded with a tab": b"Transfer-Encoding:\r\n\tchunked",
        "folded behind": b"Transfer-Encoding: chunked\r\n , x",
        "hidden by a bare CR": b"X-A: b\rTransfer-Encoding: chunked",
        "hidden by a bare LF": b"X-A: b\nTransfer-Encoding: chunked",
        "a bare CR behind": b"Transfer-Encoding: chunked\r",
        "twice": CHUNKED + b"\r\n" + CHUNKED,
        "and identity": CHUNKED + b"\r\nTransfer-Encoding: identity",
        "identity and": b"Transfer-Encoding: identity\r\n" + CHUNKED,
        "with an underscore": CHUNKED + b"\r\nTransfer_Encoding: x\r\nContent-Length: 5",
    }
    return [
        post(f"TE and CL: {name}", REFUSED, line, _length(_BOTH), body=_BOTH) for name, line in disguises.items()
    ] + [post(f"TE alone: {name}", REFUSED, line, body=FIVE) for name, line in disguises.items()]


def _lengths() -> list[Case]:
    values = {
        "+5": REFUSED,
        "-5": REFUSED,
        "5, 5": REFUSED,
        "5,6": REFUSED,
        "5 5": REFUSED,
        "0x5": REFUSED,
        "5.0": REFUSED,
        "5e0": REFUSED,
        "": REFUSED,
        "five": REFUSED,
        "5;": REFUSED,
        "'5'": REFUSED,
        "99999999999999999999999": REFUSED,
        "18446744073709551621": REFUSED,
        "\x0b5": REFUSED,
        "5\x00": REFUSED,
        "5\xa0": REFUSED,
        "0_5": REFUSED,
        "\xb2": REFUSED,
        "5": SERVED,
        "05": SERVED,
        "0000000000000000000005": SERVED,
        "5 ": SERVED,
        "\t5\t": SERVED,
    }
    cases = [
        post(f"CL {value!r}", verdict, b"Content-Length: " + value.encode("latin-1"), body=b"hello")
        for value, verdict in values.items()
    ]
    for first, second in ((5, 5), (5, 0), (0, 5), (5, 6)):
        lines = (b"Content-Length: %d" % first, b"Content-Length: %d" % second)
        cases.append(post(f"CL {first} and CL {second}", REFUSED, *lines, body=b"hello"))
    return [
        *cases,
        post("CL then TE", REFUSED, _length(_BOTH), CHUNKED, body=_BOTH),
        post("TE then CL", REFUSED, CHUNKED, _length(_BOTH), body=_BOTH),
        post("a request in a body", SERVED, _length(HIDDEN), body=HIDDEN),
        post("CL folded", REFUSED, b"Content-Length:\r\n 5", body=b"hello"),
        post("CL with a space before the colon", REFUSED, b"Content-Length : 5", body=b"hello"),
        post("no CL, with a body", ONCE, body=b"hello"),
        post("CL 0 and a body", ONCE, b"Content-Length: 0", body=b"hello"),
        Case("a GET with a body", SERVED, _GET + b"\r\nHost: localhost\r\n" + _length(HIDDEN) + b"\r\n\r\n" + HIDDEN),
    ]


def _chunks() -> list[Case]:
    bodies = {
        "plain": (SERVED, FIVE),
        "capitals": (SERVED, b"A\r\n0123456789\r\n0\r\n\r\n"),
        "leading zeros": (SERVED, b"00000005\r\nhello\r\n0\r\n\r\n"),
        "many zeros at the end": (SERVED, b"5\r\nhello\r\n000000\r\n\r\n"),
        "an extension": (SERVED, b"5;a=b\r\nhello\r\n0\r\n\r\n"),
        "a quoted extension": (SERVED, b'5;a="b;c"\r\nhello\r\n0\r\n\r\n'),
        "an extension with a request": (REFUSED, b"5;" + HIDDEN + b"hello\r\n0\r\n\r\n"),
        "an extension with LF": (REFUSED, b"5;a\nhello\r\n0\r\n\r\n"),
        "an extension with CR": (REFUSED, b"5;a\rb\r\nhello\r\n0\r\n\r\n"),
        "an extension with NUL": (REFUSED, b"5;a\x00\r\nhello\r\n0\r\n\r\n"),
        "a trailer": (SERVED, b"5\r\nhello\r\n0\r\nX-T: 1\r\n\r\n"),
        "a trailer with framing": (SERVED, b"5\r\nhello\r\n0\r\nX-Length: 9\r\nHost: b\r\n\r\n"),
        "a trailer without a colon": (REFUSED, b"5\r\nhello\r\n0\r\nnonsense\r\n\r\n"),
        "bare LF": (REFUSED, b"5\nhello\n0\n\n"),
        "LF after data": (REFUSED, b"5\r\nhello\n0\r\n\r\n"),
        "LF at the end": (REFUSED, b"5\r\nhello\r\n0\n\n"),
        "CR alone": (REFUSED, b"5\rhello\r\n0\r\n\r\n"),
        "nothing after data": (REFUSED, b"5\r\nhello0\r\n\r\n"),
        "two bytes after data": (REFUSED, b"5\r\nhelloXX0\r\n\r\n"),
        "0x": (REFUSED, b"0x5\r\nhello\r\n0\r\n\r\n"),
        "a sign": (REFUSED, b"+5\r\nhello\r\n0\r\n\r\n"),
        "negative": (REFUSED, b"-5\r\nhello\r\n0\r\n\r\n"),
        "past 64 bits": (REFUSED, b"10000000000000005\r\nhello\r\n0\r\n\r\n"),
        "the most of 64 bits": (REFUSED, b"ffffffffffffffff0\r\nhello\r\n0\r\n\r\n"),
        "an underscore": (REFUSED, b"0_5\r\nhello\r\n0\r\n\r\n"),
        "empty": (REFUSED, b"\r\nhello\r\n0\r\n\r\n"),
        "a space before": (REFUSED, b" 5\r\nhello\r\n0\r\n\r\n"),
        "a space behind": (REFUSED, b"5 \r\nhello\r\n0\r\n\r\n"),
        "a tab behind": (REFUSED, b"5\t\r\nhello\r\n0\r\n\r\n"),
        "too short a size": (REFUSED, b"3\r\nhello\r\n0\r\n\r\n"),
        "too long a size": (REFUSED, b"8\r\nhello\r\n0\r\n\r\n"),
        "NUL": (REFUSED, b"5\x00\r\nhello\r\n0\r\n\r\n"),
        "letters": (REFUSED, b"zz\r\nhello\r\n0\r\n\r\n"),
    }
    cases = [post(f"chunk: {name}", verdict, CHUNKED, body=body) for name, (verdict, body) in bodies.items()]
    return [
        *cases,
        post("TE: CHUNKED", SERVED, b"tRANSFER-eNCODING: CHUNKED", body=FIVE),
        post("TE with tabs", REFUSED, b"Transfer-Encoding:\tchunked\t", body=FIVE),
    ]


def _heads() -> list[Case]:
    ones = {
        "bare LF": b"GET /{n}/first HTTP/1.1\nHost: localhost\n\n",
        "bare CR": b"GET /{n}/first HTTP/1.1\rHost: localhost\r\r",
        "bare LF at the end": b"GET /{n}/first HTTP/1.1\r\nHost: localhost\r\n\n",
        "HTTP/0.9": b"GET /{n}/first\r\n\r\n",
        "an HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    }
    lines = {
        "NUL in a value": b"X-A: a\x00b",
        "NUL in a name": b"X-\x00A: b",
        "SOH in a value": b"X-A: a\x01b",
        "DEL in a value": b"X-A: a\x7fb",
        "ESC in a name": b"X-\x1bA: b",
        "no colon": b"nonsense",
        "no name": b": nonsense",
        "a space in a name": b"X A: b",
        "a folded line": b"X-A: b\r\n c",
        "an empty name and a space": b" : b",
        "brackets in a name": b"X-(A): b",
        "a bare CR in a value": b"X-A: b\rX-B: c",
        "a bare LF in a value": b"X-A: b\nX-B: c",
        "64 KB": b"X-A: " + b"a" * 66_000,
        "201 lines": b"\r\n".join(b"X-%d: a" % at for at in range(201)),
        "another host": b"Host: other",
        "the same host": b"Host: localhost",
        "an upgrade and a body": b"Upgrade: h2c\r\nConnection: Upgrade\r\nContent-Length: 0",
    }
    firsts = {
        "HTTP/2.0": b"GET /{n}/first HTTP/2.0",
        "HTTP/1.2": b"GET /{n}/first HTTP/1.2",
        "HTTP/11": b"GET /{n}/first HTTP/11",
        "http/1.1": b"GET /{n}/first http/1.1",
        "HTTP/01.1": b"GET /{n}/first HTTP/01.1",
        "ICY": b"GET /{n}/first ICY/1.1",
        "two spaces": b"GET  /{n}/first  HTTP/1.1 x",
        "a tab": b"GET\t/{n}/first\tHTTP/1.1",
        "a space in the target": b"GET /{n}/fi rst HTTP/1.1",
        "NUL in the target": b"GET /{n}/first\x00 HTTP/1.1",
        "a bare CR in the target": b"GET /{n}/first\rX HTTP/1.1",
        "a small method": b"get /{n}/first HTTP/1.1",
        "an unknown method": b"GETX /{n}/first HTTP/1.1",
        "a method with NUL": b"G\x00ET /{n}/first HTTP/1.1",
        "CONNECT": b"CONNECT localhost:443 HTTP/1.1",
        "authority form": b"GET localhost:443 HTTP/1.1",
        "bytes past ASCII": b"GET /{n}/\xff\xfe HTTP/1.1",
        "70 KB": b"GET /{n}/" + b"a" * 70_000 + b" HTTP/1.1",
        "no target": b"GET HTTP/1.1",
        "no method": b"/{n}/first HTTP/1.1",
    }
    return [
        *(Case(f"head: {name}", REFUSED, data) for name, data in ones.items()),
        *(get(f"line: {name}", REFUSED, _GET, line) for name, line in lines.items()),
        *(get(f"first line: {name}", REFUSED, first) for name, first in firsts.items()),
        get("no host", REFUSED, _GET, host=False),
    ]


def _good() -> list[Case]:
    """Odd, and yet to be read in one way alone."""
    lines = {
        "Connection: keep-alive": SERVED,
        "Connection: content-length": SERVED,
        "Connection: host, x-forwarded-for": SERVED,
        "Connection: close": ONCE,
        "Connection: keep-alive, close": ONCE,
        "Upgrade: h2c": SERVED,
        "HTTP2-Settings: AAMA": SERVED,
        "Expect: 100-continue": SERVED,
        "TE: trailers": SERVED,
        "Keep-Alive: timeout=5": SERVED,
        "X_A: b": SERVED,
        "X-A:": SERVED,
        "Proxy-Connection: close": ONCE,
        "Max-Forwards: 0": SERVED,
        "Content_Length: 9": SERVED,
        "X-Http-Method-Override: PUT": SERVED,
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c": ONCE,
        "Connection: Upgrade\r\nUpgrade: websocket": ONCE,
    }
    return [
        *(get(f"{line!r}", verdict, _GET, line.encode()) for line, verdict in lines.items()),
        get("absolute form", SERVED, b"GET http://localhost/{n}/first HTTP/1.1"),
        get("absolute form of another host", SERVED, b"GET http://other/{n}/first HTTP/1.1"),
        get("HTTP/1.0", ONCE, b"GET /{n}/first HTTP/1.0"),
        get("HTTP/1.0 kept", SERVED, b"GET /{n}/first HTTP/1.0", b"Connection: keep-alive"),
        get("HTTP/1.0 without a host", ONCE, b"GET /{n}/first HTTP/1.0", host=False),
        post("HTTP/1.0 in chunks", REFUSED, CHUNKED, body=FIVE, version=b"HTTP/1.0"),
        Case("empty lines before", SERVED, b"\r\n\r\nGET /{n}/first HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        post("Expect and a body", SERVED, b"Expect: 100-continue", b"Content-Length: 5", body=b"hello"),
        post("Expect of something else", SERVED, b"Expect: 200-ok", b"Content-Length: 5", body=b"hello"),
        post("Expect in chunks", SERVED, b"Expect: 100-continue", CHUNKED, body=FIVE),
    ]


CASES: Final = (*_encodings(), *_lengths(), *_chunks(), *_heads(), *_good())


class Witness:
    """A server that notes each request by the number of its case, and answers with what it noted."""

    def __init__(self) -> None:
        self.seen: dict[int, list[str]] = defaultdict(list)
        self.unmeant: list[tuple[str, object]] = []
        """Requests that no balancer meant to send: they lack its mark, or have somebody else's as well."""
        self.behind_balancer = False
        self.port = 0

    async def serve(self, exchange: Exchange) -> None:
        await exchange.read_body(2**20)
        _, number, what = [*exchange.path.split("/"), "", ""][:3]
        if number.isdigit():
            marks = [value for name, value in exchange.headers if name == b"x-forwarded-for"]
            if self.behind_balancer and marks != [FORWARDED]:
                self.unmeant.append((exchange.path, marks))
            self.seen[int(number)].append(what)
            body = b"<seen %d %b>" % (int(number), re.sub(rb"\W", b"_", what.encode("latin-1")) or b"_")
            exchange.respond(200, [], body)
        else:
            exchange.respond(404 if number != "readyz" else 200, [], b"none")


@asynccontextmanager
async def witnessing() -> AsyncIterator[Witness]:
    witness = Witness()
    server = HttpServer(
        witness.serve,
        on_bad_request=lambda exchange, _: exchange.respond(400, [], b"no") if not exchange.started else None,
        limits=ServerLimits(header_timeout_s=0.5, body_idle_s=0.5, keep_alive_s=60),
    )
    witness.port = await server.listen("127.0.0.1", 0)
    try:
        yield witness
    finally:
        await server.close(1)
        await server.shut()


@dataclass(frozen=True)
class Told:
    """What a client got: the answers as (case, request), all statuses, and whether the connection ended."""

    answers: list[tuple[int, str]]
    statuses: list[int]
    closed: bool


def read_told(data: bytes, *, closed: bool) -> Told:
    answers = [(int(number), what.decode()) for number, what in _ANSWER.findall(data)]
    return Told(answers, [int(status) for status in _STATUS.findall(data)], closed)


async def tell(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, data: bytes, patience_s: float) -> Told:
    """Send it all, and read until the connection ends or nothing comes any more."""
    heard = bytearray()
    closed = False
    try:
        writer.write(data)
        async with asyncio.timeout(patience_s):
            while piece := await reader.read(65536):
                heard += piece
        closed = True
    except ConnectionError:
        closed = True
    except TimeoutError:
        pass
    finally:
        writer.transport.abort()
    return read_told(bytes(heard), closed=closed)
