"""What all commands share: --config and --json, opening the books, and printing."""

import asyncio
import getpass
import json
import os
import re
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar

import click
import msgspec

from farebox.clock import US_PER_S, steady_clock
from farebox.config import Config, load_config
from farebox.errors import StoreUnavailable
from farebox.money import parse_usd
from farebox.store.open import open_store
from farebox.store.protocol import Store

P = ParamSpec("P")
T = TypeVar("T")

DEFAULT_FILE: Final = Path("farebox.toml")
_SPANS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}


class Invocation:
    """One run of the command line: what its common options say."""

    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json
        self.config_path: Path | None = None

    def file(self) -> Path | None:
        """Give the configuration file: --config, else FAREBOX_CONFIG, else ./farebox.toml if it is there."""
        if self.config_path is not None:
            return self.config_path
        if named := os.environ.get("FAREBOX_CONFIG"):
            return Path(named)
        return DEFAULT_FILE if DEFAULT_FILE.exists() else None

    def config(self, *, secrets: bool = False) -> Config:
        """Read the settings. Raises ConfigError."""
        return load_config(self.file(), os.environ, secrets=secrets)


class Exampled(click.Command):
    """A command whose help ends with lines to copy."""

    def __init__(self, *args: Any, examples: Sequence[str] = (), **more: Any) -> None:
        super().__init__(*args, **more)
        self._examples = examples

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        write_examples(formatter, self._examples)
        super().format_epilog(ctx, formatter)


def write_examples(formatter: click.HelpFormatter, examples: Sequence[str]) -> None:
    """Write lines to copy under a heading of their own."""
    if examples:
        with formatter.section("Examples" if len(examples) > 1 else "Example"):
            for example in examples:
                formatter.write(f"{'':{formatter.current_indent}}{example}\n")


pass_invocation = click.make_pass_decorator(Invocation, ensure=True)


def common_options(command: Callable[P, T]) -> Callable[P, T]:
    """Add --config and --json, which every command takes, before or after its name."""

    def set_config(ctx: click.Context, _: click.Parameter, value: Path | None) -> None:
        if value is not None:
            ctx.ensure_object(Invocation).config_path = value

    def set_json(ctx: click.Context, _: click.Parameter, value: bool) -> None:  # noqa: FBT001  click's signature
        if value:
            ctx.ensure_object(Invocation).as_json = True

    command = click.option(
        "--json", is_flag=True, expose_value=False, callback=set_json, help="Print JSON, for scripts."
    )(command)
    return click.option(
        "--config",
        metavar="FILE",
        type=click.Path(path_type=Path),
        expose_value=False,
        callback=set_config,
        help="Read settings from this file.",
    )(command)


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run one command's work to its end."""
    return asyncio.run(work)


@asynccontextmanager
async def open_books(config: Config, *, create: bool = False) -> AsyncIterator[Store]:
    """Open the database for one command, beside a server that may be running. Raises StoreUnavailable."""
    if not create and config.database_path is not None and not config.database_path.exists():
        raise StoreUnavailable(
            f"there is no database at {config.database_path} yet: `farebox serve` and "
            "`farebox account create` make it; if yours is elsewhere, name its configuration with --config"
        )
    store = await open_store(config.books_url, plans=config.plans, create=create)
    try:
        yield store
    finally:
        await store.close()


def now_us() -> int:
    """Take the present moment, once for a command."""
    return steady_clock()()


def actor() -> str:
    """Name who runs this command, for the books."""
    try:
        return f"operator:{getpass.getuser()}"
    except (KeyError, OSError):
        return f"operator:{os.getuid()}"


class UsdType(click.ParamType[int]):
    """A positive amount of dollars, as nano-dollars."""

    name = "usd"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            nanos = parse_usd(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        if nanos == 0:
            self.fail("an amount is more than nothing", param, ctx)
        return nanos


class MomentType(click.ParamType[int]):
    """A moment: a day, an RFC 3339 time, or how long ago ("90m", "24h", "7d"); as microseconds UTC."""

    name = "when"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        if span := re.fullmatch(r"(\d{1,6})([smhdw])", value):
            return now_us() - int(span[1]) * _SPANS[span[2]] * US_PER_S
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is no moment; say 2026-11-22, 2026-11-22T10:30:00Z or 24h", param, ctx)
        return int(moment.replace(tzinfo=moment.tzinfo or UTC).timestamp()) * US_PER_S


USD: Final = UsdType()
MOMENT: Final = MomentType()


def print_json(value: Any, *, now: bool = False) -> None:
    """Print one JSON object on one line, fast enough for a million of them.

    `now`: also into a pipe, whose reader waits for it while this process goes on.
    """
    sys.stdout.write(msgspec.json.encode(value).decode() + "\n")
    if now:
        sys.stdout.flush()


def print_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows in columns; headings that begin with > stand over numbers, set to the right."""
    lines = [tuple(heading.lstrip(">") for heading in headings), *(tuple(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]
    for number, line in enumerate(lines):
        cells = [
            cell.rjust(width) if heading.startswith(">") else cell.ljust(width)
            for cell, width, heading in zip(line, widths, headings, strict=True)
        ]
        text = "  ".join(cells).rstrip()
        click.secho(text, bold=True) if number == 0 else click.echo(text)


def show_moment(at_us: int) -> str:
    """Write a moment for people: in UTC, to the second."""
    return datetime.fromtimestamp(at_us // US_PER_S, UTC).strftime("%Y-%m-%d %H:%M:%S")


def fail(invocation: Invocation, message: str) -> None:
    """Say on stderr what went wrong: a line for each thing, or one JSON object."""
    if invocation.as_json:
        click.echo(json.dumps({"error": {"message": message}}, ensure_ascii=False), err=True)
        return
    head = click.style("farebox: ", fg="red", bold=True) if sys.stderr.isatty() else "farebox: "
    click.echo(head + message, err=True)
