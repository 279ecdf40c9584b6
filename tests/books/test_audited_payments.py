"""The audit holds every payment against its entries: what was credited, taken back, lost and found again."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from farebox.books.audit import Check, audit
from farebox.books.ledger import credit
from farebox.store.open import open_store
from tests.books.tampering import Tamper, broken, tamper_with
from tests.cluster import run
from tests.databases import Databases
from tests.payments.desk import PLANS, RAIL, USD, Desk, open_desk

ROWS = 9


@pytest.fixture(scope="module")
def written(databases: Databases, database_kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Books with payments of every kind, and two of which a process has died in the middle."""

    async def write(url: str) -> None:
        async with open_desk(url) as desk:
            await an_old_one(desk)
            await desk.pay(100, ident="good")
            await desk.tell(desk.sees(await desk.ask(100), 100_000, 0, "seen"))
            await desk.tell(desk.sees(await desk.ask(100, "ETH"), 1, 9, "dust"))
            await desk.tell(desk.sees(None, 100_000, 9, "stray"))
            gone = await desk.pay(100, ident="gone", account=desk.bob)
            await desk.spend(40 * USD, desk.bob, "spent")
            await desk.tell(desk.sees(gone, 100_000, -1, "gone"))
            back = await desk.pay(100, ident="back", account=desk.bob)
            await desk.spend(30 * USD, desk.bob, "spent more")
            await desk.tell(desk.sees(back, 100_000, -1, "back"))
            await desk.tell(desk.sees(back, 100_000, 9, "back"))
            leaves = await desk.pay(100, ident="leaves")
            await desk.die_before("reversal:", desk.sees(leaves, 100_000, -1, "leaves"))
            await desk.die_before("deposit:", desk.sees(await desk.ask(100), 100_000, 9, "comes"))

    with databases.fresh(database_kind, tmp_path_factory.mktemp("audited")) as url:
        run(write(url))
        yield url


async def an_old_one(desk: Desk) -> None:
    """A top-up that was credited before there were rows of payments, as the migration leaves it."""
    await desk.ask(20)
    await desk.ledger.post(credit("topup:t1", desk.alice, 20 * USD, code="deposit", actor="rail:simulated", memo=""))
    insert = (
        "INSERT INTO payment (id, rail, asset, address, units, account_id, topup_id, confirmations, needed, state, "
        "epoch, final, seen_at, changed_at, worth_nanos, locked_units, transfer_id) SELECT 'simulated:t1', "
        "'simulated', asset, address, asked_units, account_id, id, 2, 2, 'credited', 1, 1, 0, 0, amount_nanos, "
        "asked_units, 'topup:t1' FROM topup"
    )
    became = "UPDATE topup SET id = 't1', rail = 'simulated', state = 'credited'"
    await desk.store.write([(became, ()), (insert, ())])


@pytest.fixture
def url(databases: Databases, database_kind: str, written: str, tmp_path: Path) -> Iterator[str]:
    """A copy of those books."""
    with databases.fresh(database_kind, tmp_path, like=written) as copy:
        yield copy


@pytest.fixture
def tamper(url: str, request: pytest.FixtureRequest) -> Tamper:
    return tamper_with(url, request)


async def checked(url: str) -> list[Check]:
    store = await open_store(url, plans=PLANS)
    try:
        return await audit(store)
    finally:
        await store.close()


def row(change: str, name: str) -> str:
    return f"UPDATE payment SET {change} WHERE id = '{RAIL}:{name}'"


def entry(change: str, name: str) -> str:
    return f"UPDATE transfer SET {change} WHERE id = '{name.format(RAIL)}'"


def posted(name: str, like: str) -> str:
    """Post an entry past the ledger, like one that is there."""
    return (
        "INSERT INTO transfer (id, at, debit_account, credit_account, amount_nanos, code, actor, memo) "
        f"SELECT '{name.format(RAIL)}', at, debit_account, credit_account, amount_nanos, code, actor, memo "
        f"FROM transfer WHERE id = '{like.format(RAIL)}'"
    )


def gone(name: str) -> str:
    return f"DELETE FROM transfer WHERE id = '{name.format(RAIL)}'"


MOVED = {"payments", "balances", "top-ups", "zero sum"}
"""An entry of a customer's was made, changed or taken away."""
AMONG = {"payments", "balances", "top-ups"}
"""It is another customer's now."""
ONLY = {"payments"}
BENT = {"file", "references", "constraints"}
"""What a database says itself of rows that it would have refused."""
CASES = [
    (row("account_id = 2", "good"), ONLY, "of account 2 was credited to customer:1"),
    (row("account_id = NULL", "good"), ONLY, "was credited to customer:1"),
    (row("worth_nanos = worth_nanos + 1", "good"), ONLY, "was to be booked with 100000000001"),
    (row("worth_nanos = NULL", "good"), ONLY, "is worth None in its epoch 1"),
    (row("worth_nanos = 5", "seen"), ONLY, "is worth 5 in its epoch 0"),
    (row("worth_nanos = 5", "dust"), ONLY, "5 of it were not booked"),
    (row("units = 'many'", "good"), ONLY, "no amounts"),
    (row("units = '7'", "good"), ONLY, "is of 7 units, 100000 of them by its quote"),
    (row("transfer_id = NULL", "good"), ONLY, "names None as what credited it"),
    (row("transfer_id = 'deposit:{}:back:1'", "good"), ONLY, "names"),
    (row("state = 'gone'", "good"), ONLY, "is gone in its epoch 1"),
    (row("state = 'credited'", "seen"), ONLY, "is credited in its epoch 0"),
    (row("state = 'credited', epoch = 1, worth_nanos = 5", "seen"), ONLY, "5 of it were not booked in its epoch 1"),
    (row("state = 'credited'", "comes"), ONLY, "were not booked in its epoch 1"),
    (row("state = 'gone'", "leaves"), ONLY, "of which 0 were taken back and 0 are a loss"),
    (row("epoch = 3", "good"), ONLY, "of which 0 were taken back"),
    (row("epoch = 1", "back"), ONLY, "names"),
    (row("taken_nanos = 1", "gone"), ONLY, "says that 1 were taken back, and that was 60000000000"),
    (row("id = 'other'", "good"), ONLY, "is about a payment that is not there"),
    (f"DELETE FROM payment WHERE id = '{RAIL}:good'", ONLY, "is about a payment that is not there"),
    ("DELETE FROM payment WHERE id = 'simulated:t1'", ONLY, "transfer topup:t1 credits a top-up that nothing came for"),
    ("UPDATE topup SET state = 'credited'", ONLY, "is said to be credited, and nothing came for it"),
    (gone("deposit:{}:good:1"), MOVED, "were not booked in its epoch 1"),
    (gone("topup:t1"), MOVED, "were not booked in its epoch 1"),
    (gone("reversal:{}:gone:2"), MOVED, "of which 0 were taken back"),
    (gone("loss:{}:gone:2"), ONLY, "and 0 are a loss"),
    (gone("found:{}:back:3"), ONLY, "were not booked in its epoch 3"),
    (gone("deposit:{}:back:1"), MOVED, "were not booked in its epoch 1"),
    (posted("deposit:{}:good:2", "deposit:{}:good:1"), MOVED, "has entries that it cannot have"),
    (posted("deposit:{}:good:3", "deposit:{}:good:1"), MOVED, "has entries that it cannot have"),
    (posted("deposit:{}:good:x", "deposit:{}:good:1"), MOVED, "has entries that it cannot have"),
    (posted("deposit:{}:seen:1", "deposit:{}:good:1"), MOVED, "has entries that it cannot have"),
    (posted("deposit:{}:never:1", "deposit:{}:good:1"), MOVED, "is about a payment that is not there"),
    (posted("deposit:simulated:t1:1", "topup:t1"), MOVED, "has entries that it cannot have"),
    (posted("topup:t9", "topup:t1"), MOVED, "transfer topup:t9 credits a top-up that nothing came for"),
    (posted("reversal:{}:good:2", "reversal:{}:gone:2"), MOVED, "has entries that it cannot have"),
    (posted("loss:{}:good:2", "loss:{}:gone:2"), ONLY, "has entries that it cannot have"),
    (posted("found:{}:gone:3", "found:{}:back:3"), ONLY, "has entries that it cannot have"),
    (posted("found:{}:never:3", "found:{}:back:3"), ONLY, "is about a payment that is not there"),
    (posted("loss:{}:leaves:2", "loss:{}:gone:2"), ONLY, "of which 0 were taken back"),
    (entry("amount_nanos = amount_nanos + 1", "deposit:{}:good:1"), MOVED, "was to be booked with 100000000000"),
    (entry("amount_nanos = amount_nanos + 1", "deposit:{}:back:3"), MOVED, "was to be booked with 70000000000"),
    (entry("amount_nanos = amount_nanos + 1", "loss:{}:gone:2"), ONLY, "and 40000000001 are a loss"),
    (entry("credit_account = 'customer:2'", "deposit:{}:good:1"), AMONG, "was credited to customer:2"),
    (entry("debit_account = 'customer:1'", "reversal:{}:gone:2"), AMONG, "and taken back from customer:1"),
    (entry("debit_account = 'house:adjustments', code = 'loss'", "reversal:{}:gone:2"), MOVED, "from house:adjust"),
    (entry("debit_account = 'house:promotion'", "deposit:{}:good:1"), ONLY, "from house:promotion to customer:1"),
    (entry("credit_account = 'house:promotion'", "loss:{}:gone:2"), ONLY, "to house:promotion as loss"),
    (entry("credit_account = 'house:promotion'", "found:{}:back:3"), ONLY, "to house:promotion as loss"),
    (entry("code = 'promotion'", "deposit:{}:good:1"), {"payments", "top-ups"}, "as promotion"),
]


@pytest.mark.parametrize(("statement", "found", "words"), CASES)
async def test_what_payments_and_entries_say_of_each_other_cannot_be_bent(
    url: str, tamper: Tamper, statement: str, found: set[str], words: str
) -> None:
    assert broken(await checked(url)) == set()
    tamper(statement)
    checks = await checked(url)
    assert broken(checks) - BENT == found
    (said,) = [check.detail for check in checks if check.name == "payments"]
    assert words in said


async def test_every_payment_is_looked_at(url: str) -> None:
    (payments,) = [check for check in await checked(url) if check.name == "payments"]
    assert (payments.ok, payments.rows, payments.detail) == (True, ROWS, f"{ROWS} payments")


async def test_what_a_dead_process_has_left_is_finished_and_still_sound(url: str) -> None:
    store = await open_store(url, plans=PLANS)
    try:
        desk = Desk(url, store)
        await desk.tend()
        assert {one.ident: one.state for one in await desk.payments()}.items() >= {
            "comes": "credited", "leaves": "gone"
        }.items()  # fmt: skip
        assert broken(await audit(store)) == set()
    finally:
        await store.close()
