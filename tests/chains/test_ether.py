"""Ether on a real EVM node, into the real books: by whatever road it comes, and whatever is undone, it counts once."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final

import pytest
from msgspec import structs

from farebox.billing.plans import Plan, Plans
from farebox.clock import US_PER_S
from farebox.money import NANOS_PER_USD
from farebox.payments.chains.evm_watcher import EvmWatcher
from farebox.payments.deposits import Deposits
from farebox.payments.records import Payment
from tests.chains.evm import ETHER, Contract, EvmChain
from tests.chains.lying import LyingNode, Refusal, lying
from tests.chains.nodes import Anvil, running
from tests.chains.room import Room, open_chain, open_room, settings_of

USD: Final = ETHER // 4000
"""What a dollar is worth in the room: an ether is 4,000."""
FINAL: Final = 64


@pytest.fixture(scope="module")
def anvil(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Anvil]:
    """Calls a block final once 64 are on top of it."""
    node = Anvil(tmp_path_factory.mktemp("anvil"), slots=FINAL // 2)
    with running(node):
        yield node


@pytest.fixture
async def chain(anvil: Anvil) -> AsyncIterator[EvmChain]:
    """The chain as it was in the beginning: addresses are the same in all tests, and hold nothing yet."""
    opened = await open_chain(anvil.url)
    fork = await opened.fork()
    await opened.mine(2)
    yield opened
    await opened.undo(fork)
    await opened.close()


@pytest.fixture
async def room(chain: EvmChain, database_url: str) -> AsyncIterator[Room]:
    """Payments need three confirmations; from $1,000 on the chain has to call them final."""
    async with open_room(database_url, settings_of(chain.url)) as opened:
        yield opened


@pytest.fixture
async def liar(chain: EvmChain) -> AsyncIterator[LyingNode]:
    async with lying(chain.url) as node:
        yield node


@pytest.fixture
async def doubtful(liar: LyingNode, database_url: str) -> AsyncIterator[Room]:
    """A room whose node is the lying one."""
    async with open_room(database_url, settings_of(liar.url)) as opened:
        yield opened


@pytest.fixture
async def splitter(chain: EvmChain) -> Contract:
    return await chain.deploy("Splitter")


async def confirmed(room: Room, chain: EvmChain, blocks: int = 3) -> None:
    """Mine block by block, and look at each."""
    for _ in range(blocks):
        await chain.mine()
        assert await room.go() == ""


async def address_of(room: Room, usd: int = 25, account: int = 0) -> str:
    return (await room.ask(usd, "ETH", account)).topup.address


def one(payments: list[Payment]) -> Payment:
    (only,) = payments
    return only


async def usd(room: Room) -> float:
    """Give what alice has been credited with."""
    return await room.balance() / NANOS_PER_USD


async def standing(room: Room) -> list[tuple[int, str]]:
    """Give what is not gone: dollars, and how that stands."""
    return [(int(each.units) // USD, each.state) for each in await room.payments() if each.state != "gone"]


# What customers do


@pytest.mark.parametrize(
    ("paid", "ago_s", "stands", "credited"),
    [
        ((25,), 0, "credited", 25),
        ((7,), 0, "credited under", 7),
        ((60,), 0, "credited over", 60),
        ((25,), 7200, "credited late", 25),
        ((20, 5), 0, "credited several", 25),
        ((20, 20), 7200, "credited over late several", 40),
    ],
)
async def test_what_is_confirmed_is_credited_whatever_was_asked(
    room: Room, chain: EvmChain, paid: tuple[int, ...], ago_s: int, stands: str, credited: int
) -> None:
    topup = await room.ask(25, "ETH", ago_s=ago_s)
    assert await room.state(topup) == ("expired" if ago_s else "waiting")
    txs = []
    for amount in paid:
        txs.append(await chain.send(topup.topup.address, amount * USD))
        await chain.mine()
        assert await room.go() == ""
    assert (await room.state(topup)).startswith("confirming")
    assert await room.balance() == 0
    await confirmed(room, chain, 2)
    assert await room.state(topup) == stands
    assert await usd(room) == credited
    await confirmed(room, chain)
    assert await usd(room) == credited
    assert [each.tx for each in await room.payments()] == txs
    assert await room.incidents() == []


async def test_a_large_payment_waits_until_its_chain_calls_it_final(room: Room, chain: EvmChain) -> None:
    topup = await room.ask(2000, "ETH")
    await chain.send(topup.topup.address, 2000 * USD)
    await confirmed(room, chain, 4)
    await chain.mine(FINAL - 4)
    assert await room.go() == ""
    assert (await room.state(topup), await usd(room)) == ("confirming", 0)
    await confirmed(room, chain, 1)
    assert (await room.state(topup), await usd(room)) == ("credited", 2000)
    assert one(await room.payments()).final


async def test_what_comes_in_one_block_is_one_payment(room: Room, chain: EvmChain) -> None:
    address = await address_of(room)
    for part in (10, 5, 10):
        await chain.send(address, part * USD)
    await confirmed(room, chain)
    assert one(await room.payments()).ident == f"{address}:0-{25 * USD}"
    assert await usd(room) == 25


# By which road it comes


async def test_ether_that_a_contract_sends_counts_though_no_transaction_names_its_recipient(
    room: Room, chain: EvmChain, splitter: Contract
) -> None:
    hers, his = await address_of(room), await address_of(room, account=room.bob)
    await splitter.send("pay", [hers, his], wei=50 * USD)
    await confirmed(room, chain)
    assert (await usd(room), await room.balance(room.bob)) == (25, 25 * NANOS_PER_USD)
    assert {each.tx for each in await room.payments()} == {None}


async def test_ether_left_by_a_contract_that_destroys_itself_counts(
    room: Room, chain: EvmChain, splitter: Contract
) -> None:
    await splitter.send("destroy", await address_of(room), wei=25 * USD)
    await confirmed(room, chain)
    assert await usd(room) == 25


async def test_ether_that_a_validator_withdraws_counts(room: Room, chain: EvmChain) -> None:
    address = await address_of(room)
    await chain.rpc.ask("anvil_setBalance", address, hex(25 * USD))  # no transaction at all, as withdrawals are
    await confirmed(room, chain)
    assert await usd(room) == 25


async def test_a_reverted_transaction_pays_nothing(room: Room, chain: EvmChain, splitter: Contract) -> None:
    address = await address_of(room)
    reverted = await splitter.send("payAndRevert", [address], wei=25 * USD)
    await confirmed(room, chain)
    assert await chain.status(reverted) == 0
    assert await room.payments() == []
    assert await usd(room) == 0


async def test_gas_that_is_sent_to_a_tokens_address_is_never_credited(chain: EvmChain, database_url: str) -> None:
    token = await chain.token()
    async with open_room(database_url, settings_of(chain.url, token.address)) as room:
        topup = await room.ask(25)
        await token.send("transfer", topup.topup.address, 25 * 10**6)
        await chain.send(topup.topup.address, ETHER // 100)
        await confirmed(room, chain, FINAL + 3)
        assert await usd(room) == 25
        assert one(await room.payments()).asset == "USDT"
        assert await room.incidents() == []


# What is undone

SHAPES: Final[dict[str, tuple[list[list[int]], list[list[int]]]]] = {
    "mined again at once": ([[25], []], [[25]]),
    "mined again in the last block": ([[25], []], [[], [], [25]]),
    "mined again in another block than before": ([[], [25]], [[25], []]),
    "gone": ([[25], []], [[]]),
    "replaced by less": ([[25], []], [[10]]),
    "replaced by more": ([[25], []], [[40]]),
    "one of two is gone": ([[10], [20]], [[10], []]),
    "the first of two is gone": ([[10], [20]], [[20], []]),
    "two in the other order": ([[10], [20]], [[20], [10]]),
    "two that become one": ([[10], [20]], [[10, 20], []]),
    "one that becomes two": ([[10, 20], []], [[20], [10]]),
    "more comes than before": ([[10], []], [[10], [5], [3]]),
    "all different": ([[10], [20]], [[7], [8, 9], [40]]),
}


@pytest.mark.parametrize("shape", SHAPES)
async def test_what_is_undone_before_it_is_credited_counts_as_it_ends(room: Room, chain: EvmChain, shape: str) -> None:
    first, then = SHAPES[shape]
    address = await address_of(room)
    fork = await chain.fork()
    for block in first:
        await pay(room, chain, address, block)
    await chain.undo(fork)
    await chain.mine(max(0, len(first) + 1 - len(then)))
    for block in then:
        await pay(room, chain, address, block)
    await confirmed(room, chain)
    paid = sum(sum(block) for block in then)
    assert await usd(room) == paid
    assert sum(worth for worth, state in await standing(room) if state == "credited") == paid
    await later(room, chain)
    await confirmed(room, chain, 2)
    assert await usd(room) == paid
    assert {state for _, state in await standing(room)} <= {"credited"}
    assert await room.incidents() == []


async def later(room: Room, chain: EvmChain) -> None:
    """Let so much time go by as 64 blocks take on the real chain."""
    room.ahead_us = 65 * 12 * US_PER_S
    await chain.rpc.ask("evm_setNextBlockTimestamp", room.now() // US_PER_S)


async def pay(room: Room, chain: EvmChain, address: str, block: list[int]) -> None:
    for amount in block:
        await chain.send(address, amount * USD)
    await chain.mine()
    assert await room.go() == ""


async def test_a_payment_that_is_mined_again_in_time_is_never_taken_back(room: Room, chain: EvmChain) -> None:
    address = await address_of(room)
    fork = await chain.fork()
    await chain.send(address, 25 * USD)
    await confirmed(room, chain)
    assert await usd(room) == 25
    await chain.undo(fork)
    await confirmed_longer(room, chain, 5)
    payment = one(await room.payments())
    assert (payment.state, payment.confirmations, payment.lost_at_us is None) == ("credited", 0, False)
    await chain.send(address, 25 * USD)
    await confirmed(room, chain, 2)
    payment = one(await room.payments())
    assert (payment.state, payment.confirmations, payment.lost_at_us) == ("credited", 2, None)
    assert (await usd(room), payment.epoch, await room.incidents()) == (25, 1, [])


async def confirmed_longer(room: Room, chain: EvmChain, blocks: int) -> None:
    """Mine a branch that is longer than the one undone before it is looked at."""
    await chain.mine(blocks)
    assert await room.go() == ""


@pytest.mark.parametrize(
    ("again", "states"),
    [
        ([], {(25, "gone")}),
        ([25], {(25, "credited")}),
        ([10], {(25, "gone"), (10, "credited")}),
        ([40], {(25, "credited"), (15, "credited")}),
    ],
)
async def test_what_is_undone_after_it_was_credited_is_taken_back_and_credited_as_it_returns(
    room: Room, chain: EvmChain, again: list[int], states: set[tuple[int, str]]
) -> None:
    address = await address_of(room)
    fork = await chain.fork()
    await chain.send(address, 25 * USD)
    await confirmed(room, chain)
    assert await usd(room) == 25
    await chain.undo(fork)
    await confirmed_longer(room, chain, 5)
    await later(room, chain)
    await confirmed(room, chain, 2)
    assert await usd(room) == 0
    assert (one(await room.payments()).state, await room.incidents()) == ("gone", ["reversed"])
    for amount in again:
        await chain.send(address, amount * USD)
    await confirmed(room, chain)
    assert await usd(room) == sum(again)
    assert {(int(each.units) // USD, each.state) for each in await room.payments()} == states


async def test_another_amount_in_the_place_of_a_credited_payment_waits_until_that_was_taken_back(
    room: Room, chain: EvmChain
) -> None:
    address = await address_of(room)
    fork = await chain.fork()
    await chain.send(address, 25 * USD)
    await confirmed(room, chain)
    await chain.undo(fork)
    await chain.send(address, 10 * USD)
    await confirmed_longer(room, chain, 5)
    assert (await usd(room), await standing(room)) == (25, [(25, "credited")])
    await later(room, chain)
    await confirmed(room, chain, 2)
    assert (await usd(room), await standing(room)) == (10, [(10, "credited")])


# What the operator does


async def sweep(chain: EvmChain, address: str) -> int:
    """Send what an address holds, but for what the gas may cost; answers what is left once that is mined."""
    await chain.rpc.ask("anvil_impersonateAccount", address)
    held = await chain.balance(address)
    await chain.send(chain.people[1], held - 6 * 10**15, sender=address)
    return 6 * 10**15 - 21_000 * 2 * 10**9


async def swept(room: Room) -> tuple[bool, str | None]:
    """Tell whether alice's address is swept, and what it held then."""
    ((at, left),) = await room.store.fetch("SELECT swept_at, left_units FROM deposit_address")
    return at is not None, left


async def let_all_look(room: Room, chain: EvmChain) -> None:
    """Let addresses that nothing is expected of have their turn."""
    room.ahead_us += 3601 * US_PER_S
    await room.store.write([("UPDATE deposit_address SET looked_at = looked_at - 3700000000", ())])
    await chain.mine()
    room.ahead_us = 0
    assert await room.go() == ""


async def test_sweeping_what_is_final_changes_nothing(room: Room, chain: EvmChain) -> None:
    address = await address_of(room)
    await chain.send(address, 100 * USD)
    await confirmed(room, chain)
    await chain.mine(FINAL)
    await confirmed(room, chain, 1)
    assert one(await room.payments()).final
    left = await sweep(chain, address)
    await let_all_look(room, chain)
    assert await swept(room) == (False, None)  # it may still be undone
    await chain.mine(FINAL)
    await let_all_look(room, chain)
    assert await swept(room) == (True, str(left))
    assert await usd(room) == 100
    assert await room.incidents() == []


async def test_sweeping_before_the_end_does_not_stop_what_was_seen_from_being_credited(
    room: Room, chain: EvmChain
) -> None:
    address = await address_of(room)
    await chain.send(address, 100 * USD)
    await confirmed(room, chain, 1)
    await sweep(chain, address)
    await confirmed(room, chain, 2)
    assert await usd(room) == 100
    await chain.mine(FINAL)
    await confirmed(room, chain, 1)
    assert one(await room.payments()).final
    await let_all_look(room, chain)
    assert (await swept(room))[0]
    assert await room.incidents() == []


async def test_what_was_seen_and_sent_on_before_it_could_be_proved_is_an_incident(room: Room, chain: EvmChain) -> None:
    address = await address_of(room)
    fork = await chain.fork()
    await chain.send(address, 100 * USD)
    await confirmed(room, chain, 1)
    assert one(await room.payments()).state == "confirming"
    await chain.undo(fork)
    await chain.rpc.ask("anvil_setNonce", address, hex(1))  # as if it had come and gone in one block
    await confirmed_longer(room, chain, 5)
    assert await room.incidents() == []
    await chain.mine(FINAL)
    await let_all_look(room, chain)
    assert (one(await room.payments()).state, await swept(room)) == ("gone", (False, None))
    await let_all_look(room, chain)
    assert (await swept(room))[0]
    assert await room.incidents() == ["swept_early"]
    assert await usd(room) == 0


async def test_what_comes_to_a_swept_address_is_told_once_and_not_credited(room: Room, chain: EvmChain) -> None:
    address = await address_of(room)
    await chain.send(address, 100 * USD)
    await confirmed(room, chain)
    await sweep(chain, address)
    await confirmed(room, chain, 1)
    await chain.mine(FINAL)
    await confirmed(room, chain, 1)
    await let_all_look(room, chain)
    assert (await swept(room))[0]
    assert await address_of(room) != address
    for usd_sent in (5, 6):
        await chain.send(address, usd_sent * USD)
        for _ in range(2):
            await let_all_look(room, chain)
    assert await room.incidents() == ["stray_payment"]
    ((words,),) = await room.store.fetch("SELECT words FROM incident")
    assert [words.count(f"{sent * USD} wei came") for sent in (5, 6)] == [
        1,
        1,
    ]  # the second is not lost behind the first
    assert await usd(room) == 100


async def test_an_address_that_has_sent_is_quoted_no_more(room: Room, chain: EvmChain) -> None:
    address = await address_of(room)
    await chain.rpc.ask("anvil_setNonce", address, hex(1))  # as EIP-7702 does for an address that delegates
    await confirmed(room, chain, 1)
    assert await address_of(room) != address


# What nodes do


async def test_a_node_that_restarts_is_asked_again_and_nothing_is_lost(
    tmp_path_factory: pytest.TempPathFactory, database_url: str
) -> None:
    node = Anvil(tmp_path_factory.mktemp("restarted"), slots=FINAL // 2)
    with running(node):
        chain = await open_chain(node.url)
        async with open_room(database_url, settings_of(node.url)) as room:
            address = await address_of(room)
            await chain.send(address, 25 * USD)
            await confirmed(room, chain, 2)
            await chain.close()
            node.stop()
            assert "cannot be asked" in await room.go()
            node.start()
            chain = await open_chain(node.url)
            await confirmed(room, chain, 2)
            assert (await usd(room), one(await room.payments()).confirmations) == (25, 4)
        await chain.close()


def forgetful(liar: LyingNode, chain: EvmChain, keeps: int) -> None:
    """Let the node have dropped all states but the newest."""

    async def twist(params: list[Any], result: Any) -> Any:
        block = await liar.true("eth_getBlockByHash", params[1]["blockHash"], False)  # noqa: FBT003  JSON
        if int(block["number"], 16) <= await chain.height() - keeps:
            raise Refusal(-32000, "missing trie node 8c1f (path ) state 0x8c1f is not available")
        return result

    liar.twists["eth_getBalance"] = liar.twists["eth_getTransactionCount"] = twist


@pytest.mark.parametrize("keeps", [1, 2, 16])
async def test_a_node_that_keeps_only_the_newest_states_is_enough_while_it_is_watched(
    doubtful: Room, liar: LyingNode, chain: EvmChain, keeps: int
) -> None:
    forgetful(liar, chain, keeps)
    topup = await doubtful.ask(2000, "ETH")
    await chain.send(topup.topup.address, 2000 * USD)
    await confirmed(doubtful, chain, FINAL)
    assert await usd(doubtful) == 0
    await confirmed(doubtful, chain, 1)
    assert (await usd(doubtful), one(await doubtful.payments()).final) == (2000, 1)


async def test_what_came_while_nobody_looked_is_credited_as_deep_as_the_node_can_show(
    doubtful: Room, liar: LyingNode, chain: EvmChain
) -> None:
    address = await address_of(doubtful)
    await chain.send(address, 25 * USD)
    await chain.mine(50)
    forgetful(liar, chain, 2)
    assert await doubtful.go() == ""
    assert one(await doubtful.payments()).confirmations == 2
    await confirmed(doubtful, chain, 1)
    assert await usd(doubtful) == 25


async def test_a_sweep_that_nobody_saw_is_an_incident_where_the_node_forgets(
    doubtful: Room, liar: LyingNode, chain: EvmChain
) -> None:
    address = await address_of(doubtful)
    await chain.send(address, 100 * USD)
    await chain.mine()
    await sweep(chain, address)
    await chain.mine(FINAL + 20)
    forgetful(liar, chain, 16)
    assert await doubtful.go() == ""
    await chain.mine(FINAL)
    assert await doubtful.go() == ""
    assert (await doubtful.incidents(), await usd(doubtful)) == (["swept_early"], 0)


async def test_a_balance_that_only_the_newest_block_shows_is_never_credited(
    doubtful: Room, liar: LyingNode, chain: EvmChain
) -> None:
    await address_of(doubtful)

    async def twist(params: list[Any], result: Any) -> Any:
        block = await liar.true("eth_getBlockByHash", params[1]["blockHash"], False)  # noqa: FBT003  JSON
        return hex(25 * USD) if int(block["number"], 16) == await chain.height() else result

    liar.twists["eth_getBalance"] = twist
    await confirmed(doubtful, chain, 8)
    assert one(await doubtful.payments()).confirmations in {1, 2}
    liar.twists.clear()
    await confirmed(doubtful, chain, 1)
    assert one(await doubtful.payments()).confirmations == 0
    assert await usd(doubtful) == 0


@pytest.mark.parametrize(
    "method", ["eth_getBalance", "eth_getTransactionCount", "eth_getBlockByNumber", "eth_getBlockByHash"]
)
async def test_trouble_with_a_node_credits_nothing_and_loses_nothing(
    doubtful: Room, liar: LyingNode, chain: EvmChain, method: str
) -> None:
    async def refuse(params: list[Any], result: Any) -> Any:  # noqa: ARG001  says no to everything
        raise Refusal(-32000, "header not found")

    address = await address_of(doubtful)
    await chain.send(address, 25 * USD)
    await confirmed(doubtful, chain, 2)
    liar.twists[method] = refuse
    await chain.mine(10)
    trouble = await doubtful.go()
    assert bool(trouble) is (method != "eth_getBlockByHash")  # which is asked only for what people like to know
    assert await usd(doubtful) == (0 if trouble else 25)
    liar.twists.clear()
    await confirmed(doubtful, chain, 1)
    assert (await usd(doubtful), one(await doubtful.payments()).confirmations) == (25, 13)


async def test_a_node_that_lags_takes_nothing_back(doubtful: Room, liar: LyingNode, chain: EvmChain) -> None:
    address = await address_of(doubtful)
    await chain.mine(3)
    await chain.send(address, 25 * USD)
    await confirmed(doubtful, chain, 1)
    liar.lags = 2
    await doubtful.go()
    assert one(await doubtful.payments()).confirmations == 1
    liar.lags = 0
    await confirmed(doubtful, chain, 2)
    assert await usd(doubtful) == 25


async def test_it_is_asked_for_no_more_than_is_needed(doubtful: Room, liar: LyingNode, chain: EvmChain) -> None:
    for _ in range(3):
        await address_of(doubtful)
    await confirmed(doubtful, chain, 1)
    liar.asked.clear()
    await confirmed(doubtful, chain, 1)
    assert liar.asked.count("eth_getBalance") == 1  # one address; it is kept until it is paid to
    assert liar.asked.count("eth_getTransactionCount") == 1


# What processes do


async def test_two_watchers_at_once_credit_once(room: Room, chain: EvmChain) -> None:
    address = await address_of(room)
    others = [another(room), another(room)]
    for amount in (10, 5):
        await chain.send(address, amount * USD)
        for _ in range(4):
            await chain.mine()
            await asyncio.gather(*(other.look(room.now()) for other in others))
    assert await usd(room) == 15
    assert await standing(room) == [(10, "credited"), (5, "credited")]
    for other in others:
        await other.close()


def another(room: Room) -> EvmWatcher:
    """Make a watcher as another process has it: with deposits of its own."""
    rails = {room.rail.name: room.rail}
    plans = Plans([Plan("pro", 60, 1_000_000, 5, 0)])
    deposits = Deposits(room.store, room.ledger, plans, rails, site="Farebox", public_url="https://f.example")
    return EvmWatcher(room.store, deposits, room.settings, room.addresses)


async def test_days_of_downtime_lose_nothing(room: Room, chain: EvmChain, splitter: Contract) -> None:
    address = await address_of(room)
    await confirmed(room, chain, 1)
    await chain.send(address, 10 * USD)
    await chain.mine(100)
    await splitter.send("pay", [address], wei=5 * USD)
    await chain.mine(700)
    while "catching up" in await room.go():
        pass
    assert await usd(room) == 15
    assert [each.final for each in await room.payments()] == [1]  # 700 blocks ago they are one


async def test_what_came_in_several_blocks_while_nobody_looked_is_several_payments(room: Room, chain: EvmChain) -> None:
    address = await address_of(room)
    await confirmed(room, chain, 1)
    txs = []
    for amount in (10, 5, 7):
        txs.append(await chain.send(address, amount * USD))
        await chain.mine(2)
    await confirmed(room, chain, 1)
    assert [(each.tx, int(each.units) // USD, each.confirmations) for each in await room.payments()] == [
        (txs[0], 10, 7),
        (txs[1], 5, 5),
        (txs[2], 7, 3),
    ]
    assert await usd(room) == 22


async def test_what_an_address_held_before_it_was_given_out_is_not_part_of_what_is_paid(
    room: Room, chain: EvmChain
) -> None:
    first = await address_of(room)
    await chain.rpc.ask("anvil_setBalance", first, hex(1000 * USD))
    await chain.mine()
    await room.store.write([("UPDATE deposit_address SET created_at = ?", (room.now() + 400 * US_PER_S,))])
    await chain.rpc.ask("evm_setNextBlockTimestamp", room.now() // US_PER_S + 500)
    await chain.send(first, 25 * USD)
    room.ahead_us = 500 * US_PER_S
    await confirmed(room, chain)
    assert await usd(room) == 25
    assert await room.incidents() == ["stray_payment"]


async def test_addresses_stay_watched_when_ether_is_offered_no_more(chain: EvmChain, database_url: str) -> None:
    async with open_room(database_url, settings_of(chain.url)) as room:
        address = await address_of(room)
    async with open_room(database_url, structs.replace(settings_of(chain.url), ether=False)) as room:
        await chain.send(address, 25 * USD)
        await confirmed(room, chain)
        assert await usd(room) == 25
