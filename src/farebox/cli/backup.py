"""Backup: a copy of the books of one moment, beside a server that goes on."""

import shlex
import shutil
from pathlib import Path
from typing import Final

import click
import msgspec

from farebox.billing.ledger import NO_RUN
from farebox.books.audit import audit
from farebox.books.spool import copy_spool
from farebox.cli.common import Exampled, Invocation, common_options, pass_invocation, print_json, run
from farebox.cli.progress import Progress
from farebox.config import Config
from farebox.errors import FareboxError, StoreUnavailable
from farebox.store import schema
from farebox.store.backup import copy_database
from farebox.store.durable import sync
from farebox.store.open import open_store
from farebox.store.upgrade import schema_at
from farebox.store.urls import for_tools

_IN_FLIGHT: Final = "live holds"
"""The one check that a copy made beside a server need not hold: its calls in flight are nobody's."""


class _Places(msgspec.Struct, frozen=True):
    """Where a backup goes: each thing under another name until all is there."""

    copy: Path
    spool: Path
    unfinished: Path
    unfinished_spool: Path


@click.command(
    cls=Exampled,
    examples=(
        "farebox backup --verify /backups/farebox.db",
        'eval "$(farebox backup /backups/farebox.dump)"        # PostgreSQL',
    ),
)
@click.argument("dest", type=click.Path(path_type=Path))
@click.option("--verify", is_flag=True, help="Audit the copy before it counts as one. SQLite only.")
@click.option("--force", is_flag=True, help="Replace an earlier backup at DEST.")
@common_options
@pass_invocation
def backup(invocation: Invocation, dest: Path, *, verify: bool, force: bool) -> int:
    """Copy the books, beside a server that goes on.

    They go to the file DEST, and calls that wait in the spool to the directory DEST.spool. The copy has all that
    was there when the command began: of the spool first, then of the database, so that a call which moves from
    the one into the other meanwhile is never in neither.

    With PostgreSQL it copies the spool, and prints the line that dumps the database: run that line next.
    """
    config = invocation.config()
    if verify:
        _refuse_unprovable(config)
    places = _places(config, dest.absolute(), force=force)
    try:
        waiting = copy_spool(config.spool_path, places.unfinished_spool)
        if config.database_path is None:
            _put_in_place(places, with_copy=False)
            return _print_line(invocation, config, places, waiting)
        held = _copy(invocation, config.database_path, places, verify=verify)
        _put_in_place(places, with_copy=True)
    finally:
        _clear(places)
    size = places.copy.stat().st_size
    if invocation.as_json:
        facts = {"database": config.books_place, "made": True, "copy": str(places.copy), "size_bytes": size}
        print_json({**facts, "verified": verify, "spool": str(places.spool), "spooled": waiting})
        return 0
    proved = ", every check of its audit holds" if verify else ""
    click.echo(f"{places.copy} has the books ({size / 1024**2:.1f} MB{proved}).")
    if held:
        click.echo(f"{held} calls were in flight: a server that starts on the copy ends them free of charge.")
    click.echo(f"{places.spool} has {waiting} calls that were not in the books yet: it belongs to the copy.")
    return 0


def _places(config: Config, dest: Path, *, force: bool) -> _Places:
    """Choose the names, and refuse to write over anything that is not meant to be."""
    spool = dest.with_name(dest.name + ".spool")
    if dest.is_dir():
        raise FareboxError(f"{dest} is a directory; name a file in it, such as {dest / 'farebox.db'}")
    if not dest.parent.is_dir():
        raise FareboxError(f"there is no directory {dest.parent} to put the backup in")
    if config.database_path is not None:
        if not config.database_path.exists():
            raise StoreUnavailable(f"there is no database at {config.database_path} yet: nothing to back up")
        if dest.exists() and dest.samefile(config.database_path):
            raise FareboxError(f"{dest} is the database itself; name another file")
    there = [str(path) for path in (dest, spool) if path.exists()]
    if there and not force:
        raise FareboxError(f"{' and '.join(there)} exist already; name another file, or say --force to replace it")
    unfinished = dest.with_name(dest.name + ".unfinished")
    places = _Places(dest, spool, unfinished, unfinished.with_name(unfinished.name + ".spool"))
    _clear(places)
    return places


def _refuse_unprovable(config: Config) -> None:
    if config.database_path is None:
        raise click.UsageError("--verify audits a copy in SQLite; restore a dump elsewhere to audit it")
    version = run(schema_at(config.books_url))
    if version not in {0, schema.VERSION}:
        raise FareboxError(
            f"{config.books_place} has schema {version}: only the farebox it belongs to can audit a copy of it; "
            "leave out --verify"
        )


def _copy(invocation: Invocation, database: Path, places: _Places, *, verify: bool) -> int:
    """Copy the file, and prove the copy if wanted; answers how many calls were in flight, as far as it was looked."""
    progress = Progress(invocation)
    try:
        copy_database(database, places.unfinished, lambda done, total: progress("copy pages", done, total))
        return run(_prove(places.unfinished, progress)) if verify else 0
    finally:
        progress.close()


async def _prove(copy: Path, progress: Progress) -> int:
    store = await open_store(str(copy), create=False)
    try:
        checks = await audit(store, on_progress=lambda name, done, total: progress(f"audit {name}", done, total))
        held = await store.fetch("SELECT count(*) FROM hold WHERE expired_at IS NULL AND run_id <> ?", (NO_RUN,))
    finally:
        await store.close()
    broken = [f"{check.name}: {check.detail}" for check in checks if not check.ok and check.name != _IN_FLIGHT]
    if broken:
        raise FareboxError(
            f"the copy does not hold, and is not kept; `farebox audit` tells whether the books do: {'; '.join(broken)}"
        )
    return int(held[0][0])


def _put_in_place(places: _Places, *, with_copy: bool) -> None:
    """Give everything its name: the spool first, whose calls are in the copy or find their holds in it."""
    sync(places.unfinished_spool)
    if places.spool.exists():
        shutil.rmtree(places.spool)
    places.unfinished_spool.rename(places.spool)
    if with_copy:
        places.unfinished.replace(places.copy)
    sync(places.copy.parent)


def _clear(places: _Places) -> None:
    """Remove what an earlier backup, or this one, did not finish."""
    for suffix in ("", "-wal", "-shm", "-journal"):
        places.unfinished.with_name(places.unfinished.name + suffix).unlink(missing_ok=True)
    if places.unfinished_spool.exists():
        shutil.rmtree(places.unfinished_spool)


def _print_line(invocation: Invocation, config: Config, places: _Places, waiting: int) -> int:
    words = ("pg_dump", "--format=custom", f"--file={places.copy}", f"--dbname={for_tools(config.database.url)}")
    line = f"(umask 077 && {shlex.join(words)})"
    if invocation.as_json:
        facts = {"database": config.books_place, "made": False, "copy": str(places.copy), "command": line}
        print_json({**facts, "spool": str(places.spool), "spooled": waiting})
        return 0
    click.echo(line)
    click.echo(
        f"{places.spool} has {waiting} calls that were not in the books yet. Nothing is dumped yet: run the line above "
        "(the password comes from PGPASSWORD or ~/.pgpass).",
        err=True,
    )
    return 0
