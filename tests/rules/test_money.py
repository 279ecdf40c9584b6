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


@pytest.mark.parametrize(
    ("nanos", "shown"),
    [
        (0, "0.00"),
        (1, "0.000000001"),
        (1_500_000_000, "1.50"),
        (-100_000_000, "-0.10"),
        (MAX_NANOS, "9223372036.854775807"),
    ],
)
def test_amounts_are_shown_as_people_and_as_machines_write_them(nanos: int, shown: str) -> None:
    assert decimal_usd(nanos) == shown
    assert format_usd(nanos) == ("-$" + shown[1:] if nanos < 0 else "$" + shown)


def test_the_largest_amount_is_read_and_no_larger_one() -> None:
    assert parse_usd("9223372036.854775807") == MAX_NANOS
    with pytest.raises(ValueError, match="at most"):
        parse_usd("9223372036.854775808")
