"""Wallets of test chains, for demonstrations: they pay a top-up for real, with coins that are worth nothing.

The configuration allows them beside nodes of regtest and of development chains only; the node is asked once more.
"""

from decimal import Decimal
from typing import Final, Protocol

from farebox.errors import RailTrouble, WrongChain
from farebox.payments.chains.rpc import JsonRpc
from farebox.payments.rails import Asset
from farebox.payments.settings import BitcoinSettings, EvmSettings

BITCOIN_WALLET: Final = "test-wallet"
"""The wallet in the regtest node that pays. Whoever starts the node makes and funds it."""
TEST_CHAIN_IDS: Final = frozenset({1337, 31337})
"""Chain ids of development nodes: geth --dev; anvil and hardhat."""
_TRANSFER: Final = "0xa9059cbb"
"""Selector of transfer(address,uint256), ERC-20."""


class TestWallet(Protocol):
    """Pays from a test chain."""

    async def pay(self, asset: Asset, address: str, units: int) -> str:
        """Send units of an asset to an address; answers the transaction. Raises RailTrouble."""
        ...

    async def close(self) -> None: ...


class BitcoinTestWallet:
    """See TestWallet."""

    def __init__(self, settings: BitcoinSettings) -> None:
        self._node = JsonRpc(settings.rpc, settings.rpc_user, settings.rpc_password.reveal())
        self._wallet = self._node.at(f"/wallet/{BITCOIN_WALLET}")

    async def pay(self, asset: Asset, address: str, units: int) -> str:
        if (await self._node.ask("getblockchaininfo")).get("chain") != "regtest":
            raise WrongChain("a test wallet pays on regtest only")
        coins = Decimal(units).scaleb(-asset.decimals)
        return str(await self._wallet.ask("sendtoaddress", address, f"{coins:f}"))

    async def close(self) -> None:
        await self._node.close()
        await self._wallet.close()


class EvmTestWallet:
    """See TestWallet. The node itself holds the accounts that pay, as development nodes do."""

    def __init__(self, settings: EvmSettings) -> None:
        self._settings = settings
        self._node = JsonRpc(settings.rpc.reveal())

    async def pay(self, asset: Asset, address: str, units: int) -> str:
        if int(await self._node.ask("eth_chainId"), 16) not in TEST_CHAIN_IDS:
            raise WrongChain("a test wallet pays on a development chain only")
        accounts = await self._node.ask("eth_accounts")
        if not accounts:
            raise RailTrouble("this node holds no account to pay from")
        token = next((one for one in self._settings.tokens if one.code == asset.code), None)
        if token is None:
            sent = {"from": accounts[0], "to": address, "value": hex(units)}
        else:
            data = f"{_TRANSFER}{address.removeprefix('0x').lower():0>64}{units:064x}"
            sent = {"from": accounts[0], "to": token.contract, "data": data}
        return str(await self._node.ask("eth_sendTransaction", sent))

    async def close(self) -> None:
        await self._node.close()
