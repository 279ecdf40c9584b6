"""Token payments in blocks that are undone: shallow or deep, once or again and again, and in the middle of crashes."""

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from farebox.money import NANOS_PER_USD
from farebox.payments.chains.rpc import RpcError
from tests.chains.evm import Contract, EvmChain
from tests.chains.room import USDT, Room, confirmed, one, open_room, settings_of


async def test_a_payment_that_is_mined_again_elsewhere_is_the_same_one(
    room: Room, chain: EvmChain, token: Contract
) -> None:
    """Its log has another index in its block then, and its block another hash and height."""
    fake = await chain.deploy("Fake")
    topup = await room.ask(25)
    fork = await chain.fork()
    tx = await token.send("transfer", topup.topup.address, 25 * USDT)
    await confirmed(room, chain, 2)
    before, signed = one(await room.payments()), await chain.raw(tx)
    await chain.undo(fork)
    await chain.mine()
    await fake.send("noise", 5, sender=chain.people[1], gwei=9)
    await chain.rpc.ask("eth_sendRawTransaction", signed)
    await confirmed(room, chain, 1)
    after = one(await room.payments())
    assert (after.ident, after.tx, after.confirmations) == (before.ident, tx, 1)
    assert after.height is not None
    assert after.height == (before.height or 0) + 1
    assert after.block != before.block
    await confirmed(room, chain, 2)
    assert await room.balance() == 25 * NANOS_PER_USD
    assert len(await room.payments()) == 1


async def test_a_payment_that_is_dropped_is_waited_for_and_then_told_as_gone(
    room: Room, chain: EvmChain, token: Contract
) -> None:
    topup = await room.ask(25)
    fork = await chain.fork()
    tx = await token.send("transfer", topup.topup.address, 25 * USDT)
    await confirmed(room, chain, 2)
    signed = await chain.raw(tx)
    await chain.undo(fork)
    await confirmed(room, chain, 3)
    dropped = one(await room.payments())
    assert (dropped.state, dropped.confirmations, dropped.block) == ("seen", 0, None)
    await chain.mine(63)
    assert await room.go() == ""
    gone = one(await room.payments())
    assert (gone.state, gone.confirmations) == ("gone", -1)
    assert await room.state(topup) == "waiting"
    await chain.rpc.ask("eth_sendRawTransaction", signed)
    await confirmed(room, chain, 3)
    assert one(await room.payments()).state == "credited"
    assert await room.balance() == 25 * NANOS_PER_USD


async def test_a_payment_that_another_one_replaces_counts_no_more(room: Room, chain: EvmChain, token: Contract) -> None:
    mine, his = await room.ask(25), await room.ask(30, account=room.bob)
    fork = await chain.fork()
    nonce = int(await chain.rpc.ask("eth_getTransactionCount", chain.people[0], "latest"), 16)
    await token.send("transfer", mine.topup.address, 25 * USDT)
    await confirmed(room, chain, 2)
    await chain.undo(fork)
    await chain.send(token.address, data=token.data("transfer", his.topup.address, 30 * USDT), nonce=nonce)
    await confirmed(room, chain, 3)
    assert (await room.balance(), await room.balance(room.bob)) == (0, 30 * NANOS_PER_USD)
    assert await room.state(mine) == "seen"
    assert await room.state(his) == "credited"


@pytest.mark.parametrize("heights", [-2, -1, 0, 3])
async def test_a_branch_of_any_length_may_take_the_place_of_another(
    room: Room, chain: EvmChain, token: Contract, heights: int
) -> None:
    """Shorter ones too: what was read above its end is in the chain no more."""
    topup = await room.ask(25)
    await chain.mine(2)
    fork = await chain.fork()
    await chain.mine(2)
    tx = await token.send("transfer", topup.topup.address, 25 * USDT)
    await confirmed(room, chain, 2)
    signed = await chain.raw(tx)
    await chain.undo(fork)
    await chain.mine(4 + heights)
    assert await room.go() == ""
    assert one(await room.payments()).confirmations == 0
    await chain.rpc.ask("eth_sendRawTransaction", signed)
    await confirmed(room, chain, 3)
    assert one(await room.payments()).confirmations == 3
    assert await room.balance() == 25 * NANOS_PER_USD


async def test_a_branch_that_begins_below_where_the_watcher_began_is_read(
    room: Room, chain: EvmChain, token: Contract
) -> None:
    await chain.mine(3)
    fork = await chain.fork()
    await chain.mine(3)
    address = (await room.ask(25)).topup.address  # the first look
    await chain.undo(fork)
    await token.send("transfer", address, 25 * USDT)
    await chain.mine(5)
    assert await room.go() == ""
    assert await room.balance() == 25 * NANOS_PER_USD
    assert await room.incidents() == []


async def test_a_payment_above_what_is_read_again_is_not_told_as_undone_before_that_was_read(
    room: Room, chain: EvmChain, token: Contract
) -> None:
    """Where blocks have to be read twice, as after a crash, it takes more than one step to come to the payment."""
    topup = await room.ask(25)
    await chain.mine(120)
    await token.send("transfer", topup.topup.address, 25 * USDT)
    await confirmed(room, chain, 2)
    height = one(await room.payments()).height or 0
    await room.store.write([("DELETE FROM chain_block WHERE height > ?", (height - 110,))])
    room.deposits.told.clear()
    await confirmed(room, chain, 1)
    told = [each.confirmations for some in room.deposits.told for each in some]
    assert len(room.deposits.told) >= 2
    assert told == [3]


async def test_a_credited_payment_that_a_deep_branch_undoes_is_taken_back_and_credited_again_when_it_returns(
    room: Room, chain: EvmChain, token: Contract
) -> None:
    topup = await room.ask(25)
    fork = await chain.fork()
    tx = await token.send("transfer", topup.topup.address, 25 * USDT)
    await confirmed(room, chain, 10)
    assert await room.balance() == 25 * NANOS_PER_USD
    signed = await chain.raw(tx)
    await chain.undo(fork)
    await confirmed(room, chain, 11)
    assert one(await room.payments()).confirmations == 0
    assert await room.balance() == 25 * NANOS_PER_USD  # it may still come back
    await chain.mine(64)
    assert await room.go() == ""
    assert await room.balance() == 0
    assert await room.state(topup) == "reversed"
    assert await room.incidents() == ["reversed"]
    await chain.rpc.ask("eth_sendRawTransaction", signed)
    await confirmed(room, chain, 5)
    assert await room.balance() == 25 * NANOS_PER_USD
    assert await room.state(topup) == "credited"


async def test_a_credited_payment_that_comes_back_soon_moves_no_money(
    room: Room, chain: EvmChain, token: Contract
) -> None:
    topup = await room.ask(25)
    fork = await chain.fork()
    tx = await token.send("transfer", topup.topup.address, 25 * USDT)
    await confirmed(room, chain, 5)
    signed = await chain.raw(tx)
    await chain.undo(fork)
    await confirmed(room, chain, 6)
    await chain.rpc.ask("eth_sendRawTransaction", signed)
    await confirmed(room, chain, 4)
    assert (one(await room.payments()).epoch, await room.balance()) == (1, 25 * NANOS_PER_USD)
    rows = await room.store.fetch("SELECT count(*) FROM transfer WHERE code = 'deposit'")
    assert rows[0][0] == 1
    assert await room.incidents() == []


async def test_when_more_is_undone_than_is_kept_the_chain_is_read_anew_and_somebody_is_told(
    long_chain: EvmChain, database_url: str
) -> None:
    """300 blocks: one payment is in both branches at other places, one only in the old, one only in the new."""
    chain, token = long_chain, await long_chain.token()
    async with open_room(database_url, settings_of(chain.url, token.address)) as room:
        topup = await room.ask(25)
        await chain.mine(3)
        assert await room.go() == ""
        fork = await chain.fork()
        both = await token.send("transfer", topup.topup.address, 1 * USDT)
        await chain.mine()
        await token.send("transfer", topup.topup.address, 2 * USDT)
        await chain.mine()
        for _ in range(3):
            await chain.mine(100)
            assert await room.go() == ""
        assert await room.balance() == 3 * NANOS_PER_USD
        height = min(each.height or 0 for each in await room.payments())
        signed = await chain.raw(both)
        await chain.undo(fork)
        await chain.mine(7)
        await chain.rpc.ask("eth_sendRawTransaction", signed)
        await chain.mine(3)
        await token.send("transfer", topup.topup.address, 4 * USDT)
        await chain.mine(330)
        assert await room.go() == ""
        assert await room.incidents() == ["deep_reorg"]
        # What was final is left to the reconciliation: it finds that the chain holds less.
        assert await room.balance() == 7 * NANOS_PER_USD
        payments = {int(each.units) // USDT: each for each in await room.payments()}
        assert {amount: each.epoch for amount, each in payments.items()} == {1: 1, 2: 1, 4: 1}
        assert payments[1].height == height + 7
        held = await room.watcher.holdings("USDT", [topup.topup.address])
        assert held[topup.topup.address].units == 5 * USDT


# Several at once, and crashes


async def test_two_watchers_of_one_chain_credit_once(
    room: Room, chain: EvmChain, token: Contract, database_url: str
) -> None:
    topup = await room.ask(25)
    async with open_room(database_url, room.settings) as second:
        for amount in (1, 2, 4, 8):
            fork = await chain.fork()
            tx = await token.send("transfer", topup.topup.address, amount * USDT)
            await chain.mine(2)
            await asyncio.gather(room.go(), second.go())
            signed = await chain.raw(tx)
            await chain.undo(fork)
            await chain.mine()
            await chain.rpc.ask("eth_sendRawTransaction", signed)
            await chain.mine(2)
            await asyncio.gather(second.go(), room.go())
        await confirmed(room, chain, 2)
    assert await room.balance() == 15 * NANOS_PER_USD
    assert len(await room.payments()) == 4
    kept = await room.store.fetch("SELECT height, hash FROM chain_block WHERE rail = 'ethereum' ORDER BY height")
    for height, block in kept:
        assert (await chain.rpc.ask("eth_getBlockByNumber", hex(height), False))["hash"] == block  # noqa: FBT003  JSON


class Crash(Exception):
    pass


def _let_it_crash(room: Room, dice: random.Random) -> list[float]:
    """Let reads and writes of the books fail before or after they are done, as long as the odds are in the list."""
    odds = [0.04]

    def cracked(work: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def call(*values: Any, **named: Any) -> Any:
            if odds and dice.random() < odds[0]:
                raise Crash
            done = await work(*values, **named)
            if odds and dice.random() < odds[0]:
                raise Crash
            return done

        return call

    for name in ("fetch", "write"):
        setattr(room.store, name, cracked(getattr(room.store, name)))
    return odds


async def _live(chain: EvmChain, token: Contract, batch: Contract, addresses: list[str], dice: random.Random) -> str:
    """Pay one or several at once; answers the transaction."""
    to = [dice.choice(addresses) for _ in range(dice.randint(1, 3))]
    values = [dice.randint(1, 9_999_999) for _ in to]
    if len(to) == 1:
        return await token.send("transfer", to[0], values[0], gwei=dice.randint(2, 9))
    function = dice.choice(["transfer", "transfer", "transferAndRevert"])
    sender = dice.choice(chain.people[1:4])
    return await batch.send(function, token.address, to, values, sender=sender, gwei=dice.randint(2, 9))


@pytest.mark.parametrize("seed", range(2))
async def test_whatever_the_chain_does_and_wherever_it_crashes_the_books_are_the_chain(
    long_chain: EvmChain, database_url: str, seed: int
) -> None:
    """Random payments, batches, branches of up to six blocks, and crashes before and after what the books are asked."""
    chain, dice, crashes = long_chain, random.Random(seed), 0
    token, batch = await chain.token(), await chain.deploy("Batch")
    await token.send("transfer", batch.address, 10**6 * USDT)
    await chain.mine()
    async with open_room(database_url, settings_of(chain.url, token.address)) as room:
        addresses = [(await room.ask(10, account=one)).topup.address for one in (room.alice, room.bob)]
        odds = _let_it_crash(room, dice)

        async def look() -> int:
            try:
                assert await room.go() == ""
            except Crash:
                return 1
            return 0

        for _ in range(25):
            fork, sent = await chain.fork(), []
            for _ in range(dice.randint(1, 6)):
                sent += [await _live(chain, token, batch, addresses, dice) for _ in range(dice.randint(0, 2))]
                await chain.mine()
                crashes += await look()
            if dice.random() < 0.6:
                signed = [await chain.raw(tx) for tx in sent if dice.random() < 0.8]
                dice.shuffle(signed)
                await chain.undo(fork)
                await chain.mine(dice.randint(1, 2))
                for raw in signed:
                    with contextlib.suppress(RpcError):  # another one has its place already
                        await chain.rpc.ask("eth_sendRawTransaction", raw)
                await chain.mine(dice.randint(1, 5))
                crashes += await look()
        odds.clear()
        for _ in range(3):
            await chain.mine(70)
            assert await room.go() == ""
        for account, address in zip((room.alice, room.bob), addresses, strict=True):
            assert await room.balance(account) == await token.ask("balanceOf", address) * 1000, f"seed {seed}"
        payments = await room.payments()
        assert {each.state for each in payments} <= {"credited", "gone"}
        assert crashes > 5
        assert sum(each.state == "credited" for each in payments) > 20
