"""Receipts of calls: check one against a saved file of keys, with no server and no books, and give out the keys."""

from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import click

from farebox.accounts.signing import KEYS_PATH, NotGenuine, check, read_json, read_public_keys
from farebox.books.call_receipts import TYPE, faults
from farebox.cli.common import Exampled, Invocation, common_options, open_books, pass_invocation, print_json, run
from farebox.http.client import HttpClient, Origin, read_origin
from farebox.http.failures import UpstreamError

KEY_FILE: Final = "farebox-receipt-keys.json"
_MOST_BYTES: Final = 1 << 20
_FETCH_S: Final = 10.0


@click.group()
def receipt() -> None:
    """Check signed receipts of calls, and give out the keys that they are checked with."""


@receipt.command(
    cls=Exampled,
    examples=(
        "farebox receipt verify receipt.json --keys farebox-receipt-keys.json",
        f"farebox receipt verify receipt.json --keys https://farebox.example{KEYS_PATH}",
    ),
)
@click.argument("file", type=click.File("rb"))
@click.option("--keys", metavar="FILE|URL", help=f"The issuer's public keys.  [default: ./{KEY_FILE}]")
@common_options
@pass_invocation
def verify(invocation: Invocation, file: Any, keys: str | None) -> int:
    """Tell whether a receipt is genuine: signed, and unchanged since.

    It is signed by one of these keys then. `-` reads standard input. Exit code 0 when it is and 1 when it is not, or
    cannot be told. With a file of keys nothing is asked of any server.
    """
    try:
        signed = _read(file.read(_MOST_BYTES + 1))
        key_set = _read(_keys(keys))
        statement = check(signed, TYPE, key_set)
    except NotGenuine as error:
        if invocation.as_json:
            print_json({"genuine": False, "reason": str(error)})
        else:
            click.echo(f"NOT GENUINE: {error}")
        return 1
    wrong = faults(statement)
    if invocation.as_json:
        print_json({"genuine": True, "key_id": signed["signature"]["key_id"], "faults": wrong, TYPE: statement})
    else:
        _print(statement, signed["signature"]["key_id"], wrong)
    return 0


@receipt.command(cls=Exampled, examples=(f"farebox receipt keys > {KEY_FILE}",))
@common_options
@pass_invocation
def keys(invocation: Invocation) -> None:
    """Print the public keys of all receipts given out by these books.

    As a JWK set, which is what the server publishes.
    """

    async def work() -> dict[str, Any]:
        async with open_books(invocation.config()) as store:
            return await read_public_keys(store)

    print_json(run(work()))


def _print(statement: dict[str, Any], key_id: str, wrong: list[str]) -> None:
    """Show what is signed. It is genuine, but written by others: nothing of it moves the cursor."""
    issuer = statement.get("issuer") or {}
    usage = statement.get("usage") or {}
    click.echo(f"Genuine: unchanged since it was signed by key {key_id}.")
    facts = {
        "call": statement.get("request_id"),
        "at": statement.get("at"),
        "issued by": f"{issuer.get('name')}, {issuer.get('url')}",
        "for": f"account {statement.get('account_id')}, key {statement.get('key')}",
        "model": statement.get("model"),
        "tokens": f"{usage.get('input_tokens')} in, {usage.get('output_tokens')} out",
        "outcome": f"{statement.get('outcome')} ({statement.get('kind')})",
        "charged": f"${statement.get('charged')}",
    }
    for name, value in facts.items():
        click.echo(f"  {name:9}  {''.join(sign if sign.isprintable() else '?' for sign in str(value))}")
    for words in wrong:
        click.echo(f"  But {words}: ask who issued it.")


def _read(text: bytes) -> Any:
    if len(text) > _MOST_BYTES:
        raise NotGenuine(f"it is over {_MOST_BYTES // 1024:,} KiB, more than any receipt or key file of ours")
    return read_json(text)


def _keys(where: str | None) -> bytes:
    """Fetch the key set from a file or an address."""
    if where is None and not Path(KEY_FILE).exists():
        raise click.UsageError(
            f"say which keys to check with: --keys FILE, as saved from {KEYS_PATH} of who you trust to have issued it"
        )
    if where is None or "://" not in where:
        with Path(where or KEY_FILE).open("rb") as file:
            return file.read(_MOST_BYTES + 1)
    try:
        origin = read_origin(where)
    except ValueError as error:
        raise click.UsageError(f"--keys: {error}") from error
    return run(_fetch(Origin(origin.scheme, origin.host, origin.port, ""), urlsplit(where).path or KEYS_PATH))


async def _fetch(origin: Origin, path: str) -> bytes:
    client = HttpClient(origin, connect_s=_FETCH_S, connections=1)
    try:
        answer = await client.request("GET", path, [(b"accept", b"application/json")], b"", first_byte_s=_FETCH_S)
        body = await answer.read(_MOST_BYTES)
    except UpstreamError as error:
        raise NotGenuine(f"the keys could not be fetched, so nothing can be said: {error}") from error
    finally:
        await client.close()
    if answer.status != 200:
        raise NotGenuine(f"the keys could not be fetched, so nothing can be said: the server answered {answer.status}")
    return body
