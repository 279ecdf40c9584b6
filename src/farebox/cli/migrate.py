"""Migrate: the schema brought up to date, and the books moved from one database to another."""

import os
import time
from pathlib import Path
from typing import Any

import click

from farebox.books.moving import move
from farebox.cli.common import Exampled, Invocation, common_options, pass_invocation, print_json, run
from farebox.cli.progress import Progress
from farebox.config import Config
from farebox.errors import FareboxError
from farebox.store import schema
from farebox.store.sqlite import database_path
from farebox.store.upgrade import schema_at, upgrade
from farebox.store.urls import fault_in, is_postgres, without_password


class DatabaseType(click.ParamType[str]):
    """Where a database is, as [database] url says it, or as "env:NAME" to keep a password off the command line."""

    name = "url"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        url = str(value)
        if url.startswith("env:"):
            url = os.environ.get(url.removeprefix("env:"), "")
            if not url:
                self.fail(f"the variable {value.removeprefix('env:')} is not set", param, ctx)
        if is_postgres(url):
            if fault := fault_in(url):
                self.fail(fault, param, ctx)
            return url
        if not url.startswith("sqlite:///") or url == "sqlite:///":
            self.fail(
                'it must be like "sqlite:////var/lib/farebox/farebox.db" or "postgresql://user@host:5432/farebox"',
                param,
                ctx,
            )
        return str(database_path(url).absolute())


DATABASE = DatabaseType()


@click.command(
    cls=Exampled,
    examples=(
        "farebox migrate --check",
        "farebox migrate --from sqlite:////var/lib/farebox/farebox.db --to postgresql://farebox@db.internal/farebox",
    ),
)
@click.option("--check", is_flag=True, help="Only tell whether there is something to do: exit code 1 if there is.")
@click.option("--from", "source", metavar="URL", type=DATABASE, help="The books to move.  [default: the configured]")
@click.option("--to", "target", metavar="URL", type=DATABASE, help="An empty database to move them into.")
@common_options
@pass_invocation
def migrate(invocation: Invocation, source: str | None, target: str | None, *, check: bool) -> int:
    """Bring the database up to date, or move the books to another.

    Without options: the schema of the configured database becomes the one this version needs, forward only,
    each step in one transaction. Stop every farebox that serves it first, and make a backup.

    With --to: copies all books into another database, from SQLite to PostgreSQL or the other way round, after
    proving the old ones and before they count as moved the new ones, row by row. The old ones stay as they are.
    URL may be "env:NAME", which keeps a password out of sight.
    """
    config = invocation.config()
    if target is not None:
        if check:
            raise click.UsageError("--check looks at a schema; it moves nothing, so it goes without --to")
        return _move(invocation, config, source or config.books_url, target)
    if source is not None:
        raise click.UsageError("--from needs --to: where should the books go?")
    if check:
        return _check(invocation, config)
    return _upgrade(invocation, config)


def _check(invocation: Invocation, config: Config) -> int:
    version = run(schema_at(config.books_url))
    to_do = [_step(number) for number in range(version + 1, schema.VERSION + 1)]
    if invocation.as_json:
        facts = {"database": config.books_place, "schema": version, "known": schema.VERSION, "to_do": to_do}
        print_json(facts)
    elif version == schema.VERSION:
        click.echo(f"{config.books_place} has schema {version}: nothing to do.")
    else:
        click.echo(f"{schema.advice(config.books_place, version)}.")
    return int(version != schema.VERSION)


def _upgrade(invocation: Invocation, config: Config) -> int:
    before = run(schema_at(config.books_url))
    steps: list[dict[str, Any]] = []
    begun = time.monotonic()

    def tell(version: int) -> None:
        steps.append(_step(version))
        if not invocation.as_json:
            click.echo(f"schema {version}: {schema.title(version)} ({time.monotonic() - begun:.2f} s)")

    run(upgrade(config.books_url, tell))
    if invocation.as_json:
        print_json({"database": config.books_place, "before": before, "schema": schema.VERSION, "steps": steps})
    elif steps:
        click.echo(f"{config.books_place} is up to date.")
    else:
        click.echo(f"{config.books_place} has schema {schema.VERSION}: nothing to do.")
    return 0


def _step(version: int) -> dict[str, Any]:
    return {"version": version, "name": schema.title(version)}


def _move(invocation: Invocation, config: Config, source: str, target: str) -> int:
    old, new = without_password(source), without_password(target)
    if source == target:
        raise FareboxError(f"{old} is both old and new: name another database with --to")
    progress = Progress(invocation)
    try:
        rows = run(move(source, target, spools=_spools(config, source), tell=progress))
    finally:
        progress.close()
    if invocation.as_json:
        print_json({"event": "moved", "from": old, "to": new, "rows": rows})
        return 0
    click.echo(f"Moved {sum(rows.values()):,} rows from {old} to {new}:")
    for table, count in rows.items():
        click.echo(f"  {table:<11}{count:>12,}")
    url = new if is_postgres(target) else f"sqlite:///{new}"
    click.echo("Every check of the audit holds on both sides, and every row is the same.")
    click.echo(f'Now set [database] url = "{url}"{_hint(target)} wherever farebox runs, and start it.')
    click.echo(f"{old} is as it was: keep it for a while, and let nothing serve it any more.")
    return 0


def _spools(config: Config, source: str) -> list[Path]:
    """Name every directory in which calls of the old books may wait."""
    spools = [config.spool_path]
    if not is_postgres(source):
        path = Path(source)
        spools.append(path.with_name(path.name + ".spool"))
    return list(dict.fromkeys(spools))


def _hint(target: str) -> str:
    """Remind of what a URL without its password leaves out."""
    return "" if without_password(target) == target else " (with the password and options it has)"
