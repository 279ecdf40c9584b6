"""The watcher of one EVM chain: its branch, its tokens, its own coin, in one look."""

from collections.abc import Sequence
from typing import Final

from farebox.errors import RailTrouble
from farebox.payments.addresses import Addresses
from farebox.payments.chains.ether import EtherReader
from farebox.payments.chains.evm import EvmNode
from farebox.payments.chains.heads import Heads, Moved
from farebox.payments.chains.rpc import JsonRpc
from farebox.payments.chains.tokens import FINAL_DEPTH, Tokens
from farebox.payments.deposits import Deposits
from farebox.payments.rails import Tip
from farebox.payments.reconcile import Holding
from farebox.payments.settings import EvmSettings
from farebox.store.protocol import Store

_FASTEST_S: Final = 2.0
_SLOWEST_S: Final = 12.0
_STEPS: Final = 20
"""Steps in one look: of a chain that is far behind, some 20,000 blocks."""
_TRIES: Final = 3


class EvmWatcher:
    """See Watcher; `holdings` and `addresses` are for the reconciliation (ChainView)."""

    def __init__(self, store: Store, deposits: Deposits, settings: EvmSettings, addresses: Addresses) -> None:
        """Raises ValueError for an `rpc` that is no http(s) URL."""
        self.name = settings.name
        self.pause_s = min(max(settings.block_s, _FASTEST_S), _SLOWEST_S)
        self.node = EvmNode(JsonRpc(settings.rpc.reveal()), settings.chain_id, settings.block_s, settings.name)
        self._deposits = deposits
        self._settings = settings
        self._addresses = addresses
        self._heads = Heads(store, self.node, settings.name)
        self._tokens = Tokens(store, self.node, settings)
        self._ether = EtherReader(store, self.node, settings)
        self._is_checked = False

    async def look(self, now_us: int) -> Tip:
        """Look once, see Watcher. A branch that changes under one's eyes is looked at again at once.

        Raises WrongChain for another chain, or a token that counts otherwise than the settings say; RailTrouble also
        while the chain is still being caught up with, so that nothing is offered on it before.
        """
        for _ in range(_TRIES - 1):
            try:
                return await self._look(now_us)
            except Moved:
                continue
        return await self._look(now_us)

    async def close(self) -> None:
        await self.node.close()

    async def _look(self, now_us: int) -> Tip:
        was_sure = self.node.is_sure
        tip = await self.node.tip(now_us)
        if not (was_sure and self._is_checked):
            self._is_checked = False
            await self._tokens.check()
            self._is_checked = True
        for _ in range(_STEPS):
            step = await self._heads.next(tip, now_us)
            await self._deposits.apply(await self._tokens.look(step, now_us), now_us)
            await self._heads.done(step, now_us)
            if step.is_last:
                if step.top.hash == tip.hash:
                    await self._deposits.apply(await self._ether.look(tip, step.hashes, now_us), now_us)
                return Tip(tip.height, tip.hash, tip.at_us)
        raise RailTrouble(f"{self.name}: catching up: blocks up to {step.top.height} of {tip.height} are read")

    # For the reconciliation

    async def addresses(self, asset: str) -> list[str]:
        """Give the addresses where money of an asset counts: of tokens, all that were given out on any EVM chain."""
        if asset == self._settings.coin:
            return [one.address for one in await self._addresses.of_asset(self.name, asset)]
        return [one.address for one in await self._addresses.all_of("evm")]

    async def holdings(self, asset: str, addresses: Sequence[str]) -> dict[str, Holding]:
        """Give what addresses hold at a block that every payment which is looked at no more is below or in."""
        top = await self._heads.height()
        if top is None:
            raise RailTrouble(f"{self.name}: no block of it has been read yet")
        height = max(0, top - FINAL_DEPTH + 1, min(top, await self.node.finalized() or 0))
        (block,) = await self.node.blocks([height])
        if block is None:
            raise RailTrouble(f"{self.name}: the node has not got block {height}")
        if asset == self._settings.coin:
            held = await self.node.balances(addresses, block.hash)
        else:
            held = await self._tokens.holdings(asset, addresses, block.hash)
        sent = await self.node.nonces(addresses, block.hash)
        return {one: Holding(units, nonce > 0) for one, units, nonce in zip(addresses, held, sent, strict=True)}
