"""What the simulator says: sensible sentences that follow from the request, and values that fit a schema."""

import hashlib
from typing import Any, Final

from farebox.upstreams.simulator.ask import Ask, count_tokens, members
from farebox.upstreams.simulator.knobs import without_magic

_SENTENCES: Final = (
    "The bytes you are reading took the same path that a real answer takes.",
    "They were held for, metered, priced and settled before the last of them left.",
    "Point the gateway at a real upstream and this text is replaced by a model's.",
    "Nothing in your request was kept, and nothing of this answer will be.",
    "Each request of yours gets the same words again, which makes it easy to test against.",
    "The usage at the end of this message is exact: count four characters to a token.",
    "If you would like a longer answer, ask for one with a knob such as tokens=500.",
    "You can also ask for trouble: a cut stream, a stall, an overload, a refusal.",
    "A balance moves only by what the upstream reports, down to the nano-dollar.",
    "When you hang up in the middle, you pay for what had come, by a published rule.",
    "When the upstream breaks in the middle, you pay nothing at all.",
    "Streams come in small pieces so that you can watch the meter run.",
)
_THOUGHTS: Final = (
    "The user sent a request to a simulator, so I should be plain about what I am. ",
    "First I look at what was asked, then at how long the answer may be. ",
    "No model stands behind me; the words follow from the request alone. ",
    "A short and honest answer will do. ",
)
_QUOTE_CHARS: Final = 120
_SCHEMA_DEPTH: Final = 8
_MOST_ITEMS: Final = 20
_MOST_CHARS: Final = 10_000
_WORDS: Final = {
    "command": "echo simulated",
    "url": "https://example.com/",
    "uri": "https://example.com/",
    "date": "2026-11-22",
    "date-time": "2026-11-22T10:30:00Z",
    "email": "a@example.com",
}


def answer_text(ask: Ask, tokens: int | None, *, echo: bool) -> str:
    """Write the answer: of exactly `tokens` tokens when given, else as long as the request makes it."""
    said = without_magic(ask.last_text)
    if echo:
        text = said or "(nothing to echo)"
        return text if tokens is None else text[: tokens * 4]
    digest = hashlib.sha256(f"{len(ask.fields['messages'])} {ask.last_text}".encode()).digest()
    parts = [f"This is the Farebox simulator answering as {ask.fields['model']}; no model was asked. "]
    tool_said = _tool_results(ask)
    if tool_said:
        parts.append(f'The tool answered: "{_short(tool_said)}". ')
    if said:
        parts.append(f'You wrote: "{_short(said)}". ')
    images = sum(1 for block in ask.last_blocks if block.get("type") == "image")
    if images:
        parts.append(f"You also sent {images} image{'s' if images > 1 else ''}. ")
    parts.append(f"Your prompt is {count_tokens(ask.fields)} tokens long. ")
    size = sum(map(len, parts))
    at = digest[0]
    wanted = size + 4 * (24 + digest[1] % 64) if tokens is None else tokens * 4
    while size < wanted:
        sentence = _SENTENCES[at % len(_SENTENCES)] + ("\n\n" if at % 5 == 0 else " ")
        parts.append(sentence)
        size += len(sentence)
        at += 1
    text = "".join(parts)
    return text.rstrip() if tokens is None else text[: tokens * 4]


def thinking_text(tokens: int) -> str:
    """Write thoughts of exactly so many tokens."""
    lap = "".join(_THOUGHTS)
    return (lap * (tokens * 4 // len(lap) + 1))[: tokens * 4]


def _tool_results(ask: Ask) -> str:
    said = []
    for block in ask.last_blocks:
        if block.get("type") == "tool_result":
            content = block.get("content", "")
            if isinstance(content, str):
                said.append(content)
            said += [str(members(inner).get("text", "")) for inner in _items(content)]
    return " ".join(said)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _QUOTE_CHARS else line[: _QUOTE_CHARS - 1] + "\u2026"


def fits(schema: Any, name: str = "", *, depth: int = 0, root: Any = None) -> Any:
    """Make a value that fits a JSON Schema, roughly: types, required members, enums, references, bounds."""
    root = schema if root is None else root
    if not isinstance(schema, dict) or depth > _SCHEMA_DEPTH:
        return None
    for given in ("const", "default"):
        if given in schema:
            return schema[given]
    for given in ("enum", "examples"):
        if _items(schema.get(given)):
            return schema[given][0]
    if "$ref" in schema:
        return fits(_resolve(str(schema["$ref"]), root), name, depth=depth + 1, root=root)
    for given in ("anyOf", "oneOf", "allOf"):
        if _items(schema.get(given)):
            return fits(schema[given][0], name, depth=depth + 1, root=root)
    kinds = schema.get("type", "object" if "properties" in schema else "string")
    kind = kinds if isinstance(kinds, str) else next(iter(_items(kinds)), "string")
    if kind == "object":
        inner = members(schema.get("properties"))
        wanted = [str(key) for key in _items(schema.get("required"))] or list(inner)
        return {key: fits(inner.get(key, {}), key, depth=depth + 1, root=root) for key in wanted}
    if kind == "array":
        count = max(1, _size(schema, "minItems", 1, _MOST_ITEMS))
        return [fits(schema.get("items", {}), name, depth=depth + 1, root=root) for _ in range(count)]
    if kind in ("integer", "number"):
        return _bound(schema, "minimum", _bound(schema, "maximum", 42))
    if kind in ("boolean", "null"):
        return True if kind == "boolean" else None
    return _string(schema, name)


def _string(schema: dict[str, Any], name: str) -> str:
    text = _WORDS.get(str(schema.get("format", name)), _WORDS.get(name, f"simulated {name}".strip()))
    text = text.ljust(_size(schema, "minLength", 0, _MOST_CHARS), "x")
    return text[: _size(schema, "maxLength", len(text), _MOST_CHARS)]


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _size(schema: dict[str, Any], name: str, default: int, most: int) -> int:
    return min(max(0, _bound(schema, name, default)), most)


def _bound(schema: dict[str, Any], name: str, default: int) -> int:
    """Give a bound of a schema, if it is a whole number."""
    value = schema.get(name)
    return value if isinstance(value, int) else default


def _resolve(reference: str, root: Any) -> Any:
    found = root
    for step in reference.removeprefix("#/").split("/"):
        found = found.get(step) if isinstance(found, dict) else None
    return found


def hex_of(*parts: bytes, size: int) -> str:
    """Derive an identifier's digits from what it stands for."""
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:size]
