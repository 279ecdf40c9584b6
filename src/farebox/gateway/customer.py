"""The API about an account itself, with a key of it: balance, usage, key, single calls and their receipts. Read only.

Nothing here is charged or goes upstream. It has a limit of its own, so that who looks often never waits for a call.
"""

import re
from collections.abc import Awaitable, Callable
from typing import Any, Final
from urllib.parse import parse_qs

import msgspec

from farebox.accounts.accounts import find_account
from farebox.accounts.keyring import Caller, KeyRing
from farebox.accounts.keys import Budget, find_key
from farebox.accounts.signing import Signing
from farebox.billing.plans import Plans
from farebox.books.call_receipts import Issuer, figures_of, write_receipt
from farebox.books.log import LoggedCall, find_call
from farebox.books.retention import let_go_before
from farebox.books.sums import FOREVER, calls_between, first_open, work_between
from farebox.clock import DAY_US, Clock, iso
from farebox.errors import InvalidRequest, NotFound, RateLimited
from farebox.gateway.answers import JSON
from farebox.gateway.counting import CountLimit
from farebox.gateway.customer_usage import Asked, usage_of
from farebox.http.exchange import Exchange, Headers
from farebox.ids import read_request_id, show_request_id
from farebox.money import NANOS_PER_USD, decimal_usd
from farebox.store.protocol import Store

Handler = Callable[[Caller, Exchange], Awaitable[Any]]

_WEEK: Final = 7
_SESSION_CHARS: Final = 200
_REQUEST_ID: Final = re.compile(r"req_[0-9a-f]{32}", re.ASCII)
_TEXT: Final = (b"content-type", b"text/plain; charset=utf-8")
_NANOS_PER_CENT: Final = NANOS_PER_USD // 100


class Customer:
    """Answers what a customer asks about what is theirs: every look-up is bound to the caller's account."""

    def __init__(
        self,
        *,
        keys: KeyRing,
        store: Store,
        plans: Plans,
        signing: Signing,
        issuer: Issuer,
        questions: CountLimit,
        clock: Clock,
    ) -> None:
        self._keys = keys
        self._store = store
        self._plans = plans
        self._signing = signing
        self._issuer = issuer
        self._questions = questions
        self._clock = clock

    async def balance(self, exchange: Exchange, request_id: bytes) -> None:
        """Tell what there is, what of it is held, and how long it lasts."""
        await self._serve(self._balance, exchange, request_id)

    async def usage(self, exchange: Exchange, request_id: bytes) -> None:
        """Sum up a range of days by model, key or outcome, a page at a time."""
        await self._serve(self._usage, exchange, request_id)

    async def key(self, exchange: Exchange, request_id: bytes) -> None:
        """Describe the key that asks, and the limits it is under."""
        await self._serve(self._key, exchange, request_id)

    async def request(self, exchange: Exchange, request_id: bytes) -> None:
        """Give one call with every line of its cost."""
        await self._serve(self._request, exchange, request_id)

    async def receipt(self, exchange: Exchange, request_id: bytes) -> None:
        """Give one call's receipt, signed."""
        await self._serve(self._receipt, exchange, request_id)

    async def statusline(self, exchange: Exchange, request_id: bytes) -> None:
        """Say in a few words what is left, for a line that is redrawn all the time; as JSON to who accepts it."""
        caller = await self._admit(exchange)
        line = await self._statusline(caller, exchange)
        headers: Headers = [(b"request-id", show_request_id(request_id).encode()), (b"cache-control", b"no-store")]
        if b"application/json" in (exchange.header(b"accept") or b""):
            exchange.respond(200, [JSON, *headers], msgspec.json.encode(line))
        else:
            exchange.respond(200, [_TEXT, *headers], f"{line['text']}\n".encode())

    async def _serve(self, handler: Handler, exchange: Exchange, request_id: bytes) -> None:
        caller = await self._admit(exchange)
        value = await handler(caller, exchange)
        headers = [JSON, (b"request-id", show_request_id(request_id).encode()), (b"cache-control", b"no-store")]
        exchange.respond(200, headers, msgspec.json.encode(value))

    async def _admit(self, exchange: Exchange) -> Caller:
        caller = await self._keys.authenticate(exchange.headers, self._clock(), exchange.peer)
        if wait_s := self._questions.take(caller.key_id):
            raise RateLimited(
                f"a key may ask {self._questions.per_minute} questions a minute about its account; "
                f"try again in {wait_s} s",
                retry_after_s=wait_s,
            )
        return caller

    async def _balance(self, caller: Caller, _: Exchange) -> dict[str, Any]:
        now_us = self._clock()
        account = await find_account(self._store, str(caller.account_id))
        key = await find_key(self._store, str(caller.key_id))
        today, week = await self._spent(caller.account_id, now_us)
        return {
            "type": "balance",
            "currency": "USD",
            "as_of": iso(now_us),
            "posted": decimal_usd(account.balance_nanos),
            "held": decimal_usd(account.held_nanos),
            "free": decimal_usd(account.free_nanos),
            "spent_today": decimal_usd(today),
            "spent_7_days": decimal_usd(week),
            "days_left": account.free_nanos * _WEEK // week if week else None,
            "key_budget": _show_budget(key.budget, now_us) if key.budget else None,
        }

    async def _usage(self, caller: Caller, exchange: Exchange) -> dict[str, Any]:
        now_us = self._clock()
        asked = Asked.read(exchange.query, now_us)
        return await usage_of(self._store, caller.account_id, asked, now_us)

    async def _key(self, caller: Caller, _: Exchange) -> dict[str, Any]:
        now_us = self._clock()
        key = await find_key(self._store, str(caller.key_id))
        plan = caller.limits(self._plans.get(caller.plan))
        return {
            "type": "key",
            "id": key.id,
            "name": key.name,
            "hint": key.hint,
            "created_at": iso(key.created_at_us),
            "expires_at": None if key.expires_at_us is None else iso(key.expires_at_us),
            "models": list(key.models),
            "networks": list(key.networks),
            "requests_per_minute": key.requests_per_minute,
            "budget": _show_budget(key.budget, now_us) if key.budget else None,
            "account": {
                "id": caller.account_id,
                "plan": plan.name,
                "requests_per_minute": plan.requests_per_minute,
                "tokens_per_minute": plan.tokens_per_minute,
                "concurrent": plan.concurrent,
            },
        }

    async def _request(self, caller: Caller, exchange: Exchange) -> dict[str, Any]:
        call = await self._find(caller, exchange.path.rpartition("/")[2])
        return {
            "type": "request",
            **await figures_of(self._store, caller.account_id, call),
            "key_id": call.key_id,
            "session": call.session,
            "agent": call.agent,
            "held": None if call.held_nanos is None else decimal_usd(call.held_nanos),
            "streamed": bool(call.streamed),
            "attempts": call.attempts,
            "first_byte_ms": None if call.first_byte_us is None else call.first_byte_us // 1000,
            "duration_ms": call.duration_us // 1000,
        }

    async def _receipt(self, caller: Caller, exchange: Exchange) -> dict[str, Any]:
        call = await self._find(caller, exchange.path.removesuffix("/receipt").rpartition("/")[2])
        receipt = await write_receipt(self._store, caller.account_id, call, self._issuer, self._clock())
        return self._signing.sign(receipt)

    async def _find(self, caller: Caller, text: str) -> LoggedCall:
        """Find a call of the caller's account. Another account's is as unknown as one that never was."""
        if not _REQUEST_ID.fullmatch(text):
            raise NotFound(f"a call's id is req_ and 32 hex digits, as in the header request-id; got {text[:60]!r}")
        request_id = read_request_id(text)
        call = await find_call(self._store, caller.account_id, request_id)
        if call is not None:
            return call
        holds = "SELECT 1 FROM hold WHERE request_id = ? AND account_id = ?"
        if await self._store.fetch(holds, (request_id, caller.account_id)):
            raise NotFound(f"{text} has not ended yet; ask again when it has")
        since = await let_go_before(self._store, request_id)
        if since:
            raise NotFound(f"calls of the time of {text} are no longer kept, only those since {since}")
        raise NotFound(f"this account has no call {text}; calls that were refused before they began are not kept")

    async def _statusline(self, caller: Caller, exchange: Exchange) -> dict[str, Any]:
        now_us = self._clock()
        session = _session(exchange)
        account = await find_account(self._store, str(caller.account_id))
        today, _ = await self._spent(caller.account_id, now_us)
        spent: int | None = None
        if session is not None:
            mine = "account_id = ? AND session = ?"
            sql, values = work_between(await first_open(self._store), 0, mine, (caller.account_id, session))
            sum_up = f"SELECT coalesce(sum(charged_nanos), 0) FROM ({sql}) AS work"  # noqa: S608  fixed texts
            rows = await self._store.fetch(sum_up, values)
            spent = int(rows[0][0])
        words = [f"{_cents(account.balance_nanos)} left", f"{_cents(today, up=True)} today"]
        if spent is not None:
            words.append(f"{_cents(spent, up=True)} session")
        return {
            "type": "statusline",
            "currency": "USD",
            "text": " · ".join(words),
            "posted": decimal_usd(account.balance_nanos),
            "held": decimal_usd(account.held_nanos),
            "free": decimal_usd(account.free_nanos),
            "spent_today": decimal_usd(today),
            "session": session,
            "spent_session": None if spent is None else decimal_usd(spent),
        }

    async def _spent(self, account_id: int, now_us: int) -> tuple[int, int]:
        """Sum what was charged today (UTC), and in the seven days of which today is the last."""
        opened = await first_open(self._store)
        begins_us = now_us // DAY_US * DAY_US
        sums = []
        for since_us in (begins_us, begins_us - (_WEEK - 1) * DAY_US):
            sql, values = calls_between(opened, since_us, FOREVER, "account_id = ?", (account_id,))
            sum_up = f"SELECT coalesce(sum(charged_nanos), 0) FROM ({sql}) AS calls"  # noqa: S608  fixed texts
            sums.append(int((await self._store.fetch(sum_up, values))[0][0]))
        return sums[0], sums[1]


def _show_budget(budget: Budget, now_us: int) -> dict[str, Any]:
    used = budget.used(now_us)
    resets_at = budget.resets_at_us(now_us)
    return {
        "limit": decimal_usd(budget.limit_nanos),
        "used": decimal_usd(used),
        "left": decimal_usd(max(0, budget.limit_nanos - used)),
        "resets": budget.resets,
        "resets_at": None if resets_at is None else iso(resets_at),
    }


def _session(exchange: Exchange) -> str | None:
    """Read which session of Claude Code is meant: from the query, else from its own header."""
    given = parse_qs(exchange.query).get("session")
    text = given[0] if given else (exchange.header(b"x-claude-code-session-id") or b"").decode("latin-1")
    if len(text) > _SESSION_CHARS or not (text.isascii() and text.isprintable()):
        raise InvalidRequest(f"session: at most {_SESSION_CHARS} printable ASCII characters, got {text[:40]!r}")
    return text or None


def _cents(nanos: int, *, up: bool = False) -> str:
    """Show an amount to the cent: what is there rounded down, what was spent rounded up."""
    cents = -(-nanos // _NANOS_PER_CENT) if up else nanos // _NANOS_PER_CENT
    return f"${cents // 100}.{cents % 100:02d}"
