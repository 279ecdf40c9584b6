"""Payments in Bitcoin on a real node, into the real books: whatever the chain or the node does, each counts once."""

import asyncio
from collections.abc import AsyncIterator
from typing import Final

import pytest
from embit.transaction import Transaction, TransactionOutput

from farebox.clock import US_PER_S
from tests.chains.bitcoin_room import Keys, Room, close_wallets, open_room
from tests.chains.nodes import Bitcoind

ASKED: Final = 50_000
"""Satoshis that $50 are at the fixed rate. One confirmation is enough for that."""
HOUR_US: Final = 3600 * US_PER_S


@pytest.fixture(scope="module")
def keys() -> Keys:
    return Keys()


@pytest.fixture
async def room(bitcoind: Bitcoind, keys: Keys, database_url: str) -> AsyncIterator[Room]:
    async with open_room(database_url, keys.settings(bitcoind), bitcoind) as opened:
        yield opened
    close_wallets(bitcoind)


async def _paid(room: Room, satoshis: int = ASKED) -> tuple[str, str]:
    """Ask for $50, pay, and have that credited; answers the transaction and the top-up."""
    told = await room.ask(50)
    txid = room.node.send(told.topup.address, satoshis)
    room.node.mine()
    await room.look()
    assert await room.satoshis() == satoshis
    return txid, told.topup.id


# What customers do


async def test_a_payment_is_seen_confirmed_and_credited_to_the_satoshi(room: Room) -> None:
    told = await room.ask(50)
    assert int(told.topup.asked_units) == ASKED
    assert await room.state(told) == "waiting"
    txid = room.node.send(told.topup.address, ASKED)
    assert await room.state(told) == "seen"
    assert await room.satoshis() == 0
    (block,) = room.node.mine()
    assert await room.state(told) == "credited"
    assert await room.satoshis() == ASKED
    (payment,) = await room.payments()
    assert (payment.tx, payment.block, payment.units) == (txid, block, str(ASKED))
    assert payment.ident.partition(":")[0] == txid
    await room.look()
    assert await room.satoshis() == ASKED


@pytest.mark.parametrize(
    ("satoshis", "ago_s", "told"),
    [
        (ASKED // 2, 0, "credited under"),
        (ASKED + 30_000, 0, "credited over"),
        (ASKED, 3600, "credited late"),
        (300, 3600, "credited under late"),
    ],
)
async def test_what_comes_is_credited_whatever_was_asked(room: Room, satoshis: int, ago_s: int, told: str) -> None:
    asked = await room.ask(50, ago_s=ago_s)
    room.node.send(asked.topup.address, satoshis)
    room.node.mine()
    assert await room.state(asked) == told
    assert await room.satoshis() == satoshis


@pytest.mark.parametrize(("usd", "needed"), [(99, 1), (100, 2), (999, 2), (1000, 4)])
async def test_more_money_waits_for_more_confirmations(room: Room, usd: int, needed: int) -> None:
    told = await room.ask(usd)
    room.node.send(told.topup.address, int(told.topup.asked_units))
    for _ in range(needed):
        assert await room.satoshis() == 0
        room.node.mine()
        await room.look()
    assert await room.satoshis() == int(told.topup.asked_units)


async def test_two_payments_to_one_address_are_two(room: Room) -> None:
    told = await room.ask(50)
    room.node.send(told.topup.address, ASKED)
    await room.look()
    room.node.send(told.topup.address, 7_000)
    room.node.mine()
    assert await room.state(told) == "credited over several"
    assert await room.satoshis() == ASKED + 7_000


async def test_one_transaction_pays_several_addresses_and_one_of_them_twice(room: Room) -> None:
    alice, bob = await room.ask(50), await room.ask(50, room.bob)
    node = room.node
    outputs = {alice.topup.address: "0.00050000", bob.topup.address: "0.00020000"}
    funded = node.payer("fundrawtransaction", node.ask("createrawtransaction", [], outputs), {"fee_rate": 5})["hex"]
    tx = Transaction.parse(bytes.fromhex(funded))
    split = next(one for one in tx.vout if one.value == ASKED)
    split.value -= 10_000
    tx.vout.append(TransactionOutput(10_000, split.script_pubkey))
    signed = node.payer("signrawtransactionwithwallet", tx.serialize().hex())["hex"]
    node.ask("sendrawtransaction", signed)
    node.mine()
    await room.look()
    assert [await room.satoshis(), await room.satoshis(room.bob)] == [ASKED, 20_000]
    assert sorted(int(one.units) for one in await room.payments()) == [10_000, 20_000, 40_000]


async def test_an_address_that_nobody_was_given_pays_nobody_and_an_operator_hears_of_it(room: Room) -> None:
    await room.look()
    address = room.key.address(20)
    assert address is not None
    room.node.send(address, ASKED)
    room.node.mine()
    await room.look()
    assert [one.state for one in await room.payments()] == ["stray"]
    assert await room.incidents() == ["stray_payment"]


async def test_newly_mined_coins_count_once_they_may_be_spent(room: Room) -> None:
    told = await room.ask(50)
    room.node.mine(1, to=told.topup.address)
    await room.look()
    assert await room.payments() == []
    room.node.mine(100, to=room.node.payer("getnewaddress"))
    await room.look()
    (payment,) = await room.payments()
    assert payment.final
    assert await room.satoshis() == int(payment.units) > ASKED


# What payers do to transactions


async def test_a_raised_fee_leaves_one_payment_first_seen_when_it_was(room: Room) -> None:
    node, told = room.node, await room.ask(50)
    begun_s = room.now() // US_PER_S
    first = node.send(told.topup.address, ASKED)
    node.ask("setmocktime", begun_s + 600)
    room.ahead_us = 700 * US_PER_S
    try:
        second = node.bump(first)
        await room.look()
        (payment,) = await room.payments()
        assert payment.tx == second
        assert abs(payment.seen_at_us // US_PER_S - begun_s) < 60
    finally:
        node.ask("setmocktime", 0)
    node.mine()
    await room.look()
    assert await room.satoshis() == ASKED


async def test_a_little_that_is_replaced_by_more_later_does_not_hold_the_rate_of_a_quote(room: Room) -> None:
    """Else a few satoshis at a low fee would leave anybody hours to see which way the market goes."""
    node, told = room.node, await room.ask(50)
    begun_s = room.now() // US_PER_S
    little = node.send(told.topup.address, 1000)
    await room.look()
    node.ask("setmocktime", begun_s + 3600)
    room.ahead_us = 3700 * US_PER_S
    try:
        node.double_spend(little, {told.topup.address: ASKED})
        await room.look()
        (payment,) = [one for one in await room.payments() if one.state == "seen"]
        assert payment.units == str(ASKED)
        assert payment.seen_at_us // US_PER_S - begun_s >= 3600
    finally:
        node.ask("setmocktime", 0)


async def test_a_raised_fee_that_was_watched_is_credited_once(room: Room) -> None:
    told = await room.ask(50)
    first = room.node.send(told.topup.address, ASKED)
    await room.look()
    room.node.bump(first)
    assert await room.state(told) == "seen"
    assert sorted(one.state for one in await room.payments()) == ["gone", "seen"]
    room.node.mine()
    assert await room.state(told) == "credited"
    assert await room.satoshis() == ASKED


async def test_a_payment_replaced_by_one_to_somebody_else_is_never_credited(room: Room) -> None:
    told = await room.ask(50)
    txid = room.node.send(told.topup.address, ASKED)
    assert await room.state(told) == "seen"
    room.node.double_spend(txid)
    assert await room.state(told) == "waiting"
    room.node.mine(3)
    assert await room.state(told) == "waiting"
    assert [one.state for one in await room.payments()] == ["gone"]
    assert await room.satoshis() == 0


async def test_a_dropped_payment_waits_no_more_and_comes_in_if_it_comes_back(room: Room) -> None:
    told = await room.ask(50)
    node = room.node
    txid = node.send(told.topup.address, ASKED)
    raw = node.ask("getrawtransaction", txid)
    assert await room.state(told) == "seen"
    more = node.more
    node.more = [*more, "-persistmempool=0", "-walletbroadcast=0"]
    node.restart()
    try:
        assert await room.state(told) == "waiting"
        assert node.payer("gettransaction", txid)["confirmations"] == 0
        node.mine()
        assert await room.state(told) == "waiting"
        node.ask("sendrawtransaction", raw)
        node.settled()
        assert await room.state(told) == "seen"
        node.mine()
        assert await room.state(told) == "credited"
        assert await room.satoshis() == ASKED
    finally:
        node.more = more
        node.restart()


# What chains do


async def test_a_block_undone_and_the_payment_mined_again_changes_nothing(room: Room) -> None:
    await _paid(room)
    room.node.undo(1)
    room.node.mine(2)
    await room.look()
    (payment,) = await room.payments()
    assert (payment.state, payment.epoch, payment.confirmations, payment.lost_at_us) == ("credited", 1, 2, None)
    assert await room.satoshis() == ASKED


async def test_a_block_undone_and_the_payment_mined_later_is_waited_for(room: Room) -> None:
    await _paid(room)
    room.node.undo(1)
    await room.look()
    (payment,) = await room.payments()
    assert (payment.state, payment.confirmations) == ("credited", 0)
    assert payment.lost_at_us is not None
    room.node.mine_only()
    room.node.mine_only()
    await room.look()
    assert await room.satoshis() == ASKED
    room.node.mine()
    await room.look()
    (payment,) = await room.payments()
    assert (payment.state, payment.epoch, payment.lost_at_us) == ("credited", 1, None)
    assert await room.satoshis() == ASKED


async def test_a_payment_undone_before_it_was_deep_enough_is_credited_on_the_other_branch(room: Room) -> None:
    told = await room.ask(500)
    room.node.send(told.topup.address, 500_000)
    room.node.mine()
    assert await room.state(told) == "confirming"
    room.node.undo(1)
    assert await room.state(told) == "seen"
    room.node.mine()
    assert await room.state(told) == "confirming"
    assert await room.satoshis() == 0
    room.node.mine()
    assert await room.state(told) == "credited"
    assert await room.satoshis() == 500_000


async def test_a_credited_payment_double_spent_in_another_branch_is_taken_back(room: Room) -> None:
    txid, topup_id = await _paid(room)
    room.node.undo(1)
    room.node.double_spend(txid)
    room.node.mine(2)
    await room.look()
    assert await room.satoshis() == 0
    assert await room.incidents() == ["reversed"]
    assert (await room.told(topup_id)).standing.state == "reversed"
    (payment,) = await room.payments()
    assert (payment.state, payment.epoch, payment.confirmations) == ("gone", 2, -1)
    assert not payment.final
    room.node.mine(100, to=room.node.payer("getnewaddress"))
    await room.look()
    assert [one.final for one in await room.payments()] == [1]


async def test_a_branch_that_is_undone_deep_and_comes_back_credits_again(room: Room) -> None:
    await _paid(room)
    room.node.mine(9)
    await room.look()
    blocks = room.node.undo(10)
    room.node.mine_only()
    await room.look()
    assert await room.satoshis() == ASKED
    room.ahead_us = 2 * HOUR_US
    await room.look()
    assert await room.satoshis() == 0
    assert await room.incidents() == ["reversed"]
    room.node.redo(blocks[0])
    await room.look()
    assert await room.satoshis() == ASKED
    (payment,) = await room.payments()
    assert (payment.state, payment.epoch, payment.confirmations) == ("credited", 3, 10)


async def test_what_comes_while_nobody_looks_is_found_afterwards(room: Room) -> None:
    told = await room.ask(50)
    room.node.send(told.topup.address, ASKED)
    room.node.mine(30)
    assert await room.state(told) == "credited"
    assert await room.satoshis() == ASKED


async def test_two_watchers_at_once_credit_once(room: Room) -> None:
    told = await room.ask(50)
    room.node.send(told.topup.address, ASKED)
    room.node.mine()
    other = room.another_watcher()
    await asyncio.gather(room.look(), other.look(room.now()), return_exceptions=True)
    await room.look()
    await other.close()
    assert await room.satoshis() == ASKED


async def test_a_payment_is_final_a_hundred_blocks_deep_and_the_books_agree_with_the_chain(room: Room) -> None:
    await _paid(room)
    room.node.mine(98, to=room.node.payer("getnewaddress"))
    await room.look()
    assert [one.final for one in await room.payments()] == [0]
    outcome = await room.compare()
    assert (outcome.looked_at, outcome.differences) == (0, ())
    room.node.mine()
    await room.look()
    assert [one.final for one in await room.payments()] == [1]
    outcome = await room.compare()
    assert (outcome.looked_at, outcome.chain_units, outcome.books_units) == (1, ASKED, ASKED)
    assert outcome.differences == ()


async def test_the_comparison_finds_what_books_have_lost(room: Room) -> None:
    await _paid(room)
    room.node.mine(100, to=room.node.payer("getnewaddress"))
    await room.look()
    (payment,) = await room.payments()
    await room.store.write([("UPDATE payment SET units = ? WHERE id = ?", (str(ASKED - 1), payment.id))])
    outcome = await room.compare()
    assert len(outcome.differences) == 1
    assert await room.incidents() == ["difference"]
