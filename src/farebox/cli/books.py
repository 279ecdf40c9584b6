"""The books, read: calls, movements of money, and the proof that all of it is true."""

import sys
from contextlib import AbstractContextManager, AsyncExitStack
from typing import Any

import click

from farebox.accounts.accounts import find_account, list_accounts
from farebox.billing.ledger import customer_account, customer_id
from farebox.books.audit import Check
from farebox.books.audit import audit as prove
from farebox.books.reports import Call, Entry, calls, count_calls, entries, totals
from farebox.cli.common import (
    MOMENT,
    Exampled,
    Invocation,
    common_options,
    open_books,
    pass_invocation,
    print_json,
    print_table,
    run,
    show_moment,
)
from farebox.clock import iso
from farebox.ids import show_request_id
from farebox.money import format_usd
from farebox.store.protocol import Store

_PROGRESS_FROM = 20_000
_SCREENFUL = 50


@click.command(cls=Exampled, examples=("farebox usage --account alice@example.com --since 24h --json",))
@click.option("--account", "who", metavar="EMAIL", help="Only this account's calls, by email address or id.")
@click.option("--since", "since_us", metavar="WHEN", type=MOMENT, default=0, help='A day, a moment, or "24h".')
@click.option("--limit", type=click.IntRange(1), help="The last so many calls.  [default: 50; with --json all]")
@click.option("--all", "everything", is_flag=True, help="All calls, whatever --limit says.")
@common_options
@pass_invocation
def usage(invocation: Invocation, who: str | None, since_us: int, limit: int | None, *, everything: bool) -> None:
    """Show calls: tokens, cost, how they ended.

    Oldest first. With --json one object a line.
    """
    config = invocation.config()
    most = _most(invocation, limit, everything=everything)

    async def work() -> None:
        async with AsyncExitStack() as stack:
            store = await stack.enter_async_context(open_books(config))
            account_id = (await find_account(store, who)).id if who else None
            emails = {account.id: account.email for account in await list_accounts(store)}
            shown: list[Call] = []
            count = await count_calls(store, account_id=account_id, since_us=since_us)
            told = stack.enter_context(_how_far(count if most is None else min(count, most)))
            async for call in calls(store, account_id=account_id, since_us=since_us, limit=most):
                if invocation.as_json:
                    print_json(_call_json(call, emails))
                else:
                    shown.append(call)
                told.update(1)
        if not invocation.as_json:
            _print_calls(shown, emails)

    run(work())


@click.command()
@click.option("--account", "who", metavar="EMAIL", help="One account's statement, with the balance after each.")
@click.option("--since", "since_us", metavar="WHEN", type=MOMENT, default=0, help='A day, a moment, or "24h".')
@click.option("--limit", type=click.IntRange(1), help="The last so many entries.  [default: 50; with --json all]")
@click.option("--all", "everything", is_flag=True, help="All entries, whatever --limit says.")
@click.option("--totals", "as_totals", is_flag=True, help="Sums by account instead: they add up to zero.")
@common_options
@pass_invocation
def ledger(
    invocation: Invocation, who: str | None, since_us: int, limit: int | None, *, everything: bool, as_totals: bool
) -> None:
    """Show movements of money.

    Oldest first. With --json one object a line.
    """
    config = invocation.config()

    async def entries_of(store: Store) -> tuple[list[Entry], str | None]:
        account_id = (await find_account(store, who)).id if who else None
        most = _most(invocation, limit, everything=everything)
        found = await entries(store, account_id=account_id, since_us=since_us, limit=most)
        return found, None if account_id is None else customer_account(account_id)

    async def work() -> None:
        async with open_books(config) as store:
            if as_totals:
                _print_totals(invocation, await totals(store))
                return
            found, name = await entries_of(store)
        if invocation.as_json:
            for entry in found:
                print_json(_entry_json(entry))
        elif name:
            _print_statement(found, name)
        else:
            _print_entries(found)

    run(work())


@click.command()
@click.option("--sample", metavar="N", type=click.IntRange(1), default=1, help="Re-price one call in N only.")
@common_options
@pass_invocation
def audit(invocation: Invocation, sample: int) -> int:
    """Prove the books: work out again all that they say.

    Every balance, hold, digest and price, one line for each check. It reads only, and may run while the server
    does. Exit code 1 when anything is not as it must be: stop, keep a copy, and find out why before going on.
    """
    config = invocation.config()

    async def work() -> list[Check]:
        async with open_books(config) as store:
            return await prove(store, on_progress=_Told(invocation), sample=sample)

    checks = run(work())
    for check in checks:
        if invocation.as_json:
            print_json({"check": check.name, "ok": check.ok, "rows": check.rows, "detail": check.detail})
        else:
            mark = click.style("ok    ", fg="green") if check.ok else click.style("BROKEN", fg="red", bold=True)
            click.echo(f"{mark}  {check.name:<14} {check.detail}")
    broken = sum(not check.ok for check in checks)
    if not invocation.as_json:
        click.echo(f"{broken} of {len(checks)} checks are broken." if broken else f"All {len(checks)} checks hold.")
    return 1 if broken else 0


class _Told:
    """Shows on stderr how far each long check has come, where somebody may be watching."""

    def __init__(self, invocation: Invocation) -> None:
        self._shown = sys.stderr.isatty() and not invocation.as_json

    def __call__(self, name: str, done: int, total: int) -> None:
        if self._shown and total > _PROGRESS_FROM:
            click.echo(f"\r{name}: {done * 100 // total} %  " if done < total else f"\r{'':40}\r", err=True, nl=False)


def _how_far(total: int) -> AbstractContextManager[Any]:
    """Show on stderr how far a long report has come; a short one, or one for a file, shows nothing."""
    hidden = total < _PROGRESS_FROM or not sys.stderr.isatty()
    return click.progressbar(length=total, label="reading calls", file=sys.stderr, hidden=hidden)


def _most(invocation: Invocation, limit: int | None, *, everything: bool) -> int | None:
    """Choose how many rows to print: what was asked for, else a screenful for people and all for scripts."""
    if everything:
        return None
    return limit or (None if invocation.as_json else _SCREENFUL)


def _call_json(call: Call, emails: dict[int, str]) -> dict[str, Any]:
    """Give a call as scripts get it. These names are stable."""
    return {
        "request_id": show_request_id(call.request_id),
        "message_id": call.message_id,
        "at": iso(call.at_us),
        "account_id": call.account_id,
        "email": emails.get(call.account_id),
        "key_id": call.key_id,
        "model": call.model,
        "asked_model": call.asked_model,
        "kind": call.kind,
        "outcome": call.outcome,
        "status": call.status,
        "stop_reason": call.stop_reason,
        "input_tokens": call.input_tokens,
        "cache_write_5m_tokens": call.cache_write_5m_tokens,
        "cache_write_1h_tokens": call.cache_write_1h_tokens,
        "cache_read_tokens": call.cache_read_tokens,
        "output_tokens": call.output_tokens,
        "web_searches": call.web_searches,
        "charged_nanos": call.charged_nanos,
        "cost_nanos": call.cost_nanos,
        "list_nanos": call.list_nanos,
        "shortfall_nanos": call.shortfall_nanos,
        "waived_nanos": call.waived_nanos,
        "streamed": bool(call.streamed),
        "upstream": call.upstream,
        "attempts": call.attempts,
        "first_byte_us": call.first_byte_us,
        "duration_us": call.duration_us,
    }


def _entry_json(entry: Entry) -> dict[str, Any]:
    """Give an entry as scripts get it. These names are stable."""
    told = {
        "id": entry.id,
        "at": iso(entry.at_us),
        "debit_account": entry.debit_account,
        "credit_account": entry.credit_account,
        "amount_nanos": entry.amount_nanos,
        "code": entry.code,
        "actor": entry.actor,
        "memo": entry.memo,
    }
    return told if entry.balance_nanos is None else {**told, "balance_nanos": entry.balance_nanos}


def _print_calls(shown: list[Call], emails: dict[int, str]) -> None:
    if not shown:
        click.echo("There are no calls.")
        return
    print_table(
        (
            "at (UTC)",
            "account",
            "model",
            "outcome",
            ">input",
            ">cache writes",
            ">cache reads",
            ">output",
            ">charged",
        ),
        [
            (
                show_moment(call.at_us),
                emails.get(call.account_id, str(call.account_id)),
                call.model,
                call.outcome + ("" if call.kind == "exact" else f" ({call.kind})"),
                f"{call.input_tokens:,}",
                f"{call.cache_write_5m_tokens + call.cache_write_1h_tokens:,}",
                f"{call.cache_read_tokens:,}",
                f"{call.output_tokens:,}",
                format_usd(call.charged_nanos),
            )
            for call in shown
        ],
    )
    charged, waived = sum(call.charged_nanos for call in shown), sum(call.waived_nanos for call in shown)
    lost = f", {format_usd(waived)} waived" if waived else ""
    click.echo(f"{len(shown):,} calls, {format_usd(charged)} charged{lost}")


def _print_statement(found: list[Entry], name: str) -> None:
    print_table(
        ("at (UTC)", "what", ">amount", ">balance", "by", "id"),
        [
            (
                show_moment(entry.at_us),
                f"{entry.code}: {entry.memo}",
                format_usd(entry.amount_nanos if entry.credit_account == name else -entry.amount_nanos),
                format_usd(entry.balance_nanos or 0),
                entry.actor,
                entry.id,
            )
            for entry in found
        ],
    )


def _print_entries(found: list[Entry]) -> None:
    print_table(
        ("at (UTC)", "from", "to", ">amount", "what", "by"),
        [
            (
                show_moment(entry.at_us),
                _short(entry.debit_account),
                _short(entry.credit_account),
                format_usd(entry.amount_nanos),
                f"{entry.code}: {entry.memo}",
                entry.actor,
            )
            for entry in found
        ],
    )


def _print_totals(invocation: Invocation, sums: dict[str, int]) -> None:
    if invocation.as_json:
        print_json({"totals_nanos": sums})
        return
    print_table(("account", ">balance"), [(name, format_usd(nanos)) for name, nanos in sums.items()])


def _short(account: str) -> str:
    found = customer_id(account)
    return account if found is None else f"customer {found}"
