"""Takeout: all of one's own, nothing of anybody else's, no secret, and no more memory than a page of it."""

import json
import re
from typing import Any, Final

import pytest

from farebox.accounts.sessions import Sessions
from farebox.clock import DAY_US
from farebox.store.schema import TABLES
from farebox.web.takeout import PARTS, ROWS_AT_ONCE, write_all
from tests.stage import Stage
from tests.web.browse import PASSWORD, Browser, browser_of, enter, mailed_path, make_key

PATH: Final = "/dashboard/settings/data.json"
LEFT_OUT: Final = {
    "batch_item",  # states, and what was said, sealed: the API key opens it
    "credential", "totp", "recovery_code", "familiar", "token", "secret",  # hashes and sealed values
    "usage_hour", "usage_day", "house_hour", "house_day", "session_hour", "session_day", "hour_close", "day_drop",
    "hold", "run", "day_close", "price_list",  # the books' own, or sums of what is there
    "key_pace",  # how fast a key is used, at this moment
    "failure", "invitation", "announcement", "upstream_switch", "audit_log", "upstream", "bill_day",  # the operator's
    "delivery",  # copies of what other tables say, for 30 days
    "watch_key", "watcher", "chain_block", "rate", "incident", "processor_event", "reconciliation",  # the operator's
}  # fmt: skip


async def take(browser: Browser) -> dict[str, Any]:
    page = await browser.get(PATH)
    assert page.status == 200, page.words
    assert page.header("content-type") == "application/json"
    assert re.fullmatch(r'attachment; filename="account-\d{4}-\d\d-\d\d\.json"', page.header("content-disposition"))
    taken: dict[str, Any] = json.loads(page.text)
    return taken


async def test_everything_of_ones_own_is_in_it_and_nothing_of_others(stage: Stage) -> None:
    alice, bob = await enter(stage, stage.alice.email), await enter(stage, stage.bob.email)
    person = await make_key(stage, alice, stage.alice.email, "alices-laptop")
    assert (await stage.ask(person))[0] == 200
    await alice.post("/dashboard/settings/alerts", {"balance": "5"})
    hook = {"url": "https://alice.example/", "key.created": "on"}
    await alice.post("/dashboard/settings/webhooks/new", hook)
    hers = await take(alice)
    assert list(hers) == ["written_at", *(part.name for part in PARTS)]
    assert hers["account"][0]["email"] == stage.alice.email
    assert {key["name"] for key in hers["keys"]} >= {"alices-laptop"}
    assert [entry["amount_usd"] for entry in hers["money_in"]] == ["100.00"]
    ((request_id, charged),) = await stage.rows("SELECT request_id, charged_nanos FROM usage")
    assert hers["usage"][0]["request_id"] == f"req_{request_id.hex()}"
    assert float(hers["usage"][0]["charged_usd"]) == charged / 10**9
    assert hers["alerts"][0]["at_usd"] == "5.00"
    assert hers["webhooks"][0]["url"] == "https://alice.example/"
    assert len(hers["sessions"]) == 1
    assert "A new API key at Farebox" in {mail["subject"] for mail in hers["mails"]}
    theirs = await take(bob)
    assert not [found for found in (stage.alice.email, "alices-laptop", "alice.example") if found in json.dumps(theirs)]
    assert theirs["usage"] == []


async def test_letters_to_whoever_had_the_address_before_are_not_in_it(stage: Stage) -> None:
    """Alice moves to another address; Mallory signs up with the old one, and has proved nothing."""
    alice, left = await enter(stage, stage.alice.email), stage.alice.email
    await alice.post("/dashboard/email", {"email": "alice@new.example", "password": PASSWORD})
    await alice.submit(await alice.get(await mailed_path(stage, "alice@new.example")))
    mallory = browser_of(stage)
    await mallory.post("/signup", {"email": left, "password": PASSWORD})
    await mallory.sign_in(left)
    mails = (await take(mallory))["mails"]
    assert [mail["subject"] for mail in mails] == ["Confirm your address for Farebox"]


async def test_no_secret_is_in_it(stage: Stage) -> None:
    """No key, no password or its hash, no cookie, and no link of a mail: one would open the account."""
    browser = await enter(stage, stage.alice.email)
    person = await make_key(stage, browser, stage.alice.email)
    await browser.post("/forgot", {"email": stage.alice.email})
    text = json.dumps(await take(browser))
    assert "token=\\u2026" in text
    assert not re.search(r"token=[\w-]{10}", text)
    ((hashed,),) = await stage.rows("SELECT password FROM credential WHERE account_id = ?", stage.alice.account_id)
    for secret in (person.key, PASSWORD, hashed, *browser.cookies.values()):
        assert secret not in text


async def test_it_takes_a_fresh_proof_of_who_one_is(stage: Stage) -> None:
    browser = await enter(stage, stage.alice.email)
    await stage.gateway.store.write([("UPDATE session SET sure_at = sure_at - ?", (DAY_US,))])
    assert (await browser.get(PATH, follow=False)).header("location").startswith("/confirm")
    page = await browser.get("/dashboard/settings/data")
    assert (page.status, page.faults()) == (200, [])


def test_every_table_is_in_the_file_or_left_out_on_purpose() -> None:
    written = {part.table.partition(" ")[0] for part in PARTS}
    assert written | LEFT_OUT >= set(TABLES)
    assert not written & LEFT_OUT


@pytest.mark.parametrize("calls", [ROWS_AT_ONCE - 1, ROWS_AT_ONCE, 3 * ROWS_AT_ONCE + 1])
async def test_it_is_written_while_it_is_read(stage: Stage, calls: int) -> None:
    """Every call is in it once, also where a page of many of one moment ends, and no piece is longer for more pages."""
    await enter(stage, stage.alice.email)
    insert = (
        "INSERT INTO usage (request_id, at, account_id, key_id, kind, model, asked_model, price_version, cost_nanos, "
        "list_nanos, charged_nanos, shortfall_nanos, waived_nanos, status, outcome) "
        "VALUES (?, ?, ?, 1, 'exact', 'm', 'm', 1, 1, 1, 1, 0, 0, 200, 'finished')"
    )
    owner = stage.alice.account_id
    rows = [(insert, (number.to_bytes(16, "big"), number // 300, owner)) for number in range(calls)]
    await stage.gateway.store.write(rows)
    (me,) = await Sessions(stage.gateway.store).all_of(owner, 0)
    pieces = [piece async for piece in write_all(stage.gateway.store, me, stage.gateway.clock())]
    taken = json.loads(b"".join(pieces))
    assert [call["request_id"] for call in taken["usage"]] == [f"req_{number:032x}" for number in range(calls)]
    assert max(map(len, pieces)) < ROWS_AT_ONCE * 1000
