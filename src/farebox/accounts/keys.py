"""API keys: made here, shown once, kept as a hash. A key that was revoked stays revoked.

What a key may spend stands in `key_budget`, whose `used_nanos` the ledger alone moves: here a limit is set or lifted.
"""

from typing import Any, Final, Literal

import msgspec

from farebox.accounts.key_rules import Rules, read_name
from farebox.billing.budgets import Resets, period_end_us, period_start_us
from farebox.clock import DAY_US
from farebox.errors import InvalidRequest, NotFound
from farebox.ids import key_hash, key_hint, new_key
from farebox.store.protocol import Statement, Store

Purpose = Literal["client", "playground"]
Status = Literal["active", "disabled", "expired", "revoked"]

MOST_KEYS: Final = 100
"""Keys of one account that are not revoked or expired."""
_IDLE_US: Final = 90 * DAY_US
_COLUMNS: Final = (
    "k.id, k.account_id, k.name, k.hint, k.created_at, k.expires_at, k.revoked_at, k.disabled_at, k.models, "
    "k.networks, k.requests_per_minute, k.replaced_by, k.purpose, b.limit_nanos, b.resets, b.since, b.used_nanos"
)
_LOCK_ACCOUNT: Final = "UPDATE account SET notes = notes WHERE id = ?"
"""The ledger counts under the account's lock: nothing that it counts may come between, or what is used would be off."""
_SET_BUDGET: Final = (
    "INSERT INTO key_budget (key_id, limit_nanos, resets, since) SELECT k.id, ?, ?, (SELECT max(m.at) FROM ("
    "SELECT ? AS at UNION ALL SELECT max(created_at) + 1 FROM hold WHERE account_id = k.account_id "
    "UNION ALL SELECT max(at) + 1 FROM usage WHERE account_id = k.account_id) m) FROM api_key k WHERE k.hash = ? "
    "ON CONFLICT (key_id) DO UPDATE SET limit_nanos = excluded.limit_nanos, resets = excluded.resets, "
    "since = CASE WHEN key_budget.resets = excluded.resets THEN key_budget.since ELSE excluded.since END, "
    "used_nanos = CASE WHEN key_budget.resets = excluded.resets THEN key_budget.used_nanos ELSE 0 END"
)
"""A new limit begins after all that the account has held and was charged; so does one with another period."""


class Budget(msgspec.Struct, frozen=True):
    """A key's spend limit. `used_nanos` is what was charged and is held since `since_us`."""

    limit_nanos: int
    resets: Resets
    since_us: int
    used_nanos: int

    def used(self, now_us: int) -> int:
        """Give what is used of the present period; the ledger moves on to it with the period's first call."""
        return self.used_nanos if self.since_us >= period_start_us(self.resets, now_us) else 0

    def resets_at_us(self, now_us: int) -> int | None:
        return period_end_us(self.resets, now_us)

    def share(self, now_us: int) -> int:
        """Give how much of the limit is used, in percent, at most 100."""
        return min(100, 100 * self.used(now_us) // self.limit_nanos) if self.limit_nanos else 100


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """A key as it is known after it was made: by its hint."""

    id: int
    account_id: int
    name: str
    hint: str
    created_at_us: int
    expires_at_us: int | None
    revoked_at_us: int | None
    disabled_at_us: int | None
    models: tuple[str, ...]
    networks: tuple[str, ...]
    requests_per_minute: int | None
    replaced_by: int | None
    purpose: Purpose
    budget: Budget | None

    def status(self, now_us: int) -> Status:
        if self.revoked_at_us is not None:
            return "revoked"
        if self.expires_at_us is not None and now_us >= self.expires_at_us:
            return "expired"
        return "active" if self.disabled_at_us is None else "disabled"

    def is_open(self, now_us: int) -> bool:
        """Tell whether the key works, or can be made to again."""
        return self.status(now_us) in {"active", "disabled"}

    @property
    def rules(self) -> Rules:
        return Rules(
            expires_at_us=self.expires_at_us,
            models=self.models,
            networks=self.networks,
            requests_per_minute=self.requests_per_minute,
            limit_nanos=self.budget.limit_nanos if self.budget else None,
            resets=self.budget.resets if self.budget else "never",
        )

    def hints(self, now_us: int, last_at_us: int | None) -> list[str]:
        """Name what would make an active key safer to lose."""
        if self.status(now_us) != "active" or self.purpose != "client":
            return []
        found = []
        if self.budget is None:
            found.append("no spend limit")
        if self.expires_at_us is None:
            found.append("never expires")
        if now_us - max(last_at_us or 0, self.created_at_us) > _IDLE_US:
            found.append("idle for 90 days")
        return found


async def create_key(
    store: Store,
    account_id: int,
    name: str,
    prefix: str,
    now_us: int,
    rules: Rules = Rules(),  # noqa: B008  frozen
    *,
    purpose: Purpose = "client",
) -> tuple[Key, str]:
    """Make a key for an account; answers it with the text that is never shown again. Raises InvalidRequest."""
    text, statements = _new_key(account_id, read_name(name), prefix, now_us, rules, purpose)
    await store.write(statements)
    return (await _select(store, "WHERE k.hash = ?", (key_hash(text.encode()),)))[0], text


async def playground_key(store: Store, account_id: int, prefix: str, now_us: int) -> bytes:
    """Give the hash of the key that an account's calls from the playground are booked under; the first call makes it.

    Its text is kept nowhere, so nobody can call with it from elsewhere.
    """
    sql = (
        "SELECT hash FROM api_key WHERE account_id = ? AND purpose = 'playground' AND revoked_at IS NULL "
        "AND (expires_at IS NULL OR expires_at > ?) ORDER BY id LIMIT 1"
    )
    rows = await store.fetch(sql, (account_id, now_us))
    if not rows:
        _, statements = _new_key(account_id, "Playground", prefix, now_us, Rules(), "playground")
        await store.write(statements)
        rows = await store.fetch(sql, (account_id, now_us))  # of two that were made at once, both calls take the first
    return bytes(rows[0][0])


async def roll_key(store: Store, key: Key, prefix: str, grace_us: int, now_us: int) -> tuple[Key, str]:
    """Make a key that takes another's place, with the same rules; the other one works on for so long, at most.

    Raises InvalidRequest for one that ceased to work already, or was rolled before.
    """
    if not key.is_open(now_us) or key.replaced_by is not None:
        state = "replaced already" if key.replaced_by is not None else key.status(now_us)
        raise InvalidRequest(f"key {key.id} ({key.name}) is {state}: make a new one instead")
    text, statements = _new_key(key.account_id, key.name, prefix, now_us, key.rules, key.purpose)
    digest = key_hash(text.encode())
    ends_at_us = min(now_us + grace_us, key.expires_at_us or now_us + grace_us)
    replace = (  # the guard closes the race of two rolls: the second one's key would stay, and replace nothing
        "UPDATE api_key SET expires_at = ?, replaced_by = (SELECT id FROM api_key WHERE hash = ?) "
        "WHERE id = ? AND revoked_at IS NULL AND replaced_by IS NULL"
    )
    changed = await store.write([*statements, (replace, (ends_at_us, digest, key.id))])
    made = (await _select(store, "WHERE k.hash = ?", (digest,)))[0]
    if not changed[-1]:
        await revoke_key(store, made.id, now_us)
        raise InvalidRequest(f"key {key.id} ({key.name}) was replaced or revoked in this very moment")
    return made, text


async def list_keys(store: Store, account_id: int | None = None) -> list[Key]:
    """Give the keys of an account, or all of them, oldest first."""
    if account_id is None:
        return await _select(store, "ORDER BY k.id", ())
    return await _select(store, "WHERE k.account_id = ? ORDER BY k.id", (account_id,))


async def find_key(store: Store, which: str) -> Key:
    """Find a key by its id, or by the key itself. Raises NotFound."""
    if which.isascii() and which.isdigit() and len(which) < 19:
        found = await _select(store, "WHERE k.id = ?", (int(which),))
    else:
        found = await _select(store, "WHERE k.hash = ?", (key_hash(which.encode()),))
    if not found:
        shown = which if which.isdigit() else "of that text"
        raise NotFound(f"there is no key {shown}; `farebox key list` names their ids")
    return found[0]


async def change_key(store: Store, key: Key, name: str, rules: Rules, now_us: int) -> None:
    """Give a key another name and other rules. Raises InvalidRequest."""
    change = (
        "UPDATE api_key SET name = ?, expires_at = ?, models = ?, networks = ?, requests_per_minute = ? WHERE id = ?"
    )
    limits = (" ".join(rules.models), " ".join(rules.networks), rules.requests_per_minute)
    statements: list[Statement] = [(change, (read_name(name), rules.expires_at_us, *limits, key.id))]
    if rules.limit_nanos is None:
        statements.append(("DELETE FROM key_budget WHERE key_id = ?", (key.id,)))
    else:
        budget = _SET_BUDGET.replace("k.hash = ?", "k.id = ?")
        statements.insert(0, (_LOCK_ACCOUNT, (key.account_id,)))
        statements.append((budget, (rules.limit_nanos, rules.resets, now_us, key.id)))
    await store.write(statements)


async def disable_key(store: Store, key_id: int, now_us: int) -> None:
    """Let a key rest; calls in flight end as they would. A second time changes nothing."""
    await store.write([("UPDATE api_key SET disabled_at = coalesce(disabled_at, ?) WHERE id = ?", (now_us, key_id))])


async def enable_key(store: Store, key_id: int) -> None:
    """Let a key that rested work again."""
    await store.write([("UPDATE api_key SET disabled_at = NULL WHERE id = ?", (key_id,))])


async def revoke_key(store: Store, key_id: int, now_us: int) -> None:
    """Revoke a key at once; calls in flight end as they would. A second time changes nothing."""
    revoke = "UPDATE api_key SET revoked_at = ? WHERE id = ? AND revoked_at IS NULL"
    await store.write([(revoke, (now_us, key_id))])


async def check_room(store: Store, account_id: int, now_us: int) -> None:
    """Raise InvalidRequest where an account has as many keys that work as it may make by itself."""
    rows = await store.fetch(
        "SELECT count(*) FROM api_key WHERE account_id = ? AND revoked_at IS NULL "
        "AND (expires_at IS NULL OR expires_at > ?)",
        (account_id, now_us),
    )
    if rows[0][0] >= MOST_KEYS:
        raise InvalidRequest(f"an account has at most {MOST_KEYS} keys that work; revoke one first")


def _new_key(
    account_id: int, name: str, prefix: str, now_us: int, rules: Rules, purpose: Purpose
) -> tuple[str, list[Statement]]:
    """Make a key's text and the statements that keep it."""
    text = new_key(prefix)
    digest = key_hash(text.encode())
    insert = (
        "INSERT INTO api_key (account_id, name, hash, hint, created_at, expires_at, models, networks, "
        "requests_per_minute, purpose) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
    )
    lists = (" ".join(rules.models), " ".join(rules.networks))
    known = (account_id, name, digest, key_hint(text, prefix), now_us, rules.expires_at_us)
    statements: list[Statement] = [(insert, (*known, *lists, rules.requests_per_minute, purpose))]
    if rules.limit_nanos is not None:
        statements.append((_SET_BUDGET, (rules.limit_nanos, rules.resets, now_us, digest)))
    return text, statements


async def _select(store: Store, where: str, params: tuple[Any, ...]) -> list[Key]:
    rows = await store.fetch(
        f"SELECT {_COLUMNS} FROM api_key k LEFT JOIN key_budget b ON b.key_id = k.id {where}",  # noqa: S608  fixed texts
        params,
    )
    return [_key(*row) for row in rows]


def _key(*row: Any) -> Key:
    known, (models, networks), (requests, replaced_by, purpose), budget = row[:8], row[8:10], row[10:13], row[13:]
    return Key(
        **dict(zip(Key.__struct_fields__, known, strict=False)),
        models=tuple(models.split()),
        networks=tuple(networks.split()),
        requests_per_minute=requests,
        replaced_by=replaced_by,
        purpose=purpose,
        budget=None if budget[0] is None else Budget(*budget),
    )
