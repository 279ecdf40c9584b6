"""The watcher of Bitcoin: tells what came to our addresses, and how each payment stands on the branch that counts.

Every payment that is not final is asked for at each look: lists leave out what was replaced, and go on showing what was
dropped. All of a look is read at one newest block, which node and wallet both know; if it changes, it is read again.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any, Final

import msgspec

from farebox.clock import US_PER_S
from farebox.errors import RailTrouble
from farebox.payments.addresses import Addresses
from farebox.payments.chains.bitcoin_node import NOT_FOUND, WALLET_ERROR, BitcoinNode, Header, read, sound
from farebox.payments.chains.rpc import RpcError
from farebox.payments.deposits import Deposits
from farebox.payments.keys import ExtendedKey
from farebox.payments.rails import Sighting, Tip
from farebox.payments.reconcile import Holding
from farebox.payments.records import placeholders, unfinished
from farebox.payments.settings import BitcoinSettings
from farebox.store.protocol import Store

AHEAD: Final = 10_000
"""How many addresses are watched beyond the last one given out; with a tenth of them left, so many again."""
FINAL_DEPTH: Final = 100
"""Confirmations from which a payment is looked at no more. Bitcoin itself lets new coins be spent at that depth; the
longest branch ever undone had 53 blocks, in 2010."""
_NAME: Final = "bitcoin"
_ASSET: Final = "BTC"
_COIN: Final = 10**8
_TRIES: Final = 10
_AGAIN_S: Final = 0.05
_PAUSE_S: Final = 10.0
_PAUSE_OF_TESTS_S: Final = 1.0
_IMPORTING: Final = "importing:"
"""Before it in the cursor: the wallet is being told of addresses. After it: since when, in seconds."""
_COMES_IN: Final = frozenset({"receive", "generate"})
"""What the wallet calls payments, and coins that were mined and may be spent."""
_PAGE: Final = 25
"""Transactions asked for at once: each comes with all of its bytes and outputs, 2 MB at worst, of 64 that are read."""
_EVERYTHING: Final = (True, False)
"""Also what is only watched; not what was in blocks that count no more, for every payment is asked for anyway."""
_SET_CURSOR: Final = (
    "INSERT INTO watcher (name, cursor) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET cursor = excluded.cursor"
)
_MOVE_CURSOR: Final = f"{_SET_CURSOR} WHERE watcher.cursor = ?"
"""Only from where this look began: another process may have had old blocks read since, and begun anew."""


class _Output(msgspec.Struct, frozen=True):
    """An output of ours. `ident` is "txid:vout", by which a payment is known for ever."""

    txid: str
    vout: int
    address: str
    units: int

    @property
    def ident(self) -> str:
        return f"{self.txid}:{self.vout}"


class _LastProcessed(msgspec.Struct, frozen=True):
    hash: str


class _Detail(msgspec.Struct, frozen=True):
    """What the wallet says of an output, with its transaction."""

    category: str
    amount: Any
    address: str = ""


class _Tx(msgspec.Struct, frozen=True):
    """What the wallet says of a transaction."""

    confirmations: int
    time: int
    timereceived: int
    lastprocessedblock: _LastProcessed
    blockhash: str | None = None
    walletconflicts: tuple[str, ...] = ()
    details: tuple[_Detail, ...] = ()

    @property
    def seen_s(self) -> int:
        """When it was first seen. `time` is its block's where it was found in an old block only."""
        return min(self.time, self.timereceived)

    def pays(self, output: _Output) -> bool:
        """Whether it pays as much to the same address."""
        there = (one for one in self.details if one.category in _COMES_IN and one.address == output.address)
        return any(satoshis(one.amount) >= output.units for one in there)


class _Entry(msgspec.Struct, frozen=True):
    """What the wallet lists of an output."""

    category: str
    txid: str
    vout: int
    amount: Any
    address: str = ""
    parent_descs: tuple[str, ...] = ()
    """Descriptors that its address comes from."""


class _Listing(msgspec.Struct, frozen=True):
    """What came since the cursor, and where the next cursor is."""

    transactions: tuple[_Entry, ...]
    lastblock: str


class _View(msgspec.Struct, frozen=True):
    """What node and wallet say of transactions, at one newest block."""

    txs: Mapping[str, _Tx | None]
    """None: the wallet does not know it."""
    headers: Mapping[str, Header]
    waiting: frozenset[str]
    """Transactions in the mempool."""


class BitcoinWatcher:
    """See Watcher; `holdings` and `addresses` are for the reconciliation (ChainView)."""

    def __init__(
        self,
        store: Store,
        deposits: Deposits,
        settings: BitcoinSettings,
        key: ExtendedKey,
        addresses: Addresses,
        *,
        ahead: int = AHEAD,
    ) -> None:
        """`ahead`: see AHEAD. Raises ValueError for an `rpc` that is no http(s) URL."""
        self.name = _NAME
        self.pause_s = _PAUSE_OF_TESTS_S if settings.network == "regtest" else _PAUSE_S
        self.node = BitcoinNode(settings, key)
        self._store = store
        self._deposits = deposits
        self._key = key
        self._addresses = addresses
        self._ahead = ahead
        self._descriptor = ""
        self._end = -1
        self._scanned: dict[str, int] | None = None
        most = max(depth.blocks for depth in settings.confirmations)
        self._relisted = 2 * most
        self._final = max(FINAL_DEPTH, 4 * most)

    async def look(self, now_us: int) -> Tip:
        """Look once, see Watcher. Raises RailTrouble; WrongChain where the node is on another chain than configured."""
        try:
            return await self._look(now_us)
        except RailTrouble:
            self._end = -1  # whatever it was, the wallet may not be there any more
            raise

    async def close(self) -> None:
        await self.node.close()

    async def _look(self, now_us: int) -> Tip:
        cursor, highest = await self._stand()
        tip = await self.node.tip(highest, now_us)
        cursor = await self._watch(cursor, now_us)
        listing = await self._list(cursor)
        known = [_output_of(one.ident, one.address, one.units) for one in await unfinished(self._store, self.name)]
        outputs = {one.ident: one for one in (*await self._ours(listing), *known)}
        idents = {one.ident for one in known}
        sightings = await self._see(list(outputs.values()), now_us)
        # What was gone before anybody saw it is no news.
        news = [one for one in sightings if one.confirmations >= 0 or one.ident in idents]
        await self._deposits.apply(news, now_us)
        await self._store.write([(_MOVE_CURSOR, (self.name, listing.lastblock, cursor))])
        return Tip(tip.height, tip.hash, tip.time * US_PER_S)

    async def _stand(self) -> tuple[str, int | None]:
        """Give where the last look ended: the cursor, and the height of the newest block then."""
        rows = await self._store.fetch("SELECT cursor, height FROM watcher WHERE name = ?", (self.name,))
        return (str(rows[0][0]), rows[0][1]) if rows else ("", None)

    async def _watch(self, cursor: str, now_us: int) -> str:
        """See that the wallet watches all addresses there are, and many to come. Gives the cursor to go on from."""
        key_id = await self._addresses.find_key(self._key)
        issued = (await self._addresses.gap(key_id)).highest_issued if key_id is not None else None
        last = -1 if issued is None else issued
        wanted = last + self._ahead // 10
        is_cut_short = cursor.startswith(_IMPORTING)
        if self._end >= wanted and not is_cut_short:
            return cursor
        await self.node.open_wallet()
        self._descriptor, end = await self.node.watched()
        if end < wanted or is_cut_short:
            since_s = now_us // US_PER_S
            if is_cut_short:  # its blocks may not have been read to the end
                since_s = min(since_s, int(cursor.removeprefix(_IMPORTING)))
            since_s = min(since_s, await self._issued_since_s(key_id, end, since_s))
            await self._store.write([(_SET_CURSOR, (self.name, f"{_IMPORTING}{since_s}"))])
            end = max(end, last + self._ahead)
            await self.node.watch(self._descriptor, end, since_s)
            cursor = ""  # what lay there already has come in behind it
            await self._store.write([(_SET_CURSOR, (self.name, cursor))])
        self._end = end
        return cursor

    async def _issued_since_s(self, key_id: int | None, end: int, now_s: int) -> int:
        """Give when the first address behind a position was given out."""
        rows = await self._store.fetch(
            "SELECT min(created_at) FROM deposit_address WHERE key_id = ? AND position > ?", (key_id or 0, end)
        )
        return now_s if rows[0][0] is None else int(rows[0][0]) // US_PER_S

    async def _list(self, cursor: str) -> _Listing:
        """Give what came since the cursor; all there is where the node does not know that block."""
        try:
            told = await self.node.wallet.ask("listsinceblock", cursor, self._relisted, *_EVERYTHING)
        except RpcError as error:
            if error.code != NOT_FOUND or not cursor:
                raise
            told = await self.node.wallet.ask("listsinceblock", "", self._relisted, *_EVERYTHING)
        return read(told, _Listing)

    async def _ours(self, listing: _Listing) -> list[_Output]:
        """Give what came to addresses that were given out below whichever key, or that are below ours."""
        came = [one for one in listing.transactions if one.category in _COMES_IN and one.address]
        given_out = await self._given_out(sorted({one.address for one in came}))
        return [
            _Output(one.txid, one.vout, one.address, satoshis(one.amount))
            for one in came
            if one.address in given_out or self._descriptor in one.parent_descs
        ]

    async def _given_out(self, addresses: Sequence[str]) -> set[str]:
        known: set[str] = set()
        for begin in range(0, len(addresses), _PAGE):
            some = addresses[begin : begin + _PAGE]
            where = f"family = 'bitcoin' AND address IN ({placeholders(some)})"
            sql = f"SELECT address FROM deposit_address WHERE {where}"  # noqa: S608  as many ? as addresses
            known |= {str(address) for (address,) in await self._store.fetch(sql, tuple(some))}
        return known

    # How payments stand

    async def _see(self, outputs: Sequence[_Output], now_us: int) -> list[Sighting]:
        """Tell how some outputs stand, all at the same newest block. Raises RailTrouble where that cannot be had."""
        for turn in range(_TRIES):
            if turn:
                await asyncio.sleep(_AGAIN_S)
            view = await self._view(sorted({one.txid for one in outputs}))
            if view is None:
                continue
            sightings = [self._sighting(one, view, now_us) for one in outputs]
            if await self._are_gone([one for one in sightings if one.confirmations < 0]):
                return sightings
        raise RailTrouble(f"the node at {self.node.rpc.place} and its wallet do not agree on what is in the chain")

    async def _view(self, txids: Sequence[str]) -> _View | None:
        """Read how transactions stand; None where node and wallet were not at the same block all the time.

        The mempool is asked before the wallet: what has left it for a block, the wallet knows to be in that block once
        it has come as far as the block that was the newest after the mempool was asked.
        """
        asked = [("getmempoolentry", [txid]) for txid in txids]
        *entries, best = await self.node.rpc.ask_all([*asked, ("getbestblockhash", [])])
        txs = await self._transactions(txids)
        if any(tx is not None and tx.lastprocessedblock.hash != best for tx in txs.values()):
            return None
        headers = await self._headers({tx.blockhash for tx in txs.values() if tx and tx.blockhash})
        if any(header.confirmations < 1 for header in headers.values()):
            return None
        if await self.node.rpc.ask("getbestblockhash") != best:
            return None
        conflicting = {txid for tx in txs.values() if tx for txid in tx.walletconflicts} - txs.keys()
        others = await self._transactions(sorted(conflicting))
        waiting = (txid for txid, entry in zip(txids, entries, strict=True) if _is_there(entry))
        return _View({**txs, **others}, headers, frozenset(waiting))

    def _sighting(self, output: _Output, view: _View, now_us: int) -> Sighting:
        tx = view.txs[output.txid]
        header = view.headers.get(tx.blockhash or "") if tx and tx.confirmations > 0 else None
        if header is not None:
            confirmations = header.confirmations
        else:
            confirmations = 0 if tx and tx.confirmations == 0 and output.txid in view.waiting else -1
        first_s = _first_seen_s(output, tx, view.txs)
        return Sighting(
            rail=self.name,
            ident=output.ident,
            asset=_ASSET,
            address=output.address,
            units=output.units,
            confirmations=confirmations,
            final=confirmations >= self._final or (tx is not None and tx.confirmations <= -self._final),
            seen_us=min(now_us, first_s * US_PER_S) if first_s else now_us,
            tx=output.txid,
            block=header.hash if header else None,
            height=header.height if header else None,
        )

    async def _transactions(self, txids: Sequence[str]) -> dict[str, _Tx | None]:
        """Give what the wallet knows of transactions."""
        known: dict[str, _Tx | None] = {}
        for begin in range(0, len(txids), _PAGE):
            some = txids[begin : begin + _PAGE]
            answers = await self.node.wallet.ask_all([("gettransaction", [txid, True]) for txid in some])
            for txid, answer in zip(some, answers, strict=True):
                known[txid] = read(answer, _Tx) if _is_there(answer) else None
        return known

    async def _headers(self, blocks: Iterable[str]) -> dict[str, Header]:
        asked = sorted(blocks)
        answers = await self.node.rpc.ask_all([("getblockheader", [block]) for block in asked])
        return {block: read(answer, Header) for block, answer in zip(asked, answers, strict=True)}

    async def _are_gone(self, sightings: Sequence[Sighting]) -> bool:
        """Ask the node itself whether what its wallet calls gone is nowhere indeed: money is taken back for that."""
        calls = [("gettxout", [*_point(one.ident), True]) for one in sightings]
        return all(sound(answer) is None for answer in await self.node.rpc.ask_all(calls))

    # For the reconciliation

    async def addresses(self, asset: str) -> list[str]:  # noqa: ARG002  there is one
        """Give all addresses that were ever given out. What was scanned before is forgotten."""
        self._scanned = None
        return [one.address for one in await self._addresses.all_of("bitcoin")]

    async def holdings(self, asset: str, addresses: Sequence[str]) -> dict[str, Holding]:  # noqa: ARG002
        """Give what came to addresses as deep as is final: what lies there; where the wallet knows of more, that.

        What lies there is read from all coins there are, without the wallet, for all addresses at once: minutes.
        """
        if self._scanned is None:
            every = [one.address for one in await self._addresses.all_of("bitcoin")]
            self._scanned = await self.scan(every, self._final)
        received = await self.received(addresses, self._final)
        return {one: Holding(max(self._scanned.get(one, 0), received[one]), has_sent=False) for one in addresses}

    async def scan(self, addresses: Sequence[str], depth: int = 1) -> dict[str, int]:
        """Give the satoshis that lie unspent at addresses with so many confirmations, read without the wallet."""
        units = dict.fromkeys(addresses, 0)
        if not addresses:
            return units
        descriptors = {f"addr({address})": address for address in addresses}
        told = await self.node.slow.ask("scantxoutset", "start", list(descriptors))
        if not told or not told.get("success"):
            raise RailTrouble(f"the node at {self.node.rpc.place} has not scanned its coins to the end")
        for coin in told["unspents"]:
            if told["height"] - coin["height"] + 1 >= depth:
                units[descriptors[coin["desc"].partition("#")[0]]] += satoshis(coin["amount"])
        return units

    async def received(self, addresses: Sequence[str], depth: int = 1) -> dict[str, int]:
        """Give the satoshis that ever came to addresses with so many confirmations, as the wallet says.

        It knows of nothing at addresses of an earlier key, if it was made anew since.
        """
        calls = [("getreceivedbyaddress", [address, depth]) for address in addresses]
        answers = await self.node.wallet.ask_all(calls)
        return {
            one: 0 if _is_foreign(answer) else satoshis(sound(answer))
            for one, answer in zip(addresses, answers, strict=True)
        }


def satoshis(amount: Any) -> int:
    """Read an amount of coins, exactly. Raises RailTrouble for what is none."""
    units = Decimal(amount) * _COIN if isinstance(amount, int | Decimal) else None
    if units is None or units != units.to_integral_value():
        raise RailTrouble(f"a node says {amount!r} where an amount of bitcoin is due")
    return int(units)


def _first_seen_s(output: _Output, tx: _Tx | None, known: Mapping[str, _Tx | None]) -> int:
    """Give when a payment was first seen, or the first that it took the place of; 0: nobody knows.

    That must have been as much: who replaces a little by more has had no more than a little on its way.
    """
    if tx is None:
        return 0
    others = (other for txid in tx.walletconflicts if (other := known.get(txid)) is not None)
    return min(one.seen_s for one in (tx, *(other for other in others if other.pays(output))))


def _output_of(ident: str, address: str, units: str) -> _Output:
    return _Output(*_point(ident), address, int(units))


def _point(ident: str) -> tuple[str, int]:
    txid, _, vout = ident.partition(":")
    return txid, int(vout)


def _is_there(answer: Any) -> bool:
    """Whether there is what was asked for. Raises what is another no than that."""
    if isinstance(answer, RpcError):
        if answer.code != NOT_FOUND:
            raise answer
        return False
    return True


def _is_foreign(answer: Any) -> bool:
    """Whether the wallet says that an address is none of its own."""
    return isinstance(answer, RpcError) and answer.code == WALLET_ERROR and "not found in wallet" in answer.words
