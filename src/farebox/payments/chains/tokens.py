"""Tokens (ERC-20) on an EVM chain: every transfer of the configured contracts to any address that customers were given.

A payment is one log of one transaction, named by the transaction's hash and the log's place in that transaction: its
place in the block changes when the transaction is mined again. What it is worth is what the log says has come, after
whatever fee the contract keeps. A log of another contract, or of nothing, is nothing.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from msgspec import Struct

from farebox.errors import RailTrouble, WrongChain
from farebox.payments.chains.evm import TRANSFER, EvmNode, Log, as_topic
from farebox.payments.chains.heads import Moved, Step
from farebox.payments.rails import Sighting
from farebox.payments.records import Payment, unfinished
from farebox.payments.settings import FINAL, EvmSettings
from farebox.store.protocol import Store

FINAL_DEPTH: Final = 64
"""So deep, and twice as deep as it had to be to be credited, a payment is looked at no more ..."""
UNNAMED_DEPTH: Final = 256
"""... and so deep where it must be final, on a chain that does not say what is."""
GONE_AFTER: Final = 64
"""A payment that was undone, and has not come back in so many blocks, will not."""


class _Depth(Struct, frozen=True):
    """How deep blocks are, and which of them the chain calls final."""

    top: int
    finalized: int | None

    def of(self, height: int) -> int:
        return max(1, self.top - height + 1)

    def is_final(self, height: int, needed: int) -> bool:
        if self.finalized is not None and height <= self.finalized:
            return True
        if needed == FINAL:
            return self.finalized is None and self.of(height) >= UNNAMED_DEPTH
        return self.of(height) >= max(FINAL_DEPTH, 2 * needed)


class Tokens:
    """The tokens of one chain. Reads the blocks that `Heads` names, and says how each payment stands after them."""

    def __init__(self, store: Store, node: EvmNode, settings: EvmSettings) -> None:
        self._store = store
        self._node = node
        self._settings = settings
        self._codes = {token.contract.lower(): token.code for token in settings.tokens}

    async def check(self) -> None:
        """See that each contract is there and counts as the settings say. Raises WrongChain: nothing counts then.

        With one figure wrong the amounts asked and credited would be wrong by powers of ten.
        """
        for token in self._settings.tokens:
            told = await self._node.decimals(token.contract.lower())
            if told != token.decimals:
                raise WrongChain(
                    f"{self._settings.name}: the contract of {token.code} at {token.contract} says that it has {told} "
                    f"decimals, the configuration says {token.decimals}: correct `decimals` or `contract`"
                )

    async def look(self, step: Step, now_us: int) -> list[Sighting]:
        """Read what a step brings, and tell how every payment that is not final stands after it.

        Addresses are read after the blocks are known: a block that was there before an address was cannot pay to it.
        """
        recipients = await self._recipients()
        contracts = list(self._codes)
        if step.first is None:
            logs = await self._node.transfers_in(step.blocks, contracts, list(recipients.values()))
        else:
            logs = await self._node.transfers_between(step.first, step.top, contracts, list(recipients.values()))
        ours = [log for log in logs if self._counts(log, recipients)]
        rows = [row for row in await unfinished(self._store, self._settings.name) if row.asset != self._settings.coin]
        if not ours and not rows:
            return []
        depth = _Depth(step.top.height, await self._node.finalized())
        needed = {row.ident: row.needed for row in rows}
        made_at = await self._times(ours, step)
        ordinals = await self._ordinals(ours)
        told: dict[str, Sighting] = {}
        for log, ordinal in zip(ours, ordinals, strict=True):
            ident = f"{log.tx}:{ordinal}"
            told[ident] = Sighting(
                rail=self._settings.name,
                ident=ident,
                asset=self._codes[log.contract],
                address=recipients[log.topics[2]],
                units=int.from_bytes(log.data, "big"),
                confirmations=depth.of(log.height),
                final=depth.is_final(log.height, needed.get(ident, FINAL)),
                seen_us=min(made_at[log.block], now_us),
                tx=log.tx,
                block=log.block,
                height=log.height,
            )
        again = [self._again(row, step, depth) for row in rows if row.ident not in told]
        return [*told.values(), *(one for one in again if one is not None)]

    async def holdings(self, code: str, addresses: Sequence[str], block: str) -> list[int]:
        """Give what addresses hold of a token at a block, by the contract's own word."""
        held = [0] * len(addresses)
        for contract in (contract for contract, one in self._codes.items() if one == code):
            found = await self._node.token_balances(contract, addresses, block)
            held = [before + more for before, more in zip(held, found, strict=True)]
        return held

    async def _recipients(self) -> dict[str, str]:
        """Give every address that customers were given on any EVM chain, by the topic it stands in."""
        rows = await self._store.fetch("SELECT address FROM deposit_address WHERE family = 'evm' ORDER BY id")
        return {as_topic(str(address)): str(address) for (address,) in rows}

    def _counts(self, log: Log, recipients: Mapping[str, str]) -> bool:
        return (
            log.contract in self._codes
            and len(log.topics) == 3
            and log.topics[0] == TRANSFER
            and log.topics[2] in recipients
            and len(log.data) == 32
            and any(log.data)
        )

    async def _times(self, logs: Sequence[Log], step: Step) -> dict[str, int]:
        """Give when the blocks of these logs were made, by their hashes."""
        known = {block.hash: block for block in (*step.blocks, step.top)}
        heights = sorted({log.height for log in logs if log.block not in known})
        for block in await self._node.blocks(heights):
            if block is not None:
                known[block.hash] = block
        if any(log.block not in known for log in logs):
            raise Moved(f"{self._settings.name}: a block left the chain while its logs were read")
        return {block.hash: block.at_us for block in known.values()}

    async def _ordinals(self, logs: Sequence[Log]) -> list[int]:
        """Give the place of each log in its own transaction, which must have succeeded in that very block."""
        receipts = await self._node.receipts(sorted({log.tx for log in logs}))
        within = {
            tx: {log: place for place, log in enumerate(receipt.logs)} for tx, receipt in receipts.items() if receipt
        }
        places = []
        for log in logs:
            receipt = receipts[log.tx]
            if receipt is None or receipt.block != log.block:
                raise Moved(f"{self._settings.name}: transaction {log.tx} left its block while it was read")
            place = within[log.tx].get(log)
            if not receipt.succeeded or place is None:
                raise RailTrouble(f"{self._settings.name}: the receipt of {log.tx} does not have what its log tells")
            places.append(place)
        return places

    def _again(self, row: Payment, step: Step, depth: _Depth) -> Sighting | None:
        """Tell how a payment stands that none of the blocks just read holds; None where nothing can be said yet."""
        height, block, confirmations, final = row.height, row.block, 0, False
        if height is None or (height > step.top.height and not step.is_last):
            return None
        if block is not None and step.holds(height, block):
            confirmations, final = depth.of(height), depth.is_final(height, row.needed)
        elif block is not None:
            height, block = step.top.height, None  # from here on it is missed
        elif row.confirmations < 0 or not step.is_last:
            return None
        elif step.top.height - height >= GONE_AFTER:
            confirmations = -1
        return Sighting(
            rail=row.rail,
            ident=row.ident,
            asset=row.asset,
            address=row.address,
            units=int(row.units),
            confirmations=confirmations,
            final=final,
            seen_us=row.seen_at_us,
            tx=row.tx,
            block=block,
            height=height,
        )
