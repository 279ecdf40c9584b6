"""Ether's payments as intervals of an address's total: what they may never do, for any numbers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farebox.payments.intervals import Span, interval, interval_ident, missing, overlaps

ALICE = "0x9858EfFD232B4033E47d90003D41EC34EcaEda94"
BOB = "0x6Fac4D18c912343BF86fa7049364Dd4E424Ab9C0"
totals = st.integers(0, 40)
spans = st.tuples(st.integers(0, 40), st.integers(1, 12)).map(lambda one: (one[0], one[0] + one[1]))


def disjoint(drawn: list[Span]) -> list[Span]:
    kept: list[Span] = []
    for span in drawn:
        if not any(wei(span) & wei(other) for other in kept):
            kept.append(span)
    return kept


def wei(span: Span) -> set[int]:
    return set(range(*span))


@given(spans, spans)
def test_intervals_of_an_address_overlap_when_they_share_any_wei(one: Span, other: Span) -> None:
    first, second = interval_ident(ALICE, *one), interval_ident(ALICE.lower(), *other)
    assert overlaps(first, second) is bool(wei(one) & wei(other))
    assert overlaps(second, first) is overlaps(first, second)
    assert not overlaps(first, interval_ident(BOB, *other))
    assert interval(first) == (ALICE, *one)


@pytest.mark.parametrize(
    "ident",
    [
        "4a5e1e4baab89f3a32518a88c31bc87f618f76673e2cc77ab2127b7afdeda33b:0",
        "0x4a5e1e4baab89f3a32518a88c31bc87f618f76673e2cc77ab2127b7afdeda33b:0",
        f"{ALICE}:0-0",
        f"{ALICE}:5-3",
        f"{ALICE}:-3",
        f"{ALICE}:01-3",
        f"{ALICE}:0-3\n",
        "Lx8mC3gaDwkqvHs9fRZ1dU:BTC-CHAIN:4a5e1e4baab89f3a32518a88c31bc87f618f76673e2cc77ab2127b7afdeda33b-0",
        "",
    ],
)
def test_a_payment_of_another_kind_overlaps_nothing_not_even_itself(ident: str) -> None:
    assert interval(ident) is None
    assert not overlaps(ident, ident)
    assert not overlaps(ident, f"{ALICE}:0-3")


@given(totals, st.lists(spans).map(disjoint), st.lists(spans))
def test_what_is_missing_of_a_total_covers_it_once_and_no_more(
    total: int, standing: list[Span], gone: list[Span]
) -> None:
    found = missing(total, standing, gone)
    assert disjoint(standing + found) == standing + found
    covered = set().union(*map(wei, standing + found))
    assert set(range(total)) <= covered
    assert set().union(*map(wei, found)) <= set(range(total))
    assert missing(total, standing + found, gone) == []


@given(st.lists(spans).map(disjoint), st.lists(spans).map(disjoint))
def test_payments_that_have_gone_come_back_as_they_were(standing: list[Span], gone: list[Span]) -> None:
    total = max((end for _, end in standing + gone), default=0)
    free = [one for one in gone if not any(wei(one) & wei(other) for other in standing)]
    assert set(free) <= set(missing(total, standing, gone))
