"""Which files a request names, wherever it does: a file is another customer's unless it is known to be one's own.

All customers' files are in one upstream workspace, so every place that the API might read an id from counts, those
included that it adds tomorrow. Only what a model wrote for a customer's own tool, and the schemas of such tools, are
not looked into: they are data to the API.
"""

import json
import re
from collections.abc import Iterator
from typing import Any, Final

from farebox.errors import InvalidRequest
from farebox.gateway.ask import Asked

_MOST: Final = 100
"""Files in one request."""
_NAMES: Final = frozenset({"file_id", "file_ids"})
_PERHAPS: Final = re.compile(rb'"file_ids?"|\\u00(?:5f|6[4-69c]|73)', re.IGNORECASE)
"""One of the names as it stands, or an escape of a letter in them, which nobody needs."""


class _Pairs(list[tuple[str, Any]]):
    """A JSON object with all its fields: of those given twice neither is lost."""


def files_in(asked: Asked) -> set[str]:
    """Give the ids of all files that a request names. Raises InvalidRequest when there are too many."""
    found: set[str] = set()
    for name, value in asked.fields.items():
        raw = bytes(value)
        if name in _NAMES or ((b'"file_id' in raw or b"\\u00" in raw) and _PERHAPS.search(raw)):
            try:
                found |= set(_ids(_Pairs([(name, json.loads(raw, object_pairs_hook=_Pairs, parse_int=str))])))
            except RecursionError:
                raise InvalidRequest("the body is nested too deeply; at most 500 levels are read") from None
    if len(found) > _MOST:
        raise InvalidRequest(f"file_id: at most {_MOST} files in one request, got {len(found)}")
    return found


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
