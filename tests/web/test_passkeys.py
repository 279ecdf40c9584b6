"""Passkeys: made, used instead of a password and beside it, removed; and what is refused."""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from farebox.accounts.passkeys import host_of_passkeys
from farebox.clock import US_PER_S
from tests import stage as stages
from tests.stage import OpenStage, Stage
from tests.web.authenticator import PRESENT, Authenticator
from tests.web.browse import PASSWORD, Browser, Page, browser_of, enter, mails_to
from tests.web.test_second_factor import change, code_of, set_up, unsure

START = "/dashboard/settings/passkeys"
ORIGIN = "https://farebox.example"


@pytest.fixture
async def named(open_stage: OpenStage, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stage]:
    """A gateway whose public address has a name."""
    text = stages.config_text
    monkeypatch.setattr(
        stages,
        "config_text",
        lambda *args, **more: text(*args, **more).replace("[server]", f'[server]\npublic_url = "{ORIGIN}"'),
    )
    async with open_stage() as opened:
        yield opened


def options_of(page: Page, kind: str) -> str:
    (form,) = page.find("form", data_passkey=kind)
    return form.get("data-options", "")


async def add(browser: Browser, key: Authenticator, name: str = "laptop") -> Page:
    page = await browser.get(f"{START}/new")
    return await browser.submit(page, f"{START}/new", name=name, answer=key.make(options_of(page, "make")))


async def come_in(browser: Browser, key: Authenticator, path: str = "/login") -> Page:
    page = await browser.get(path)
    return await browser.submit(page, "/login/passkey", answer=key.sign(options_of(page, "offer")))


async def alices_key(stage: Stage) -> tuple[Browser, Authenticator]:
    browser, key = await enter(stage, stage.alice.email), Authenticator(ORIGIN)
    assert (await add(browser, key)).path == START
    return browser, key


async def test_a_passkey_is_made_signs_in_alone_and_is_removed(named: Stage) -> None:
    browser, key = await alices_key(named)
    (row,) = (await browser.get(START)).rows("Passkeys")
    assert row[0] == "laptop"
    assert row[2] == "never"
    assert (await mails_to(named, named.alice.email))[-1][0] == "A new passkey at Farebox"
    other = browser_of(named, "another browser")
    page = await come_in(other, key, "/login?next=/dashboard/keys")
    assert page.path == "/dashboard/keys"
    ((factor_at,),) = await named.rows("SELECT factor_at FROM session WHERE agent = 'another browser'")
    assert named.gateway.clock() - factor_at < 60 * US_PER_S
    (row,) = (await other.get(START)).rows("Passkeys")
    assert row[2] != "never"
    (action,) = [
        one.get("action", "") for one in (await other.get(START)).find("form") if "/remove" in one.get("action", "")
    ]
    assert (await (await enter(named, named.bob.email)).post(action)).status == 404
    assert (await other.post(action)).path == START
    assert (await mails_to(named, named.alice.email))[-1][0] == "A passkey was removed at Farebox"
    refused = await come_in(browser_of(named), key)
    assert refused.status == 422
    assert "not known here" in refused.words


async def test_what_a_passkey_signed_counts_once_in_one_browser_for_some_minutes(named: Stage) -> None:
    _, key = await alices_key(named)
    first, thief = browser_of(named), browser_of(named)
    page = await first.get("/login")
    answer = key.sign(options_of(page, "offer"))
    await thief.get("/login")
    assert (await thief.post("/login/passkey", {"answer": answer})).status == 422
    assert (await first.post("/login/passkey", {"answer": answer})).path == "/dashboard"
    key.count += 1
    assert (await first.post("/login/passkey", {"answer": answer})).status == 422
    at_once = [browser_of(named) for _ in range(4)]
    page = await at_once[0].get("/login")
    answer = key.sign(options_of(page, "offer"))
    for browser in at_once[1:]:
        browser.cookies = dict(at_once[0].cookies)
    pages = await asyncio.gather(*(browser.post("/login/passkey", {"answer": answer}) for browser in at_once))
    assert sorted(page.path for page in pages) == ["/dashboard"] + ["/login/passkey"] * 3


async def test_a_copy_of_a_passkey_is_found_by_its_counter(named: Stage) -> None:
    _, key = await alices_key(named)
    assert (await come_in(browser_of(named), key)).path == "/dashboard"
    assert (await come_in(browser_of(named), key)).path == "/dashboard"
    for count in (0, 1, -1):
        key.count = max(count, 0)
        assert (await come_in(browser_of(named), key)).status == 422
    key.count = 2
    assert (await come_in(browser_of(named), key)).path == "/dashboard"


async def test_a_passkey_counts_only_for_this_site_with_its_person_verified_and_its_own_key(named: Stage) -> None:
    _, key = await alices_key(named)
    elsewhere = Authenticator("https://evil.example")
    elsewhere.id, elsewhere._key = key.id, key._key
    lent = Authenticator(ORIGIN)
    lent.id, lent._key, lent.flags = key.id, key._key, PRESENT
    forged = Authenticator(ORIGIN)
    forged.id = key.id
    for wrong in (elsewhere, lent, forged, Authenticator(ORIGIN)):
        page = await come_in(browser_of(named), wrong)
        assert page.status == 422
    page = await browser_of(named).get("/login")
    making = await (await enter(named, named.bob.email)).get(f"{START}/new")
    assert (
        await browser_of(named).post("/login/passkey", {"answer": key.sign(options_of(making, "make"))})
    ).status == 422
    assert (await come_in(browser_of(named), key)).path == "/dashboard"


async def test_a_passkey_belongs_to_one_account_and_has_a_name(named: Stage) -> None:
    browser, key = await alices_key(named)
    bob = await enter(named, named.bob.email)
    taken = await add(bob, key)
    assert taken.status == 422
    assert "known here already" in taken.words
    for name in ("", " ", "x" * 61, "a\x07b"):
        assert (await add(browser, Authenticator(ORIGIN), name)).status == 422
    assert (await add(browser, Authenticator(ORIGIN), '<img src=x> "my" key')).path == START
    assert (await browser.get(START)).faults() == []
    unverified = Authenticator(ORIGIN)
    unverified.flags = PRESENT
    assert (await add(browser, unverified)).status == 422
    assert len((await browser.get(START)).rows("Passkeys")) == 2


@pytest.mark.parametrize(
    "answer",
    [
        "", "null", "[]", "{}", "1", '"x"', "é", "[" * 5000, '{"response": {"clientDataJSON": "e30"}}',
        '{"response": {"clientDataJSON": 7}}', '{"response": {"clientDataJSON": "bnVsbA"}}', "x" * 70_000,
        '{"id": 1, "response": {"clientDataJSON": "eyJjaGFsbGVuZ2UiOiAiZTMwIn0"}}',
    ],
)  # fmt: skip
async def test_whatever_a_browser_says_is_an_answer_and_never_a_failure(named: Stage, answer: str) -> None:
    browser = await enter(named, named.alice.email)
    assert (await browser_of(named).post("/login/passkey", {"answer": answer})).status == 422
    assert (await browser.post(f"{START}/new", {"name": "x", "answer": answer})).status == 422
    assert not [event for event in named.events if event["level"] == "error"]


async def test_damaged_answers_are_refused_wherever_they_are_damaged(named: Stage) -> None:
    """Each part cut, each part swapped: with a challenge that counts, so that the verification itself sees it."""
    browser, key = await alices_key(named)
    for part in ("authenticatorData", "signature", "clientDataJSON", "id", "rawId", "type"):
        damages: tuple[object, ...] = ("", "AAAA", 7, None, {}, ["x"])
        for damage in damages:
            page = await browser.get("/login")
            told = json.loads(key.sign(options_of(page, "offer")))
            place = told["response"] if part in told["response"] else told
            place[part] = damage
            assert (await browser.post("/login/passkey", {"answer": json.dumps(told)})).status == 422, (part, damage)
            page = await browser.get(f"{START}/new")
            told = json.loads(Authenticator(ORIGIN).make(options_of(page, "make")))
            part_of_making = "attestationObject" if part == "authenticatorData" else part
            place = told["response"] if part_of_making in told["response"] else told
            place[part_of_making] = damage
            if part == "signature":
                continue
            sent = await browser.post(f"{START}/new", {"name": "x", "answer": json.dumps(told)})
            assert sent.status == 422, (part, damage)
    assert not [event for event in named.events if event["level"] == "error"]


async def test_beside_a_password_a_passkey_stands_for_the_code(named: Stage) -> None:
    owner, key = await alices_key(named)
    secret, _ = await set_up(named, owner)
    browser = browser_of(named)
    second = await browser.sign_in(named.alice.email)
    assert second.path == "/login/second"
    bobs, bob = Authenticator(ORIGIN), await enter(named, named.bob.email)
    await add(bob, bobs)
    foreign = await browser.post("/login/second", {"answer": bobs.sign(options_of(second, "ask"))})
    assert foreign.status == 422
    assert "another account" in foreign.words
    page = await browser.post("/login/second", {"answer": key.sign(options_of(foreign, "ask"))})
    assert page.path == "/dashboard"
    await unsure(named)
    asked = await browser.get("/dashboard/settings/second-factor/app")
    assert asked.path.startswith("/confirm")
    fields = {"go_to": "/dashboard/keys", "again": "", "answer": key.sign(options_of(asked, "ask"))}
    assert (await browser.post("/confirm", fields)).path == "/dashboard/keys"
    assert (await browser_of(named).sign_in(named.alice.email)).path == "/login/second"
    assert code_of(named, secret)


async def test_an_operators_passkey_makes_the_second_step_needed_and_a_customers_does_not(named: Stage) -> None:
    _, key = await alices_key(named)
    assert (await browser_of(named).sign_in(named.alice.email)).path == "/dashboard"
    await change(named, "UPDATE account SET role = 'admin' WHERE id = ?", named.alice.account_id)
    browser = browser_of(named)
    second = await browser.sign_in(named.alice.email)
    assert second.path == "/login/second"
    assert not [one for one in second.find("input") if one.get("name") == "code"]
    assert (await browser.post("/login/second", {"code": "000000"})).status == 422
    page = await browser.post("/login/second", {"answer": key.sign(options_of(second, "ask"))})
    assert page.path == "/dashboard"


async def test_a_passkey_is_no_way_in_to_a_closed_account(named: Stage) -> None:
    _, key = await alices_key(named)
    await change(named, "UPDATE account SET status = 'closed' WHERE id = ?", named.alice.account_id)
    assert (await come_in(browser_of(named), key)).status == 422


async def test_adding_and_removing_ask_who_one_is(named: Stage) -> None:
    browser, _ = await alices_key(named)
    (action,) = [
        one.get("action", "") for one in (await browser.get(START)).find("form") if "/remove" in one.get("action", "")
    ]
    await unsure(named)
    assert (await browser.get(f"{START}/new")).path.startswith("/confirm")
    assert (await browser.post(action, follow=False)).status == 307
    assert (await named.rows("SELECT count(*) FROM passkey"))[0][0] == 1


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://farebox.example", "farebox.example"),
        ("https://farebox.example:8443", "farebox.example"),
        ("http://localhost:8080", "localhost"),
        ("http://farebox.example", ""),
        ("http://127.0.0.1:8080", ""),
        ("https://127.0.0.1", ""),
        ("https://[::1]:8080", ""),
        ("http://evil-localhost", ""),
    ],
)
def test_passkeys_need_a_name_and_https(url: str, host: str) -> None:
    assert host_of_passkeys(url) == host


async def test_where_there_can_be_none_this_is_said(stage: Stage) -> None:
    browser = await enter(stage, stage.alice.email)
    page = await browser.get(START)
    assert "Passkeys need this site to have a name and https" in page.words
    assert (await browser.get(f"{START}/new")).path == START
    assert not [form for form in (await browser_of(stage).get("/login")).find("form") if form.get("data-passkey")]
    assert (await browser_of(stage).post("/login/passkey", {"answer": "{}"})).status == 422
    assert (await browser.sign_in(stage.alice.email, PASSWORD)).path == "/dashboard"
