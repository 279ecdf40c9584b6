"""Money: integers of nano-dollars (10⁻⁹ USD). No float comes near it, in or out."""

import re
from decimal import Decimal

NANOS_PER_USD = 1_000_000_000
MAX_NANOS = 2**63 - 1
"""The largest amount a 64-bit column holds: $9,223,372,036.85."""

_USD = re.compile(r"\d{1,10}(\.\d{1,9})?", re.ASCII)


def parse_usd(text: str) -> int:
    """Turn a plain decimal dollar amount ("5", "0.25") into nano-dollars, exactly.

    Raises ValueError for signs, exponents, separators, more than nine decimals or an amount past 64 bits.
    """
    cleaned = text.strip().removeprefix("$")
    if not _USD.fullmatch(cleaned):
        raise ValueError(f"an amount is a plain decimal such as 5.00 with at most 9 decimals, got {text!r}")
    nanos = int(Decimal(cleaned) * NANOS_PER_USD)
    if nanos > MAX_NANOS:
        raise ValueError(f"an amount is at most {format_usd(MAX_NANOS)}, got {text!r}")
    return nanos


def format_usd(nanos: int) -> str:
    """Show an amount exactly: at least two decimals, more only where they are not zero."""
    sign = "-" if nanos < 0 else ""
    dollars, rest = divmod(abs(nanos), NANOS_PER_USD)
    decimals = f"{rest:09d}".rstrip("0").ljust(2, "0")
    return f"{sign}${dollars}.{decimals}"


def decimal_usd(nanos: int) -> str:
    """Show an amount as a decimal string for machines: "12.345678901"."""
    return format_usd(nanos).replace("$", "")
