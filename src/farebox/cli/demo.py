"""`farebox demo`: a whole gateway to try, with a customer, a key and an upstream, and the lines to paste."""

import json
import os
import secrets
import shutil
import socket
import sys
from pathlib import Path
from typing import Final

import click
import msgspec

from farebox.accounts.accounts import Account, create_account, find_account
from farebox.accounts.keys import create_key, find_key
from farebox.accounts.passwords import Passwords
from farebox.books.ledger import Ledger, credit
from farebox.cli.common import Invocation, common_options, now_us, open_books, pass_invocation, print_json
from farebox.cli.demo_history import ADMIN, OPENING_NANOS, fill
from farebox.cli.progress import Progress
from farebox.config import Config, load_config
from farebox.config.settings import listening_url
from farebox.errors import ConfigError, NotFound
from farebox.ids import key_is_well_formed
from farebox.money import format_usd
from farebox.store.open import open_store
from farebox.store.protocol import Store

_EMAIL: Final = "demo@farebox.example"
_MODEL: Final = "claude-sonnet-4-6"
_METRICS_PORT: Final = 9464
_METRICS: Final = f"127.0.0.1:{_METRICS_PORT}"
_KEY_NAME: Final = "demo"
_ALONE: Final = frozenset({"127.0.0.1", "::1", "localhost"})
_PASSWORD_CHARS: Final = "abcdefghjkmnpqrstuvwxyz23456789"  # noqa: S105  what passwords are made of


class Demo(msgspec.Struct, frozen=True):
    """What demo.json says: all that a client needs."""

    base_url: str
    api_key: str
    account_email: str
    account_password: str
    admin_email: str
    admin_password: str
    config: str
    upstream: str


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen.")
@click.option("--port", envvar="PORT", type=click.IntRange(0, 65535), default=8080, help="8080, or $PORT; 0: any.")
@click.option(
    "--data", envvar="DATA", type=click.Path(path_type=Path), default=Path(".data"), help="Where all is kept."
)
@click.option("--speed", type=click.FloatRange(0), help="The simulator's output tokens a second; 0: all at once.")
@click.option(
    "--payments",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Take payments as the tables in this file say, instead of simulating them.",
)
@click.option("--with-history", is_flag=True, help="Begin with 90 days of made-up customers, calls and payments.")
@common_options
@pass_invocation
def demo(
    invocation: Invocation,
    host: str,
    port: int,
    data: Path,
    speed: float | None,
    payments: Path | None,
    *,
    with_history: bool,
) -> int:
    """Serve a gateway to try, ready to be called.

    It has a customer with $5.00 and a key, and an operator; it prints the lines to paste, and how to sign in.

    The upstream is the built-in simulator; when ANTHROPIC_API_KEY is set it is the real API (or the server at
    ANTHROPIC_UPSTREAM_URL). Started again on the same data it goes on with the same balance and key.
    """
    import uvloop

    config = prepare(data.absolute(), host, port, speed, payments)
    return uvloop.run(_serve(invocation, config, data.absolute(), with_history=with_history))


async def _serve(invocation: Invocation, config: Config, data: Path, *, with_history: bool) -> int:
    from farebox.app import start_gateway
    from farebox.workers.life import run_until_told

    kept = _kept(data / "demo.json")
    if with_history:
        kept = await _ensure_history(config, kept, Progress(invocation))
    async with open_books(config, create=True) as store:
        account = await _ensure_account(store, _EMAIL)
        gift = credit("demo:opening", account.id, OPENING_NANOS, code="promotion", actor="demo", memo="to try with")
        await Ledger(store).post(gift)  # the id makes it once: it is the opening credit of the history as well
        account = await find_account(store, _EMAIL)
        key = await _ensure_key(store, account, config.keys.prefix, kept.get("api_key", ""))
        password = await _ensure_password(store, account, "customer", kept.get("account_password", ""))
        admin = await _ensure_account(store, ADMIN)
        admin_password = await _ensure_password(store, admin, "admin", kept.get("admin_password", ""))
    gateway = await start_gateway(config)
    shown = Demo(
        base_url=listening_url(config.server.host, gateway.port) + config.server.base_path,
        api_key=key,
        account_email=account.email,
        account_password=password,
        admin_email=ADMIN,
        admin_password=admin_password,
        config=str(data / "farebox.toml"),
        upstream=config.upstreams[0].kind,
    )
    _write(data / "demo.json", json.dumps(msgspec.to_builtins(shown), indent=2) + "\n")
    if invocation.as_json:
        print_json(msgspec.to_builtins(shown), now=True)
    else:
        click.echo(welcome(shown, account, data))
    await run_until_told(gateway)
    return 0


def prepare(data: Path, host: str, port: int, speed: float | None = None, payments: Path | None = None) -> Config:
    """Write the demo's configuration and read it, as `farebox serve` would."""
    try:
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        taken = payments.read_text("utf-8") if payments else "[payments]\nsimulated = true\n"
        _write(data / "farebox.toml", _settings(host, port or free_port(host, 0) or 0, speed, taken))
    except OSError as error:
        raise ConfigError(f"{data}: cannot be written to: {error.strerror}; name another place with --data") from error
    return load_config(data / "farebox.toml", os.environ)


def _settings(host: str, port: int, speed: float | None, payments: str) -> str:
    upstream = 'name = "simulator"\nkind = "simulator"\n' + (f"speed = {speed}\n" if speed is not None else "")
    if _real_key():
        url = os.environ.get("ANTHROPIC_UPSTREAM_URL", "")
        base_url = f"base_url = {json.dumps(url)}\n" if url else ""
        upstream = f'name = "anthropic"\nkind = "anthropic"\napi_key = "env:ANTHROPIC_API_KEY"\n{base_url}'
    metrics = _METRICS if free_port("127.0.0.1", _METRICS_PORT) else "127.0.0.1:0"
    return (
        "# Written by `farebox demo` at each start: changes here do not last. Copy it, and begin with\n"
        "# `farebox serve --config COPY`; `farebox config example` explains every setting.\n"
        f'[server]\nhost = {json.dumps(host)}\nport = {port}\nmetrics = "{metrics}"\n\n'
        '[database]\nurl = "sqlite:///farebox.db"\n\n'
        f"{payments}\n"
        '[log]\nformat = "console"\nlevel = "warning"\n\n'
        f"[site]\nadmin_factor = {json.dumps('optional' if host in _ALONE else 'required')}\n"
        "cost_percent = 40\n\n"
        f"[[upstreams]]\n{upstream}"
    )


def _real_key() -> bool:
    """Whether there is a key for the real API. One of our own, exported for Claude Code, is none."""
    return bool(os.environ.get("ANTHROPIC_API_KEY")) and not os.environ["ANTHROPIC_API_KEY"].startswith("sk-cc-")


def free_port(host: str, port: int) -> int | None:
    """Give the port if it can be listened on, or for 0 one that can; None when it is taken."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return None
        return int(probe.getsockname()[1])


async def _ensure_history(config: Config, kept: dict[str, str], progress: Progress) -> dict[str, str]:
    """Write the history into books of their own, which take their place whole or not at all. Raises ConfigError."""
    path = config.database_path
    assert path is not None
    if path.exists():
        async with open_books(config) as store:
            if await store.fetch("SELECT 1 FROM announcement WHERE created_by = 'demo'"):
                return kept
        raise ConfigError(f"{path} holds data already: a history goes into fresh books only; choose another --data")
    fresh = path.with_name("history.db")
    fresh.unlink(missing_ok=True)
    store = await open_store(fresh, plans=config.plans)
    try:
        key = await fill(store, config.models, config.plans, config.keys.prefix, now_us(), on_progress=progress)
    finally:
        await store.close()
        progress.close()
    fresh.replace(path)
    return {"api_key": key}


async def _ensure_account(store: Store, email: str) -> Account:
    """Find one of the demo's own accounts, or open it."""
    try:
        return await find_account(store, email)
    except NotFound:
        return await create_account(store, email, "pro", now_us())


async def _ensure_password(store: Store, account: Account, role: str, kept: str) -> str:
    """Give the password that somebody signs in with: the kept one while there is any, else a new one."""
    if kept and await store.fetch("SELECT 1 FROM credential WHERE account_id = ?", (account.id,)):
        return kept
    password = "-".join("".join(secrets.choice(_PASSWORD_CHARS) for _ in range(5)) for _ in range(3))
    keep = (
        "INSERT INTO credential (account_id, password, changed_at) VALUES (?, ?, ?) "
        "ON CONFLICT (account_id) DO UPDATE SET password = excluded.password, changed_at = excluded.changed_at"
    )
    prove = "UPDATE account SET role = ?, verified_at = coalesce(verified_at, created_at) WHERE id = ?"
    hashed = await Passwords().hash(password)
    await store.write([(keep, (account.id, hashed, now_us())), (prove, (role, account.id))])
    return password


def _kept(file: Path) -> dict[str, str]:
    """Read what the last start showed; nothing when there was none."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=dict[str, str])
    except (OSError, msgspec.MsgspecError):
        return {}


async def _ensure_key(store: Store, account: Account, prefix: str, text: str) -> str:
    """Give the kept key while it is in force; otherwise make one."""
    if key_is_well_formed(text, prefix):
        try:
            kept = await find_key(store, text)
        except NotFound:
            kept = None
        if kept is not None and kept.account_id == account.id and kept.status(now_us()) == "active":
            return text
    return (await create_key(store, account.id, _KEY_NAME, prefix, now_us()))[1]


def _write(path: Path, text: str) -> None:
    """Write a file that only its owner may read, whole or not at all."""
    fresh = path.with_name(path.name + ".new")
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    fresh.replace(path)


def welcome(shown: Demo, account: Account, data: Path) -> str:
    """Write what a stranger needs: key, address, lines to paste, and where the data lies."""
    if shown.upstream == "simulator":
        upstream = "the built-in simulator: answers are made up, metering and money are real"
    else:
        upstream = "the real API, with your ANTHROPIC_API_KEY: calls cost you money"
    site = shown.base_url.removesuffix("/api/proxy")
    command = "farebox" if shutil.which("farebox") else os.path.relpath(Path(sys.executable).parent / "farebox")
    return f"""\
Farebox serves at  {shown.base_url}
API key            {shown.api_key}
Account            {account.email}, plan {account.plan}, balance {format_usd(account.balance_nanos)}
Upstream           {upstream}
Data               {data} (all of this is in demo.json)

Pages              {site}
as a customer      {shown.account_email}   {shown.account_password}
as the operator    {shown.admin_email}  {shown.admin_password}   at {site}/admin

curl
  curl -N {shown.base_url}/v1/messages \\
    -H 'Authorization: Bearer {shown.api_key}' \\
    -H 'Content-Type: application/json' \\
    -d '{{"model": "{_MODEL}", "max_tokens": 1024, "stream": true, \
"messages": [{{"role": "user", "content": "Hello!"}}]}}'

Python (pip install anthropic)
from anthropic import Anthropic

client = Anthropic(base_url="{shown.base_url}", api_key="{shown.api_key}")
message = client.messages.create(
    model="{_MODEL}", max_tokens=1024, messages=[{{"role": "user", "content": "Hello!"}}]
)
print(message.content[0].text)

Claude Code
  export ANTHROPIC_BASE_URL={shown.base_url}
  export ANTHROPIC_API_KEY={shown.api_key}

What it cost
  {command} --config {os.path.relpath(shown.config)} usage

Ctrl-C ends it; balance and key stay."""
