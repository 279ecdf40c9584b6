"""What there is to say of an account whose calls do not get through as they should. Reads only, and shows no key."""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final
from urllib.parse import urlsplit

import msgspec

from farebox.accounts.accounts import Account
from farebox.accounts.findings import Finding, Status, of_balance, of_small_model, of_spend_limit
from farebox.accounts.keys import Key
from farebox.billing.plans import Plan
from farebox.books.sums import NEWEST_CALL
from farebox.clock import DAY_US
from farebox.store.protocol import Store
from farebox.web.backstage import Service
from farebox.web.calls import OUTCOMES, advise
from farebox.web.dashboard import key_names
from farebox.web.limits import Use
from farebox.web.pages import write_took

HOUR_US: Final = DAY_US // 24
MOST_KEYS: Final = 20
"""Keys that are told about one by one; the others are counted."""
_SHOWN: Final = 8
_LOOKED_AT: Final = 10_000
"""The newest calls of the hour, and then of all, that are looked through at most."""
_STREAMS: Final = 20
_GONE_US: Final = 7 * DAY_US
"""For so long a client may still have a key that works no more."""
_SOON_US: Final = 7 * DAY_US
_FULL: Final = 95
_RANK: Final[tuple[Status, ...]] = ("fail", "warn", "ok")
_LATELY: Final = (
    "SELECT outcome, status, count(*) FROM (SELECT outcome, status FROM usage WHERE account_id = ? AND at >= ? "
    "ORDER BY at DESC LIMIT ?) lately GROUP BY outcome, status ORDER BY count(*) DESC, outcome, status"
)
_FIRST_BYTES: Final = (
    "SELECT first_byte_us FROM (SELECT at, streamed, first_byte_us FROM usage WHERE account_id = ? "
    "ORDER BY at DESC LIMIT ?) newest WHERE streamed = 1 AND first_byte_us IS NOT NULL ORDER BY at DESC LIMIT ?"
)


class Told(msgspec.Struct, frozen=True):
    """A line of the page: what it is about, how that stands, and where one can do something about it."""

    about: str
    status: Status
    words: str
    link: str = ""
    link_words: str = ""


class Wait(msgspec.Struct, frozen=True):
    """How long the account's last streamed calls waited for their first byte."""

    calls: int
    median_us: int
    least_us: int
    most_us: int


def worst_first(found: Sequence[Told]) -> list[Told]:
    """Put what stands in the way first."""
    return sorted(found, key=lambda one: _RANK.index(one.status))


def told_account(account: Account, status: str) -> Iterator[Told]:
    """Tell of the account itself and its money."""
    if status != "active":
        yield Told("Account", "fail", f"The account is {status}: calls are refused with 403.")
    found = of_balance(account.free_nanos, account.held_nanos)
    link = ("/dashboard/topup", "Add funds") if found.status != "ok" else ("", "")
    yield Told("Balance", found.status, _sentence(found.words), *link)


def told_keys(keys: Sequence[Key], sold: Sequence[str], now_us: int) -> list[Told]:
    """Tell which keys work, and of each that has rules, or works no more, what that means for its client."""
    if not keys:
        return [Told("Keys", "fail", "There is no key yet.", "/dashboard/keys#new", "Make one")]
    states = [key.status(now_us) for key in keys]
    active, resting = states.count("active"), states.count("disabled")
    rest = f", {resting} {'is' if resting == 1 else 'are'} disabled" if resting else ""
    if active:
        about = Told("Keys", "ok", f"{active} {'key is' if active == 1 else 'keys are'} active{rest}.")
    else:
        about = Told("Keys", "fail", f"No key works{rest or ': all have expired or were revoked'}.", *_KEYS)
    names = key_names(list(keys))
    each = [one for key in keys for one in _told_key(key, names[key.id], sold, now_us)]
    each = worst_first(each)
    if len(each) > MOST_KEYS:
        more = Told(
            "Keys", each[MOST_KEYS].status, f"There is something to say of {len(each) - MOST_KEYS} more.", *_KEYS
        )
        each = [*each[:MOST_KEYS], more]
    return [about, *each]


_KEYS: Final = ("/dashboard/keys", "All keys")


def _told_key(key: Key, name: str, sold: Sequence[str], now_us: int) -> Iterator[Told]:
    status = key.status(now_us)
    found: list[Finding] = []
    if status == "active":
        found = list(_of_rules(key, sold, now_us))
    elif status == "disabled":
        found = [Finding("key", "warn", "it is disabled: a client that has it is refused with 403")]
    else:
        gone_us = key.revoked_at_us if key.revoked_at_us is not None else key.expires_at_us or 0
        if now_us - gone_us < _GONE_US:
            words = "it was revoked" if status == "revoked" else "it has expired"
            found = [Finding("key", "warn", f"{words}: a client that still has it is refused with 401")]
    if found:
        worst = min((one.status for one in found), key=_RANK.index)
        words = " ".join(_sentence(one.words) for one in found)
        yield Told(f"Key {name}", worst, words, f"/dashboard/keys/{key.id}", "Its rules")


def _of_rules(key: Key, sold: Sequence[str], now_us: int) -> Iterator[Finding]:
    """Tell what an active key's rules leave it."""
    if key.budget is not None:
        yield of_spend_limit(key.budget.limit_nanos, key.budget.used(now_us))
    if key.expires_at_us is not None and key.expires_at_us - now_us < _SOON_US:
        left = write_span(key.expires_at_us - now_us)
        replaced = "another key has taken its place, and it" if key.replaced_by is not None else "it"
        yield Finding("key", "warn", f"{replaced} works for {left} more")
    if key.models:
        mine = [name for name in key.models if name in sold]
        if not mine:
            yield Finding("models", "fail", "none of the models it may use is sold any more")
        else:
            yield Finding("models", "ok", f"it may use {_list(mine)} only: others are refused with 403")
            small = of_small_model(mine)
            if small is not None:
                yield small
    if key.networks:
        yield Finding("networks", "ok", f"it may be used from {_list(key.networks)} only: elsewhere it is refused")
    if key.requests_per_minute is not None:
        yield Finding("pace", "ok", f"it may make {key.requests_per_minute:,} requests a minute")


def told_limits(plan: Plan, uses: Sequence[Use]) -> Told:
    """Tell what of the plan's limits is in use."""
    full = [use for use in uses if use.share >= _FULL]
    shown = ", ".join(f"{use.used:,} of {use.limit:,} {use.name.lower()}" for use in full or uses)
    if not full:
        return Told("Limits", "ok", f"Plan {plan.name}: {shown} are in use.")
    free_us = max(use.full_in_us for use in full)
    until = f"; all of it is free in {write_took(free_us)}" if free_us else ""
    words = (
        f"Plan {plan.name}: {shown} are in use{until}. Calls beyond that are refused with 429, and can be sent again."
    )
    return Told("Limits", "warn", words, "/dashboard/limits", "Plan and limits")


def told_models(models: Sequence[str], service: Callable[[str], Service]) -> Iterator[Told]:
    """Tell which models are not served as they should be."""
    states = {name: service(name) for name in models}
    down = [name for name, state in states.items() if state == "down"]
    reduced = [name for name, state in states.items() if state == "reduced"]
    if down:
        status: Status = "fail" if len(down) == len(models) else "warn"
        words = f"No upstream serves {_list(down)} at the moment."
        yield Told("Models", status, words, "/status", "Status")
    if reduced:
        words = f"Fewer upstreams than usual serve {_list(reduced)}: that may be slower."
        yield Told("Models", "ok", words, "/status", "Status")
    if not down and not reduced:
        yield Told("Models", "ok", f"All {len(models)} models are served." if len(models) > 1 else "It is served.")


async def told_calls(store: Store, account_id: int, by_status: Mapping[int, str], now_us: int) -> list[Told]:
    """Tell how the calls of the last hour went: those that went wrong by class, each with what to do."""
    rows = await store.fetch(_LATELY, (account_id, now_us - HOUR_US, _LOOKED_AT))
    total = sum(count for _, _, count in rows)
    if not total:
        rows = await store.fetch(f"SELECT {NEWEST_CALL} FROM account a WHERE a.id = ?", (account_id,))  # noqa: S608
        words = "No call has come in the last hour." if rows[0][0] is not None else "No call has come yet."
        return [Told("Calls", "ok", words, "/docs/quickstart", "How to call")]
    wrong = [(outcome, status, count) for outcome, status, count in rows if outcome not in {"finished", "canceled"}]
    failed = sum(count for _, _, count in wrong)
    if not failed:
        return [
            Told("Calls", "ok", f"All {total:,} of the last hour went well." if total > 1 else "The last went well.")
        ]
    worst: Status = "fail" if failed == total else "warn"
    found = []
    for outcome, status, count in wrong:
        ended = outcome.replace("_", " ") + (f", HTTP {status}" if status >= 400 else "")
        words = f"{count:,} of {total:,} in the last hour: {ended}. {OUTCOMES.get(outcome, '')} "
        words += _sentence(advise(by_status, outcome, status))
        found.append(Told("Calls", worst, words.strip(), f"/dashboard/requests?status={outcome}&since=1h", "See them"))
    return found


async def first_bytes(store: Store, account_id: int) -> Wait | None:
    """Tell how long the last streamed calls waited for their first byte, seen from here; None: there were none."""
    rows = await store.fetch(_FIRST_BYTES, (account_id, _LOOKED_AT, _STREAMS))
    waits = [wait for (wait,) in rows]
    return Wait(len(waits), statistics.median_low(waits), min(waits), max(waits)) if waits else None


def told_address(text: str, base_url: str) -> Told:
    """Tell whether a client's base URL is right."""
    use = f"Use {base_url}"
    try:
        given, ours = urlsplit(text), urlsplit(base_url)
        host = given.hostname
    except ValueError:
        host = None
    if host is None or given.scheme not in {"http", "https"}:
        return Told("Base URL", "fail", f"That is no address of a server. {use}.")
    if given.netloc.lower() != ours.netloc.lower():
        return Told("Base URL", "fail", f"It leads to {given.netloc}, not to {ours.netloc}. {use}.")
    if given.scheme != ours.scheme:
        return Told("Base URL", "fail", f"It begins with {given.scheme}, not with {ours.scheme}. {use}.")
    path = given.path.rstrip("/")
    if path == ours.path.rstrip("/") and not (given.query or given.fragment):
        return Told("Base URL", "ok", "It is right as it is.")
    if path == f"{ours.path.rstrip('/')}/v1":
        words = (
            "It ends with /v1, which clients of the Messages API add themselves. That works here, too; "
            f"elsewhere it is doubled. {use}. For clients that speak Chat Completions it is right."
        )
        return Told("Base URL", "warn", words)
    if not path:
        return Told("Base URL", "warn", f"Calls arrive without {ours.path}, which works, too. {use}.")
    return Told("Base URL", "fail", f"Clients add /v1/messages to it, and nothing is at {path}/v1/messages. {use}.")


def write_span(us: int) -> str:
    """Write a span that has yet to pass: in hours, or, of more than two days, in days."""
    hours = max(1, us // HOUR_US)
    return f"{hours // 24} days" if hours > 48 else f"{hours} hour{'' if hours == 1 else 's'}"


def _list(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _sentence(words: str) -> str:
    return words[:1].upper() + words[1:] + ("" if words.endswith((".", "!")) or not words else ".")
