"""Alerts: told once when an amount is crossed, again when it was back, and right to the nano-dollar."""

import json
from typing import Any, Final

import pytest

from farebox.accounts.accounts import find_account
from farebox.books.ledger import credit, debit
from farebox.clock import DAY_US, day_of
from farebox.events.alerts import USED_UP_NANOS, alerts_of
from farebox.events.news import tell_of_credit
from farebox.money import NANOS_PER_USD, format_usd
from tests.stage import MODEL, Person, Stage
from tests.web.browse import enter, mails_to

PATH: Final = "/dashboard/settings/alerts"


async def at_rest(stage: Stage) -> None:
    """Stop the stage's own jobs, so that nobody looks but the test."""
    await stage.gateway.jobs.stop()


async def look(stage: Stage, later_us: int = 0) -> int:
    return await stage.parts.herald.lookout.look(stage.gateway.clock() + later_us)


async def move(stage: Stage, person: Person, usd: float, name: str) -> None:
    nanos = round(abs(usd) * NANOS_PER_USD)
    entry = (
        credit(name, person.account_id, nanos, code="credit", actor="test", memo="")
        if usd > 0
        else debit(name, person.account_id, nanos, actor="test", memo="")
    )
    assert not (await stage.gateway.ledger.post(entry)).refused


async def told(stage: Stage, person: Person) -> list[str]:
    return [subject for subject, _ in await mails_to(stage, person.email) if "password" not in subject]


async def test_the_page_keeps_what_was_typed_and_says_what_is_wrong(stage: Stage) -> None:
    browser = await enter(stage, stage.alice.email)
    page = await browser.submit(await browser.get(PATH), PATH, balance="5", daily_spend="$12.50", used_up="on")
    assert "Saved" in page.words
    assert {
        kind: one.at_nanos for kind, one in (await alerts_of(stage.gateway.store, stage.alice.account_id)).items()
    } == {
        "balance": 5 * NANOS_PER_USD,
        "daily_spend": 12_500_000_000,
        "used_up": USED_UP_NANOS,
    }
    _, _, fields = (await browser.get(PATH)).form(PATH)
    assert fields == {"balance": "5.00", "daily_spend": "12.50", "used_up": "on"}
    for wrong in ("five", "-1", "0", "1e3", "1.0000000001", "9" * 20, "1,000,000,000,000"):
        page = await browser.submit(await browser.get(PATH), PATH, balance=wrong)
        assert (page.status, page.faults()) == (422, []), wrong
    _, _, fields = (await browser.get(PATH)).form(PATH)
    assert fields["balance"] == "5.00"
    await browser.post(PATH, {"balance": "", "daily_spend": ""})
    assert await alerts_of(stage.gateway.store, stage.alice.account_id) == {}


async def test_a_low_balance_is_told_once_and_again_after_it_was_back(stage: Stage) -> None:
    await at_rest(stage)
    browser = await enter(stage, stage.alice.email)
    await browser.submit(await browser.get(PATH), PATH, balance="20")
    assert await look(stage) == 0
    await move(stage, stage.alice, -80, "test:to-the-line")
    assert await look(stage) == 0
    await move(stage, stage.alice, -0.000000001, "test:below")
    assert [await look(stage), await look(stage)] == [1, 0]
    (subject, body) = (await mails_to(stage, stage.alice.email))[-1]
    assert subject == "Your balance at Farebox is below $20.00"
    assert "$19.999999999, less than the $20.00" in body
    assert "You were told" in (await browser.get(PATH)).words
    await move(stage, stage.alice, 30, "test:back")
    assert await look(stage) == 0
    assert "Armed" in (await browser.get(PATH)).words
    await move(stage, stage.alice, -40, "test:below-again")
    assert await look(stage) == 1
    assert len(await told(stage, stage.alice)) == 2


async def test_a_days_spend_is_told_once_a_day_and_money_that_comes_and_goes_is_none(stage: Stage) -> None:
    """Calls count, and nothing else does, also those before the alert was set; the next day begins at nothing."""
    await at_rest(stage)
    browser = await enter(stage, stage.alice.email)
    assert (await stage.ask(stage.alice))[0] == 200
    ((once,),) = await stage.rows("SELECT charged_nanos FROM usage")
    await browser.submit(await browser.get(PATH), PATH, daily_spend=format_usd(2 * once + 1)[1:])
    assert await look(stage) == 0
    await move(stage, stage.alice, 50, "test:in")
    await move(stage, stage.alice, -70, "test:out")
    await stage.ask(stage.alice)
    ((spent,),) = await stage.rows("SELECT sum(charged_nanos) FROM usage")
    crossed = int(spent) > 2 * once + 1
    assert await look(stage) == int(crossed)
    while not crossed:
        await stage.ask(stage.alice)
        ((spent,),) = await stage.rows("SELECT sum(charged_nanos) FROM usage")
        crossed = int(spent) > 2 * once + 1
        assert await look(stage) == int(crossed)
    subject, body = (await mails_to(stage, stage.alice.email))[-1]
    assert "today" in subject
    assert f"{format_usd(int(spent))} was spent" in body
    await stage.ask(stage.alice)
    assert await look(stage) == 0
    assert await look(stage, DAY_US) == 0
    assert await look(stage, 2 * DAY_US) == 0


async def test_a_balance_that_is_used_up_is_told_to_whoever_ever_had_money(stage: Stage) -> None:
    """With the first deposit comes the alert; who takes it away is not given it again."""
    await at_rest(stage)
    rows = "SELECT kind FROM alert WHERE account_id = ?"
    for name in ("first", "second"):
        await deposit(stage, stage.bob, name)
    assert await stage.rows(rows, stage.bob.account_id) == [("used_up",)]
    await move(stage, stage.bob, -19.995, "test:nearly-all")
    assert [await look(stage), await look(stage)] == [1, 0]
    assert "Your balance at Farebox is used up" in await told(stage, stage.bob)
    browser = await enter(stage, stage.bob.email)
    await browser.post(PATH, {})
    await deposit(stage, stage.bob, "third")
    assert await stage.rows(rows, stage.bob.account_id) == []


async def deposit(stage: Stage, person: Person, name: str) -> None:

    nanos = 10 * NANOS_PER_USD
    entry = credit(f"test:{name}", person.account_id, nanos, code="deposit", actor="test", memo="")
    await stage.gateway.ledger.post(entry)
    account = await find_account(stage.gateway.store, person.email)
    await stage.gateway.store.write(tell_of_credit(account, nanos, entry.id, stage.gateway.clock()))


async def test_webhooks_are_told_at_the_same_moments(stage: Stage) -> None:
    await at_rest(stage)
    browser = await enter(stage, stage.alice.email)
    form = {"url": "https://example.com/", **dict.fromkeys(("balance.low", "balance.exhausted", "spend.daily"), "on")}
    assert (await browser.post("/dashboard/settings/webhooks/new", form)).status == 200
    await browser.post(PATH, {"balance": "50", "daily_spend": "0.000000001", "used_up": "on"})
    await stage.ask(stage.alice)
    ((posted,),) = await stage.rows("SELECT posted_nanos FROM account WHERE id = ?", stage.alice.account_id)
    await move(stage, stage.alice, -posted / NANOS_PER_USD, "test:all")
    assert await look(stage) == 3
    bodies: list[dict[str, Any]] = [json.loads(row[0]) for row in await stage.rows("SELECT body FROM delivery")]
    by_name = {body["type"]: body["data"] for body in bodies}
    assert by_name["balance.low"] == {"balance_usd": "0.00", "limit_usd": "50.00"}
    assert by_name["balance.exhausted"] == {"balance_usd": "0.00", "limit_usd": "0.01"}
    assert by_name["spend.daily"]["day"] == day_of(stage.gateway.clock())
    ((spent,),) = await stage.rows("SELECT sum(charged_nanos) FROM usage")
    assert by_name["spend.daily"]["spent_usd"] == format_usd(int(spent))[1:]


async def test_a_look_reads_no_calls_once_the_day_has_begun(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a day's spend came to follows from the balance: the only sum over calls is for alerts that are new."""
    await at_rest(stage)
    browser = await enter(stage, stage.alice.email)
    await browser.post(PATH, {"daily_spend": "1"})
    await look(stage)
    asked: list[str] = []
    fetch = type(stage.gateway.store).fetch

    async def listening(self: Any, sql: str, *rest: Any, **more: Any) -> Any:
        asked.append(sql)
        return await fetch(self, sql, *rest, **more)

    monkeypatch.setattr(type(stage.gateway.store), "fetch", listening)
    for _ in range(3):
        await stage.ask(stage.alice, model=MODEL)
    asked.clear()
    await look(stage)
    assert len(asked) == 1
    assert "usage" not in asked[0]
