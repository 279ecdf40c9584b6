"""Accounts: open, look at, credit, debit, suspend, resume, put on a plan, make an operator, help out of a lock."""

import uuid
from typing import Any

import click

from farebox.accounts.accounts import (
    Account,
    Status,
    clean_email,
    find_account,
    list_accounts,
)
from farebox.accounts.operators import (
    Operator,
    change_plan,
    change_role,
    change_status,
    open_by_hand,
    reset_factor,
)
from farebox.accounts.tokens import new_token
from farebox.billing.plans import Plans
from farebox.books.corrections import Correction, Kind
from farebox.books.ledger import Ledger
from farebox.cli.common import (
    USD,
    Exampled,
    Invocation,
    actor,
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
from farebox.errors import FareboxError
from farebox.money import format_usd
from farebox.payments.by_hand import ByHand
from farebox.store.protocol import Store


@click.group()
def account() -> None:
    """Open accounts, and look after their money and plans.

    An account is named by its email address or its id.
    """


@account.command(
    cls=Exampled,
    examples=(
        "farebox account create alice@example.com --credit 5.00",
        "farebox account create bob@example.com --plan pro",
    ),
)
@click.argument("email")
@click.option("--plan", metavar="NAME", help="Put it on this plan by hand; otherwise its top-ups decide.")
@click.option("--credit", "amount_nanos", metavar="USD", type=USD, help="Begin with this much, as if topped up.")
@common_options
@pass_invocation
def create(invocation: Invocation, email: str, plan: str | None, amount_nanos: int | None) -> None:
    """Open an account."""
    config = invocation.config()
    chosen = _known_plan(config.plans, plan) if plan else config.plans.earned(amount_nanos or 0).name
    clean_email(email)

    async def work() -> Account:
        async with open_books(config, create=True) as store:
            made = await open_by_hand(store, by_hand(), email, chosen, now_us())
            if amount_nanos:
                wanted = Correction(f"open:{made.id}", made.id, "deposit", amount_nanos, "opening credit")
                return await _move(config, store, made, wanted)
            return made

    _show(invocation, run(work()), "opened")


@account.command("list")
@common_options
@pass_invocation
def list_(invocation: Invocation) -> None:
    """List all accounts; with --json one object a line."""
    config = invocation.config()

    async def work() -> list[Account]:
        async with open_books(config) as store:
            return await list_accounts(store)

    accounts = run(work())
    if invocation.as_json:
        for one in accounts:
            print_json(as_json(one))
    elif not accounts:
        click.echo("There are no accounts yet; `farebox account create EMAIL` opens one.")
    else:
        print_table(
            ("id", "email", "plan", "status", ">balance", ">held", "opened"),
            [
                (
                    str(one.id),
                    one.email,
                    one.plan,
                    one.status,
                    format_usd(one.balance_nanos),
                    format_usd(one.held_nanos),
                    show_moment(one.created_at_us),
                )
                for one in accounts
            ],
        )


@account.command()
@click.argument("email")
@common_options
@pass_invocation
def show(invocation: Invocation, email: str) -> None:
    """Show an account: plan, status, balance, and what is held."""
    config = invocation.config()

    async def work() -> Account:
        async with open_books(config) as store:
            return await find_account(store, email)

    _show(invocation, run(work()))


@account.command(
    "credit",
    cls=Exampled,
    examples=('farebox account credit alice@example.com 25 --reason "bank transfer" --id bank-4711',),
)
@click.argument("email")
@click.argument("amount_nanos", metavar="USD", type=USD)
@click.option("--reason", default="credit by hand", help="What the books say it was for.")
@click.option("--gift", is_flag=True, help="A promotion: no money came in, and no plan is earned by it.")
@click.option("--id", "transfer_id", metavar="TEXT", help="Your own id for it: the same id is credited once only.")
@common_options
@pass_invocation
def credit_(
    invocation: Invocation, email: str, amount_nanos: int, reason: str, transfer_id: str | None, *, gift: bool
) -> None:
    """Give an account money, as if it had topped up. Its owner is told by mail."""
    config = invocation.config()

    async def work() -> Account:
        async with open_books(config) as store:
            before = await find_account(store, email)
            code: Kind = "promotion" if gift else "deposit"
            wanted = Correction(_own_id(transfer_id), before.id, code, amount_nanos, reason)
            return await _move(config, store, before, wanted)

    _show(invocation, run(work()), f"credited {format_usd(amount_nanos)}")


@account.command("debit")
@click.argument("email")
@click.argument("amount_nanos", metavar="USD", type=USD)
@click.option("--reason", default="debit by hand", help="What the books say it was for.")
@click.option("--id", "transfer_id", metavar="TEXT", help="Your own id for it: the same id is debited once only.")
@common_options
@pass_invocation
def debit_(invocation: Invocation, email: str, amount_nanos: int, reason: str, transfer_id: str | None) -> None:
    """Take money from an account.

    At most what is free can go, that is, what is not held for calls in flight.
    """
    config = invocation.config()

    async def work() -> Account:
        async with open_books(config) as store:
            found = await find_account(store, email)
            wanted = Correction(_own_id(transfer_id), found.id, "debit", amount_nanos, reason)
            return await _move(config, store, found, wanted)

    _show(invocation, run(work()), f"debited {format_usd(amount_nanos)}")


@account.command()
@click.argument("email")
@click.option("--reason", default="by hand", help="What the audit log says it was for.")
@common_options
@pass_invocation
def suspend(invocation: Invocation, email: str, reason: str) -> None:
    """Refuse an account's calls from now on. Calls in flight end as they would; nothing is lost."""
    _show(invocation, _put(invocation, email, reason, status="suspended"), "suspended")


@account.command()
@click.argument("email")
@click.option("--reason", default="by hand", help="What the audit log says it was for.")
@common_options
@pass_invocation
def resume(invocation: Invocation, email: str, reason: str) -> None:
    """Let a suspended account call again."""
    _show(invocation, _put(invocation, email, reason, status="active"), "active again")


@account.command("set-plan")
@click.argument("email")
@click.argument("plan")
@click.option("--reason", default="by hand", help="What the audit log says it was for.")
@common_options
@pass_invocation
def set_plan_(invocation: Invocation, email: str, plan: str, reason: str) -> None:
    """Put an account on a plan by hand, whatever it has topped up."""
    config = invocation.config()
    _show(invocation, _put(invocation, email, reason, plan=_known_plan(config.plans, plan)), f"on plan {plan.lower()}")


@account.command(
    cls=Exampled,
    examples=("farebox account create boss@example.com && farebox account role boss@example.com admin",),
)
@click.argument("email")
@click.argument("role", type=click.Choice(("admin", "customer")))
@click.option("--reason", default="by hand", help="What the audit log says it was for.")
@common_options
@pass_invocation
def role(invocation: Invocation, email: str, role: str, reason: str) -> None:
    """Make somebody an operator, who sees /admin, or a customer again.

    Every session of theirs ends. For an operator without a password a link to choose one is printed; it works once,
    for 30 minutes. At /admin they are asked to set up a second factor.
    """
    config = invocation.config()

    async def work() -> tuple[Account, str]:
        async with open_books(config) as store:
            found = await find_account(store, email)
            if found.status == "closed":
                raise FareboxError(f"{found.email} has been closed by its owner, for good; open another account")
            await change_role(store, by_hand(), found, role, reason)
            known = await store.fetch("SELECT 1 FROM credential WHERE account_id = ?", (found.id,))
            if known or role == "customer":
                return found, ""
            token, keep = new_token(found.id, "reset", found.email, now_us())
            await store.write(keep)
            return found, f"{config.public_url}/reset?token={token}"

    one, link = run(work())
    if invocation.as_json:
        print_json({"account_id": one.id, "email": one.email, "role": role, "link": link or None})
        return
    click.echo(f"{one.email}: {'an operator' if role == 'admin' else 'a customer'} from now on")
    if link:
        click.echo(f"  to choose a password, within 30 minutes: {link}")
    elif role == "admin":
        click.echo(f"  signs in with the password there is: {config.public_url}/login?next=/admin")


@account.command("reset-second-factor")
@click.argument("email")
@click.option("--reason", default="by hand", help="What the audit log says it was for.")
@common_options
@pass_invocation
def reset_second_factor(invocation: Invocation, email: str, reason: str) -> None:
    """Help somebody who has lost their second factor.

    Their app, recovery codes and passkeys are taken away. Every session of theirs ends, the password alone is enough
    from now on, and a mail tells them. Be sure of who asks: whoever has their password comes in then.
    """
    config = invocation.config()

    async def work() -> Account:
        async with open_books(config) as store:
            found = await find_account(store, email)
            words = {"site_name": config.site.name, "public_url": config.public_url}
            await reset_factor(store, by_hand(), found, reason, now_us(), **words)
            return found

    one = run(work())
    if invocation.as_json:
        print_json({"account_id": one.id, "email": one.email, "second_factor": None})
    else:
        click.echo(f"{one.email}: the password alone is enough now")


def by_hand() -> Operator:
    """Name who runs this command, for the audit log."""
    return Operator(f"cli:{actor().partition(':')[2]}", "")


def as_json(one: Account) -> dict[str, Any]:
    """Give an account as scripts get it. These names are stable."""
    return {
        "account_id": one.id,
        "email": one.email,
        "plan": one.plan,
        "status": one.status,
        "balance_nanos": one.balance_nanos,
        "held_nanos": one.held_nanos,
        "free_nanos": one.free_nanos,
        "topped_up_nanos": one.topped_up_nanos,
        "created_at": iso(one.created_at_us),
    }


def _put(
    invocation: Invocation, email: str, reason: str, *, status: Status | None = None, plan: str | None = None
) -> Account:
    """Change an account's status or plan; answers the account after it."""
    config: Config = invocation.config()

    async def work() -> Account:
        async with open_books(config) as store:
            found = await find_account(store, email)
            if status:
                await change_status(store, by_hand(), found, status, reason)
            if plan:
                await change_plan(store, by_hand(), found, plan, reason)
            return await find_account(store, str(found.id))

    return run(work())


async def _move(config: Config, store: Store, account: Account, wanted: Correction) -> Account:
    """Move money by hand; answers the account after it."""
    books = ByHand(store, Ledger(store), config.plans, site_name=config.site.name, public_url=config.public_url)
    if not await books.move(by_hand(), account, wanted, now_us()):
        click.echo(f"The transfer operator:{wanted.id} had been made before; nothing is moved again.", err=True)
    return await find_account(store, str(account.id))


def _own_id(given: str | None) -> str:
    return given or uuid.uuid4().hex


def _known_plan(plans: Plans, name: str) -> str:
    if name.lower() not in plans.names():
        raise click.BadParameter(f"there is no plan {name!r}; there are {', '.join(plans.names())}")
    return name.lower()


def _show(invocation: Invocation, one: Account, what_happened: str = "") -> None:
    if invocation.as_json:
        print_json(as_json(one))
        return
    if what_happened:
        click.echo(f"{one.email}: {what_happened}")
    click.echo(f"  id       {one.id}")
    click.echo(f"  email    {one.email}")
    click.echo(f"  plan     {one.plan}")
    click.echo(f"  status   {one.status}")
    held = f", of which {format_usd(one.held_nanos)} held for calls in flight" if one.held_nanos else ""
    click.echo(f"  balance  {format_usd(one.balance_nanos)}{held}")
    click.echo(f"  opened   {show_moment(one.created_at_us)} UTC")
