"""Money at /admin: entries by hand, the ledger and its proof, the reverse of an entry, and the audit log."""

import json

import pytest

from farebox.billing.ledger import Transfer, customer_account
from farebox.books.business import Sales
from farebox.clock import DAY_US, day_of
from farebox.store.protocol import Statement
from tests.stage import Stage
from tests.web.browse import enter, mails_to
from tests.web.operators import OPERATOR, books_hold, dollars, enter_admin, table, written

# money by hand


async def test_a_credit_is_previewed_exactly_and_booked_once_however_often_it_is_sent(stage: Stage) -> None:
    browser = await enter_admin(stage)
    money = f"/admin/customers/{stage.bob.account_id}/money"
    page = await browser.submit(
        await browser.get(money), money, kind="deposit", amount="12.345678901", reason="bank transfer 4711"
    )
    assert "Balance now $0.00 Change +$12.345678901 Balance after $12.345678901" in page.words
    assert await stage.balance(stage.bob) == (0, 0)
    _, _, form = page.form(money)
    done = await browser.post(money, form)
    assert "The entry has been made." in done.words
    again = await browser.post(money, form)
    assert "had been made before; nothing was moved again" in again.words
    assert await stage.balance(stage.bob) == (12_345_678_901, 0)
    entry = f"operator:{form['id']}"
    rows = await stage.rows("SELECT debit_account, code, actor, memo, amount_nanos FROM transfer WHERE id = ?", entry)
    assert rows == [("house:cash", "deposit", f"operator:{OPERATOR}", "bank transfer 4711", 12_345_678_901)]
    (line,) = await written(stage, "account.credit")
    assert line["after"] == {"entry": entry, "kind": "deposit", "amount_usd": "12.345678901"}
    assert [subject for subject, _ in await mails_to(stage, stage.bob.email)] == [
        "$12.345678901 was added to your balance at Farebox"
    ]
    await books_hold(stage)


async def test_an_entry_that_a_crash_kept_from_being_made_is_made_by_sending_the_form_again(stage: Stage) -> None:
    """The line is there, the entry is not: what a process leaves that dies between the two."""
    browser = await enter_admin(stage)
    money = f"/admin/customers/{stage.bob.account_id}/money"
    page = await browser.submit(await browser.get(money), money, kind="promotion", amount="3", reason="sorry")
    _, _, form = page.form(money)
    facts = {"entry": f"operator:{form['id']}", "kind": "promotion", "amount_usd": "3.00"}
    insert = (
        "INSERT INTO audit_log (at, actor, address, action, target, after, reason) "
        "VALUES (1, ?, '127.0.0.1', 'account.credit', ?, ?, 'sorry')"
    )
    kept = json.dumps(facts, separators=(",", ":"))
    await stage.gateway.store.write([(insert, (OPERATOR, f"customer:{stage.bob.account_id}", kept))])
    await browser.post(money, form)
    assert await stage.balance(stage.bob) == (3 * 10**9, 0)
    assert len(await written(stage, "account.credit")) == 1


async def test_a_debit_takes_no_more_than_is_free(stage: Stage) -> None:
    browser = await enter_admin(stage)
    money = f"/admin/customers/{stage.alice.account_id}/money"
    too_much = await browser.submit(await browser.get(money), money, kind="debit", amount="100.01", reason="x")
    assert too_much.status == 422
    assert "only $100.00 of the balance is free" in too_much.words
    page = await browser.submit(await browser.get(money), money, kind="debit", amount="99.5", reason="paid out")
    _, _, form = page.form(money)
    late = await browser.post(money, {**form, "amount": "100.5", "id": "0" * 32})
    assert late.status == 422
    assert "nothing was moved: only $100.00 is free" in late.words
    assert len(await written(stage, "account.debit.refused")) == 1
    await browser.post(money, form)
    assert await stage.balance(stage.alice) == (500_000_000, 0)
    await books_hold(stage)


@pytest.mark.parametrize(
    "changed",
    [
        {"amount": "0"},
        {"amount": "-5"},
        {"amount": "1e3"},
        {"amount": "1.0000000001"},
        {"amount": ""},
        {"kind": "usage"},
        {"kind": ""},
        {"reason": ""},
        {"id": "../../x"},
        {"id": "A" * 32},
        {"amount": "9" * 30},
    ],
)
async def test_money_is_moved_by_whole_forms_alone(stage: Stage, changed: dict[str, str]) -> None:
    browser = await enter_admin(stage)
    form = {"kind": "credit", "amount": "5", "reason": "x", "id": "f" * 32} | changed
    page = await browser.post(f"/admin/customers/{stage.bob.account_id}/money", form)
    assert page.status == 422
    assert await stage.balance(stage.bob) == (0, 0)


# the ledger


async def test_the_ledger_tells_every_entry_and_that_they_add_up_to_zero(stage: Stage) -> None:
    for _ in range(2):
        assert (await stage.ask(stage.alice))[0] == 200
    browser = await enter_admin(stage)
    page = await browser.get("/admin/ledger")
    assert "All together $0.00 zero, as it must be" in page.words
    assert "agrees with the entries" in page.words
    rows = table(await browser.get("/admin/ledger.csv"))
    ((charged,),) = await stage.rows("SELECT sum(charged_nanos) FROM usage")
    assert [(row["kind"], row["from"], row["calls"]) for row in rows] == [
        ("usage", "customers", "2"),
        ("credit", "house:adjustments", ""),
    ]
    assert f"${rows[0]['amount_usd']}" == dollars(charged)
    for query, kinds in (
        (f"account={stage.alice.account_id}", ["usage", "credit"]),
        (f"account={stage.alice.email}", ["usage", "credit"]),
        (f"account=customer:{stage.bob.account_id}", []),
        ("account=house:revenue", ["usage"]),
        ("account=nobody@example.com", []),
        ("code=credit", ["credit"]),
        ("code=usage", ["usage"]),
        ("ref=TEST:alice", ["credit"]),
        ("ref=100%25", []),
    ):
        found = table(await browser.get(f"/admin/ledger.csv?{query}"))
        assert [row["kind"] for row in found] == kinds, query
    ((request_id,), *_) = await stage.rows("SELECT request_id FROM usage")
    entry = await browser.get(f"/admin/ledger?ref=req_{request_id.hex()}")
    assert entry.path.startswith("/admin/ledger/entry?id=req_")
    assert "A charge stays as it is" in entry.words


async def test_the_ledger_comes_in_pages_without_gap_or_repeat(stage: Stage) -> None:
    """Days and entries alternate over many pages; all of them together are the whole."""
    now_us = stage.gateway.clock()
    inserts: list[Statement] = []
    for day in range(70):
        at_us = now_us - day * DAY_US
        for number in range(2):
            values = (
                f"t{day:02d}{number}",
                at_us - number,
                "house:cash",
                "house:adjustments",
                1,
                "deposit",
                "test",
                "",
            )
            inserts.append(("INSERT INTO transfer VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values))
        usage = (
            "INSERT INTO usage_day (account_id, day, key_id, model, outcome, requests, tokens, charged_nanos, "
            "list_nanos, waived_nanos, shortfall_nanos, last_at) "
            "VALUES (1, ?, 1, 'm', 'finished', 1, 1, 1, 1, 0, 0, ?)"
        )
        sold = (
            "INSERT INTO house_day (day, model, outcome, requests, tokens, charged_nanos, list_nanos, waived_nanos, "
            "shortfall_nanos, last_at) VALUES (?, 'm', 'finished', 1, 1, 1, 1, 0, 0, ?)"
        )
        inserts += [(usage, (at_us // DAY_US, at_us)), (sold, (at_us // DAY_US, at_us))]
    close = (
        "INSERT INTO day_close (day, usage_rows, transfer_rows, previous_sha256, sha256, closed_at) "
        "VALUES (?, 1, 1, '', '', 1)"
    )
    await stage.gateway.store.write([*inserts, (close, (day_of(now_us),))])
    browser = await enter_admin(stage)
    seen: list[str] = []
    page = await browser.get("/admin/ledger")
    while True:
        rows = [
            [" ".join(cell.itertext()) for cell in row.iter() if str(cell.tag).endswith("td")]
            for row in page.find("tr")
        ]
        seen += [row[0] + row[5] for row in rows if len(row) == 6]
        older = [link.get("href", "") for link in page.find("a") if link.get("rel") == "next"]
        if not older:
            break
        page = await browser.get(older[0])
    whole = table(await browser.get("/admin/ledger.csv"))
    assert len(seen) == len(whole) == 70 * 3 + 1
    assert len(set(seen)) >= 70 * 3


async def test_an_entry_is_reversed_once_by_another_entry(stage: Stage) -> None:
    browser = await enter_admin(stage)
    money = f"/admin/customers/{stage.bob.account_id}/money"
    page = await browser.submit(await browser.get(money), money, kind="deposit", amount="20", reason="wire")
    _, _, form = page.form(money)
    await browser.post(money, form)
    entry = f"/admin/ledger/entry?id=operator:{form['id']}"
    page = await browser.get(entry)
    _, target, reverse = page.form("/admin/ledger/entry")
    refused = await browser.post(target, {**reverse, "reason": ""})
    assert refused.status == 422
    for _ in range(2):
        page = await browser.post(target, {**reverse, "reason": "it bounced"})
        assert page.status == 200
        assert "This is a reverse itself" in page.words
    assert "It has been reversed" in (await browser.get(entry)).words
    day = stage.gateway.clock() // DAY_US
    sales = await Sales.read(stage.gateway.store, day, stage.gateway.clock())
    assert sales.since(day * DAY_US).deposits_nanos == 0, "what was reversed has not come in"
    ((posted, topped_up),) = await stage.rows(
        "SELECT posted_nanos, topped_up_nanos FROM account WHERE id = ?", stage.bob.account_id
    )
    assert (posted, topped_up) == (0, 0)
    assert len(await written(stage, "ledger.reverse")) == 1
    again = await browser.post(target, {"id": f"reverse:operator:{form['id']}", "reason": "x"})
    assert again.status == 422
    assert (await browser.get("/admin/ledger/entry?id=nothing")).status == 404
    await books_hold(stage)


async def test_what_was_spent_is_not_taken_back(stage: Stage) -> None:
    """The reverse of a deposit that is used up is refused, in dollars, and written down."""
    browser = await enter_admin(stage)
    money = f"/admin/customers/{stage.bob.account_id}/money"
    for kind in ("deposit", "debit"):
        page = await browser.submit(await browser.get(money), money, kind=kind, amount="20", reason="wire")
        _, _, form = page.form(money)
        await browser.post(money, form)
    ((entry,),) = await stage.rows("SELECT id FROM transfer WHERE code = 'deposit'")
    page = await browser.post("/admin/ledger/entry", {"id": entry, "reason": "it bounced"})
    assert page.status == 422
    assert "nothing was moved: only $0.00 is free" in page.words
    assert len(await written(stage, "ledger.reverse.refused")) == 1


async def test_the_reverse_of_a_deposit_takes_back_the_plan_it_had_earned(stage: Stage) -> None:
    """Also where the process died before it said so; and the customer reads all of it, with the reasons."""
    browser = await enter_admin(stage)
    money = f"/admin/customers/{stage.bob.account_id}/money"
    page = await browser.submit(await browser.get(money), money, kind="deposit", amount="500", reason="wire of May")
    _, _, form = page.form(money)
    await browser.post(money, form)
    plan = "SELECT plan FROM account WHERE id = ?"
    ((earned,),) = await stage.rows(plan, stage.bob.account_id)
    entry = f"operator:{form['id']}"
    for _ in range(2):
        assert (await browser.post("/admin/ledger/entry", {"id": entry, "reason": "it bounced"})).status == 200
        ((left,),) = await stage.rows(plan, stage.bob.account_id)
        assert left != earned
        await stage.gateway.store.write([("UPDATE account SET plan = ? WHERE id = ?", (earned, stage.bob.account_id))])
    bob = await enter(stage, stage.bob.email)
    told = (await bob.get("/dashboard/transactions")).words
    assert "wire of May" in told
    assert "deposit undone" in told
    assert "it bounced" in told


async def test_what_operators_and_chains_move_is_told_with_its_reason(stage: Stage) -> None:
    """Refunds, credits and debits, and a payment that was undone: each with words of its own."""
    browser = await enter_admin(stage)
    money = f"/admin/customers/{stage.bob.account_id}/money"
    for kind in ("refund", "credit", "debit"):
        reason = f"because of {kind}"
        page = await browser.submit(await browser.get(money), money, kind=kind, amount="5", reason=reason)
        _, _, form = page.form(money)
        await browser.post(money, form)
    undone = Transfer(
        id="reversal:bitcoin:ab:0:2",
        debit_account=customer_account(stage.bob.account_id),
        credit_account="house:cash",
        amount_nanos=10**9,
        code="deposit",
        actor="rail:bitcoin",
        memo="reversed: 0.00001 BTC on Bitcoin has left its chain",
    )
    await stage.gateway.ledger.post(undone)
    told = (await (await enter(stage, stage.bob.email)).get("/dashboard/transactions")).words
    for words in ("because of refund", "because of credit", "because of debit", "payment undone", "has left its chain"):
        assert words in told


# the audit log


async def test_the_audit_log_is_filtered_exported_and_never_changed(stage: Stage) -> None:
    browser = await enter_admin(stage)
    customer = f"/admin/customers/{stage.bob.account_id}"
    for act in ("suspend", "resume"):
        await browser.submit(await browser.get(customer), f"{customer}/{act}", reason=f"=HYPERLINK({act})")
    page = await browser.get("/admin/audit?action=account.suspend")
    assert page.words.count("=HYPERLINK(suspend)") == 1
    assert "=HYPERLINK(resume)" not in page.words
    assert [node.text for node in page.find("ins")] == ["suspended"]
    assert [node.text for node in page.find("del")] == ["active"]
    rows = table(await browser.get(f"/admin/audit.csv?target=customer:{stage.bob.account_id}"))
    assert [(row["action"], row["reason"]) for row in rows] == [
        ("account.resume", "'=HYPERLINK(resume)"),
        ("account.suspend", "'=HYPERLINK(suspend)"),
    ]
    told = json.loads((await browser.get("/admin/audit.json?actor=cli:test")).text)
    assert [line["action"] for line in told] == ["account.role"]
    assert (await browser.get("/admin/audit?since=24h&actor=nobody")).words.count("No such lines") == 1
    for statement in ("UPDATE audit_log SET reason = 'x'", "DELETE FROM audit_log"):
        with pytest.raises(Exception, match="never changed"):
            await stage.gateway.store.write([(statement, ())])
