"""The meter: reads usage beside a stream of server-sent events, without changing a byte of it. No IO, no clock.

Whole events pass through as they came. The last ones (`message_delta` with the final usage, `message_stop`) are held
back until the charge is durable (promise 1). Only events that matter for money are parsed; text is counted, not kept.
Any split of the bytes gives the same events (WHATWG HTML 9.2, "server-sent events").
"""

import re
from typing import Any, Final

import msgspec

from farebox.billing.usage import WireUsage, merge_usage
from farebox.http.surrogates import without_halves

EVENT_BYTES: Final = 16 * 2**20
"""The largest event accepted; a longer one is a broken answer."""

TEXT_BYTES: Final = 128 * 1024
"""The longest text that is remembered to be counted: some 40,000 tokens."""

_BOUNDARY: Final = re.compile(rb"\n\n|\n\r\n|\r\r|\n\r(?!\n)")
"""A line's end and a blank line, whatever ends each. A CR after LF is known for an end once the next byte is there."""
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
_VISIBLE: Final = re.compile(rb'"(?:text|thinking|partial_json)": ?"([^"\\\r\n]*(?:\\[^\r\n][^"\\\r\n]*)*)"')
"""Never past the end of a line: what is no JSON would else be counted by how it was cut."""
_METERED: Final = frozenset({b"message_start", b"message_delta", b"message_stop", b"error"})
_decode: Final = msgspec.json.Decoder().decode


class Meter:
    """Bytes in, bytes out; what was learned on the way is in the attributes."""

    __slots__ = (
        "_held", "_tail", "broken", "error", "error_event", "events_seen", "finished", "message_id", "model", "started",
        "stop_reason", "text", "usage", "usage_is_final", "visible_bytes",
    )  # fmt: skip

    def __init__(self) -> None:
        self.started = False
        """message_start has been seen: model, id and input usage are known."""
        self.finished = False
        """message_stop has been seen; it and the final usage wait in `held`."""
        self.broken: str | None = None
        """Why the stream cannot be trusted any further."""
        self.error: dict[str, Any] | None = None
        """The upstream's own `error` event."""
        self.error_event = b""
        self.events_seen = False
        self.model = ""
        self.message_id: str | None = None
        self.stop_reason: str | None = None
        self.usage: WireUsage = {}
        self.usage_is_final = False
        self.visible_bytes = 0
        self.text = bytearray()
        """What was visible, as it stands in the events, for as long as it is short: to be counted, never kept."""
        self._tail = bytearray()
        self._held: list[bytes] = []

    @property
    def held(self) -> bytes:
        """The last events, kept back until the charge is durable."""
        return b"".join(self._held)

    def feed(self, data: bytes) -> bytes:
        """Take bytes as they come; give those that may go on now: whole events, never the last ones."""
        if self.finished or self.broken is not None or self.error is not None:
            return b""
        if self._tail or not data.endswith(b"\n\n"):
            data = self._whole_events(data)
            if not data:
                return b""
        self.events_seen = True
        texts = _VISIBLE.findall(data)
        if texts:
            text = b"".join(texts)
            self.visible_bytes += len(text)
            if self.visible_bytes <= TEXT_BYTES:
                self.text += text
        if self.started and not self._held and b"message_" not in data and b"error" not in data:
            return data
        return self._look(data)

    def _whole_events(self, data: bytes) -> bytes:
        """Cut off the unfinished event at the end and keep it for the next piece."""
        tail = self._tail
        seam = max(0, len(tail) - 3)
        tail += data
        ends = [at + 2 for mark in (b"\n\n", b"\r\r") if (at := tail.rfind(mark, seam)) >= 0]
        if (at := tail.rfind(b"\n\r", seam, len(tail) - 1)) >= 0:
            ends.append(at + 3 if tail.startswith(b"\n", at + 2) else at + 2)
        if not ends:
            if len(tail) > EVENT_BYTES:
                self.broken = f"an event is larger than {EVENT_BYTES} bytes"
            return b""
        end = max(ends)
        whole = bytes(tail[:end])
        del tail[:end]
        return whole

    def _look(self, data: bytes) -> bytes:
        """Go through whole events one by one, since one of them may matter."""
        passed: list[bytes] = []
        begin = 0
        for match in _BOUNDARY.finditer(data):
            event = data[begin : match.end()]
            begin = match.end()
            name, payload = _fields(event)
            if name in _METERED and not self.finished:
                self._meter(name, payload)
            elif not self.started and (name.startswith(b"content_block") or not (name or _says_nothing(event))):
                self.broken = "the stream does not begin with message_start"
            if self.broken is not None or self.error is not None:
                self.error_event = event
                return b"".join(passed)
            if self._held and name.startswith(b"content_block") and not self.finished:
                passed += self._held  # more content follows, so what was held was not the end
                self._held = []
            holding = self._held or self.finished or name == b"message_delta"
            (self._held if holding else passed).append(event)
        (self._held or passed).append(data[begin:])  # of three line ends in a row the last is no boundary
        return b"".join(passed)

    def _meter(self, name: bytes, payload: bytes) -> None:
        try:
            event = _read(payload)
            if name == b"message_start":
                if self.started:
                    self.broken = "the stream begins twice"
                    return
                message = event["message"]
                self.started = True
                self.model = str(message.get("model") or "")
                self.message_id = str(message.get("id") or "") or None
                self.usage = dict(message.get("usage") or {})
            elif not self.started and name != b"error":
                self.broken = "the stream does not begin with message_start"
            elif name == b"message_delta":
                if usage := event.get("usage"):
                    self.usage = merge_usage(self.usage, usage)
                    if usage.get("output_tokens") is not None:  # what message_start says of it is only a beginning
                        self.usage_is_final = True
                reason = (event.get("delta") or {}).get("stop_reason")
                self.stop_reason = str(reason) if reason else self.stop_reason
            elif name == b"message_stop":
                self.finished = True
            else:
                self.error = event if isinstance(event, dict) else {}
        except (msgspec.DecodeError, KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
            self.broken = f"the event {name.decode()} cannot be read: {type(error).__name__}"


def _read(payload: bytes) -> Any:
    try:
        return _decode(payload)
    except msgspec.DecodeError:
        readable = without_halves(payload)
        if readable is None:
            raise
        return _decode(readable)


def _says_nothing(event: bytes) -> bool:
    """Tell whether an event is made of comments and of fields without content alone."""
    event = event.removeprefix(_BYTE_ORDER_MARK)
    return all(not line or line.startswith((b":", b"id", b"retry")) for line in event.splitlines())


def _fields(event: bytes) -> tuple[bytes, bytes]:
    """Read the name and the data of one event; a nameless one is named by the type inside its data."""
    name = b""
    data: list[bytes] = []
    for line in event.removeprefix(_BYTE_ORDER_MARK).splitlines():
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"event":
            name = value
        elif field == b"data":
            data.append(value)
    payload = b"\n".join(data)
    if not name and payload:
        try:
            kind = _read(payload).get("type")
        except (msgspec.DecodeError, AttributeError, ValueError, RecursionError):
            kind = None
        spelled = kind.encode() if isinstance(kind, str) else b""
        name = spelled if spelled in payload else b""  # written with escapes it would be seen in some cuttings alone
    return name, payload
