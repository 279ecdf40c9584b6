"""Addresses in the books: one account's for ever, kept until money comes, given out in turn whoever asks at once."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from typing import Final

import pytest

from farebox.accounts.accounts import create_account
from farebox.errors import BrokenInvariant
from farebox.payments.addresses import USUAL_GAP, Addresses
from farebox.payments.keys import ExtendedKey
from farebox.store.open import open_store
from farebox.store.protocol import Store
from tests.payments.wallets import ABOUT, ETHER, VPUB, ZPUB, wallet, written

NOW: Final = 1_800_000_000_000_000
BITCOIN: Final = ExtendedKey(ZPUB, "bitcoin")
EVM: Final = ExtendedKey(ETHER, "evm")


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[Store]:
    opened = await open_store(database_url)
    yield opened
    await opened.close()


async def people(store: Store, count: int) -> list[int]:
    return [(await create_account(store, f"{number}@example.com", "pro", NOW)).id for number in range(count)]


async def use(store: Store, *addresses: str | None) -> None:
    """Let money be seen at addresses."""
    seen = "UPDATE deposit_address SET used_at = ? WHERE address = ?"
    assert set(await store.write([(seen, (NOW, address)) for address in addresses])) == {1}


async def test_an_address_is_kept_until_money_came_there_and_then_never_quoted_again(store: Store) -> None:
    (alice,) = await people(store, 1)
    addresses = Addresses(store)
    first = await addresses.fresh(alice, "bitcoin", "BTC", BITCOIN, NOW)
    assert first == BITCOIN.address(0)
    assert await addresses.fresh(alice, "bitcoin", "BTC", BITCOIN, NOW + 1) == first
    assert await Addresses(store).fresh(alice, "bitcoin", "BTC", BITCOIN, NOW + 2) == first
    await use(store, first)
    second = await addresses.fresh(alice, "bitcoin", "BTC", BITCOIN, NOW + 3)
    assert second == BITCOIN.address(1)
    found, later = await addresses.all_of("bitcoin")
    assert (found.address, found.account_id, found.path) == (first, alice, "0/0")
    assert (found.created_at_us, found.used_at_us) == (NOW, NOW)
    assert (later.address, later.created_at_us, later.used_at_us) == (second, NOW + 3, None)
    assert await addresses.all_of("evm") == []


async def test_accounts_assets_and_chains_have_addresses_of_their_own_from_one_row_of_positions(store: Store) -> None:
    """The key is used on two chains: an address must not be one customer's here and another's there."""
    alice, bob = await people(store, 2)
    addresses = Addresses(store)
    wanted = [
        (account, rail, asset)
        for account in (alice, bob)
        for rail, asset in (("ethereum", "ETH"), ("ethereum", "USDT"), ("polygon", "USDT"))
    ]
    given = [await addresses.fresh(*what, EVM, NOW) for what in wanted]
    assert given == [EVM.address(position) for position in range(len(wanted))]
    assert await addresses.fresh(alice, "bitcoin", "BTC", BITCOIN, NOW) == BITCOIN.address(0)
    assert [one.address for one in await addresses.of_asset("polygon", "USDT")] == [given[2], given[5]]
    assert [one.address for one in await addresses.all_of("evm")] == given
    await use(store, given[4], given[1])
    assert [(one.address, one.path, one.account_id) for one in await addresses.export()] == [
        (given[1], "0/1", alice),
        (given[4], "0/4", bob),
    ]


async def test_another_key_counts_from_its_own_beginning_and_an_old_one_goes_on_where_it_was(store: Store) -> None:
    """An operator changes the wallet, and changes it back: no address is given out twice."""
    alice, bob = await people(store, 2)
    other = ExtendedKey(written(wallet(ABOUT).derive("m/84h/0h/1h"), "zpub"), "bitcoin")
    addresses = Addresses(store)
    assert await addresses.find_key(other) is None
    old = await addresses.fresh(alice, "bitcoin", "BTC", BITCOIN, NOW)
    new = await addresses.fresh(alice, "bitcoin", "BTC", other, NOW)
    assert (old, new) == (BITCOIN.address(0), other.address(0))
    assert await addresses.fresh(alice, "bitcoin", "BTC", BITCOIN, NOW) == old
    assert await addresses.fresh(bob, "bitcoin", "BTC", BITCOIN, NOW) == BITCOIN.address(1)
    assert await addresses.find_key(other) == await Addresses(store).open_key(other, NOW + 5)
    assert await store.fetch("SELECT count(*) FROM watch_key") == [(2,)]
    rows = await store.fetch("SELECT fingerprint FROM watch_key ORDER BY id")
    assert rows == [(BITCOIN.fingerprint,), (other.fingerprint,)]


class Holed(ExtendedKey):
    """A key that has no address at some positions, as happens once in 2^127."""

    def address(self, position: int) -> str | None:
        return None if position in {0, 3, 4} else super().address(position)


async def test_a_position_without_an_address_is_skipped(store: Store) -> None:
    key = Holed(ZPUB, "bitcoin")
    addresses = Addresses(store)
    given = [await addresses.fresh(account, "bitcoin", "BTC", key, NOW) for account in await people(store, 4)]
    assert given == [key.address(position) for position in (1, 2, 5, 6)]


async def test_a_key_whose_addresses_are_taken_stops_the_work(store: Store) -> None:
    """Books in which another key has had the same addresses: nobody may get one that is somebody else's."""
    alice, bob = await people(store, 2)
    addresses = Addresses(store)
    await addresses.fresh(alice, "bitcoin", "BTC", BITCOIN, NOW)
    await store.write([("UPDATE watch_key SET fingerprint = 'of another'", ())])
    with pytest.raises(BrokenInvariant, match=r"watch_key \d+ gives no new address"):
        await Addresses(store).fresh(bob, "bitcoin", "BTC", BITCOIN, NOW)


async def test_processes_that_ask_at_once_all_get_addresses_and_leave_no_gap(database_url: str) -> None:
    """Three processes, each asked by every customer at once, before and after money has come: each customer has one
    address at a time, the same everywhere, and positions have no holes."""
    async with contextlib.AsyncExitStack() as opened:
        stores = [await open_store(database_url) for _ in range(3)]
        for one in stores:
            opened.push_async_callback(one.close)
        accounts = await people(stores[0], 5)
        nodes = [Addresses(one) for one in stores]
        rounds = []
        for _ in range(3):
            asked = [
                (account, node.fresh(account, "bitcoin", "BTC", BITCOIN, NOW)) for account in accounts for node in nodes
            ]
            given = await asyncio.gather(*(answer for _, answer in asked))
            told = {(account, address) for (account, _), address in zip(asked, given, strict=True)}
            assert len(told) == len({address for _, address in told}) == len(accounts)
            rounds.append(told)
            await use(stores[0], *(address for _, address in told))
        everything = set.union(*rounds)
        assert Counter(account for account, _ in everything) == dict.fromkeys(accounts, 3)
        rows = await stores[0].fetch("SELECT position, account_id, address FROM deposit_address ORDER BY position")
        assert [row[0] for row in rows] == list(range(15))
        assert {(row[1], row[2]) for row in rows} == everything
        assert [row[2] for row in rows] == [BITCOIN.address(position) for position in range(15)]


@pytest.mark.parametrize(
    ("issued", "used", "run", "waiting", "limit"),
    [
        (0, (), 0, 0, USUAL_GAP),
        (3, (), 0, 3, USUAL_GAP),
        (30, (), 0, 30, 30),
        (1, (0,), 0, 0, USUAL_GAP),
        (30, (0, 3, 4), 2, 25, 25),
        (30, (25,), 25, 4, 26),
        (30, (0, 24, 29), 23, 0, 24),
    ],
)
async def test_the_gap_is_what_the_operators_wallet_has_to_look_past(
    store: Store, issued: int, used: tuple[int, ...], run: int, waiting: int, limit: int
) -> None:
    addresses = Addresses(store)
    key = ExtendedKey(VPUB, "bitcoin", "regtest")
    key_id = await addresses.open_key(key, NOW)
    for account in await people(store, issued):
        await addresses.fresh(account, "bitcoin", "BTC", key, NOW)
    if used:
        await use(store, *(key.address(position) for position in used))
    gap = await addresses.gap(key_id)
    assert (gap.highest_issued, gap.highest_used) == (issued - 1 if issued else None, max(used, default=None))
    assert (gap.run, gap.waiting, gap.limit) == (run, waiting, limit)
    assert _seen_by_a_wallet(used, gap.limit) == set(used)
    assert not issued or _seen_by_a_wallet((*used, issued - 1), gap.limit) == {*used, issued - 1}


def _seen_by_a_wallet(used: tuple[int, ...], limit: int) -> set[int]:
    """Scan as wallets do: until as many addresses in a row as the limit says are unused."""
    seen: set[int] = set()
    position = empty = 0
    while empty < limit:
        if position in used:
            seen.add(position)
        empty = 0 if position in used else empty + 1
        position += 1
    return seen
