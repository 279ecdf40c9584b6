"""Which files a request names, wherever it does: a file is another customer's unless it is known to be one's own.

All customers' files are in one upstream workspace, so every place that the API might read an id from counts, those
included that it adds tomorrow. Only what a model wrote for a customer's own tool, and the schemas of such tools, are
not looked into: they are data to the API.
"""

import json
import re
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from farebox.errors import InvalidRequest
from farebox.gateway.ask import Asked
from farebox.gateway.duplicates import read_pairs

_MOST: Final = 100
"""Files in one request."""
_NAMES: Final = frozenset({"file_id", "file_ids"})
_ESCAPED: Final = re.compile(rb"\\u00(?:5[fF]|6[4-69cC]|73)")
"""An escape of a letter in one of the names, which nobody needs."""
_LONGEST_TYPE: Final = 100
_LOOKS: Final = 6
"""So many times the bytes of a field are looked through on the way down to its files, before it is read whole."""
_SMALL_BYTES: Final = 2**12
_CROWD: Final = 1_000
"""What is small, or has so many things in it that may name files, is read whole at once."""
_list: Final = msgspec.json.Decoder(list[msgspec.Raw])


class _Pairs(list[tuple[str, Any]]):
    """A JSON object with all its fields: of those given twice neither is lost."""


def files_in(asked: Asked) -> set[str]:
    """Give the ids of all files that a request names. Raises InvalidRequest when there are too many."""
    found: set[str] = set()
    for name, value in asked.fields.items():
        try:
            found |= set(_ids_in(name, bytes(value)))
        except RecursionError:
            raise InvalidRequest("the body is nested too deeply; at most 500 levels are read") from None
    if len(found) > _MOST:
        raise InvalidRequest(f"file_id: at most {_MOST} files in one request, got {len(found)}")
    return found


def _ids_in(name: str, raw: bytes) -> Iterator[str]:
    """Go down to where files are named, past all that names none: bodies are large, what names files is small."""
    left = [(name, raw)] if name in _NAMES or _may_name(raw) else []
    to_look = _LOOKS * len(raw)
    while left:
        name, raw = left.pop()
        to_look -= len(raw)
        inner = _inside(raw) if to_look > 0 and len(raw) > _SMALL_BYTES and name not in _NAMES else None
        if inner is None:
            yield from _ids(_Pairs([(name, json.loads(raw, object_pairs_hook=_Pairs, parse_int=str))]))
        else:
            left += inner


def _may_name(raw: bytes) -> bool:
    return b'"file_id' in raw or (b"\\u00" in raw and _ESCAPED.search(raw) is not None)


def _inside(raw: bytes) -> list[tuple[str, bytes]] | None:
    """Take a value apart, one level deep, less what names no files; None where it is to be read whole."""
    try:
        if raw.startswith(b"["):
            inner = [("", whole) for value in _list.decode(raw) if _may_name(whole := bytes(value))]
        elif raw.startswith(b"{"):
            pairs = read_pairs(raw)
            of_a_tool = [_text(value) for name, value in pairs if name == "type"] == ["tool_use"]
            inner = [
                (name, whole)
                for name, value in pairs
                if name != "input_schema" and not (of_a_tool and name == "input")
                if _may_name(whole := bytes(value)) or name in _NAMES
            ]
        else:
            inner = []
    except msgspec.DecodeError:
        return None
    return inner if len(inner) <= _CROWD else None


def _text(value: msgspec.Raw) -> Any:
    return json.loads(bytes(value)) if len(value) < _LONGEST_TYPE else None


def _ids(value: Any) -> Iterator[str]:
    left = [value]
    while left:
        one = left.pop()
        if isinstance(one, _Pairs):
            of_a_tool = [inner for name, inner in one if name == "type"] == ["tool_use"]
            for name, inner in one:
                if name in _NAMES:
                    yield from _texts(name, inner)
                elif name != "input_schema" and not (of_a_tool and name == "input"):
                    left.append(inner)
        elif isinstance(one, list):
            left.extend(one)


def _texts(name: str, value: Any) -> Iterator[str]:
    values = value if isinstance(value, list) and not isinstance(value, _Pairs) else [value]
    for one in values:
        if isinstance(one, str):
            yield one
        elif one is not None:
            raise InvalidRequest(f"{name}: the id of a file is a text")
