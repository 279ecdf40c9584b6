"""Claude Code sessions: their sums are those of the books, closed days and open ones alike, and stop means stop."""

import json
from typing import Any

import pytest

from farebox.books.days import close_days
from farebox.books.work import Agent, Work, find_work, list_work
from farebox.clock import DAY_US, US_PER_S
from farebox.ids import new_request_id
from tests.stage import MODEL, Stage
from tests.web.browse import enter, fund

SESSION = "3b1f2c9e-7a4d-4b53-9a3e-0c7f1f2f9d11"
COLUMNS = (
    "request_id, at, account_id, key_id, kind, model, asked_model, price_version, input_tokens, output_tokens, "
    "cost_nanos, list_nanos, charged_nanos, shortfall_nanos, waived_nanos, status, outcome, duration_us, session, "
    "agent, parent_agent"
)


async def past_call(stage: Stage, at_us: int, session: str, agent: str | None = None, **fields: Any) -> None:
    """Write a call of a session into the books, as the ledger did then."""
    values = {
        "request_id": new_request_id(at_us), "at": at_us, "account_id": stage.alice.account_id, "key_id": 1,
        "kind": "exact", "model": MODEL, "asked_model": MODEL, "price_version": 1, "input_tokens": 100,
        "output_tokens": 10, "cost_nanos": 225_000, "list_nanos": 450_000, "charged_nanos": 225_000,
        "shortfall_nanos": 0, "waived_nanos": 0, "status": 200, "outcome": "finished", "duration_us": 1_000_000,
        "session": session, "agent": agent, "parent_agent": None, **fields,
    }  # fmt: skip
    marks = ", ".join("?" for _ in values)
    insert = f"INSERT INTO usage ({COLUMNS}) VALUES ({marks})"
    await stage.gateway.store.write([(insert, tuple(values[name] for name in COLUMNS.split(", ")))])


async def ask(stage: Stage, session: str, agent: str = "", parent: str = "", person: Any = None) -> int:
    headers = {"x-claude-code-session-id": session}
    headers |= {"x-claude-code-agent-id": agent} if agent else {}
    headers |= {"x-claude-code-parent-agent-id": parent} if parent else {}
    body = {"model": MODEL, "max_tokens": 100, "messages": [{"role": "user", "content": "Hello"}]}
    answer = await stage.post(person or stage.alice, body, headers=headers)
    await answer.read(1 << 24)
    return answer.status


async def test_calls_that_name_a_session_add_up_by_agent(stage: Stage) -> None:
    browser = await enter(stage, stage.alice.email)
    for agent, parent in (("", ""), ("", ""), ("planner", ""), ("digger", "planner")):
        assert await ask(stage, SESSION, agent, parent) == 200
    assert (await stage.ask(stage.alice))[0] == 200
    await fund(stage, stage.bob.email, 5)
    assert await ask(stage, "of-bob", person=stage.bob) == 200
    page = await browser.get("/dashboard/agents")
    (row,) = page.rows("Sessions")
    assert row[0] == SESSION
    assert (row[1], row[4], row[5]) == ("running", "2", "4")
    page = await browser.get(f"/dashboard/agents/of/{SESSION}")
    assert page.faults() == []
    agents = [(cells[0], cells[3]) for cells in page.rows("Agents")]
    assert agents == [("The session itself", "2"), ("planner", "1"), ("digger", "1"), ("Together", "4")]
    depths = [cell.get("class") for cell in page.find("td") if (cell.get("class") or "").startswith("depth")]
    assert depths == ["depth0", "depth1", "depth2"]
    ((spent,),) = await stage.rows("SELECT sum(charged_nanos) FROM usage WHERE session = ?", SESSION)
    assert f"${spent / 1e9:.9f}".rstrip("0") in page.words
    assert len(page.rows("Requests")) == 4
    log = await browser.get(f"/dashboard/requests?session={SESSION}")
    assert len(log.rows("Requests")) == 4
    assert log.form()[2]["session"] == SESSION
    exported = json.loads((await browser.get(f"/dashboard/requests.json?session={SESSION}")).text)
    assert [call["agent"] for call in exported] == ["digger", "planner", None, None]
    (call,) = [link for link in page.links() if link.startswith("/dashboard/requests/req_")][:1]
    assert f"/dashboard/agents/of/{SESSION}" in (await browser.get(call)).links()


async def test_nobody_sees_or_stops_a_session_of_anothers(stage: Stage) -> None:
    browser = await enter(stage, stage.bob.email)
    assert await ask(stage, SESSION) == 200
    assert "No session has called" in (await browser.get("/dashboard/agents")).words
    for method, path in (("GET", "of"), ("GET", "stop"), ("POST", "stop"), ("POST", "resume")):
        page = await browser.send(method, f"/dashboard/agents/{path}/{SESSION}", b"", {"sec-fetch-site": "same-origin"})
        assert page.status == 404, path
    assert "No such calls" in (await browser.get(f"/dashboard/requests?session={SESSION}")).words
    assert await stage.rows("SELECT * FROM stopped_session") == []
    assert await ask(stage, SESSION) == 200


async def test_a_stopped_session_is_refused_until_it_may_go_on(stage: Stage) -> None:
    browser = await enter(stage, stage.alice.email)
    assert await ask(stage, SESSION) == 200
    page = await browser.get(f"/dashboard/agents/of/{SESSION}")
    assert f"/dashboard/agents/stop/{SESSION}" in page.links()
    asked = await browser.get(f"/dashboard/agents/stop/{SESSION}")
    assert "Stop this session?" in asked.words
    assert await ask(stage, SESSION) == 200
    stopped = await browser.submit(asked)
    assert stopped.path == f"/dashboard/agents/of/{SESSION}"
    assert "Calls of this session are refused" in stopped.words
    assert (await browser.get("/dashboard/agents")).rows("Sessions")[0][1] == "stopped"
    assert await ask(stage, SESSION) in {400, 403}
    assert await ask(stage, SESSION, "digger") in {400, 403}
    assert await ask(stage, "another") == 200
    assert (await stage.ask(stage.alice))[0] == 200
    going = await browser.submit(stopped)
    assert "Stop this session" in going.words
    assert await ask(stage, SESSION) == 200


@pytest.mark.parametrize("name", ["a/b", "a b?c=d&e#f", "%2F", "stop", "é".encode().hex(), "x" * 100, "<b>&amp;"])
async def test_a_session_may_have_any_name(stage: Stage, name: str) -> None:
    browser = await enter(stage, stage.alice.email)
    await past_call(stage, stage.gateway.clock(), name)
    page = await browser.get("/dashboard/agents")
    (link,) = [link for link in page.links() if link.startswith("/dashboard/agents/of/")]
    page = await browser.get(link)
    assert page.status == 200
    assert page.faults() == []
    assert name in page.words
    (log,) = [link for link in page.links() if link.startswith("/dashboard/requests?session=")]
    assert len((await browser.get(log)).rows("Requests")) == 1
    (stop,) = [link for link in page.links() if link.startswith("/dashboard/agents/stop/")]
    assert (await browser.get(stop)).status == 200


async def test_sums_are_the_same_before_and_after_days_are_closed(stage: Stage) -> None:
    now = stage.gateway.clock()
    for number in range(60):
        agent = (None, "planner", "digger")[number % 3]
        parent = "planner" if agent == "digger" else None
        await past_call(stage, now - number * DAY_US // 12, f"s{number % 4}", agent, parent_agent=parent)
    await past_call(stage, now - 40 * DAY_US, "long-ago")
    store, alice = stage.gateway.store, stage.alice.account_id

    async def read() -> list[Any]:
        found = [await find_work(store, alice, f"s{number}") for number in range(4)]
        listed = await list_work(store, alice, now - 29 * DAY_US)
        agents = [sorted(work.agents, key=lambda one: one.agent) for work in found if work]
        return [agents, [(work.session, work.requests, work.spend_nanos, work.sub_agents) for work in listed]]

    before = await read()
    assert await close_days(store, now)
    assert (await stage.rows("SELECT sum(requests) FROM session_day WHERE session <> 'long-ago'"))[0][0] > 30
    assert await read() == before
    assert sum(count for _, count, _, _ in before[1]) == 60
    assert (await find_work(store, alice, "long-ago")) is not None
    assert await find_work(store, alice, "never") is None


async def test_the_list_looks_back_as_far_as_it_is_asked_to(stage: Stage) -> None:
    browser = await enter(stage, stage.alice.email)
    now = stage.gateway.clock()
    for days in (0, 3, 20, 80):
        await past_call(stage, now - days * DAY_US, f"days-{days}")
    for query, count in (("", 3), ("?range=24h", 1), ("?range=7d", 2), ("?range=90d", 4), ("?range=x", 3)):
        page = await browser.get(f"/dashboard/agents{query}")
        assert len(page.rows("Sessions")) == count, query


async def test_of_too_many_agents_the_least_are_told_as_one_and_sums_stay_whole(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("farebox.books.work.MOST_AGENTS", 3)
    now = stage.gateway.clock()
    for number in range(6):
        cost = 1000 * (number + 1)
        await past_call(stage, now, SESSION, f"a{number}" if number else None, charged_nanos=cost, cost_nanos=cost)
    work = await find_work(stage.gateway.store, stage.alice.account_id, SESSION)
    assert work is not None
    assert [one.agent for one in work.agents] == ["", "a5", "a4", "3 others"]
    assert (work.requests, work.spend_nanos) == (6, 21_000)


def agent(name: str, parent: str = "", at: int = 0) -> Agent:
    return Agent("s", name, parent, 1, 1, 1, at, at)


def test_agents_stand_below_their_parents_and_none_is_lost() -> None:
    """Not those with unknown parents, nor those whose parents go round in a circle; each stands there once."""
    agents = [agent("b", "a", 2), agent("a", "", 1), agent(""), agent("c", "gone", 3), agent("x", "y"), agent("y", "x")]
    agents.append(agent("z", "b", 5))
    tree = Work("s", agents, None).tree()
    assert [(depth, one.agent) for depth, one in tree] == [
        *((0, ""), (1, "a"), (2, "b"), (3, "z"), (1, "c")),
        *((1, "x"), (1, "y")),
    ]
    assert Work("s", [agent("a", "a")], None).tree() == [(1, agent("a", "a"))]
    assert not Work("s", [agent("", at=0)], None).is_running(601 * US_PER_S)
    assert Work("s", [agent("", at=0)], None).is_running(599 * US_PER_S)
    assert not Work("s", [agent("", at=0)], 1).is_running(2)
