"""Signing up and in, passwords, mails, sessions: what people do, and what those try who are not them."""

import asyncio
import re
import time
from pathlib import Path

import argon2
import pytest

from farebox.accounts import passwords, people
from farebox.accounts.sessions import IDLE_S, LONGEST_S
from farebox.accounts.tokens import LIVES_S
from farebox.clock import DAY_US, US_PER_S
from farebox.store.protocol import Statement
from farebox.web.sign_in import LETTER_S
from farebox.web.visitors import network_at
from tests import stage as stages
from tests.stage import MODEL, Stage, open_stage
from tests.web.browse import PASSWORD, Browser, browser_of, fund, mailed_path, mails_to, make_key

CAROL = "carol@example.com"
OTHER = "nine brave herons sail home"


async def change(stage: Stage, sql: str, *params: object) -> None:
    statement: Statement = (sql, params)
    await stage.gateway.store.write([statement])


async def carol(stage: Stage, agent: str = "a browser") -> Browser:
    browser = browser_of(stage, agent)
    await browser.sign_up(stage, CAROL)
    return browser


async def wrong_sign_in(stage: Stage, email: str, password: str = OTHER) -> tuple[int, str]:
    page = await browser_of(stage).post("/login", {"email": email, "password": password})
    return page.status, page.words.replace(email, "…")


async def test_from_sign_up_to_the_first_call_in_the_log(stage: Stage) -> None:
    """One way through: mail, proof, sign-in, key, a real call through that key, its cost wherever it shows."""
    browser = browser_of(stage)
    sent = await browser.submit(await browser.get("/signup"), email=" Carol@Example.com ", password=PASSWORD)
    assert sent.status == 200
    assert "a mail is on its way" in sent.words
    ((subject, body),) = await mails_to(stage, CAROL)
    assert subject == "Confirm your address for Farebox"
    assert stage.gateway.config.public_url in body
    shown = await browser.get(await mailed_path(stage, CAROL))
    assert (await stage.rows("SELECT verified_at FROM account WHERE email = ?", CAROL))[0][0] is None
    assert "Your address is confirmed" in (await browser.submit(shown)).words
    overview = await browser.sign_in(CAROL)
    assert overview.path == "/dashboard"
    assert "Address confirmed" in overview.words

    person = await make_key(stage, browser, CAROL)
    status, answer = await stage.ask(person)
    assert status == 402
    assert b"insufficient_balance" in answer
    await fund(stage, CAROL, 2)
    status, answer = await stage.ask(person)
    assert status == 200

    ((charged, list_nanos),) = await stage.rows(
        "SELECT charged_nanos, list_nanos FROM usage WHERE account_id = ?", person.account_id
    )
    assert 0 < charged < list_nanos
    cost = "$" + f"{charged / 1e9:.9f}".rstrip("0")
    (row,) = (await browser.get("/dashboard/requests")).rows("Requests")
    assert MODEL in row
    assert cost in row
    overview = await browser.get("/dashboard")
    assert overview.rows("Usage by model")[0][-1] == cost
    coloured = [rect for rect in overview.find("rect") if re.fullmatch(r"s\d", rect.get("class", ""))]
    assert len(coloured) == 2  # a bar, and the dot of the legend
    left = 2_000_000_000 - charged
    assert f"Balance ${left // 10_000_000 / 100:.2f}" in overview.words
    (used,) = (await browser.get("/dashboard/keys")).rows("Keys")
    assert used[0].startswith("laptop")
    assert used[3:5] == ["1", cost]
    newest = (await browser.get("/dashboard/transactions")).rows("Transactions")[0]
    assert newest[-2] == f"-{cost}"


async def test_known_and_unknown_addresses_get_the_same_answers(stage: Stage) -> None:
    await carol(stage)
    for path, fields in (
        ("/signup", {"password": PASSWORD}),
        ("/forgot", {}),
        ("/login", {"password": OTHER}),
    ):
        known = await browser_of(stage).post(path, {"email": CAROL, **fields})
        unknown = await browser_of(stage).post(path, {"email": "dave@example.com", **fields})
        assert known.status == unknown.status, path
        assert known.text.replace(CAROL, "…") == unknown.text.replace("dave@example.com", "…")
    subjects = [subject for subject, _ in await mails_to(stage, CAROL)]
    assert subjects[1:] == ["You have an account at Farebox", "A new password for Farebox"]


async def test_a_letter_that_is_not_written_takes_as_long_as_one_that_is(stage: Stage) -> None:
    """Else the time alone would tell which addresses have accounts here."""
    asked = time.perf_counter()
    await browser_of(stage).post("/forgot", {"email": "nobody@example.com"})
    assert time.perf_counter() - asked >= LETTER_S


async def test_a_wrong_password_takes_as_long_for_nobody_as_for_somebody(stage: Stage) -> None:
    """The hash is computed for unknown addresses too, and for accounts that were opened without a password."""
    await carol(stage)
    for round_ in range(2):
        took = {}
        for email in (CAROL, f"nobody{round_}@example.com", stage.alice.email):
            hashed = time.perf_counter()
            assert (await wrong_sign_in(stage, email))[0] == 422
            took[email] = time.perf_counter() - hashed
        assert max(took.values()) < 5 * min(took.values()) + 0.05


async def test_every_check_hashes_once_whoever_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []
    real = passwords._verify

    def counted(kept: str, password: str) -> bool:
        hashed.append(kept)
        return real(kept, password)

    monkeypatch.setattr(passwords, "_verify", counted)
    one = passwords.Passwords()
    kept = await one.hash(PASSWORD)
    assert await one.matches(kept, PASSWORD)
    assert not await one.matches(kept, OTHER)
    assert not await one.matches(None, "nobody's password")
    assert len(hashed) == 3
    assert re.match(r"\$argon2id\$v=19\$m=19456,t=2,p=1\$", kept)
    assert [one.rsplit("$", 2)[0] for one in hashed] == [kept.rsplit("$", 2)[0]] * 3  # nobody's costs as much


async def test_a_flood_of_sign_ins_delays_nobody_else(stage: Stage) -> None:
    """Argon2 runs beside the loop: while a dozen hashes are waited for, pages come as quickly as ever."""
    await carol(stage)
    flood = asyncio.gather(*(wrong_sign_in(stage, f"nobody{number}@example.com") for number in range(12)))
    slowest = 0.0
    looks = 0
    while not flood.done():
        began = time.perf_counter()
        assert (await browser_of(stage).get("/login")).status == 200
        slowest = max(slowest, time.perf_counter() - began)
        looks += 1
    await flood
    assert looks > 5
    assert slowest < 0.5


async def test_guessing_becomes_slow_for_an_account_and_never_impossible_for_its_owner(stage: Stage) -> None:
    await carol(stage)
    statuses = [(await wrong_sign_in(stage, CAROL))[0] for _ in range(7)]
    assert statuses == [422] * 5 + [429] * 2
    status, words = await wrong_sign_in(stage, CAROL, PASSWORD)
    assert status == 429
    assert re.search(r"try again in \d+ s", words)
    await change(stage, "UPDATE failure SET at = at - ?", 2 * US_PER_S)
    browser = browser_of(stage)
    assert (await browser.sign_in(CAROL)).path == "/dashboard"
    assert not await stage.rows("SELECT 1 FROM failure WHERE name = ?", f"account:{CAROL}")


async def test_pauses_double_up_to_a_quarter_of_an_hour(stage: Stage) -> None:
    await carol(stage)
    for count, pause_s in ((4, 0), (5, 1), (8, 8), (14, 512), (15, 900), (99, 900), (5000, 900)):
        await change(stage, "DELETE FROM failure")
        await change(
            stage,
            "INSERT INTO failure (name, count, at) VALUES (?, ?, ?)",
            f"account:{CAROL}",
            count,
            stage.gateway.clock(),
        )
        status, words = await wrong_sign_in(stage, CAROL)
        found = re.search(r"in (\d+) s", words)
        assert (status == 429) == (pause_s > 0)
        if found:
            assert pause_s - 1 <= int(found[1]) <= pause_s + 1


async def test_one_network_cannot_try_many_accounts(stage: Stage) -> None:
    statuses = [(await wrong_sign_in(stage, f"nobody{number}@example.com"))[0] for number in range(22)]
    assert statuses == [422] * 20 + [429] * 2


async def test_forgotten_password_link_works_once_and_ends_every_session(stage: Stage) -> None:
    first = await carol(stage)
    second = browser_of(stage)
    await second.sign_in(CAROL)
    stranger = browser_of(stage)
    await stranger.submit(await stranger.get("/forgot"), email=CAROL.upper())
    path = await mailed_path(stage, CAROL)
    weak = await stranger.submit(await stranger.get(path), password="short")
    assert weak.status == 422
    assert "15 to 128 characters" in weak.words
    assert "Your password has been changed" in (await stranger.submit(weak, password=OTHER)).words
    for browser in (first, second):
        assert (await browser.get("/dashboard")).path.startswith("/login")
    again = await stranger.submit(await stranger.get(path), password=PASSWORD)
    assert again.status == 422
    assert "works no longer" in again.words
    assert (await wrong_sign_in(stage, CAROL, PASSWORD))[0] == 422
    assert (await stranger.sign_in(CAROL, OTHER)).path == "/dashboard"
    assert (await mails_to(stage, CAROL))[-2][0] == "Your password has been changed"


async def test_links_from_mails_get_too_old(stage: Stage) -> None:
    browser = browser_of(stage)
    await browser.post("/signup", {"email": CAROL, "password": PASSWORD})
    await browser.post("/forgot", {"email": CAROL})
    paths = [re.findall(r"(/\w+\?token=\S+)", body)[0] for _, body in await mails_to(stage, CAROL)]
    await change(stage, "UPDATE token SET ends_at = ?", stage.gateway.clock())
    for path in paths:
        page = await browser.get(path)
        fields = {"password": OTHER} if path.startswith("/reset") else {}
        assert (await browser.submit(page, **fields)).status == 422


async def test_a_link_of_one_purpose_is_none_of_another(stage: Stage) -> None:
    browser = browser_of(stage)
    await browser.post("/signup", {"email": CAROL, "password": PASSWORD})
    token = (await mailed_path(stage, CAROL)).partition("token=")[2]
    assert (await browser.post("/reset", {"token": token, "password": OTHER})).status == 422
    assert (await browser.post("/verify", {"token": token})).status == 200
    assert (await browser.post("/verify", {"token": token})).status == 422


async def test_forms_that_mail_fill_nobodys_inbox(stage: Stage) -> None:
    await carol(stage)
    for _ in range(8):
        assert (await browser_of(stage).post("/forgot", {"email": CAROL})).status == 200
        assert (await browser_of(stage).post("/signup", {"email": CAROL, "password": PASSWORD})).status == 200
    subjects = [subject for subject, _ in await mails_to(stage, CAROL)]
    assert max(map(subjects.count, subjects)) == people.MAILS_AT_ONCE


async def test_nobody_uses_up_the_letters_by_which_an_owner_gets_a_new_password(stage: Stage) -> None:
    """Sign-ups with her address have letters of their own; of five links to a new password all still work."""
    await carol(stage)
    for _ in range(6):
        await browser_of(stage).post("/signup", {"email": CAROL, "password": PASSWORD})
    await browser_of(stage).post("/forgot", {"email": CAROL})
    assert (await mails_to(stage, CAROL))[-1][0] == "A new password for Farebox"
    for _ in range(4):
        await browser_of(stage).post("/forgot", {"email": CAROL})
    await change(stage, "UPDATE outbox SET at = at - ?", LIVES_S["reset"] * US_PER_S)
    before = len(await mails_to(stage, CAROL))
    await browser_of(stage).post("/forgot", {"email": CAROL})
    assert len(await mails_to(stage, CAROL)) == before + 1


async def test_one_network_cannot_open_accounts_without_end(stage: Stage) -> None:
    await browser_of(stage).post("/signup", {"email": "dave@example.com", "password": PASSWORD})
    await change(stage, "UPDATE failure SET count = count + 19 WHERE name = 'network:sign-up 127.0.0.1'")
    refused = await browser_of(stage).post("/signup", {"email": CAROL, "password": PASSWORD})
    assert refused.status == 429
    assert "too many accounts were asked for from your network" in refused.words
    assert not await stage.rows("SELECT 1 FROM account WHERE email = ?", CAROL)
    assert (await wrong_sign_in(stage, CAROL))[0] == 422, "signing in is counted apart"


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8::1", "2001:db8::/64"),
        ("2001:db8::9:2:3:4", "2001:db8::/64"),
        ("2001:db8:0:1::1", "2001:db8:0:1::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
    ],
)
def test_a_network_is_the_same_however_its_addresses_are_written(address: str, network: str) -> None:
    assert network_at(address) == network


async def test_a_new_password_ends_a_change_of_address_that_was_asked_for_with_the_old_one(stage: Stage) -> None:
    """Mallory knew the password and asked for the account to move to his address; carol notices and chooses another."""
    await carol(stage)
    mallory = browser_of(stage)
    await mallory.sign_in(CAROL)
    for number, ways in enumerate(("reset", "change")):
        address = f"mallory{number}@example.com"
        await mallory.post("/dashboard/email", {"email": address, "password": PASSWORD})
        link = await mailed_path(stage, address)
        if ways == "reset":
            await browser_of(stage).post("/forgot", {"email": CAROL})
            page = await browser_of(stage).get(await mailed_path(stage, CAROL))
            await browser_of(stage).submit(page, password=PASSWORD)
            mallory = browser_of(stage)
            await mallory.sign_in(CAROL)
        else:
            owner = browser_of(stage)
            await owner.sign_in(CAROL)
            await owner.post("/dashboard/password", {"password": PASSWORD, "new_password": OTHER})
        assert (await mallory.submit(await mallory.get(link))).status == 422
        assert await stage.rows("SELECT 1 FROM account WHERE email = ?", CAROL)


async def test_whoever_signs_up_with_anothers_address_keeps_no_way_in(stage: Stage) -> None:
    """Mallory opens an account with carol's address and leaves ways in; carol comes by the link for a new password."""
    mallory = browser_of(stage)
    await mallory.post("/signup", {"email": CAROL, "password": OTHER})
    await mallory.sign_in(CAROL, OTHER)
    key = await make_key(stage, mallory, CAROL)
    account_id, now_us = key.account_id, stage.gateway.clock()
    ways: dict[str, dict[str, object]] = {
        "passkey": {"id": b"i", "public_key": b"k", "signs": 0, "name": "n", "transports": "[]", "created_at": now_us},
        "identity": {"id": "github:1", "provider": "github", "name": "mallory", "created_at": now_us},
        "totp": {"secret": b"sealed", "set_at": now_us},
    }
    for table, values in ways.items():
        columns, marks = ", ".join(["account_id", *values]), ", ".join("?" * (1 + len(values)))
        await change(stage, f"INSERT INTO {table} ({columns}) VALUES ({marks})", account_id, *values.values())
    await browser_of(stage).post("/forgot", {"email": CAROL})
    page = await browser_of(stage).get(await mailed_path(stage, CAROL))
    await browser_of(stage).submit(page, password=PASSWORD)
    for table in ways:
        assert not await stage.rows(f"SELECT 1 FROM {table} WHERE account_id = ?", account_id), table
    assert (await stage.ask(key))[0] == 401
    assert (await browser_of(stage).sign_in(CAROL)).path == "/dashboard"


async def test_a_new_password_leaves_a_proved_account_as_it_is(stage: Stage) -> None:
    browser = await carol(stage)
    key = await make_key(stage, browser, CAROL)
    await browser.post("/forgot", {"email": CAROL})
    await browser.submit(await browser.get(await mailed_path(stage, CAROL)), password=OTHER)
    assert (await stage.ask(key))[0] == 402


async def test_two_who_take_the_same_address_at_once_open_one_account(stage: Stage) -> None:
    answers = await asyncio.gather(
        *(browser_of(stage).post("/signup", {"email": CAROL, "password": PASSWORD}) for _ in range(4))
    )
    assert {answer.status for answer in answers} == {200}
    assert len(await stage.rows("SELECT 1 FROM account WHERE email = ?", CAROL)) == 1


async def test_signing_up_over_an_account_changes_nothing_of_it(stage: Stage) -> None:
    """Mallory, who knows alice's address, neither sets her password nor learns that she is here."""
    before = await stage.rows("SELECT * FROM account ORDER BY id")
    await browser_of(stage).post("/signup", {"email": stage.alice.email, "password": OTHER})
    assert await stage.rows("SELECT * FROM account ORDER BY id") == before
    assert not await stage.rows("SELECT 1 FROM credential")
    assert (await wrong_sign_in(stage, stage.alice.email))[0] == 422


async def test_an_account_opened_by_the_operator_gets_its_password_by_mail(stage: Stage) -> None:
    """Who has no password yet proves the address and chooses one, by the way for forgotten ones."""
    browser = browser_of(stage)
    await browser.submit(await browser.get("/forgot"), email=stage.alice.email)
    await browser.submit(await browser.get(await mailed_path(stage, stage.alice.email)), password=PASSWORD)
    assert (await browser.sign_in(stage.alice.email)).path == "/dashboard"
    assert "Balance $100.00" in (await browser.get("/dashboard")).words


@pytest.mark.parametrize(
    ("email", "password", "words"),
    [
        ("carol", PASSWORD, "looks like name@example.com"),
        ("", PASSWORD, "looks like name@example.com"),
        ("a" * 300 + "@example.com", PASSWORD, "looks like name@example.com"),
        (CAROL, "fourteen chars", "15 to 128 characters"),
        (CAROL, "x" * 129, "15 to 128 characters"),
        (CAROL, "aaaaaaaaaaaaaaaaaaaa", "too easily guessed"),
        (CAROL, "carolcarolcarol", "too easily guessed"),
        (CAROL, "Farebox-Farebox-1", "too easily guessed"),
        (CAROL, "passwordpassword1", "too easily guessed"),
        (CAROL, "", "15 to 128 characters"),
    ],
)
async def test_what_cannot_be_taken_at_sign_up_is_said(tmp_path: Path, email: str, password: str, words: str) -> None:
    async with open_stage(tmp_path) as stage:
        page = await browser_of(stage).post("/signup", {"email": email, "password": password})
        assert page.status == 422
        assert words in page.words
        assert not password or password not in page.text
        assert not await stage.rows("SELECT 1 FROM outbox")


async def test_sign_up_can_be_closed(tmp_path: Path) -> None:
    async with open_stage(tmp_path, '[site]\nsign_up = "closed"\nsupport_email = "help@example.com"') as stage:
        browser = browser_of(stage)
        assert "help@example.com" in (await browser.get("/signup")).words
        refused = await browser.post("/signup", {"email": CAROL, "password": PASSWORD})
        assert refused.status == 403
        assert len(await stage.rows("SELECT 1 FROM account")) == 2


@pytest.mark.parametrize(
    "wanted",
    [
        "//evil.example", "/\\evil.example", "https://evil.example/", "\\\\evil.example", "/\t/evil.example",
        "javascript:alert(1)", "dashboard", "/\r\nset-cookie: a=b", "", "/%0d%0aset-cookie:a=b", "/\u2028x",
        "/dashboard/../../\\evil", "/.//evil.example", "/x/..//evil.example",
    ],
)  # fmt: skip
async def test_the_way_back_stays_on_this_site(tmp_path: Path, wanted: str) -> None:
    async with open_stage(tmp_path) as stage:
        browser = await carol(stage)
        await browser.post("/logout")
        page = await browser.post("/login", {"email": CAROL, "password": PASSWORD, "next": wanted}, follow=False)
        target = page.header("location")
        assert re.match(r"/[a-z%.]", target), target
        assert "\\" not in target
        assert "//" not in target
        assert "evil" not in target.partition("/")[0]
        assert "set-cookie: a=b" not in str(page.headers)


async def test_the_way_back_leads_to_the_page_asked_for(stage: Stage) -> None:
    browser = await carol(stage)
    await browser.post("/logout")
    asked = await browser.get("/dashboard/requests?model=claude-sonnet-4-6&status=ok")
    assert asked.path.startswith("/login?next=")
    page = await browser.submit(asked, email=CAROL, password=PASSWORD)
    assert page.path == "/dashboard/requests?model=claude-sonnet-4-6&status=ok"


async def test_cookies_are_the_servers_alone(tmp_path: Path) -> None:
    async with open_stage(tmp_path) as stage:
        browser = await carol(stage)
        for name, age in (("session", LONGEST_S), ("browser", 365 * 24 * 3600)):
            cookie = [one for one in browser.set_cookies if one.startswith(f"{name}=")][-1]
            parts = {part.strip().lower() for part in cookie.split(";")[1:]}
            assert parts == {"httponly", "path=/", "samesite=lax", f"max-age={age}"}


async def test_by_https_the_cookie_is_bound_to_this_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = stages.config_text
    monkeypatch.setattr(
        stages,
        "config_text",
        lambda *args, **named: text(*args, **named).replace(
            "[server]", '[server]\npublic_url = "https://farebox.example"'
        ),
    )
    async with open_stage(tmp_path) as stage:
        browser = await carol(stage)
        for name, age in (("__Host-session", LONGEST_S), ("__Host-browser", 365 * 24 * 3600)):
            cookie = [one for one in browser.set_cookies if one.startswith(f"{name}=")][-1]
            parts = {part.strip().lower() for part in cookie.split(";")[1:]}
            assert parts == {"httponly", "path=/", "samesite=lax", "secure", f"max-age={age}"}
        page = await browser.get("/dashboard")
        assert page.header("strict-transport-security") == "max-age=31536000"


async def test_each_sign_in_is_a_session_of_its_own_and_replaces_the_one_before(stage: Stage) -> None:
    browser = await carol(stage)
    before = dict(browser.cookies)
    browser.cookies["session"] = "chosen-by-mallory"
    await browser.sign_in(CAROL)
    assert browser.cookies["session"] not in {"chosen-by-mallory", before["session"]}
    again = browser.cookies["session"]
    await browser.sign_in(CAROL)
    old = browser_of(stage)
    old.cookies["session"] = again
    assert (await old.get("/dashboard")).path.startswith("/login")


async def test_sessions_are_listed_and_ended_one_by_one_and_all_at_once(stage: Stage) -> None:
    first = await carol(stage, "Firefox on a laptop")
    others = [browser_of(stage, f"<b>phone {number}</b>") for number in range(3)]
    for browser in others:
        await browser.sign_in(CAROL)
    settings = await first.get("/dashboard/settings/sign-in")
    rows = settings.rows("Sign-ins")
    assert len(rows) == 4
    assert sum("this one" in row[0] for row in rows) == 1
    assert "<b>" not in settings.text
    ends = [form.get("action", "") for form in settings.find("form") if "/end" in form.get("action", "")]
    await first.post(next(path for path in ends if path != "/dashboard/sessions/end"))
    assert len((await first.get("/dashboard/settings/sign-in")).rows("Sign-ins")) == 3
    await first.submit(await first.get("/dashboard/settings/sign-in"), "/dashboard/sessions/end")
    assert len((await first.get("/dashboard/settings/sign-in")).rows("Sign-ins")) == 1
    for browser in others:
        assert (await browser.get("/dashboard")).path.startswith("/login")


async def test_sessions_end_when_idle_and_when_old(stage: Stage) -> None:
    browser = await carol(stage)
    await change(stage, "UPDATE session SET seen_at = seen_at - ?", (IDLE_S - 60) * US_PER_S)
    assert (await browser.get("/dashboard")).path == "/dashboard"
    ((seen,),) = await stage.rows("SELECT seen_at FROM session")
    assert stage.gateway.clock() - seen < 60 * US_PER_S
    await change(stage, "UPDATE session SET seen_at = seen_at - ?", IDLE_S * US_PER_S)
    assert (await browser.get("/dashboard")).path.startswith("/login")
    await browser.sign_in(CAROL)
    await change(stage, "UPDATE session SET ends_at = ?", stage.gateway.clock())
    assert (await browser.get("/dashboard")).path.startswith("/login")
    await browser.sign_in(CAROL)
    assert len(await stage.rows("SELECT 1 FROM session WHERE ends_at > ?", stage.gateway.clock())) == 1


async def test_signing_out_ends_the_session_itself(stage: Stage) -> None:
    browser = await carol(stage)
    cookie = dict(browser.cookies)
    await browser.submit(await browser.get("/dashboard"), "/logout")
    assert "session" not in browser.cookies
    browser.cookies = cookie
    assert (await browser.get("/dashboard")).path.startswith("/login")


async def test_a_closed_account_does_not_come_in_and_is_not_told_apart_before_the_password(stage: Stage) -> None:
    browser = await carol(stage)
    await change(stage, "UPDATE account SET status = 'closed' WHERE email = ?", CAROL)
    assert (await browser.get("/dashboard")).path.startswith("/login")
    assert "closed" not in (await wrong_sign_in(stage, CAROL))[1]
    assert "closed" in (await wrong_sign_in(stage, CAROL, PASSWORD))[1]
    await browser.post("/forgot", {"email": CAROL})
    assert "A new password for Farebox" not in [subject for subject, _ in await mails_to(stage, CAROL)]


async def test_neither_passwords_nor_links_nor_cookies_are_kept_or_logged(stage: Stage) -> None:
    browser = await carol(stage)
    await wrong_sign_in(stage, CAROL)
    await browser.post("/forgot", {"email": CAROL})
    token = (await mailed_path(stage, CAROL)).partition("token=")[2]
    await browser.post("/reset", {"token": token, "password": "short"})
    secrets = [PASSWORD, OTHER, token, *browser.cookies.values()]
    told = repr(stage.events)
    assert not [secret for secret in secrets if secret in told]
    for table in ("account", "credential", "session", "token", "failure"):
        rows = repr(await stage.rows(f"SELECT * FROM {table}"))
        assert not [secret for secret in secrets if secret in rows], table


async def test_the_next_day_a_link_to_confirm_can_be_had_again(stage: Stage) -> None:
    browser = browser_of(stage)
    await browser.post("/signup", {"email": CAROL, "password": PASSWORD})
    await change(stage, "UPDATE token SET ends_at = ends_at - ?", DAY_US)
    await browser.sign_in(CAROL)
    await browser.submit(await browser.get("/dashboard/settings"), "/dashboard/verification")
    await browser.submit(await browser.get(await mailed_path(stage, CAROL)))
    ((verified,),) = await stage.rows("SELECT verified_at FROM account WHERE email = ?", CAROL)
    assert verified is not None


async def test_a_sign_in_from_a_new_browser_is_told_by_mail_and_from_a_known_one_is_not(stage: Stage) -> None:
    browser = await carol(stage)
    await browser.post("/logout")
    await browser.sign_in(CAROL)
    assert [subject for subject, _ in await mails_to(stage, CAROL)] == ["Confirm your address for Farebox"]
    stranger = browser_of(stage, "Mallory's browser")
    await stranger.sign_in(CAROL)
    subject, body = (await mails_to(stage, CAROL))[-1]
    assert subject == "A new sign-in at Farebox"
    assert "Mallory's browser\nfrom 127.0.0.1" in body
    await stranger.sign_in(CAROL)
    assert len(await mails_to(stage, CAROL)) == 2


async def test_many_guesses_at_once_are_counted_one_by_one(stage: Stage) -> None:
    """A crowd does not slip past the count: of fifteen at once five are looked at, the others wait."""
    await carol(stage)
    answers = await asyncio.gather(*(wrong_sign_in(stage, CAROL) for _ in range(15)))
    assert sorted(status for status, _ in answers) == [422] * 5 + [429] * 10


async def test_a_password_hashed_at_another_cost_is_hashed_anew_at_the_next_sign_in(stage: Stage) -> None:
    await carol(stage)
    cheap = argon2.PasswordHasher(time_cost=1, memory_cost=8_192, parallelism=1).hash(PASSWORD)
    await change(stage, "UPDATE credential SET password = ?", cheap)
    assert (await browser_of(stage).sign_in(CAROL)).path == "/dashboard"
    ((kept,),) = await stage.rows("SELECT password FROM credential")
    assert kept.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert (await browser_of(stage).sign_in(CAROL)).path == "/dashboard"
    assert await stage.rows("SELECT password FROM credential") == [(kept,)]


async def test_an_account_that_is_closed_keeps_nothing_to_sign_in_with(stage: Stage) -> None:
    browser = await carol(stage)
    ((account_id,),) = await stage.rows("SELECT id FROM account WHERE email = ?", CAROL)
    for sql in (
        "INSERT INTO totp (account_id, secret) VALUES (?, ?)",
        "INSERT INTO recovery_code (account_id, hash) VALUES (?, ?)",
        "INSERT INTO identity (account_id, id, provider, name, created_at) VALUES (?, 'a:b', 'a', 'b', 1)",
    ):
        await change(stage, sql, account_id, *([b"x"] if sql.count("?") == 2 else []))
    page = await browser.submit(await browser.get("/dashboard/close"), "/dashboard/close", password=PASSWORD)
    assert page.status == 200
    for table in people._OF_SIGN_INS:
        assert not await stage.rows(f"SELECT 1 FROM {table} WHERE account_id = ?", account_id), table
