"""Upstreams as the commands tell of them: those of the configuration and those that were entered, without secrets."""

from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from farebox.accounts.sealing import Seals
from farebox.cli.common import Invocation, now_us, open_books
from farebox.clock import iso
from farebox.config import Config
from farebox.errors import ConfigError, FareboxError, NotFound
from farebox.secret import Secret
from farebox.upstreams.checks import settled
from farebox.upstreams.entries import Entry, list_entries, reveal
from farebox.upstreams.fields import plain_of, secrets_of
from farebox.upstreams.settings import UpstreamSettings
from farebox.upstreams.switches import drained_names


class Known(Struct, frozen=True):
    """An upstream as the commands tell of it. `settings` hold no secret; None: they cannot be read."""

    name: str
    source: str
    settings: UpstreamSettings | None
    drained: bool
    shadowed: bool = False
    entry: Entry | None = None
    sealed: bool = False
    """Whether what is secret about it cannot be opened, so that no server can use it."""


def config_of(invocation: Invocation) -> tuple[Config, bool]:
    """Give the configuration, and whether it is known what secrets are sealed under: not everybody may read that."""
    try:
        return invocation.config(secrets=True), True
    except ConfigError:
        return invocation.config(), False


async def known_of(config: Config, *, opens: bool) -> list[Known]:
    """Tell of all; `opens`: of those that were entered, whether their secrets can be opened as well."""
    configured = {one.name: one for one in config.upstreams}
    if config.database_path is not None and not config.database_path.exists():
        return [Known(name, "file", _bare(one), drained=False) for name, one in configured.items()]
    async with open_books(config) as store:
        drained, entries = await drained_names(store), await list_entries(store)
        opens = opens and any(entry.secrets is not None for entry in entries)
        seals = await Seals.open(store, config.server.secret, now_us()) if opens else None
    known = [Known(name, "file", _bare(one), name in drained) for name, one in configured.items()]
    for entry in entries:
        try:
            settings = settled(entry.shown)
        except ValueError:
            settings = None
        shadowed = entry.name in configured
        sealed = seals is not None and not _is_open(entry, seals)
        known.append(Known(entry.name, "admin", settings, entry.name in drained, shadowed, entry, sealed))
    return known


def _is_open(entry: Entry, seals: Seals) -> bool:
    try:
        reveal(entry, seals)
    except FareboxError:
        return False
    return True


async def find_known(config: Config, name: str, *, opens: bool) -> Known:
    """Find one. Raises NotFound."""
    for one in await known_of(config, opens=opens):
        if one.name == name:
            return one
    raise NotFound(f"there is no upstream {name!r}; `farebox upstream list` names all there are")


def _bare(settings: UpstreamSettings) -> UpstreamSettings:
    return replace(settings, **dict.fromkeys(secrets_of(settings), Secret("")))


def source_of(one: Known) -> str:
    """Say where it was entered."""
    return "of the configuration file" if one.source == "file" else "entered"


def state_of(one: Known) -> str:
    """Say whether calls go there, and why not."""
    if one.settings is None:
        return "cannot be read"
    if one.shadowed:
        return "hidden by the one of the file"
    if one.sealed:
        return "its secrets cannot be opened"
    return "drained" if one.drained else "in force"


def as_row(one: Known) -> tuple[str, ...]:
    """Give it as a row of the list."""
    settings = one.settings
    if settings is None:
        return one.name, "", one.source, "", "", "", state_of(one)
    models = ", ".join(settings.models) or "all"
    return (
        *(one.name, settings.kind, one.source, str(settings.weight)),
        *(settings.base_url or "in the process", models, state_of(one)),
    )


def shown(value: Any) -> str:
    """Write a setting as its option takes it."""
    if isinstance(value, dict):
        return ", ".join(key if key == name else f"{key}={name}" for key, name in value.items())
    return ", ".join(value) if isinstance(value, (list, tuple)) else str(value)


def as_json(one: Known) -> dict[str, Any]:
    """Give an upstream as scripts get it. These names are stable."""
    moments = one.entry.moments if one.entry is not None else {}
    plain = plain_of(one.settings) if one.settings is not None else {}
    return {
        "name": one.name,
        "kind": one.settings.kind if one.settings is not None else None,
        "source": one.source,
        "state": state_of(one),
        "drained": one.drained,
        "settings": {key: value for key, value in plain.items() if key not in {"name", "kind"}},
        "secrets": {name: iso(at_us) for name, at_us in moments.items()},
        "created_at": iso(one.entry.created_at_us) if one.entry is not None else None,
        "changed_at": iso(one.entry.changed_at_us) if one.entry is not None else None,
    }
