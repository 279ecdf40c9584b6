"""Money: what is shown is what is kept, to the last nano-dollar."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farebox.money import MAX_NANOS, decimal_usd, format_usd, parse_usd

amounts = st.integers(0, MAX_NANOS)


@given(amounts)
def test_an_amount_comes_back_from_its_text_exactly(nanos: int) -> None:
    assert parse_usd(format_usd(nanos)) == nanos
    assert parse_usd(decimal_usd(nanos)) == nanos


@given(st.integers(-MAX_NANOS, MAX_NANOS))
def test_a_shown_amount_is_the_exact_decimal_with_two_to_nine_decimals(nanos: int) -> None:
    text = format_usd(nanos).replace("$", "")
    assert Decimal(text) == Decimal(nanos) / 10**9
    decimals = text.partition(".")[2]
    assert 2 <= len(decimals) <= 9
    assert len(decimals) == 2 or not decimals.endswith("0")


@pytest.mark.parametrize(
    ("text", "nanos"),
    [("5", 5 * 10**9), ("0.25", 250_000_000), (" $1.50 ", 1_500_000_000), ("0.000000001", 1), ("007", 7 * 10**9)],
)
def test_plain_decimals_are_read(text: str, nanos: int) -> None:
    assert parse_usd(text) == nanos


@pytest.mark.parametrize(
    "text",
    ["", "-1", "+1", "1e3", "1,000", "1.", ".5", "0.0000000001", "٣", "1_0", "NaN", "$$1", "1 2", "9223372036.9"],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="amount"):
        parse_usd(text)
