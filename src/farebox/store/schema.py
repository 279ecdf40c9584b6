"""The schema of the books as numbered steps: forward only, each in one transaction, the same numbers everywhere."""

import re
from importlib.resources import files
from typing import Final, Literal

Dialect = Literal["sqlite", "postgresql"]

STEPS: Final = ("books", "many_processes", "people", "payments", "upstreams", "growth")
VERSION: Final = len(STEPS)
"""The schema that this code works with."""

TABLES: Final = {
    "account": "id",
    "api_key": "id",
    "run": "id",
    "price_list": "version",
    "hold": "request_id",
    "usage": "request_id",
    "transfer": "id",
    "day_close": "day",
    "day_drop": "day",
    "hour_close": "hour",
    "usage_hour": "id",
    "house_hour": "id",
    "house_day": "id",
    "usage_day": "id",
    "session_hour": "id",
    "session_day": "id",
    "credential": "account_id",
    "session": "hash",
    "familiar": "hash",
    "token": "hash",
    "failure": "name",
    "outbox": "id",
    "upstream": "id",
    "totp": "account_id",
    "recovery_code": "hash",
    "passkey": "id",
    "identity": "id",
    "invitation": "id",
    "secret": "name",
    "key_budget": "key_id",
    "key_pace": "key_id",
    "stopped_session": "id",
    "alert": "id",
    "webhook": "id",
    "delivery": "id",
    "topup": "id",
    "watch_key": "id",
    "deposit_address": "id",
    "payment": "id",
    "watcher": "name",
    "chain_block": "id",
    "rate": "id",
    "incident": "id",
    "processor_event": "id",
    "reconciliation": "id",
    "bill_day": "id",
    "announcement": "id",
    "upstream_switch": "name",
    "batch": "id",
    "file": "id",
    "batch_item": "id",
    "audit_log": "id",
}
"""Every table with something to keep, and its key; a table comes after those it refers to."""

_TRIGGER: Final = re.compile(r"^(CREATE TRIGGER (\w+) .*?);$", re.MULTILINE)


def title(version: int) -> str:
    """Name a step for people."""
    return STEPS[version - 1].replace("_", " ")


def script(version: int, dialect: Dialect) -> str:
    """Give the statements that lead from the version before to this one."""
    name = f"{version:04d}_{STEPS[version - 1]}.{dialect}.sql"
    return files("farebox.store").joinpath("migrations").joinpath(name).read_text("utf-8")


def postgres_ledger() -> str:
    """Give the functions that PostgreSQL keeps the books with."""
    return files("farebox.store").joinpath("postgres_ledger.sql").read_text("utf-8")


def triggers(dialect: Dialect) -> dict[str, str]:
    """Give the triggers that every database has, by name: what makes the books append-only among them."""
    scripts = (script(version, dialect) for version in range(1, VERSION + 1))
    return {found[2]: found[1] for text in scripts for found in _TRIGGER.finditer(text)}


def advice(where: str, version: int) -> str | None:
    """Say what to do about a database with this schema; None when it is the one known here."""
    if version == VERSION:
        return None
    if version == 0:
        return f"{where} has no books in it yet; `farebox migrate` or `farebox serve` makes them"
    if version > VERSION:
        return f"{where} has schema {version}, newer than the {VERSION} known here; upgrade farebox"
    return (
        f"{where} has schema {version}, this farebox needs {VERSION}: stop every farebox that serves it, "
        "run `farebox backup`, then `farebox migrate`"
    )
