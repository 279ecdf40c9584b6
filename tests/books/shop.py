"""Books with a few people in them, opened as a serving process opens them, and a clock that the test sets."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from msgspec.structs import replace

from farebox.accounts.accounts import create_account
from farebox.accounts.keys import create_key
from farebox.billing.ledger import Admission, Admit, Settle, Settled
from farebox.billing.plans import Plan, Plans
from farebox.billing.pricing import Catalogue, Model, Rates, Tariff
from farebox.billing.usage import Line, Usage
from farebox.books.ledger import Ledger, credit
from farebox.books.prices import pin_prices
from farebox.books.runs import Runs
from farebox.ids import new_request_id
from farebox.store.open import open_store
from farebox.store.protocol import Store

PLANS = Plans([Plan("pro", 100_000, 10**9, 100_000)])
NOON_US = 1_795_348_800_000_000
MODELS = (
    Model(
        id="opus",
        display_name="Opus",
        rates=Tariff(
            list=Rates(15 * 10**9, 75 * 10**9, 18_750_000_000, 30 * 10**9, 1_500_000_000),
            sell=Rates(7_500_000_000, 37_500_000_000, 9_375_000_000, 15 * 10**9, 750_000_000),
        ),
        context_tokens=200_000,
        max_output_tokens=64_000,
        aliases=("best",),
        web_search=10_000_000,
    ),
    Model(
        id="never-asked-for",
        display_name="Quiet",
        rates=Tariff(list=Rates(2, 2, 2, 2, 2), sell=Rates(1, 1, 1, 1, 1)),
        context_tokens=200_000,
        max_output_tokens=64_000,
    ),
)


class Shop:
    """alice has money, bob has none."""

    def __init__(self, url: str, store: Store) -> None:
        self.url = url
        self.store = store
        self.ledger = Ledger(store)
        self.runs = Runs(store, self.ledger, lease_s=300, warn=_refuse_to_warn)
        self.now_us = NOON_US
        self.catalogue: Catalogue
        self.keys: dict[int, int] = {}
        self.alice = 0
        self.bob = 0

    async def person(self, email: str, nanos: int = 0) -> int:
        account = await create_account(self.store, email, "pro", self.now_us)
        key, _ = await create_key(self.store, account.id, "key", "sk-cc-", self.now_us)
        self.keys[account.id] = key.id
        if nanos:
            await self.ledger.post(credit(f"first:{email}", account.id, nanos, code="deposit", actor="test", memo=""))
        return account.id

    def admission(self, account_id: int, amount: int, *, request_id: bytes = b"", **fields: Any) -> Admit:
        return Admit(
            request_id=request_id or new_request_id(self.now_us),
            account_id=account_id,
            key_id=self.keys[account_id],
            model="best",
            amount_nanos=amount,
            least_nanos=fields.pop("least_nanos", amount),
            tokens=fields.pop("tokens", 1),
            price_version=self.catalogue.version,
        )

    async def admit(self, account_id: int, amount: int, **fields: Any) -> tuple[bytes, Admission]:
        command = self.admission(account_id, amount, **fields)
        return command.request_id, await self.ledger.admit(command)

    def settlement(self, request_id: bytes, account_id: int, cost: int = 0, **fields: Any) -> Settle:
        plain = Settle(
            request_id=request_id,
            account_id=account_id,
            kind="exact",
            model="opus",
            outcome="finished",
            status=200,
            cost_nanos=cost,
            list_nanos=cost * 2,
        )
        return replace(plain, **fields)

    async def call(self, account_id: int, input_tokens: int, output_tokens: int, **fields: Any) -> bytes:
        """Serve one whole call at its right price."""
        request_id, _ = await self.admit(account_id, 10**8)
        usage = Usage((Line("opus", input=input_tokens, output=output_tokens),))
        priced = self.catalogue.price(usage, self.catalogue.models["opus"])
        settled = await self.ledger.settle(
            self.settlement(
                request_id,
                account_id,
                priced.cost_nanos,
                list_nanos=priced.list_nanos,
                input_tokens=input_tokens,
                output_tokens=output_tokens,
                **fields,
            )
        )
        assert isinstance(settled, Settled)
        return request_id

    async def balance(self, account_id: int) -> tuple[int, int, int]:
        """Posted, held, and how many holds are open."""
        rows = await self.store.fetch(
            "SELECT posted_nanos, held_nanos, open_holds FROM account WHERE id = ?", (account_id,)
        )
        return rows[0][0], rows[0][1], rows[0][2]

    async def count(self, table: str) -> int:
        return int((await self.store.fetch(f"SELECT count(*) FROM {table}"))[0][0])


def _refuse_to_warn(event: str, **_: object) -> None:
    raise AssertionError(event)


@asynccontextmanager
async def open_shop(url: str, *, alice_nanos: int = 10**9) -> AsyncIterator[Shop]:
    shops: list[Shop] = []
    store = await open_store(url, plans=PLANS, clock=lambda: shops[0].now_us if shops else NOON_US, serving=True)
    try:
        shop = Shop(url, store)
        shops.append(shop)
        await shop.runs.begin(NOON_US + await shop.count("run"))
        shop.catalogue = await pin_prices(store, MODELS, NOON_US)
        if not await shop.count("account"):
            shop.alice = await shop.person("alice@example.com", alice_nanos)
            shop.bob = await shop.person("bob@example.com")
        else:
            shop.alice, shop.bob = 1, 2
            shop.keys = dict(await store.fetch("SELECT account_id, id FROM api_key"))
        yield shop
    finally:
        await store.close()
