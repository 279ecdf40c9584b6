"""A statement as a Beancount ledger: prepaid money is an asset, calls are expenses by model, every line balances."""

import re
from collections.abc import AsyncIterator, Sequence
from typing import Final

from farebox.books.statement import StatementLine
from farebox.clock import DAY_US, day_of
from farebox.money import decimal_usd

_LINES_AT_ONCE: Final = 500
_NOT_IN_NAMES: Final = re.compile(r"[^A-Za-z0-9-]+")
_OTHER_SIDES: Final = {"deposit": "Assets:Cash", "debit": "Expenses:Adjustments"}


async def write_beancount(lines: Sequence[StatementLine], site: str) -> AsyncIterator[str]:
    """Write movements, newest first as a statement gives them, as a ledger in the order of time.

    It ends in a balance assertion, so that whoever reads it finds out whether anything is missing.
    """
    prepaid = f"Assets:Prepaid:{_name(site)}"
    ordered = lines[::-1]
    yield f'option "title" "{_quoted(site)}"\noption "operating_currency" "USD"\n\n'
    if not ordered:
        return
    opening = ordered[0].balance_nanos - ordered[0].amount_nanos
    first = day_of(ordered[0].mark.at_us)
    sides = sorted({_other_side(line) for line in ordered} | ({"Equity:Opening-Balances"} if opening else set()))
    yield "".join(f"{first} open {account} USD\n" for account in (prepaid, *sides)) + "\n"
    if opening:
        yield _entry(first, "before", "opening balance", "", prepaid, "Equity:Opening-Balances", opening)
    page: list[str] = []
    for line in ordered:
        link = f" ^{_NOT_IN_NAMES.sub('-', line.mark.id)}"
        day = day_of(line.mark.at_us)
        page.append(_entry(day, site, line.memo, link, prepaid, _other_side(line), line.amount_nanos))
        if len(page) == _LINES_AT_ONCE:
            yield "".join(page)
            page = []
    last = ordered[-1]
    yield (
        "".join(page) + f"{day_of(last.mark.at_us + DAY_US)} balance {prepaid} {decimal_usd(last.balance_nanos)} USD\n"
    )


def _entry(day: str, payee: str, words: str, link: str, account: str, other: str, nanos: int) -> str:
    return (
        f'{day} * "{_quoted(payee)}" "{_quoted(words)}"{link}\n'
        f"  {account}  {decimal_usd(nanos)} USD\n  {other}  {decimal_usd(-nanos)} USD\n\n"
    )


def _other_side(line: StatementLine) -> str:
    if line.code == "usage":
        return f"Expenses:API:{_name(line.memo)}"
    if line.code == "usage_day":
        return "Expenses:API"
    return _OTHER_SIDES.get(line.code, f"Income:{_name(line.code)}")


def _name(text: str) -> str:
    """Make one part of an account's name: a capital letter or digit first, then letters, digits and hyphens."""
    cleaned = _NOT_IN_NAMES.sub("-", text).strip("-") or "Other"
    return cleaned[0].upper() + cleaned[1:]


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ")
