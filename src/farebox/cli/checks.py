"""The checks of `farebox doctor`. Each looks and tells; none changes anything."""

import errno
import os
import resource
import shutil
import socket
import stat
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, Literal
from urllib.parse import urlsplit

import apsw
import msgspec

from farebox.billing.pricing import Model, Rates
from farebox.books.spool import waiting_in
from farebox.clock import US_PER_S, iso
from farebox.config import Config, load_config
from farebox.errors import ConfigError
from farebox.gateway.settings import Features
from farebox.money import format_usd
from farebox.secret import Secret
from farebox.store.schema import VERSION
from farebox.store.sqlite import OLDEST_SQLITE
from farebox.upstreams.settings import UpstreamSettings

_NETWORK_FILE_SYSTEMS: Final = (
    "nfs",
    "cifs",
    "smb",
    "9p",
    "fuse.sshfs",
    "glusterfs",
    "ceph",
    "afs",
    "lustre",
)
_LITTLE_SPACE: Final = 2 * 1024**3
_NO_SPACE: Final = 200 * 1024**2
_SLOW_SYNC_MS: Final = 30
_SPARE_FILES: Final = 200
_FIRST_DAY_US: Final = 1_760_000_000 * US_PER_S
_LAST_DAY_US: Final = 4_000_000_000 * US_PER_S
_SAFE: Final = {"web_search", "url_sources", "fast"}
_LOOPBACK: Final = {"127.0.0.1", "::1", "localhost"}


class Finding(msgspec.Struct, frozen=True):
    """What one check found, and what to do about it."""

    name: str
    status: Literal["ok", "warn", "FAIL"]
    found: str
    advice: str = ""


def read_settings(file: Path | None) -> tuple[Config | None, list[Finding]]:
    """Read the configuration as the server would. Without one there is nothing more to check."""
    try:
        config = load_config(file, os.environ)
    except ConfigError as error:
        return None, [Finding("settings", "FAIL", line) for line in str(error).splitlines()]
    findings = [Finding("settings", "ok", str(file) if file else "defaults and FAREBOX_* variables")]
    return config, findings + list(_check_secrets(file))


def check_machine(config: Config) -> Iterator[Finding]:
    """Look at what the machine gives: the SQLite file, spool, disk, clock, ports, file descriptors."""
    if config.database_path is not None:
        yield _check_sqlite()
        yield from _check_database(config.database_path)
        yield _check_clock(config.database_path)
    yield from _check_spool(config)
    disks = [_existing(path.parent) for path in (config.database_path, config.spool_path) if path is not None]
    for folder in dict.fromkeys(disks):
        yield from _check_disk(folder)
    yield _check_port("port", config.server.host, config.server.port)
    if address := config.server.metrics_address:
        yield _check_port("metrics", *address)
        if address[0] not in _LOOPBACK:
            advice = "put them on 127.0.0.1, or let a firewall keep strangers out"
            yield Finding("metrics", "warn", f"served on {address[0]}, not on this machine alone", advice)
    yield _check_descriptors(config)
    yield from _check_public_url(config)


def check_offer(config: Config, upstreams: Sequence[UpstreamSettings]) -> Iterator[Finding]:
    """Look at what is sold: that every class has a price, where money would be lost, and who serves it."""
    free = [model.id for model in config.models if any(0 in _prices(rates) for rates in _sold(model))]
    below = [model.id for model in config.models if _sold_below_list(model)]
    unserved = [
        model.id
        for model in config.models
        if not any(not u.models or {model.id, *model.aliases} & set(u.models) for u in upstreams)
    ]
    if free:
        yield Finding("prices", "warn", f"sold for nothing in part: {_some(free)}", "make sure that you mean it")
    if below:
        dearest = max((m for m in config.models if m.id in below), key=lambda m: m.rates.list.output)
        lost = dearest.rates.list.output - dearest.rates.sell.output
        yield Finding(
            "prices",
            "warn",
            f"sold below the upstream's public list: {_some(below)}",
            f"with an upstream at list price you lose {format_usd(lost)} on each million output tokens of "
            f"{dearest.id}; set [[models]] unless yours is cheaper",
        )
    if not free and not below:
        yield Finding(
            "prices",
            "ok",
            f"all {len(config.models)} models at list or above",
        )
    if unserved:
        yield Finding("models", "warn", f"sold, but no upstream serves: {_some(unserved)}", "add them to an upstream")
    else:
        yield Finding("models", "ok", f"{len(config.models)} models, each served by an upstream")
    risky = [name for name in Features.__struct_fields__ if getattr(config.features, name) and name not in _SAFE]
    if risky:
        yield Finding("features", "warn", f"on: {_some(risky)}", "their cost cannot be bounded or metered fully")
    if not config.site.support_email:
        yield Finding("site", "warn", "no support_email", "set [site] support_email: messages tell customers of it")
    yield from _people_findings(config)


def _people_findings(config: Config) -> Iterator[Finding]:
    """Look at what people who sign up depend on: mail, and what seals their secrets."""
    mail = config.mail
    if mail.host:
        yield Finding("mail", "ok", f"goes to {mail.host}:{mail.port}; a letter to try it: /admin/settings")
    elif config.site.sign_up != "closed":
        advice = "set [mail] host; until then hand on the links that `farebox outbox` shows"
        yield Finding("mail", "warn", "no mail server", advice)
    if not config.server.secret:
        advice = "set [server] secret; without it a copy of the database shows what is sealed, upstreams' keys included"
        yield Finding("secret", "warn", "none of your own", advice)


def _check_secrets(file: Path | None) -> Iterator[Finding]:
    """Look at who may read the files that hold secrets."""
    if file is None:
        return
    secret = [field.name for field in msgspec.structs.fields(UpstreamSettings) if field.type is Secret]
    tables = tomllib.loads(file.read_text("utf-8")).get("upstreams", [])
    keys = [str(up.get(name, "")) for up in tables for name in secret]
    holders = [file.parent / key.removeprefix("file:") for key in keys if key.startswith("file:")]
    if any(key and not key.startswith(("file:", "env:")) for key in keys):
        holders.append(file)
    for holder in holders:
        if holder.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            yield Finding("secrets", "warn", f"{holder} may be read by others", f"chmod 600 {holder}")
        else:
            yield Finding("secrets", "ok", f"{holder} is the owner's alone")


def _check_sqlite() -> Finding:
    version = apsw.sqlite_lib_version()
    oldest = ".".join(map(str, OLDEST_SQLITE))
    if tuple(map(int, version.split("."))) < OLDEST_SQLITE:
        advice = f"install apsw {oldest} or newer: before it, SQLite could corrupt a database in WAL mode"
        return Finding("sqlite", "FAIL", version, advice)
    return Finding("sqlite", "ok", version)


def _check_database(path: Path) -> Iterator[Finding]:
    """Look at the file without making or changing it."""
    if not path.exists():
        parent = _existing(path.parent)
        if os.access(parent, os.W_OK | os.X_OK):
            yield Finding("database", "ok", f"{path} is not there yet; `farebox serve` will make it")
        else:
            yield Finding("database", "FAIL", f"{path} cannot be made", f"let this user write to {parent}")
        return
    try:
        connection = apsw.Connection(path.as_uri() + "?mode=ro", flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI)
        version = connection.pragma("user_version")
        mode = connection.pragma("journal_mode")
        connection.close()
    except apsw.Error as error:
        yield Finding(
            "database",
            "FAIL",
            f"{path} cannot be read: {error}",
            "check its owner; it must be a Farebox database",
        )
        return
    if version != VERSION:
        status: Literal["warn", "FAIL"] = "FAIL" if version > VERSION else "warn"
        advice = (
            "upgrade Farebox" if version > VERSION else "`farebox migrate` brings it up to date; `farebox backup` first"
        )
        yield Finding("database", status, f"{path} has schema {version}, this Farebox has {VERSION}", advice)
    elif mode != "wal":
        yield Finding("database", "warn", f"{path} is in {mode} mode", "`farebox serve` will put it in WAL mode")
    else:
        yield Finding("database", "ok", f"{path} ({path.stat().st_size / 1024**2:.1f} MB, schema {version}, WAL)")
    if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        yield Finding("database", "warn", f"{path} may be read by others", f"chmod 600 {path}")


def _check_spool(config: Config) -> Iterator[Finding]:
    """Look at where calls wait that the database cannot take; with SQLite it is on the same disk, and rarely used."""
    folder = config.spool_path
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        advice = f"let this user write to {folder}: while the database is away, answers would not be delivered"
        yield Finding("spool", "FAIL", f"{config.spool_path} cannot be written to", advice)
        return
    try:
        waiting = waiting_in(config.spool_path)
    except OSError as error:
        yield Finding("spool", "FAIL", f"{error.filename} cannot be read: {error.strerror}", "check its owner")
        return
    if waiting:
        advice = (
            "they are booked within seconds of a server's start, or of the database's return; watch farebox_spooled"
        )
        yield Finding("spool", "warn", f"up to {waiting} calls wait in {config.spool_path} to be booked", advice)
    else:
        yield Finding("spool", "ok", f"{config.spool_path}: nothing waits")


def _check_disk(folder: Path) -> Iterator[Finding]:
    free = shutil.disk_usage(folder).free
    shown = f"{free / 1024**3:.1f} GB free at {folder}"
    if free < _NO_SPACE:
        yield Finding("disk", "FAIL", shown, "make room: when the disk is full no call can be admitted")
    elif free < _LITTLE_SPACE:
        yield Finding("disk", "warn", shown, "make room soon: in SQLite each million calls take about 0.5 GB")
    else:
        yield Finding("disk", "ok", shown)
    kind = _file_system(folder)
    if kind.startswith(_NETWORK_FILE_SYSTEMS):
        advice = "use a local disk: locks and syncs of SQLite and of the spool do not hold over a network"
        yield Finding("disk", "FAIL", f"{folder} is on a network file system ({kind})", advice)
    if not os.access(folder, os.W_OK):
        return
    with tempfile.TemporaryFile(dir=folder) as probe:
        probe.write(b"farebox" * 512)
        probe.flush()
        started = time.monotonic()
        os.fsync(probe.fileno())
        millis = (time.monotonic() - started) * 1000
    if millis > _SLOW_SYNC_MS:
        advice = "every call waits for two syncs, shared with others at the time; use a faster disk"
        yield Finding("sync", "warn", f"{millis:.1f} ms to make a write durable", advice)
    else:
        yield Finding("sync", "ok", f"{millis:.1f} ms to make a write durable")


def _check_clock(database: Path) -> Finding:
    now = time.time_ns() // 1000
    newest = 0
    if database.exists():
        try:
            connection = apsw.Connection(str(database), flags=apsw.SQLITE_OPEN_READONLY)
            moments = "SELECT max(at) AS at FROM usage UNION SELECT max(at) FROM transfer"
            newest = max(int(str(row[0] or 0)) for row in connection.execute(moments))
            connection.close()
        except apsw.Error:
            newest = 0  # a database that cannot be read is told by its own check
    if not _FIRST_DAY_US < now < _LAST_DAY_US:
        return Finding("clock", "FAIL", f"it says {iso(now)}", "set it; NTP keeps it right")
    if newest > now + 60 * US_PER_S:
        return Finding(
            "clock",
            "FAIL",
            f"{iso(now)} is before the newest entry, {iso(newest)}",
            "set it; NTP keeps it right",
        )
    return Finding("clock", "ok", iso(now))


def _check_port(name: str, host: str, port: int) -> Finding:
    """Try to bind, as the server would."""
    if port == 0:
        return Finding(name, "ok", f"{host}, any free port")
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except PermissionError:
        advice = "use a port above 1023, or give the service CAP_NET_BIND_SERVICE"
        return Finding(name, "FAIL", f"{host}:{port} needs more rights", advice)
    except OSError as error:
        if error.errno == errno.EADDRINUSE and _answers(host, port):
            advice = "fine if that is this server; another one needs another port"
            return Finding(name, "warn", f"{host}:{port} is in use by a server that answers", advice)
        return Finding(
            name, "FAIL", f"{host}:{port} cannot be listened on: {error.strerror or error}", "choose another"
        )
    return Finding(name, "ok", f"{host}:{port} is free")


def _answers(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host if host != "0.0.0.0" else "127.0.0.1", port), timeout=1):  # noqa: S104
            return True
    except OSError:
        return False


def _check_descriptors(config: Config) -> Finding:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = config.limits.concurrent_calls * 2 + _SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        advice = "ulimit -n 65536, or LimitNOFILE=65536 in the service file; else lower limits.concurrent_calls"
        return Finding("files", "warn", f"{soft} may be open, {wanted} would be at full load", advice)
    return Finding("files", "ok", f"{'any number' if soft == resource.RLIM_INFINITY else soft} may be open")


def _check_public_url(config: Config) -> Iterator[Finding]:
    url = config.server.public_url
    if not url and config.server.host not in _LOOPBACK:
        advice = 'set [server] public_url = "https://…", which customers are told to use'
        yield Finding("public_url", "warn", f"not set; customers would be told {config.base_url}", advice)
    elif url.startswith("http://") and urlsplit(url).hostname not in _LOOPBACK:
        advice = "keys would cross the network in the clear: put a proxy that speaks TLS before this server"
        yield Finding("public_url", "warn", url, advice)
    else:
        yield Finding("public_url", "ok", config.base_url)


def _existing(folder: Path) -> Path:
    while not folder.is_dir():
        folder = folder.parent
    return folder


def _file_system(folder: Path) -> str:
    """Name the kind of file system a folder is on, as Linux tells it; empty elsewhere."""
    try:
        mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    except OSError:
        return ""
    over = [(len(m[1]), m[2]) for m in mounts if folder.resolve().is_relative_to(m[1])]
    return max(over)[1] if over else ""


def _sold(model: Model) -> list[Rates]:
    tariffs = [
        model.rates,
        *(band.rates for band in model.bands),
        *([model.fast_rates] if model.fast_rates else []),
    ]
    return [tariff.sell for tariff in tariffs]


def _prices(rates: Rates) -> list[int]:
    return [getattr(rates, name) for name in Rates.__struct_fields__]


def _sold_below_list(model: Model) -> bool:
    return any(sell < list_ for sell, list_ in zip(_prices(model.rates.sell), _prices(model.rates.list), strict=True))


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
