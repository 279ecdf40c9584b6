"""What is changed by command is written down like what is changed at /admin: by whom, what it was, what it is, why."""

import getpass
import json
from typing import Any

import pytest

from tests.cli.conftest import Farebox
from tests.databases import read

ALICE = "alice@example.com"


def lines_in(books: str) -> list[tuple[str, str, Any, Any, str]]:
    """Give action, target, before, after and reason of every line, oldest first; each is by this very user."""
    rows = read(books, "SELECT actor, address, action, target, before, after, reason FROM audit_log ORDER BY id")
    assert {row[:2] for row in rows} <= {(f"cli:{getpass.getuser()}", "")}
    return [(row[2], row[3], row[4] and json.loads(row[4]), row[5] and json.loads(row[5]), row[6]) for row in rows]


def test_every_change_by_command_is_in_the_audit_log(farebox: Farebox, at_books: str) -> None:
    for words in (
        ("create", ALICE, "--plan", "pro", "--credit", "3"),
        ("credit", ALICE, "25", "--reason", "bank transfer", "--id", "bank-1"),
        ("credit", ALICE, "1", "--gift", "--id", "gift-1"),
        ("debit", ALICE, "4", "--id", "paid-out"),
        ("suspend", ALICE, "--reason", "chargeback"),
        ("resume", ALICE),
        ("set-plan", ALICE, "enterprise", "--reason", "a contract"),
    ):
        assert farebox("account", *words).code == 0, words
    one = "customer:1"
    assert lines_in(at_books) == [
        ("account.open", one, None, {"email": ALICE, "plan": "pro"}, "by hand"),
        ("account.credit", one, None, moved("open:1", "deposit", "3.00"), "opening credit"),
        ("account.credit", one, None, moved("bank-1", "deposit", "25.00"), "bank transfer"),
        ("account.credit", one, None, moved("gift-1", "promotion", "1.00"), "credit by hand"),
        ("account.debit", one, None, moved("paid-out", "debit", "4.00"), "debit by hand"),
        ("account.suspend", one, {"status": "active"}, {"status": "suspended"}, "chargeback"),
        ("account.resume", one, {"status": "suspended"}, {"status": "active"}, "by hand"),
        ("account.plan", one, {"plan": "pro"}, {"plan": "enterprise"}, "a contract"),
    ]


def moved(entry: str, kind: str, amount_usd: str) -> dict[str, str]:
    return {"entry": f"operator:{entry}", "kind": kind, "amount_usd": amount_usd}


@pytest.mark.usefixtures("at_books")
def test_what_is_asked_for_twice_is_written_down_once_and_what_is_refused_as_that(
    farebox: Farebox, at_books: str
) -> None:
    farebox("account", "create", ALICE)
    for _ in range(2):
        farebox("account", "credit", ALICE, "5", "--id", "bank-1")
    assert [line[0] for line in lines_in(at_books)] == ["account.open", "account.credit"]
    refused = farebox("account", "debit", ALICE, "6", "--id", "too-much")
    assert refused.code == 1
    assert "nothing was moved: only $5.00 is free" in refused.err
    assert [line[0] for line in lines_in(at_books)][2:] == ["account.debit", "account.debit.refused"]
    other = farebox("account", "credit", ALICE, "7", "--id", "bank-1")
    assert other.code == 1


def test_what_opens_no_account_leaves_no_line(farebox: Farebox, at_books: str) -> None:
    farebox("account", "create", ALICE)
    farebox("account", "create", ALICE)
    farebox("account", "create", "nobody")
    assert len(lines_in(at_books)) == 1


def test_invitations_by_command_are_written_down_while_they_change_something(farebox: Farebox, at_books: str) -> None:
    farebox("invite", "create", "--days", "3", "--note", "for the fair")
    for _ in range(2):
        assert farebox("invite", "revoke", "1").code == 0
    assert farebox("invite", "revoke", "2").code == 1
    assert lines_in(at_books) == [
        ("invitation.make", "invitations", None, {"email": "whoever has the link", "days": 3}, "for the fair"),
        ("invitation.revoke", "invitation:1", {"state": "open"}, {"state": "revoked"}, "by hand"),
    ]
