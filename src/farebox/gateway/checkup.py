"""What the server sees of a customer's calls (GET …/doctor), and a stream that shows who holds it back.

Free: nothing is held, and nothing goes upstream. It has the limit that questions about an account have.
"""

import asyncio
from collections.abc import Iterator
from typing import Final

import msgspec

from farebox.accounts.accounts import find_account
from farebox.accounts.findings import Finding, Status, of_balance, of_small_model, of_spend_limit
from farebox.accounts.keyring import Caller, KeyRing
from farebox.accounts.keys import find_key
from farebox.books.prices import Prices
from farebox.clock import Clock
from farebox.errors import RateLimited
from farebox.gateway.answers import JSON
from farebox.gateway.counting import CountLimit
from farebox.http.exchange import Exchange, Headers
from farebox.ids import show_request_id
from farebox.store.protocol import Store
from farebox.upstreams.pool import Pool

_PIECES: Final = 10
_PIECE_S: Final = 0.1
"""The test stream takes a second: a proxy that collects it shows."""
_SHOWN: Final = 8


class Checkup:
    """Answers what a customer asks whose client does not get through, or not as it should."""

    def __init__(
        self,
        *,
        keys: KeyRing,
        store: Store,
        pool: Pool,
        prices: Prices,
        questions: CountLimit,
        clock: Clock,
        public_url: str,
        base_path: str,
    ) -> None:
        self._keys = keys
        self._store = store
        self._pool = pool
        self._prices = prices
        self._questions = questions
        self._clock = clock
        self._public_url = public_url
        self._base_path = base_path

    async def doctor(self, exchange: Exchange, request_id: bytes) -> None:
        """Tell what there is to say of the address, the credential, the money and the models of who asks."""
        caller = await self._admit(exchange)
        findings = [
            self._address(exchange),
            self._credential(exchange),
            *await self._money(caller),
            *self._models(caller),
        ]
        headers = [JSON, (b"request-id", show_request_id(request_id).encode()), (b"cache-control", b"no-store")]
        well = all(finding.status != "fail" for finding in findings)
        exchange.respond(200, headers, msgspec.json.encode({"type": "doctor", "well": well, "findings": findings}))

    async def stream(self, exchange: Exchange, request_id: bytes) -> None:
        """Send a second's worth of pings, a tenth of a second apart."""
        await self._admit(exchange)
        headers: Headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),
            (b"request-id", show_request_id(request_id).encode()),
        ]
        exchange.start(200, headers)
        for piece in range(_PIECES + 1):
            if exchange.gone:
                break
            if piece:
                await asyncio.sleep(_PIECE_S)
            exchange.write(b'event: ping\ndata: {"type":"ping","piece":%d,"of":%d}\n\n' % (piece, _PIECES))
        exchange.finish()

    async def _admit(self, exchange: Exchange) -> Caller:
        caller = await self._keys.authenticate(exchange.headers, self._clock(), exchange.peer)
        if wait_s := self._questions.take(caller.key_id):
            raise RateLimited(
                f"a key may ask {self._questions.per_minute} questions a minute about its account; "
                f"try again in {wait_s} s",
                retry_after_s=wait_s,
            )
        return caller

    def _address(self, exchange: Exchange) -> Finding:
        base = f"{self._public_url}{self._base_path}"
        path = exchange.path
        if "/v1/v1/" in path:
            return Finding("address", "warn", f"the base URL ends with /v1, which clients add themselves: use {base}")
        if not path.startswith(f"{self._base_path}/"):
            return Finding("address", "warn", f"calls come without {self._base_path}, which works, too: use {base}")
        return Finding("address", "ok", f"calls come to {base}")

    def _credential(self, exchange: Exchange) -> Finding:
        key, bearer = exchange.header(b"x-api-key") or b"", exchange.header(b"authorization") or b""
        if key and bearer and not bearer.endswith(key):
            words = (
                "x-api-key and authorization carry different credentials: the one that is a key of this server counts"
            )
            return Finding("credential", "warn", words)
        if key and bearer:
            return Finding("credential", "ok", "the key comes in x-api-key and in authorization")
        return Finding("credential", "ok", f"the key comes in {'x-api-key' if key else 'authorization'}")

    async def _money(self, caller: Caller) -> list[Finding]:
        account = await find_account(self._store, str(caller.account_id))
        key = await find_key(self._store, str(caller.key_id))
        top_up = f"top up at {self._public_url}/dashboard/topup"
        found = [of_balance(account.free_nanos, account.held_nanos).but(top_up)]
        if key.budget is not None:
            raised = f"raise its spend limit at {self._public_url}/dashboard/keys"
            found.append(of_spend_limit(key.budget.limit_nanos, key.budget.used(self._clock())).but(raised))
        return found

    def _models(self, caller: Caller) -> Iterator[Finding]:
        models = self._prices.now.models
        mine = [name for name in models if caller.may_use(name)]
        shown = ", ".join(mine[:_SHOWN]) + (f" and {len(mine) - _SHOWN} more" if len(mine) > _SHOWN else "")
        if len(mine) < len(models):
            yield Finding(
                "models", "ok", f"this key may use {len(mine)} of the {len(models)} models sold here: {shown}"
            )
        else:
            yield Finding("models", "ok", f"{len(mine)} models are sold here: {shown}")
        small = of_small_model(mine)
        if small is not None:
            yield small
        away = [name for name in mine if not self._pool.ways_up(name)[0]]
        if away:
            lost: Status = "fail" if len(away) == len(mine) else "warn"
            words = f"no upstream serves {', '.join(away[:_SHOWN])} at the moment: see {self._public_url}/status"
            yield Finding("upstreams", lost, words)
        else:
            yield Finding("upstreams", "ok", "every one of them is served at the moment")
