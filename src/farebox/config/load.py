"""Read the configuration: file, then FAREBOX_* variables over it, then checks across tables.

All that is wrong is told at once, in one ConfigError; nothing starts on half a configuration.
"""

import difflib
import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from decimal import Decimal
from functools import cache
from importlib import resources
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import inspect

from farebox.accounts.mail import MailSettings
from farebox.accounts.providers import ProviderSettings, is_trustworthy
from farebox.billing.plans import Plan, Plans
from farebox.billing.pricing import Model
from farebox.bills.reports import BillSettings
from farebox.config.coins import check_payments
from farebox.config.locate import Path as KeyPath
from farebox.config.locate import locate
from farebox.config.offers import ModelTable, PlanTable, read_model, read_plan
from farebox.config.reader import Reader, Wrong, show
from farebox.config.settings import (
    Config,
    DatabaseSettings,
    KeySettings,
    LogSettings,
    ServerSettings,
    SiteSettings,
    WebhookSettings,
)
from farebox.errors import ConfigError
from farebox.gateway.batches.settings import BatchSettings
from farebox.gateway.settings import CallLimits, Features
from farebox.http.errands import read_target
from farebox.http.server import ServerLimits
from farebox.payments.keys import PRIVATE, is_private
from farebox.payments.settings import BitcoinSettings, BtcpaySettings, EvmSettings, PaymentSettings
from farebox.secret import Secret
from farebox.store.urls import database_name, fault_in, is_postgres, without_password
from farebox.upstreams.checks import problems, settled
from farebox.upstreams.settings import UpstreamSettings

SINGLE_TABLES: Final[Mapping[str, tuple[type[msgspec.Struct], ...]]] = {
    "server": (ServerSettings,),
    "database": (DatabaseSettings,),
    "site": (SiteSettings,),
    "payments": (PaymentSettings,),
    "bitcoin": (BitcoinSettings,),
    "btcpay": (BtcpaySettings,),
    "keys": (KeySettings,),
    "limits": (CallLimits, ServerLimits),
    "features": (Features,),
    "batches": (BatchSettings,),
    "mail": (MailSettings,),
    "webhooks": (WebhookSettings,),
    "log": (LogSettings,),
}
"""Tables that stand once, with the Structs their keys belong to."""

TABLE_LISTS: Final[Mapping[str, type[msgspec.Struct]]] = {
    "upstreams": UpstreamSettings,
    "models": ModelTable,
    "plans": PlanTable,
    "sign_in": ProviderSettings,
    "evm": EvmSettings,
    "bills": BillSettings,
}
"""Tables written [[name]], once for each upstream, model, plan, provider, chain or bill."""

_TRUTHS: Final = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def load_config(path: Path | None, environ: Mapping[str, str], *, secrets: bool = True) -> Config:
    """Read the settings from a file, or the defaults without one, with FAREBOX_* variables over them.

    `secrets=False` leaves env: and file: secrets empty: for commands that do not speak to an upstream, and so
    need not be run where the secrets are. Raises ConfigError with one line for each thing that is wrong.
    """
    text = _read_text(path)
    tables = _parse(path, text)
    base = path.parent if path else Path()
    variables = _lay_over(tables, environ)

    def read_secret(value: str) -> Secret:
        return _secret(value, environ, base) if secrets else Secret("")

    reader = Reader(path, locate(text), variables, read_secret)
    config = _read_tables(reader, tables, path, base, variables)
    problems = _unknown_variables(environ) + reader.problems
    if problems or config is None:
        raise ConfigError("\n".join(problems))
    return config


@cache
def default_offer() -> tuple[tuple[Model, ...], tuple[Plan, ...]]:
    """Give the models that a configuration without [[models]] sells, and the plans of one without [[plans]]."""
    file = Path("catalogue.toml")
    text = resources.files("farebox.config").joinpath(file.name).read_text("utf-8")
    tables = tomllib.loads(text, parse_float=Decimal)
    reader = Reader(file, locate(text), {}, Secret)
    models = _read_models(reader, tables["models"])
    plans = _read_plans(reader, tables["plans"])
    if reader.problems:
        raise ConfigError("\n".join(reader.problems))
    return models, plans


def _read_text(path: Path | None) -> str:
    if path is None:
        return ""
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; `farebox config example` prints a file to start from") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text (byte {error.start})") from error


def _parse(path: Path | None, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text, parse_float=Decimal)
    except tomllib.TOMLDecodeError as error:
        words, _, place = str(error).removesuffix(")").rpartition(" (at ")
        line = place.removeprefix("line ").partition(",")[0]
        name = path.name if path else "configuration"
        line = line if line.isdigit() else str(text.count("\n") + 1)
        raise ConfigError(f"{name}:{line}: is not TOML: {words or error} ({place or 'at its end'})") from error


def _read_tables(
    reader: Reader, tables: dict[str, Any], path: Path | None, base: Path, variables: Mapping[KeyPath, str]
) -> Config | None:
    """Read every table. None when a single table was wrong; problems elsewhere are in the reader only."""
    reader.unknown_keys((), tables, [*SINGLE_TABLES, *TABLE_LISTS])
    read: dict[type, Any] = {}
    for name, types in SINGLE_TABLES.items():
        table = tables.get(name, {})
        if not isinstance(table, dict):
            reader.problem((name,), f"is {show(table)}; it must be a table, written [{name}]")
            continue
        names = [field for type_ in types for field in type_.__struct_fields__]
        for key in table:
            if key not in names:
                reader.unknown_keys((name,), {key: 0}, names, _belongs_elsewhere(key))
        read |= {type_: reader.fields((name,), table, type_) for type_ in types}
    models, plans = default_offer() if not {"models", "plans"} <= tables.keys() else ((), ())
    if "models" in tables:
        models = _read_models(reader, tables["models"])
    if "plans" in tables:
        plans = _read_plans(reader, tables["plans"])
    upstreams = _read_upstreams(reader, tables.get("upstreams", []), models)
    providers = _read_providers(reader, tables.get("sign_in", []))
    chains = _read_list(reader, "evm", tables.get("evm", [])) if tables.get("evm", []) != [] else []
    coins, said = (read.get(PaymentSettings), read.get(BitcoinSettings), chains), tables.get("btcpay", {})
    check_payments(reader, *coins, read.get(BtcpaySettings), said)
    database = read.get(DatabaseSettings)
    server = read.get(ServerSettings)
    place = _place_of_books(reader, database, base) if database else None
    if place is not None and server is not None:
        _check_workers(reader, server, place.path)
    if server is not None:
        _check_proxies(reader, server)
    _check_batches(reader, read.get(BatchSettings), tables)
    site = read.get(SiteSettings)
    texts = _site_texts(reader, site, base) if site else {}
    mail = read.get(MailSettings)
    if mail is not None and mail.host and not mail.sender:
        reader.problem(("mail", "sender"), 'is missing; it is whom mails come from: "Farebox <post@farebox.example>"')
    if place is None or not plans or None in read.values() or len(read) < len(SINGLE_TABLES) + 1:
        return None
    return Config(
        server=read[ServerSettings],
        database=read[DatabaseSettings],
        database_path=place.path,
        spool_path=place.spool,
        site=read[SiteSettings],
        site_texts=texts,
        payments=read[PaymentSettings],
        bitcoin=read[BitcoinSettings],
        evm=tuple(chain for _, chain in chains),
        btcpay=read[BtcpaySettings],
        keys=read[KeySettings],
        mail=read[MailSettings],
        webhooks=read[WebhookSettings],
        sign_in=providers,
        upstreams=upstreams,
        models=models,
        plans=Plans(plans),
        limits=read[CallLimits],
        server_limits=read[ServerLimits],
        features=read[Features],
        batches=read[BatchSettings],
        bills=_read_bills(reader, tables.get("bills", [])),
        log=read[LogSettings],
        source=path,
        origins=_origins(reader, tables, variables),
    )


def _check_proxies(reader: Reader, server: ServerSettings) -> None:
    for text in server.proxies.split():
        try:
            ip_network(text)
        except ValueError as error:
            reader.problem(("server", "proxies"), f"is wrong: {error}")


def _read_list(reader: Reader, name: str, tables: Any) -> list[tuple[KeyPath, Any]]:
    """Read the tables of a list into Structs, without those that were wrong."""
    if not isinstance(tables, list) or not tables:
        reader.problem((name,), f"must be written [[{name}]], once for each of them, and at least once")
        return []
    paths: list[KeyPath] = [(name, position) for position in range(len(tables))]
    read = [(path, reader.struct(path, table, TABLE_LISTS[name])) for path, table in zip(paths, tables, strict=True)]
    return [(path, struct) for path, struct in read if struct is not None]


def _read_bills(reader: Reader, tables: Any) -> tuple[BillSettings, ...]:
    bills: list[BillSettings] = []
    for path, table in _read_list(reader, "bills", tables) if tables != [] else []:
        if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,39}", table.name):
            reader.problem((*path, "name"), f"is {show(table.name)}; it must be a short name of a-z, 0-9, _ and -")
        if any(other.name == table.name for other in bills):
            reader.problem((*path, "name"), f"is {show(table.name)} a second time; names are unique")
        if not table.upstreams:
            reader.problem((*path, "upstreams"), "is empty; it must name the upstreams that the bill is for")
        try:
            read_target(table.base_url)
        except ValueError:
            reader.problem((*path, "base_url"), f"is {show(table.base_url)}; it must be a URL")
        bills.append(table)
    return tuple(bills)


def _read_models(reader: Reader, tables: Any) -> tuple[Model, ...]:
    owners: dict[str, str] = {}
    models: list[Model] = []
    for path, table in _read_list(reader, "models", tables):
        names = [("id", table.id), *(("aliases", alias) for alias in table.aliases)]
        for key, name in [*names, *(("nicknames", name) for name in table.nicknames)]:
            owner = owners.setdefault(name, table.id)
            if owner != table.id or (key == "id" and any(model.id == name for model in models)):
                reader.problem((*path, key), f"is {show(name)}, which is a name of the model {owner} already")
        models.append(read_model(reader, path, table))
    ids = {model.id for model in models}
    for place, model in enumerate(models):
        for name in model.fallbacks:
            if name not in ids - {model.id}:
                words = f"has {show(name)}; it must be the ids of others of [[models]]"
                reader.problem(("models", place, "fallbacks"), words)
    return tuple(models)


def _read_plans(reader: Reader, tables: Any) -> tuple[Plan, ...]:
    plans: list[Plan] = []
    for path, table in _read_list(reader, "plans", tables):
        if any(plan.name == table.name for plan in plans):
            reader.problem((*path, "name"), f"is {show(table.name)} a second time; names are unique")
        plans.append(read_plan(reader, path, table))
    return tuple(plans)


def _read_providers(reader: Reader, tables: Any) -> tuple[ProviderSettings, ...]:
    providers: list[ProviderSettings] = []
    for path, table in _read_list(reader, "sign_in", tables) if tables != [] else ():
        if any(other.name == table.name for other in providers):
            reader.problem((*path, "name"), f"is {show(table.name)} a second time; names are unique")
        if table.kind == "oidc" and not table.issuer:
            reader.problem((*path, "issuer"), 'is missing; kind "oidc" needs it, such as "https://login.example.com"')
        if table.issuer and not is_trustworthy(table.issuer):
            reader.problem((*path, "issuer"), f"is {show(table.issuer)}; it must begin with https://")
        providers.append(table)
    return tuple(providers)


def _read_upstreams(reader: Reader, tables: Any, models: Iterable[Model]) -> tuple[UpstreamSettings, ...]:
    if tables == []:
        return ()
    sold = {name: model.id for model in models for name in (model.id, *model.aliases)}
    upstreams: list[UpstreamSettings] = []
    for path, table in _read_list(reader, "upstreams", tables):
        if any(other.name == table.name for other in upstreams):
            reader.problem((*path, "name"), f"is {show(table.name)} a second time; names are unique")
        for position, name in enumerate(table.models):
            if sold and name not in sold:
                near = difflib.get_close_matches(name, sold, 1)
                hint = f"did you mean {near[0]}?" if near else "it must be the id of one of [[models]]"
                key = name if isinstance(table.models, dict) else position
                reader.problem((*path, "models", key), f"is {show(name)}, which is not sold; {hint}")
        ids = tuple(sold.get(name, name) for name in table.models)
        theirs = tuple(table.models.values()) if isinstance(table.models, dict) else ()
        served = msgspec.structs.replace(table, models=dict(zip(ids, theirs, strict=True)) if theirs else ids)
        for field, problem in problems(served, tables[int(path[1])]):
            reader.problem((*path, field), problem)
        upstreams.append(settled(served))
    return tuple(upstreams)


class _Place(msgspec.Struct, frozen=True):
    """Where the books are: the SQLite file, None for PostgreSQL; and the directory of the spool."""

    path: Path | None
    spool: Path


def _place_of_books(reader: Reader, database: DatabaseSettings, base: Path) -> _Place | None:
    """Find what a database URL names. Relative paths begin where the file that says them lies."""
    here: KeyPath = ("database", "url")
    url = database.url
    scheme, separator, rest = url.partition("://")
    if is_postgres(url):
        if fault := fault_in(url):
            reader.problem(here, fault)
            return None
        return _Place(
            None, _beside(reader, ("database", "spool"), database.spool or f"{database_name(url)}.spool", base)
        )
    file = rest.removeprefix("/")
    if scheme != "sqlite" or not separator or not rest.startswith("/") or not file or "?" in file:
        reader.problem(
            here,
            f'is {show(without_password(url))}; it must be "sqlite:///farebox.db" (beside this file), '
            '"sqlite:////var/lib/farebox/farebox.db" (absolute) or "postgresql://user@host:5432/farebox"',
        )
        return None
    if file == ":memory:":
        reader.problem(here, "is in memory; the books must outlive the process: name a file")
        return None
    path = _beside(reader, here, file, base)
    spool = _beside(reader, ("database", "spool"), database.spool, base) if database.spool else None
    return _Place(path, spool or path.with_name(path.name + ".spool"))


def _site_texts(reader: Reader, site: SiteSettings, base: Path) -> dict[str, str]:
    """Read the pages that the operator has written. Relative paths begin where the file that says them lies."""
    texts = {}
    for name in ("terms", "privacy", "refunds"):
        file = getattr(site, name)
        if not file:
            continue
        try:
            texts[name] = _beside(reader, ("site", name), file, base).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
            reader.problem(("site", name), f"is the file {show(file)}, which cannot be read: {reason}")
    return texts


def _beside(reader: Reader, key: KeyPath, file: str, base: Path) -> Path:
    from_file = not reader.where(key).startswith("FAREBOX_")
    return ((base if from_file else Path()) / file).absolute()


def _check_workers(reader: Reader, server: ServerSettings, sqlite: Path | None) -> None:
    if server.workers > 1 and sqlite is not None:
        reader.problem(
            ("server", "workers"),
            f"is {server.workers}; with SQLite one process writes the books, by design, so it must be 1. One process "
            'serves some thousand streams; for more say a [database] url such as "postgresql://user@host/farebox"',
        )


def _check_batches(reader: Reader, batches: BatchSettings | None, tables: Mapping[str, Any]) -> None:
    server = tables.get("server", {})
    if batches is not None and batches.unattended and isinstance(server, dict) and not server.get("secret"):
        words = "needs secret in [server]: without it the database alone could read what is in batches"
        reader.problem(("batches", "unattended"), words)


def _belongs_elsewhere(key: str) -> str:
    """Hint at the table that does have a key."""
    for name, types in SINGLE_TABLES.items():
        if any(key in type_.__struct_fields__ for type_ in types):
            return f"{key} belongs in [{name}]"
    return ""


def _secret(value: str, environ: Mapping[str, str], base: Path) -> Secret:
    """Fetch a secret from where a setting says it is. Raises Wrong when it is not there."""
    if not value:
        return Secret("")
    kind, _, name = value.partition(":")
    if kind == "env":
        if not environ.get(name, "").strip():
            raise Wrong(f"takes the environment variable {name}, which is not set; set it, or name another")
        return _sendable(environ[name].strip(), f"takes the environment variable {name}, which is")
    if kind == "file":
        try:
            text = (base / name).read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
            raise Wrong(f"takes the file {name}, which cannot be read: {reason}") from error
        if not text:
            raise Wrong(f"takes the file {name}, which is empty; write the secret into it")
        return _sendable(text, f"takes the file {name}, which is")
    return _sendable(value, "is")


def _sendable(text: str, whose: str) -> Secret:
    """Accept a secret that can stand in a header. The words never quote it."""
    if text.startswith("{"):  # the key file of a service account
        try:
            return Secret(json.dumps(json.loads(text)))
        except ValueError:
            raise Wrong(f"{whose} no valid JSON") from None
    if not text or not text.isascii() or not text.isprintable() or " " in text:
        if is_private(text):  # the words of a wallet
            raise Wrong(whose.removesuffix("is") + PRIVATE)
        raise Wrong(f"{whose} no key: one is of letters, digits and signs, without spaces or line breaks")
    return Secret(text)


def _lay_over(tables: dict[str, Any], environ: Mapping[str, str]) -> dict[KeyPath, str]:
    """Put FAREBOX_* variables in the place of what the file says; answers which variable went where."""
    used: dict[KeyPath, str] = {}
    for table_name, field in _scalar_settings():
        variable = variable_name(table_name, field.name)
        table = tables.setdefault(table_name, {})
        if variable in environ and isinstance(table, dict):
            table[field.name] = _from_text(environ[variable], field.type)
            used[table_name, field.name] = variable
    return used


def variable_name(table: str, field: str) -> str:
    """Name the environment variable that overrides a setting."""
    return f"FAREBOX_{table}_{field}".upper()


def _scalar_settings() -> Iterable[tuple[str, inspect.Field]]:
    for name, types in SINGLE_TABLES.items():
        for type_ in types:
            info = inspect.type_info(type_)
            assert isinstance(info, inspect.StructType)
            yield from ((name, field) for field in info.fields)


def _from_text(text: str, type_: inspect.Type) -> Any:
    """Read a variable's text as its setting's type; a text that is none stays one, and is refused as such."""
    while isinstance(type_, inspect.Metadata):
        type_ = type_.type
    if isinstance(type_, inspect.BoolType):
        return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}.get(text.lower(), text)
    if isinstance(type_, inspect.IntType | inspect.FloatType | inspect.DecimalType):
        try:
            return int(text) if isinstance(type_, inspect.IntType) else Decimal(text)
        except (ValueError, ArithmeticError):
            return text
    if isinstance(type_, inspect.VarTupleType):  # a list, as the file writes it
        try:
            return tomllib.loads(f"list = {text}", parse_float=Decimal)["list"]
        except tomllib.TOMLDecodeError:
            return text
    return text


def _unknown_variables(environ: Mapping[str, str]) -> list[str]:
    """Refuse FAREBOX_* variables that name a table but no setting of it, or nearly name one: they are misspelt."""
    known = [variable_name(table, field.name) for table, field in _scalar_settings()]
    problems = []
    for variable in sorted(environ):
        table = variable.removeprefix("FAREBOX_").partition("_")[0].lower()
        if not variable.startswith("FAREBOX_") or variable in known:
            continue
        near = difflib.get_close_matches(variable, known, 1, cutoff=0.6 if table in SINGLE_TABLES else 0.9)
        if near or table in SINGLE_TABLES:
            hint = f"; did you mean {near[0]}?" if near else f"; [{table}] has no such setting"
            problems.append(f"{variable}: is set, but sets nothing{hint}")
    return problems


def _origins(reader: Reader, tables: Mapping[str, Any], variables: Mapping[KeyPath, str]) -> dict[str, str]:
    """Say for each single setting that is no default where it came from."""
    origins = {}
    for name in SINGLE_TABLES:
        for key in tables.get(name, {}):
            origins[f"{name}.{key}"] = variables.get((name, key)) or reader.where((name, key))
    return origins
