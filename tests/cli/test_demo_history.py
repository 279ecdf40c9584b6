"""The demo's history: made up, but of the same stuff as real books, and proved like them."""

import json
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from farebox.accounts.accounts import list_accounts
from farebox.billing.plans import Plans
from farebox.books.audit import audit
from farebox.books.statement import whole_statement
from farebox.cli.demo_history import fill
from farebox.cli.demo_story import CAST, HISTORY_DAYS
from farebox.clock import DAY_US, steady_clock
from farebox.config.load import default_offer
from farebox.store.open import open_store
from tests.cli.test_servers import HELLO, attempt, post, run, running


async def test_every_proof_of_the_books_holds_on_a_made_up_past(database_url: str) -> None:
    models, offered = default_offer()
    plans = Plans(offered)
    store = await open_store(database_url, plans=plans)
    try:
        now_us = steady_clock()()
        told: list[tuple[str, int, int]] = []
        await fill(store, tuple(models), plans, "sk-cc-", now_us, on_progress=lambda *step: told.append(step))
        broken = [check for check in await audit(store) if not check.ok]
        assert not broken
        accounts = {account.email: account for account in await list_accounts(store)}
        assert set(accounts) == {person.email for person in CAST}
        for account in accounts.values():
            lines = [line async for line in whole_statement(store, account.id, 10**6)]
            assert min((line.balance_nanos for line in lines), default=0) >= 0, "a balance was never below zero"
            assert all(line.mark.at_us <= now_us for line in lines)
            gifts = [line for line in lines if line.code not in {"usage", "charge"} and line.amount_nanos > 0]
            assert all("demo data" in line.memo for line in gifts)
        await _check_the_cast(store, accounts)
        assert told[-1][1] == told[-1][2]
        days = await store.fetch("SELECT count(*), max(day) FROM day_close")
        assert days[0][0] in {HISTORY_DAYS - 1, HISTORY_DAYS}, "but for yesterday, within the first hour of a day"
        assert (await store.fetch("SELECT min(at) FROM usage"))[0][0] > now_us - (HISTORY_DAYS + 1) * DAY_US
    finally:
        await store.close()


async def _check_the_cast(store: Any, accounts: dict[str, Any]) -> None:
    """There is somebody for every page: one suspended, one without money, one who has just come."""
    assert accounts["sam@oddjob.example"].status == "suspended"
    assert accounts["li.wei@northgate.example"].balance_nanos < 10_000_000
    assert accounts["noor@quiet-lines.example"].topped_up_nanos == 0
    (helpers,) = await store.fetch("SELECT count(DISTINCT session), count(DISTINCT agent) FROM usage")
    assert min(helpers) > 50
    outcomes = {row[0] for row in await store.fetch("SELECT DISTINCT outcome FROM usage")}
    assert outcomes == {"finished", "client_gone", "upstream_broke", "refused_upstream", "out_of_money"}
    credited = (
        "SELECT count(*) FROM topup p JOIN payment c ON c.topup_id = p.id "
        "JOIN transfer t ON t.id = c.transfer_id AND p.amount_nanos = t.amount_nanos"
    )
    deposits = "SELECT count(*) FROM transfer WHERE code = 'deposit'"
    assert await store.fetch(credited) == await store.fetch(deposits)
    said = await store.fetch("SELECT words FROM announcement")
    assert "made up" in said[0][0]


def _sign_in(site: str, email: str, password: str) -> str:
    form = urllib.parse.urlencode({"email": email, "password": password, "next": "/dashboard"}).encode()
    opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
    with opener.open(urllib.request.Request(f"{site}/login", form, {"origin": site}), timeout=20) as page:
        assert "/login" not in page.url, page.read()
        return str(page.read().decode())


def test_the_demo_begins_with_a_history_once_and_tells_how_to_sign_in(tmp_path: Path) -> None:
    words = ("demo", "--with-history", "--port", "0", "--data", "d", "--json")
    with running(*words, cwd=tmp_path) as (process, first):
        assert process.stdout is not None
        shown = json.loads(first)
        while "api_key" not in shown:
            assert shown["event"] == "progress"
            shown = json.loads(process.stdout.readline())
        site = shown["base_url"].removesuffix("/api/proxy")
        assert post(shown["base_url"], shown["api_key"], HELLO)[0] == 200
        assert shown["account_email"] in _sign_in(site, shown["account_email"], shown["account_password"])
        assert shown["admin_email"] in _sign_in(site, shown["admin_email"], shown["admin_password"])
    config = ("--config", str(tmp_path / "d" / "farebox.toml"))
    assert all(check["ok"] for check in run(*config, "audit", "--json", cwd=tmp_path))
    with running(*words, cwd=tmp_path) as (_, line):
        again = json.loads(line)
    names = ("api_key", "account_password", "admin_password")
    assert [again[name] for name in names] == [shown[name] for name in names]


def test_a_history_goes_into_fresh_books_only(tmp_path: Path) -> None:
    with running("demo", "--port", "0", "--data", "d", "--json", cwd=tmp_path) as (_, line):
        assert json.loads(line)["admin_password"]
    refused = attempt("demo", "--with-history", "--port", "0", "--data", "d", cwd=tmp_path)
    assert refused.returncode == 1
    assert "choose another --data" in refused.stderr
