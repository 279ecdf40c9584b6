"""The second step of a sign-in, proving who one is before what matters, recovery codes; and what thieves try."""

import asyncio
import re

import pyotp

from farebox.accounts.sealing import Seals
from farebox.accounts.sessions import ADMIN_IDLE_S, ADMIN_LONGEST_S, SURE_S
from farebox.accounts.totp import Totp
from farebox.clock import US_PER_S
from farebox.secret import Secret
from farebox.store.protocol import Statement
from farebox.web.devices import name_device
from tests.stage import Stage
from tests.web.browse import PASSWORD, Browser, Page, browser_of, enter, mails_to

START = "/dashboard/settings/second-factor"
LIMIT = 10 * 60


async def change(stage: Stage, sql: str, *params: object) -> None:
    statement: Statement = (sql, params)
    await stage.gateway.store.write([statement])


def code_of(stage: Stage, secret: str, steps: int = 0) -> str:
    """Give the code of an app, so many steps of 30 s from now."""
    return pyotp.TOTP(secret).generate_otp(stage.gateway.clock() // (30 * US_PER_S) + steps)


async def forget_steps(stage: Stage) -> None:
    """Let time pass for the app: the codes of now are new ones again."""
    await change(stage, "UPDATE totp SET last_step = 0")


async def set_up(stage: Stage, browser: Browser) -> tuple[str, list[str]]:
    """Set an app up as its owner does. Answers its secret and the recovery codes."""
    page = await browser.get(f"{START}/app")
    secret = shown_secret(page)
    done = await browser.submit(page, f"{START}/app", code=code_of(stage, secret))
    assert done.status == 200, done.words
    await forget_steps(stage)
    return secret, shown_codes(done)


def shown_secret(page: Page) -> str:
    (code,) = page.find("code")
    return code.get("data-copy", "")


def shown_codes(page: Page) -> list[str]:
    (box,) = page.find("pre", id="codes")
    return (box.text or "").split()


async def half(stage: Stage, email: str = "", browser: Browser | None = None) -> Browser:
    """Come as far as the password leads."""
    browser = browser or browser_of(stage)
    page = await browser.sign_in(email or stage.alice.email)
    assert page.path == "/login/second", page.words
    return browser


async def second(browser: Browser, code: str) -> Page:
    return await browser.post("/login/second", {"code": code})


async def test_from_setting_it_up_to_signing_in_with_it_and_turning_it_off(stage: Stage) -> None:
    browser = await enter(stage, stage.alice.email)
    other = await enter(stage, stage.alice.email, "another browser")
    page = await browser.get(f"{START}/app")
    secret = shown_secret(page)
    assert len(secret) == 32
    assert len(list(page.find("svg", class_="qr"))) == 1
    wrong = await browser.submit(page, f"{START}/app", code="000000")
    assert wrong.status == 422
    assert shown_secret(wrong) == secret
    cookie = browser.cookies["session"]
    done = await browser.submit(wrong, f"{START}/app", code=code_of(stage, secret))
    codes = shown_codes(done)
    assert len(set(codes)) == 10
    assert browser.cookies["session"] != cookie
    assert (await other.get("/dashboard")).path.startswith("/login")
    assert (await mails_to(stage, stage.alice.email))[-1][0] == "Two-step sign-in is on at Farebox"
    file = await browser.submit(done, f"{START}/file")
    assert file.header("content-disposition") == 'attachment; filename="recovery-codes.txt"'
    assert all(code in file.text for code in codes)
    assert "10 of 10 are left" in (await browser.get(START)).words

    await forget_steps(stage)
    before = other.cookies["session"]
    await half(stage, browser=other)
    assert other.cookies["session"] == before
    assert (await other.get("/dashboard")).path.startswith("/login")
    assert (await second(other, code_of(stage, secret))).path == "/dashboard"
    assert "half" not in other.cookies
    ((factor_at, sure_at),) = await stage.rows("SELECT factor_at, sure_at FROM session WHERE agent = 'another browser'")
    assert stage.gateway.clock() - factor_at < 60 * US_PER_S
    assert factor_at >= sure_at - US_PER_S

    await forget_steps(stage)
    refused = await other.post(f"{START}/off", {"password": "wrong", "code": code_of(stage, secret)})
    assert refused.status == 422
    refused = await other.post(f"{START}/off", {"password": PASSWORD, "code": "000000"})
    assert refused.status == 422
    off = await other.submit(await other.get(START), f"{START}/off", password=PASSWORD, code=code_of(stage, secret))
    assert "The password alone is enough" in off.words
    assert not await stage.rows("SELECT 1 FROM totp UNION ALL SELECT 1 FROM recovery_code")
    assert (await mails_to(stage, stage.alice.email))[-1][0] == "Two-step sign-in is off at Farebox"
    assert (await browser_of(stage).sign_in(stage.alice.email)).path == "/dashboard"


async def test_the_secret_and_the_codes_are_kept_so_that_nobody_reads_them(stage: Stage) -> None:
    secret, codes = await set_up(stage, await enter(stage, stage.alice.email))
    kept = repr(await stage.rows("SELECT * FROM totp")) + repr(await stage.rows("SELECT * FROM recovery_code"))
    for one in (secret, *codes, *(code.replace("-", "") for code in codes)):
        assert one not in kept
        assert one not in repr(stage.events)
    sealed = (await stage.rows("SELECT secret FROM totp"))[0][0]
    await enter(stage, stage.bob.email)
    bob = (stage.bob.account_id, bytes(sealed), 1)
    await change(stage, "INSERT INTO totp (account_id, secret, set_at) VALUES (?, ?, ?)", *bob)
    page = await second(await half(stage, stage.bob.email), code_of(stage, secret))
    assert page.status == 422  # a secret copied into another's row opens no more
    assert "use a recovery code" in page.words


async def test_clocks_may_differ_by_half_a_minute(stage: Stage) -> None:
    store, account_id, now_us = stage.gateway.store, stage.alice.account_id, 1_800_000_000 * US_PER_S
    totp = Totp(store, await Seals.open(store, Secret(""), now_us), "Farebox")
    offer = totp.offer(account_id, "alice@example.com", now_us)
    codes = pyotp.TOTP(offer.secret)
    for seconds, right in ((-60, False), (-30, True), (0, True), (30, True), (60, False)):
        code = codes.at(now_us // US_PER_S + seconds)
        keep = totp.accept(account_id, offer.sealed, code, now_us)
        assert (keep is not None) == right, seconds
        assert keep is None or (await store.write([keep])) == [int(seconds == -30)]
        await change(stage, "UPDATE totp SET last_step = 0")
        assert await totp.is_right(account_id, code, now_us) == right, seconds
        assert not await totp.is_right(account_id, code, now_us)


async def test_a_code_counts_once_and_so_does_each_older_one(stage: Stage) -> None:
    secret, _ = await set_up(stage, await enter(stage, stage.alice.email))
    code, older = code_of(stage, secret), code_of(stage, secret, -1)
    assert (await second(await half(stage), code)).path == "/dashboard"
    for again in (code, older):
        page = await second(await half(stage), again)
        assert page.status == 422
        assert "used before" in page.words


async def test_of_many_who_send_one_code_at_once_one_comes_in(stage: Stage) -> None:
    secret, codes = await set_up(stage, await enter(stage, stage.alice.email))
    for code in (code_of(stage, secret), codes[0]):
        thieves = [await half(stage) for _ in range(4)]
        pages = await asyncio.gather(*(second(thief, code) for thief in thieves))
        assert sorted(page.path for page in pages) == ["/dashboard"] + ["/login/second"] * 3
        await change(stage, "DELETE FROM failure")
    assert (await stage.rows("SELECT count(*) FROM recovery_code"))[0][0] == 9


async def test_a_recovery_code_stands_for_a_code_once_and_its_owner_is_told(stage: Stage) -> None:
    _, codes = await set_up(stage, await enter(stage, stage.alice.email))
    typed = codes[3].upper().replace("-", " ")
    browser = await half(stage)
    assert (await second(browser, typed)).path == "/dashboard"
    (body,) = [body for subject, body in await mails_to(stage, stage.alice.email) if "recovery code" in subject]
    assert "9 are left" in body
    assert (await second(await half(stage), codes[3])).status == 422
    fresh = shown_codes(await browser.submit(await browser.get(START), f"{START}/codes"))
    assert not set(fresh) & set(codes)
    assert (await second(await half(stage), codes[4])).status == 422
    assert (await second(await half(stage), fresh[4])).path == "/dashboard"


async def test_codes_of_one_account_open_no_other(stage: Stage) -> None:
    secret, codes = await set_up(stage, await enter(stage, stage.alice.email))
    await set_up(stage, await enter(stage, stage.bob.email))
    for code in (codes[0], code_of(stage, secret)):
        assert (await second(await half(stage, stage.bob.email), code)).status == 422
    assert (await stage.rows("SELECT count(*) FROM recovery_code"))[0][0] == 20


async def test_codes_are_guessed_slowly_and_the_password_does_not_help(stage: Stage) -> None:
    """Wrong codes are counted by account, whatever browser they come from, and a right password forgives none."""
    secret, _ = await set_up(stage, await enter(stage, stage.alice.email))
    thief = await half(stage)
    statuses = [(await second(thief, "000000")).status for _ in range(6)]
    assert statuses == [422] * 5 + [429]
    subject, body = (await mails_to(stage, stage.alice.email))[-1]
    assert subject == "Wrong codes at Farebox"
    assert "the right password" in body
    other = await half(stage)
    page = await second(other, code_of(stage, secret))
    assert page.status == 429
    assert re.search(r"try again in \d+ s", page.words)
    await change(stage, "UPDATE failure SET at = at - ?", 2 * US_PER_S)
    assert (await second(other, code_of(stage, secret))).path == "/dashboard"
    assert not await stage.rows("SELECT 1 FROM failure WHERE name = ?", f"account:factor {stage.alice.account_id}")


async def test_a_half_done_sign_in_is_bound_to_its_browser_and_ends(stage: Stage) -> None:
    secret, _ = await set_up(stage, await enter(stage, stage.alice.email))
    first = await half(stage)
    assert (await browser_of(stage).post("/login/second", {"code": code_of(stage, secret)})).path == "/login"
    for forged in ("", "x", "0" * 43, "é", "a" * 5000):
        thief = browser_of(stage)
        thief.cookies["half"] = forged
        assert (await second(thief, code_of(stage, secret))).path == "/login"
    await change(stage, "UPDATE challenge SET ends_at = ends_at - ?", LIMIT * US_PER_S)
    assert (await second(first, code_of(stage, secret))).path == "/login"
    again = await half(stage)
    cookies = dict(again.cookies)
    assert (await second(again, code_of(stage, secret))).path == "/dashboard"
    await forget_steps(stage)
    thief = browser_of(stage)
    thief.cookies = {"half": cookies["half"]}
    assert (await second(thief, code_of(stage, secret))).path == "/login"
    (cookie,) = [one for one in again.set_cookies if one.startswith("half=") and "Max-Age=0" not in one]
    parts = {part.strip().lower() for part in cookie.split(";")[1:]}
    assert parts == {"httponly", "path=/", "samesite=lax", f"max-age={LIMIT}"}


async def test_a_new_password_ends_what_was_begun_with_the_old_one(stage: Stage) -> None:
    owner = await enter(stage, stage.alice.email)
    secret, _ = await set_up(stage, owner)
    thief = await half(stage)
    page = await owner.get("/dashboard/settings/sign-in")
    new = "otter map"  # beside a second factor eight characters are enough
    changed = await owner.submit(page, "/dashboard/password", password=PASSWORD, new_password=new)
    assert "has been changed" in changed.words, changed.words
    assert (await second(thief, code_of(stage, secret))).path == "/login"
    off = await owner.post(f"{START}/off", {"password": new, "code": code_of(stage, secret)})
    assert off.status == 422
    assert "choose a longer one first" in off.words


async def test_the_second_step_leads_to_the_page_that_was_asked_for(stage: Stage) -> None:
    secret, _ = await set_up(stage, await enter(stage, stage.alice.email))
    browser = browser_of(stage)
    asked = await browser.get("/dashboard/requests?status=ok")
    await browser.submit(asked, "/login", email=stage.alice.email, password=PASSWORD)
    assert (await second(browser, code_of(stage, secret))).path == "/dashboard/requests?status=ok"


async def test_whether_there_is_a_second_factor_is_told_to_who_knows_the_password_alone(stage: Stage) -> None:
    await set_up(stage, await enter(stage, stage.alice.email))
    await enter(stage, stage.bob.email)
    answers = []
    for email in (stage.alice.email, stage.bob.email, "nobody@example.com"):
        page = await browser_of(stage).post("/login", {"email": email, "password": "a wrong password"})
        answers.append((page.status, page.text.replace(email, "…")))
    assert len(set(answers)) == 1


async def test_an_app_is_set_up_once_and_only_with_the_secret_that_was_shown(stage: Stage) -> None:
    alice, bob = await enter(stage, stage.alice.email), await enter(stage, stage.bob.email)
    page, foreign = await alice.get(f"{START}/app"), await bob.get(f"{START}/app")
    stolen = foreign.form(f"{START}/app")[2]["offer"]
    for offer in (stolen, "", "AAAA", "!", "é"):
        answer = await alice.post(f"{START}/app", {"offer": offer, "code": code_of(stage, shown_secret(foreign))})
        assert answer.status == 422
    both = await asyncio.gather(
        *(alice.submit(page, f"{START}/app", code=code_of(stage, shown_secret(page))) for _ in range(2))
    )
    assert sum(len(list(one.find("pre"))) for one in both) == 1
    assert (await stage.rows("SELECT count(*) FROM recovery_code"))[0][0] == 10


# proving who one is, again


async def unsure(stage: Stage) -> None:
    await change(stage, "UPDATE session SET sure_at = sure_at - ?", SURE_S * US_PER_S)


async def test_what_matters_asks_again_after_a_quarter_of_an_hour_and_goes_on_where_it_was(stage: Stage) -> None:
    browser = await enter(stage, stage.alice.email)
    await unsure(stage)
    asked = await browser.get(f"{START}/app")
    assert asked.path == f"/confirm?next={START}/app"
    wrong = await browser.submit(asked, "/confirm", present_password="not this one at all")
    assert wrong.status == 422
    cookie = browser.cookies["session"]
    page = await browser.submit(wrong, "/confirm", present_password=PASSWORD)
    assert page.path == f"{START}/app"
    assert browser.cookies["session"] != cookie
    old = browser_of(stage)
    old.cookies["session"] = cookie
    assert (await old.get("/dashboard")).path.startswith("/login")
    assert (await browser.get(f"{START}/app")).path == f"{START}/app"


async def test_a_form_that_came_too_late_is_sent_on_once_it_is_confirmed(stage: Stage) -> None:
    browser = await enter(stage, stage.alice.email)
    _, codes = await set_up(stage, browser)
    await unsure(stage)
    sent = await browser.post(f"{START}/codes", {"anything": '"><b>'}, follow=False)
    assert sent.status == 307
    assert not await stage.rows("SELECT 1 FROM outbox WHERE subject LIKE 'New recovery codes%'")
    asked = await browser.post(sent.header("location"), {"anything": '"><b>'})
    filled = asked.form("/confirm")[2]
    assert filled["anything"] == '"><b>'
    done = await browser.post("/confirm", {**filled, "present_password": PASSWORD, "code": codes[0]}, follow=False)
    assert (done.status, done.header("location")) == (307, f"{START}/codes")
    assert len(shown_codes(await browser.post(f"{START}/codes", filled))) == 10


async def test_a_key_is_made_by_who_is_sure_and_seen_by_who_is_not(stage: Stage) -> None:
    browser = await enter(stage, stage.alice.email)
    await unsure(stage)
    shown = await browser.get("/dashboard/keys")
    assert shown.path == "/dashboard/keys"
    fields = {**shown.form("/dashboard/keys")[2], "name": "late", "model.claude-sonnet-4-6": "1"}
    page = f"http://127.0.0.1:{stage.gateway.port}/dashboard/keys"
    sent = await browser.post("/dashboard/keys", fields, {"referer": page}, follow=False)
    assert sent.status == 307
    assert "next=/dashboard/keys&" in sent.header("location")
    asked = await browser.post(sent.header("location"), fields)
    kept = asked.form("/confirm")[2]
    done = await browser.post("/confirm", {**kept, "present_password": PASSWORD}, follow=False)
    assert (done.status, done.header("location")) == (307, "/dashboard/keys")
    assert not await stage.rows("SELECT 1 FROM api_key WHERE name = 'late'")
    assert (await browser.post("/dashboard/keys", kept)).status == 200
    assert await stage.rows("SELECT models FROM api_key WHERE name = 'late'") == [("claude-sonnet-4-6",)]


async def test_no_address_has_a_form_sent_on_and_no_password_is_carried(stage: Stage) -> None:
    browser = await enter(stage, stage.alice.email)
    shown = await browser.get("/confirm?next=/dashboard&again=/dashboard/close&password=x")
    assert shown.form("/confirm")[2]["again"] == ""
    done = await browser.submit(shown, "/confirm", present_password=PASSWORD)
    assert done.path == "/dashboard"
    late = await browser.post("/confirm?next=/dashboard&again=/dashboard/password", {"new_password": "x" * 20})
    assert late.form("/confirm")[2]["again"] == ""
    assert "x" * 20 not in late.text
    for evil in ("//evil.example", "https://evil.example", "/\\evil.example", "javascript:alert(1)"):
        page = await browser.get(f"/confirm?next={evil}")
        assert page.form("/confirm")[2]["go_to"] == ""


async def test_confirming_asks_for_the_second_factor_where_there_is_one(stage: Stage) -> None:
    browser = await enter(stage, stage.alice.email)
    secret, _ = await set_up(stage, browser)
    await unsure(stage)
    asked = await browser.get("/dashboard/settings/sign-in")
    late = await browser.submit(asked, "/dashboard/password", password=PASSWORD, new_password="x" * 20)
    assert late.path.startswith("/confirm")
    wrong = await browser.submit(late, "/confirm", present_password=PASSWORD, code="000000")
    assert wrong.status == 422
    page = await browser.submit(wrong, "/confirm", present_password=PASSWORD, code=code_of(stage, secret))
    assert page.status == 200
    assert not page.path.startswith("/confirm")


async def test_operators_are_signed_in_for_a_shorter_time(stage: Stage) -> None:
    browser = await enter(stage, stage.alice.email)
    await change(stage, "UPDATE account SET role = 'admin' WHERE id = ?", stage.alice.account_id)
    await change(stage, "UPDATE session SET seen_at = seen_at - ?", (ADMIN_IDLE_S - 60) * US_PER_S)
    assert (await browser.get("/dashboard")).path == "/dashboard"
    await change(stage, "UPDATE session SET seen_at = seen_at - ?", ADMIN_IDLE_S * US_PER_S)
    assert (await browser.get("/dashboard")).path.startswith("/login")
    await browser.sign_in(stage.alice.email)
    ((ends_at, created_at),) = await stage.rows(
        "SELECT ends_at, created_at FROM session WHERE account_id = ? ORDER BY created_at DESC LIMIT 1",
        stage.alice.account_id,
    )
    assert ends_at - created_at == ADMIN_LONGEST_S * US_PER_S


async def test_a_session_renewed_ends_no_later(stage: Stage) -> None:
    browser = await enter(stage, stage.alice.email)
    before = await stage.rows("SELECT created_at, ends_at FROM session")
    await browser.submit(await browser.get("/confirm"), "/confirm", present_password=PASSWORD)
    assert await stage.rows("SELECT created_at, ends_at FROM session") == before


async def test_details_for_receipts_are_kept_as_typed(stage: Stage) -> None:
    browser = await enter(stage, stage.alice.email)
    words = 'Alice <b> & Co\nBäckerstraße 1\n"Wien"'
    page = await browser.submit(await browser.get("/dashboard/settings"), "/dashboard/details", details=words)
    assert "Saved" in page.words
    assert (await stage.rows("SELECT details FROM account WHERE id = ?", stage.alice.account_id))[0][0] == words
    again = await browser.get("/dashboard/settings")
    assert again.form("/dashboard/details")[2]["details"] == words
    for bad in ("x" * 501, "a\0b", "a\x1bb"):
        assert (await browser.post("/dashboard/details", {"details": bad})).status == 422
    assert (await stage.rows("SELECT details FROM account WHERE id = ?", stage.alice.account_id))[0][0] == words


AGENTS = {
    "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0": "Firefox on Linux",
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36": (
        "Chrome on Windows"
    ),
    "Mozilla/5.0 (Windows NT 10.0) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0 Safari/537.36 Edg/140.0": (
        "Edge on Windows"
    ),
    "Mozilla/5.0 (iPhone; CPU iPhone OS 18_5 like Mac OS X) AppleWebKit/605.1 Version/18.5 Mobile Safari/604.1": (
        "Safari on an iPhone"
    ),
    "Mozilla/5.0 (Linux; Android 15) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Mobile Safari/537.36": (
        "Chrome on Android"
    ),
    "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1 (KHTML, like Gecko) Version/18.5 Safari/605.1": (
        "Safari on macOS"
    ),
    "curl/8.5.0": "curl/8.5.0",
    "": "an unnamed browser",
}


def test_browsers_are_named_as_people_know_them() -> None:
    assert {agent: name_device(agent) for agent in AGENTS} == AGENTS
