"""The checks of `farebox doctor` on PostgreSQL: the server, its settings, and what this role may do there."""

import time
from collections.abc import Iterator
from typing import Any, Final

import asyncpg

from farebox.cli.checks import Finding
from farebox.clock import US_PER_S, iso
from farebox.config import Config
from farebox.errors import StoreUnavailable
from farebox.store import schema
from farebox.store.postgres import CONNECTIONS, one_connection
from farebox.store.postgres_schema import RISKS, version_of

_OLDEST: Final = 13
_TRIED: Final = 15
_SLOW_MS: Final = 5.0
_SKEW_WARN_S: Final = 2.0
_SKEW_FAIL_S: Final = 60.0
_ROUNDS: Final = 5
_SETTINGS: Final = (*RISKS, "data_checksums", "default_transaction_read_only")


async def check_postgres(config: Config) -> list[Finding]:
    """Look at the database as the server would use it, changing nothing."""
    findings: list[Finding] = []
    begun = time.monotonic()
    try:
        async with one_connection(config.database.url, {"statement_timeout": "10s"}) as connection:
            connected_ms = (time.monotonic() - begun) * 1000
            findings.append(await _reach(connection, config, connected_ms))
            findings.append(_server(connection, await connection.fetchval("SHOW server_version")))
            findings += await _settings(connection)
            rights = await _rights(connection)
            findings.append(rights)
            if rights.status != "FAIL":
                version = await version_of(connection)
                findings.append(await _schema(connection, version))
                findings.append(await _clock(connection, version))
            findings.append(await _connections(connection, config.server.workers))
    except StoreUnavailable as error:
        advice = "check [database] url, that the server runs, and that its pg_hba.conf lets this machine in"
        findings.append(Finding("database", "FAIL", str(error), advice))
    return findings


async def _reach(connection: asyncpg.Connection, config: Config, connected_ms: float) -> Finding:
    rounds = []
    for _ in range(_ROUNDS):
        begun = time.monotonic()
        await connection.fetchval("SELECT 1")
        rounds.append((time.monotonic() - begun) * 1000)
    millis = min(rounds)
    told = f"{config.books_place} ({millis:.1f} ms a round trip, {connected_ms:.0f} ms to connect)"
    if millis > _SLOW_MS:
        return Finding("database", "warn", told, "every call waits for two round trips: bring the server nearer")
    return Finding("database", "ok", told)


def _server(connection: asyncpg.Connection, shown: str) -> Finding:
    major = connection.get_server_version().major
    told = f"PostgreSQL {shown}"
    if major < _OLDEST:
        return Finding("postgresql", "FAIL", told, f"{_OLDEST} or newer is needed; {_TRIED} is what was tried most")
    return Finding("postgresql", "ok", told if major == _TRIED else f"{told}; tried most with {_TRIED}")


async def _schema(connection: asyncpg.Connection, version: int) -> Finding:
    size = int(await connection.fetchval("SELECT pg_database_size(current_database())"))
    told = f"schema {version}, {size / 1024**2:.1f} MB"
    if version == 0:
        return Finding("schema", "ok", "there are no books yet; `farebox serve` will make them")
    if version > schema.VERSION:
        return Finding("schema", "FAIL", f"{told}; this Farebox has {schema.VERSION}", "upgrade Farebox")
    if version < schema.VERSION:
        advice = "`farebox migrate` brings it up to date; `farebox backup` first"
        return Finding("schema", "warn", f"{told}; this Farebox has {schema.VERSION}", advice)
    return Finding("schema", "ok", told)


async def _settings(connection: asyncpg.Connection) -> list[Finding]:
    rows = await connection.fetch("SELECT name, setting FROM pg_settings WHERE name = ANY($1)", list(_SETTINGS))
    values = dict(map(tuple, rows))
    findings = [
        Finding("durability", "FAIL", f"{name} is {values[name]}", f"set it to on: {risk}")
        for name, risk in RISKS.items()
        if values.get(name) in {"off", "local"}
    ]
    if await connection.fetchval("SELECT pg_is_in_recovery()"):
        findings.append(Finding("durability", "FAIL", "the server is a standby: it only reads", "name the primary"))
    elif values.get("default_transaction_read_only") == "on":
        advice = "ALTER DATABASE or ALTER ROLE … RESET default_transaction_read_only"
        findings.append(Finding("durability", "FAIL", "the database takes no writes", advice))
    if not findings:
        findings.append(Finding("durability", "ok", ", ".join(f"{name} {values.get(name)}" for name in RISKS)))
    if values.get("data_checksums") == "off":
        advice = "stop the server and run pg_checksums --enable: a disk that rots is found before it is believed"
        findings.append(Finding("durability", "warn", "data_checksums is off", advice))
    return findings


async def _rights(connection: asyncpg.Connection) -> Finding:
    """See that this role can do what a server does, and no more than it needs."""
    role, is_super, may_create, has_tables = await connection.fetchrow(
        "SELECT current_user::text, (SELECT rolsuper FROM pg_roles WHERE rolname = current_user), "
        "has_schema_privilege(current_schema(), 'CREATE'), to_regclass('account') IS NOT NULL"
    )
    lacking = await _lacking(connection) if has_tables else [] if may_create else ["CREATE on the schema"]
    if lacking:
        advice = f"let {role} own the database and all in it: `farebox migrate` changes tables as well"
        return Finding("rights", "FAIL", f"{role} lacks {', '.join(lacking)}", advice)
    if is_super:
        advice = "give the gateway a role of its own, which owns its database and nothing else"
        return Finding("rights", "warn", f"{role} is a superuser", advice)
    strangers = await connection.fetchval(
        "SELECT count(*) FROM pg_tables WHERE schemaname = current_schema() AND tablename = ANY($1) "
        "AND NOT pg_has_role(current_user, tableowner, 'MEMBER')",
        list(schema.TABLES),
    )
    if strangers:
        advice = "serving works; `farebox migrate` needs the owner"
        return Finding("rights", "warn", f"{role} does not own the tables", advice)
    return Finding("rights", "ok", f"{role} owns what it needs")


async def _lacking(connection: asyncpg.Connection) -> list[str]:
    rows = await connection.fetch(
        "SELECT right_name || ' on ' || name FROM unnest($1::text[]) AS name, "
        "unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS right_name "
        "WHERE to_regclass(name) IS NOT NULL AND NOT has_table_privilege(name, right_name)",
        [*schema.TABLES, "lease", "schema_version"],
    )
    return [words for (words,) in rows[:4]]


async def _clock(connection: asyncpg.Connection, version: int) -> Finding:
    """Compare the database's clock, by which entries and leases go, with this machine's."""
    before = time.time()
    there_us = int(await connection.fetchval("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint"))
    here = (before + time.time()) / 2
    skew_s = there_us / US_PER_S - here
    newest = "SELECT greatest((SELECT max(at) FROM usage), (SELECT max(at) FROM transfer))"
    newest_us = int(await connection.fetchval(newest) or 0) if version else 0
    told = f"the database's says {iso(there_us)}, {abs(skew_s):.3f} s {'ahead of' if skew_s > 0 else 'behind'} ours"
    if newest_us > there_us + 60 * US_PER_S:
        return Finding("clock", "FAIL", f"{told}, and before the newest entry, {iso(newest_us)}", "let NTP keep it")
    if abs(skew_s) > _SKEW_WARN_S:
        advice = "let NTP keep both: entries, limits, leases and days go by the database's"
        return Finding("clock", "FAIL" if abs(skew_s) > _SKEW_FAIL_S else "warn", told, advice)
    return Finding("clock", "ok", told)


_USED: Final = """
    SELECT current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int,
      (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'),
      (SELECT count(*) FROM pg_stat_activity WHERE application_name = 'farebox' AND datname = current_database()
        AND usename = current_user AND client_addr IS NOT DISTINCT FROM inet_client_addr()),
      (SELECT rolconnlimit FROM pg_roles WHERE rolname = current_user),
      (SELECT count(*) FROM pg_stat_activity WHERE usename = current_user),
      (SELECT datconnlimit FROM pg_database WHERE datname = current_database()),
      (SELECT count(*) FROM pg_stat_activity WHERE datname = current_database())
"""


async def _connections(connection: asyncpg.Connection, workers: int) -> Finding:
    """See that the processes of this machine find room; those that it has open already are theirs."""
    row = await connection.fetchrow(_USED)
    most, used, ours = row[0], row[1], row[2]
    free = min(most - used, *_limited(row[3:])) + ours
    needed = workers * CONNECTIONS
    told = f"{free} left for this machine, of {most}; {workers} processes take {needed} at most"
    if workers == 1:
        told = f"{free} left for this machine, of {most}; one process takes {needed} at most"
    if free < needed:
        advice = "raise max_connections, or lower [server] workers; each process of other machines takes as many"
        return Finding("connections", "FAIL", told, advice)
    return Finding("connections", "ok", told)


def _limited(row: Any) -> Iterator[int]:
    """Give what limits of the role and of the database leave; none where there is no limit."""
    for limit, used in zip(row[::2], row[1::2], strict=True):
        if limit >= 0:
            yield limit - used
    yield 1 << 30
