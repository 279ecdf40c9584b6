"""What Claude Code sessions and their agents came to, and which of them were stopped. Read only, but for the stopping.

Days and hours that are closed were summed as they were closed (books.sums); what is younger is added up anew.
"""

from functools import reduce
from typing import Final

import msgspec

from farebox.books.sums import Open, first_open, work_between
from farebox.clock import DAY_US, US_PER_S
from farebox.store.protocol import Reading

MOST_SESSIONS: Final = 100
MOST_AGENTS: Final = 500
_MOST_READ: Final = 20_000
"""Agents of all sessions together that a list is made from: those that were used last."""
_STEPS_DAYS: Final = (0, 3, 14, 60, 10**6)
_RUNS_US: Final = 600 * US_PER_S
"""A session whose last call is no older may well go on."""


class Agent(msgspec.Struct, frozen=True):
    """What one agent of one session came to. An empty `agent` is the session itself."""

    session: str
    agent: str
    parent: str
    requests: int
    tokens: int
    spend_nanos: int
    first_at_us: int
    last_at_us: int

    def plus(self, other: "Agent") -> "Agent":
        return Agent(
            *(self.session, self.agent, self.parent),
            self.requests + other.requests,
            self.tokens + other.tokens,
            self.spend_nanos + other.spend_nanos,
            min(self.first_at_us, other.first_at_us),
            max(self.last_at_us, other.last_at_us),
        )


class Work(msgspec.Struct, frozen=True):
    """What a session came to, its agents included."""

    session: str
    agents: list[Agent]
    stopped_at_us: int | None

    @property
    def requests(self) -> int:
        return sum(agent.requests for agent in self.agents)

    @property
    def tokens(self) -> int:
        return sum(agent.tokens for agent in self.agents)

    @property
    def spend_nanos(self) -> int:
        return sum(agent.spend_nanos for agent in self.agents)

    @property
    def first_at_us(self) -> int:
        return min(agent.first_at_us for agent in self.agents)

    @property
    def last_at_us(self) -> int:
        return max(agent.last_at_us for agent in self.agents)

    @property
    def sub_agents(self) -> int:
        return sum(1 for agent in self.agents if agent.agent)

    def is_running(self, now_us: int) -> bool:
        return self.stopped_at_us is None and now_us - self.last_at_us < _RUNS_US

    def tree(self) -> list[tuple[int, Agent]]:
        """Give the agents in the order of a tree, each with its depth: below its parent, the oldest first."""
        names = {agent.agent for agent in self.agents}
        below: dict[str, list[Agent]] = {}
        for agent in sorted(self.agents, key=lambda one: (one.first_at_us, one.agent)):
            if agent.agent:
                below.setdefault(agent.parent if agent.parent in names else "", []).append(agent)
        found = [(0, agent) for agent in self.agents if not agent.agent]
        placed: set[str] = set()
        waiting = [(1, agent) for agent in reversed(below.get("", []))]
        while waiting:
            depth, agent = waiting.pop()
            if agent.agent not in placed:
                placed.add(agent.agent)
                found.append((depth, agent))
                waiting += [(depth + 1, one) for one in reversed(below.get(agent.agent, []))]
        lost = [agent for agent in self.agents if agent.agent and agent.agent not in placed]  # parents in a circle
        return found + [(1, agent) for agent in lost]


async def list_work(store: Reading, account_id: int, since_us: int) -> list[Work]:
    """Give the sessions with calls since a day, the one used last first; at most so many."""
    opened, first_day = await first_open(store), since_us // DAY_US
    names = await _newest(store, opened, account_id, first_day)
    if not names:
        return []
    theirs = f"account_id = ? AND session IN ({', '.join('?' * len(names))})"
    sql, values = work_between(opened, first_day, theirs, (account_id, *names))
    rows = await store.fetch(
        "SELECT session, agent, '', sum(requests), sum(tokens), sum(charged_nanos), min(first_at), max(last_at) "  # noqa: S608
        f"FROM ({sql}) AS work GROUP BY session, agent ORDER BY max(last_at) DESC LIMIT ?",
        (*values, _MOST_READ),
    )
    stopped = await _stopped(store, account_id)
    found: dict[str, list[Agent]] = {}
    for agent in (Agent(*row) for row in rows):
        found.setdefault(agent.session, []).append(agent)
    work = [Work(session, agents, stopped.get(session)) for session, agents in found.items()]
    return sorted(work, key=lambda one: (-one.last_at_us, one.session))[:MOST_SESSIONS]


async def _newest(store: Reading, opened: Open, account_id: int, first_day: int) -> tuple[str, ...]:
    """Name the sessions used last since a day: of the last days alone, as long as there are enough."""
    names: tuple[str, ...] = ()
    for days in _STEPS_DAYS:
        begin = max(first_day, opened.day - days)
        sql, values = work_between(opened, begin, "account_id = ?", (account_id,))
        rows = await store.fetch(
            f"SELECT session FROM ({sql}) AS work GROUP BY session ORDER BY max(last_at) DESC, session LIMIT ?",  # noqa: S608
            (*values, MOST_SESSIONS),
        )
        names = tuple(row[0] for row in rows)
        if begin == first_day or len(names) == MOST_SESSIONS:
            return names
    return names


async def find_work(store: Reading, account_id: int, session: str) -> Work | None:
    """Find one of an account's own sessions, with its agents: where there are too many, the least of them as one."""
    sql, values = work_between(await first_open(store), 0, "account_id = ? AND session = ?", (account_id, session))
    rows = await store.fetch(
        "SELECT session, agent, max(parent_agent), sum(requests), sum(tokens), sum(charged_nanos), min(first_at), "  # noqa: S608
        f"max(last_at) FROM ({sql}) AS work GROUP BY session, agent",
        values,
    )
    agents = [Agent(*row) for row in rows]
    if not agents:
        return None
    agents.sort(key=lambda one: (bool(one.agent), -one.spend_nanos))
    kept, rest = agents[:MOST_AGENTS], agents[MOST_AGENTS:]
    if rest:
        kept.append(msgspec.structs.replace(reduce(Agent.plus, rest), agent=f"{len(rest)} others", parent=""))
    return Work(session, kept, (await _stopped(store, account_id)).get(session))


async def _stopped(store: Reading, account_id: int) -> dict[str, int]:
    rows = await store.fetch("SELECT session, stopped_at FROM stopped_session WHERE account_id = ?", (account_id,))
    return {row[0]: row[1] for row in rows}
