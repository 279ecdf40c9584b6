"""The answer to a request as a value: its blocks, stop reason and usage, as one JSON or as a row of events.

Pure: no clock and no wire. What breaks on the wire is in stream.py.
"""

import base64
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import msgspec

from farebox.upstreams.simulator.ask import Ask, members, sign, text_tokens
from farebox.upstreams.simulator.cache import Input
from farebox.upstreams.simulator.knobs import Knobs
from farebox.upstreams.simulator.prose import answer_text, fits, hex_of, thinking_text

THINK_TOKENS: Final = 32
SEARCH_TOKENS: Final = 1_500
_encode: Final = msgspec.json.encode


class Event(NamedTuple):
    """Bytes of one server-sent event, and how many output tokens it takes to produce them."""

    tokens: int
    data: bytes


class Block(msgspec.Struct, frozen=True):
    """A content block: how it opens, the part that comes piece by piece, how it stands at the end."""

    opening: dict[str, Any]
    final: dict[str, Any]
    delta_type: str = ""
    member: str = ""
    text: str = ""
    tokens: int = 0
    signature: str = ""


class Answer(msgspec.Struct, frozen=True):
    id: str
    model: str
    blocks: list[Block]
    stop: dict[str, Any]
    usage_start: dict[str, Any] | None
    usage_final: dict[str, Any] | None
    extra: dict[str, Any]

    @property
    def tokens(self) -> int:
        return sum(block.tokens for block in self.blocks)


def plan(ask: Ask, knobs: Knobs, prompt: Input, message_id: str) -> Answer:
    """Decide the whole answer, within `max_tokens`."""
    blocks: list[Block] = []
    left = ask.max_tokens
    thinking = _thinking(ask, knobs, left)
    thought = 0
    if thinking is not None and knobs.refusal is None:
        blocks.append(thinking)
        thought = thinking.tokens
        left -= thought
    found = _searches(ask, knobs, message_id, left)
    searches = len(found) // 2
    blocks += found
    left -= sum(block.tokens for block in found)
    tool = None if searches or knobs.refusal is not None else _chosen_tool(ask, knobs)
    wanted = knobs.tokens if knobs.refusal is None else knobs.refusal
    text = f"I will use the tool {tool['name']}." if tool else _text(ask, knobs, wanted)
    text, stop = _stopped(text, ask.stop_sequences, len(text) if knobs.big_event else left)
    if knobs.refusal is not None:
        stop = _stop("refusal", details={"type": "refusal", "category": "cyber", "explanation": "Refused by a knob."})
    if text:
        spent = min(text_tokens(text), left)
        blocks.append(
            Block(
                {"type": "text", "text": ""},
                {"type": "text", "text": text},
                "text_delta",
                "text",
                text,
                spent,
            )
        )
        left -= spent
    if tool and stop["stop_reason"] == "end_turn":
        block, whole = _tool_use(tool, message_id, left)
        blocks.append(block)
        stop = _stop("tool_use" if whole else "max_tokens")
    if knobs.fallback:
        blocks.insert(0, _fallback(ask, knobs.fallback))
    output = sum(block.tokens for block in blocks)
    start, final = _usages(ask, knobs, prompt, output, thought, searches)
    extra: dict[str, Any] = {}
    if "context_management" in ask.fields:
        extra["context_management"] = {"applied_edits": []}
    return Answer(message_id, knobs.model_answered or ask.model.id, blocks, stop, start, final, extra)


def message(answer: Answer) -> dict[str, Any]:
    """Give the answer as one Message object."""
    body = _shell(answer) | {"content": [block.final for block in answer.blocks]} | answer.stop | answer.extra
    if answer.usage_final is not None:
        body["usage"] = answer.usage_final
    return body


def events(answer: Answer, knobs: Knobs) -> Iterator[Event]:
    """Give the answer as server-sent events, in the API's order."""
    opening = _shell(answer) | {
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "stop_details": None,
    }
    if answer.usage_start is not None:
        opening["usage"] = answer.usage_start
    yield Event(0, frame("message_start", {"type": "message_start", "message": opening}))
    if knobs.unknown_events:
        yield from _from_the_future()
    every = max(1, answer.tokens // max(1, knobs.pings))
    produced = pinged = 0
    for index, block in enumerate(answer.blocks):
        yield Event(0, frame("content_block_start", _at(index, "content_block_start", content_block=block.opening)))
        for event in _deltas(block, index, knobs):
            if pinged < knobs.pings and produced >= pinged * every:
                pinged += 1
                yield Event(0, PING)
            yield event
            produced += event.tokens
        yield Event(0, frame("content_block_stop", _at(index, "content_block_stop")))
    for _ in range(knobs.pings - pinged):
        yield Event(0, PING)
    yield from _message_deltas(answer, knobs)
    yield Event(0, frame("message_stop", {"type": "message_stop"}))


def frame(name: str, data: dict[str, Any]) -> bytes:
    """Write one server-sent event."""
    return b"event: %b\ndata: %b\n\n" % (name.encode(), _encode(data))


PING: Final = b'event: ping\ndata: {"type": "ping"}\n\n'


def _at(index: int, kind: str, **more: Any) -> dict[str, Any]:
    return {"type": kind, "index": index} | more


def _shell(answer: Answer) -> dict[str, Any]:
    return {"model": answer.model, "id": answer.id, "type": "message", "role": "assistant"}


_DELTA: Final = b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,"delta":{"type":"%b","%b":'


def _deltas(block: Block, index: int, knobs: Knobs) -> Iterator[Event]:
    if block.delta_type:
        head = _DELTA % (index, block.delta_type.encode(), block.member.encode())
        if block.member == "partial_json":
            yield Event(0, head + b'""}}\n\n')
        size = max(1, len(block.text)) if knobs.big_event else knobs.delta * 4
        left = block.tokens
        for start in range(0, len(block.text), size):
            piece = block.text[start : start + size]
            tokens = min(left, text_tokens(piece))
            left -= tokens
            yield Event(tokens, head + _encode(piece) + b"}}\n\n")
    if block.signature:
        unseen = 0 if block.delta_type else block.tokens
        delta = {"type": "signature_delta", "signature": block.signature}
        yield Event(unseen, frame("content_block_delta", _at(index, "content_block_delta", delta=delta)))


def _message_deltas(answer: Answer, knobs: Knobs) -> Iterator[Event]:
    total = knobs.many_deltas or 1
    for number in range(total):
        last = number == total - 1
        delta = answer.stop if last else {"stop_reason": None, "stop_sequence": None, "stop_details": None}
        body: dict[str, Any] = {"type": "message_delta", "delta": delta} | answer.extra
        if answer.usage_final is not None and knobs.no_usage != "delta":
            usage = dict(answer.usage_final)
            for fixed in ("cache_creation", "service_tier", "inference_geo", "speed"):
                usage.pop(fixed, None)
            if not last:
                usage["input_tokens"] -= GROWTH_TOKENS * (total - 1 - number)
                usage["output_tokens"] = usage["output_tokens"] * (number + 1) // total
            body["usage"] = usage
        data = frame("message_delta", body)
        if knobs.bad_json and last:
            data = data[:-9] + b"\n\n"
        yield Event(0, data)


GROWTH_TOKENS: Final = 100
"""By how much the input grows from one message_delta to the next under `many_deltas`."""


def _from_the_future() -> Iterator[Event]:
    yield Event(0, b": a comment, as proxies send them\n\n")
    usage = {"input_tokens": 99, "output_tokens": 99}
    yield Event(0, frame("future_event", {"type": "future_event", "usage": usage, "message": {"usage": usage}}))


def _thinking(ask: Ask, knobs: Knobs, budget: int) -> Block | None:
    wanted = knobs.hidden_think
    if wanted is None:
        wanted = knobs.think
    if wanted is None:
        wanted = THINK_TOKENS if ask.thinks else 0
    tokens = min(wanted, budget)
    if not tokens:
        return None
    hidden = knobs.hidden_think is not None or ask.hides_thinking
    text = "" if hidden else thinking_text(tokens)
    opening = {"type": "thinking", "thinking": "", "signature": ""}
    final = {"type": "thinking", "thinking": text, "signature": sign(text)}
    return Block(opening, final, "" if hidden else "thinking_delta", "thinking", text, tokens, sign(text))


def _text(ask: Ask, knobs: Knobs, wanted: int | None) -> str:
    if knobs.big_event:
        return answer_text(ask, knobs.big_event // 4 + 1, echo=False)[: knobs.big_event]
    wanted_format = members(ask.fields.get("output_config")).get("format") or ask.fields.get("output_format")
    schema = members(wanted_format).get("schema")
    if schema and wanted is None and not knobs.echo:
        return _encode(fits(schema)).decode()
    return answer_text(ask, wanted, echo=knobs.echo)


def _stop(reason: str, *, sequence: str | None = None, details: Any = None) -> dict[str, Any]:
    return {"stop_reason": reason, "stop_sequence": sequence, "stop_details": details}


def _stopped(text: str, stop_sequences: list[str], left: int) -> tuple[str, dict[str, Any]]:
    """Cut a text at the first stop sequence, or where the tokens run out."""
    stop = _stop("end_turn")
    found = [(at, sequence) for sequence in stop_sequences if (at := text.find(sequence)) >= 0]
    if found:
        at, sequence = min(found)
        text, stop = text[:at], _stop("stop_sequence", sequence=sequence)
    if text_tokens(text) > left:
        text, stop = text[: left * 4], _stop("max_tokens")
    elif left == 0:
        stop = _stop("max_tokens")
    return text, stop


def _chosen_tool(ask: Ask, knobs: Knobs) -> dict[str, Any] | None:
    """Pick the tool to call, if one is asked for. A tool_result is answered by text, so that loops end."""
    choice = ask.fields.get("tool_choice") or {}
    callable_tools = [tool for tool in ask.tools if tool.get("input_schema")]
    if not callable_tools or choice.get("type") == "none":
        return None
    if any(block.get("type") == "tool_result" for block in ask.last_blocks):
        return None
    wanted = choice.get("name") or knobs.tool
    named = [tool for tool in callable_tools if tool["name"] == wanted]
    mentioned = [tool for tool in callable_tools if f"use {tool['name']}" in ask.last_text]
    asked = bool(knobs.tool) or choice.get("type") in ("any", "tool") or "use the tool" in ask.last_text.lower()
    if asked or mentioned:
        return (named or mentioned or callable_tools)[0]
    return None


def _tool_use(tool: dict[str, Any], message_id: str, left: int) -> tuple[Block, bool]:
    given = fits(tool["input_schema"])
    given = given if isinstance(given, dict) else {}
    text = _encode(given).decode()
    whole = text_tokens(text) <= left
    text = text if whole else text[: left * 4]
    opening = {
        "type": "tool_use",
        "id": "toolu_sim_" + hex_of(message_id.encode(), size=20),
        "name": tool["name"],
        "input": {},
    }
    final = opening | {"input": given if whole else {}}
    return Block(opening, final, "input_json_delta", "partial_json", text, text_tokens(text)), whole


def _searches(ask: Ask, knobs: Knobs, message_id: str, left: int) -> list[Block]:
    """Make the web searches that are asked for, allowed by `max_uses` and within the tokens left."""
    wanted = ("search" in ask.last_text.lower()) if knobs.searches is None else knobs.searches
    allowed = 0
    for tool in ask.tools:
        if str(tool.get("type", "")).startswith("web_search_"):
            limit = tool.get("max_uses")
            allowed = max(0, limit) if isinstance(limit, int) else wanted
    blocks: list[Block] = []
    for number in range(min(wanted, allowed)):
        query, found = _search(ask, message_id, number)
        left -= query.tokens
        if left < 0:
            break
        blocks += (query, found)
    return blocks


def _search(ask: Ask, message_id: str, number: int) -> tuple[Block, Block]:
    use_id = "srvtoolu_sim_" + hex_of(message_id.encode(), b"%d" % number, size=20)
    query = _encode({"query": " ".join(ask.last_text.split())[:60]}).decode()
    opening = {"type": "server_tool_use", "id": use_id, "name": "web_search", "input": {}}
    final = opening | {"input": msgspec.json.decode(query)}
    use = Block(opening, final, "input_json_delta", "partial_json", query, text_tokens(query))
    found = {
        "type": "web_search_result",
        "title": "A page that the simulator made up",
        "url": "https://example.com/simulated",
        "encrypted_content": base64.b64encode(use_id.encode()).decode(),
        "page_age": None,
    }
    result = {"type": "web_search_tool_result", "tool_use_id": use_id, "content": [found]}
    return use, Block(result, result)


def _fallback(ask: Ask, model: str) -> Block:
    block = {
        "type": "fallback",
        "from": {"model": ask.model.id},
        "to": {"model": model},
        "trigger": {"type": "refusal", "category": None},
    }
    return Block(block, block)


def _usages(
    ask: Ask, knobs: Knobs, prompt: Input, output: int, thought: int, searches: int
) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Give the usage of message_start and the final one; the final replaces the first field by field."""
    plain = prompt.plain if knobs.usage_input is None else knobs.usage_input
    write_5m = prompt.write_5m if knobs.cache_write_5m is None else knobs.cache_write_5m
    write_1h = prompt.write_1h if knobs.cache_write_1h is None else knobs.cache_write_1h
    read = prompt.read if knobs.cache_read is None else knobs.cache_read
    output = min(output, ask.max_tokens) if knobs.usage_output is None else knobs.usage_output
    start: dict[str, Any] = {
        "input_tokens": plain,
        "cache_creation_input_tokens": write_5m + write_1h,
        "cache_read_input_tokens": read,
        "cache_creation": {"ephemeral_5m_input_tokens": write_5m, "ephemeral_1h_input_tokens": write_1h},
        "output_tokens": 1,
        "service_tier": knobs.tier or "standard",
        "inference_geo": knobs.geo or _geography(ask),
    }
    if knobs.speed or "speed" in ask.fields:
        fast = ask.fields.get("speed") == "fast" and ask.model.has_fast_mode
        start["speed"] = knobs.speed or ("fast" if fast else "standard")
    if knobs.unknown_usage is not None:
        start["hologram_input_tokens"] = knobs.unknown_usage
    grown = plain + searches * SEARCH_TOKENS + GROWTH_TOKENS * ((knobs.many_deltas or 1) - 1)
    final = start | {"input_tokens": grown, "output_tokens": output}
    if thought:
        final["output_tokens_details"] = {"thinking_tokens": thought}
    if searches:
        final["server_tool_use"] = {"web_search_requests": searches, "web_fetch_requests": 0}
    if knobs.fallback:
        _add_fallback(final, knobs.fallback)
    if knobs.iterations:
        _add_iterations(final)
    hidden = knobs.no_usage
    return (None if hidden in {"all", "start"} else start), (None if hidden == "all" else final)


def _geography(ask: Ask) -> str:
    asked = ask.fields.get("inference_geo")
    if isinstance(asked, str):
        return asked
    return "global" if ask.model.names_geography else "not_available"


def _hop(kind: str, usage: dict[str, Any], **more: Any) -> dict[str, Any]:
    classes = ("input_tokens", "output_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
    return {"type": kind} | {name: usage.get(name, 0) for name in classes} | more


def _add_fallback(final: dict[str, Any], model: str) -> None:
    """Let a first hop decline and a second, of another model, answer: the prompt is paid in both."""
    declined = _hop("message", final) | {"output_tokens": 0}
    prompt = final["input_tokens"] + final["cache_creation_input_tokens"] + final["cache_read_input_tokens"]
    served = _hop("fallback_message", {"input_tokens": prompt, "output_tokens": final["output_tokens"]}, model=model)
    final["iterations"] = [declined, served]
    final["input_tokens"] += prompt


def _add_iterations(final: dict[str, Any]) -> None:
    """Add a compaction and an advisor: tokens that are billed and not in the totals."""
    hops = final.get("iterations") or [_hop("message", final)]
    compaction = _hop("compaction", {"input_tokens": 1_800, "output_tokens": 350})
    advisor = _hop("advisor_message", {"input_tokens": 400, "output_tokens": 60}, model="claude-opus-5-5")
    final["iterations"] = [*hops, compaction, advisor]
