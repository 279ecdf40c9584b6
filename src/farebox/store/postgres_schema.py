"""The schema in PostgreSQL: made, brought up to date under an advisory lock, and checked."""

import contextlib
import re
from collections.abc import Callable
from typing import Final

import asyncpg

from farebox.errors import StoreUnavailable
from farebox.store import schema

_LOCK: Final = 0x6661_7265_626F_78  # "farebox"
_BODY: Final = re.compile(r"CREATE (?:OR REPLACE )?FUNCTION (\w+)\(.*?\$\$(.*?)\$\$", re.DOTALL)
_VERSIONS: Final = (
    "CREATE TABLE IF NOT EXISTS schema_version (version BIGINT PRIMARY KEY, at TIMESTAMPTZ NOT NULL DEFAULT now())"
)
_LEASES_SINCE: Final = 2
RISKS: Final = {
    "fsync": "a crash of the machine can lose or corrupt the books",
    "full_page_writes": "a crash of the machine can corrupt the books",
    "synchronous_commit": "a crash can lose charges that were answered for",
}
_CONSTRAINTS: Final = {
    "account_pkey": "PRIMARY KEY (id)",
    "account_email_key": "UNIQUE (email)",
    "account_check": "CHECK (posted_nanos >= held_nanos)",
    "account_held_nanos_check": "CHECK (held_nanos >= 0)",
    "account_open_holds_check": "CHECK (open_holds >= 0)",
    "account_status_check": "CHECK (status = ANY (ARRAY['active'::text, 'suspended'::text, 'closed'::text]))",
    "api_key_pkey": "PRIMARY KEY (id)",
    "api_key_hash_key": "UNIQUE (hash)",
    "api_key_account_id_fkey": "FOREIGN KEY (account_id) REFERENCES account(id)",
    "run_pkey": "PRIMARY KEY (id)",
    "price_list_pkey": "PRIMARY KEY (version)",
    "hold_pkey": "PRIMARY KEY (request_id)",
    "hold_amount_nanos_check": "CHECK (amount_nanos >= 0)",
    "usage_pkey": "PRIMARY KEY (request_id)",
    "usage_kind_check": "CHECK (kind = ANY (ARRAY['exact'::text, 'estimated'::text, 'waived'::text, 'failed'::text, "
    "'recovered'::text, 'late'::text]))",
    "usage_check": "CHECK (cost_nanos = (charged_nanos + shortfall_nanos + waived_nanos))",
    "usage_charged_nanos_check": "CHECK (charged_nanos >= 0)",
    "usage_shortfall_nanos_check": "CHECK (shortfall_nanos >= 0)",
    "usage_waived_nanos_check": "CHECK (waived_nanos >= 0)",
    "transfer_pkey": "PRIMARY KEY (id)",
    "transfer_check": "CHECK (debit_account <> credit_account)",
    "transfer_amount_nanos_check": "CHECK (amount_nanos > 0)",
    "day_close_pkey": "PRIMARY KEY (day)",
    "lease_pkey": "PRIMARY KEY (name)",
    "account_concurrent_check": "CHECK (concurrent >= 0)",
    "account_requests_per_minute_check": "CHECK (requests_per_minute > 0)",
    "account_role_check": "CHECK (role = ANY (ARRAY['customer'::text, 'admin'::text]))",
    "account_tokens_per_minute_check": "CHECK (tokens_per_minute > 0)",
    "alert_account_id_fkey": "FOREIGN KEY (account_id) REFERENCES account(id)",
    "alert_account_id_kind_key": "UNIQUE (account_id, kind)",
    "alert_at_nanos_check": "CHECK (at_nanos >= 0)",
    "alert_kind_check": "CHECK (kind = ANY (ARRAY['balance'::text, 'used_up'::text, 'daily_spend'::text]))",
    "alert_pkey": "PRIMARY KEY (id)",
    "announcement_level_check": "CHECK (level = ANY (ARRAY['info'::text, 'warning'::text]))",
    "announcement_pkey": "PRIMARY KEY (id)",
    "api_key_purpose_check": "CHECK (purpose = ANY (ARRAY['client'::text, 'playground'::text]))",
    "api_key_requests_per_minute_check": "CHECK (requests_per_minute > 0)",
    "audit_log_pkey": "PRIMARY KEY (id)",
    "challenge_pkey": "PRIMARY KEY (hash)",
    "credential_account_id_fkey": "FOREIGN KEY (account_id) REFERENCES account(id)",
    "credential_pkey": "PRIMARY KEY (account_id)",
    "delivery_pkey": "PRIMARY KEY (id)",
    "delivery_webhook_id_fkey": "FOREIGN KEY (webhook_id) REFERENCES webhook(id)",
    "failure_pkey": "PRIMARY KEY (name)",
    "familiar_account_id_fkey": "FOREIGN KEY (account_id) REFERENCES account(id)",
    "familiar_pkey": "PRIMARY KEY (hash)",
    "identity_account_id_fkey": "FOREIGN KEY (account_id) REFERENCES account(id)",
    "identity_pkey": "PRIMARY KEY (id)",
    "invitation_hash_key": "UNIQUE (hash)",
    "invitation_pkey": "PRIMARY KEY (id)",
    "key_budget_key_id_fkey": "FOREIGN KEY (key_id) REFERENCES api_key(id)",
    "key_budget_limit_nanos_check": "CHECK (limit_nanos >= 0)",
    "key_budget_pkey": "PRIMARY KEY (key_id)",
    "key_budget_resets_check": "CHECK (resets = ANY (ARRAY['never'::text, 'daily'::text, 'weekly'::text, "
    "'monthly'::text]))",
    "key_budget_used_nanos_check": "CHECK (used_nanos >= 0)",
    "key_pace_key_id_fkey": "FOREIGN KEY (key_id) REFERENCES api_key(id)",
    "key_pace_pkey": "PRIMARY KEY (key_id)",
    "outbox_pkey": "PRIMARY KEY (id)",
    "passkey_account_id_fkey": "FOREIGN KEY (account_id) REFERENCES account(id)",
    "passkey_pkey": "PRIMARY KEY (id)",
    "price_list_source_check": "CHECK (source = ANY (ARRAY['file'::text, 'admin'::text]))",
    "recovery_code_account_id_fkey": "FOREIGN KEY (account_id) REFERENCES account(id)",
    "recovery_code_pkey": "PRIMARY KEY (hash)",
    "secret_pkey": "PRIMARY KEY (name)",
    "session_account_id_fkey": "FOREIGN KEY (account_id) REFERENCES account(id)",
    "session_day_account_id_day_session_agent_parent_agent_key": "UNIQUE (account_id, day, session, agent, "
    "parent_agent)",
    "session_day_account_id_fkey": "FOREIGN KEY (account_id) REFERENCES account(id)",
    "session_day_pkey": "PRIMARY KEY (id)",
    "session_pkey": "PRIMARY KEY (hash)",
    "stopped_session_account_id_fkey": "FOREIGN KEY (account_id) REFERENCES account(id)",
    "stopped_session_account_id_session_key": "UNIQUE (account_id, session)",
    "stopped_session_pkey": "PRIMARY KEY (id)",
    "token_account_id_fkey": "FOREIGN KEY (account_id) REFERENCES account(id)",
    "token_pkey": "PRIMARY KEY (hash)",
    "token_purpose_check": "CHECK (purpose = ANY (ARRAY['verify'::text, 'reset'::text, 'email'::text]))",
    "topup_account_id_fkey": "FOREIGN KEY (account_id) REFERENCES account(id)",
    "topup_amount_nanos_check": "CHECK (amount_nanos > 0)",
    "topup_pkey": "PRIMARY KEY (id)",
    "topup_state_check": "CHECK (state = ANY (ARRAY['waiting'::text, 'seen'::text, 'confirming'::text, "
    "'credited'::text, 'expired'::text, 'reversed'::text]))",
    "topup_rate_nanos_check": "CHECK (rate_nanos > 0)",
    "totp_account_id_fkey": "FOREIGN KEY (account_id) REFERENCES account(id)",
    "totp_pkey": "PRIMARY KEY (account_id)",
    "upstream_name_key": "UNIQUE (name)",
    "upstream_pkey": "PRIMARY KEY (id)",
    "upstream_switch_pkey": "PRIMARY KEY (name)",
    "usage_day_account_id_day_key_id_model_outcome_key": "UNIQUE (account_id, day, key_id, model, outcome)",
    "usage_day_account_id_fkey": "FOREIGN KEY (account_id) REFERENCES account(id)",
    "usage_day_pkey": "PRIMARY KEY (id)",
    "house_day_day_model_outcome_key": "UNIQUE (day, model, outcome)",
    "house_day_pkey": "PRIMARY KEY (id)",
    "house_hour_hour_model_outcome_key": "UNIQUE (hour, model, outcome)",
    "house_hour_pkey": "PRIMARY KEY (id)",
    "usage_hour_account_id_fkey": "FOREIGN KEY (account_id) REFERENCES account(id)",
    "usage_hour_account_id_hour_key_id_model_outcome_key": "UNIQUE (account_id, hour, key_id, model, outcome)",
    "usage_hour_pkey": "PRIMARY KEY (id)",
    "session_hour_account_id_fkey": "FOREIGN KEY (account_id) REFERENCES account(id)",
    "session_hour_account_id_hour_session_agent_parent_agent_key": "UNIQUE (account_id, hour, session, agent, "
    "parent_agent)",
    "session_hour_pkey": "PRIMARY KEY (id)",
    "hour_close_pkey": "PRIMARY KEY (hour)",
    "day_drop_pkey": "PRIMARY KEY (day)",
    "webhook_account_id_fkey": "FOREIGN KEY (account_id) REFERENCES account(id)",
    "webhook_pkey": "PRIMARY KEY (id)",
    "chain_block_pkey": "PRIMARY KEY (id)",
    "deposit_address_account_id_fkey": "FOREIGN KEY (account_id) REFERENCES account(id)",
    "deposit_address_family_address_key": "UNIQUE (family, address)",
    "deposit_address_family_check": "CHECK (family = ANY (ARRAY['bitcoin'::text, 'evm'::text]))",
    "deposit_address_key_id_fkey": "FOREIGN KEY (key_id) REFERENCES watch_key(id)",
    "deposit_address_key_id_position_key": 'UNIQUE (key_id, "position")',
    "deposit_address_pkey": "PRIMARY KEY (id)",
    "deposit_address_position_check": 'CHECK ("position" >= 0)',
    "incident_account_id_fkey": "FOREIGN KEY (account_id) REFERENCES account(id)",
    "incident_kind_ref_key": "UNIQUE (kind, ref)",
    "incident_pkey": "PRIMARY KEY (id)",
    "payment_account_id_fkey": "FOREIGN KEY (account_id) REFERENCES account(id)",
    "payment_final_check": "CHECK (final = ANY (ARRAY[0::bigint, 1::bigint]))",
    "payment_pkey": "PRIMARY KEY (id)",
    "payment_state_check": "CHECK (state = ANY (ARRAY['seen'::text, 'confirming'::text, 'crediting'::text, "
    "'credited'::text, 'reversing'::text, 'gone'::text, 'stray'::text]))",
    "payment_taken_nanos_check": "CHECK (taken_nanos >= 0)",
    "payment_topup_id_fkey": "FOREIGN KEY (topup_id) REFERENCES topup(id)",
    "payment_worth_nanos_check": "CHECK (worth_nanos >= 0)",
    "processor_event_pkey": "PRIMARY KEY (id)",
    "rate_bid_nanos_check": "CHECK (bid_nanos > 0)",
    "rate_pkey": "PRIMARY KEY (id)",
    "reconciliation_pkey": "PRIMARY KEY (id)",
    "bill_day_bill_day_model_key": "UNIQUE (bill, day, model)",
    "bill_day_pkey": "PRIMARY KEY (id)",
    "file_account_id_fkey": "FOREIGN KEY (account_id) REFERENCES account(id)",
    "file_pkey": "PRIMARY KEY (id)",
    "batch_pkey": "PRIMARY KEY (id)",
    "batch_account_id_fkey": "FOREIGN KEY (account_id) REFERENCES account(id)",
    "batch_percent_check": "CHECK (percent > 0)",
    "batch_state_check": "CHECK (state = ANY (ARRAY['creating'::text, 'in_progress'::text, 'canceling'::text, "
    "'ended'::text]))",
    "batch_way_check": "CHECK (way = ANY (ARRAY['native'::text, 'own'::text]))",
    "batch_item_pkey": "PRIMARY KEY (id)",
    "batch_item_batch_id_fkey": "FOREIGN KEY (batch_id) REFERENCES batch(id)",
    "batch_item_state_check": "CHECK (state = ANY (ARRAY['waiting'::text, 'sent'::text, 'answered'::text, "
    "'succeeded'::text, 'errored'::text, 'canceled'::text, 'expired'::text]))",
    "watch_key_family_check": "CHECK (family = ANY (ARRAY['bitcoin'::text, 'evm'::text]))",
    "watch_key_fingerprint_key": "UNIQUE (fingerprint)",
    "watch_key_pkey": "PRIMARY KEY (id)",
    "watcher_pkey": "PRIMARY KEY (name)",
}
"""What PostgreSQL makes of the constraints in the migrations, in its own words."""


async def version_of(connection: asyncpg.Connection) -> int:
    """Give the schema a database has; 0 for an empty one."""
    if not await connection.fetchval("SELECT to_regclass('schema_version') IS NOT NULL"):
        return 0
    return int(await connection.fetchval("SELECT coalesce(max(version), 0) FROM schema_version"))


async def prepare(connection: asyncpg.Connection) -> None:
    """Make the schema where there is none; leave another one as it is."""
    if await version_of(connection) == 0:
        await migrate(connection, only_if_empty=True)


async def check_schema(connection: asyncpg.Connection, where: str) -> None:
    """Refuse a database with another schema. Raises StoreUnavailable."""
    wrong = schema.advice(f"the database {where}", await version_of(connection))
    if wrong is not None:
        raise StoreUnavailable(wrong)


async def migrate(
    connection: asyncpg.Connection, tell: Callable[[int], None] = lambda _: None, *, only_if_empty: bool = False
) -> list[int]:
    """Bring a database to the schema known here, each step in one transaction, a new one all of them in one.

    So nobody sees half of a new one, who starts at the same time, and whoever is killed leaves none behind. One
    migration at a time, by an advisory lock; it does not wait for ever for that, nor for a table in use. `tell` hears
    of each version as it is reached. Answers the versions it went through. Raises StoreUnavailable.
    """
    await connection.execute("SET lock_timeout = '10s'")
    passed: list[int] = []
    try:
        await connection.execute("SELECT pg_advisory_lock($1)", _LOCK)
        try:
            before = await version_of(connection)
            if before == 0 or not only_if_empty:
                async with connection.transaction() if before == 0 else contextlib.nullcontext():
                    for version in range(before + 1, schema.VERSION + 1):
                        await _step(connection, version)
                        passed.append(version)
                        tell(version)
        finally:
            await connection.execute("SELECT pg_advisory_unlock($1)", _LOCK)
    except asyncpg.LockNotAvailableError as error:
        raise StoreUnavailable(
            "the database is being migrated, or used by another process; "
            "stop every farebox that serves it, then try again"
        ) from error
    return passed


async def _step(connection: asyncpg.Connection, version: int) -> None:
    async with connection.transaction():
        if version == 1:
            await connection.execute(_VERSIONS)
        if version > _LEASES_SINCE:
            await connection.execute("LOCK TABLE run IN EXCLUSIVE MODE")  # whoever starts now does so after this step
            await refuse_if_served(connection)
        await connection.execute(schema.script(version, "postgresql"))
        if version == schema.VERSION:
            await connection.execute(schema.postgres_ledger())
        await connection.execute("INSERT INTO schema_version (version) VALUES ($1)", version)


async def refuse_if_served(connection: asyncpg.Connection) -> None:
    """Refuse while a run has a lease in force. Raises StoreUnavailable."""
    rows = await connection.fetch(
        "SELECT node, max(lease_until) / 1000000 - extract(epoch FROM clock_timestamp())::bigint AS left_s FROM run "
        "WHERE stopped_at IS NULL AND lease_until / 1000000 > extract(epoch FROM clock_timestamp())::bigint "
        "GROUP BY node ORDER BY node"
    )
    if rows:
        nodes = ", ".join(node or "another machine" for node, _ in rows)
        longest = max(1, *(int(left) for _, left in rows))
        raise StoreUnavailable(
            f"farebox serves the database on {nodes}: stop every process of it first. "
            f"One that was killed counts until its lease runs out, in {longest} s"
        )


async def find_faults(connection: asyncpg.Connection) -> list[tuple[str, int, list[str]]]:
    """See that settings, constraints, triggers and functions are what keeps the promises (Store.check_itself)."""
    return [
        await _settings(connection),
        await _references(connection),
        await _constraints(connection),
        await _triggers(connection),
        await _functions(connection),
    ]


async def _settings(connection: asyncpg.Connection) -> tuple[str, int, list[str]]:
    rows = await connection.fetch("SELECT name, setting FROM pg_settings WHERE name = ANY($1)", list(RISKS))
    faults = [f"{name} is {value}: {RISKS[name]}" for name, value in rows if value in {"off", "local"}]
    return "settings", len(rows), faults


async def _references(connection: asyncpg.Connection) -> tuple[str, int, list[str]]:
    faults = []
    for table in ("api_key", "hold", "usage"):
        count = await connection.fetchval(
            f"SELECT count(*) FROM {table} t WHERE NOT EXISTS (SELECT 1 FROM account a WHERE a.id = t.account_id)"  # noqa: S608
        )
        if count:
            faults.append(f"{count} rows of {table} name an account that is not there")
    return "references", 0, faults


async def _constraints(connection: asyncpg.Connection) -> tuple[str, int, list[str]]:
    """See that the database itself still refuses what must never be, and has looked at all rows there are."""
    rows = await connection.fetch(
        "SELECT conname, pg_get_constraintdef(oid, true), convalidated FROM pg_constraint "
        "WHERE connamespace = current_schema()::regnamespace AND conname = ANY($1) AND coninhcount = 0",
        list(_CONSTRAINTS),
    )
    there = {name: (definition, validated) for name, definition, validated in rows}
    faults = []
    for name, definition in _CONSTRAINTS.items():
        if name not in there:
            faults.append(f"{name} is gone")
        elif there[name][0].removesuffix(" NOT VALID") != definition:
            faults.append(f"{name} has been changed")
        elif not there[name][1]:
            faults.append(
                f"{name} has not been checked for the rows there are: ALTER TABLE ... VALIDATE CONSTRAINT {name}"
            )
    return "constraints", len(_CONSTRAINTS), faults


async def _triggers(connection: asyncpg.Connection) -> tuple[str, int, list[str]]:
    rows = await connection.fetch(
        "SELECT t.tgname, c.relname, t.tgenabled::text, pg_get_triggerdef(t.oid, true) FROM pg_trigger t "
        "JOIN pg_class c ON c.oid = t.tgrelid "
        "WHERE NOT t.tgisinternal AND c.relnamespace = current_schema()::regnamespace"
    )
    there = {(table, name): (enabled, definition) for name, table, enabled, definition in rows}
    guards = schema.triggers("postgresql")
    wanted = [(_table(definition), name, definition) for name, definition in guards.items()]
    months = await connection.fetch(
        "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'usage'::regclass"
    )
    for (month,) in months:  # each is guarded by itself: it is a table, which somebody may name
        wanted += [
            (month, name, text.replace(" ON usage ", f" ON {month} ")) for at, name, text in wanted if at == "usage"
        ]
    faults = []
    for table, name, definition in wanted:
        shown = name if _table(guards[name]) == table else f"{name} of {table}"
        if (table, name) not in there:
            faults.append(f"{shown} is gone")
        elif there[table, name][0] not in {"O", "A"}:
            faults.append(f"{shown} is disabled")
        elif _said(there[table, name][1]) != _said(definition):
            faults.append(f"{shown} has been changed")
    return "triggers", len(wanted), faults


def _table(definition: str) -> str:
    """Name the table that a trigger of ours is on."""
    return definition.partition(" ON ")[2].partition(" ")[0]


def _said(definition: str) -> list[str]:
    """Give what a trigger's definition says, whatever the order of its events, its defaults left out."""
    return sorted(definition.replace("FOR EACH STATEMENT ", "").split())


async def _functions(connection: asyncpg.Connection) -> tuple[str, int, list[str]]:
    texts = [schema.script(version, "postgresql") for version in range(1, schema.VERSION + 1)]
    wanted = dict(_BODY.findall("\n".join([*texts, schema.postgres_ledger()])))
    rows = await connection.fetch(
        "SELECT proname, prosrc FROM pg_proc WHERE proname = ANY($1) AND pronamespace = current_schema()::regnamespace",
        list(wanted),
    )
    there = dict(map(tuple, rows))
    faults = [f"{name} is gone" for name in wanted if name not in there]
    faults += [f"{name} has been changed" for name, body in wanted.items() if there.get(name, body) != body]
    return "functions", len(wanted), faults
