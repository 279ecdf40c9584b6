"""Several nodes over one PostgreSQL: never overdrawn, never refused while there was enough, nothing done twice."""

import asyncio
import os
import random
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from farebox.accounts.accounts import create_account
from farebox.accounts.key_rules import Rules
from farebox.accounts.keys import create_key
from farebox.billing.ledger import Admit, Settle, Transfer, customer_account
from farebox.books.audit import audit
from tests.cluster import Cluster
from tests.races.contest import Contest
from tests.races.node import Strand, node, rivals

ROUNDS = 3_000
_ACCOUNTS = 60
_PROCESSES = 4
_MINUTE_S = 60
_TRANSFERS = 200


@pytest.fixture
def url(cluster: Cluster) -> Iterator[str]:
    with cluster.database() as fresh:
        yield fresh


async def test_two_nodes_race_for_the_last_cent_three_thousand_times(url: str) -> None:
    """Set FAREBOX_SEED to repeat the choices of a run; the note at a failure names it."""
    seed = int(os.environ.get("FAREBOX_SEED") or random.SystemRandom().getrandbits(32))
    async with node(url, 1) as here, rivals(url, 1) as others:
        contest = Contest(here.store, [here, *others], seed)
        await contest.run(ROUNDS, _ACCOUNTS)
    print(f"seed {seed}: {dict(contest.seen)}")
    assert contest.seen["rounds"] == ROUNDS
    for what in ("won by node 0", "won by node 1", "won by both", "last cent", "released", "settled late", "refused"):
        assert contest.seen[what] >= ROUNDS // 100, f"{what} was seen {contest.seen[what]} times only (seed {seed})"


async def test_ten_requests_a_minute_are_ten_with_four_processes(url: str) -> None:
    """All ask at once, by the database's clock; no account gets an eleventh call before its time, or misses one."""
    async with node(url, 1) as here, rivals(url, _PROCESSES) as others:
        asking: list[list[Strand]] = [[] for _ in others]
        for number in range(30):
            account = await create_account(here.store, f"c{number}@example.com", "ten", 1)
            key, _ = await create_key(here.store, account.id, "k", "sk-cc-", 1)
            await here.ledger.post(_transfer(f"t{number}", customer_account(account.id), 10**9))
            for strands in asking:
                strands += [Strand(0, [_admit(account.id, key.id)]) for _ in range(9)]
        began = time.monotonic()
        played = await asyncio.gather(*(other.play(strands) for other, strands in zip(others, asking, strict=True)))
        took_s = time.monotonic() - began
    said = Counter((event.command.account_id, event.said) for events in played for event in events)  # type: ignore[union-attr]
    accounts = {account_id for account_id, _ in said}
    assert len(accounts) == 30
    most = 10 + int(took_s * 10 / _MINUTE_S)
    admitted = [said[account_id, "admitted"] for account_id in accounts]
    assert all(10 <= count <= most for count in admitted), (admitted, took_s)
    assert all(said[account_id, "admitted"] + said[account_id, "requests_limited"] == 36 for account_id in accounts)


async def test_a_spend_limit_is_held_to_the_last_of_it_with_four_processes(url: str) -> None:
    """Calls of two keys of an account race, the one limited, the other not; they are settled by other processes."""
    async with node(url, 1) as here, rivals(url, _PROCESSES) as others:
        limits: dict[int, int] = {}
        asking: list[list[Strand]] = [[] for _ in others]
        for number in range(30):
            account = await create_account(here.store, f"c{number}@example.com", "open", 1)
            await here.ledger.post(_transfer(f"t{number}", customer_account(account.id), 10**9))
            rules = Rules(limit_nanos=random.randint(1, 30), resets="monthly")
            key, _ = await create_key(here.store, account.id, "limited", "sk-cc-", 1, rules)
            other, _ = await create_key(here.store, account.id, "free", "sk-cc-", 1)
            limits[key.id] = rules.limit_nanos or 0
            for strands in asking:
                strands += [Strand(0, [_admit(account.id, key.id)]) for _ in range(9)]
                strands += [Strand(0, [_admit(account.id, other.id)]) for _ in range(3)]
        played = await asyncio.gather(*(other.play(strands) for other, strands in zip(others, asking, strict=True)))
        events = [event for events in played for event in events]
        said = Counter((event.command.key_id, event.said) for event in events if isinstance(event.command, Admit))
        for key_id, limit in limits.items():
            assert said[key_id, "admitted"] == min(limit, 36), (limit, said)
            assert said[key_id, "admitted"] + said[key_id, "key_limited"] == 36
            assert said[key_id + 1, "admitted"] == 12
        held = [event.command for event in events if isinstance(event.command, Admit) and event.said == "admitted"]
        settles = [Strand(0, [_settle(admit, cost=random.randrange(3))]) for admit in held for _ in range(2)]
        random.shuffle(settles)
        ended = await asyncio.gather(*(other.play(settles[place::_PROCESSES]) for place, other in enumerate(others)))
        assert sum(event.said == "settled" for events in ended for event in events) == len(held)
        used = "SELECT sum(used_nanos) FROM key_budget"
        charged = "SELECT sum(charged_nanos) FROM usage JOIN key_budget USING (key_id)"
        assert await here.store.fetch(used) == await here.store.fetch(charged)
        assert [check.name for check in await audit(here.store) if check.name == "spend limits" and check.ok]


@pytest.mark.parametrize("whose", ["the same house accounts", "the same customer", "two customers"])
async def test_a_transfer_that_two_nodes_post_at_once_is_posted_once(url: str, whose: str) -> None:
    """Also where its accounts, and so the locks, are none that the two share."""
    async with node(url, 1) as here, rivals(url, 1) as (there,):
        one, two = [await create_account(here.store, f"c{number}@example.com", "open", 1) for number in range(2)]
        house, first, second = "house:promotion", customer_account(one.id), customer_account(two.id)
        credited = {"the same house accounts": (house, house), "the same customer": (first, first)}
        to_one, to_two = credited.get(whose, (first, second))
        second_time = "refused" if whose == "two customers" else "posted before"
        for number in range(_TRANSFERS):
            (ours,), (theirs,) = await asyncio.gather(
                here.play([Strand(0, [_transfer(f"t{number}", to_one)])]),
                there.play([Strand(0, [_transfer(f"t{number}", to_two)])]),
            )
            assert {ours.said, theirs.said} == {"posted", second_time}
        assert await here.store.fetch("SELECT count(*) FROM transfer") == [(_TRANSFERS,)]
        posted = await here.store.fetch("SELECT sum(posted_nanos) FROM account")
        assert posted == [(0 if whose == "the same house accounts" else _TRANSFERS,)]


def _admit(account_id: int, key_id: int) -> Admit:
    return Admit(
        request_id=random.randbytes(16),
        account_id=account_id,
        key_id=key_id,
        model="any",
        amount_nanos=1,
        least_nanos=1,
        tokens=1,
        price_version=1,
    )


def _settle(admit: Admit, *, cost: int) -> Settle:
    return Settle(
        request_id=admit.request_id,
        account_id=admit.account_id,
        kind="exact",
        model="any",
        outcome="finished",
        status=200,
        cost_nanos=cost,
    )


def _transfer(name: str, to: str, nanos: int = 1) -> Transfer:
    return Transfer(
        id=name,
        debit_account="house:cash",
        credit_account=to,
        amount_nanos=nanos,
        code="deposit",
        actor="test",
        memo="",
    )
