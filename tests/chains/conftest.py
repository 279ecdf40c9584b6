"""Nodes for the tests here: each started once for a module, by the first test that asks for it."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from farebox.payments.chains.heads import Heads
from tests.chains.evm import Contract, EvmChain
from tests.chains.lying import LyingNode, lying
from tests.chains.nodes import Anvil, Bitcoind, running
from tests.chains.room import Room, open_chain, open_room, settings_of


@pytest.fixture(scope="module")
def bitcoind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bitcoind]:
    node = Bitcoind(tmp_path_factory.mktemp("bitcoind"))
    with running(node):
        yield node


@pytest.fixture(scope="module")
def anvil(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Anvil]:
    node = Anvil(tmp_path_factory.mktemp("anvil"))
    with running(node):
        yield node


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


@pytest.fixture
def apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let rails that one node serves pass for chains of their own."""

    async def see_nothing(_heads: Heads) -> None:
        pass

    monkeypatch.setattr(Heads, "_see_that_it_is_new", see_nothing)
