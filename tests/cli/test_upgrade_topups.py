"""Top-ups of the third schema, in every state they could be in, become top-ups and payments, and are never credited
again."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import apsw
import asyncpg
import pytest

from farebox.accounts.accounts import find_account
from farebox.billing.plans import Plan, Plans
from farebox.books.audit import audit
from farebox.books.ledger import Ledger
from farebox.money import NANOS_PER_USD
from farebox.payments.deposits import Deposits
from farebox.payments.records import Pricing, select_payments, select_topups, standing
from farebox.payments.simulated import SimulatedRail, SimulatedWatcher
from farebox.store import postgres_schema, schema
from farebox.store.open import open_store
from farebox.store.upgrade import upgrade
from tests.cluster import Cluster

THEN: Final = 3
USD: Final = NANOS_PER_USD
NOW_US: Final = 1_795_348_800_000_000
OLD: Final = (  # id, asset, dollars, asked, state, confirmations, paid, whether its entry was posted, named
    ("t1", "BTC", 10, "10000", "waiting", 0, "0", False, None),
    ("t2", "BTC", 20, "20000", "seen", 0, "20000", False, None),
    ("t3", "ETH", 40, "10000000000000000", "confirming", 2, "10000000000000000", False, None),
    ("t4", "ETH", 80, "20000000000000000", "confirming", 4, "20000000000000000", True, None),
    ("t5", "USDT", 160, "160000000", "credited", 4, "160000000", True, "topup:t5"),
    ("t6", "USDT", 320, "320000000", "credited", 4, "80000000", True, "topup:t6"),
    ("t7", "BTC", 640, "640000", "expired", 0, "0", False, None),
    ("t8", "BTC", 640, "640000", "credited", 2, "0", False, None),
)
"""t4: its process died with the entry posted and the row not marked. t6: a quarter was paid. t8: worth nothing."""
CREDITED: Final = {"t4": 80, "t5": 160, "t6": 80}


@pytest.fixture
def old_url(request: pytest.FixtureRequest, database_kind: str, tmp_path: Path) -> Iterator[str]:
    """Books of schema 3."""
    scripts = [schema.script(version, "sqlite" if database_kind == "sqlite" else "postgresql") for version in (1, 2, 3)]
    if database_kind == "sqlite":
        connection = apsw.Connection(str(tmp_path / "farebox.db"))
        connection.execute("PRAGMA journal_mode=WAL")
        for statement in (*scripts, *rows()):
            connection.execute(statement)
        connection.pragma("user_version", THEN)
        connection.close()
        yield f"sqlite:///{tmp_path}/farebox.db"
        return
    cluster: Cluster = request.getfixturevalue("cluster")
    with cluster.database() as url:
        asyncio.run(fill(url, [postgres_schema._VERSIONS, *scripts, *rows(), VERSIONS]))
        yield url


VERSIONS: Final = "INSERT INTO schema_version (version) VALUES (1), (2), (3)"


async def fill(url: str, scripts: list[str]) -> None:
    connection = await asyncpg.connect(url)
    try:
        for script in scripts:
            await connection.execute(script)
    finally:
        await connection.close()


def rows() -> list[str]:
    """Write the books: one customer, whose balance is what the entries say."""
    total = sum(CREDITED.values()) * USD
    made = [
        (
            "INSERT INTO account (email, plan, created_at, posted_nanos, topped_up_nanos) "
            f"VALUES ('alice@example.com', 'pro', 0, {total}, {total})"
        )
    ]
    for name, asset, usd, asked, state, confirmations, paid, posted, named in OLD:
        needed, transfer = {"BTC": 2}.get(asset, 4), f"'{named}'" if named else "NULL"
        made.append(
            "INSERT INTO topup (id, account_id, rail, asset, amount_nanos, asked_units, address, rate, state, "
            "confirmations, needed, paid_units, created_at, ends_at, changed_at, transfer_id) VALUES "
            f"('{name}', 1, 'simulated', '{asset}', {usd * USD}, '{asked}', 'a-{name}', '1 coin = $5', '{state}', "
            f"{confirmations}, {needed}, '{paid}', {NOW_US}, {NOW_US + 10**9}, {NOW_US}, {transfer})"
        )
        if posted:
            made.append(
                "INSERT INTO transfer (id, at, debit_account, credit_account, amount_nanos, code, actor, memo) VALUES "
                f"('topup:{name}', {NOW_US}, 'house:cash', 'customer:1', {CREDITED[name] * USD}, 'deposit', "
                "'rail:simulated', '')"
            )
    return made


async def test_top_ups_of_the_schema_before_are_carried_on_and_credited_once(old_url: str) -> None:
    passed: list[int] = []
    await upgrade(old_url, passed.append)
    assert passed == list(range(THEN + 1, schema.VERSION + 1))
    plans = Plans([Plan("pro", 60, 10**6, 5, 0)])
    store = await open_store(old_url, plans=plans, clock=lambda: NOW_US)
    try:
        assert not [check for check in await audit(store) if not check.ok]
        states = {topup.id: topup.state for topup in await select_topups(store, "", ())}
        assert states == {row[0]: "credited" if row[0] in {"t4", "t8"} else row[4] for row in OLD}
        payments = {one.topup_id: one for one in await select_payments(store, "", ())}
        assert {name: one.state for name, one in payments.items()} == {
            "t2": "seen",
            "t3": "confirming",
            **dict.fromkeys(("t4", "t5", "t6", "t8"), "credited"),
        }
        for name, usd in CREDITED.items():
            one = payments[name]
            assert (one.worth_nanos, one.transfer_id, one.epoch) == (usd * USD, f"topup:{name}", 1)
            assert isinstance(one.rates, Pricing)
            assert one.rates.quote is not None
        for topup in await select_topups(store, "WHERE id <> 't1'", ()):
            paid = [payments[topup.id]] if topup.id in payments else []
            assert standing(topup, paid, NOW_US + 10**9).state == topup.state

        rails = {SimulatedRail.name: SimulatedRail()}
        deposits = Deposits(store, Ledger(store), plans, rails, site="F", public_url="")
        watcher = SimulatedWatcher(store, deposits)
        for _ in range(6):
            await watcher.look(NOW_US)
            await deposits.refresh_left(NOW_US + 10**9)
        balance = (sum(CREDITED.values()) + 20 + 40) * USD
        assert (await find_account(store, "1")).balance_nanos == balance
        states = {topup.id: topup.state for topup in await select_topups(store, "", ())}
        assert states == {row[0]: "expired" if row[0] in {"t1", "t7"} else "credited" for row in OLD}
        count = await store.fetch("SELECT count(*), count(DISTINCT id) FROM transfer")
        assert count == [(len(CREDITED) + 2, len(CREDITED) + 2)]
        assert not [check for check in await audit(store) if not check.ok]
    finally:
        await store.close()


def test_both_dialects_carry_top_ups_over_in_the_same_words() -> None:
    """What is copied, and what becomes of each state, is one text but for the types."""
    texts = []
    for dialect in ("sqlite", "postgresql"):
        text = schema.script(4, dialect)
        texts.append([part[: part.index(";")] for part in text.split("INSERT INTO")[1:]])
    assert len(texts[0]) == 2
    assert [" ".join(part.split()) for part in texts[0]] == [" ".join(part.split()) for part in texts[1]]
