"""Sightings into rows: what watchers see of payments, and whose each of them is. No money moves here."""

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from farebox.clock import US_PER_S
from farebox.payments.incidents import opened
from farebox.payments.intervals import overlaps
from farebox.payments.rails import Asset, Rail, Rate, Sighting
from farebox.payments.records import (
    PAYMENT_COLUMNS,
    Payment,
    PaymentState,
    Pricing,
    Topup,
    payments_by_ids,
    placeholders,
    select_payments,
    select_topups,
)
from farebox.payments.settings import FINAL
from farebox.store.protocol import Statement, Store

QUOTE_GRACE_US: Final = 5 * 60 * US_PER_S
"""A payment seen so soon after its quote has ended still gets the quote's rate: clocks differ, and wallets are slow."""
_COINS: Final = {"BTC": 8, "BTC-LN": 8, "ETH": 18}
"""Decimals of coins that have the same wherever they are. A token's are its chain's own: 6 here, 18 there."""
_SEE: Final = (
    "UPDATE payment SET confirmations = ?, tx = coalesce(?, tx), block = ?, height = ?, changed_at = ?, final = ?, "
    "lost_at = CASE WHEN ? > 0 THEN NULL WHEN state IN ('crediting', 'credited') THEN coalesce(lost_at, ?) END, "
    "state = CASE WHEN state IN ('seen', 'confirming', 'gone') THEN ? ELSE state END WHERE id = ?"
)
_UNITS: Final = "UPDATE payment SET units = ? WHERE id = ? AND epoch = 0"
"""The same transaction, mined again in another block, may move another amount: a contract decides as it runs."""
_USED: Final = "UPDATE deposit_address SET used_at = coalesce(used_at, ?) WHERE address = ?"
_UNMOVED: Final = (
    " AND (SELECT count(*) FROM payment p WHERE p.rail = ? AND p.address = ? AND p.asset = ?) = ?"
    " AND (SELECT coalesce(max(p.changed_at), 0) FROM payment p WHERE p.rail = ? AND p.address = ? AND p.asset = ?) = ?"
)
"""Nobody else has told of payments to that address since they were read."""


class Intake:
    """Writes sightings down. `rails` by name."""

    def __init__(self, store: Store, rails: Mapping[str, Rail]) -> None:
        self._store = store
        self._rails = rails

    async def take_in(self, sightings: Sequence[Sighting], now_us: int) -> set[str]:
        """Write down what is new in some sightings; answers the top-ups that it is about. Raises StoreUnavailable."""
        known = {one.id: one for one in await payments_by_ids(self._store, [_id(one) for one in sightings])}
        statements: list[Statement] = []
        contested: list[Sighting] = []
        moved: list[str] = []
        last = {_id(one): one for one in sightings}  # of what is told twice, the later word counts
        for sighting in sorted(last.values(), key=lambda one: (one.address, one.ident)):  # all lock rows in one order
            row = known.get(_id(sighting))
            if sighting.units <= 0 or (row is not None and not _differs(row, sighting)):
                continue
            moved.append(_id(sighting))
            comes_in = row is None or (row.state == "gone" and sighting.confirmations >= 0)
            if comes_in and overlaps(sighting.ident, sighting.ident):
                contested.append(sighting)
            elif row is None:
                statements += await self._first_sight(sighting, now_us)
            elif row.address != sighting.address or (row.epoch and row.units != str(sighting.units)):
                words = f"it was {row.units} units to {row.address}, and is {sighting.units} to {sighting.address} now"
                statements.append(opened("payment_changed", row.id, words, now_us, row.account_id))
            else:
                statements += [(_UNITS, (str(sighting.units), row.id)), _see(sighting, now_us)]
        if statements:
            await self._store.write(statements)
        for sighting in contested:
            await self._let_in(sighting, now_us)
        return {one.topup_id for one in await payments_by_ids(self._store, moved) if one.topup_id}

    async def _first_sight(self, sighting: Sighting, now_us: int, guard: Statement = ("", ())) -> list[Statement]:
        """Make the statements that write down a payment that was not known."""
        account_id, made_us = await self._owner(sighting.address)
        is_older = overlaps(sighting.ident, sighting.ident) and sighting.seen_us < made_us - QUOTE_GRACE_US
        topup = None if is_older else await self._topup_of(sighting)
        account_id = topup.account_id if topup else None if is_older else account_id
        market = await market_rate(self._rails, sighting.rail, sighting.asset, now_us)
        asset = asset_of(self._rails, sighting.rail, sighting.asset)
        worth = sighting.units * market.nanos // 10**asset.decimals if market else None
        rail = self._rails.get(sighting.rail)
        state: PaymentState = state_of(sighting.confirmations) if account_id else "stray"
        values = (
            *(_id(sighting), sighting.rail, sighting.asset, sighting.address, str(sighting.units), account_id),
            *(topup.id if topup else None, sighting.tx, sighting.block, sighting.height, sighting.confirmations),
            *(rail.needed(sighting.asset, worth) if rail else FINAL, state, 0, int(sighting.final)),
            *(min(sighting.seen_us, now_us), now_us, None, None, "0"),
            *(msgspec.json.encode(Pricing(market=market)).decode() if market else None, None, None),
        )
        insert = (
            f"INSERT INTO payment ({PAYMENT_COLUMNS}) SELECT {placeholders(values)} WHERE 1 = 1{guard[0]} "
            "ON CONFLICT (id) DO NOTHING"
        )
        statements: list[Statement] = [(_USED, (now_us, sighting.address)), (insert, (*values, *guard[1]))]
        if not account_id:
            paid = f"{asset.show(sighting.units)} {asset.code}"
            words = f"{paid} came to {sighting.address}, which was given to nobody"
            if is_older:  # what an address holds tells of all that ever came there
                words += " then: the key is of an account that was used before. Give the key of a new one"
            statements.append(opened("stray_payment", _id(sighting), words, now_us))
        return statements

    async def _let_in(self, sighting: Sighting, now_us: int) -> None:
        """Write down, or take back in, a payment that is an interval of its address's total, if it overlaps none."""
        where = (sighting.rail, sighting.address, sighting.asset)
        rows = await select_payments(self._store, "WHERE rail = ? AND address = ? AND asset = ?", where)
        if any(row.id != _id(sighting) and _stands(row) and overlaps(row.ident, sighting.ident) for row in rows):
            return
        guard = (_UNMOVED, (*where, len(rows), *where, max((row.changed_at_us for row in rows), default=0)))
        if any(row.id == _id(sighting) for row in rows):
            sql, params = _see(sighting, now_us)
            statements: list[Statement] = [(_USED, (now_us, sighting.address)), (sql + guard[0], (*params, *guard[1]))]
        else:
            statements = await self._first_sight(sighting, now_us, guard)
        await self._store.write(statements)

    async def _topup_of(self, sighting: Sighting) -> Topup | None:
        """Find the top-up that a payment is for: whose quote held as it was seen; else the newest at its address."""
        if sighting.topup_id is not None:
            found = await select_topups(self._store, "WHERE id = ?", (sighting.topup_id,))
            return found[0] if found else None
        where = "WHERE address = ? AND rail = ? AND asset = ? ORDER BY created_at DESC"
        found = await select_topups(self._store, where, (sighting.address, sighting.rail, sighting.asset))
        held = [one for one in found if one.created_at_us <= sighting.seen_us <= one.ends_at_us + QUOTE_GRACE_US]
        exact = [one for one in held if one.asked_units == str(sighting.units)]
        return next(iter(exact or held or found), None)

    async def _owner(self, address: str) -> tuple[int | None, int]:
        """Give the account that an address was given to, and when."""
        rows = await self._store.fetch(
            "SELECT account_id, created_at FROM deposit_address WHERE address = ?", (address,)
        )
        return (int(rows[0][0]), int(rows[0][1])) if rows else (None, 0)


def asset_of(rails: Mapping[str, Rail], rail_name: str, code: str) -> Asset:
    """Give an asset by its rail; of a rail that is offered no more, what its name tells."""
    rail = rails.get(rail_name)
    known = next((one for one in rail.assets if one.code == code), None) if rail else None
    return known or Asset(code, code, rail_name, (_COINS | {"USDT": 6}).get(code, 0))


def decimals_known(rails: Mapping[str, Rail], rail_name: str, code: str) -> bool:
    """Whether units of an asset say how many coins they are: not of a token that is no longer in the settings."""
    rail = rails.get(rail_name)
    return code in _COINS or (rail is not None and any(one.code == code for one in rail.assets))


async def market_rate(rails: Mapping[str, Rail], rail_name: str, asset: str, now_us: int) -> Rate | None:
    """Give what a coin is worth now by the rail's own word; None where nobody can say."""
    rail = rails.get(rail_name)
    return await rail.rate(asset, now_us) if rail else None


def _id(sighting: Sighting) -> str:
    return f"{sighting.rail}:{sighting.ident}"


def state_of(confirmations: int) -> PaymentState:
    if confirmations < 0:
        return "gone"
    return "confirming" if confirmations else "seen"


def _stands(row: Payment) -> bool:
    """Whether an interval of an address's total is taken: also while it is still to be taken back."""
    return row.state != "gone"


def _differs(row: Payment, sighting: Sighting) -> bool:
    told = (sighting.confirmations, int(sighting.final), sighting.block or None, sighting.height)
    moved = (row.confirmations, row.final, row.block, row.height) != told
    changed = (row.units, row.address) != (str(sighting.units), sighting.address)
    undecided = row.state in {"seen", "confirming", "gone"}
    lost = row.state in {"crediting", "credited"} and (row.lost_at_us is None) == (sighting.confirmations <= 0)
    return moved or changed or lost or (undecided and row.state != state_of(sighting.confirmations))


def _see(sighting: Sighting, now_us: int) -> Statement:
    """Make the statement that takes in where a payment is now."""
    confirmations = sighting.confirmations
    return _SEE, (
        *(confirmations, sighting.tx, sighting.block, sighting.height, now_us, int(sighting.final)),
        *(confirmations, now_us, state_of(confirmations), _id(sighting)),
    )
