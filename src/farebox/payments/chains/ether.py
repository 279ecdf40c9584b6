"""Ether by balance: what an address holds at a block, as long as it has sent nothing, is all that ever came to it.

So ether counts by whatever road it came: sent by people, by contracts, left by one that destroyed itself, withdrawn by
a validator. Each rise of an address's total is a payment (payments/intervals.py). What an address has sent ends that
equation: from then on it is read at the last block before, as long as anything is still to be confirmed; afterwards it
is swept, and nothing that comes to it is credited by itself.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from msgspec import Struct

from farebox.clock import DAY_US, US_PER_S
from farebox.errors import RailTrouble
from farebox.payments.chains.branch import Branch
from farebox.payments.chains.evm import Block, EvmNode
from farebox.payments.incidents import opened, opened_or_added
from farebox.payments.intervals import interval, interval_ident, missing
from farebox.payments.rails import Sighting
from farebox.payments.records import Payment, placeholders, select_payments
from farebox.payments.settings import EvmSettings
from farebox.store.protocol import Statement, Store

LOST_BLOCKS: Final = 64
"""What the chain has not held for so many blocks is told as gone."""
FINAL_BLOCKS: Final = 256
"""Where a chain names no final block, one so deep is final."""
_OPEN_US: Final = DAY_US
"""How long after its quote has ended an address is still asked about with each block."""
_IDLE_US: Final = 3600 * US_PER_S
_USED_BLOCKS: Final = 100
"""Addresses that may be swept are asked about more often: nodes keep the states of about 128 blocks."""
_MOST_OPEN: Final = 2000
_MOST_IDLE: Final = 500
_MOST_PARTS: Final = 8
_PAGE: Final = 500
_OPEN: Final = (
    "SELECT id, address, account_id, swept_at, left_units FROM deposit_address WHERE rail = ? AND asset = ? "
    "AND swept_at IS NULL AND address IN (SELECT address FROM topup WHERE rail = ? AND asset = ? AND ends_at > ? "
    "UNION SELECT address FROM payment WHERE rail = ? AND asset = ? AND final = 0 AND state <> 'gone') "
    "ORDER BY looked_at LIMIT ?"
)
_IDLE: Final = (
    "SELECT id, address, account_id, swept_at, left_units FROM deposit_address WHERE rail = ? AND asset = ? "
    "AND looked_at <= ? AND (looked_at <= ? OR (used_at IS NOT NULL AND swept_at IS NULL)) ORDER BY looked_at LIMIT ?"
)
_SWEPT: Final = (
    "UPDATE deposit_address SET swept_at = ?, used_at = coalesce(used_at, ?), left_units = ? "
    "WHERE id = ? AND swept_at IS NULL"
)
_UNCREDITED: Final = ("seen", "confirming")


class _Address(Struct):
    """An address, and what a look finds out about it."""

    id: int
    address: str
    account_id: int
    swept_at_us: int | None
    left_units: str | None
    total: int | None = 0
    """All that ever came to it, in wei, by the block `top`; None where that is not to be known any more."""
    top: int = 0
    sent_at: int | None = None
    """The first block by which it has sent something."""
    left: int = 0
    """What it held after that."""


class _Sent(Struct):
    """The first block known by which an address has sent something, and what it held then."""

    height: int
    block: str
    left: int


class _Find(Struct):
    """A payment whose first block is to be found."""

    address: _Address
    start: int
    end: int
    row: Payment | None
    height: int | None = None
    block: str = ""
    seen_us: int = 0


class EtherReader:
    """Sees ether come to the addresses that were given out for it; those of tokens hold gas, which is never credited.

    It writes of `deposit_address` what it knows alone: when it has looked, and that an address was swept.
    """

    def __init__(self, store: Store, node: EvmNode, settings: EvmSettings) -> None:
        self._store = store
        self._node = node
        self._rail = settings.name
        self._coin = settings.coin
        self._block_us = round(settings.block_s * US_PER_S)
        self._deepest = max((1, *(depth.blocks for depth in settings.confirmations)))
        self._txs: dict[tuple[str, str], str | None] = {}
        """Transactions that were found for payments not final yet, by payment and block."""
        self._sent: dict[int, _Sent] = {}
        """Of addresses that have sent, and are not swept yet."""

    async def look(self, tip: Block, hashes: Mapping[int, str], now_us: int) -> list[Sighting]:
        """See what came, as of the block `tip`, the newest of the node's branch.

        `hashes` are what is known of that branch, by height; others are asked of the node.
        Raises RailTrouble; nothing is concluded then, and the next look asks again.
        """
        addresses = await self._due(now_us)
        if not addresses:
            return []
        branch = await self._branch(tip, hashes)
        await self._read(addresses, branch)
        rows = await self._rows([one.address for one in addresses])
        sightings: list[Sighting] = []
        wanted: list[_Find] = []
        for one in addresses:
            if one.swept_at_us is None:
                lost, found = self._judge(one, rows.get(one.address, []), now_us)
                sightings += lost
                wanted += found
        placed = await self._place(wanted, branch)
        sightings += [await self._sighting(find, branch) for find in placed if find.height is not None]
        await branch.check()
        self._txs = {key: tx for key, tx in self._txs.items() if key in {(_ident(one), one.block) for one in placed}}
        fresh = {find.address.id for find in placed if find.row is None or find.row.state == "gone"}
        proved = {f"{self._rail}:{one.ident}" for one in sightings if one.final}
        await self._write(addresses, rows, branch, fresh, proved, now_us)
        hopeless = [row for one in addresses for row in _unproved(one, rows.get(one.address, []), branch, proved)]
        return sightings + [self._told(row, -1) for row in hopeless if row.state in _UNCREDITED]

    # What there is to look at

    async def _due(self, now_us: int) -> list[_Address]:
        """Give those where something is under way, and in turn all others."""
        own = (self._rail, self._coin)
        open_ones = await self._store.fetch(_OPEN, (*own, *own, now_us - _OPEN_US, *own, _MOST_OPEN))
        used = min(_IDLE_US, _USED_BLOCKS * self._block_us)
        idle = await self._store.fetch(_IDLE, (*own, now_us - used, now_us - _IDLE_US, _MOST_IDLE))
        return [_Address(*row) for row in {row[0]: row for row in [*idle, *open_ones]}.values()]

    async def _rows(self, addresses: Sequence[str]) -> dict[str, list[Payment]]:
        rows: dict[str, list[Payment]] = {}
        for begin in range(0, len(addresses), _PAGE):
            some = addresses[begin : begin + _PAGE]
            where = f"WHERE rail = ? AND asset = ? AND address IN ({placeholders(some)}) ORDER BY seen_at, id"
            for row in await select_payments(self._store, where, (self._rail, self._coin, *some)):
                rows.setdefault(row.address, []).append(row)
        return rows

    async def _branch(self, tip: Block, hashes: Mapping[int, str]) -> Branch:
        finalized = await self._node.finalized()
        deep = tip.height - max(FINAL_BLOCKS, self._deepest)
        final = deep + 1 if finalized is None else min(finalized, tip.height)
        return Branch(self._node, tip, hashes, final, max(0, deep))

    async def _read(self, addresses: Sequence[_Address], branch: Branch) -> None:
        """Read totals at the tip; of those that have sent, at the last block before."""
        names = [one.address for one in addresses]
        totals = await self._node.balances(names, branch.tip.hash)
        nonces = await self._node.nonces(names, branch.tip.hash)
        for one, total in zip(addresses, totals, strict=True):
            one.total, one.top = total, branch.tip.height
        sent = [one for one, nonce in zip(addresses, nonces, strict=True) if nonce and one.swept_at_us is None]
        await self._read_sent(sent, branch)

    async def _read_sent(self, sent: Sequence[_Address], branch: Branch) -> None:
        """Find since when addresses have sent something, and what they held at the last block before, and after."""
        asked = [(one.address, 1, branch.tip.height) for one in sent]
        heights = await branch.first(asked, self._node.nonces_at)
        places = [(one.address, height) for one, height in zip(sent, heights, strict=True)]
        lefts = await branch.at(places, self._node.balances_at)
        known = {one.id: self._sent[one.id] for one in sent if one.id in self._sent}
        hashes = await branch.hashes([*heights, *(earlier.height for earlier in known.values())])
        for one, height, left in zip(sent, heights, lefts, strict=True):
            found = _Sent(height, hashes[height], left or 0)
            earlier = known.get(one.id, found)
            if earlier.height < height and hashes[earlier.height] == earlier.block:
                found = earlier  # the node shows that no more: it has dropped the states of then
            self._sent[one.id] = found
            one.sent_at, one.left, one.top, one.total = found.height, found.left, found.height - 1, None
        known_before = [one for one in sent if one.top >= branch.low]
        places = [(one.address, one.top) for one in known_before]
        for one, then in zip(known_before, await branch.at(places, self._node.balances_at), strict=True):
            one.total = then

    # What to say of it

    def _judge(self, one: _Address, rows: Sequence[Payment], now_us: int) -> tuple[list[Sighting], list[_Find]]:
        """Tell what its total has lost, and give what it holds: payments that are known, and what has come on top."""
        standing = [row for row in rows if row.state != "gone"]
        if one.total is None:  # only what was found before it has sent can still be followed
            return [], [self._find(one, row) for row in standing if not row.final and row.block]
        lost: list[Sighting] = []
        found: list[_Find] = []
        for row in standing:
            find = self._find(one, row)
            if find.end > one.total:
                lost += [] if row.final or one.sent_at is not None else [self._lost(row, find, now_us)]
            elif not row.final:
                found.append(find)
        given_up = {sighting.ident for sighting in lost if sighting.confirmations < 0}
        kept = [_span(row) for row in standing if row.ident not in given_up]
        gone = sorted((row for row in rows if row.state == "gone"), key=lambda row: -row.epoch)
        for start, end in missing(one.total, kept, [_span(row) for row in gone]):
            found.append(_Find(one, start, end, next((row for row in gone if _span(row) == (start, end)), None)))
        return lost, found

    def _lost(self, row: Payment, find: _Find, now_us: int) -> Sighting:
        """Tell of a payment that the total does not reach: it is in no block, and after a while it is gone.

        One that was never credited is gone at once when part of it has come: then the ether came in other portions.
        """
        assert find.address.total is not None
        since = row.lost_at_us or (row.changed_at_us if row.confirmations == 0 else now_us)
        in_parts = row.state in _UNCREDITED and find.address.total > find.start
        gone = in_parts or now_us - since >= LOST_BLOCKS * self._block_us
        return self._told(row, -1 if gone else 0)

    def _told(self, row: Payment, confirmations: int) -> Sighting:
        """Tell of a payment that is in no block."""
        return Sighting(
            rail=self._rail,
            ident=row.ident,
            asset=self._coin,
            address=row.address,
            units=int(row.units),
            confirmations=confirmations,
            seen_us=row.seen_at_us,
        )

    def _find(self, one: _Address, row: Payment) -> _Find:
        start, end = _span(row)
        return _Find(one, start, end, row, row.height if row.block else None, row.block or "")

    async def _place(self, wanted: Sequence[_Find], branch: Branch) -> list[_Find]:
        """Find the first block of each payment: the one it was in before if that still holds, else by halving."""
        remembered = [one for one in wanted if one.height is not None and one.height <= one.address.top]
        hashes = await branch.hashes([one.height or 0 for one in remembered])
        sound = [one for one in remembered if hashes[one.height or 0] == one.block]
        contradicted = await self._contradicted(sound, branch)
        settled = {id(one) for one in sound} - contradicted
        known = [one for one in wanted if one.row is not None]
        fresh = await self._parted([one for one in wanted if one.row is None], branch)
        searched = [one for one in known if id(one) not in settled]
        for one in searched:
            one.height = None
        searched = [one for one in searched + fresh if one.height is None and one.address.total is not None]
        asked = [(one.address.address, one.end, one.address.top) for one in searched]
        for one, height in zip(searched, await branch.first(asked, self._node.balances_at), strict=True):
            one.height = height
        hashes = await branch.hashes([one.height or 0 for one in searched + fresh])
        for one in searched + fresh:
            one.block = hashes[one.height or 0]
        for one, block in zip(fresh, await self._node.blocks([one.height or 0 for one in fresh]), strict=True):
            if block is None or block.hash != one.block:
                raise RailTrouble(f"the chain moved at block {one.height} while it was read: the next look will do")
            one.seen_us = block.at_us
        return known + fresh

    async def _parted(self, finds: Sequence[_Find], branch: Branch) -> list[_Find]:
        """Part what has come on top by the blocks that it came in, each a payment with a moment of its own.

        So what came long ago is never taken for part of what somebody pays now. What came in more blocks than anybody
        pays in between two looks is one payment at last.
        """
        parted: list[_Find] = []
        left = list(finds)
        for _ in range(_MOST_PARTS):
            asked = [(one.address.address, one.start + 1, one.address.top) for one in left]
            heights = await branch.first(asked, self._node.balances_at)
            places = [(one.address.address, height) for one, height in zip(left, heights, strict=True)]
            rest: list[_Find] = []
            for one, height, total in zip(left, heights, await branch.at(places, self._node.balances_at), strict=True):
                end = one.end if total is None else min(total, one.end)
                if end <= one.start:
                    raise RailTrouble(f"the node gives two balances of {one.address.address} in block {height}")
                parted.append(_Find(one.address, one.start, end, None, height))
                if end < one.end:
                    rest.append(_Find(one.address, end, one.end, None))
            left = rest
        return parted + left

    async def _contradicted(self, finds: Sequence[_Find], branch: Branch) -> set[int]:
        """Prove once more what is about to be credited, or to be looked at no more, at a block as deep as that needs.

        A node that has dropped the state of that block is asked for a newer one; the total at the tip is known anyhow.
        """
        asked = {id(one): (one.address.address, self._proof(one, branch)) for one in finds}
        open_ones = {id(one): one for one in finds if asked[id(one)][1] is not None}
        wrong: set[int] = set()
        for newer in (0, max(0, branch.tip.height - LOST_BLOCKS + 1)):
            keys = list(open_ones)
            places = [(asked[key][0], min(max(asked[key][1] or 0, newer), open_ones[key].address.top)) for key in keys]
            totals = await branch.at(places, self._node.balances_at)
            for key, held in zip(keys, totals, strict=True):
                if held is not None:
                    find = open_ones.pop(key)
                    wrong |= {key} if held < find.end else set()
        return wrong

    def _proof(self, find: _Find, branch: Branch) -> int | None:
        """Give the block at which a payment has to be proved now, if any: the newest that is as deep as it needs."""
        assert find.row is not None
        assert find.height is not None
        needed, deep = find.row.needed, branch.tip.height - find.height + 1
        if find.height <= branch.final:
            return min(branch.final, find.address.top)
        if find.row.state in _UNCREDITED and 0 < needed <= deep:
            return min(branch.tip.height - needed + 1, find.address.top)
        return None

    async def _sighting(self, find: _Find, branch: Branch) -> Sighting:
        assert find.height is not None
        row = find.row
        tx = row.tx if row is not None and row.tx and row.block == find.block else await self._tx(find)
        return Sighting(
            rail=self._rail,
            ident=_ident(find),
            asset=self._coin,
            address=find.address.address,
            units=find.end - find.start,
            confirmations=branch.tip.height - find.height + 1,
            final=find.height <= branch.final,
            seen_us=row.seen_at_us if row else find.seen_us,
            tx=tx,
            block=find.block,
            height=find.height,
        )

    async def _tx(self, find: _Find) -> str | None:
        """Find the transaction that has paid, for receipts. None: a contract sent it, or the node does not say."""
        key = (_ident(find), find.block)
        if key not in self._txs:
            try:
                spends = [
                    one for one in await self._node.spent_in(find.block) if one.to == find.address.address.lower()
                ]
                receipts = await self._node.receipts([one.tx for one in spends]) if spends else {}
            except RailTrouble:
                return None  # money does not wait for that; the next look asks again
            paid = [one for one in spends if (receipt := receipts[one.tx]) is not None and receipt.succeeded]
            exact = [one for one in paid if one.wei == find.end - find.start]
            self._txs[key] = next((one.tx for one in exact or paid), None)
        return self._txs[key]

    # What it writes down

    async def _write(
        self,
        addresses: Sequence[_Address],
        rows: Mapping[str, Sequence[Payment]],
        branch: Branch,
        fresh: set[int],
        proved: set[str],
        now_us: int,
    ) -> None:
        """Write down that addresses were looked at, but those whose new payments are yet to be taken in; and sweeps."""
        looked = [one.id for one in addresses if one.id not in fresh]
        statements: list[Statement] = []
        for begin in range(0, len(looked), _PAGE):
            some = looked[begin : begin + _PAGE]
            mark = f"UPDATE deposit_address SET looked_at = ? WHERE id IN ({placeholders(some)})"  # noqa: S608  only ?
            statements.append((mark, (now_us, *some)))
        for one in addresses:
            if one.swept_at_us is not None:
                statements += self._stray(one, now_us)
            elif one.sent_at is not None and one.id not in fresh:
                statements += self._sweep(one, rows.get(one.address, []), branch, proved, now_us)
        if statements:
            await self._store.write(statements)

    def _sweep(
        self, one: _Address, rows: Sequence[Payment], branch: Branch, proved: set[str], now_us: int
    ) -> list[Statement]:
        """Say that an address is swept, once that is as deep as anything that came before it, and that was taken in.

        What was seen there and never can be proved, since it left again too soon, is for somebody to look at.
        """
        statements: list[Statement] = [
            ("UPDATE deposit_address SET used_at = coalesce(used_at, ?) WHERE id = ?", (now_us, one.id))
        ]
        words = f"{one.address} has sent something in block {one.sent_at}, before what had come to it was final"
        hopeless = _unproved(one, rows, branch, proved)
        for row in hopeless:
            why = f"{words}: a payment of {row.units} wei cannot be proved any more. Look at it, and book it by hand"
            statements.append(opened("swept_early", row.id, why, now_us, one.account_id))
        is_deep = one.sent_at is not None and one.sent_at <= branch.final
        if not is_deep or any(row.id in proved or (row in hopeless and row.state in _UNCREDITED) for row in rows):
            return statements  # first they have to be taken in as final, or as gone
        self._sent.pop(one.id, None)
        statements.append((_SWEPT, (now_us, now_us, str(one.left), one.id)))
        if one.total is None and not rows:
            why = f"{words}, and before it was seen. Look at what it has sent, and book it by hand"
            statements.append(opened("swept_early", f"{self._rail}:{one.address}", why, now_us, one.account_id))
        return statements

    def _stray(self, one: _Address, now_us: int) -> list[Statement]:
        """Tell of what comes to an address that was swept; what it sends only lowers what it is compared with."""
        assert one.total is not None
        left = int(one.left_units or 0)
        if one.total == left:
            return []
        guard = "FROM deposit_address WHERE id = ? AND coalesce(left_units, '0') = ?", (one.id, one.left_units or "0")
        held: Statement = (
            "UPDATE deposit_address SET left_units = ? WHERE id = ? AND coalesce(left_units, '0') = ?",
            (str(one.total), *guard[1]),
        )
        if one.total < left:
            return [held]
        words = (
            f"{one.total - left} wei came to {one.address} after it had been swept: that is not credited by itself. "
            "Look at it, and book it by hand"
        )
        ref = f"{self._rail}:{one.address}"
        return [
            ("UPDATE deposit_address SET looked_at = looked_at WHERE id = ?", (one.id,)),  # one process after the other
            opened_or_added("stray_payment", ref, words, now_us, one.account_id, guard),
            held,
        ]


def _unproved(one: _Address, rows: Sequence[Payment], branch: Branch, proved: set[str]) -> list[Payment]:
    """Give the payments to an address that left it again before they could be proved, and now never can be."""
    if one.sent_at is None or one.sent_at > branch.final:
        return []
    return [row for row in rows if row.state != "gone" and not row.final and row.id not in proved]


def _span(row: Payment) -> tuple[int, int]:
    read = interval(row.ident)
    assert read is not None, row.id
    return read[1], read[2]


def _ident(find: _Find) -> str:
    return find.row.ident if find.row else interval_ident(find.address.address, find.start, find.end)
