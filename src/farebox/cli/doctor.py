"""`farebox doctor`: everything that can be checked before opening the doors, one line for each."""

import asyncio
import sys
from typing import Any

import click

from farebox.cli.bitcoin_checks import check_bitcoin
from farebox.cli.btcpay_checks import check_btcpay
from farebox.cli.checks import Finding, check_machine, check_offer, read_settings
from farebox.cli.common import Invocation, common_options, pass_invocation, print_json
from farebox.cli.payments_online import check_chains
from farebox.cli.postgres_checks import check_postgres
from farebox.cli.upstream_checks import check_upstreams, look_at_entered

_COLOURS = {"ok": "green", "warn": "yellow", "FAIL": "red"}


@click.command()
@click.option("--offline", is_flag=True, help="Do not ask upstreams, chains and processors anything.")
@common_options
@pass_invocation
def doctor(invocation: Invocation, *, offline: bool) -> int:
    """Check everything before opening the doors. Exit code 1 when something would fail.

    It looks at configuration, secrets, database, spool, disk, clock, ports, prices and limits, asks every upstream
    whether it takes its key, a Bitcoin node whether it is on the right chain and at its end, EVM chains whether
    addresses were used before they are given out, and a BTCPay Server whether it can be worked with. It changes
    nothing, and may run while the server does.
    """
    return asyncio.run(_examine(invocation, offline=offline))


async def _examine(invocation: Invocation, *, offline: bool) -> int:
    failures = 0

    def tell(finding: Finding) -> None:
        nonlocal failures
        failures += finding.status == "FAIL"
        if invocation.as_json:
            print_json(_as_json(finding))
            return
        mark = click.style(f"{finding.status:<4}", fg=_COLOURS[finding.status], bold=finding.status == "FAIL")
        click.echo(f"{mark}  {finding.name:<14} {finding.found}")
        if finding.advice:
            click.echo(f"{'':20} {finding.advice}")

    config, findings = read_settings(invocation.file())
    for finding in findings:
        tell(finding)
    if config is not None:
        for finding in await check_postgres(config) if config.database_path is None else ():
            tell(finding)
        entered = await look_at_entered(config)
        upstreams = (*config.upstreams, *entered.upstreams)
        for finding in (*check_machine(config), *check_offer(config, upstreams), *entered.findings):
            tell(finding)
        if not offline:
            if sys.stderr.isatty() and not invocation.as_json:
                click.echo(f"asking {len(upstreams)} upstreams …", err=True)
            coins = (*await check_bitcoin(config), *await check_chains(config), *await check_btcpay(config))
            for finding in (*await check_upstreams(config, upstreams), *coins):
                tell(finding)
    if not invocation.as_json:
        click.echo("Something would fail; see above." if failures else "Ready to open the doors.")
    return 1 if failures else 0


def _as_json(finding: Finding) -> dict[str, Any]:
    return {
        "check": finding.name,
        "status": finding.status.lower(),
        "found": finding.found,
        "advice": finding.advice or None,
    }
