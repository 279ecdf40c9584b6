"""Ether's payments as intervals of what an address has received in all: "0x…:FROM-TO", in wei.

Intervals that count never overlap, so the same ether is never credited twice; those of an address that lie end to end
from 0 say what of its balance is known.
"""

import re
from collections.abc import Iterable
from typing import Final

Span = tuple[int, int]
"""From, to: wei of an address's total."""

_IDENT: Final = re.compile(r"(0x[0-9a-fA-F]{40}):(0|[1-9][0-9]*)-([1-9][0-9]*)")


def interval_ident(address: str, start: int, end: int) -> str:
    """Name the payment that has raised an address's total from one number of wei to another."""
    return f"{address}:{start}-{end}"


def interval(ident: str) -> tuple[str, int, int] | None:
    """Read the name of such a payment: address, from, to. None for payments of any other kind."""
    read = _IDENT.fullmatch(ident)
    if read is None:
        return None
    start, end = int(read[2]), int(read[3])
    return (read[1], start, end) if start < end else None


def overlaps(one: str, other: str) -> bool:
    """Tell whether two payments are intervals of the same address that share any wei.

    Names of payments that are no intervals never do, not even with themselves.
    """
    first, second = interval(one), interval(other)
    if first is None or second is None or first[0].lower() != second[0].lower():
        return False
    return first[1] < second[2] and second[1] < first[2]


def missing(total: int, standing: Iterable[Span], gone: Iterable[Span] = ()) -> list[Span]:
    """Give what of a total no standing interval covers, as intervals: the payments that have to be made of it.

    Where intervals that have gone fit in, in the order they are given, they come back as they were: the same money,
    mined again, is the same payment again.
    """
    left = _uncovered(total, standing)
    found: list[Span] = []
    for start, end in gone:
        for index, (begin, stop) in enumerate(left):
            if begin <= start < end <= stop:
                left[index : index + 1] = [piece for piece in ((begin, start), (end, stop)) if piece[0] < piece[1]]
                found.append((start, end))
                break
    return sorted(found + left)


def _uncovered(total: int, standing: Iterable[Span]) -> list[Span]:
    spans: list[Span] = []
    covered = 0
    for start, end in sorted(standing):
        if covered < min(start, total):
            spans.append((covered, min(start, total)))
        covered = max(covered, end)
    if covered < total:
        spans.append((covered, total))
    return spans
