"""Payments from the command line: how they stand, what needs a decision, what there is to sweep, chain and books."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import click

from farebox.books.ledger import Ledger
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
    show_moment,
)
from farebox.clock import iso
from farebox.config import Config
from farebox.payments.addresses import DepositAddress
from farebox.payments.incidents import Incident, open_incidents
from farebox.payments.reconcile import Outcome
from farebox.payments.records import Payment
from farebox.payments.till import Till, TillSettings, make_till


@asynccontextmanager
async def _open_till(config: Config) -> AsyncIterator[tuple[Till, Ledger]]:
    """Open the books and all that takes payments in, beside a server that may be running."""
    settings = TillSettings(payments=config.payments, bitcoin=config.bitcoin, evm=config.evm, btcpay=config.btcpay)
    async with open_books(config) as store:
        ledger = Ledger(store)
        till = make_till(
            settings,
            store,
            ledger,
            config.plans,
            site=config.site.name,
            public_url=config.public_url,
            warn=lambda *_, **__: None,
        )
        try:
            yield till, ledger
        finally:
            await ledger.drained()
            await till.close()


@click.command()
@common_options
@pass_invocation
def status(invocation: Invocation) -> None:
    """Show how watchers and rates are, and what waits for you.

    That is incidents and stray payments. Exits with 1 while anything needs an operator.
    """
    config = invocation.config(secrets=True)

    async def work() -> dict[str, Any]:
        async with _open_till(config) as (till, _):
            now = now_us()
            offers = await till.topups.offers(now)
            return {
                "offers": [
                    {
                        "coin": one.asset.code,
                        "network": one.asset.network,
                        "rail": one.rail.name,
                        "why_not": one.why_not,
                    }
                    for one in offers
                ],
                "watchers": [
                    {
                        "rail": one.name,
                        "height": one.height,
                        "looked_at": iso(one.looked_at_us) if one.looked_at_us else None,
                        "behind": one.is_behind(now),
                        "error": one.error,
                    }
                    for one in await till.office.watchers()
                ],
                "rates": [
                    {"source": one.source, "coin": one.asset, "age_s": one.age_s(now), "error": one.error}
                    for one in await till.office.sources(now)
                ],
                "topups": await till.office.counts(),
                "strays": len(await till.office.strays()),
                "incidents": len(await till.office.incidents()),
            }

    told = run(work())
    if invocation.as_json:
        print_json(told)
    else:
        _show_status(told)
    if told["incidents"] or told["strays"] or any(one["behind"] for one in told["watchers"]):
        raise SystemExit(1)


def _show_status(told: dict[str, Any]) -> None:
    print_table(
        ("COIN", "NETWORK", "STATE"),
        [(one["coin"], one["network"], one["why_not"] or "offered") for one in told["offers"]],
    )
    click.echo()
    print_table(
        ("WATCHER", ">BLOCK", "LAST GOT THROUGH", "STATE"),
        [
            (
                one["rail"],
                str(one["height"] or "-"),
                one["looked_at"] or "never",
                one["error"] or ("behind" if one["behind"] else "well"),
            )
            for one in told["watchers"]
        ],
    )
    click.echo()
    print_table(
        ("RATES OF", "COIN", ">AGE", "STATE"),
        [
            (
                one["source"],
                one["coin"],
                "-" if one["age_s"] is None else f"{one['age_s']} s",
                one["error"] or ("well" if one["age_s"] is not None else "not asked yet"),
            )
            for one in told["rates"]
        ],
    )
    states = ", ".join(f"{count} {state}" for state, count in told["topups"].items()) or "none"
    click.echo(f"\nTop-ups: {states}\nIncidents: {told['incidents']}, stray payments: {told['strays']}")


@click.command(cls=Exampled, examples=("farebox payments incidents", "farebox payments incidents --json"))
@common_options
@pass_invocation
def incidents(invocation: Invocation) -> None:
    """List what no rule could decide and nobody has closed."""
    config = invocation.config()

    async def work() -> list[Incident]:
        async with open_books(config) as store:
            return await open_incidents(store)

    found = run(work())
    if invocation.as_json:
        for one in found:
            print_json(
                {"id": one.id, "kind": one.kind, "about": one.ref, "words": one.words, "at": iso(one.opened_at_us)}
            )
        return
    print_table(
        (">ID", "OPENED", "KIND", "ABOUT", "WHAT HAPPENED"),
        [(str(one.id), show_moment(one.opened_at_us), one.kind.replace("_", " "), one.ref, one.words) for one in found],
    )


@click.command(cls=Exampled, examples=('farebox payments close 3 --reason "customer had sent it twice, refunded"',))
@click.argument("incident_id", type=click.IntRange(1))
@click.option("--reason", required=True, help="What was done about it: for the audit log and whoever looks later.")
@common_options
@pass_invocation
def close(invocation: Invocation, incident_id: int, reason: str) -> None:
    """Close an incident, saying what was done about it."""
    config = invocation.config(secrets=True)

    async def work() -> Incident:
        async with _open_till(config) as (till, _):
            return await till.office.close_incident(by_hand(), incident_id, reason, now_us())

    done = run(work())
    _say(invocation, {"closed": done.id}, f"closed incident {done.id}: {done.words}")


@click.command(
    cls=Exampled,
    examples=("farebox payments assign bitcoin:9f…:0 --to alice@example.com --reason 'sent to an old address'",),
)
@click.argument("payment_id")
@click.option("--to", "who", required=True, metavar="CUSTOMER", help="Email address or id.")
@click.option("--reason", required=True, help="How you know: for the audit log.")
@common_options
@pass_invocation
def assign(invocation: Invocation, payment_id: str, who: str, reason: str) -> None:
    """Say whose a stray payment is. It is credited like any other, once it is confirmed.

    PAYMENT_ID is what `farebox payments incidents --json` calls "about".
    """
    config = invocation.config(secrets=True)

    async def work() -> Payment:
        async with _open_till(config) as (till, _):
            return await till.office.assign(by_hand(), payment_id, who, reason, now_us())

    done = run(work())
    _say(invocation, {"payment": done.id, "state": done.state}, f"{done.id} is {done.state}")


@click.command(cls=Exampled, examples=("farebox payments addresses > sweep.csv",))
@common_options
@pass_invocation
def addresses(invocation: Invocation) -> None:
    """List the addresses that money came to, and their paths.

    They are what there is to sweep. CSV, or with --json one object a line.
    """
    config = invocation.config(secrets=True)

    async def work() -> list[DepositAddress]:
        async with _open_till(config) as (till, _):
            return await till.office.to_sweep()

    found = run(work())
    if not invocation.as_json:
        click.echo("family,key,path,address,rail,asset,account,used_at")
    for one in found:
        used_at = iso(one.used_at_us) if one.used_at_us else ""
        if invocation.as_json:
            names = ("family", "key", "path", "address", "rail", "asset", "account", "used_at")
            values = (one.family, one.key_id, one.path, one.address, one.rail, one.asset, one.account_id, used_at)
            print_json(dict(zip(names, values, strict=True)))
        else:
            fields = (one.family, one.key_id, one.path, one.address, one.rail, one.asset, one.account_id, used_at)
            click.echo(",".join(map(str, fields)))


@click.command()
@common_options
@pass_invocation
def reconcile(invocation: Invocation) -> None:
    """Compare chain and books now, as the server does once a day.

    An address with a payment that is not final yet is left for the next time, and not counted. Each difference becomes
    an incident. Exits with 1 when there is one, or a node cannot be asked.
    """
    config = invocation.config(secrets=True)

    async def work() -> list[Outcome]:
        async with _open_till(config) as (till, _):
            return await till.office.compare(by_hand(), now_us())

    outcomes = run(work())
    for one in outcomes:
        if invocation.as_json:
            print_json(
                {
                    "rail": one.rail,
                    "asset": one.asset,
                    "addresses": one.looked_at,
                    "differences": list(one.differences),
                    "error": one.error,
                }
            )
        else:
            outcome = one.error or ("agree" if not one.differences else "\n  ".join(["DIFFER", *one.differences]))
            click.echo(f"{one.rail} {one.asset}, {one.looked_at} addresses: {outcome}")
    if not outcomes and not invocation.as_json:
        click.echo("there is no chain to compare with: [bitcoin] and [[evm]] say which")
    if any(one.error or one.differences for one in outcomes):
        raise SystemExit(1)


def _say(invocation: Invocation, facts: dict[str, Any], words: str) -> None:
    if invocation.as_json:
        print_json(facts)
    else:
        click.echo(words)


COMMANDS = (status, incidents, close, assign, addresses, reconcile)
