"""`farebox books`: what is kept, and letting old calls go by command."""

import asyncio
import time

from farebox.books.retention import month_begin_us
from farebox.clock import day_of
from tests.cli.conftest import Farebox
from tests.databases import read
from tests.growth.books import Size, fill


def test_old_calls_go_by_command_and_people_are_told_how_many(farebox: Farebox, at_books: str) -> None:
    now_us = time.time_ns() // 1000
    asyncio.run(fill(at_books, Size(300, 100, 3), now_us, lambda _: None, digests=True))
    before = farebox("books", "show", "--json").json
    assert (before["calls"], before["dropped_calls"], before["kept_from"], before["keep_months"]) == (300, 0, None, 0)
    assert "300 calls are kept one by one, since " in farebox("books", "show").out
    assert farebox("books", "drop", "--keep-months", "0").code == 2
    until = day_of(month_begin_us(now_us, 1))
    gone = farebox("books", "drop", "--keep-months", "1", "--yes")
    assert gone.code == 0, gone.err
    assert "calls went." in gone.out
    assert "is proved" in gone.err
    after = farebox("books", "show", "--json").json
    assert (after["kept_from"], after["first_day"] >= until) == (until, True)
    assert after["calls"] + after["dropped_calls"] == 300
    assert after["dropped_calls"] > 50
    assert f"Those before {until} were let go" in farebox("books", "show").out
    again = farebox("books", "drop", "--keep-months", "1", "--json")
    assert (again.code, again.json["dropped_calls"]) == (0, 0)
    assert farebox("audit").code == 0
    assert read(at_books, "SELECT action, target FROM audit_log") == [("books.drop", "books")]
    assert farebox("ledger", "--account", "customer1@example.com", "--json").lines[-1]["balance_nanos"] == 100 * 10**9


def test_calls_that_are_not_proved_do_not_go(farebox: Farebox, at_books: str) -> None:
    asyncio.run(fill(at_books, Size(200, 100, 3), time.time_ns() // 1000, lambda _: None))  # no true digest of any day
    refused = farebox("books", "drop", "--keep-months", "1", "--yes")
    assert refused.code == 1
    assert "cannot go: they are not what the day's digest or its sums say" in refused.err
    assert farebox("books", "show", "--json").json["calls"] == 200
