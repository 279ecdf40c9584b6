"""Fields that are given twice are refused wherever money hangs on them: whoever reads the first where we read the
last sees another price, or a feature that is switched off.

The decoder hands keys over as objects that are each their own, so none hides another. Text is never looked at.
"""

from typing import Any, Final

import msgspec

from farebox.errors import InvalidRequest

_CROWD_BYTES: Final = 2**20
_CROWD: Final = 1_000_000
_TELLING: Final = (b'"source"', b'"cache_control"', b"\\u00")
_TELLING_TOOLS: Final = (b"_20", b"mcp_toolset", b'"cache_control"', b"\\u00")
"""What stands in tools that are more than a name and a schema: a dated type, or an escaped letter that may hide one."""


class _Name:
    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text


def _own(_: type, text: str) -> _Name:
    return _Name(text)


_fields: Final = msgspec.json.Decoder(dict[_Name, msgspec.Raw], dec_hook=_own)
_items: Final = msgspec.json.Decoder(list[msgspec.Raw])


def refuse_crowds(body: bytes) -> None:
    """Refuse a large body of countless tiny values, which would keep everybody waiting while it is looked through.

    No model's context holds so many: what fills large bodies is embedded data.
    """
    if len(body) > _CROWD_BYTES and max(body.count(b"{"), body.count(b"["), body.count(b'"') // 4) > _CROWD // 4:
        raise InvalidRequest(f"the body holds more than {_CROWD // 4} objects or lists, or {_CROWD} strings; send less")


def refuse_duplicates(body: bytes) -> None:
    """Refuse a Messages body, already found valid, that gives twice what its cost depends on."""
    for name, value in _once(body).items():
        raw = bytes(value)
        match name:
            case "messages" if _tells(raw, _TELLING):
                for message in _list(raw):
                    _check_blocks(bytes(_once(bytes(message)).get("content", b"")))
            case "system" if _tells(raw, _TELLING):
                _check_blocks(raw)
            case "tools" if _tells(raw, _TELLING_TOOLS):
                for tool in _list(raw):
                    _check_inside(_once(bytes(tool)), "cache_control")
            case "thinking" | "cache_control" | "output_config":
                _once(raw)
            case _:
                pass


def _check_blocks(raw: bytes) -> None:
    for block in _list(raw):
        fields = _once(bytes(block))
        _check_inside(fields, "source", "cache_control")
        for inner in ("content", "source"):
            value = bytes(fields.get(inner, b""))
            _check_blocks(bytes(_once(value).get("content", b"")) if inner == "source" else value)


def _check_inside(fields: dict[str, Any], *names: str) -> None:
    for name in names:
        if name in fields:
            _once(bytes(fields[name]))


def _once(raw: bytes) -> dict[str, Any]:
    """Give an object's fields. Raises InvalidRequest when one is given twice; anything but an object has none."""
    if raw[:1] != b"{":
        return {}
    pairs = _fields.decode(raw)
    fields = {name.text: value for name, value in pairs.items()}
    if len(fields) < len(pairs):
        seen: set[str] = set()
        for name in pairs:
            if name.text in seen:
                raise InvalidRequest(f"{name.text[:100]}: the field is given twice; give it once")
            seen.add(name.text)
    return fields


def _list(raw: bytes) -> list[msgspec.Raw]:
    return _items.decode(raw) if raw[:1] == b"[" else []


def _tells(raw: bytes, signs: tuple[bytes, ...]) -> bool:
    return any(sign in raw for sign in signs)
