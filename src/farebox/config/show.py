"""The settings in force, as people and scripts see them: secrets masked, each with where it came from."""

from typing import Any, Final, NamedTuple

import msgspec

from farebox.config.load import SINGLE_TABLES
from farebox.config.reader import show
from farebox.config.settings import Config
from farebox.secret import Secret
from farebox.store.urls import without_password

TABLES: Final = tuple(SINGLE_TABLES)
_MASK: Final = "***"


class Setting(NamedTuple):
    """One setting: what it is, as TOML writes it, and where that was said; nowhere: it is the default."""

    table: str
    name: str
    value: str
    origin: str


def plain(struct: msgspec.Struct) -> dict[str, Any]:
    """Give a Struct as plain values, secrets masked."""
    return {key: _plain(value) for key, value in msgspec.structs.asdict(struct).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Secret):
        return _MASK if value else ""
    if isinstance(value, tuple):
        return [plain(one) if isinstance(one, msgspec.Struct) else one for one in value]
    return value


def tables_of(config: Config) -> dict[str, dict[str, Any]]:
    """Give the tables that stand once, as plain values."""
    tables = {name: plain(getattr(config, name)) for name in TABLES if name != "limits"}
    tables["limits"] = plain(config.limits) | plain(config.server_limits)
    tables["database"]["url"] = without_password(config.database.url)
    return {name: tables[name] for name in TABLES}


def settings_in_force(config: Config) -> tuple[Setting, ...]:
    """Give every setting of those tables."""
    return tuple(
        Setting(table, name, show(value), config.origins.get(f"{table}.{name}", ""))
        for table, values in tables_of(config).items()
        for name, value in values.items()
    )
