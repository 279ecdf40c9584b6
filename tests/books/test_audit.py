"""The audit finds every kind of tampering, names it, and finds nothing in books that are sound."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import apsw
import msgspec
import pytest
from msgspec.structs import replace

from farebox.accounts.key_rules import Rules
from farebox.accounts.keys import change_key, find_key
from farebox.billing.ledger import Transfer
from farebox.billing.usage import Line, Usage
from farebox.books import audit as module
from farebox.books.audit import audit
from farebox.books.days import close_days
from farebox.books.ledger import credit, debit
from farebox.books.prices import pin_prices
from farebox.books.runs import resolve_orphans
from farebox.clock import DAY_US
from farebox.ids import new_request_id
from farebox.store.open import open_store
from farebox.store.protocol import Row
from farebox.store.schema import Dialect, triggers
from tests.books.shop import MODELS, Shop, open_shop
from tests.books.tampering import Tamper, broken, tamper_with
from tests.cluster import Cluster, run
from tests.databases import Databases, name_of, on_postgresql, on_sqlite, sqlite_path

NAMES = {
    "sqlite": ["file", "references", "triggers"],
    "postgresql": ["settings", "references", "constraints", "triggers", "functions"],
}
"""What a database checks of itself."""
ERIN = 3
"""Whose key has a spend limit."""
OURS = [
    "balances", "held amounts", "open holds", "top-ups", "above zero", "spend limits",
    "zero sum", "live holds", "settled once", "who pays", "price lists", "prices", "day digests",
    "dropped days", "day sums", "payments",
]  # fmt: skip
BENT = "constraints"
"""Breaks where a row could only be written with a CHECK out of the way; SQLite reads all rows again instead."""


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SETTLE_S", 0.01)


@pytest.fixture(scope="module")
def written(databases: Databases, database_kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Books with four closed days and a fifth, and every kind of call and transfer."""

    async def write(url: str) -> None:
        async with open_shop(url, alice_nanos=10**12) as shop:
            erin = await shop.person("erin@example.com", 10**9)
            await limit(shop, erin)
            for _ in range(4):
                await a_day(shop)
                await shop.call(erin, 300, 20)
                shop.now_us += DAY_US
            shop.now_us += DAY_US // 2
            assert len(await close_days(shop.store, shop.now_us)) == 4
            await a_day(shop)
            await shop.runs.end(shop.now_us)

    with databases.fresh(database_kind, tmp_path_factory.mktemp("audit")) as url:
        run(write(url))
        yield url


@pytest.fixture
async def used(databases: Databases, database_kind: str, written: str, tmp_path: Path) -> AsyncIterator[Shop]:
    """A copy of those books, served, with a call in flight."""
    with databases.fresh(database_kind, tmp_path, like=written) as url:
        async with open_shop(url) as shop:
            shop.now_us += 5 * DAY_US
            await shop.admit(shop.alice, 12_345)
            await shop.call(ERIN, 300, 20)
            await shop.admit(ERIN, 700)
            yield shop


async def limit(shop: Shop, account_id: int) -> None:
    """Let the account's key spend a dollar a month."""
    key = await find_key(shop.store, str(shop.keys[account_id]))
    await change_key(shop.store, key, "limited", Rules(limit_nanos=10**9, resets="monthly"), shop.now_us)


async def a_day(shop: Shop) -> None:
    """A few calls and movements of money of each kind."""
    for tokens in (1, 700, 20_000):
        await shop.call(shop.alice, tokens, tokens // 2, session="s", agent="a" if tokens > 1 else None)
        shop.now_us += 1_000_000
    await shop.call(shop.alice, 50, 9, kind="waived", waive=True, outcome="upstream_broke")
    free, _ = await shop.admit(shop.alice, 10)
    refusal = shop.settlement(free, shop.alice, list_nanos=0, input_tokens=40, stop_reason="refusal")
    await shop.ledger.settle(refusal)
    failed, _ = await shop.admit(shop.alice, 10)
    await shop.ledger.settle(shop.settlement(failed, shop.alice, kind="failed", outcome="refused_upstream"))
    await shop.admit(shop.alice, 10)
    await resolve_orphans(shop.store, shop.ledger)
    await steps(shop)
    tag = str(shop.now_us)
    await shop.ledger.post(credit(f"d{tag}", shop.bob, 10**8, code="deposit", actor="test", memo=""))
    await shop.ledger.post(credit(f"p{tag}", shop.bob, 10**7, code="promotion", actor="test", memo=""))
    await shop.ledger.post(debit(f"x{tag}", shop.bob, 10**6, actor="test", memo=""))
    gift = Transfer(
        id=f"g{tag}",
        debit_account=f"customer:{shop.bob}",
        credit_account=f"customer:{shop.alice}",
        amount_nanos=3,
        code="gift",
        actor="test",
        memo="",
    )
    await shop.ledger.post(gift)
    await short(shop)


async def steps(shop: Shop) -> None:
    """A call whose usage the columns cannot say."""
    usage = Usage((Line("opus", 5, 6, 7, 8, 9), Line("opus", 100, geo_us=True, unpriced=4)), web_searches=2)
    priced = shop.catalogue.price(usage, shop.catalogue.models["opus"])
    one, _ = await shop.admit(shop.alice, 10**8)
    await shop.ledger.settle(
        shop.settlement(
            one,
            shop.alice,
            priced.cost_nanos,
            list_nanos=priced.list_nanos,
            input_tokens=105,
            cache_write_5m_tokens=6,
            cache_write_1h_tokens=7,
            cache_read_tokens=8,
            output_tokens=9,
            web_searches=2,
            detail=msgspec.json.encode(usage).decode(),
        )
    )


async def short(shop: Shop) -> None:
    """A call that costs more than its customer has."""
    dave = await shop.person(f"d{shop.now_us}@example.com", 1_000)
    one, _ = await shop.admit(dave, 1_000)
    priced = shop.catalogue.price(Usage((Line("opus", input=1),)), shop.catalogue.models["opus"])
    settle = shop.settlement(one, dave, priced.cost_nanos, list_nanos=priced.list_nanos, input_tokens=1)
    assert (await shop.ledger.settle(settle)).shortfall_nanos == priced.cost_nanos - 1_000


@pytest.fixture
def tamper(used: Shop, request: pytest.FixtureRequest) -> Tamper:
    return tamper_with(used.url, request)


OLD = "(SELECT request_id FROM usage WHERE charged_nanos > 0 ORDER BY at LIMIT 1)"
NEW = (
    "(SELECT request_id FROM usage WHERE charged_nanos > 0 AND detail IS NULL AND account_id = 1 "
    "ORDER BY at DESC LIMIT 1)"
)
IS_NEW = f"request_id = {NEW}"
LIMITED = "(SELECT request_id FROM usage WHERE account_id = 3 ORDER BY at DESC LIMIT 1)"
STEPS = "(SELECT request_id FROM usage WHERE detail IS NOT NULL ORDER BY at DESC LIMIT 1)"
FREE = "(SELECT request_id FROM usage WHERE kind = 'failed' ORDER BY at LIMIT 1)"
LAST_TRANSFER = "(SELECT id FROM transfer WHERE code = 'promotion' ORDER BY at DESC LIMIT 1)"
SECOND_DAY = "(SELECT day FROM day_close ORDER BY day LIMIT 1 OFFSET 1)"
HOLD = "request_id, account_id, key_id, model, amount_nanos, tokens, price_version, run_id, created_at"
ONE_HOLD = "FROM hold WHERE account_id = 1"
SOLD = '"input":7500000000'


@pytest.mark.parametrize(
    ("statements", "found"),
    [
        ("UPDATE account SET posted_nanos = posted_nanos + 1 WHERE id = 2", {"balances", "zero sum"}),
        ("UPDATE account SET held_nanos = held_nanos + 1 WHERE id = 1", {"held amounts"}),
        ("UPDATE account SET open_holds = open_holds + 1 WHERE id = 1", {"open holds"}),
        ("UPDATE account SET topped_up_nanos = topped_up_nanos + 1 WHERE id = 2", {"top-ups"}),
        (
            "UPDATE account SET held_nanos = posted_nanos + 1 WHERE id = 2",
            {"held amounts", "above zero", BENT},
        ),
        ("UPDATE account SET status = 'odd' WHERE id = 2", {BENT}),
        ("UPDATE api_key SET account_id = 4711 WHERE id = 1", {"references"}),
        (f"DELETE FROM usage WHERE request_id = {NEW}", {"balances", "zero sum"}),
        (f"DELETE FROM usage WHERE request_id = {OLD}", {"balances", "zero sum", "day digests", "day sums"}),
        (f"DELETE FROM usage WHERE request_id = {FREE}", {"day digests", "day sums"}),
        (f"UPDATE usage SET account_id = 2 WHERE request_id = {NEW}", {"balances"}),
        (f"UPDATE usage SET output_tokens = output_tokens + 1 WHERE request_id = {NEW}", {"prices"}),
        (f"UPDATE usage SET price_version = 9 WHERE request_id = {NEW}", {"prices"}),
        (f"UPDATE usage SET asked_model = 'unheard-of' WHERE request_id = {NEW}", {"prices"}),
        (f"UPDATE usage SET list_nanos = list_nanos + 1 WHERE request_id = {NEW}", {"prices"}),
        (f"UPDATE usage SET detail = 'gone' WHERE request_id = {NEW}", {"prices"}),
        (
            f"UPDATE usage SET detail = replace(detail, '\"unpriced\":4', '\"unpriced\":5') WHERE request_id = {STEPS}",
            {"prices"},
        ),
        (
            f"UPDATE usage SET cache_read_tokens = 9 WHERE request_id = {STEPS}",
            {"prices"},
        ),
        (
            (  # a forger who keeps the sums right
                f"UPDATE usage SET (cost_nanos, charged_nanos) = (cost_nanos + 5, cost_nanos + 5) WHERE {IS_NEW}",
                "UPDATE account SET posted_nanos = posted_nanos - 5 WHERE id = 1",
            ),
            {"prices"},
        ),
        (f"UPDATE usage SET kind = 'waived' WHERE request_id = {NEW}", {"who pays"}),
        (
            f"UPDATE usage SET waived_nanos = 7 WHERE request_id = {NEW}",
            {"who pays", "zero sum", BENT},
        ),
        (
            f"UPDATE usage SET stop_reason = 'refusal', output_tokens = 0 WHERE request_id = {NEW}",
            {"prices"},
        ),
        (f"UPDATE usage SET duration_us = 1 WHERE request_id = {OLD}", {"day digests"}),
        (
            f"UPDATE transfer SET amount_nanos = amount_nanos + 1 WHERE id = {LAST_TRANSFER}",
            {"balances", "zero sum"},
        ),
        (f"UPDATE transfer SET code = 'deposit' WHERE id = {LAST_TRANSFER}", {"top-ups"}),
        (
            "INSERT INTO transfer VALUES ('z', 4000000000000000, 'house:cash', 'customer:4711', 5, 'deposit', '', '')",
            {"zero sum"},
        ),
        (
            "INSERT INTO transfer VALUES ('z', 1, 'house:cash', 'house:promotion', 5, 'credit', '', '')",
            {"day digests"},
        ),
        ("DELETE FROM day_close WHERE day = (SELECT min(day) FROM day_close)", {"day digests", "day sums"}),
        (
            "DELETE FROM day_close WHERE day = (SELECT day FROM day_close ORDER BY day LIMIT 1 OFFSET 1)",
            {"day digests", "day sums"},
        ),
        ("UPDATE day_close SET sha256 = previous_sha256 WHERE day = (SELECT max(day) FROM day_close)", {"day digests"}),
        ("UPDATE day_close SET previous_sha256 = sha256", {"day digests"}),
        ("UPDATE day_close SET usage_rows = 0 WHERE day = (SELECT max(day) FROM day_close)", {"day digests"}),
        ("UPDATE price_list SET models = replace(models, 'Quiet', 'Loud')", {"price lists"}),
        (f"UPDATE price_list SET models = replace(models, '{SOLD}', '\"input\":1')", {"price lists", "prices"}),
        ("UPDATE price_list SET models = 'gone'", {"price lists", "prices"}),
        (
            (
                f"INSERT INTO hold ({HOLD}) SELECT substr(request_id, 2), 1, 1, 'best', 5, 0, 1, 99, 0 {ONE_HOLD}",
                "UPDATE account SET held_nanos = held_nanos + 5, open_holds = open_holds + 1 WHERE id = 1",
            ),
            {"live holds"},
        ),
        (
            (
                f"INSERT INTO hold ({HOLD}) SELECT {NEW}, 1, 1, 'best', 5, 0, 1, (SELECT max(id) FROM run), 0",
                "UPDATE account SET held_nanos = held_nanos + 5, open_holds = open_holds + 1 WHERE id = 1",
            ),
            {"settled once"},
        ),
        ("DELETE FROM hold WHERE account_id = 1", {"held amounts", "open holds"}),
        ("UPDATE key_budget SET used_nanos = used_nanos - 1", {"spend limits"}),
        ("UPDATE key_budget SET used_nanos = 0", {"spend limits"}),
        ("UPDATE key_budget SET since = since + 86400000000 * 3", {"spend limits"}),
        ("UPDATE hold SET key_id = 1 WHERE account_id = 3", {"spend limits"}),
        (f"UPDATE usage SET key_id = 1 WHERE request_id = {LIMITED}", {"spend limits"}),
        ("UPDATE usage_day SET charged_nanos = charged_nanos - 1 WHERE account_id = 3", {"day sums"}),
        ("DELETE FROM usage_day WHERE account_id = 3", {"day sums"}),
        ("UPDATE usage_day SET day = day - 9 WHERE account_id = 3", {"day sums"}),
        ("UPDATE session_day SET charged_nanos = 0 WHERE agent = 'a'", {"day sums"}),
        ("DELETE FROM session_day WHERE agent = ''", {"day sums"}),
        ("UPDATE run SET stopped_at = 5", {"live holds"}),
    ],
)
async def test_each_kind_of_tampering_breaks_exactly_the_checks_that_watch_for_it(
    used: Shop, tamper: Tamper, database_kind: str, statements: str | tuple[str, ...], found: set[str]
) -> None:
    assert broken(await audit(used.store)) == set()
    tamper(*([statements] if isinstance(statements, str) else statements))
    bent = "file" if database_kind == "sqlite" else BENT
    assert broken(await audit(used.store)) == {bent if name == BENT else name for name in found}


ANYWAY = "CREATE OR REPLACE FUNCTION anyway() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'"
REPLACED = (
    "DROP TRIGGER usage_is_not_updated ON usage; "
    "CREATE TRIGGER usage_is_not_updated BEFORE UPDATE ON usage FOR EACH ROW EXECUTE FUNCTION anyway()"
)


@on_sqlite
@pytest.mark.parametrize(
    "statement",
    [
        "DROP TRIGGER IF EXISTS usage_is_not_deleted",
        "CREATE TRIGGER usage_is_not_updated BEFORE UPDATE ON usage BEGIN SELECT 1; END",
    ],
)
async def test_a_guard_that_was_taken_away_or_changed_is_missed(used: Shop, tamper: Tamper, statement: str) -> None:
    tamper(statement)
    assert broken(await audit(used.store)) == {"triggers"}


@on_postgresql
@pytest.mark.parametrize(
    ("statement", "found"),
    [
        ("DROP TRIGGER usage_is_not_deleted ON usage", "triggers"),
        ("ALTER TABLE usage DISABLE TRIGGER usage_is_not_updated", "triggers"),
        ("ALTER TABLE transfer DISABLE TRIGGER ALL", "triggers"),
        (f"{ANYWAY}; {REPLACED}", "triggers"),
        (ANYWAY.replace("anyway", "refuse"), "functions"),
        ("ALTER FUNCTION bucket_spend RENAME TO spent", "functions"),
        ("ALTER TABLE account DROP CONSTRAINT account_check", "constraints"),
        ("ALTER TABLE account DROP CONSTRAINT account_check, ADD CONSTRAINT account_check CHECK (true)", "constraints"),
        ("ALTER TABLE usage DROP CONSTRAINT usage_kind_check", "constraints"),
        ("ALTER TABLE api_key DROP CONSTRAINT api_key_account_id_fkey", "constraints"),
    ],
)
async def test_a_guard_that_was_taken_away_or_changed_in_postgresql_is_missed(
    used: Shop, tamper: Tamper, statement: str, found: str
) -> None:
    tamper(statement)
    assert broken(await audit(used.store)) == {found}


@on_postgresql
async def test_every_guard_that_there_is_in_postgresql_is_watched(used: Shop, cluster: Cluster) -> None:
    there = cluster.fetch(
        "SELECT (SELECT count(*) FROM pg_constraint WHERE contype IN ('c', 'f', 'p', 'u') AND connamespace = n.oid "
        "AND conname <> 'schema_version_pkey' AND coninhcount = 0), "
        "(SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal), "
        "(SELECT count(*) FROM pg_proc WHERE pronamespace = n.oid) FROM pg_namespace n WHERE nspname = 'public'",
        database=name_of(used.url),
    )
    watched = {check.name: check.rows for check in await audit(used.store)}
    assert tuple(there[0]) == tuple(watched[name] for name in ("constraints", "triggers", "functions"))


async def test_sound_books_pass_every_check_and_each_looked_at_what_there_is(used: Shop, database_kind: str) -> None:
    checks = await audit(used.store)
    assert [check.name for check in checks] == NAMES[database_kind] + OURS
    rows = {check.name: check.rows for check in checks}
    calls = await used.count("usage")
    assert (rows["prices"], rows["who pays"], rows["settled once"]) == (calls, calls, calls)
    assert rows["zero sum"] == calls + await used.count("transfer")
    assert (rows["balances"], rows["spend limits"], rows["day digests"], rows["price lists"]) == (8, 1, 4, 1)
    dialect: Dialect = "sqlite" if database_kind == "sqlite" else "postgresql"
    months = (
        "SELECT count(*) FROM pg_inherits WHERE inhparent = 'usage'::regclass"  # each with three triggers of its own
    )
    more = 3 * (await used.store.fetch(months))[0][0] if database_kind == "postgresql" else 0
    assert (rows["live holds"], rows["triggers"]) == (2, len(triggers(dialect)) + more)


async def test_empty_books_are_sound(shop: Shop) -> None:
    assert broken(await audit(shop.store)) == set()


async def test_a_break_is_told_with_its_figures_and_many_are_counted(used: Shop, tamper: Tamper) -> None:
    tamper("UPDATE account SET topped_up_nanos = topped_up_nanos + 1")
    (found,) = [check for check in await audit(used.store) if not check.ok]
    assert "account 1 has topped up 1000000000001, its deposits say 1000000000000" in found.detail
    assert found.detail.endswith("; and 5 more")


async def test_a_call_that_nobody_serves_any_more_is_stuck_money(used: Shop) -> None:
    tool = await open_store(used.url)
    assert broken(await audit(tool)) == set()
    await used.runs.end(used.now_us)
    await used.store.close()
    assert broken(await audit(tool)) == {"live holds"}
    await tool.close()


@on_sqlite
async def test_a_page_that_was_overwritten_is_found_and_the_other_checks_still_answer(used: Shop) -> None:
    await used.store.close()
    connection = apsw.Connection(str(sqlite_path(used.url)))
    connection.pragma("wal_checkpoint(TRUNCATE)")
    rows = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'api_key_by_account'").fetchall()
    page = int(str(rows[0][0])) - 1
    size = connection.pragma("page_size")
    connection.close()
    with sqlite_path(used.url).open("r+b") as file:
        file.seek(page * size + size // 2)
        file.write(b"\xff" * (size // 2))
    used.store = await open_store(used.url, serving=True)
    checks = await audit(used.store)
    assert "file" in broken(checks)
    assert {"balances", "prices", "zero sum"} & broken(checks) == set()
    assert len(checks) == len(NAMES["sqlite"] + OURS)


async def test_a_sample_looks_at_that_share_of_the_calls(used: Shop) -> None:
    calls = await used.count("usage")
    (prices,) = [check for check in await audit(used.store, sample=4) if check.name == "prices"]
    assert calls // 4 <= prices.rows <= calls // 4 + 1


async def test_it_tells_how_far_it_has_come(used: Shop) -> None:
    told: list[tuple[str, int, int]] = []
    await audit(used.store, on_progress=lambda *step: told.append(step))
    assert {name for name, done, total in told if done == total} == {"accounts", "prices", "day digests", "day sums"}


async def test_it_raises_no_alarm_while_calls_come_and_go(used: Shop) -> None:
    """Balances move between any two of its statements, and never within one."""
    tool = await open_store(used.url)
    running = True

    async def customers() -> None:
        while running:
            await asyncio.gather(*(used.call(used.alice, n, n) for n in range(20)))
            tag = new_request_id(used.now_us).hex()
            await used.ledger.post(credit(tag, used.alice, 10**9, code="deposit", actor="test", memo=""))

    busy = asyncio.create_task(customers())
    for _ in range(5):
        assert broken(await audit(tool)) == set()
    running = False
    await busy
    await tool.close()


async def test_it_raises_no_alarm_when_prices_change_meanwhile(used: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server may start with new prices, and serve by them, between any two things that the audit reads."""
    fetch = used.store.fetch
    names = iter(("Opus II", "Opus III", "Opus IV"))

    async def fetch_and_change(sql: str, *rest: Any, **options: Any) -> list[Row]:
        rows = await fetch(sql, *rest, **options)
        if "FROM price_list" in sql and (name := next(names, None)):
            with monkeypatch.context() as unchanging:
                unchanging.setattr(used.store, "fetch", fetch)
                models = (replace(MODELS[0], display_name=name), *MODELS[1:])
                used.catalogue = await pin_prices(used.store, models, used.now_us)
                await used.call(used.alice, 20, 20)
        return rows

    monkeypatch.setattr(used.store, "fetch", fetch_and_change)
    assert [check.detail for check in await audit(used.store) if not check.ok] == []
    assert next(names, None) is None
