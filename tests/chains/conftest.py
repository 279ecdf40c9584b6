"""Nodes for the tests here: each started once for a module, by the first test that asks for it."""

from collections.abc import Iterator

import pytest

from tests.chains.nodes import Anvil, Bitcoind, running


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
