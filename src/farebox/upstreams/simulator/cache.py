"""The prompt cache: prefixes seen, by hash, with their life; tells input read from written and plain."""

import hashlib
from typing import Any, Final

import msgspec

from farebox.clock import US_PER_S
from farebox.upstreams.simulator.ask import Ask, base_tokens, piece_tokens, walk

MINIMUM_TOKENS: Final = 512
_TTL_US: Final = {"5m": 300 * US_PER_S, "1h": 3600 * US_PER_S}
_ENTRIES: Final = 10_000


class Input(msgspec.Struct, frozen=True):
    """How the tokens of a prompt are charged."""

    plain: int
    write_5m: int = 0
    write_1h: int = 0
    read: int = 0

    @property
    def total(self) -> int:
        return self.plain + self.write_5m + self.write_1h + self.read


class PromptCache:
    """A bounded table of prefix hashes. A hit is the longest prefix seen, and renews it."""

    def __init__(self) -> None:
        self._expires_us: dict[bytes, int] = {}
        self._ttl: dict[bytes, str] = {}

    def classify(self, ask: Ask, now_us: int) -> Input:
        """Split a prompt into read, written and plain input, and remember what was written."""
        fields = ask.fields
        at = base_tokens(fields)
        if b"cache_control" not in ask.body:
            return Input(at + sum(piece_tokens(kind, block) for kind, block in walk(fields)))
        running = hashlib.sha256(ask.model.id.encode())
        marks: list[tuple[bytes, int, str]] = []
        read_to = 0
        found = b""
        for kind, block in walk(fields):
            at += piece_tokens(kind, block)
            bare = {name: value for name, value in block.items() if name != "cache_control"}
            running.update(kind.encode() + msgspec.json.encode(bare))
            digest = running.digest()
            if self._expires_us.get(digest, 0) > now_us:
                read_to, found = at, digest
            if kind != "head" and block.get("cache_control"):
                marks.append((digest, at, _ttl(block["cache_control"])))
        if fields.get("cache_control"):
            marks.append((running.digest(), at, _ttl(fields["cache_control"])))
        if found:
            self._remember(found, self._ttl[found], now_us)
        written = {"5m": 0, "1h": 0}
        covered = read_to
        for digest, end, ttl in marks:
            if end <= covered or end < MINIMUM_TOKENS:
                continue
            written[ttl] += end - covered
            covered = end
            self._remember(digest, ttl, now_us)
        return Input(at - covered, written["5m"], written["1h"], read_to)

    def _remember(self, digest: bytes, ttl: str, now_us: int) -> None:
        self._expires_us.pop(digest, None)
        self._expires_us[digest] = now_us + _TTL_US[ttl]
        self._ttl[digest] = ttl
        if len(self._expires_us) > _ENTRIES:
            oldest = next(iter(self._expires_us))
            del self._expires_us[oldest], self._ttl[oldest]


def _ttl(cache_control: Any) -> str:
    ttl = cache_control.get("ttl", "5m") if isinstance(cache_control, dict) else "5m"
    return "1h" if ttl == "1h" else "5m"
