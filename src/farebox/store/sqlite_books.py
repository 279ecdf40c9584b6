"""What a batch of ledger commands does to an SQLite file. One caller at a time; see SqliteStore."""

from collections.abc import Sequence
from typing import Any, Final

import apsw
import msgspec

from farebox.billing.ledger import (
    NO_RUN,
    ORDER,
    Account,
    Admission,
    Admit,
    Answer,
    Budget,
    Command,
    Expire,
    Expired,
    Hold,
    Pace,
    Posted,
    Resize,
    Resized,
    Settle,
    Settled,
    Transfer,
    Verdict,
    customer_id,
    kind_of,
)
from farebox.billing.plans import Plan, Plans, limits_of
from farebox.clock import DAY_US, HOUR_US, Clock, day_start_us
from farebox.errors import BrokenInvariant, StoreUnavailable
from farebox.store.protocol import Row

_CACHE_ROWS: Final = 50_000
_PLACE: Final = {kind: place for place, kind in enumerate(ORDER)}
_ACCOUNT_COLUMNS: Final = (
    "id, status, plan, posted_nanos, held_nanos, open_holds, topped_up_nanos, requests_full_ns, tokens_full_ns"
)
_SAVE_ACCOUNT: Final = (
    "UPDATE account SET posted_nanos = ?, held_nanos = ?, open_holds = ?, topped_up_nanos = ?, requests_full_ns = ?, "
    "tokens_full_ns = ? WHERE id = ?"
)
_NEW_HOLD_COLUMNS: Final = "request_id, account_id, key_id, model, amount_nanos, tokens, price_version"
_HOLD_COLUMNS: Final = f"{_NEW_HOLD_COLUMNS}, created_at, expired_at IS NOT NULL, run_id = {NO_RUN}"
_INSERT_HOLD: Final = (
    f"INSERT INTO hold ({_NEW_HOLD_COLUMNS}, run_id, created_at) "  # noqa: S608
    "SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9 WHERE NOT EXISTS (SELECT 1 FROM usage WHERE request_id = ?1) "
    "ON CONFLICT DO NOTHING"
)
_READ_TRANSFER: Final = "SELECT debit_account, credit_account, amount_nanos, code FROM transfer WHERE id = ?"
_WAS_SEEN: Final = "SELECT 1 FROM hold WHERE request_id = ?1 UNION ALL SELECT 1 FROM usage WHERE request_id = ?1"
_DELETE_HOLD: Final = f"DELETE FROM hold WHERE request_id = ? AND account_id = ? RETURNING {_HOLD_COLUMNS}"  # noqa: S608
_READ_HOLD: Final = f"SELECT {_HOLD_COLUMNS} FROM hold WHERE request_id = ? AND account_id = ?"  # noqa: S608
_READ_ACCOUNT: Final = (
    f"SELECT {_ACCOUNT_COLUMNS}, requests_per_minute, tokens_per_minute, concurrent FROM account WHERE id = ?"  # noqa: S608
)
_READ_KEY: Final = (
    "SELECT k.account_id, k.expires_at, k.revoked_at, k.disabled_at, k.requests_per_minute, p.requests_full_ns, "
    "b.limit_nanos, b.resets, b.since, b.used_nanos FROM api_key k LEFT JOIN key_pace p ON p.key_id = k.id "
    "LEFT JOIN key_budget b ON b.key_id = k.id WHERE k.id = ?"
)
_SAVE_BUDGET: Final = "UPDATE key_budget SET since = ?, used_nanos = ? WHERE key_id = ?"
_SAVE_PACE: Final = (
    "INSERT INTO key_pace (key_id, requests_full_ns) VALUES (?, ?) "
    "ON CONFLICT (key_id) DO UPDATE SET requests_full_ns = excluded.requests_full_ns"
)
_USAGE_COLUMNS: Final = (
    "request_id, at, account_id, key_id, kind, model, asked_model, price_version, input_tokens, cache_write_5m_tokens, "
    "cache_write_1h_tokens, cache_read_tokens, output_tokens, web_searches, detail, cost_nanos, list_nanos, "
    "charged_nanos, shortfall_nanos, waived_nanos, status, outcome, stop_reason, message_id, upstream, "
    "upstream_request_id, attempts, streamed, first_byte_us, duration_us, held_nanos"
)


def _insert_usage(columns: str) -> str:
    return f"INSERT INTO usage ({columns}) VALUES ({', '.join('?' * (columns.count(',') + 1))})"  # noqa: S608


_INSERT_USAGE: Final = _insert_usage(_USAGE_COLUMNS)
_INSERT_TOLD_USAGE: Final = _insert_usage(f"{_USAGE_COLUMNS}, session, agent, parent_agent, tries")
"""For calls that said something of themselves, or had more than one try."""
_NOTHING: Final = (None, None, None, None)
_INSERT_TRANSFER: Final = (
    "INSERT INTO transfer (id, at, debit_account, credit_account, amount_nanos, code, actor, memo) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
)


class _Key(msgspec.Struct):
    """What the ledger must know of a key."""

    account_id: int
    expires_at_us: int | None
    revoked_at_us: int | None
    disabled_at_us: int | None
    pace: Pace | None
    budget: Budget | None

    def counts(self, command: Admit, now_us: int) -> bool:
        """Tell whether a call may come by it."""
        return (
            self.account_id == command.account_id
            and self.revoked_at_us is None
            and self.disabled_at_us is None
            and (self.expires_at_us is None or now_us < self.expires_at_us)
        )


class Books:
    """Applies batches on one connection; keeps accounts and keys it has loaded for as long as nobody else writes."""

    def __init__(self, connection: apsw.Connection, plans: Plans | None, clock: Clock) -> None:
        self._connection = connection
        self._execute = connection.cursor().execute  # one cursor for all statements: a fifth cheaper than one each
        self._plans = plans or Plans([Plan("default", 60, 1_000_000, 100)])
        self._clock = clock
        self._accounts: dict[int, Account] = {}
        self._limits: dict[int, Plan] = {}
        self._keys: dict[int, _Key] = {}
        self._dirty: set[int] = set()
        self._dirty_keys: set[int] = set()
        self._closed_until_us: int | None = None
        self._seen_version = -1
        self._told_version = self._data_version()
        self.run_id = 0

    def forget(self) -> None:
        """Drop what is cached: something other than `apply` has written, or a transaction was rolled back."""
        self._accounts.clear()
        self._limits.clear()
        self._keys.clear()
        self._closed_until_us = None

    def changed_elsewhere(self) -> bool:
        """Tell whether another process has written since this was last asked."""
        version = self._data_version()
        changed, self._told_version = version != self._told_version, version
        return changed

    def apply(self, batch: Sequence[Command]) -> list[Answer | Exception]:
        """See Store.apply. Waits for the disk, and for another process that is writing."""
        try:
            answers = self.begin(batch)
            self.commit()
        except Exception as error:
            if isinstance(error, apsw.Error) and not isinstance(error, apsw.ConstraintError):
                raise StoreUnavailable(f"the database did not take the batch: {error}") from error
            # a command that breaks an invariant, or with a value that fits no column: the others must not suffer for it
            if len(batch) == 1:
                return [error if isinstance(error, BrokenInvariant) else BrokenInvariant(f"{error}: {batch[0]}")]
            alone = {index: self.apply([batch[index]])[0] for index in _fold_order(batch)}
            return [alone[index] for index in range(len(batch))]
        return list(answers)

    def begin(self, batch: Sequence[Command]) -> list[Answer]:
        """Do everything a batch asks for but make it durable: `commit` must follow. Raises, with nothing done."""
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            version = self._data_version()
            if version != self._seen_version or len(self._accounts) + len(self._keys) > _CACHE_ROWS:
                self.forget()
                self._seen_version = version
            now_us = self._clock()
            at_us = max(now_us, self._first_open_us())
            answers: list[Answer | None] = [None] * len(batch)
            for index in _fold_order(batch):
                answers[index] = self._do(batch[index], now_us, at_us)
            for account_id in self._dirty:
                self._save(self._accounts[account_id])
            for key_id in self._dirty_keys:
                self._save_key(key_id, self._keys[key_id])
        except BaseException:
            self._roll_back()
            raise
        return answers  # type: ignore[return-value]

    @property
    def wrote(self) -> bool:
        """Whether the batch that was begun has changed anything that a commit must bring to the disk."""
        return bool(self._dirty)

    def commit(self) -> None:
        """Make what was begun durable. Raises apsw.Error, with nothing done."""
        try:
            self._connection.execute("COMMIT")
        except BaseException:
            self._roll_back()
            raise
        self._dirty.clear()
        self._dirty_keys.clear()

    def _roll_back(self) -> None:
        self.forget()
        self._dirty.clear()
        self._dirty_keys.clear()
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")

    def _first_open_us(self) -> int:
        """Give the end of the last closed day and hour: no entry is older, so that none slips into a digest or a sum.

        Entries alone; limits go by the clock. A clock that once ran days ahead would else stop every bucket for days.
        """
        if self._closed_until_us is None:
            ((day, hour),) = self._rows("SELECT (SELECT max(day) FROM day_close), (SELECT max(hour) FROM hour_close)")
            day_ended_us = day_start_us(day) + DAY_US if day else 0
            self._closed_until_us = max(day_ended_us, (hour + 1) * HOUR_US if hour is not None else 0)
        return self._closed_until_us

    def _do(self, command: Command, now_us: int, at_us: int) -> Answer:
        if isinstance(command, Admit):
            return self._admit(command, now_us, at_us)
        if isinstance(command, Settle):
            return self._settle(command, now_us, at_us)
        if isinstance(command, Resize):
            return self._resize(command, now_us, at_us)
        if isinstance(command, Expire):
            return self._expire(command, now_us, at_us)
        return self._post(command, at_us)

    def _admit(self, command: Admit, now_us: int, at_us: int) -> Admission:
        account = self._account(command.account_id)
        key = self._keys.get(command.key_id) or self._key(command.key_id)
        if account is None or key is None or not key.counts(command, now_us):
            return Admission(Verdict.KEY_INVALID)
        before = (account.held_nanos, account.open_holds, account.requests_full_ns, account.tokens_full_ns)
        budget, pace, created_us = None, None, now_us
        if key.budget is not None or key.pace is not None:  # copies: a call that is not let in changes nothing
            budget = key.budget.at(at_us) if key.budget is not None else None
            pace = msgspec.structs.replace(key.pace) if key.pace is not None else None
            created_us = max(now_us, budget.since_us) if budget is not None else now_us
        answer = account.admit(command, self._limits[account.id], now_us * 1000, budget, pace)
        if answer.verdict is not Verdict.ADMITTED:
            return Admission(Verdict.DUPLICATE) if self._rows(_WAS_SEEN, command.request_id) else answer
        self._execute(
            _INSERT_HOLD,
            (
                command.request_id,
                command.account_id,
                command.key_id,
                command.model,
                answer.held_nanos,
                command.tokens,
                command.price_version,
                NO_RUN if command.standing else self.run_id,
                created_us,
            ),
        )
        if not self._connection.changes():  # seen before: held now, or settled already
            account.held_nanos, account.open_holds, account.requests_full_ns, account.tokens_full_ns = before
            return Admission(Verdict.DUPLICATE)
        self._dirty.add(account.id)
        if budget is not None or pace is not None:
            key.budget, key.pace = budget, pace
            self._dirty_keys.add(command.key_id)
        return answer

    def _resize(self, command: Resize, now_us: int, at_us: int) -> Resized:
        hold = self._hold(command)
        account = self._account(command.account_id) if hold is not None else None
        if hold is None or account is None:
            return Resized(0, gone=True)
        budget = self._budget(hold, at_us)
        answer = account.resize(hold, command, self._limits[account.id], now_us * 1000, budget)
        self._execute(
            "UPDATE hold SET amount_nanos = ?, tokens = ?, expired_at = NULL, run_id = ?, created_at = ? "
            "WHERE request_id = ?",
            (
                hold.amount_nanos,
                hold.tokens,
                NO_RUN if hold.standing else self.run_id,
                hold.created_us,
                hold.request_id,
            ),
        )
        self._dirty.add(account.id)
        return answer

    def _expire(self, command: Expire, now_us: int, at_us: int) -> Expired:
        hold = self._hold(command)
        account = self._account(command.account_id) if hold is not None else None
        if hold is None or account is None or hold.expired:
            return Expired(0, now=False)
        released = account.expire(hold, self._budget(hold, at_us))
        self._execute(
            "UPDATE hold SET amount_nanos = 0, expired_at = ? WHERE request_id = ?", (now_us, hold.request_id)
        )
        self._dirty.add(account.id)
        return Expired(released, now=True)

    def _settle(self, command: Settle, now_us: int, at_us: int) -> Settled:
        # the only gate (promise 5): whoever deletes the hold writes the usage row, in this same transaction
        rows: list[Row] = self._execute(_DELETE_HOLD, (command.request_id, command.account_id)).fetchall()
        if not rows:
            return self._settled_before(command)
        hold = Hold(*rows[0])
        account = self._account(hold.account_id)
        if account is None:
            raise BrokenInvariant(
                f"hold {command.request_id.hex()} names account {hold.account_id}, which is not there"
            )
        kind = kind_of(command, hold)
        budget = self._budget(hold, at_us)
        answer = account.settle(hold, command, self._limits[account.id], now_us * 1000, budget)
        if budget is not None:
            at_us = max(at_us, budget.since_us)
        values = _usage_values(command, hold, kind, answer, at_us)
        told = (command.session, command.agent, command.parent_agent, command.tries)
        if told == _NOTHING:
            self._execute(_INSERT_USAGE, values)
        else:
            self._execute(_INSERT_TOLD_USAGE, values + told)
        self._dirty.add(account.id)
        return answer

    def _settled_before(self, command: Settle) -> Settled:
        rows = self._rows(
            "SELECT charged_nanos, shortfall_nanos, kind FROM usage WHERE request_id = ?", command.request_id
        )
        if not rows:
            raise BrokenInvariant(f"request {command.request_id.hex()} was never admitted: nothing to settle")
        charged, shortfall, kind = rows[0]
        return Settled(charged, shortfall, now=False, recovered=kind == "recovered")

    def _post(self, transfer: Transfer, at_us: int) -> Posted:
        before = self._rows(_READ_TRANSFER, transfer.id)
        if before:
            same = (transfer.debit_account, transfer.credit_account, transfer.amount_nanos, transfer.code)
            taken = f"the id {transfer.id} belongs to another transfer already: choose another id"
            return Posted(now=False, refused=None if before[0] == same else taken)
        debit, credit = (
            (transfer.debit_account, -transfer.amount_nanos),
            (transfer.credit_account, transfer.amount_nanos),
        )
        legs: list[tuple[Account, int]] = []
        for name, amount in (debit, credit):
            account_id = customer_id(name)
            if account_id is None:
                continue
            account = self._account(account_id)
            if account is None:
                raise BrokenInvariant(f"transfer {transfer.id} names account {account_id}, which is not there")
            refused = account.refuses(amount)
            if refused is not None:
                return Posted(now=False, refused=refused)
            legs.append((account, amount))
        for account, amount in legs:
            account.post(amount, transfer.code)
            self._dirty.add(account.id)
        self._execute(
            _INSERT_TRANSFER,
            (
                transfer.id,
                at_us,
                transfer.debit_account,
                transfer.credit_account,
                transfer.amount_nanos,
                transfer.code,
                transfer.actor,
                transfer.memo,
            ),
        )
        return Posted(now=True)

    def _account(self, account_id: int) -> Account | None:
        account = self._accounts.get(account_id)
        if account is None:
            rows = self._rows(_READ_ACCOUNT, account_id)
            if not rows:
                return None
            account = self._accounts[account_id] = Account(*rows[0][:-3])
            self._limits[account_id] = limits_of(self._plans.get(account.plan), *rows[0][-3:])
        return account

    def _key(self, key_id: int) -> _Key | None:
        """Read a key, and keep it."""
        rows = self._rows(_READ_KEY, key_id)
        if not rows:
            return None
        account_id, expires_at_us, revoked_at_us, disabled_at_us, per_minute, full_ns, *budget = rows[0]
        key = self._keys[key_id] = _Key(
            account_id,
            expires_at_us,
            revoked_at_us,
            disabled_at_us,
            Pace(per_minute, full_ns or 0) if per_minute is not None else None,
            Budget(*budget) if budget[0] is not None else None,
        )
        return key

    def _budget(self, hold: Hold, at_us: int) -> Budget | None:
        """Give what the key of a hold may spend in the present period, to be written back; None: whatever it likes."""
        key = self._keys.get(hold.key_id) or self._key(hold.key_id)
        if key is None or key.budget is None:
            return None
        key.budget = key.budget.at(at_us)
        self._dirty_keys.add(hold.key_id)
        return key.budget

    def _hold(self, command: Resize | Expire) -> Hold | None:
        rows = self._rows(_READ_HOLD, command.request_id, command.account_id)
        return Hold(*rows[0]) if rows else None

    def _save(self, account: Account) -> None:
        self._execute(
            _SAVE_ACCOUNT,
            (
                account.posted_nanos,
                account.held_nanos,
                account.open_holds,
                account.topped_up_nanos,
                account.requests_full_ns,
                account.tokens_full_ns,
                account.id,
            ),
        )

    def _save_key(self, key_id: int, key: _Key) -> None:
        if key.budget is not None:
            self._execute(_SAVE_BUDGET, (key.budget.since_us, key.budget.used_nanos, key_id))
        if key.pace is not None and key.pace.full_ns:
            self._execute(_SAVE_PACE, (key_id, key.pace.full_ns))

    def _rows(self, sql: str, *params: Any) -> list[Row]:
        return self._execute(sql, params).fetchall()

    def _data_version(self) -> int:
        return int(self._rows("PRAGMA data_version")[0][0])


def _fold_order(batch: Sequence[Command]) -> list[int]:
    places = [_PLACE[type(command)] for command in batch]
    return sorted(range(len(batch)), key=places.__getitem__)


def _usage_values(command: Settle, hold: Hold, kind: str, answer: Settled, at_us: int) -> tuple[Any, ...]:
    first = (
        command.request_id,
        at_us,
        hold.account_id,
        hold.key_id,
        kind,
        command.model,
        hold.model,
        hold.price_version,
        command.input_tokens,
        command.cache_write_5m_tokens,
        command.cache_write_1h_tokens,
        command.cache_read_tokens,
        command.output_tokens,
    )
    rest = (
        command.web_searches,
        command.detail,
        command.cost_nanos,
        command.list_nanos,
        answer.charged_nanos,
        answer.shortfall_nanos,
        command.cost_nanos if command.waive else 0,
        command.status,
        command.outcome,
        command.stop_reason,
        command.message_id,
        command.upstream,
        command.upstream_request_id,
        command.attempts,
        int(command.streamed),
        command.first_byte_us,
        command.duration_us,
        command.held_nanos,
    )
    return first + rest  # the interpreter builds a tuple of more than 30 by way of a list, which takes longer
