"""Upstreams by command: those of the configuration are shown, those that operators enter are kept here and in admin."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from farebox.accounts.audit_log import Facts, record
from farebox.accounts.sealing import Seals
from farebox.cli.account import by_hand
from farebox.cli.common import (
    Exampled,
    Invocation,
    common_options,
    now_us,
    open_books,
    pass_invocation,
    print_json,
    print_table,
    run,
)
from farebox.cli.upstream_known import as_json, as_row, config_of, find_known, known_of, shown, source_of, state_of
from farebox.clock import steady_clock
from farebox.config import Config
from farebox.errors import FareboxError, InvalidRequest, NotFound
from farebox.store.protocol import Statement, Store
from farebox.upstreams.checks import goes_in_the_clear
from farebox.upstreams.entries import (
    Entry,
    Record,
    add_entry,
    change_entry,
    find_entry,
    opened,
    remove_entry,
)
from farebox.upstreams.fields import (
    FIELDS,
    KINDS,
    fields_of,
    is_secret,
    read_fields,
    read_kind,
    read_name,
    texts_of,
)
from farebox.upstreams.settings import UpstreamKind, UpstreamSettings
from farebox.upstreams.switches import drained_names, switch
from farebox.upstreams.trial import Trial, try_upstream
from farebox.upstreams.upstream import Upstream

_SECRET_BYTES: Final = 20_000
_STDIN: Final = "-"
_SECRETS: Final = [field.name.replace("_", "-") for field in FIELDS if is_secret(field.name)]
Function = TypeVar("Function", bound=Callable[..., Any])


@click.group()
def upstream() -> None:
    """Look after the upstreams that calls go to.

    Those of the configuration file are shown, drained and tested; others are entered here or at /admin/upstreams, and
    are in force at once, in every process that serves. What is secret is kept sealed and never shown again.
    """


def _settings_options(command: Function) -> Function:
    """Add an option for every setting; a secret comes from a file or from stdin, never from the command line."""
    for field in reversed(FIELDS):
        words, name = field.name.replace("_", "-"), field.name
        of = f" ({', '.join(field.kinds)})" if field.kinds else ""
        if is_secret(name):
            names = (f"--{words}-file", *(("--key-file",) if name == "api_key" else ()))
            said = f"{field.title}{of}: read from this file; - is stdin."
            option = click.option(*names, f"secret_{name}", metavar="FILE", help=said)
        else:
            usual = f" Empty: {field.usual}." if field.usual else ""
            option = click.option(f"--{words}", name, metavar="TEXT", help=f"{field.title}{of}. {field.help}{usual}")
        command = option(command)
    reason = click.option("--reason", default="by hand", show_default=True, help="Why, for the audit log.")
    return reason(command)


@upstream.command("list")
@common_options
@pass_invocation
def list_(invocation: Invocation) -> None:
    """List all upstreams; with --json one object a line.

    How each of them does is known to the processes that serve: see /admin/upstreams and the metrics.
    """
    config, opens = config_of(invocation)
    known = run(known_of(config, opens=opens))
    if invocation.as_json:
        for one in known:
            print_json(as_json(one))
    elif not known:
        click.echo("There are no upstreams yet; `farebox upstream add NAME --kind anthropic` enters one.")
    else:
        print_table(("name", "kind", "from", ">weight", "base url", "models", "state"), [as_row(one) for one in known])


@upstream.command()
@click.argument("name")
@common_options
@pass_invocation
def show(invocation: Invocation, name: str) -> None:
    """Show the settings of an upstream, and when its secrets were set. The secrets are never shown."""
    config, opens = config_of(invocation)
    one = run(find_known(config, name, opens=opens))
    told = as_json(one)
    if invocation.as_json:
        print_json(told)
        return
    click.echo(f"{one.name}, {source_of(one)}: {state_of(one)}")
    for key, value in told["settings"].items():
        click.echo(f"  {key:<16} {shown(value)}")
    for key, moment in told["secrets"].items():
        click.echo(f"  {key:<16} {f'set {moment}' if moment else 'set'}")


@upstream.command(
    cls=Exampled,
    examples=(
        "farebox upstream add anthropic --kind anthropic --key-file key.txt",
        "farebox upstream add local --kind anthropic --base-url http://10.0.0.5:8000 --models claude-haiku-4-5=qwen",
    ),
)
@click.argument("name")
@click.option("--kind", required=True, type=click.Choice(list(KINDS)), help="How it is spoken to.")
@_settings_options
@common_options
@pass_invocation
def add(invocation: Invocation, /, name: str, kind: str, reason: str, **given: str | None) -> None:
    """Enter an upstream. A key that no file gives is asked for where there is a terminal."""
    config = invocation.config(secrets=True)
    chosen = _read_name(config, name)
    texts = _texts(kind, given)
    settings = _read(chosen, read_kind(kind), texts, {}, config, may_ask=True)

    async def work() -> None:
        async with open_books(config, create=True) as store:
            seals = await Seals.open(store, config.server.secret, now_us())
            await add_entry(store, seals, settings, now_us(), _recorder(reason))

    run(work())
    _tell(invocation, config, chosen, "is entered")


@upstream.command(
    cls=Exampled,
    examples=(
        "farebox upstream edit anthropic --weight 3 --reason 'more quota'",
        "pass show anthropic | farebox upstream edit anthropic --key-file -",
    ),
)
@click.argument("name")
@click.option(
    "--forget", multiple=True, type=click.Choice(_SECRETS), help="Keep this secret no more; say it again for more."
)
@_settings_options
@common_options
@pass_invocation
def edit(invocation: Invocation, /, name: str, reason: str, forget: tuple[str, ...], **given: str | None) -> None:
    """Change an upstream that was entered.

    What is not named stays as it is; an empty text makes it as usual. A secret is replaced or forgotten, never shown.
    """
    gone = {one.replace("-", "_") for one in forget}
    renewed = bool(gone) or any(value is not None for option, value in given.items() if option.startswith("secret_"))
    config = invocation.config(secrets=renewed)

    async def work() -> bool:
        async with open_books(config) as store:
            entry = await _entry(config, store, name)
            try:
                kind, texts = read_kind(str(entry.values.get("kind"))), texts_of(entry.shown)
            except ValueError as error:
                raise FareboxError(f"what is kept of {name} cannot be read ({error}): remove it, and add it") from error
            texts |= _texts(kind, given)
            seals = await Seals.open(store, config.server.secret, now_us()) if renewed else None
            kept = {one: "" for one in entry.moments if not texts.get(one) and one not in gone}
            settings = _read(name, kind, texts, kept, config, named=entry.values.get("models", ()))
            return await change_entry(store, seals, entry, settings, now_us(), _recorder(reason), gone)

    changed = run(work())
    _tell(invocation, config, name, "is changed" if changed else "is as it was")


@upstream.command()
@click.argument("name")
@click.option("--reason", default="by hand", show_default=True, help="Why, for the audit log.")
@common_options
@pass_invocation
def remove(invocation: Invocation, name: str, reason: str) -> None:
    """Forget an upstream that was entered, and its secrets. Calls under way there end as they began."""
    config = invocation.config()

    async def work() -> None:
        async with open_books(config) as store:
            await remove_entry(store, await _entry(config, store, name), _recorder(reason))

    run(work())
    if invocation.as_json:
        print_json({"name": name, "removed": True})
    else:
        click.echo(f"{name} is removed.")


@upstream.command()
@click.argument("name")
@click.option("--reason", default="by hand", show_default=True, help="Why, for the audit log.")
@common_options
@pass_invocation
def drain(invocation: Invocation, name: str, reason: str) -> None:
    """Send no new call to an upstream; those under way end."""
    _switch(invocation, name, reason, drained=True)


@upstream.command()
@click.argument("name")
@click.option("--reason", default="by hand", show_default=True, help="Why, for the audit log.")
@common_options
@pass_invocation
def enable(invocation: Invocation, name: str, reason: str) -> None:
    """Send calls to an upstream again that was drained."""
    _switch(invocation, name, reason, drained=False)


@upstream.command()
@click.argument("name")
@common_options
@pass_invocation
def test(invocation: Invocation, name: str) -> int:
    """Put a small question to an upstream, from this machine. Exit code 1 when it fails.

    It counts the tokens of a word, which costs nothing; one that cannot count says a token, which you pay for.
    """
    config = invocation.config(secrets=True)
    settings = run(_whole(config, name))
    if not settings.base_url:
        raise FareboxError(f"{name} is a simulator inside the process that serves: there is nothing to be reached")
    trial = run(_try(config, settings))
    what = "said a token" if trial.paid else "counted the tokens of a word"
    if invocation.as_json:
        print_json({"name": name, "ok": trial.well, "paid": trial.paid, "took_us": trial.took_us, "said": trial.words})
    elif trial.well:
        click.echo(f"{name} {what}, after {trial.took_us / 1000:.0f} ms.")
    else:
        click.echo(f"{name} failed after {trial.took_us / 1000:.0f} ms: {trial.words}", err=True)
    return 0 if trial.well else 1


async def _try(config: Config, settings: UpstreamSettings) -> Trial:
    limits = config.limits
    try:
        made = Upstream(settings, connect_s=limits.connect_s, stall_s=limits.stall_s)
    except ValueError as error:
        raise FareboxError(f"{settings.name} cannot be used: {error}") from error
    try:
        cheapest = min(config.models, key=lambda model: model.rates.list.input)
        return await try_upstream(made, cheapest.id, steady_clock())
    finally:
        await made.client.close()
        await made.kind.close()


async def _whole(config: Config, name: str) -> UpstreamSettings:
    """Give the settings of an upstream, secrets included."""
    for one in config.upstreams:
        if one.name == name:
            return one
    async with open_books(config) as store:
        entry = await find_entry(store, name)
        return opened(entry, await Seals.open(store, config.server.secret, now_us()))


def _switch(invocation: Invocation, name: str, reason: str, *, drained: bool) -> None:
    config = invocation.config()

    async def work() -> None:
        async with open_books(config, create=bool(config.upstreams)) as store:
            if not any(one.name == name for one in config.upstreams):
                await find_entry(store, name)
            if (name in await drained_names(store)) != drained:
                what = "upstream.drain" if drained else "upstream.enable"
                facts = ({"drained": not drained}, {"drained": drained})
                line = _recorder(reason)(what, f"upstream:{name}", *facts, None)
                await store.write([switch(name, now_us(), drained=drained), line])

    run(work())
    _tell(invocation, config, name, "is drained" if drained else "is enabled")


def _read_name(config: Config, name: str) -> str:
    try:
        chosen = read_name(name)
    except ValueError as error:
        raise InvalidRequest(f"a name {error}") from error
    if any(one.name == chosen for one in config.upstreams):
        raise InvalidRequest(f"{chosen} is an upstream of the configuration file: change it there")
    return chosen


def _texts(kind: str, given: Mapping[str, str | None]) -> dict[str, str]:
    """Read what the options say. Raises InvalidRequest for one that means nothing to this kind."""
    known = {field.name for field in fields_of(kind)}
    texts: dict[str, str] = {}
    for option, value in given.items():
        name = option.removeprefix("secret_") if is_secret(option.removeprefix("secret_")) else option
        if value is None:
            continue
        if name not in known:
            words = name.replace("_", "-") + ("-file" if is_secret(name) else "")
            raise InvalidRequest(f"--{words} means nothing to kind {kind}")
        texts[name] = _read_file(value) if is_secret(name) else value
    return texts


def _read_file(place: str) -> str:
    if place == _STDIN:
        text = sys.stdin.read(_SECRET_BYTES + 1)
    else:
        with Path(place).open(encoding="utf-8", errors="replace") as file:
            text = file.read(_SECRET_BYTES + 1)
    if not text.strip():
        raise InvalidRequest(f"{'stdin' if place == _STDIN else place} is empty: there is no secret in it")
    return text.strip()


def _read(
    name: str,
    kind: UpstreamKind,
    texts: Mapping[str, str],
    kept: Mapping[str, str],
    config: Config,
    *,
    named: Any = (),
    may_ask: bool = False,
) -> UpstreamSettings:
    """Read settings, asking for secrets that are missing. Raises InvalidRequest with everything that is wrong."""
    sold = {str(one): str(one) for one in named}
    sold |= {alias: model.id for model in config.models for alias in (model.id, *model.aliases)}
    settings, wrong = read_fields(name, kind, texts, kept, sold)
    lacking = [field for field in fields_of(kind) if is_secret(field.name) and "missing" in wrong.get(field.name, "")]
    if may_ask and lacking and sys.stdin.isatty():
        asked = {one.name: click.prompt(one.title, hide_input=True, err=True) for one in lacking}
        settings, wrong = read_fields(name, kind, {**texts, **asked}, kept, sold)
    if wrong:
        raise InvalidRequest("\n".join(f"{field} {words}" for field, words in wrong.items()))
    return settings


def _recorder(reason: str) -> Record:
    by = by_hand()

    def line(
        action: str, target: str, before: Facts | None, after: Facts | None, only_if: Statement | None
    ) -> Statement:
        return record(by.name, by.address, action, target, before, after, reason, only_if)

    return line


async def _entry(config: Config, store: Store, name: str) -> Entry:
    """Find one that was entered. Raises InvalidRequest for one that is only in the file."""
    try:
        return await find_entry(store, name)
    except NotFound:
        if any(one.name == name for one in config.upstreams):
            raise InvalidRequest(f"{name} is an upstream of the configuration file: change it there") from None
        raise


def _tell(invocation: Invocation, config: Config, name: str, done: str) -> None:
    """Say what has become of an upstream, and what to mind."""
    one = run(find_known(config, name, opens=bool(config.server.secret)))
    if invocation.as_json:
        print_json(as_json(one))
    else:
        click.echo(f"{name} {done}.")
    if one.settings is not None and goes_in_the_clear(one.settings.base_url):
        click.echo(f"{one.settings.base_url} is plain http: keys and prompts can be read on their way there", err=True)
    if one.entry is not None and one.entry.secrets is None and one.settings is not None and one.settings.base_url:
        click.echo("it has no key; where its server wants one, enter it by --key-file", err=True)
    if one.entry is not None and one.entry.secrets is not None and not config.server.secret and done == "is entered":
        click.echo(
            "without [server] secret its key is sealed under one that lies in the same database: set it, then "
            f"`farebox upstream edit {name} --key-file FILE`",
            err=True,
        )
