"""Streams of chat completions, put as streams of messages. Bytes in, bytes out, any split gives the same events.

Blocks of a message come one after the other, while chunks may interleave tool calls: what belongs to a later block
waits until the one before it is whole. A stream that its server does not finish is never finished here either.
"""

from collections import deque
from typing import Any, Final

import msgspec

from farebox.http.failures import BadAnswer
from farebox.upstreams.kinds.chat.faults import read_fault
from farebox.upstreams.kinds.chat.shapes import Call, Choice, call_id, message_id, read_chunk, stop_of, usage_of

_EVENT_BYTES: Final = 16 * 2**20
_WAITING_CHARS: Final = 16 * 2**20
_DONE: Final = b"[DONE]"
_PING: Final = b'event: ping\ndata: {"type": "ping"}\n\n'
_START: Final = b'event: content_block_start\ndata: {"type":"content_block_start","index":%d,"content_block":%b}\n\n'
_DELTA: Final = (
    b"event: content_block_delta\n"
    b'data: {"type":"content_block_delta","index":%d,"delta":{"type":"%b_delta","%b":%b}}\n\n'
)
_STOP: Final = b'event: content_block_stop\ndata: {"type":"content_block_stop","index":%d}\n\n'
_EMPTY: Final = {"text": b'{"type":"text","text":""}', "thinking": b'{"type":"thinking","thinking":"","signature":""}'}
_NAMES: Final = {"text": (b"text", b"text"), "thinking": (b"thinking", b"thinking")}
_encode: Final = msgspec.json.Encoder().encode


class Payloads:
    """Takes the data out of server-sent events (WHATWG HTML 9.2), and llama.cpp's errors out of fields of that name."""

    __slots__ = ("_carriage", "_data", "_size", "_tail")

    def __init__(self) -> None:
        self._tail = bytearray()
        self._data: list[bytes] = []
        self._size = 0
        """Of the data that waits for its event to end; a line without any counts as well."""
        self._carriage = False

    def feed(self, piece: bytes) -> list[bytes]:
        """Take bytes as they come; give the data of whole events. Raises BadAnswer for an event without end."""
        if self._carriage and piece:
            self._carriage = False
            piece = piece.removeprefix(b"\n")  # the second half of a line's end
        end = max(piece.rfind(b"\n"), piece.rfind(b"\r")) + 1
        if not end:
            self._tail += piece
            if len(self._tail) > _EVENT_BYTES:
                raise BadAnswer(f"a chunk of the upstream's is larger than {_EVENT_BYTES} bytes")
            return []
        self._carriage = piece.endswith(b"\r")
        lines = bytes(self._tail) + piece[:end] if self._tail else piece[:end]
        self._tail[:] = piece[end:]
        return self._read(lines)

    def rest(self) -> list[bytes]:
        """Give what the last event has, though no blank line ended it."""
        lines = bytes(self._tail) + b"\n\n"
        self._tail.clear()
        return self._read(lines)

    def _read(self, lines: bytes) -> list[bytes]:
        payloads: list[bytes] = []
        for line in lines.splitlines():
            if not line:
                if self._data:
                    payloads.append(b"\n".join(self._data).strip())
                    self._data, self._size = [], 0
            elif line.startswith(b"data:"):
                self._data.append(line[5:])
                self._size += len(line)
            elif line.startswith(b"error:"):
                payloads.append(b'{"error":%b}' % line[6:])
        if self._size > _EVENT_BYTES:
            raise BadAnswer(f"a chunk of the upstream's is larger than {_EVENT_BYTES} bytes")
        return payloads


class _ToolCall:
    """A tool call as far as it has come."""

    __slots__ = ("_pieces", "closed", "id", "name")

    def __init__(self, id_: str, name: str) -> None:
        self.id = id_
        self.name = name
        self._pieces: list[str] = []
        self.closed = False

    def add(self, piece: str) -> None:
        """Take a piece of its arguments. Pieces are put together only when somebody asks: there may be 100,000."""
        if piece:
            self._pieces.append(piece)

    @property
    def arguments(self) -> str:
        if len(self._pieces) > 1:
            self._pieces = ["".join(self._pieces)]
        return self._pieces[0] if self._pieces else ""

    @property
    def whole(self) -> bool:
        """Whether its arguments are a JSON object already."""
        if not self._pieces or not self.arguments.rstrip().endswith("}"):
            return False
        try:
            msgspec.json.decode(self.arguments)
        except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
            return False
        return True


class StreamDecoder:
    """A `Decoder` of one stream. `model` is what the message says it is of; `stops` were asked for as ends."""

    __slots__ = (
        "_blank", "_block", "_calls", "_ended", "_finishing", "_index", "_is_outrun", "_last", "_later", "_model",
        "_open", "_out", "_payloads", "_queue", "_reason", "_refused", "_started", "_stops", "_told", "_usage",
        "_waiting",
    )  # fmt: skip

    def __init__(self, model: str, stops: frozenset[str]) -> None:
        self._model = model
        self._stops = stops
        self._payloads = Payloads()
        self._out: list[bytes] = []
        self._started = self._ended = self._finishing = self._refused = False
        self._index = 0
        """Of the block that is open, or of the next one."""
        self._block = ""
        """The type of the open block; empty: none is."""
        self._open: _ToolCall | None = None
        self._blank = ""
        """White space that has come, which no block begins with."""
        self._calls: dict[int | str, _ToolCall] = {}
        self._last: _ToolCall | None = None
        self._queue: deque[_ToolCall] = deque()
        """Calls that wait for the one that is open to be whole."""
        self._later: list[tuple[str, str]] = []
        """Text and thinking that wait for it as well."""
        self._waiting = 0
        self._reason: str | None = None
        self._told: str | int | None = None
        self._usage: dict[str, Any] | None = None
        self._is_outrun = False
        """Whether more came after the last report of usage, which is then of a part alone."""

    def feed(self, data: bytes) -> bytes:
        try:
            for payload in [] if self._ended else self._payloads.feed(data):
                self._take(payload)
        except BadAnswer as error:
            self._fail({"message": str(error)})
        return self._taken()

    def end(self) -> bytes:
        if not self._ended:
            for payload in self._payloads.rest():
                self._take(payload)
            if not self._ended:
                self._finish()
        return self._taken()

    def whole(self, body: bytes) -> bytes:
        """Give the events of a completion that came as a whole. Raises BadAnswer."""
        self._take(body)
        return self.end()

    def _taken(self) -> bytes:
        taken = b"".join(self._out)
        self._out.clear()
        return taken

    def _take(self, payload: bytes) -> None:
        if self._ended or not payload:
            return
        if payload == _DONE:
            self._finish()
            return
        chunk = read_chunk(payload)
        fault = chunk.fault
        if fault is not None:
            self._fail(fault)
            return
        if chunk.usage:
            self._usage, self._is_outrun = usage_of(chunk.usage), False
        elif any(choice.says_more for choice in chunk.choices or ()):
            self._is_outrun = True
        if not self._started:
            self._start(chunk.id)
        for choice in chunk.choices or ():
            if choice.index == 0:
                self._choose(choice)

    def _start(self, id_: str | None) -> None:
        self._started = True
        none = {"input_tokens": 0, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0, "output_tokens": 0}
        message: dict[str, Any] = {
            "id": message_id(id_),
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": self._usage or none,
        }
        self._event("message_start", message=message)
        self._out.append(_PING)

    def _choose(self, choice: Choice) -> None:
        said = choice.delta or choice.message
        if said is not None:
            if thought := said.thought:
                self._say("thinking", thought)
            if text := said.text:
                self._say("text", text)
            if said.refusal:
                self._refused = True
                self._say("text", said.refusal)
            for call in said.calls:
                self._call(call)
        if choice.finish_reason:
            self._reason, self._told = choice.finish_reason, choice.stop_reason

    def _say(self, block: str, text: str) -> None:
        """Write text or thinking, in a block that never begins with nothing but white space."""
        if self._block != block:
            if not text.strip():
                self._blank += text if block == "text" else ""
                self._wait(text)
                return
            if self._is_held_up:
                self._later.append((block, text))
                self._wait(text)
                return
            self._turn(block)
            self._out.append(_START % (self._index, _EMPTY[block]))
            text = self._blank + text if block == "text" else text
            self._blank = ""
        self._out.append(_DELTA % (self._index, *_NAMES[block], _encode(text)))

    def _call(self, said: Call) -> None:
        written = said.function.written if said.function is not None else ""
        call = self._find(said)
        if call is None:
            name = said.function.name if said.function is not None else None
            if not name:
                raise BadAnswer("the upstream's tool call has no name")
            call = _ToolCall(call_id(said.id), name)
            if said.index is not None:
                self._calls[said.index] = call
            if said.id:
                self._calls[said.id] = call
            self._queue.append(call)
        self._last = call
        if call.closed and written.strip():
            raise BadAnswer("the upstream's tool call went on after its end")
        call.add(written)
        self._wait(written)
        if call is self._open and written:
            self._write_arguments(written)
        self._advance()

    def _find(self, said: Call) -> _ToolCall | None:
        """Find the call that a piece belongs to; None when it begins a new one.

        Pieces after the first may lack the id, or even the index. A name with an id that is new begins another call
        even under an index that was there (older Ollama).
        """
        named = said.function is not None and bool(said.function.name)
        if said.index is not None:
            call = self._calls.get(said.index)
        elif said.id:
            call = self._calls.get(said.id) or (None if named else self._last)
        else:
            call = None if named else self._last
        if call is not None and named and said.id and said.id not in self._calls:
            return None
        return call

    @property
    def _is_held_up(self) -> bool:
        """Whether a tool call is open that is not whole."""
        return self._open is not None and not self._finishing and not self._open.whole

    def _advance(self) -> None:
        """Open the calls that wait, as far as those before them are whole."""
        while self._queue and not self._is_held_up:
            call = self._queue.popleft()
            self._turn("tool_use")
            self._open = call
            block = {"type": "tool_use", "id": call.id, "name": call.name, "input": {}}
            self._out.append(_START % (self._index, _encode(block)))
            if call.arguments:
                self._write_arguments(call.arguments)

    def _write_arguments(self, written: str) -> None:
        self._out.append(_DELTA % (self._index, b"input_json", b"partial_json", _encode(written)))

    def _turn(self, block: str) -> None:
        """End the block that is open, for one of another kind; nothing: for none."""
        if self._block:
            self._out.append(_STOP % self._index)
            self._index += 1
            if self._open is not None:
                self._open.closed = True
                self._open = None
        if block != "text":
            self._blank = ""
        self._block = block

    def _wait(self, text: str) -> None:
        """Count what is kept: the arguments of all calls, and what waits."""
        self._waiting += len(text)
        if self._waiting > _WAITING_CHARS:
            raise BadAnswer(f"the upstream's tool calls are longer than {_WAITING_CHARS} characters")

    def _finish(self) -> None:
        """Write the end of the message. Raises BadAnswer when the server has not come to its own."""
        if self._reason is None:
            raise BadAnswer("the upstream's stream ended without a finish_reason")
        stop_reason, stop_sequence = stop_of(
            self._reason, self._told, self._stops, calls=self._last is not None, refused=self._refused
        )
        self._finishing = True
        self._advance()
        for block, text in self._later:
            self._say(block, text)
        self._turn("")
        delta: dict[str, Any] = {"stop_reason": stop_reason, "stop_sequence": stop_sequence}
        if self._usage is None or self._is_outrun:  # the meter takes it for broken: nothing is charged without usage
            self._event("message_delta", delta=delta)
        else:
            self._event("message_delta", delta=delta, usage=self._usage)
        self._event("message_stop")
        self._ended = True

    def _fail(self, error: Any) -> None:
        """Write the error that the stream ends with."""
        self._out.append(b"event: error\ndata: %b\n\n" % read_fault(error, 200).envelope)
        self._ended = True

    def _event(self, kind: str, **fields: Any) -> None:
        self._out.append(b"event: %b\ndata: %b\n\n" % (kind.encode(), _encode({"type": kind, **fields})))
