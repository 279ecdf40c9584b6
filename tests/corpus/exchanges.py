"""The corpus: exchanges as plain files, read into values, and ways to put an answer on the wire. See README.md."""

import itertools
import random
import re
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from farebox.http.exchange import Headers

ROOT: Final = Path(__file__).parent
_MOST_PIECES: Final = 4000
_MOST_WRITES: Final = 12


class Metered(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The row of usage that an exchange must leave behind: names and figures as in the table."""

    kind: str = "exact"
    outcome: str = "finished"
    status: int = 0
    """0: the status that the client gets."""
    model: str = "claude-sonnet-4-6"
    upstream: str = "theirs"
    message_id: str = "msg_corpus"
    stop_reason: str = "end_turn"
    input_tokens: int = 0
    cache_write_5m_tokens: int = 0
    cache_write_1h_tokens: int = 0
    cache_read_tokens: int = 0
    output_tokens: int = 0
    web_searches: int = 0
    charged_nanos: int


class Exchange(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One exchange: what is asked, how the upstream answers, what the client must get and what must be metered."""

    shows: str
    metered: Metered
    ask: dict[str, Any] = {}
    """Fields of the request beyond, or instead of, the plain ones."""
    gets: str = "the same"
    """`the same`: the answer's body, byte for byte. `at least to message_stop`: what comes after that may be missing.
    `error TYPE`: an error of that type instead of it. `end TYPE`: its beginning, then an error event of that type."""
    status: int = 200
    ends_with: str = ""
    """`same`: the error event is the upstream's own, byte for byte."""
    headers: dict[str, str] = {}
    """What headers of the client's answer must be."""
    hidden: list[str] = []
    """What the client must not get to see, neither in the head nor in the body."""
    grow: dict[str, int] = {}
    """Marks in the body, and how many times their filling stands in their place: for what is too large for a file."""
    filled: dict[str, str] = {}
    """What a mark is filled with; "x" if nothing is said."""
    framed: bool = False
    """The file has its own framing; else one is put around the body."""
    stays_open: bool = False
    """The upstream does not close the connection."""
    name: str = ""
    head: bytes = b""
    body: bytes = b""

    @property
    def seen_body(self) -> bytes:
        """What the upstream said, out of its framing."""
        return _unframed(self.head, self.body) if self.framed else self.body


def names() -> list[str]:
    """Name every exchange by its path, without what it ends in."""
    return sorted(str(path.relative_to(ROOT / "answers").with_suffix("")) for path in ROOT.glob("answers/**/*.toml"))


def read(name: str) -> Exchange:
    path = ROOT / "answers" / f"{name}.http"
    exchange = msgspec.convert(tomllib.loads(path.with_suffix(".toml").read_text()), Exchange)
    exchange.name = name
    data = path.read_bytes()
    for mark, count in exchange.grow.items():
        data = data.replace(mark.encode(), exchange.filled.get(mark, "x").encode() * count)
    head, _, exchange.body = data.partition(b"\r\n\r\n")
    while re.match(rb"HTTP/1\.1 1\d\d ", head.rpartition(b"\r\n\r\n")[2]):  # an interim answer goes with the real one
        more, _, exchange.body = exchange.body.partition(b"\r\n\r\n")
        head += b"\r\n\r\n" + more
    exchange.head = head
    return exchange


def _unframed(head: bytes, body: bytes) -> bytes:
    """Take chunks apart (RFC 9112 7.1)."""
    if b"transfer-encoding: chunked" not in head:
        return body
    whole = b""
    while body:
        line, _, body = body.partition(b"\r\n")
        size = re.fullmatch(rb"([0-9a-fA-F]+)(;.*)?", line)
        if size is None or not int(size[1], 16):
            break
        end = int(size[1], 16)
        whole, body = whole + body[:end], body[end + 2 :]
    return whole


Cutting = Callable[[Exchange, random.Random], Sequence[bytes]]
"""A way to put an answer on the wire: what is written at once, piece by piece."""


def in_one_piece(exchange: Exchange, _: random.Random) -> Sequence[bytes]:
    """Give head and body in one write, with a length."""
    if exchange.framed:
        return [exchange.head + b"\r\n\r\n" + exchange.body]
    return [exchange.head + b"\r\ncontent-length: %d\r\n\r\n" % len(exchange.body) + exchange.body]


def byte_by_byte(exchange: Exchange, _: random.Random) -> Sequence[bytes]:
    """Give every byte as a chunk of its own; of large bodies a few at a time."""
    if exchange.framed:
        return [bytes([byte]) for byte in exchange.head + b"\r\n\r\n" + exchange.body]
    size = 1 + len(exchange.body) // _MOST_PIECES
    pieces = [exchange.body[at : at + size] for at in range(0, len(exchange.body), size)]
    return [_chunked(exchange.head, pieces)]


def by_the_line(exchange: Exchange, _: random.Random) -> Sequence[bytes]:
    """Give every line for itself, with no end but that of the connection."""
    if exchange.framed:
        return (exchange.head + b"\r\n\r\n" + exchange.body).splitlines(keepends=True)
    return [exchange.head + b"\r\nconnection: close\r\n\r\n", *exchange.body.splitlines(keepends=True)]


def at_random(exchange: Exchange, choices: random.Random) -> Sequence[bytes]:
    """Give chunks cut anywhere, in writes cut anywhere else."""
    if exchange.framed:
        return split(exchange.head + b"\r\n\r\n" + exchange.body, choices, _MOST_WRITES)
    pieces = split(exchange.body, choices, 1 + choices.randrange(200))
    return split(_chunked(exchange.head, pieces), choices, _MOST_WRITES)


CUTTINGS: Final[tuple[Cutting, ...]] = (in_one_piece, byte_by_byte, by_the_line, at_random)


def split(data: bytes, choices: random.Random, cuts: int) -> list[bytes]:
    places = sorted({0, *(choices.randint(0, len(data)) for _ in range(cuts)), len(data)})
    return [data[begin:end] for begin, end in itertools.pairwise(places)]


def _chunked(head: bytes, pieces: Sequence[bytes]) -> bytes:
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces if piece)
    return head + b"\r\ntransfer-encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"


def plain_head(headers: Headers) -> bytes:
    """Write headers as lines, to look for words in them."""
    return b"\n".join(name + b": " + value for name, value in headers)
