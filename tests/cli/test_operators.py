"""Making operators, and helping people who have lost their second factor: by hand, told in the audit log."""

import hashlib
import json

from tests.cli.conftest import Farebox
from tests.databases import read


def test_an_operator_without_a_password_gets_a_link_to_choose_one(farebox: Farebox, at_books: str) -> None:
    farebox("account", "create", "boss@example.com")
    made = farebox("account", "role", "BOSS@example.com", "admin", "--json")
    assert made.code == 0
    assert (made.json["email"], made.json["role"]) == ("boss@example.com", "admin")
    address, _, token = made.json["link"].partition("/reset?token=")
    assert address.startswith("http")
    ((hashed, purpose),) = read(at_books, "SELECT hash, purpose FROM token")
    assert (bytes(hashed), purpose) == (hashlib.sha256(token.encode()).digest(), "reset")
    assert read(at_books, "SELECT role FROM account") == [("admin",)]
    assert made.json["link"] not in repr(read(at_books, "SELECT * FROM audit_log"))
    back = farebox("account", "role", "boss@example.com", "customer", "--reason", "left us")
    assert back.out == "boss@example.com: a customer from now on\n"
    lines = read(at_books, "SELECT actor, action, before, after, reason FROM audit_log ORDER BY id")
    assert [line[1] for line in lines] == ["account.open", "account.role", "account.role"]
    assert lines[1][0].startswith("cli:")
    assert json.loads(lines[2][2]) == {"role": "admin"}
    assert json.loads(lines[2][3]) == {"role": "customer"}
    assert lines[2][4] == "left us"


def test_only_roles_that_there_are(farebox: Farebox, at_books: str) -> None:
    assert at_books
    farebox("account", "create", "boss@example.com")
    assert farebox("account", "role", "boss@example.com", "king").code == 2
    assert farebox("account", "role", "nobody@example.com", "admin").code == 1


def test_a_lost_second_factor_is_taken_away_and_its_owner_is_told(farebox: Farebox, at_books: str) -> None:
    farebox("account", "create", "alice@example.com")
    done = farebox("account", "reset-second-factor", "alice@example.com", "--reason", "she called", "--json")
    assert done.json == {"account_id": 1, "email": "alice@example.com", "second_factor": None}
    ((recipient, subject),) = read(at_books, "SELECT recipient, subject FROM outbox")
    assert (recipient, subject) == ("alice@example.com", "No second factor any more at Farebox")
    lines = read(at_books, "SELECT action, reason FROM audit_log ORDER BY id")
    assert lines == [("account.open", "by hand"), ("account.reset_factor", "she called")]
    for words in (("role", "alice@example.com", "admin"), ("reset-second-factor", "alice@example.com")):
        assert farebox("account", *words, "--help").code == 0
