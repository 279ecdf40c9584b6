"""Results of a native batch on their way to its customer: a line for each item, once, and as it was settled."""

from collections.abc import Iterator, Mapping
from typing import Final

import msgspec

from farebox.gateway.batches.native import read_line
from farebox.gateway.batches.records import Item
from farebox.gateway.whole import operators_own
from farebox.http.failures import BadAnswer

_NO_RESULT: Final = (
    b'{"type":"errored","error":{"type":"error","error":{"type":"api_error","message":"the upstream gave no result of '
    b'this item that can be used; nothing was charged: send it again"}}}'
)


class Told:
    """What has been told of the items of a batch."""

    def __init__(self, items: Mapping[str, Item]) -> None:
        self._left = dict(items)

    def line(self, line: bytes) -> bytes:
        """Give a line as it came, if its item was settled as it says; nothing for one that nobody can read.

        Raises BadAnswer for one that was charged and has no answer now: better no results than wrong ones.
        """
        if not line.strip():
            return b""
        try:
            found = read_line.decode(line)
        except msgspec.DecodeError:
            return b""
        item = self._left.pop(found.custom_id, None)
        if item is None:
            return b""
        result = found.result
        if result.type != item.state:
            return without_result(item)
        if result.type == "errored" and operators_own(bytes(result.error)):
            return without_result(item)
        return line if line.endswith(b"\n") else line + b"\n"

    def missing(self) -> Iterator[Item]:
        """Give the items that no line was about."""
        yield from self._left.values()


def without_result(item: Item) -> bytes:
    """Give the line of an item whose result is not what it was settled by. Raises BadAnswer if it was charged."""
    if item.state == "succeeded":
        raise BadAnswer("the upstream does not give a result any more that it gave before")
    result = b'{"type":"%b"}' % item.state.encode() if item.state in {"canceled", "expired"} else _NO_RESULT
    return b'{"custom_id":"%b","result":%b}\n' % (item.custom_id.encode(), result)
