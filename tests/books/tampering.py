"""Changing the books past everything that guards them."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import apsw
import asyncpg
import pytest

from farebox.books.audit import Check
from farebox.store.urls import is_postgres
from tests.cluster import Cluster
from tests.databases import name_of, sqlite_path

Tamper = Callable[..., None]


def tamper_with(url: str, request: pytest.FixtureRequest) -> Tamper:
    """Change the books as somebody would who knows SQL and may do anything there, and tidies up after."""
    if is_postgres(url):
        return partial(bend_postgres, request.getfixturevalue("cluster"), name_of(url))
    return partial(bend_sqlite, sqlite_path(url))


def bend_sqlite(path: Path, *statements: str) -> None:
    """Without triggers, checks and foreign keys."""
    connection = apsw.Connection(str(path))
    rows = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'")
    triggers = {str(name): str(sql) for name, sql in rows}
    for pragma in ("foreign_keys = OFF", "ignore_check_constraints = ON"):
        connection.execute(f"PRAGMA {pragma}")
    for name in triggers:
        connection.execute(f"DROP TRIGGER {name}")
    for statement in statements:
        connection.execute(statement)
    for name, sql in triggers.items():
        if not any(name in statement for statement in statements):
            connection.execute(sql)
    connection.close()


def bend_postgres(cluster: Cluster, database: str, *statements: str) -> None:
    """Without triggers and foreign keys; a CHECK that is in the way goes, and comes back for new rows only."""
    script = "; ".join(["SET session_replication_role = replica", *statements])
    checks = cluster.fetch(_CHECKS, database=database)
    try:
        cluster.execute(script, database=database)
    except asyncpg.CheckViolationError as error:
        ((table, definition),) = [check[1:] for check in checks if check[0] == error.constraint_name]
        drop = f"ALTER TABLE {table} DROP CONSTRAINT {error.constraint_name}"
        bring_back = f"ALTER TABLE {table} ADD CONSTRAINT {error.constraint_name} {definition} NOT VALID"
        cluster.execute(f"{drop}; {script}; {bring_back}", database=database)


_CHECKS = (
    "SELECT conname, conrelid::regclass::text, pg_get_constraintdef(oid) FROM pg_constraint "
    "WHERE contype = 'c' AND coninhcount = 0"
)


def broken(checks: list[Check]) -> set[str]:
    return {check.name for check in checks if not check.ok}
