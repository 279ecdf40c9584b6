"""Token payments seen by nodes that lag, refuse, cut, lie, restart, or were left alone for days."""

from pathlib import Path
from typing import Any, Final

import pytest

from farebox.clock import US_PER_S
from farebox.http.client import Answer
from farebox.money import NANOS_PER_USD
from tests.chains.evm import Contract, EvmChain
from tests.chains.lying import LyingNode, Refusal, lying
from tests.chains.nodes import Anvil, running
from tests.chains.room import NOBODY, USDT, Room, confirmed, one, open_chain, open_room, settings_of
from tests.databases import on_sqlite

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
    await chain.mine(80)
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


@pytest.mark.usefixtures("apart")
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


@pytest.mark.parametrize("body", [b'{"result":"\xff"}', b"[" * 100_000])
async def test_an_answer_that_is_no_text_or_has_no_end_is_trouble(
    doubtful: Room, monkeypatch: pytest.MonkeyPatch, body: bytes
) -> None:
    async def read(_answer: Answer, _most: int) -> bytes:
        return body

    assert await doubtful.go() == ""
    with monkeypatch.context() as broken:
        broken.setattr(Answer, "read", read)
        assert "no JSON" in await doubtful.go()
    assert await doubtful.go() == ""


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


@pytest.mark.usefixtures("apart")
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
