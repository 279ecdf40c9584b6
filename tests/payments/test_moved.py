"""Books with payments in them move to the other kind of database and back, every row of every table."""

from pathlib import Path

import pytest

from farebox.books.audit import audit
from farebox.books.moving import move
from farebox.store.open import open_store
from farebox.store.protocol import Store
from farebox.store.schema import TABLES
from tests.cluster import Cluster
from tests.payments.desk import PLANS, USD, Desk, open_desk

FILLED = {
    *("account", "transfer", "topup", "payment", "outbox", "webhook", "delivery"),
    *("watch_key", "deposit_address", "watcher", "chain_block", "rate", "incident", "processor_event"),
    "reconciliation",
}
ADDRESS = "0x" + "A" * 40
_ADDRESS = "family, address, key_id, position, account_id, rail, asset, created_at"
_COMPARED = "rail, asset, at, looked_at, chain_units, books_units, differences"
ROWS = (
    "INSERT INTO watch_key (id, fingerprint, family, created_at) VALUES (7, 'f', 'evm', 1)",
    f"INSERT INTO deposit_address ({_ADDRESS}) VALUES ('evm', '{ADDRESS}', 7, 0, 1, 'scripted', 'ETH', 1)",
    "INSERT INTO watcher (name, cursor, height, block, tip_at, looked_at) VALUES ('eth', '5 {}', 5, '0xb', 1, 2)",
    "INSERT INTO chain_block (id, rail, height, hash) VALUES ('eth:5', 'eth', 5, '0xb')",
    "INSERT INTO rate (id, source, asset, bid_nanos, at, tried_at) VALUES ('kraken:BTC', 'kraken', 'BTC', 9, 1, 1)",
    "INSERT INTO processor_event (id, rail, ref, received_at) VALUES ('btcpay:d', 'btcpay', 'i', 1)",
    f"INSERT INTO reconciliation ({_COMPARED}) VALUES ('eth', 'ETH', 1, 1, '123456789012345678901234567890', '0', 1)",
)


async def pay(url: str) -> None:
    """Credit one, take one back with a loss, leave one with nobody."""
    async with open_desk(url) as desk:
        await desk.store.write([(one, ()) for one in ROWS])
        await desk.pay(100)
        lost = await desk.pay(100, ident="lost", account=desk.bob)
        await desk.spend(30 * USD, desk.bob)
        await desk.tell(desk.sees(lost, 100_000, -1, "lost"))
        ether = 123 * 10**18 + 1
        await desk.tell(desk.sees(None, 100_000, 9, "stray"), desk.sees(await desk.ask(100, "ETH"), ether, 1, "wei"))


async def content(store: Store) -> dict[str, list[tuple[object, ...]]]:
    """Read every table that is filled; columns in the order of their names."""
    found = {}
    for table, key in TABLES.items():
        if table in FILLED:
            found[table] = await store.fetch(f"SELECT {_COLUMNS.get(table, '*')} FROM {table} ORDER BY {key}")
    return found


_COLUMNS = {"account": "id, email, plan, posted_nanos, topped_up_nanos", "webhook": "id, account_id, url, events"}
"""Those that later steps of the schema have given columns to: these have another order there."""


@pytest.mark.parametrize("back", [False, True], ids=["to-postgresql", "to-sqlite"])
async def test_books_with_payments_move_whole(cluster: Cluster, tmp_path: Path, *, back: bool) -> None:
    files = [f"sqlite:///{tmp_path}/{name}.db" for name in ("one", "other")]
    with cluster.database() as server:
        source, target = (server, files[1]) if back else (files[0], server)
        await pay(source)
        rows = await move(source, target, spools=(), tell=lambda *_: None)
        assert {table for table, count in rows.items() if count} == FILLED | {"alert"}
        stores = [await open_store(url, plans=PLANS) for url in (source, target)]
        try:
            before, after = [await content(store) for store in stores]
            assert before == after
            assert not [one for one in await audit(stores[1]) if not one.ok]
            desk = Desk(target, stores[1])
            desk.now_us += 1
            wei = await desk.payment("wei")
            assert wei.units == str(123 * 10**18 + 1)
            await desk.deposits.assign(await desk.payment("stray"), 2, "ann", desk.now_us)
            assert await desk.balance(2) == 100 * USD, "it goes on where it was"
        finally:
            for store in stores:
                await store.close()
