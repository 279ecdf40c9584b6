"""Payments at /admin: what came, who looks out for it, what needs an operator's decision and what becomes of that."""

from typing import Any

from msgspec.structs import replace

from farebox.money import NANOS_PER_USD
from farebox.payments.incidents import opened
from farebox.payments.rails import Sighting
from farebox.payments.simulated import simulated_payment
from tests.stage import OpenStage, Stage
from tests.web.operators import OPERATOR, books_hold, enter_admin, forget_proof, table, written

SIMULATED = "[payments]\nsimulated = true\n"
HERE = "/admin/topups"


def sighting(ident: str = "lost", **changed: Any) -> Sighting:
    """Something that came to an address that was given to nobody: 25 dollars' worth."""
    values: dict[str, Any] = {"rail": "simulated", "ident": ident, "asset": "BTC", "address": "nobody-s", "tx": "f00d"}
    return Sighting(**(values | {"units": 25_000, "confirmations": 2, "seen_us": 1} | changed))


async def see(stage: Stage, *sightings: Sighting) -> None:
    await stage.parts.till.deposits.apply(sightings, stage.gateway.clock())


async def test_a_stray_payment_is_told_assigned_once_and_credited(open_stage: OpenStage) -> None:
    async with open_stage(SIMULATED) as stage:
        await see(stage, sighting())
        browser = await enter_admin(stage)
        page = await browser.get(HERE)
        assert page.status == 200
        assert page.faults() == []
        assert "0.00025 BTC came to nobody-s, which was given to nobody" in page.words
        before, _ = await stage.balance(stage.bob)
        form = {"payment": "simulated:lost", "account": stage.bob.email, "reason": "he has shown the transaction"}
        page = await browser.post(f"{HERE}/assign", form)
        assert not list(page.find("section", id="strays"))
        assert await stage.balance(stage.bob) == (before + 25 * NANOS_PER_USD, 0)
        again = await browser.post(f"{HERE}/assign", {**form, "account": stage.alice.email})
        assert again.status == 422
        assert "only one that is nobody's can be assigned" in again.words
        (line,) = await written(stage, "payment.assign")
        assert line["target"] == f"customer:{stage.bob.account_id}"
        assert line["reason"] == "he has shown the transaction"
        await books_hold(stage)


async def test_a_stray_payment_goes_to_no_account_that_is_not_there_or_closed(open_stage: OpenStage) -> None:
    async with open_stage(SIMULATED) as stage:
        await see(stage, sighting())
        await stage.gateway.store.write(
            [("UPDATE account SET status = 'closed' WHERE id = ?", (stage.bob.account_id,))]
        )
        browser = await enter_admin(stage)
        form = {"payment": "simulated:lost", "account": stage.bob.email, "reason": "his"}
        assert "is closed: it takes no money" in (await browser.post(f"{HERE}/assign", form)).words
        missing = await browser.post(f"{HERE}/assign", {**form, "account": "nobody@example.com"})
        assert missing.status == 422
        wrong = await browser.post(f"{HERE}/assign", {**form, "payment": "simulated:none"})
        assert "there is no such payment" in wrong.words
        assert "say why" in (await browser.post(f"{HERE}/assign", {**form, "reason": " "})).words
        assert await stage.rows("SELECT state FROM payment") == [("stray",)]


async def test_an_incident_is_closed_with_words(open_stage: OpenStage) -> None:
    async with open_stage(SIMULATED) as stage:
        await stage.gateway.store.write([opened("difference", "bitcoin:BTC:bc1q", "one holds more", 1)])
        browser = await enter_admin(stage)
        assert "1 thing about payments waits for you" in (await browser.get("/admin")).words
        assert "one holds more" in (await browser.get(HERE)).words
        assert "say why" in (await browser.post(f"{HERE}/incident", {"incident": "1", "reason": ""})).words
        page = await browser.post(f"{HERE}/incident", {"incident": "1", "reason": "sent by me, to try"})
        assert "sent by me, to try" in page.words
        assert not list(page.find("section", id="incidents"))
        again = await browser.post(f"{HERE}/incident", {"incident": "1", "reason": "once more"})
        assert f"closed already, by {OPERATOR}: sent by me, to try" in again.words
        assert (await browser.post(f"{HERE}/incident", {"incident": "2", "reason": "x"})).status == 404
        assert (await browser.post(f"{HERE}/incident", {"incident": "x", "reason": "x"})).status == 404
        assert len(await written(stage, "incident.close")) == 1


async def test_topups_are_listed_by_state_with_what_came(open_stage: OpenStage) -> None:
    async with open_stage(SIMULATED) as stage:
        topups, now = stage.parts.till.topups, stage.gateway.clock()
        first = await topups.open(stage.alice.account_id, "simulated:BTC", 10 * NANOS_PER_USD, now)
        await topups.open(stage.bob.account_id, "simulated:ETH", 20 * NANOS_PER_USD, now)
        await see(stage, simulated_payment(await topups.find(stage.alice.account_id, first), 5_000, now))
        browser = await enter_admin(stage)
        page = await browser.get(HERE)
        assert "customer 1" in page.words
        assert "customer 2" in page.words
        page = await browser.get(f"{HERE}?state=seen")
        assert "0.00005 BTC" in page.words
        assert "under" in page.words
        assert "customer 2" not in page.words
        assert "None is reversed." in (await browser.get(f"{HERE}?state=reversed")).words
        assert (await browser.get(f"{HERE}?state=nonsense&before=x")).status == 200


async def test_the_entry_of_a_payment_is_not_reversed_by_hand(open_stage: OpenStage) -> None:
    async with open_stage(SIMULATED) as stage:
        topups, now = stage.parts.till.topups, stage.gateway.clock()
        first = await topups.open(stage.alice.account_id, "simulated:BTC", 10 * NANOS_PER_USD, now)
        paid = simulated_payment(await topups.find(stage.alice.account_id, first), 10_000, now)
        await see(stage, replace(paid, confirmations=5))
        ((entry,),) = await stage.rows("SELECT transfer_id FROM payment")
        before = await stage.balance(stage.alice)
        browser = await enter_admin(stage)
        page = await browser.post("/admin/ledger/entry", {"id": entry, "reason": "a mistake"})
        assert page.status == 422
        assert "undone when its chain does: debit the customer instead" in page.words
        assert await stage.balance(stage.alice) == before


async def test_addresses_that_money_came_to_are_given_as_a_file(open_stage: OpenStage) -> None:
    async with open_stage(SIMULATED) as stage:
        key = "INSERT INTO watch_key (id, fingerprint, family, created_at) VALUES (1, 'ab', 'bitcoin', 1)"
        used = (
            "INSERT INTO deposit_address (family, address, key_id, position, account_id, rail, asset, "
            "created_at, used_at) VALUES ('bitcoin', 'bc1qused', 1, 4, ?, 'bitcoin', 'BTC', 1, 2)"
        )
        await stage.gateway.store.write([(key, ()), (used, (stage.bob.account_id,))])
        browser = await enter_admin(stage)
        (row,) = table(await browser.get(f"{HERE}/addresses.csv"))
        assert (row["path"], row["address"], row["account"]) == ("0/4", "bc1qused", str(stage.bob.account_id))
        page = await browser.get(HERE)
        assert "0/4" in page.words
        assert "Set its gap limit to 20 or more" in page.words


async def test_changes_ask_for_a_proof_of_the_last_minutes(open_stage: OpenStage) -> None:
    async with open_stage(SIMULATED) as stage:
        await see(stage, sighting())
        browser = await enter_admin(stage)
        await forget_proof(stage)
        for act in ("assign", "incident", "compare"):
            page = await browser.post(f"{HERE}/{act}", {"payment": "simulated:lost", "account": "1", "reason": "x"})
            assert page.path.startswith("/confirm"), act
        assert await stage.rows("SELECT state FROM payment") == [("stray",)]
