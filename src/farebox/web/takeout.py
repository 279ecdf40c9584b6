"""Takeout: everything that is kept about whoever is signed in, as one JSON file, written while it is read.

No secret is in it: no key, no password, no link of a mail that still works.
"""

import re
from collections.abc import AsyncIterator
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from farebox.accounts.sessions import Session
from farebox.billing.ledger import customer_account
from farebox.clock import day_of, iso
from farebox.ids import show_request_id
from farebox.money import decimal_usd
from farebox.store.protocol import Store
from farebox.web.kit import Kit

ROWS_AT_ONCE: Final = 500
_LINK: Final = re.compile(r"\b(token|invitation)=[\w-]+")


class Part(msgspec.Struct, frozen=True):
    """A table of the file. `key` are the columns it is read by, in the order of an index; `of` names the owner.

    `only` is a condition that a row fulfils besides.
    """

    name: str
    table: str
    columns: str
    key: tuple[str, ...]
    of: str = "account_id"
    only: str = ""

    def page(self, after: tuple[Any, ...]) -> str:
        """Write the question for the rows after a key; without one for the first."""
        keys = ", ".join(self.key)
        only = f" AND {self.only}" if self.only else ""
        later = f" AND ({keys}) > ({', '.join('?' * len(self.key))})" if after else ""
        return (
            f"SELECT {keys}, {self.columns} FROM {self.table} WHERE {self.of} = ?{only}{later} "  # noqa: S608  fixed texts
            f"ORDER BY {keys} LIMIT {ROWS_AT_ONCE}"
        )


_MOVED: Final = "code, memo, amount_nanos, debit_account, credit_account, actor"
_OWN_MAILS: Final = "at >= (SELECT created_at FROM account WHERE email = recipient)"
"""Not those to whoever had the address before this account: who signs up with one need not be who it belongs to."""
PARTS: Final = (
    Part(
        "account",
        "account",
        "email, plan, status, role, details, posted_nanos, held_nanos, topped_up_nanos, created_at, verified_at",
        ("id",),
        "id",
    ),
    Part("keys", "api_key", "name, hint, purpose, models, networks, requests_per_minute, created_at, expires_at, "
         "disabled_at, revoked_at, replaced_by", ("id",)),
    Part("key_limits", "key_budget JOIN api_key ON api_key.id = key_id", "limit_nanos, resets, since, used_nanos",
         ("key_id",)),
    Part("money_in", "transfer", _MOVED, ("at", "id"), "credit_account"),
    Part("money_out", "transfer", _MOVED, ("at", "id"), "debit_account"),
    Part("top_ups", "topup", "rail, asset, amount_nanos, asked_units, address, rate_nanos, pricing, state, created_at, "
         "ends_at, changed_at", ("id",)),
    Part("payments", "payment", "rail, asset, address, units, topup_id, tx, block, height, confirmations, needed, "
         "state, seen_at, changed_at, worth_nanos, taken_nanos, pricing, transfer_id", ("seen_at", "id")),
    Part("deposit_addresses", "deposit_address", "family, address, rail, asset, created_at, used_at", ("id",)),
    Part("batches", "batch", "id AS batch, way, state, created_at, expires_at, cancel_at, ended_at, items, succeeded, "
         "errored, canceled, expired", ("id",)),
    Part("files", "file", "id AS file, filename, mime_type, size_bytes, created_at, expires_at", ("created_at", "id")),
    Part("alerts", "alert", "kind, at_nanos, told_at", ("id",)),
    Part("webhooks", "webhook", "url, events, created_at, disabled_at", ("id",)),
    Part("linked_accounts", "identity", "provider, name, created_at", ("id",)),
    Part("passkeys", "passkey", "name, created_at, used_at", ("created_at",)),
    Part("sessions", "session", "agent, address, seen_at, ends_at", ("created_at",)),
    Part("stopped_sessions", "stopped_session", "session, stopped_at", ("id",)),
    Part("mails", "outbox", "at, subject, body, sent_at", ("id",), "recipient", _OWN_MAILS),
    Part("usage", "usage", "key_id, kind, model, outcome, status, input_tokens, cache_write_5m_tokens, "
         "cache_write_1h_tokens, cache_read_tokens, output_tokens, web_searches, cost_nanos, charged_nanos, "
         "list_nanos, waived_nanos, shortfall_nanos, stop_reason, streamed, duration_us, session, agent, parent_agent",
         ("at", "request_id")),
)  # fmt: skip
"""In the order of the file; the longest is last."""


class Takeout:
    """The page about one's data, and the file."""

    def __init__(self, kit: Kit) -> None:
        self._pages = kit.pages
        self._visitors = kit.visitors
        self._store = kit.store
        self._clock = kit.clock

    def routes(self) -> list[Route]:
        return [
            Route("/dashboard/settings/data", self._visitors.signed_in(self.data)),
            Route("/dashboard/settings/data.json", self._visitors.sure(self.file)),
        ]

    async def data(self, request: Request, me: Session) -> Response:
        return self._pages.render(request, "data.html", me=me)

    async def file(self, request: Request, me: Session) -> Response:  # noqa: ARG002  a page's signature
        now_us = self._clock()
        headers = {"content-disposition": f'attachment; filename="account-{day_of(now_us)}.json"'}
        return StreamingResponse(write_all(self._store, me, now_us), media_type="application/json", headers=headers)


async def write_all(store: Store, me: Session, now_us: int) -> AsyncIterator[bytes]:
    """Write the file piece by piece; memory does not grow with it."""
    yield b'{"written_at": "%b"' % iso(now_us).encode()
    owners = {"recipient": me.email, "credit_account": customer_account(me.account_id)}
    owners["debit_account"] = owners["credit_account"]
    for part in PARTS:
        before = f',\n"{part.name}": ['.encode()
        async for page in _pages_of(store, part, owners.get(part.of, me.account_id)):
            yield before + b",\n".join(msgspec.json.encode(row) for row in page)
            before = b",\n"
        yield b"]" if before == b",\n" else before + b"]"
    yield b"}\n"


async def _pages_of(store: Store, part: Part, owner: int | str) -> AsyncIterator[list[dict[str, Any]]]:
    names = (*part.key, *(name.strip() for name in part.columns.split(",")))
    after: tuple[Any, ...] = ()
    while True:
        rows = await store.fetch(part.page(after), (owner, *after))
        if rows:
            yield [dict(_plain(*pair) for pair in zip(names, row, strict=True)) for row in rows]
        if len(rows) < ROWS_AT_ONCE:
            return
        after = rows[-1][: len(part.key)]


def _plain(name: str, value: Any) -> tuple[str, Any]:
    """Write a value as people and programs elsewhere read it: amounts in dollars, moments by RFC 3339."""
    if name.endswith("_nanos"):
        return name.removesuffix("_nanos") + "_usd", None if value is None else decimal_usd(value)
    if name == "request_id":
        return name, show_request_id(bytes(value))
    if (name in {"at", "since"} or name.endswith("_at")) and value is not None:
        return name, iso(value)
    if name == "body":
        return name, _LINK.sub(r"\1=…", value)
    return name, value
