"""Deposits: the one place where what watchers see becomes money, once for each payment (promise 6).

A sighting only changes a payment's row. What is owed for it is settled in three steps, each of which can be repeated:
the row says for good what will be booked and under which id (`crediting`), the ledger books it, the row says that it is
done. A crash between any two is made good by the next look. What leaves the chain after it was credited is taken back
the same way, under an id of its own (the row's `epoch`), and credited once more should it return.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec

from farebox.accounts.accounts import Account, before_deposit, find_account, follow_top_ups
from farebox.billing.ledger import Transfer, customer_account
from farebox.billing.plans import Plans
from farebox.books.ledger import Ledger, credit
from farebox.clock import DAY_US, US_PER_S
from farebox.errors import BrokenInvariant
from farebox.events.news import tell_of_credit
from farebox.money import MAX_NANOS, format_usd
from farebox.payments.incidents import Kind, opened
from farebox.payments.intake import QUOTE_GRACE_US, Intake, asset_of, decimals_known, market_rate, state_of
from farebox.payments.quoting import value
from farebox.payments.rails import Asset, Rail, Rate, Sighting
from farebox.payments.records import (
    OVER_PERCENT,
    Payment,
    Pricing,
    Topup,
    payments_by_ids,
    placeholders,
    select_payments,
    select_topups,
    standing,
)
from farebox.payments.settings import FINAL
from farebox.store.protocol import Statement, Store

CONFIRMED_WITHIN_US: Final = 6 * 3600 * US_PER_S
"""A quote's rate is for payments confirmed so soon after it: letting one hang is no way to wait for a better rate."""
SIGHT_HOLDS_US: Final = 3600 * US_PER_S
"""The market's rate as a payment was first seen holds for so long; then the lower of that and today's counts."""
RETURN_WITHIN_US: Final = 3600 * US_PER_S
"""A credited payment that is in no block, and may still come back, is waited for so long before it is taken back."""
MOST_NANOS: Final = MAX_NANOS // 1000
"""Nine million dollars. Who pays more has made a mistake, or a token's contract lies: a person looks at it first."""
_PAGE: Final = 300
_DONE: Final = (
    "UPDATE payment SET state = 'credited', changed_at = ? WHERE id = ? AND state = 'crediting' AND epoch = ?"
)
_TURN: Final = "UPDATE topup SET changed_at = changed_at WHERE id = ?"
"""Processes that value payments to the same top-up wait for each other here: its quote is good for so much once."""
_AS_VALUED: Final = " AND (SELECT count(*) FROM payment WHERE topup_id = ? AND epoch > 0) = ?"
"""Nobody else has valued a payment to the same top-up since it was read how much of the quote is left."""
_DUE: Final = (
    "WHERE (state IN ('confirming', 'crediting', 'reversing') OR lost_at IS NOT NULL) "  # to the letter the index's
    "AND (seen_at, id) > (?, ?) AND (state IN ('crediting', 'reversing') "
    "OR (state = 'credited' AND lost_at IS NOT NULL) "
    "OR (state = 'confirming' AND (final = 1 OR (needed > 0 AND confirmations >= needed)))) "
    "ORDER BY seen_at, id LIMIT ?"
)


class _Turn:
    """What one turn of settling has read of payments beside each other, kept in step with what it decides.

    Reading it anew for each would make the work grow with the square of what somebody sends to one top-up.
    """

    def __init__(self) -> None:
        self.valued: dict[str, tuple[int, int]] = {}
        """By top-up: how many payments have been valued, and how many units of them at the quote's rate."""
        self.open_units: dict[tuple[int | None, str, str], int] = {}
        """By account, rail and asset: what is on its way, and not credited."""

    def frozen(self, payment: Payment, locked: int) -> None:
        """Hear that a payment has just been valued and is on its way no more."""
        if payment.topup_id is not None:
            count, units = self.valued[payment.topup_id]
            self.valued[payment.topup_id] = count + 1, units + locked
        self.open_units[_who(payment)] -= int(payment.units)


class Deposits:
    """Takes in sightings, and credits. `rails` by name; `site` and `public_url` are what mails say."""

    def __init__(
        self, store: Store, ledger: Ledger, plans: Plans, rails: Mapping[str, Rail], *, site: str, public_url: str
    ) -> None:
        self._store = store
        self._ledger = ledger
        self._plans = plans
        self._rails = rails
        self._site = site
        self._public_url = public_url
        self._intake = Intake(store, rails)
        self._turn = asyncio.Lock()

    async def apply(self, sightings: Sequence[Sighting], now_us: int) -> None:
        """Take in what a watcher sees, and settle what is due. Raises StoreUnavailable; telling it again goes on.

        What is wrong with one payment stops no watcher: `finish` raises it, again and again.
        """
        async with self._turn:
            for begin in range(0, len(sightings), _PAGE):
                touched = await self._intake.take_in(sightings[begin : begin + _PAGE], now_us)
                await self._refresh(touched, now_us)
            await self._finish(now_us)

    async def finish(self, now_us: int) -> None:
        """Settle what is due without new sightings: what a crash or a missing rate has left. A job.

        Raises what is wrong with a payment, after all others have had their turn.
        """
        async with self._turn:
            wrong = await self._finish(now_us)
        if wrong is not None:
            raise wrong

    def asset_of(self, rail_name: str, code: str) -> Asset:
        """Give an asset by its rail; of a rail that is offered no more, what its name tells."""
        return asset_of(self._rails, rail_name, code)

    async def assign(self, payment: Payment, account_id: int, by: str, now_us: int) -> bool:
        """Say whose a stray payment is: it is credited like any other, at the market's rate. Once."""
        own = (
            "UPDATE payment SET account_id = ?, topup_id = NULL, state = ?, changed_at = ? "
            "WHERE id = ? AND state = 'stray'"
        )
        done = (
            "UPDATE incident SET closed_at = ?, closed_by = ?, closing = ? "
            "WHERE kind IN ('stray_payment', 'closed_account') AND ref = ? AND closed_at IS NULL"
        )
        words = f"assigned to account {account_id}"
        statements = [
            (own, (account_id, state_of(payment.confirmations), now_us, payment.id)),
            (done, (now_us, by, words, payment.id)),
        ]
        changed = await self._store.write(statements)
        await self.finish(now_us)
        return bool(changed[0])

    async def _finish(self, now_us: int) -> Exception | None:
        wrong: Exception | None = None
        turn = _Turn()
        touched: set[str] = set()
        last = (-1, "")
        while due := await select_payments(self._store, _DUE, (*last, _PAGE)):
            last = (due[-1].seen_at_us, due[-1].id)
            for payment in due:
                try:
                    await self._settle(payment, turn, now_us)
                except (
                    BrokenInvariant,
                    ArithmeticError,
                    ValueError,
                    LookupError,
                ) as error:  # those behind it must not wait for it
                    wrong = error
                if payment.topup_id:
                    touched.add(payment.topup_id)
        await self._refresh(touched, now_us)
        return wrong

    async def _settle(self, payment: Payment, turn: _Turn, now_us: int) -> None:
        """Bring one payment as far as it can go now."""
        if payment.state == "confirming":
            payment = await self._freeze_credit(payment, turn, now_us)
        elif payment.state == "credited":
            payment = await self._freeze_return(payment, now_us)
        if payment.state == "crediting":
            await self._credit(payment, now_us)
        elif payment.state == "reversing":
            await self._take_back(payment, now_us)

    async def _freeze_credit(self, payment: Payment, turn: _Turn, now_us: int) -> Payment:
        """Say for good what a confirmed payment is worth, and under which id that is booked."""
        assert payment.account_id is not None
        if (await find_account(self._store, str(payment.account_id))).status == "closed":
            words = f"{self._paid(payment)} came for account {payment.account_id}, which is closed"
            return await self._set_aside(payment, "closed_account", words, now_us)
        worth, locked, pricing = payment.worth_nanos, int(payment.locked_units), payment.pricing
        topup_id, guard = payment.topup_id or "", list[str | int]()
        if worth is None:
            count, given = await self._valued(topup_id, turn)
            valued = await self._value(payment, given, now_us)
            if valued is None:
                return payment  # nobody can say what it is worth: it waits, confirmed
            worth, locked, rates = valued
            if worth > MOST_NANOS:
                words = f"{self._paid(payment)} would be {format_usd(worth)}: look at it, and credit it by hand"
                return await self._set_aside(payment, "stray_payment", words, now_us)
            pricing = msgspec.json.encode(rates).decode()
            if not await self._is_deep_enough(payment, worth, turn, now_us):
                return payment
            guard = [topup_id, count] if topup_id else []
        amount = worth if payment.taken_nanos is None else payment.taken_nanos
        transfer_id = f"deposit:{payment.id}:{payment.epoch + 1}" if amount else payment.transfer_id
        freeze = (
            "UPDATE payment SET state = 'crediting', epoch = epoch + 1, worth_nanos = ?, locked_units = ?, "
            "pricing = ?, transfer_id = ?, changed_at = ? WHERE id = ? AND state = 'confirming' AND epoch = ?"
        )
        values = (worth, str(locked), pricing, transfer_id, now_us, payment.id, payment.epoch, *guard)
        frozen = await self._store.write([(_TURN, (topup_id,)), (freeze + _AS_VALUED * bool(guard), values)])
        if not frozen[1]:
            turn.valued.pop(topup_id, None)  # another process has valued one: the next look reads anew
        elif payment.worth_nanos is None:
            turn.frozen(payment, locked)
        return await self._again(payment)

    async def _valued(self, topup_id: str, turn: _Turn) -> tuple[int, int]:
        """Tell how many payments to a top-up have been valued, and how many units of them at the quote's rate."""
        if topup_id not in turn.valued:
            rows = await self._store.fetch(
                "SELECT locked_units FROM payment WHERE topup_id = ? AND epoch > 0", (topup_id,)
            )
            turn.valued[topup_id] = len(rows), sum(int(units) for (units,) in rows)
        return turn.valued[topup_id]

    async def _set_aside(self, payment: Payment, kind: Kind, words: str, now_us: int) -> Payment:
        """Leave a payment to a person: it is nobody's until somebody says whose it is."""
        aside = "UPDATE payment SET state = 'stray', changed_at = ? WHERE id = ? AND state = 'confirming'"
        told = opened(kind, payment.id, words, now_us, payment.account_id)
        await self._store.write([(aside, (now_us, payment.id)), told])
        return await self._again(payment)

    async def _value(self, payment: Payment, given: int, now_us: int) -> tuple[int, int, Pricing] | None:
        """Say what a payment is worth by the published rule: nano-dollars, and how many units at the quote's rate.

        `given` is how many units others to the same top-up were valued at that rate.
        """
        if not decimals_known(self._rails, payment.rail, payment.asset):
            return None
        found = await select_topups(self._store, "WHERE id = ?", (payment.topup_id or "",))
        topup = found[0] if found else None
        in_time = (
            topup is not None
            and payment.seen_at_us <= topup.ends_at_us + QUOTE_GRACE_US
            and now_us <= topup.ends_at_us + CONFIRMED_WITHIN_US
        )
        left = 0
        if topup is not None:
            left = max(0, int(topup.asked_units) * OVER_PERCENT // 100 - given)
        return value(
            int(payment.units),
            self.asset_of(payment.rail, payment.asset).decimals,
            quote=topup.rate if topup else None,
            locked_left_units=left,
            market=await self._market_of(payment, now_us),
            in_time=in_time,
        )

    async def _market_of(self, payment: Payment, now_us: int) -> Rate | None:
        """Give the rate as the payment was seen; of one seen long ago, the lower of that and the present one."""
        then = payment.rates.market if payment.rates else None
        if then is not None and now_us - payment.seen_at_us <= SIGHT_HOLDS_US:
            return then
        now = await market_rate(self._rails, payment.rail, payment.asset, now_us)
        if then is None or now is None:
            return now
        return min(then, now, key=lambda rate: rate.nanos)

    async def _is_deep_enough(self, payment: Payment, worth_nanos: int, turn: _Turn, now_us: int) -> bool:
        """See that it has the confirmations of all that its account pays just now: parts are no way to need fewer."""
        who = _who(payment)
        if who not in turn.open_units:
            where = "account_id = ? AND rail = ? AND asset = ? AND state IN ('seen', 'confirming')"
            rows = await self._store.fetch(f"SELECT units FROM payment WHERE {where}", (who[0] or 0, *who[1:]))  # noqa: S608  fixed
            turn.open_units[who] = sum(int(units) for (units,) in rows)
        rail, together = self._rails.get(payment.rail), turn.open_units[who]
        if rail is None:
            return True
        needed = rail.needed(payment.asset, worth_nanos * max(together, int(payment.units)) // int(payment.units))
        if needed != payment.needed:
            more = "UPDATE payment SET needed = ?, changed_at = ? WHERE id = ?"
            await self._store.write([(more, (needed, now_us, payment.id))])
        return bool(payment.final) or (needed != FINAL and payment.confirmations >= needed)

    async def _credit(self, payment: Payment, now_us: int) -> None:
        """Book what the row says, then say so."""
        assert payment.account_id is not None
        assert payment.worth_nanos is not None
        amount = payment.worth_nanos if payment.taken_nanos is None else payment.taken_nanos
        paid, news = self._paid(payment), []
        if amount and payment.transfer_id is not None:
            before = await find_account(self._store, str(payment.account_id))
            memo = (
                f"{paid}{', again' if payment.epoch > 1 else ''}{f', transaction {payment.tx}' if payment.tx else ''}"
            )
            entry = credit(
                payment.transfer_id, payment.account_id, amount, code="deposit", actor=f"rail:{payment.rail}", memo=memo
            )
            if not await self._post(payment, entry):
                before = await before_deposit(self._store, payment.account_id, amount)
            after = await follow_top_ups(self._store, before, self._plans)
            news = tell_of_credit(after, amount, payment.transfer_id, now_us)
        lost = payment.worth_nanos - amount
        if lost:
            found = _house(f"found:{payment.id}:{payment.epoch}", payment, lost, back=True)
            await self._post(payment, found)
        done = (
            "UPDATE payment SET state = 'credited', changed_at = ? WHERE id = ? AND state = 'crediting' AND epoch = ?"
        )
        mark: Statement = (done, (now_us, payment.id, payment.epoch))
        told = [self._mail(payment, paid, amount, now_us)] if payment.worth_nanos else []  # of dust nobody is told
        await self._store.write([_lock(payment), *told, mark, *news])

    async def _freeze_return(self, payment: Payment, now_us: int) -> Payment:
        """Say for good what is taken from the customer for a payment that its chain has taken back."""
        assert payment.lost_at_us is not None
        if payment.confirmations >= 0 and now_us - payment.lost_at_us < RETURN_WITHIN_US:
            return payment
        freeze = (
            "UPDATE payment SET state = 'reversing', epoch = epoch + 1, taken_nanos = ?, changed_at = ? "
            "WHERE id = ? AND state = 'credited' AND epoch = ? AND lost_at IS NOT NULL"
        )
        taken = await self._free(payment)
        await self._store.write([(freeze, (taken, now_us, payment.id, payment.epoch))])
        return await self._again(payment)

    async def _take_back(self, payment: Payment, now_us: int) -> None:
        """Book the reverse: what is free is taken from the customer, what has been spent is the house's loss."""
        assert payment.account_id is not None
        assert payment.worth_nanos is not None
        taken, booked = await self._take(payment, f"reversal:{payment.id}:{payment.epoch}")
        lost = payment.worth_nanos - taken
        if lost > booked:
            await self._post(payment, _house(f"loss:{payment.id}:{payment.epoch}", payment, lost, back=False))
        before = await before_deposit(self._store, payment.account_id, -taken)
        await follow_top_ups(self._store, before, self._plans)
        paid = self._paid(payment)
        words = (
            f"{paid}, credited with {format_usd(payment.worth_nanos)}, has left its chain again; "
            f"{format_usd(taken)} were taken back"
            + (f", {format_usd(lost)} had been spent and are a loss" if lost else "")
        )
        done = (
            "UPDATE payment SET state = CASE WHEN confirmations > 0 THEN 'confirming' ELSE 'gone' END, lost_at = NULL, "
            "taken_nanos = ?, changed_at = ? WHERE id = ? AND state = 'reversing' AND epoch = ?"
        )
        await self._store.write(
            [
                _lock(payment),
                self._mail_of_return(before, payment, paid, taken, now_us),
                opened("reversed", f"{payment.id}:{payment.epoch}", words, now_us, payment.account_id),
                (done, (taken, now_us, payment.id, payment.epoch)),
            ]
        )

    async def _take(self, payment: Payment, transfer_id: str) -> tuple[int, int]:
        """Take back as much as is free, once; answers how much that was, and how much was booked as a loss instead.

        Where all has been spent meanwhile, the loss has the entry's own id: another process that still means to take
        something finds the id in use, also once there is money again.
        """
        amount, customer = payment.taken_nanos or 0, customer_account(payment.account_id or 0)
        taking = Transfer(
            id=transfer_id,
            debit_account=customer,
            credit_account="house:cash",
            amount_nanos=amount,
            code="deposit",
            actor=f"rail:{payment.rail}",
            memo=f"reversed: {self._paid(payment)} has left its chain",
        )
        while amount:
            find = "SELECT debit_account, amount_nanos FROM transfer WHERE id = ?"
            for debited, booked in await self._store.fetch(find, (transfer_id,)):
                return (int(booked), 0) if debited == customer else (0, int(booked))
            if (await self._ledger.post(taking)).refused is not None:  # spent meanwhile, or posted by another process
                left = min(taking.amount_nanos - 1, await self._free(payment))
                taking = msgspec.structs.replace(taking, amount_nanos=left)
                if not left:
                    taking = _house(transfer_id, payment, payment.worth_nanos or 0, back=False)
        return 0, 0

    async def _free(self, payment: Payment) -> int:
        account = await find_account(self._store, str(payment.account_id))
        return max(0, min(account.free_nanos, payment.worth_nanos or 0))

    async def _post(self, payment: Payment, entry: Transfer) -> bool:
        """Post an entry; answers whether it was done now. Raises BrokenInvariant when the ledger refuses it."""
        posted = await self._ledger.post(entry)
        if posted.refused is not None:
            raise BrokenInvariant(f"payment {payment.id} cannot be booked: {posted.refused}")
        return posted.now

    async def _refresh(self, topup_ids: Iterable[str], now_us: int) -> None:
        """Write down how top-ups stand, so that lists and pages which look on see that something has changed."""
        statements: list[Statement] = []
        for topup in await self._topups_by_ids(sorted(topup_ids)):
            payments = await select_payments(self._store, "WHERE topup_id = ?", (topup.id,))
            state = standing(topup, payments, now_us).state
            statements.append(("UPDATE topup SET state = ?, changed_at = ? WHERE id = ?", (state, now_us, topup.id)))
        if statements:
            await self._store.write(statements)

    async def refresh_left(self, now_us: int) -> None:
        """Write down how top-ups stand whose time is over, or whose payments have moved on without them. A job."""
        rows = await self._store.fetch(
            "SELECT id FROM topup WHERE state = 'waiting' AND ends_at <= ? UNION ALL "
            "SELECT t.id FROM payment p JOIN topup t ON t.id = p.topup_id WHERE p.changed_at > ? "
            "AND p.changed_at >= t.changed_at",
            (now_us, now_us - DAY_US),
        )
        await self._refresh({str(row[0]) for row in rows}, now_us)

    def _paid(self, payment: Payment) -> str:
        asset = self.asset_of(payment.rail, payment.asset)
        return f"{asset.show(int(payment.units))} {asset.code} on {asset.network}"

    def _mail(self, payment: Payment, paid: str, amount: int, now_us: int) -> Statement:
        """Write the mail about a credit, unless the payment is marked as credited, and so was told of."""
        receipt = f"\n\nReceipt: {self._public_url}/dashboard/receipts/{payment.transfer_id}" if amount else ""
        body = (
            f"Your payment of {paid} has arrived: {format_usd(amount)} were added to your balance at "
            f"{self._site}.{receipt}\n"
        )
        insert = (
            "INSERT INTO outbox (at, recipient, subject, body, next_at) SELECT ?, a.email, ?, ?, ? FROM payment p "
            "JOIN account a ON a.id = p.account_id WHERE p.id = ? AND p.state = 'crediting' AND p.epoch = ?"
        )
        subject = f"Your balance at {self._site} was topped up"
        return insert, (now_us, subject, body, now_us, payment.id, payment.epoch)

    def _mail_of_return(self, account: Account, payment: Payment, paid: str, taken: int, now_us: int) -> Statement:
        body = (
            f"Your payment of {paid} was confirmed, and has since been undone by its network: it is in no block any "
            f"more. {format_usd(taken)} were taken back from your balance at {self._site}. Should the payment be "
            "confirmed again, it is credited again by itself.\n"
        )
        subject = f"A payment to your balance at {self._site} was undone"
        guarded = (
            "INSERT INTO outbox (at, recipient, subject, body, next_at) SELECT ?, ?, ?, ?, ? FROM payment p "
            "WHERE p.id = ? AND p.state = 'reversing' AND p.epoch = ?"
        )
        return guarded, (now_us, account.email, subject, body, now_us, payment.id, payment.epoch)

    async def _topups_by_ids(self, ids: Sequence[str]) -> list[Topup]:
        if not ids:
            return []
        return await select_topups(self._store, f"WHERE id IN ({placeholders(ids)}) ORDER BY id", tuple(ids))

    async def _again(self, payment: Payment) -> Payment:
        return (await payments_by_ids(self._store, [payment.id]))[0]


def _who(payment: Payment) -> tuple[int | None, str, str]:
    return payment.account_id, payment.rail, payment.asset


def _lock(payment: Payment) -> Statement:
    """Let two processes that tell of the same payment do so one after the other: the second finds it told."""
    return "UPDATE payment SET changed_at = changed_at WHERE id = ?", (payment.id,)


def _house(transfer_id: str, payment: Payment, amount_nanos: int, *, back: bool) -> Transfer:
    """Make the entry for what a customer had spent of a payment that has gone, or for its return."""
    cash, loss = "house:cash", "house:adjustments"
    return Transfer(
        id=transfer_id,
        debit_account=cash if back else loss,
        credit_account=loss if back else cash,
        amount_nanos=amount_nanos,
        code="loss",
        actor=f"rail:{payment.rail}",
        memo=f"{'found again' if back else 'spent before it was reversed'}: payment {payment.id}",
    )
