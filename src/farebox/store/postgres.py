"""The books in PostgreSQL: many processes on many machines, one round trip a batch.

A batch goes to the database as one call of `apply_batch` (postgres_ledger.sql), which locks the accounts, folds the
commands and writes the rows in one transaction. Each lane has a connection of its own, and sends its next batch when
the last one is durable. A batch whose answer was lost is sent again: ids make that harmless.
"""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Final, TypeVar

import asyncpg
import msgspec

from farebox.billing.ledger import ORDER, Admit, Answer, Command, Expire, Resize, Settle, Transfer, customer_id
from farebox.billing.plans import Plan, Plans
from farebox.clock import Clock
from farebox.errors import BrokenInvariant, StoreConflict, StoreUnavailable, StoreUnreachable
from farebox.store.postgres_answers import read_answer
from farebox.store.postgres_schema import check_schema, find_faults, prepare
from farebox.store.protocol import Row, Statement
from farebox.store.urls import without_password

T = TypeVar("T")

_LANES: Final = 2
_POOL: Final = 3
CONNECTIONS: Final = _LANES + _POOL + 1
"""What a serving process may have open at most: the one that listens for changes among them."""
_PATIENCE_S: Final = 1.5
"""How long a serving process tries before it says that the books cannot be written."""
_CONTROL_PATIENCE_S: Final = 10.0
"""The same for what no call waits for."""
_COMMAND_PATIENCE_S: Final = 600.0
"""The command line's: reports of years may take their time."""
_CONNECT_S: Final = 10.0
_SESSION: Final = {
    "application_name": "farebox",
    "jit": "off",
    "idle_in_transaction_session_timeout": "5s",
    "client_min_messages": "error",
    "timezone": "UTC",
}
_LANE_SESSION: Final = {
    **_SESSION,
    "statement_timeout": "2s",
    "lock_timeout": "1s",
    # the ledger's statements look rows up by key. Planned once, for that: a plan made while tables are empty would else
    # read them whole, and planning anew costs more than running (docs/decisions/0011 has the measurement)
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "enable_bitmapscan": "off",
}
_APPLY: Final = "SELECT * FROM apply_batch($1, $2, $3, $4, $5, $6, $7, $8)"
_PLACE: Final = {kind: place for place, kind in enumerate(ORDER)}
_LOST: Final = (OSError, asyncpg.InterfaceError, asyncpg.PostgresConnectionError, asyncpg.InternalClientError)
_COMMANDS_FAULT: Final = ("22", "23", "P0")
"""Classes of SQLSTATE that speak of the values sent: data, integrity, and our own RAISE."""
_CHANGED: Final = "farebox_changed"


async def open_store(
    url: str, *, plans: Plans | None = None, clock: Clock | None = None, create: bool = True, serving: bool = False
) -> "PostgresStore":
    """Open the books at postgresql://user:password@host:port/name. Raises StoreUnavailable.

    `clock` takes the place of the database's, which all processes share otherwise. See store/open.py for the rest.
    """
    store = PostgresStore(url, plans, clock, serving=serving)
    try:
        await store.open(create=create)
    except BaseException:
        await store.close()
        raise
    return store


class PostgresStore:
    """Store (see store/protocol.py) in a PostgreSQL database."""

    def __init__(self, url: str, plans: Plans | None, clock: Clock | None, *, serving: bool) -> None:
        self.url = url
        self.run_id = 0
        self.lanes = _LANES if serving else 1
        self.shared = True
        self.clock = clock
        self.plans = list(plans or Plans([Plan("default", 60, 1_000_000, 100)]))
        self.apply_patience_s = _PATIENCE_S if serving else _CONTROL_PATIENCE_S
        self.patience_s = _CONTROL_PATIENCE_S if serving else _COMMAND_PATIENCE_S
        self._lanes = [_Lane(self) for _ in range(self.lanes)]
        self._pool: asyncpg.Pool | None = None
        self._listener: asyncpg.Connection | None = None
        self._changed = True
        self._texts: dict[str, str] = {}

    async def open(self, *, create: bool) -> None:
        """Connect, and look at the schema."""
        async with one_connection(self.url) as connection:
            if create:
                await prepare(connection)
            await check_schema(connection, self.where)
        self._pool = asyncpg.create_pool(
            self.url,
            min_size=0,
            max_size=_POOL,
            timeout=min(self.patience_s, _CONNECT_S),
            command_timeout=self.patience_s,
            server_settings=_SESSION,
            init=_prefer_integers,
        )
        await self._pool

    @property
    def where(self) -> str:
        """The database, for people."""
        return without_password(self.url)

    async def connect(self, session: dict[str, str], *, timeout_s: float) -> asyncpg.Connection:
        """Make a connection of our own kind."""
        return await _connect(self.url, session, timeout_s=timeout_s)

    async def apply(self, batch: Sequence[Command], lane: int = 0) -> list[Answer | Exception]:
        answers: dict[int, Answer | Exception] = {}
        order = sorted(range(len(batch)), key=lambda index: _PLACE[type(batch[index])])
        for part in _without_repeats(batch, order):
            part_answers = await self._lanes[lane].apply([batch[index] for index in part])
            answers.update(zip(part, part_answers, strict=True))
        return [answers[index] for index in range(len(batch))]

    async def fetch(self, sql: str, params: tuple[Any, ...] = (), *, patience_s: float | None = None) -> list[Row]:
        text = self._text(sql)

        async def read(connection: asyncpg.Connection) -> list[Row]:
            return [tuple(record) for record in await connection.fetch(text, *params)]

        return await self._insist(read, patience_s)

    async def write(self, statements: Sequence[Statement]) -> list[int]:
        async def run(connection: asyncpg.Connection) -> list[int]:
            async with connection.transaction():
                return [_count(await connection.execute(self._text(sql), *params)) for sql, params in statements]

        return await self._once(run)

    async def changed_elsewhere(self) -> bool:
        """See Store. Told by the database; while nobody listens, everything may have changed."""
        if self._listener is None:
            try:
                listener = await self.connect(_SESSION, timeout_s=self.patience_s)
                listener.add_termination_listener(self._deafened)
                await listener.add_listener(_CHANGED, self._told)
            except (*_LOST, asyncpg.PostgresError, TimeoutError):
                return True
            self._listener, self._changed = listener, True
        changed, self._changed = self._changed, False
        return changed

    async def is_served(self) -> bool:
        rows = await self.fetch("SELECT count(*) FROM run WHERE stopped_at IS NULL AND lease_until > now_us()")
        return bool(rows[0][0])

    async def check_itself(self) -> list[tuple[str, int, list[str]]]:
        return await self._insist(find_faults)

    async def close(self) -> None:
        for lane in self._lanes:
            await lane.close()
        if self._listener is not None:
            self._listener.remove_termination_listener(self._deafened)
            await _shut(self._listener)
        if self._pool is not None:
            try:
                await asyncio.wait_for(self._pool.close(), _CONNECT_S)
            except (*_LOST, asyncpg.PostgresError, TimeoutError):
                self._pool.terminate()

    async def _insist(self, task: Callable[[asyncpg.Connection], Awaitable[T]], patience_s: float | None = None) -> T:
        """Run a reading task, again on another connection when the one it had was lost."""
        try:
            return await self._once(task, patience_s)
        except StoreUnavailable as error:
            if not isinstance(error.__cause__, (*_LOST, asyncpg.OperatorInterventionError)):
                raise
            return await self._once(task, patience_s)

    async def _once(self, task: Callable[[asyncpg.Connection], Awaitable[T]], patience_s: float | None = None) -> T:
        assert self._pool is not None
        try:
            async with asyncio.timeout(patience_s or self.patience_s), self._pool.acquire() as connection:
                return await task(connection)
        except asyncpg.IntegrityConstraintViolationError as error:
            raise StoreConflict(str(error)) from error
        except (*_LOST, asyncpg.PostgresError, TimeoutError) as error:
            raise StoreUnavailable(f"the database did not answer: {_words(error)}") from error

    def _text(self, sql: str) -> str:
        text = self._texts.get(sql)
        if text is None:
            text = self._texts[sql] = numbered(sql)
        return text

    def _told(self, *_: object) -> None:
        self._changed = True

    def _deafened(self, _: object) -> None:
        self._listener = None


class _Lane:
    """One connection, over which one batch goes at a time."""

    def __init__(self, store: PostgresStore) -> None:
        self._store = store
        self._connection: asyncpg.Connection | None = None
        self._apply: Any = None
        plans = store.plans
        self._limits = (
            [plan.name for plan in plans],
            [plan.requests_per_minute for plan in plans],
            [plan.tokens_per_minute for plan in plans],
            [plan.concurrent for plan in plans],
        )

    async def apply(self, batch: Sequence[Command]) -> list[Answer | Exception]:
        """Apply a batch that is in order and names no id twice. Raises StoreUnavailable."""
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + self._store.apply_patience_s
        again = False
        while True:
            try:
                async with asyncio.timeout_at(give_up_at):
                    return await self._send(batch, again=again)
            except asyncpg.PostgresError as error:
                state = error.sqlstate or ""
                if state.startswith(_COMMANDS_FAULT):
                    return await self._one_by_one(batch, error)
                failure: Exception = error
                if state.startswith(("08", "57", "53")):
                    self._drop()
            except (*_LOST, TimeoutError) as error:
                failure = error
                self._drop()
            except BaseException:
                self._drop()  # cancelled with an answer on its way
                raise
            if loop.time() + 0.05 >= give_up_at:
                raise StoreUnavailable(f"the database did not take the batch: {_words(failure)}") from failure
            again = True
            await asyncio.sleep(random.uniform(0.01, 0.05))  # noqa: S311  jitter

    async def close(self) -> None:
        if self._connection is not None:
            await _shut(self._connection)
            self._connection = None

    async def _send(self, batch: Sequence[Command], *, again: bool) -> list[Answer | Exception]:
        if self._connection is None or self._connection.is_closed():
            self._connection = await self._store.connect(_LANE_SESSION, timeout_s=_CONNECT_S)
            self._apply = await self._connection.prepare(_APPLY)
        clock = self._store.clock
        records = await self._apply.fetch(
            msgspec.json.encode(batch).decode(),
            _accounts_of(batch),
            *self._limits,
            self._store.run_id,
            clock() if clock is not None else None,
        )
        plans = self._store.plans
        return [
            read_answer(command, record, plans, again=again) for command, record in zip(batch, records, strict=True)
        ]

    async def _one_by_one(self, batch: Sequence[Command], error: Exception) -> list[Answer | Exception]:
        """Find the command whose values spoil the batch: the others must not suffer for it."""
        if len(batch) == 1:
            return [BrokenInvariant(f"{_words(error)}: {batch[0]}")]
        return [answer for command in batch for answer in await self.apply([command])]

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None


@contextlib.asynccontextmanager
async def one_connection(url: str, session: dict[str, str] | None = None) -> AsyncIterator[asyncpg.Connection]:
    """Lend a connection, beside those of whoever serves. Raises StoreUnreachable, and StoreUnavailable for all else."""
    where = without_password(url)
    try:
        connection = await _connect(url, {**_SESSION, **(session or {})}, timeout_s=_CONNECT_S)
    except (*_LOST, asyncpg.PostgresError, TimeoutError, ValueError) as error:
        raise StoreUnreachable(f"the database {where} cannot be reached: {_words(error)}") from error
    try:
        yield connection
    except (*_LOST, asyncpg.PostgresError, TimeoutError) as error:
        raise StoreUnavailable(f"the database {where} cannot be used: {_words(error)}") from error
    finally:
        await _shut(connection)


def numbered(sql: str) -> str:
    """Write `?` placeholders as PostgreSQL does: $1, $2 and so on."""
    first, *rest = sql.split("?")
    return first + "".join(f"${number}{part}" for number, part in enumerate(rest, 1))


async def _connect(url: str, session: dict[str, str], *, timeout_s: float) -> asyncpg.Connection:
    connection = await asyncpg.connect(url, timeout=timeout_s, server_settings=session)
    await _prefer_integers(connection)
    return connection


def _without_repeats(batch: Sequence[Command], order: list[int]) -> list[list[int]]:
    """Cut a batch before every command whose id it has named already: the function looks each id up once."""
    parts: list[list[int]] = []
    seen: set[bytes | str] = set()
    for index in order:
        command = batch[index]
        name = command.id if isinstance(command, Transfer) else command.request_id
        if not parts or name in seen:
            parts.append([])
            seen.clear()
        seen.add(name)
        parts[-1].append(index)
    return parts


def _accounts_of(batch: Sequence[Command]) -> list[int]:
    accounts: set[int] = set()
    for command in batch:
        if isinstance(command, Admit | Settle | Resize | Expire):
            accounts.add(command.account_id)
        else:
            named = (customer_id(command.debit_account), customer_id(command.credit_account))
            accounts.update(account_id for account_id in named if account_id is not None)
    return list(accounts)


async def _prefer_integers(connection: asyncpg.Connection) -> None:
    """Read sums, which PostgreSQL widens to numeric, as integers."""
    await connection.set_type_codec("numeric", schema="pg_catalog", encoder=str, decoder=int, format="text")


async def _shut(connection: asyncpg.Connection) -> None:
    with contextlib.suppress(*_LOST, asyncpg.PostgresError, TimeoutError):
        await connection.close(timeout=1.0)
    if not connection.is_closed():
        connection.terminate()


def _count(status: str) -> int:
    """Read the rows changed from a command's status, such as "UPDATE 3"."""
    number = status.rpartition(" ")[2]
    return int(number) if number.isdigit() else 0


def _words(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "it took too long"
    return str(error) or type(error).__name__
