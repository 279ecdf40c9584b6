"""Invitations by command: made and shown once, listed with what became of them, taken back."""

import pytest

from tests.cli.conftest import Farebox

pytestmark = pytest.mark.usefixtures("at_books")

FIELDS = {"invitation_id", "state", "email", "note", "created_by", "created_at", "ends_at", "account_id"}


def test_a_link_is_printed_once_and_listed_without_its_text(farebox: Farebox) -> None:
    made = farebox("invite", "create", "--email", "Bob@Example.com", "--note", "the workshop", "--days", "3", "--json")
    assert made.code == 0
    assert set(made.json) == FIELDS | {"url"}
    assert (made.json["email"], made.json["state"], made.json["account_id"]) == ("bob@example.com", "open", None)
    assert "/signup?invitation=" in made.json["url"]
    token = made.json["url"].partition("=")[2]
    listed = farebox("invite", "list", "--json")
    assert set(listed.json) == FIELDS
    assert token not in listed.out
    assert token not in farebox("invite", "list").out
    assert "bob@example.com" in farebox("invite", "list").out
    assert made.json["url"] in farebox("outbox").out


def test_what_people_read_says_whose_it_is(farebox: Farebox) -> None:
    told = farebox("invite", "create")
    assert "for whoever has the link, until" in told.out
    assert "There are no invitations" not in farebox("invite", "list").out


def test_one_that_is_taken_back_stays_so(farebox: Farebox) -> None:
    made = farebox("invite", "create", "--json")
    for _ in range(2):
        taken = farebox("invite", "revoke", str(made.json["invitation_id"]), "--json")
        assert (taken.code, taken.json["state"]) == (0, "revoked")
    missing = farebox("invite", "revoke", "4711")
    assert (missing.code, missing.out) == (1, "")
    assert "there is no invitation 4711" in missing.err


@pytest.mark.parametrize("words", [("--email", "nobody"), ("--days", "0"), ("--days", "366"), ("--note", "x" * 300)])
def test_what_no_invitation_can_be_is_refused(farebox: Farebox, words: tuple[str, ...]) -> None:
    refused = farebox("invite", "create", *words)
    assert refused.code in {1, 2}
    assert refused.out == ""


def test_credit_by_hand_is_told_by_mail_once(farebox: Farebox) -> None:
    farebox("account", "create", "alice@example.com")
    for _ in range(2):
        farebox("account", "credit", "alice@example.com", "12.50", "--id", "bank-1")
    told = farebox("outbox").out
    assert told.count("$12.50 was added to your balance at Farebox  [") == 1
