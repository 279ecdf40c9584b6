"""Token payments on a real EVM node, into the real books: whatever the chain or the node does, each counts once."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from farebox.clock import US_PER_S
from farebox.money import NANOS_PER_USD
from farebox.payments.chains.rpc import RpcError
from farebox.payments.records import Payment
from tests.chains.evm import Contract, EvmChain
from tests.chains.lying import LyingNode, Refusal, lying
from tests.chains.nodes import Anvil, running
from tests.chains.room import KEY, Room, open_chain, open_room, settings_of
from tests.databases import on_sqlite

USDT: Final = 10**6
NOBODY: Final = "0x" + "de" * 20


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Anvil]:
    """Calls a block final once it is 64 deep."""
    anvil = Anvil(tmp_path_factory.mktemp("anvil"), slots=32)
    with running(anvil):
        yield anvil


@pytest.fixture
async def chain(node: Anvil) -> AsyncIterator[EvmChain]:
    opened = await open_chain(node.url)
    yield opened
    await opened.close()


@pytest.fixture
async def long_chain(tmp_path: Path) -> AsyncIterator[EvmChain]:
    """A chain for one test that makes many blocks: the more there are, the longer each next one takes."""
    anvil = Anvil(tmp_path, slots=32)
    with running(anvil):
        opened = await open_chain(anvil.url)
        yield opened
        await opened.close()


@pytest.fixture
async def token(chain: EvmChain) -> Contract:
    """A token of this test's own: what other tests left on the chain is nothing to it."""
    return await chain.token()


@pytest.fixture
async def room(chain: EvmChain, token: Contract, database_url: str) -> AsyncIterator[Room]:
    """Payments need three confirmations; from $1,000 on the chain has to call them final."""
    async with open_room(database_url, settings_of(chain.url, token.address)) as opened:
        yield opened


@pytest.fixture
async def liar(chain: EvmChain) -> AsyncIterator[LyingNode]:
    async with lying(chain.url) as node:
        yield node


@pytest.fixture
async def doubtful(liar: LyingNode, token: Contract, database_url: str) -> AsyncIterator[Room]:
    """A room whose node is the lying one."""
    async with open_room(database_url, settings_of(liar.url, token.address)) as opened:
        yield opened


async def confirmed(room: Room, chain: EvmChain, blocks: int = 3) -> None:
    """Mine block by block, and look at each."""
    for _ in range(blocks):
        await chain.mine()
        assert await room.go() == ""


def one(payments: list[Payment]) -> Payment:
    (only,) = payments
    return only


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
    room: Room, chain: EvmChain, token: Contract, paid: tuple[int, ...], ago_s: int, stands: str, credited: int
) -> None:
    topup = await room.ask(25, ago_s=ago_s)
    assert await room.state(topup) == ("expired" if ago_s else "waiting")
    for amount in paid:
        await token.send("transfer", topup.topup.address, amount * USDT)
        await chain.mine()
        assert await room.go() == ""
    assert (await room.state(topup)).startswith("confirming")
    assert await room.balance() == 0
    await confirmed(room, chain, 2)
    assert await room.state(topup) == stands
    assert await room.balance() == credited * NANOS_PER_USD
    await confirmed(room, chain, 3)
    assert await room.balance() == credited * NANOS_PER_USD
    assert await room.incidents() == []


async def test_each_log_of_one_transaction_is_a_payment_of_its_own(
    room: Room, chain: EvmChain, token: Contract
) -> None:
    batch = await chain.deploy("Batch")
    await token.send("transfer", batch.address, 100 * USDT)
    his, hers = (await room.ask(10, account=room.bob)).topup.address, (await room.ask(10)).topup.address
    tx = await batch.send("transfer", token.address, [hers, his, NOBODY, hers], [3 * USDT, 4 * USDT, 5, 6 * USDT])
    await confirmed(room, chain)
    assert {(each.ident, each.tx, int(each.units)) for each in await room.payments()} == {
        (f"{tx}:0", tx, 3 * USDT),
        (f"{tx}:1", tx, 4 * USDT),
        (f"{tx}:3", tx, 6 * USDT),
    }
    assert (await room.balance(), await room.balance(room.bob)) == (9 * NANOS_PER_USD, 4 * NANOS_PER_USD)


async def test_what_a_token_keeps_as_a_fee_is_not_credited(room: Room, chain: EvmChain, token: Contract) -> None:
    await token.send("setParams", 10, 1000 * USDT)
    topup = await room.ask(25)
    await token.send("transfer", topup.topup.address, 25 * USDT)
    await confirmed(room, chain)
    assert await token.ask("balanceOf", topup.topup.address) == 24_975_000
    assert await room.balance() == 24_975_000 * 1000
    assert await room.state(topup) == "credited"


async def test_nothing_else_that_looks_like_a_transfer_is_one(room: Room, chain: EvmChain, token: Contract) -> None:
    address = (await room.ask(25)).topup.address
    fake, batch, other = await chain.deploy("Fake"), await chain.deploy("Batch"), await chain.token()
    await token.send("transfer", batch.address, 100 * USDT)
    await fake.send("forge", chain.people[0], address, 25 * USDT)
    await other.send("transfer", address, 25 * USDT)
    await token.send("transfer", address, 0)
    reverted = await batch.send("transferAndRevert", token.address, [address], [25 * USDT])
    await token.send("setBlackListed", chain.people[2], True)  # noqa: FBT003  a contract's argument
    await token.send("transfer", chain.people[2], 50 * USDT)
    await chain.mine()
    frozen = await token.send("transfer", address, 25 * USDT, sender=chain.people[2])
    await token.send("transfer", NOBODY, 25 * USDT)
    await confirmed(room, chain)
    assert [await chain.status(tx) for tx in (reverted, frozen)] == [0, 0]
    assert not any(room.deposits.told)
    assert await room.payments() == []
    assert await room.balance() == 0


async def test_a_large_payment_waits_until_the_chain_calls_it_final(
    room: Room, chain: EvmChain, token: Contract
) -> None:
    topup = await room.ask(2000)
    await token.send("transfer", topup.topup.address, 2000 * USDT)
    await confirmed(room, chain, 5)
    await chain.mine(59)
    assert await room.go() == ""
    assert one(await room.payments()).confirmations == 64
    assert await room.balance() == 0
    await confirmed(room, chain, 1)
    assert await room.balance() == 2000 * NANOS_PER_USD
    assert one(await room.payments()).final == 1


async def test_where_a_chain_names_no_final_block_a_large_payment_waits_for_256(
    doubtful: Room, liar: LyingNode, chain: EvmChain, token: Contract
) -> None:
    async def no_tags(params: list[Any], result: Any) -> Any:
        if params[0] == "finalized":
            raise Refusal(-32602, "invalid argument 0: hex string without 0x prefix")
        return result

    liar.twists["eth_getBlockByNumber"] = no_tags
    topup = await doubtful.ask(2000)
    await token.send("transfer", topup.topup.address, 2000 * USDT)
    await chain.mine(255)
    assert await doubtful.go() == ""
    assert one(await doubtful.payments()).confirmations == 255
    assert await doubtful.balance() == 0
    await confirmed(doubtful, chain, 1)
    assert await doubtful.balance() == 2000 * NANOS_PER_USD


async def test_a_payment_to_an_address_that_was_made_for_another_chain_is_its_owners(
    chain: EvmChain, token: Contract, database_url: str
) -> None:
    async with open_room(database_url, settings_of(chain.url, token.address)) as ethereum:
        address = (await ethereum.ask(25)).topup.address
    other = await chain.token()
    async with open_room(database_url, settings_of(chain.url, other.address, name="polygon")) as polygon:
        await other.send("transfer", address, 11 * USDT)
        await confirmed(polygon, chain)
        payment = one(await polygon.payments())
        assert (payment.rail, payment.account_id, payment.topup_id) == ("polygon", polygon.alice, None)
        assert await polygon.balance() == 11 * NANOS_PER_USD


async def test_an_address_made_while_the_watcher_looks_is_not_missed(
    doubtful: Room, liar: LyingNode, chain: EvmChain, token: Contract
) -> None:
    """It is made, and paid to, in the moment in which the node tells its newest block: in that very block."""
    await doubtful.ask(10)
    made: list[str] = []

    async def late(params: list[Any], result: Any) -> Any:
        if params[0] != "latest" or made:
            return result
        made.append(await doubtful.addresses.fresh(doubtful.bob, "ethereum", "USDT", KEY, doubtful.now()))
        await token.send("transfer", made[0], 25 * USDT)
        await chain.mine()
        return await liar.true("eth_getBlockByNumber", "latest", False)  # noqa: FBT003  JSON

    liar.twists["eth_getBlockByNumber"] = late
    assert await doubtful.go() == ""
    assert one(await doubtful.payments()).address == made[0]
    await confirmed(doubtful, chain)
    assert await doubtful.balance(doubtful.bob) == 25 * NANOS_PER_USD


# A chain that is not the one, or a token that is not the one


async def test_another_chain_than_the_settings_name_counts_for_nothing(
    doubtful: Room, liar: LyingNode, chain: EvmChain, token: Contract
) -> None:
    topup = await doubtful.ask(25)
    await token.send("transfer", topup.topup.address, 25 * USDT)
    await chain.mine(4)

    async def other(_params: list[Any], _result: Any) -> Any:
        return "0x89"

    liar.twists["eth_chainId"] = other
    told = await doubtful.go()
    assert told == "ethereum: the node is on chain 137, the configuration says 31337: correct `rpc` or `chain_id`"
    assert (await doubtful.payments(), await doubtful.incidents()) == ([], ["wrong_chain"])
    liar.twists.clear()
    assert await doubtful.go() == ""
    assert await doubtful.balance() == 25 * NANOS_PER_USD


async def test_a_token_that_counts_otherwise_than_the_settings_say_is_refused(
    chain: EvmChain, token: Contract, database_url: str
) -> None:
    wrong = settings_of(chain.url, token.address, decimals=18)
    async with open_room(database_url, wrong) as room:
        told = await room.go()
        assert "has 6 decimals, the configuration says 18: correct `decimals` or `contract`" in told
        assert await room.incidents() == ["wrong_chain"]
    async with open_room(database_url, settings_of(chain.url, NOBODY)) as room:
        assert "there is no token contract at " + NOBODY in await room.go()
    async with open_room(database_url, settings_of(chain.url, token.address)) as room:
        assert await room.go() == ""


# Nodes that lag, refuse, cut or lie


async def test_an_old_newest_block_or_a_node_that_still_syncs_is_not_believed(
    doubtful: Room, liar: LyingNode, chain: EvmChain
) -> None:
    await chain.mine()
    assert await doubtful.go() == ""
    doubtful.ahead_us = 30 * 86_400 * US_PER_S
    assert "the node is behind: its newest block" in await doubtful.go()
    doubtful.ahead_us = 0
    assert await doubtful.go() == ""

    async def syncing(_params: list[Any], _result: Any) -> Any:
        return {"currentBlock": "0x1", "highestBlock": "0x99"}

    liar.twists["eth_syncing"] = syncing
    assert "the node is still fetching the chain" in await doubtful.go()


async def test_a_backend_that_lacks_the_newest_blocks_neither_hides_nor_undoes_a_payment(
    doubtful: Room, liar: LyingNode, chain: EvmChain, token: Contract
) -> None:
    """Behind a balancer one look meets the node that has the block, the next one a node that has not."""
    topup = await doubtful.ask(25)
    await token.send("transfer", topup.topup.address, 25 * USDT)
    await chain.mine(2)
    liar.lags = 2
    assert await doubtful.go() == ""
    assert await doubtful.payments() == []
    liar.lags = 0
    assert await doubtful.go() == ""
    for lags in (1, 2, 0, 2, 1):
        liar.lags = lags
        assert await doubtful.go() == ""
        assert one(await doubtful.payments()).confirmations == 2
    liar.lags = 300
    assert "were read before" in await doubtful.go()
    liar.lags = 0
    await confirmed(doubtful, chain, 1)
    assert await doubtful.balance() == 25 * NANOS_PER_USD


async def test_a_node_that_shows_a_block_but_has_not_got_its_logs_is_asked_again(
    doubtful: Room, liar: LyingNode, chain: EvmChain, token: Contract
) -> None:
    topup = await doubtful.ask(25)
    await token.send("transfer", topup.topup.address, 25 * USDT)
    await chain.mine()

    async def unknown(_params: list[Any], _result: Any) -> Any:
        raise Refusal(-32000, "unknown block")

    async def none(_params: list[Any], _result: Any) -> Any:
        return None

    for method, twist in (("eth_getLogs", unknown), ("eth_getTransactionReceipt", none)):
        liar.twists = {method: twist}
        assert await doubtful.go() != ""
        await chain.mine()
        assert await doubtful.go() != ""
        assert await doubtful.payments() == []
    liar.twists = {}
    assert await doubtful.go() == ""
    assert await doubtful.balance() == 25 * NANOS_PER_USD


@pytest.mark.parametrize("halfway", [False, True])
async def test_wherever_the_connection_is_cut_the_payment_counts_once(
    doubtful: Room, liar: LyingNode, chain: EvmChain, token: Contract, *, halfway: bool
) -> None:
    liar.cut_halfway = halfway
    addresses = [(await doubtful.ask(10)).topup.address]
    await token.send("transfer", addresses[0], 10 * USDT)
    await chain.mine(3)
    failed = 0
    for requests in range(100):
        liar.cut_after = requests
        if await doubtful.go() == "":
            break
        failed += 1
    assert failed >= 5
    assert await doubtful.balance() == 10 * NANOS_PER_USD
    liar.cut_after = None
    await confirmed(doubtful, chain, 2)
    assert await doubtful.balance() == 10 * NANOS_PER_USD


@on_sqlite
@pytest.mark.parametrize(
    ("method", "path", "value"),
    [
        ("eth_chainId", (), None),
        ("eth_chainId", (), "31337"),
        ("eth_getBlockByNumber", ("number",), "0x"),
        ("eth_getBlockByNumber", ("hash",), "0x12"),
        ("eth_getBlockByNumber", ("parentHash",), "0x" + "zz" * 32),
        ("eth_getBlockByNumber", ("parentHash",), "0x" + "11" * 32),
        ("eth_getBlockByNumber", ("timestamp",), None),
        ("eth_getBlockByNumber", (), []),
        ("eth_getLogs", (), None),
        ("eth_getLogs", (), "0x"),
        ("eth_getLogs", (0,), 7),
        ("eth_getLogs", (0, "address"), "0x00"),
        ("eth_getLogs", (0, "data"), "0x1"),
        ("eth_getLogs", (0, "topics"), None),
        ("eth_getLogs", (0, "removed"), True),
        ("eth_getLogs", (0, "blockHash"), "0x" + "11" * 32),
        ("eth_getLogs", (0, "blockNumber"), "0x1"),
        ("eth_getLogs", (0, "logIndex"), "-0x1"),
        ("eth_getTransactionReceipt", ("status",), None),
        ("eth_getTransactionReceipt", ("status",), "0x0"),
        ("eth_getTransactionReceipt", ("logs",), []),
        ("eth_getTransactionReceipt", ("logs", 0, "data"), "0x" + "00" * 31 + "01"),
        ("eth_getTransactionReceipt", ("transactionHash",), "0x" + "11" * 32),
        ("eth_getTransactionReceipt", ("blockHash",), "0x" + "11" * 32),
    ],
)
async def test_nothing_is_concluded_from_a_broken_answer(
    doubtful: Room,
    liar: LyingNode,
    chain: EvmChain,
    token: Contract,
    method: str,
    path: tuple[str | int, ...],
    value: object,
) -> None:
    topup = await doubtful.ask(25)
    await token.send("transfer", topup.topup.address, 25 * USDT)
    await chain.mine(3)

    async def broken(_params: list[Any], result: Any) -> Any:
        if not path or not result:
            return value
        inner = result
        for step in path[:-1]:
            inner = inner[step]
        inner[path[-1]] = value
        return result

    liar.twists[method] = broken
    assert await doubtful.go() != ""
    assert await doubtful.payments() == []
    liar.twists.clear()
    assert await doubtful.go() == ""
    assert await doubtful.balance() == 25 * NANOS_PER_USD


async def test_logs_that_nobody_asked_for_count_for_nothing(
    doubtful: Room, liar: LyingNode, chain: EvmChain, token: Contract
) -> None:
    """A node that does not filter, and says everything twice, changes nothing."""
    topup = await doubtful.ask(25)
    fake = await chain.deploy("Fake")
    await token.send("transfer", topup.topup.address, 25 * USDT)
    await fake.send("forge", chain.people[0], topup.topup.address, 99 * USDT)
    await token.send("transfer", NOBODY, 7 * USDT)
    await chain.mine()
    assert await doubtful.go() == ""
    await chain.mine()

    async def everything(params: list[Any], _result: Any) -> Any:
        logs = await liar.true("eth_getLogs", {"blockHash": params[0]["blockHash"]})
        return logs + logs

    liar.twists["eth_getLogs"] = everything
    await token.send("transfer", topup.topup.address, 5 * USDT)
    await fake.send("forge", chain.people[0], topup.topup.address, 99 * USDT)
    await confirmed(doubtful, chain)
    assert await doubtful.balance() == 30 * NANOS_PER_USD
    assert len(await doubtful.payments()) == 2


@pytest.mark.parametrize("most", [0, 1, 7])
async def test_a_node_that_takes_few_calls_at_once_or_one_is_asked_that_way(
    doubtful: Room, liar: LyingNode, chain: EvmChain, token: Contract, most: int
) -> None:
    liar.most_batch = most
    topup = await doubtful.ask(25)
    await token.send("transfer", topup.topup.address, 25 * USDT)
    await chain.mine(20)
    assert await doubtful.go() == ""
    assert await doubtful.balance() == 25 * NANOS_PER_USD
    liar.most_batch, liar.batch_error = 0, (-32005, "rate limit exceeded")
    asked = len(liar.asked)
    assert most < 2 or "rate limit exceeded" in await doubtful.go()
    assert len(liar.asked) == asked


# Days of downtime, and restarts


_LIMITS: Final = (
    (None, (0, "")),
    (300, (-32005, "query returned more than 10000 results")),
    (100, (-32602, "exceed maximum block range: 100")),
    (64, (-32000, "block range is too wide")),
    (10, (35, "ranges over 10 blocks are not supported on freetier")),
)
"""The most blocks in a range that nodes allow, and how they say no to more."""


async def test_after_days_of_downtime_everything_is_found_whatever_ranges_the_node_allows(
    long_chain: EvmChain, database_url: str
) -> None:
    chain, token = long_chain, await long_chain.token()
    async with lying(chain.url) as liar:
        rails = [settings_of(liar.url, token.address, name=f"chain-{number}") for number in range(len(_LIMITS))]
        for settings in rails:
            async with open_room(database_url, settings) as room:
                address = (await room.ask(25)).topup.address
        for amount, blocks in ((1, 1), (2, 130), (4, 700), (8, 400), (16, 60), (32, 2), (64, 3)):
            await token.send("transfer", address, amount * USDT)
            await chain.mine(blocks)
        for number, (settings, (most, error)) in enumerate(zip(rails, _LIMITS, strict=True), 1):
            liar.most_range, liar.range_error = most, error
            liar.ranges.clear()
            async with open_room(database_url, settings) as room:
                assert await room.go() == ""
                assert await room.balance() == number * 127 * NANOS_PER_USD
                assert [each.state for each in await room.payments()] == ["credited"] * 7 * number
                assert await room.incidents() == []
            assert max(liar.ranges) <= 1000
            assert sum(size for size in liar.ranges if most is None or size <= most) == 1296 - 128  # each block once


async def test_a_range_read_from_a_backend_that_lacks_its_end_is_read_again(
    long_chain: EvmChain, database_url: str
) -> None:
    """It finds nothing there, and does not say that it cannot: but it cannot show the block at the end either."""
    chain, token = long_chain, await long_chain.token()
    async with lying(chain.url) as liar, open_room(database_url, settings_of(liar.url, token.address)) as room:
        topup = await room.ask(25)
        await token.send("transfer", topup.topup.address, 25 * USDT)
        await chain.mine(400)
        shown: set[str] = set()

        async def once(params: list[Any], result: Any) -> Any:
            if params[0] in shown:
                return None
            shown.add(params[0])
            return result

        async def nothing(params: list[Any], result: Any) -> Any:
            return [] if "fromBlock" in params[0] else result

        liar.twists = {"eth_getBlockByNumber": once, "eth_getLogs": nothing}
        assert "has lost block" in await room.go()
        liar.twists = {}
        assert await room.go() == ""
        assert await room.balance() == 25 * NANOS_PER_USD


async def test_a_chain_that_is_still_being_caught_up_with_is_not_called_well(
    long_chain: EvmChain, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain, token = long_chain, await long_chain.token()
    async with open_room(database_url, settings_of(chain.url, token.address)) as room:
        topup = await room.ask(25)
        await chain.mine(600)
        await token.send("transfer", topup.topup.address, 25 * USDT)
        await chain.mine(5)
        monkeypatch.setattr("farebox.payments.chains.evm_watcher._STEPS", 1)
        said = [await room.go() for _ in range(4)]
        assert "catching up: blocks up to" in said[0]
        assert said[-1] == ""
        assert await room.balance() == 25 * NANOS_PER_USD


async def test_a_node_that_restarts_is_watched_on(tmp_path: Path, database_url: str) -> None:
    anvil = Anvil(tmp_path, slots=32)
    with running(anvil):
        chain = await open_chain(anvil.url)
        token = await chain.token()
        async with open_room(database_url, settings_of(anvil.url, token.address)) as room:
            topup = await room.ask(25)
            await token.send("transfer", topup.topup.address, 25 * USDT)
            await confirmed(room, chain, 1)
            anvil.stop()
            assert "cannot be asked" in await room.go()
            anvil.start()
            assert await room.go() == ""
            assert one(await room.payments()).confirmations == 1
            await confirmed(room, chain, 2)
            assert await room.balance() == 25 * NANOS_PER_USD
        await chain.close()


async def test_a_chain_that_is_new_to_the_books_is_read_from_when_its_oldest_address_was_made(
    long_chain: EvmChain, database_url: str
) -> None:
    """Customers may pay on it before its node was first reached: their addresses are the same on all chains."""
    chain = long_chain
    first, second = await chain.token(), await chain.token()
    async with open_room(database_url, settings_of(chain.url, first.address)) as ethereum:
        address = (await ethereum.ask(25)).topup.address
    await second.send("transfer", address, 5 * USDT)
    await chain.mine(400)
    async with open_room(database_url, settings_of(chain.url, second.address, name="polygon")) as polygon:
        assert await polygon.go() == ""
        assert await polygon.balance() == 5 * NANOS_PER_USD


# Branches that are undone


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
