"""Accounts and keys by hand: what scripts get, what is refused, and that money moves once and exactly."""

from pathlib import Path

import pytest

from farebox.ids import key_hash, key_is_well_formed
from tests.cli.conftest import Farebox
from tests.databases import on_sqlite, read

pytestmark = pytest.mark.usefixtures("at_books")

ACCOUNT_FIELDS = {
    "account_id", "email", "plan", "status", "balance_nanos", "held_nanos", "free_nanos", "topped_up_nanos",
    "created_at",
}  # fmt: skip


def test_an_account_is_opened_with_plan_and_credit(farebox: Farebox) -> None:
    made = farebox("account", "create", "Alice@Example.com", "--plan", "pro", "--credit", "5.00", "--json")
    assert made.code == 0
    assert set(made.json) == ACCOUNT_FIELDS
    assert (made.json["email"], made.json["plan"]) == ("alice@example.com", "pro")
    assert (made.json["balance_nanos"], made.json["held_nanos"]) == (5_000_000_000, 0)
    assert farebox("account", "show", "ALICE@example.com", "--json").json == made.json
    assert farebox("account", "show", str(made.json["account_id"]), "--json").json == made.json


def test_what_people_read_names_dollars_exactly(farebox: Farebox) -> None:
    shown = farebox("account", "create", "alice@example.com", "--credit", "0.000000001")
    assert "$0.000000001" in shown.out
    assert "alice@example.com" in farebox("account", "list").out


@pytest.mark.parametrize(
    "email", ["", "alice", "a@b", "a b@example.com", "@example.com", "a..b@example.com", "a@-x.com"]
)
def test_what_is_no_email_address_opens_no_account(farebox: Farebox, email: str) -> None:
    refused = farebox("account", "create", email, "--json")
    assert (refused.code, refused.out) == (1, "")
    assert "name@example.com" in refused.err


def test_an_address_opens_one_account(farebox: Farebox) -> None:
    farebox("account", "create", "alice@example.com")
    again = farebox("account", "create", "ALICE@example.com")
    assert again.code == 1
    assert again.err == "farebox: there is an account alice@example.com already\n"


def test_a_plan_follows_top_ups_until_it_is_set_by_hand(farebox: Farebox) -> None:
    farebox("account", "create", "alice@example.com")

    def plan_after(*words: str) -> str:
        return str(farebox("account", *words, "--json").json["plan"])

    assert plan_after("show", "alice@example.com") == "free"
    assert plan_after("credit", "alice@example.com", "4.99") == "free"
    assert plan_after("credit", "alice@example.com", "100", "--gift") == "free"
    assert plan_after("credit", "alice@example.com", "0.01") == "starter"
    assert plan_after("set-plan", "alice@example.com", "Enterprise") == "enterprise"
    assert plan_after("credit", "alice@example.com", "500") == "enterprise"


def test_a_transfer_with_an_id_is_made_once(farebox: Farebox) -> None:
    farebox("account", "create", "alice@example.com")
    for _ in range(2):
        shown = farebox("account", "credit", "alice@example.com", "7", "--id", "bank-1", "--json")
        assert shown.json["balance_nanos"] == 7_000_000_000
    assert "had been made before" in shown.err
    assert len(farebox("ledger", "--json").lines) == 1


def test_a_debit_takes_at_most_what_is_free(farebox: Farebox) -> None:
    farebox("account", "create", "alice@example.com", "--credit", "3")
    refused = farebox("account", "debit", "alice@example.com", "3.01")
    assert refused.code == 1
    assert "only $3.00 is free" in refused.err
    assert farebox("account", "debit", "alice@example.com", "3", "--json").json["balance_nanos"] == 0


@pytest.mark.parametrize("amount", ["0", "1e3", "1,5", "0.0000000001", "99999999999", "x"])
def test_an_amount_is_a_plain_decimal(farebox: Farebox, amount: str) -> None:
    farebox("account", "create", "alice@example.com")
    refused = farebox("account", "credit", "alice@example.com", amount)
    assert refused.code == 2
    assert "an amount is" in refused.err


def test_a_negative_amount_is_taken_for_an_option_and_moves_nothing(farebox: Farebox) -> None:
    farebox("account", "create", "alice@example.com")
    assert farebox("account", "credit", "alice@example.com", "-5").code == 2
    assert farebox("ledger", "--json").lines == []


def test_an_account_is_suspended_and_resumed(farebox: Farebox) -> None:
    farebox("account", "create", "alice@example.com")
    assert farebox("account", "suspend", "alice@example.com", "--json").json["status"] == "suspended"
    assert farebox("account", "resume", "alice@example.com", "--json").json["status"] == "active"


def test_a_key_is_shown_once_and_kept_as_a_hash(farebox: Farebox, at_books: str, tmp_path: Path) -> None:
    farebox("account", "create", "alice@example.com")
    made = farebox("key", "create", "alice@example.com", "--name", "laptop", "--json").json
    assert key_is_well_formed(made["key"], "sk-cc-")
    assert made["name"] == "laptop"
    listed = farebox("key", "list", "alice@example.com", "--json")
    assert made["key"] not in listed.out
    assert listed.lines == [{name: value for name, value in made.items() if name != "key"}]
    assert read(at_books, "SELECT hash FROM api_key") == [(key_hash(made["key"].encode()),)]
    assert made["key"].encode() not in b"".join(path.read_bytes() for path in tmp_path.iterdir())


def test_a_key_alone_stands_on_stdout_so_that_a_script_can_take_it(farebox: Farebox) -> None:
    farebox("account", "create", "alice@example.com")
    shown = farebox("key", "create", "alice@example.com", "--name", "ci")
    assert key_is_well_formed(shown.out.strip(), "sk-cc-")


def test_a_key_is_revoked_by_id_or_by_itself(farebox: Farebox) -> None:
    farebox("account", "create", "alice@example.com")
    first = farebox("key", "create", "alice@example.com", "--name", "one", "--json").json
    second = farebox("key", "create", "alice@example.com", "--name", "two", "--json").json
    assert farebox("key", "revoke", str(first["key_id"]), "--json").json["status"] == "revoked"
    revoked = farebox("key", "revoke", second["key"], "--json").json
    assert revoked["status"] == "revoked"
    assert farebox("key", "revoke", second["key"], "--json").json["revoked_at"] == revoked["revoked_at"]


def test_a_key_that_turned_up_is_recognised_and_a_typo_told_without_the_books(farebox: Farebox) -> None:
    farebox("account", "create", "alice@example.com")
    key = farebox("key", "create", "alice@example.com", "--name", "one", "--json").json["key"]
    assert farebox("key", "check", key, "--json").json["status"] == "active"
    typo = farebox("key", "check", key[:-1] + ("a" if key[-1] != "a" else "b"))
    assert typo.code == 1
    assert "look for a typo" in typo.err


@pytest.mark.parametrize(
    "words",
    [
        ("account", "show", "nobody@example.com"),
        ("account", "show", "99999999999999999999"),
        ("key", "create", "nobody@example.com", "--name", "x"),
        ("usage", "--account", "nobody@example.com"),
        ("ledger", "--account", "7"),
        ("key", "revoke", "9"),
    ],
)
def test_who_is_not_there_is_told_in_one_line(farebox: Farebox, words: tuple[str, ...]) -> None:
    farebox("account", "create", "alice@example.com")
    refused = farebox(*words, "--json")
    assert (refused.code, refused.out, refused.err.count("\n")) == (1, "", 1)
    assert '{"error": {"message": "there is no ' in refused.err


@on_sqlite
def test_a_plan_that_is_not_offered_is_refused_before_anything_is_made(farebox: Farebox, tmp_path: Path) -> None:
    refused = farebox("account", "create", "alice@example.com", "--plan", "gold")
    assert refused.code == 2
    assert "there are free, starter, pro, enterprise" in refused.err
    assert not (tmp_path / "farebox.db").exists()


def test_a_key_has_the_rules_it_was_made_with_and_scripts_can_read_them(farebox: Farebox, at_books: str) -> None:
    farebox("account", "create", "alice@example.com")
    words = ("key", "create", "alice@example.com", "--name", "ci", "--limit", "20", "--resets", "monthly")
    rules = ("--models", "claude-haiku-4-5", "--networks", "203.0.113.7,2001:db8::/32", "--rpm", "60")
    made = farebox(*words, *rules, "--expires-days", "30", "--json").json
    assert {name: made[name] for name in ("limit_usd", "resets", "used_usd", "models", "networks")} == {
        "limit_usd": "20.00",
        "resets": "monthly",
        "used_usd": "0.00",
        "models": ["claude-haiku-4-5"],
        "networks": ["203.0.113.7/32", "2001:db8::/32"],
    }
    assert (made["requests_per_minute"], made["purpose"], made["replaced_by"]) == (60, "client", None)
    assert read(at_books, "SELECT limit_nanos, resets, used_nanos FROM key_budget") == [(20 * 10**9, "monthly", 0)]
    row = next(line for line in farebox("key", "list").out.splitlines() if " ci " in line)
    for told in ("$0.00", "$20.00", "monthly", "claude-haiku-4-5, 203.0.113.7, 2001:db8::/32, 60 requests/min"):
        assert told in row


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--models", "gpt-4"), "'gpt-4' is not sold here"),
        (("--networks", "10.0.0.1/8"), "the network is 10.0.0.0/8"),
        (("--resets", "daily"), "--resets daily needs a --limit"),
        (("--resets", "hourly"), "'hourly' is not one of"),
        (("--limit", "-1"), "plain decimal"),
        (("--rpm", "0"), "range 1<=x<=1000000"),
    ],
)
def test_rules_that_cannot_be_are_refused_and_no_key_is_made(
    farebox: Farebox, at_books: str, words: tuple[str, ...], told: str
) -> None:
    farebox("account", "create", "alice@example.com")
    refused = farebox("key", "create", "alice@example.com", "--name", "x", *words)
    assert refused.code in {1, 2}
    assert told in refused.err
    assert read(at_books, "SELECT 1 FROM api_key") == []


def test_a_key_rests_wakes_and_is_rolled(farebox: Farebox) -> None:
    farebox("account", "create", "alice@example.com")
    made = farebox("key", "create", "alice@example.com", "--name", "ci", "--limit", "5", "--json").json
    which = str(made["key_id"])
    assert farebox("key", "disable", which, "--json").json["status"] == "disabled"
    assert farebox("key", "enable", which, "--json").json["status"] == "active"
    rolled = farebox("key", "roll", which, "--grace-hours", "24", "--json").json
    assert key_is_well_formed(rolled["key"], "sk-cc-")
    assert (rolled["name"], rolled["limit_usd"]) == ("ci", "5.00")
    old, new = farebox("key", "list", "--json").lines
    assert (old["status"], old["replaced_by"], new["status"]) == ("active", new["key_id"], "active")
    assert old["expires_at"] is not None
    again = farebox("key", "roll", which)
    assert again.code == 1
    assert "make a new one instead" in again.err
    assert key_is_well_formed(farebox("key", "roll", str(new["key_id"])).out.strip(), "sk-cc-")
    assert [one["status"] for one in farebox("key", "list", "--json").lines] == ["active", "expired", "active"]
