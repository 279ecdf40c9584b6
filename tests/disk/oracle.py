"""What must be in the books after a power cut: all that was answered, nothing else, nothing by half."""

import asyncio
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, Final, cast

from farebox.billing.ledger import Settle, Settled
from farebox.books.audit import audit
from farebox.books.ledger import Ledger, credit
from farebox.books.runs import resolve_orphans
from farebox.books.spool import Spool
from farebox.clock import steady_clock
from farebox.store.sqlite import SqliteStore, open_store
from tests.disk.writer import PLANS

Told = dict[str, Any]
_IN_DOUBT: Final = "in doubt"


class Lost(AssertionError):
    """Something that was answered is not there."""


async def check_spool_after_cut(spool: Path, told: Iterable[tuple[int, Told]], moment: int, seen: Counter[str]) -> None:
    """Deliver what is in a spool after a power cut: all that was kept and not booked before, and nothing else."""
    lines = [line for at, line in told if at < moment]
    sent, kept, booked = ({line[what] for line in lines if what in line} for what in ("sent", "kept", "booked"))
    delivered: set[str] = set()
    books = _Taking(delivered)
    spooling = Spool(spool, alert=lambda *_, **__: None)
    await spooling.deliver(cast("Ledger", books), lambda *_: None)
    spooling.close()
    lost = kept - booked - delivered
    if lost:
        raise Lost(f"{len(lost)} settles were said to be safe in the spool and are not there")
    assert delivered <= sent, "delivered, and never handed in"
    seen["settles kept, and not booked before"] += len(kept - booked)
    seen["settles not kept, and there"] += len(delivered - kept)
    seen["settles not kept, and not there"] += len(sent - kept - delivered)


class _Taking:
    """Books that take everything."""

    def __init__(self, taken: set[str]) -> None:
        self._taken = taken

    async def settle(self, settle: Settle) -> Settled:
        self._taken.add(settle.request_id.hex())
        return Settled(settle.cost_nanos, 0, now=True)

    async def give_back(self, *_: object) -> int:
        return 0


class Steps:
    """What was done with one call, transfer or account: each command with its answer, None where there was none."""

    def __init__(self) -> None:
        self.steps: list[tuple[Told, Told | None]] = []

    @property
    def last_answered(self) -> int:
        return max((place for place, (_, answer) in enumerate(self.steps) if answer is not None), default=-1)


def gather(told: Iterable[tuple[int, Told]], until: int) -> dict[tuple[str, str], Steps]:
    """Bring together by what they are about the lines that were told before a moment."""
    steps: dict[tuple[str, str], Steps] = {}
    places: dict[str, tuple[Steps, int]] = {}
    for moment, line in told:
        if moment >= until:
            break
        if "sent" in line:
            kind = line["what"] if line["what"] in {"account", "key", "transfer", "run", "prices"} else "call"
            one = steps.setdefault((kind, line.get("id", "")), Steps())
            places[line["sent"]] = (one, len(one.steps))
            one.steps.append((line, None))
        elif "done" in line:
            one, place = places[line["done"]]
            one.steps[place] = (one.steps[place][0], line)
    return steps


async def check_after_cut(books: Path, told: Iterable[tuple[int, Told]], moment: int, seen: Counter[str]) -> None:
    """Open the books with the real store and compare them with what was told until the cut.

    Raises Lost when something answered is not there, AssertionError when something else is wrong.
    """
    steps = gather(told, moment)
    if not await asyncio.to_thread(books.exists):
        answered = [key for key, one in steps.items() if one.last_answered >= 0]
        if answered:
            raise Lost(f"the books are gone, with {len(answered)} things that were answered")
        seen["before there were books"] += 1
    store = await open_store(books, plans=PLANS, clock=steady_clock(), serving=True)
    try:
        await _compare(store, steps, seen)
        store.run_id = 10**6
        await resolve_orphans(store, Ledger(store))
        await _goes_on(store)
        await _check(store)
    finally:
        await store.close()


async def _check(store: SqliteStore) -> None:
    checks = await audit(store)
    assert any(check.name == "file" for check in checks), "the audit does not look at the file"
    broken = [check for check in checks if not check.ok]
    assert not broken, broken


async def _goes_on(store: SqliteStore) -> None:
    """See that the books can be written, and that nothing is held once orphans are ended."""
    rows = await store.fetch("SELECT id FROM account LIMIT 1")
    for (account_id,) in rows:
        posted = await Ledger(store).post(credit("after", account_id, 1, code="deposit", actor="test", memo=""))
        assert posted.now, posted
    assert await store.fetch("SELECT count(*) FROM hold") == [(0,)]
    assert await store.fetch("SELECT count(*) FROM account WHERE held_nanos <> 0 OR posted_nanos < 0") == [(0,)]


async def _compare(store: SqliteStore, steps: dict[tuple[str, str], Steps], seen: Counter[str]) -> None:
    await _compare_calls(store, {name: one for (kind, name), one in steps.items() if kind == "call"}, seen)
    rows = await store.fetch("SELECT id, amount_nanos, credit_account FROM transfer")
    transfers = {row[0]: tuple(row[1:]) for row in rows}
    emails: dict[str, int] = dict(map(tuple, await store.fetch("SELECT email, id FROM account")))
    keys = {str(row[0]) for row in await store.fetch("SELECT account_id FROM api_key")}
    there: dict[str, Collection[str]] = {"transfer": transfers, "account": emails, "key": keys}
    for (kind, name), one in steps.items():
        sent, answer = one.steps[max(one.last_answered, 0)]
        if kind not in there:
            continue
        refused = answer is not None and answer.get("refused", False)
        if answer is not None and not refused and name not in there[kind]:
            raise Lost(f"{kind} {name} was answered and is not there")
        again = len(one.steps) > one.last_answered + 1  # it may have been handed in once more, and taken
        assert not refused or again or name not in there[kind], f"{kind} {name} was refused and is there"
        if kind == "transfer" and name in there[kind]:
            assert transfers[name] == (sent["nanos"], sent["to"]), (sent, transfers[name])
        seen[f"{kind}, answered"] += answer is not None
        seen[f"{kind}, not answered, {'there' if name in there[kind] else 'not there'}"] += answer is None
    never = transfers.keys() - {name for kind, name in steps if kind == "transfer"}
    assert not never, f"posted, and never handed in: {never}"
    never = emails.keys() - {name for kind, name in steps if kind == "account"}
    assert not never, f"opened, and never asked for: {never}"


async def _compare_calls(store: SqliteStore, calls: dict[str, Steps], seen: Counter[str]) -> None:
    rows = await store.fetch("SELECT request_id, account_id, amount_nanos, expired_at FROM hold")
    holds = {row[0].hex(): row[1:] for row in rows}
    rows = await store.fetch("SELECT request_id, account_id, cost_nanos, charged_nanos, shortfall_nanos FROM usage")
    usage = {row[0].hex(): row[1:] for row in rows}
    assert len(usage) == len(rows), "a call is booked twice"
    never = (holds.keys() | usage.keys()) - calls.keys()
    assert not never, f"there, and never handed in: {never}"
    for name, one in calls.items():
        found = ("usage", *usage[name]) if name in usage else ("hold", *holds[name]) if name in holds else None
        assert name not in usage or name not in holds, f"{name} is settled and held"
        possible = _states(one)
        if any(_fits(found, state) for state in possible):
            seen["call, all answered"] += len(possible) == 1
            seen["call, last command not answered"] += len(possible) > 1
            continue
        words = f"{found} is there of what should be {' or '.join(map(str, possible))}: {one.steps}"
        raise Lost(words) if one.last_answered >= 0 else AssertionError(words)


State = tuple[Any, ...] | None


def _states(one: Steps) -> list[State]:
    """Say what may be there of a call: after its last answered command, or after any that was handed in since."""
    state: State = None
    states: list[State] = []
    for place, (sent, answer) in enumerate(one.steps):
        if place > one.last_answered and not states:
            states.append(state)
        state = _after(state, sent, answer)
        if place >= one.last_answered:
            states.append(state)
    return states


def _after(state: State, sent: Told, answer: Told | None) -> State:
    """Say what is there after a command; `_IN_DOUBT` stands for an amount that no answer has told."""
    account = sent["account"]
    if sent["what"] == "settle":
        if state is None or state[0] == "usage":
            return state
        parts = (answer["charged"], answer["short"]) if answer is not None else (_IN_DOUBT, _IN_DOUBT)
        return ("usage", account, sent["cost"], *parts)
    if sent["what"] == "admit":
        if answer is not None and answer["verdict"] == "admitted":
            return ("hold", account, answer["held"], False)
        if answer is not None and answer["verdict"] != "duplicate":
            return state
        return ("hold", account, _IN_DOUBT, False)
    if state is None or state[0] != "hold":
        return state
    if sent["what"] == "expire":
        return ("hold", account, 0, True)
    if answer is None:
        return ("hold", account, _IN_DOUBT, False)
    return None if answer["gone"] else ("hold", account, answer["held"], False)


def _fits(found: State, state: State) -> bool:
    if found is None or state is None:
        return found is state
    if found[0] != state[0]:
        return False
    shown = (*found[:3], found[3] is not None) if found[0] == "hold" else found
    return all(right in (_IN_DOUBT, there) for there, right in zip(shown, state, strict=True))
