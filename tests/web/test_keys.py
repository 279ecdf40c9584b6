"""Keys in the dashboard: what a form says is what the key may do, and nobody gets more than they were given."""

import re
from typing import Any, Final

import pytest

from farebox.accounts.key_rules import MOST_NETWORKS, read_networks
from farebox.billing.budgets import RESETS, period_end_us, period_start_us
from farebox.books.audit import audit
from farebox.clock import DAY_US, US_PER_S, day_of, day_start_us
from farebox.errors import InvalidRequest
from farebox.money import NANOS_PER_USD
from tests.stage import MODEL, Person, Stage
from tests.web.browse import Browser, Page, enter, mails_to, make_key

HAIKU: Final = "claude-haiku-4-5"
RULES: Final = "models, networks, requests_per_minute, disabled_at, replaced_by, purpose"


async def key_id_of(stage: Stage, name: str) -> int:
    ((key_id,),) = await stage.rows("SELECT id FROM api_key WHERE name = ? AND replaced_by IS NULL", name)
    return int(key_id)


async def make(browser: Browser, **fields: str) -> Page:
    return await browser.submit(await browser.get("/dashboard/keys"), "/dashboard/keys", **fields)


async def change(browser: Browser, key_id: int, **fields: str) -> Page:
    path = f"/dashboard/keys/{key_id}"
    return await browser.submit(await browser.get(path), path, **fields)


async def test_a_key_is_shown_once_with_what_to_paste_claude_code_first(stage: Stage) -> None:
    browser = await enter(stage, stage.alice.email)
    page = await make(browser, name="laptop")
    (shown,) = page.find("input", id="key")
    key = shown.get("value", "")
    assert page.faults() == []
    assert [tab.text for tab in page.find("a", role="tab")] == ["Claude Code", "Python", "TypeScript", "cURL"]
    samples = [pre.get("data-copy", "") for pre in page.find("pre")]
    assert len(samples) == 4
    assert all(key in sample for sample in samples)
    assert f"export ANTHROPIC_AUTH_TOKEN={key}\nexport ANTHROPIC_API_KEY=\nclaude" in samples[0]
    subject, body = (await mails_to(stage, stage.alice.email))[-1]
    assert subject == "A new API key at Farebox"
    assert key not in body
    assert key not in (await browser.get("/dashboard/keys")).text
    assert (await stage.ask(Person(stage.alice.account_id, "", key)))[0] == 200


async def test_what_the_form_says_is_what_the_key_may_do(stage: Stage) -> None:
    browser = await enter(stage, stage.alice.email)
    made = await make(
        browser,
        name="  the   laptop ",
        lifetime="7",
        limit="$12.50",
        resets="weekly",
        requests_per_minute="1,200",
        networks="203.0.113.7, 2001:db8::/32\n203.0.113.7",
        **{f"model.{HAIKU}": "1"},
    )
    assert "Your new key" in made.words
    key_id = await key_id_of(stage, "the laptop")
    assert HAIKU in [pre.get("data-copy", "") for pre in made.find("pre")][1]
    ((ends,),) = await stage.rows("SELECT expires_at FROM api_key WHERE id = ?", key_id)
    assert abs(ends - stage.gateway.clock() - 7 * DAY_US) < 60 * US_PER_S
    rules = await stage.rows(f"SELECT {RULES} FROM api_key WHERE id = ?", key_id)
    assert rules == [(HAIKU, "203.0.113.7/32 2001:db8::/32", 1200, None, None, "client")]
    budget = "SELECT limit_nanos, resets, used_nanos FROM key_budget WHERE key_id = ?"
    assert await stage.rows(budget, key_id) == [(12_500_000_000, "weekly", 0)]

    filled = (await browser.get(f"/dashboard/keys/{key_id}")).form(f"/dashboard/keys/{key_id}")[2]
    assert (filled["limit"], filled["resets"], filled["lifetime"]) == ("12.50", "weekly", "keep")
    assert (filled["networks"], filled[f"model.{HAIKU}"], filled[f"model.{MODEL}"]) == (
        *("203.0.113.7\n2001:db8::/32", "1", ""),
    )
    saved = await change(browser, key_id, name="the laptop")
    assert "have been changed" in saved.words
    assert await stage.rows(f"SELECT {RULES} FROM api_key WHERE id = ?", key_id) == rules
    assert await stage.rows("SELECT expires_at FROM api_key WHERE id = ?", key_id) == [(ends,)]
    await change(
        browser,
        key_id,
        name="free",
        limit="",
        lifetime="",
        networks="",
        requests_per_minute="",
        **{f"model.{HAIKU}": ""},
    )
    assert await stage.rows(f"SELECT {RULES} FROM api_key WHERE id = ?", key_id) == [
        ("", "", None, None, None, "client")
    ]
    assert await stage.rows(budget, key_id) == []
    assert await stage.rows("SELECT name, expires_at FROM api_key WHERE id = ?", key_id) == [("free", None)]


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("name", "", "1 to 100 printable characters"),
        ("name", "x" * 101, "1 to 100 printable characters"),
        ("name", "a\x07b", "1 to 100 printable characters"),
        ("limit", "-1", "a spend limit is dollars"),
        ("limit", "1e9", "a spend limit is dollars"),
        ("limit", "9" * 12, "a spend limit is dollars"),
        ("resets", "hourly", "begins anew daily, weekly, monthly or never"),
        ("lifetime", "8", "7, 30, 90 or 365 days"),
        ("lifetime", "keep", "7, 30, 90 or 365 days"),
        ("requests_per_minute", "0", "1…1,000,000"),
        ("requests_per_minute", "-5", "1…1,000,000"),
        ("requests_per_minute", "99999999", "1…1,000,000"),
        ("networks", "10.0.0.256", "is no address or network"),
        ("networks", "10.0.0.1/8", "the network is 10.0.0.0/8"),
        ("networks", "example.com", "is no address or network"),
        ("networks", "fe80::1%eth0", "leave out what is after the %"),
        ("networks", " ".join(f"10.0.0.{n}" for n in range(MOST_NETWORKS + 1)), "at most 50 addresses"),
        ("networks", "1" * 4001, "at most 4,000 characters"),
        ("model.gpt", "1", "is not sold here"),
    ],
)
async def test_what_is_wrong_is_said_by_its_field_and_changes_nothing(
    stage: Stage, field: str, value: str, words: str
) -> None:
    browser = await enter(stage, stage.alice.email)
    await make_key(stage, browser, stage.alice.email, "laptop")
    before = await stage.rows("SELECT * FROM api_key ORDER BY id")
    for path in ("/dashboard/keys", f"/dashboard/keys/{await key_id_of(stage, 'laptop')}"):
        if (field, value) == ("lifetime", "keep") and path != "/dashboard/keys":
            continue
        page = await browser.post(path, {"name": "other", "limit": "3", field: value})
        assert page.status == 422
        assert page.faults() == []
        assert words in page.words
        named = "models" if field.startswith("model.") else field
        assert any(element.get("aria-describedby") == f"wrong-{named}" for element in page.tree.iter())
        assert words in "".join(next(page.find("span", id=f"wrong-{named}")).itertext())
        assert [alert.get("role") for alert in page.find("p", role="alert")] == ["alert"]
    assert await stage.rows("SELECT * FROM api_key ORDER BY id") == before
    assert await stage.rows("SELECT * FROM key_budget") == []


async def test_a_disabled_key_rests_and_a_revoked_one_is_gone(stage: Stage) -> None:
    browser = await enter(stage, stage.alice.email)
    person = await make_key(stage, browser, stage.alice.email, "laptop")
    key_id = await key_id_of(stage, "laptop")
    assert (await stage.ask(person))[0] == 200
    page = await browser.submit(await browser.get(f"/dashboard/keys/{key_id}"), f"/dashboard/keys/{key_id}/disable")
    assert "Disabled: its calls are refused" in page.words
    assert (await stage.ask(person))[0] in {401, 403}
    page = await browser.submit(page, f"/dashboard/keys/{key_id}/enable")
    assert "Disabled" not in page.words
    assert (await stage.ask(person))[0] == 200
    page = await browser.submit(await browser.get(f"/dashboard/keys/{key_id}/revoke"))
    assert next(row for row in page.rows("Former keys") if "laptop" in row[0])[1] == "revoked"
    status, answer = await stage.ask(person)
    assert status == 401
    assert b"revoked" in answer
    await browser.post(f"/dashboard/keys/{key_id}/enable")
    assert (await browser.post(f"/dashboard/keys/{key_id}", {"name": "back"})).status == 200
    assert (await stage.ask(person))[0] == 401
    assert "nothing brings it back" in (await browser.get(f"/dashboard/keys/{key_id}")).words


@pytest.mark.parametrize("grace", [0, 1, 24, 168])
async def test_a_rolled_key_has_a_successor_with_its_rules_and_ends_in_time(stage: Stage, grace: int) -> None:
    browser = await enter(stage, stage.alice.email)
    old = await make_key(stage, browser, stage.alice.email, "laptop")
    key_id = await key_id_of(stage, "laptop")
    await change(browser, key_id, limit="5", resets="daily", **{f"model.{MODEL}": "1"}, requests_per_minute="50")
    mails = len(await mails_to(stage, stage.alice.email))
    page = await browser.submit(await browser.get(f"/dashboard/keys/{key_id}/roll"), grace=str(grace))
    (shown,) = page.find("input", id="key")
    new = Person(old.account_id, old.email, shown.get("value", ""))
    ((ends, successor),) = await stage.rows("SELECT expires_at, replaced_by FROM api_key WHERE id = ?", key_id)
    assert abs(ends - stage.gateway.clock() - grace * 3600 * US_PER_S) < 60 * US_PER_S
    both = [await stage.rows("SELECT models, networks, requests_per_minute, name FROM api_key WHERE id = ?", one)
            for one in (key_id, successor)]  # fmt: skip
    assert both[0] == both[1]
    assert await stage.rows("SELECT limit_nanos, resets FROM key_budget WHERE key_id = ?", successor) == [
        (5 * NANOS_PER_USD, "daily")
    ]
    assert (await stage.ask(new))[0] == 200
    assert (await stage.ask(old))[0] == (200 if grace else 401)
    assert len(await mails_to(stage, stage.alice.email)) == mails + 1
    again = await browser.post(f"/dashboard/keys/{key_id}/roll", {"grace": "24"})
    assert again.status == 422
    assert "make a new one instead" in again.words
    assert (await browser.post(f"/dashboard/keys/{successor}/roll", {"grace": "2"})).status == 422


async def test_a_rolled_key_never_lives_longer_than_it_would_have(stage: Stage) -> None:
    browser = await enter(stage, stage.alice.email)
    await make_key(stage, browser, stage.alice.email, "brief")
    key_id = await key_id_of(stage, "brief")
    soon = stage.gateway.clock() + 60 * US_PER_S
    await stage.gateway.store.write([("UPDATE api_key SET expires_at = ? WHERE id = ?", (soon, key_id))])
    await browser.post(f"/dashboard/keys/{key_id}/roll", {"grace": "168"})
    assert await stage.rows("SELECT expires_at FROM api_key WHERE id = ?", key_id) == [(soon,)]


async def test_a_budget_shows_what_is_used_of_the_present_period_alone(stage: Stage) -> None:
    browser = await enter(stage, stage.alice.email)
    await make(browser, name="laptop", limit="10", resets="daily")
    key_id = await key_id_of(stage, "laptop")
    now = stage.gateway.clock()
    for since, used, shown in ((now, 9_700_000_000, "$9.70"), (now - 2 * DAY_US, 9_700_000_000, "$0.00")):
        update = "UPDATE key_budget SET since = ?, used_nanos = ? WHERE key_id = ?"
        await stage.gateway.store.write([(update, (since, used, key_id))])
        page = await browser.get(f"/dashboard/keys/{key_id}")
        assert f"Budget {shown} " in page.words
        assert "of $10.00 a day" in page.words
        (meter,) = page.find("meter")
        assert meter.get("value") == ("97" if shown == "$9.70" else "0")


async def test_keys_of_the_playground_stand_apart_and_are_never_shown(stage: Stage) -> None:
    browser = await enter(stage, stage.alice.email)
    await make_key(stage, browser, stage.alice.email, "laptop")
    key_id = await key_id_of(stage, "laptop")
    await stage.gateway.store.write([("UPDATE api_key SET purpose = 'playground' WHERE id = ?", (key_id,))])
    page = await browser.get("/dashboard/keys")
    assert [row[0].split()[0] for row in page.rows("Playground keys")] == ["laptop"]
    assert "laptop" not in [row[0].split()[0] for row in page.rows("Keys")]
    assert f"/dashboard/keys/{key_id}/roll" not in (await browser.get(f"/dashboard/keys/{key_id}")).links()
    assert (await browser.post(f"/dashboard/keys/{key_id}/roll", {"grace": "0"})).status == 404
    assert len(await stage.rows("SELECT 1 FROM api_key WHERE account_id = ?", stage.alice.account_id)) == 2


async def test_hints_tell_what_would_make_a_key_safer(stage: Stage) -> None:
    browser = await enter(stage, stage.alice.email)
    await make_key(stage, browser, stage.alice.email, "careless")
    await make(browser, name="careful", limit="1", lifetime="30")
    careless, careful = await key_id_of(stage, "careless"), await key_id_of(stage, "careful")
    assert "no spend limit, never expires" in (await browser.get(f"/dashboard/keys/{careless}")).words
    assert "leaks" not in (await browser.get(f"/dashboard/keys/{careful}")).words
    assert f"/dashboard/keys/{careless}" in (await browser.get("/dashboard")).links()
    old = stage.gateway.clock() - 91 * DAY_US
    await stage.gateway.store.write([("UPDATE api_key SET created_at = ?", (old,))])
    assert "idle for 90 days" in (await browser.get(f"/dashboard/keys/{careful}")).words


async def test_an_account_makes_so_many_keys_and_no_more(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("farebox.accounts.keys.MOST_KEYS", 3)
    browser = await enter(stage, stage.alice.email)
    for name in ("a", "b"):
        await make_key(stage, browser, stage.alice.email, name)
    refused = await browser.post("/dashboard/keys", {"name": "c"})
    assert refused.status == 422
    assert "at most 3 keys that work; revoke one first" in refused.words
    key_id = await key_id_of(stage, "a")
    assert (await browser.post(f"/dashboard/keys/{key_id}/roll", {"grace": "0"})).status == 422
    await browser.post(f"/dashboard/keys/{key_id}/revoke")
    assert (await browser.post("/dashboard/keys", {"name": "c"})).status == 200


async def test_a_chart_of_one_key_counts_its_calls_alone(stage: Stage) -> None:
    browser = await enter(stage, stage.alice.email)
    one = await make_key(stage, browser, stage.alice.email, "one")
    two = await make_key(stage, browser, stage.alice.email, "two")
    for person in (one, one, two):
        assert (await stage.ask(person))[0] == 200
    key_id = await key_id_of(stage, "one")
    page = await browser.get(f"/dashboard/keys/{key_id}?metric=requests")
    assert page.rows("Usage by model")[0][-1] == "2"
    query = f"?metric=requests&by=key&range=24h&key={key_id}"
    assert [row[-1] for row in (await browser.get(f"/dashboard/usage{query}")).rows("Usage by key")] == ["2"]
    files = [link for link in page.links() if link.startswith("/dashboard/usage.json")]
    assert '"requests":2' in (await browser.get(files[0])).text


@pytest.mark.parametrize("resets", RESETS)
def test_periods_follow_one_another_without_gap_or_overlap(resets: Any) -> None:
    """For any moment: it lies in its period, and the end of one is the beginning of the next."""
    for day in ("1970-01-05", "2024-02-29", "2026-01-01", "2026-11-22", "2026-12-31"):
        for at_us in (day_start_us(day), day_start_us(day) + DAY_US - 1):
            begin, end = period_start_us(resets, at_us), period_end_us(resets, at_us)
            assert begin <= at_us
            assert begin % DAY_US == 0
            if end is None:
                assert resets == "never"
                continue
            assert at_us < end
            assert period_start_us(resets, end) == end
            assert period_start_us(resets, end - 1) == begin
    if resets == "weekly":
        assert day_of(period_start_us(resets, day_start_us("2026-11-22"))) == "2026-11-16"


@pytest.mark.parametrize(
    ("text", "networks"),
    [
        ("", ()),
        ("  \n", ()),
        ("10.0.0.1", ("10.0.0.1/32",)),
        ("10.0.0.0/8;::1", ("10.0.0.0/8", "::1/128")),
        ("::ffff:10.0.0.1", ("10.0.0.1/32",)),
        ("::ffff:10.0.0.0/104", ("10.0.0.0/8",)),
        ("0.0.0.0/0", ("0.0.0.0/0",)),
    ],
)
def test_networks_are_kept_in_one_form(text: str, networks: tuple[str, ...]) -> None:
    assert read_networks(text) == networks


def test_no_text_makes_reading_networks_fail() -> None:
    for text in (
        "1.2.3",
        "/",
        "1/33",
        "::/129",
        "٣.٣.٣.٣",
        "\0",
        "10.0.0.0/8/8",
        "-1",
        "0x7f.1",
        "a" * 3000,
        "1.2.3.4/ 8",
    ):
        with pytest.raises(InvalidRequest, match=re.compile("no address|characters")):
            read_networks(text)


async def test_a_limit_that_is_changed_goes_on_and_one_with_another_period_begins_anew(stage: Stage) -> None:
    """Set while the key is used, it agrees with the books from its first call on."""
    browser = await enter(stage, stage.alice.email)
    person = await make_key(stage, browser, stage.alice.email, "laptop")
    key_id = await key_id_of(stage, "laptop")
    used = "SELECT limit_nanos, resets, used_nanos > 0 FROM key_budget WHERE key_id = ?"

    async def call_and_prove() -> None:
        assert (await stage.ask(person))[0] == 200
        checks = {check.name: check for check in await audit(stage.gateway.store)}
        assert checks["spend limits"].ok, checks["spend limits"].detail

    await call_and_prove()
    await change(browser, key_id, limit="10", resets="monthly")
    await call_and_prove()
    assert await stage.rows(used, key_id) == [(10 * NANOS_PER_USD, "monthly", True)]
    await change(browser, key_id, limit="20")
    assert await stage.rows(used, key_id) == [(20 * NANOS_PER_USD, "monthly", True)]
    await change(browser, key_id, resets="daily")
    assert await stage.rows(used, key_id) == [(20 * NANOS_PER_USD, "daily", False)]
    await call_and_prove()
    await change(browser, key_id, limit="")
    assert await stage.rows(used, key_id) == []
    await call_and_prove()


async def test_a_key_that_has_spent_its_limit_is_refused_until_that_is_raised(stage: Stage) -> None:
    browser = await enter(stage, stage.alice.email)
    person = await make_key(stage, browser, stage.alice.email, "laptop")
    key_id = await key_id_of(stage, "laptop")
    await change(browser, key_id, limit="0.000001")
    assert (await stage.ask(person))[0] == 402
    await change(browser, key_id, limit="1")
    assert (await stage.ask(person))[0] == 200
    await change(browser, key_id, **{f"model.{HAIKU}": "1"})
    assert (await stage.ask(person))[0] == 403
    await change(browser, key_id, **{f"model.{HAIKU}": ""}, networks="203.0.113.7")
    assert (await stage.ask(person))[0] == 403
    await change(browser, key_id, networks="127.0.0.0/8", requests_per_minute="1")
    assert [(await stage.ask(person))[0] for _ in range(2)] == [200, 429]
