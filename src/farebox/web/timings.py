"""A call in time: its attempts at upstreams, the wait and the answer. Pure geometry, in percent."""

from typing import Final

import msgspec

from farebox.books.log import LoggedCall

_MOST_TRIES: Final = 50


class Try(msgspec.Struct, frozen=True):
    """One attempt as it was kept (`usage.tries`)."""

    started_ms: int = 0
    took_ms: int = 0
    status: int | None = None
    error: str | None = None


class Span(msgspec.Struct, frozen=True):
    """One bar of the picture. `kind` is "wait", "failed" or "flow"; `x` and `width` are percent of the whole call."""

    what: str
    kind: str
    begin_us: int
    end_us: int
    result: str
    x: float
    width: float

    @property
    def took_us(self) -> int:
        return self.end_us - self.begin_us


_tries: Final = msgspec.json.Decoder(list[Try])


def spans_of(call: LoggedCall) -> list[Span]:
    """Lay out a call from its arrival to its end: attempts that failed, the wait for the first byte, the answer."""
    whole = max(call.duration_us, 1)

    def span(what: str, kind: str, begin_us: int, end_us: int, result: str) -> Span:
        begin, end = (min(max(0, at), whole) for at in (begin_us, end_us))
        return Span(what, kind, begin, max(begin, end), result, _percent(begin, whole), _percent(end - begin, whole))

    found: list[Span] = []
    tries = tries_of(call)
    sent_us = 0
    for number, one in enumerate(tries, 1):
        begin_us, end_us = one.started_ms * 1000, (one.started_ms + one.took_ms) * 1000
        if number == 1 and begin_us >= 1000:
            found.append(span("Let in", "wait", 0, begin_us, "authenticated, held"))
        sent_us = begin_us
        is_last = number == len(tries)
        if is_last and call.first_byte_us is not None and one.error is None and (one.status or 200) < 400:
            break
        sent_us = end_us
        result = f"HTTP {one.status}" if one.status is not None else _word(one.error)
        found.append(span(f"Attempt {number}", "failed", begin_us, end_us, result))
    if call.first_byte_us is None:
        if not tries:
            found.append(span("Without an answer", "failed", 0, call.duration_us, "nothing came"))
        return found
    attempt = f"Attempt {len(tries)}, waiting" if len(tries) > 1 else "Waiting"
    found.append(span(attempt, "wait", sent_us, call.first_byte_us, "to the first byte"))
    found.append(span("Answer", "flow", call.first_byte_us, call.duration_us, "streamed" if call.streamed else "read"))
    return found


def tries_of(call: LoggedCall) -> list[Try]:
    """Read the attempts of a call, where more was kept of them than their number."""
    if call.tries is None:
        return []
    try:
        return _tries.decode(call.tries)[:_MOST_TRIES]
    except msgspec.DecodeError:
        return []


def _word(error: str | None) -> str:
    """Write the kind of an error as words: "ConnectFailed" as "connect failed"."""
    name = error or "failed"
    return "".join(f" {char.lower()}" if char.isupper() else char for char in name).strip()


def _percent(part: int, whole: int) -> float:
    return round(100 * max(0, part) / whole, 3)
