"""Ether on a real EVM node, into the real books: by whatever road it comes, and whatever is undone, it counts once."""

from collections.abc import AsyncIterator, Iterator
from typing import Any, Final

import pytest

from farebox.clock import US_PER_S
from farebox.errors import RailTrouble
from farebox.money import NANOS_PER_USD
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
