"""Sessions of Claude Code: kept with each call, stopped by their owner, and what became of a call on its way."""

import asyncio
import json
from typing import Any

import pytest

from farebox.store.protocol import Row
from tests.databases import write
from tests.gateway.play import (
    USD,
    Heard,
    asked_upstream,
    books,
    envelope,
    eventually,
    exact,
    listen,
    message,
    nanos,
    upstream,
)
from tests.stage import OpenStage, Person, Stage

SESSION = "5fe56a45-8a73-4d3b-9f9e-a75d0f4eb2c1"
NAMES = {
    "x-claude-code-session-id": SESSION,
    "x-claude-code-agent-id": "a1",
    "x-claude-code-parent-agent-id": "a0",
}


async def ask(stage: Stage, person: Person, session: str = SESSION, **fields: Any) -> tuple[int, bytes, bytes | None]:
    answer = await stage.post(person, message(**fields), headers={"x-claude-code-session-id": session})
    return answer.status, await answer.read(2**24), answer.header(b"x-should-retry")


async def kept(stage: Stage, columns: str) -> Row:
    """Give columns of the last call, once it has ended."""

    async def ended() -> bool:
        return not await stage.rows("SELECT 1 FROM hold") and bool(await stage.rows("SELECT 1 FROM usage"))

    await eventually(ended)
    return (await stage.rows(f"SELECT {columns} FROM usage ORDER BY at DESC LIMIT 1"))[0]


async def stop(stage: Stage, person: Person, session: str = SESSION) -> None:
    await stage.gateway.gatehouse.stop_session(person.account_id, session)


async def test_a_call_is_kept_with_its_session_its_agents_and_the_most_that_was_held(stage: Stage) -> None:
    answer = await stage.post(stage.alice, message("[[sim tokens=30]]", max_tokens=500), headers=NAMES)
    await answer.read(2**20)
    session, agent, parent, held, tries = await kept(stage, "session, agent, parent_agent, held_nanos, tries")
    assert (session, agent, parent, tries) == (SESSION, "a1", "a0", None)
    assert held > nanos(exact(output=500))


async def test_the_most_that_was_held_is_that_of_the_largest_slice(stage: Stage) -> None:
    await (await listen(stage, stage.alice, "[[sim tokens=9000]]", max_tokens=20_000)).end()
    held, charged = await kept(stage, "held_nanos, charged_nanos")
    assert held > charged > nanos(exact(output=9000))


@pytest.mark.parametrize("name", ["", "a" * 101, "ü", "tab\tinside"])
async def test_a_name_that_is_none_is_left_out(stage: Stage, name: str) -> None:
    headers = [
        (key.encode(), value.encode("latin-1")) for key, value in {**NAMES, "x-claude-code-agent-id": name}.items()
    ]
    headers += [(b"x-api-key", stage.alice.key.encode()), (b"content-type", b"application/json")]
    answer = await stage.client.request(
        "POST", "/api/proxy/v1/messages", headers, json.dumps(message()).encode(), first_byte_s=5
    )
    assert answer.status == 200
    await answer.read(2**20)
    assert tuple(await kept(stage, "session, agent, parent_agent")) == (SESSION, None, "a0")


async def test_calls_of_a_stopped_session_are_refused_until_it_goes_on(stage: Stage) -> None:
    await stop(stage, stage.alice)
    status, body, should_retry = await ask(stage, stage.alice)
    kind, words = envelope(body)
    assert (status, kind, should_retry) == (403, "permission_error", b"false")
    assert SESSION in words
    assert "was stopped by its account's owner" in words
    assert f"let it go on at {stage.gateway.config.public_url}/dashboard/" in words
    assert len(stage.simulator.requests) == 0
    assert (await ask(stage, stage.alice, session="another"))[0] == 200
    assert (await stage.ask(stage.alice))[0] == 200
    await stop(stage, stage.alice)
    await stage.gateway.gatehouse.resume_session(stage.alice.account_id, SESSION)
    assert (await ask(stage, stage.alice))[0] == 200


async def test_a_session_is_stopped_for_its_own_account_alone(stage: Stage) -> None:
    carl = await stage.person("carl@example.com", 1)
    await stop(stage, stage.alice)
    assert (await ask(stage, carl))[0] == 200


async def test_a_running_stream_ends_at_once_and_what_was_delivered_is_charged(stage: Stage) -> None:
    answer = await stage.post(
        stage.alice,
        message("[[sim tokens=4000 rate=400 ttft=0]]", stream=True, max_tokens=8000),
        headers={"x-claude-code-session-id": SESSION},
    )
    heard = Heard(answer)
    untouched = await listen(stage, stage.alice, "[[sim tokens=60 rate=100 ttft=0]]")
    await heard.until(lambda: heard.visible_bytes > 100)
    await stop(stage, stage.alice)
    await heard.end(timeout_s=2)
    name, event = heard.last
    assert (name, event["error"]["type"]) == ("error", "permission_error")
    assert "stopped by its account's owner" in event["error"]["message"]
    assert "message_stop" not in heard.names
    assert (await untouched.end()).names[-1] == "message_stop"
    await books(stage, stage.alice, calls=2)
    sql = "SELECT kind, outcome, output_tokens, charged_nanos FROM usage WHERE session = ?"
    ((kind, outcome, output, charged),) = await stage.rows(sql, SESSION)
    assert (kind, outcome, output) == ("estimated", "client_gone", -(-heard.visible_bytes // 4))
    assert charged == nanos(exact(input=heard.start_usage["input_tokens"], output=output))
    assert "gone" in {request.outcome for request in stage.simulator.requests}


async def test_a_json_answer_under_way_is_not_waited_for_and_free(stage: Stage) -> None:
    asking = asyncio.create_task(ask(stage, stage.alice, text="[[sim delay=5000]]"))
    await asked_upstream(stage)
    await stop(stage, stage.alice)
    async with asyncio.timeout(2):
        status, body, _ = await asking
    assert (status, envelope(body)[0]) == (403, "permission_error")
    row = await books(stage, stage.alice)
    assert (row["kind"], row["outcome"], row["charged_nanos"]) == ("waived", "client_gone", 0)


async def test_what_another_process_stops_is_stopped_here_and_after_a_restart(
    open_stage: OpenStage, database_url: str
) -> None:
    async with open_stage() as stage:
        alice = stage.alice
        answer = await stage.post(
            alice,
            message("[[sim tokens=4000 rate=100 ttft=0]]", stream=True, max_tokens=8000),
            headers={"x-claude-code-session-id": SESSION},
        )
        heard = Heard(answer)
        await heard.has(b"content_block_delta")
        insert = "INSERT INTO stopped_session (account_id, session, stopped_at) VALUES (?, ?, 1)"
        write(database_url, (insert, (alice.account_id, SESSION)))
        await heard.end(timeout_s=5)
        assert heard.last[1]["error"]["type"] == "permission_error"
        assert (await ask(stage, alice))[0] == 403
    async with open_stage() as stage:
        assert (await ask(stage, alice))[0] == 403
        write(database_url, "DELETE FROM stopped_session")

        async def goes_on() -> bool:
            return (await ask(stage, alice))[0] == 200

        await eventually(goes_on)


async def test_no_call_asks_the_database_whether_its_session_is_stopped(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    await stop(stage, stage.alice, "another")
    assert (await ask(stage, stage.alice))[0] == 200
    asked: list[str] = []
    store = stage.gateway.store
    fetch = store.fetch

    async def nothing_changed() -> bool:
        return False

    monkeypatch.setattr(store, "changed_elsewhere", nothing_changed)  # else it may be told of the stop only now
    await stage.gateway.gatehouse._messages.stopped.refresh()
    assert (await ask(stage, stage.alice))[0] == 200

    async def count(sql: str, *args: Any, **kwargs: Any) -> list[Row]:
        asked.append(sql)
        return await fetch(sql, *args, **kwargs)

    monkeypatch.setattr(store, "fetch", count)
    assert (await ask(stage, stage.alice))[0] == 200
    assert [sql for sql in asked if "stopped_session" in sql or "api_key" in sql] == []


async def test_the_attempts_of_a_call_are_kept_where_one_failed_and_never_what_was_said(open_stage: OpenStage) -> None:
    async with open_stage() as stage:
        text = "secret [[sim error=529 fail_first=1]]"
        assert (await stage.ask(stage.alice, text))[0] == 200
        tries = json.loads((await kept(stage, "tries"))[0])
        assert [(one["upstream"], one["status"]) for one in tries] == [("sim", 529), ("sim", 200)]
        assert all(one["started_ms"] >= 0 and 0 <= one["took_ms"] < 8000 for one in tries)
        assert tries[0]["started_ms"] <= tries[1]["started_ms"]
        assert set(tries[0]) == {"upstream", "status", "started_ms", "took_ms"}


async def test_the_attempt_of_a_call_that_had_only_that_one_is_kept_if_it_failed(open_stage: OpenStage) -> None:
    async with open_stage(upstreams=upstream("dead", 9), limits="attempts = 1") as stage:
        assert (await stage.ask(stage.alice))[0] == 502
        (only,) = json.loads((await kept(stage, "tries"))[0])
        assert (only["upstream"], only["error"]) == ("dead", "ConnectFailed")
        assert await stage.balance(stage.alice) == (100 * USD, 0)
