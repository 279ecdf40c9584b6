"""The operator's pages: who sees them, what they tell, and what is done about customers there."""

from typing import Final

import pytest

from farebox.accounts.invitations import list_invitations
from farebox.accounts.mail import letter
from farebox.books.days import close_days
from farebox.clock import DAY_US
from tests.stage import OpenStage, Stage
from tests.web.browse import PASSWORD, Page, browser_of, enter, mails_to
from tests.web.operators import OPERATOR, dollars, enter_admin, forget_proof, table, written

OPTIONAL: Final = '[site]\nadmin_factor = "optional"\n'


# who sees it


async def test_there_is_no_admin_for_anybody_else(stage: Stage) -> None:
    alice = await enter(stage, stage.alice.email)
    nothing = await alice.get("/nothing/here")
    for browser in (alice, browser_of(stage)):
        page = await browser.get("/admin", follow=False)
        assert (page.status, page.words) == (404, nothing.words)
    assert "Admin" not in (await alice.get("/dashboard")).words


async def test_an_operator_needs_a_second_factor_unless_the_house_says_otherwise(open_stage: OpenStage) -> None:
    async with open_stage() as stage:
        browser = await enter_admin(stage)
        assert (await browser.get("/admin")).status == 200
        await stage.gateway.store.write([("UPDATE session SET factor_at = NULL", ())])
        page = await browser.get("/admin")
        assert page.status == 403
        assert "A second factor first" in page.words
        await stage.gateway.store.write(
            [
                (
                    "INSERT INTO totp (account_id, secret, set_at) SELECT id, ?, 1 FROM account WHERE role = 'admin'",
                    (b"x",),
                )
            ]
        )
        assert (await browser.get("/admin")).path == "/confirm?next=/admin"
        await stage.gateway.store.write([("UPDATE account SET status = 'suspended' WHERE role = 'admin'", ())])
        assert (await browser.get("/admin")).status == 404
    async with open_stage(OPTIONAL) as stage:
        await stage.gateway.store.write([("UPDATE account SET status = 'active'", ()), ("DELETE FROM totp", ())])
        again = browser_of(stage)
        await again.sign_in(OPERATOR)
        assert (await again.get("/admin")).status == 200


async def test_a_change_needs_a_recent_proof_and_goes_on_after_it(stage: Stage) -> None:
    browser = await enter_admin(stage)
    await forget_proof(stage)
    customer = f"/admin/customers/{stage.bob.account_id}"
    page = await browser.get(customer)
    assert page.status == 200
    asked = await browser.post(f"{customer}/suspend", {"reason": "chargeback"}, follow=False)
    assert asked.status == 307
    assert asked.header("location").startswith("/confirm?")
    assert await stage.rows("SELECT status FROM account WHERE id = ?", stage.bob.account_id) == [("active",)]


# today


async def test_today_tells_what_was_sold_what_it_cost_and_that_the_books_agree(open_stage: OpenStage) -> None:
    async with open_stage("[site]\ncost_percent = 30\n") as stage:
        for _ in range(3):
            assert (await stage.ask(stage.alice))[0] == 200
        browser = await enter_admin(stage)
        ((charged, listed),) = await stage.rows("SELECT sum(charged_nanos), sum(list_nanos) FROM usage")
        page = await browser.get("/admin")
        cost = -(-listed * 30 // 100)
        for nanos in (charged, cost, charged - cost):
            assert any(dollars(nanos) in (node.get("title") or "") for node in page.find("span")), nanos
        assert "agrees worked out for this page" in page.words
        assert "The books do not agree" not in page.words
        assert f"{3:,}" in page.words


async def test_today_cries_out_when_balances_and_entries_part(stage: Stage) -> None:
    browser = await enter_admin(stage)
    await stage.gateway.store.write([("UPDATE account SET posted_nanos = posted_nanos + 1 WHERE id = 1", ())])
    page = await browser.get("/admin")
    assert "The books do not agree" in page.words
    await stage.gateway.store.write([("UPDATE account SET posted_nanos = posted_nanos - 1 WHERE id = 1", ())])


async def test_closed_days_count_as_they_were(stage: Stage) -> None:
    """Figures are the same whether a day was summed at its close or is added up from its calls."""
    for _ in range(2):
        assert (await stage.ask(stage.alice))[0] == 200
    browser = await enter_admin(stage)
    before = await browser.get("/admin?range=7d")
    ledger_before = table(await browser.get("/admin/ledger.csv"))
    books = stage.gateway.books
    assert books is not None
    tomorrow = stage.gateway.clock() + DAY_US + 2 * 3_600_000_000
    assert await close_days(stage.gateway.store, tomorrow)
    after = await browser.get("/admin?range=7d")
    assert figures_of(after) == figures_of(before)
    assert table(await browser.get("/admin/ledger.csv")) == ledger_before
    assert "Last closed day none yet" in before.words
    assert "Last closed day none yet" not in after.words


def figures_of(page: Page) -> list[str]:
    return [node.get("title") or "" for node in page.find("span") if (node.get("title") or "").startswith(("$", "-$"))]


# customers


async def test_customers_are_found_by_address_id_and_key(stage: Stage) -> None:
    browser = await enter_admin(stage)
    alice, bob = stage.alice, stage.bob
    for wanted, found in (
        ("", {alice.email, bob.email, OPERATOR}),
        ("alice", {alice.email}),
        ("ALICE@example", {alice.email}),
        (str(bob.account_id), {bob.email}),
        (alice.key[-4:], {alice.email}),
        (alice.key, {alice.email}),
        ("%", set()),
        ("al_ce", set()),
        ("nobody", set()),
    ):
        page = await browser.get(f"/admin/customers?q={wanted.replace('%', '%25')}")
        shown = {email for email in (alice.email, bob.email, OPERATOR) if f">{email}</a>" in page.text}
        assert shown >= found, wanted
        assert not wanted or len(wanted) == 4 or shown == found, wanted
        assert alice.key not in page.text
    rows = table(await browser.get("/admin/customers.csv?status=active"))
    assert [row["email"] for row in rows] == [OPERATOR, bob.email, alice.email]
    assert rows[2]["balance_usd"] == "100.00"
    assert (await browser.get("/admin/customers?status=suspended")).words.count("No such customers") == 1


async def test_customers_come_in_pages(stage: Stage) -> None:
    for number in range(60):
        await stage.person(f"p{number}@example.com")
    browser = await enter_admin(stage)
    page = await browser.get("/admin/customers?q=@example.com")
    assert page.text.count('href="/admin/customers/') == 50
    (older,) = [link.get("href", "") for link in page.find("a") if link.get("rel") == "next"]
    assert (await browser.get(older)).text.count('href="/admin/customers/') == 13
    assert len(table(await browser.get("/admin/customers.csv"))) == 63


async def test_suspending_stops_calls_at_once_and_is_written_down(stage: Stage) -> None:
    browser = await enter_admin(stage)
    customer = f"/admin/customers/{stage.alice.account_id}"
    assert (await stage.ask(stage.alice))[0] == 200
    page = await browser.submit(await browser.get(customer), f"{customer}/suspend", reason="  a stolen   card ")
    assert "Suspended: calls are refused from now on." in page.words
    assert (await stage.ask(stage.alice))[0] == 403
    assert await written(stage, "account.suspend") == [
        {
            "actor": OPERATOR,
            "address": "127.0.0.1",
            "target": f"customer:{stage.alice.account_id}",
            "before": {"status": "active"},
            "after": {"status": "suspended"},
            "reason": "a stolen card",
        }
    ]
    await browser.submit(page, f"{customer}/resume", reason="sorted out")
    assert (await stage.ask(stage.alice))[0] == 200


async def test_plan_and_limits_of_ones_own_hold_for_the_next_call(stage: Stage) -> None:
    browser = await enter_admin(stage)
    customer = f"/admin/customers/{stage.alice.account_id}"
    await browser.submit(await browser.get(customer), f"{customer}/plan", plan="enterprise", reason="a contract")
    page = await browser.get(customer)
    page = await browser.submit(page, f"{customer}/limits", requests_per_minute="1", concurrent="2", reason="a guest")
    assert "with limits of its own" in page.words
    assert (await stage.ask(stage.alice))[0] == 200
    assert (await stage.ask(stage.alice))[0] == 429
    ((plan, *limits),) = await stage.rows(
        "SELECT plan, requests_per_minute, tokens_per_minute, concurrent FROM account WHERE id = ?",
        stage.alice.account_id,
    )
    assert (plan, limits) == ("enterprise", [1, None, 2])
    (line,) = await written(stage, "account.limits")
    assert line["after"] == {"requests_per_minute": 1, "tokens_per_minute": None, "concurrent": 2}
    page = await browser.submit(page, f"{customer}/limits", requests_per_minute="", concurrent="", reason="no more")
    assert (await stage.ask(stage.alice))[0] == 200


@pytest.mark.parametrize(
    ("act", "form"),
    [
        ("suspend", {"reason": ""}),
        ("suspend", {"reason": "x" * 501}),
        ("suspend", {"reason": "a\0b"}),
        ("plan", {"plan": "gold", "reason": "x"}),
        ("limits", {"requests_per_minute": "0", "reason": "x"}),
        ("limits", {"tokens_per_minute": "-5", "reason": "x"}),
        ("limits", {"concurrent": "9" * 20, "reason": "x"}),
        ("limits", {"concurrent": "0" * 19 + "9" * 30, "reason": "x"}),
        ("limits", {"concurrent": "0" * 5000, "reason": "x"}),
        ("limits", {"concurrent": "two", "reason": "x"}),
        ("notes", {"notes": "x" * 10_001}),
    ],
)
async def test_what_makes_no_sense_changes_nothing(stage: Stage, act: str, form: dict[str, str]) -> None:
    browser = await enter_admin(stage)
    before = await stage.rows("SELECT * FROM account WHERE id = ?", stage.bob.account_id)
    page = await browser.post(f"/admin/customers/{stage.bob.account_id}/{act}", form)
    assert page.status == 422
    assert len(list(page.find("p", role="alert"))) == 1
    assert page.faults() == []
    assert await stage.rows("SELECT * FROM account WHERE id = ?", stage.bob.account_id) == before
    assert len(await stage.rows("SELECT 1 FROM audit_log WHERE actor = ?", OPERATOR)) == 0


async def test_helping_with_sign_in_and_notes(stage: Stage) -> None:
    """Signing out, taking a second factor away, confirming an address and keeping notes do that, and no more."""
    bob = await enter(stage, stage.bob.email)
    browser = await enter_admin(stage)
    account_id = stage.bob.account_id
    customer = f"/admin/customers/{account_id}"
    await stage.gateway.store.write(
        [
            ("INSERT INTO totp (account_id, secret, set_at) VALUES (?, ?, 1)", (account_id, b"x")),
            ("UPDATE account SET verified_at = NULL WHERE id = ?", (account_id,)),
        ]
    )
    page = await browser.submit(await browser.get(customer), f"{customer}/notes", notes="pays late\n<b>always</b>")
    assert "<b>always</b>" in page.words
    page = await browser.submit(page, f"{customer}/verify", reason="showed a passport")
    assert "address confirmed" in page.words
    page = await browser.submit(page, f"{customer}/sign-out", reason="asked for it")
    assert (await bob.get("/dashboard")).path.startswith("/login")
    await browser.submit(page, f"{customer}/reset-factor", reason="lost the phone")
    assert await stage.rows("SELECT 1 FROM totp WHERE account_id = ?", account_id) == []
    assert (await mails_to(stage, stage.bob.email))[-1][0] == "No second factor any more at Farebox"
    await bob.sign_in(stage.bob.email)
    assert (await bob.get("/dashboard")).path == "/dashboard"
    assert "pays late" not in (await bob.get("/dashboard/settings")).text
    for action in ("account.notes", "account.verify", "account.sign_out", "account.reset_factor"):
        assert [line["target"] for line in await written(stage, action)] == [f"customer:{account_id}"], action


# looking at the site as a customer


async def test_an_operator_sees_what_a_customer_sees_and_changes_nothing(stage: Stage) -> None:
    browser = await enter_admin(stage)
    customer = f"/admin/customers/{stage.alice.account_id}"
    page = await browser.submit(await browser.get(customer), f"{customer}/view", reason="a question about a charge")
    assert page.path == "/dashboard"
    assert f"You see the account of {stage.alice.email} as its owner does." in page.words
    assert "$100.00" in page.words
    refused = await browser.post("/dashboard/keys", {"name": "sneaky", "lifetime": ""})
    assert refused.status == 403
    assert "Only to look at" in refused.words
    assert await stage.rows("SELECT 1 FROM api_key WHERE name = 'sneaky'") == []
    assert (await browser.get("/admin")).status == 200
    back = await browser.submit(page, "/admin/viewing/end")
    assert back.path == customer
    own = await browser.get("/dashboard")
    assert OPERATOR in own.text
    assert stage.alice.email not in own.text
    (line,) = await written(stage, "account.view")
    assert (line["target"], line["reason"]) == (f"customer:{stage.alice.account_id}", "a question about a charge")
    assert len(await written(stage, "account.view_end")) == 1


async def test_a_look_ends_with_the_role(stage: Stage) -> None:
    browser = await enter_admin(stage)
    customer = f"/admin/customers/{stage.alice.account_id}"
    await browser.submit(await browser.get(customer), f"{customer}/view", reason="help")
    await stage.gateway.store.write([("UPDATE account SET role = 'customer'", ())])
    page = await browser.get("/dashboard")
    assert stage.alice.email not in page.text
    assert OPERATOR in page.text


# letters, invitations, settings


async def test_letters_are_read_and_sent_again_and_links_are_handed_on_by_hand_alone(open_stage: OpenStage) -> None:
    async with open_stage() as stage:
        browser = await enter_admin(stage)
        await browser_of(stage).post("/forgot", {"email": stage.bob.email})
        ((letter_id,),) = await stage.rows("SELECT id FROM outbox WHERE recipient = ?", stage.bob.email)
        page = await browser.get("/admin/outbox")
        assert stage.bob.email in page.words
        assert "No mail server is configured" in page.words
        page = await browser.get(f"/admin/outbox/{letter_id}")
        assert "/reset?token=" in page.words
        await browser.get(f"/admin/outbox/{letter_id}")
        (line,) = await written(stage, "letter.read")
        assert line["target"] == f"letter:{letter_id}"
        await stage.gateway.store.write([("UPDATE outbox SET tries = 8, error = 'no route', next_at = 0", ())])
        assert "no route" in (await browser.get("/admin/outbox?state=failing")).words
        page = await browser.submit(page, f"/admin/outbox/{letter_id}/again")
        assert await stage.rows("SELECT tries, error, sent_at FROM outbox WHERE id = ?", letter_id) == [(0, None, None)]
        (line,) = await written(stage, "letter.send_again")
        assert line["before"]["error"] == "no route"
        assert (await browser.get("/admin/outbox/999")).status == 404
    mail = '[mail]\nhost = "127.0.0.1"\nport = 1\ntls = "off"\nsender = "post@farebox.example"\n'
    async with open_stage(mail) as stage:
        again = browser_of(stage)
        await again.sign_in(OPERATOR)
        await stage.gateway.store.write([("UPDATE session SET factor_at = seen_at", ())])
        page = await again.get(f"/admin/outbox/{letter_id}")
        assert "/reset?token=…" in page.words
        assert "Its link is not shown" in page.words


async def test_invitations_are_made_shown_once_and_taken_back(stage: Stage) -> None:
    browser = await enter_admin(stage)
    page = await browser.get("/admin/invitations")
    made = await browser.submit(page, "/admin/invitations", email="carol@example.com", note="from the fair", days="3")
    (shown,) = made.find("input", id="link")
    assert "/signup?invitation=" in shown.get("value", "")
    assert shown.get("value", "") not in (await browser.get("/admin/invitations")).text
    bad = await browser.submit(page, "/admin/invitations", email="carol", days="3")
    assert bad.status == 422
    assert (await browser.submit(page, "/admin/invitations", days="9999"[:3])).status == 422
    (one,) = await list_invitations(stage.gateway.store)
    await browser.submit(await browser.get("/admin/invitations"), f"/admin/invitations/{one.id}/revoke")
    (one,) = await list_invitations(stage.gateway.store)
    assert one.state(stage.gateway.clock()) == "revoked"
    await browser.post(f"/admin/invitations/{one.id}/revoke")
    assert len(await written(stage, "invitation.revoke")) == 1
    (line,) = await written(stage, "invitation.make")
    assert line["after"] == {"email": "carol@example.com", "days": 3}


async def test_settings_tell_what_is_in_force_and_no_secret(
    open_stage: OpenStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THE_SECRET", "s" * 40)
    async with open_stage("[keys]\nprefix = 'sk-cc-'\n[site]\nname = 'Ferry'\n") as stage:
        browser = await enter_admin(stage)
        page = await browser.get("/admin/settings")
        assert "Second factor here required" in page.words
        assert "Ferry" in page.words
        assert "farebox.toml:" in page.words
        await browser.submit(page, "/admin/settings/mail")
        assert [subject for subject, _ in await mails_to(stage, OPERATOR)][-1] == "A letter from Ferry to try mail with"
        assert len(await written(stage, "mail.try")) == 1


async def test_secrets_of_the_configuration_are_on_no_page(open_stage: OpenStage) -> None:
    secret = (
        '[mail]\nhost = "127.0.0.1"\nport = 1\nuser = "u"\npassword = "hush-4711"\nsender = "post@farebox.example"\n'
    )
    async with open_stage(secret) as stage:
        browser = await enter_admin(stage)
        page = await browser.get("/admin/settings")
        assert "password" in page.words
        assert "hush-4711" not in page.text


async def test_waiting_letters_that_fail_show_on_the_first_page(stage: Stage) -> None:
    browser = await enter_admin(stage)
    assert "could not be sent" not in (await browser.get("/admin")).words
    await stage.gateway.store.write(
        [letter(stage.bob.email, "Hello", "words", 1), ("UPDATE outbox SET tries = 1, next_at = ?", (2**62,))]
    )
    assert "could not be sent yet" in (await browser.get("/admin")).words


async def test_the_present_password_alone_lets_nobody_in(stage: Stage) -> None:
    """A session that was never confirmed by a second factor sees nothing, whatever it asks for."""
    browser = await enter_admin(stage)
    await stage.gateway.store.write([("UPDATE session SET factor_at = NULL", ())])
    page = await browser.post(f"/admin/customers/{stage.bob.account_id}/suspend", {"reason": "x", "password": PASSWORD})
    assert page.status == 403
    assert await stage.rows("SELECT status FROM account WHERE id = ?", stage.bob.account_id) == [("active",)]
