"""Promise 9: no prompt, no answer, no key is ever stored or logged. A canary is planted everywhere, then searched."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from farebox.app import start_gateway
from farebox.config import load_config
from farebox.http.client import HttpClient, Origin
from farebox.store.urls import is_postgres
from tests.cluster import Cluster
from tests.databases import name_of
from tests.gateway.play import Heard, books, listen, message, script, upstream
from tests.stage import MODEL, OpenStage, Person, Stage, config_text

CANARY = "canary-7f3a9c"
Disk = Callable[[], list[Path]]
WAL_SEGMENT = "pg_walfile_name(pg_current_wal_insert_lsn())"


@pytest.fixture
def disk(tmp_path: Path, database_url: str, request: pytest.FixtureRequest) -> Disk:
    """Every file that what is served may get into: a PostgreSQL server's tables, write-ahead log and log included."""
    if not is_postgres(database_url):
        return lambda: [path for path in tmp_path.rglob("*") if path.is_file()]
    cluster: Cluster = request.getfixturevalue("cluster")
    data = cluster.directory / "data"
    sql = f"SELECT oid, {WAL_SEGMENT} FROM pg_database WHERE datname = $1"
    ((oid, first),) = cluster.fetch(sql, name_of(database_url))

    def files() -> list[Path]:
        cluster.execute("CHECKPOINT")
        ((last,),) = cluster.fetch(f"SELECT {WAL_SEGMENT}")
        segments = [path for path in (data / "pg_wal").iterdir() if first <= path.name <= last]
        own = [path for path in tmp_path.rglob("*") if path.is_file()]
        return [*own, *(data / "base" / str(oid)).iterdir(), *segments, cluster.directory / "log"]

    return files


def _found(disk: Disk, stage: Stage, *secrets: str) -> list[str]:
    texts = {path.name: path.read_bytes() for path in disk()}
    texts["events"] = repr(stage.events).encode()
    texts["metrics"] = repr(vars(stage.gateway.metrics)).encode()
    return [f"{name}: {secret}" for name, text in texts.items() for secret in secrets if secret.encode() in text]


def _requests() -> list[dict[str, Any] | bytes]:
    """Everything that can be said in a request, in success and in failure."""
    said = f"{CANARY} please"
    tools = [{"name": "look", "description": CANARY, "input_schema": {"type": "object", "properties": {CANARY: {}}}}]
    bodies: list[dict[str, Any] | bytes] = [
        message(f"[[sim echo]] {said}", stream=stream, system=CANARY, metadata={"user_id": CANARY})
        for stream in (True, False)
    ]
    bodies += [message(f"{said} use the tool", stream=stream, tools=tools) for stream in (True, False)]
    faults = (
        "error=400", "error=500", "html", "cut_after=4", "garbage_after=4", "error_after=4", "bad_json", "no_usage",
        "refusal", "unknown_usage=3", "iterations", "model_answered=claude-nobody", "fallback=claude-nobody",
    )  # fmt: skip
    bodies += [message(f"[[sim echo {fault}]] {said}", stream=stream) for fault in faults for stream in (True, False)]
    bodies += [message(said, model=CANARY), message(said, max_tokens=-1), message(said, stop_sequences=[CANARY])]
    bodies += [message(said, **{CANARY: CANARY}), message(said, thread=CANARY), message(said, temperature=CANARY)]
    bodies += [
        f'{{"model":"{CANARY}'.encode(),
        CANARY.encode(),
        b'{"%b":1,"%b":2}' % (CANARY.encode(), CANARY.encode()),
    ]
    return bodies


async def test_no_prompt_answer_or_key_is_stored_or_logged(disk: Disk, open_stage: OpenStage) -> None:
    async with open_stage("[features]\nfiles = true", limits="retry_budget = 0") as stage:
        rich = await stage.person("rich@example.com", 1000, plan="enterprise")
        for body in _requests():
            for path in ("/api/proxy/v1/messages", "/api/proxy/v1/messages/quote"):
                headers = {"x-canary": CANARY, "anthropic-beta": CANARY, "user-agent": CANARY}
                answer = await stage.post(rich, body, path=path, headers=headers)
                await answer.read(2**22)
        for (request_id,) in await stage.rows("SELECT request_id FROM usage ORDER BY at LIMIT 20"):
            path = f"/v1/requests/req_{request_id.hex()}/receipt"
            receipt = await stage.client.request("GET", path, [(b"x-api-key", rich.key.encode())], b"", first_byte_s=30)
            assert receipt.status == 200
            assert CANARY.encode() not in await receipt.read(2**20)
        await stage.post(stage.bob, message(CANARY))
        await stage.post(rich, message(), path=f"/v1/{CANARY}?{CANARY}={CANARY}")
        await stage.post(Person(0, "", f"sk-cc-{CANARY}"), message())
        secrets = (CANARY, rich.key, stage.bob.key)
        assert _found(disk, stage, *secrets) == []
        assert sum(event["event"] == "call" for event in stage.events) > 20
    assert _found(disk, stage, *secrets) == []


async def test_a_failing_gateway_logs_where_it_failed_and_nothing_of_what_it_served(
    disk: Disk, open_stage: OpenStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(call: Any, *_: Any) -> None:
        raise ValueError(bytes(call.body).decode())

    async with open_stage(limits="drain_s = 0") as stage:
        monkeypatch.setattr("farebox.gateway.streaming.Streams.relay", broken)
        await (await stage.post(stage.alice, message(CANARY, stream=True))).read(2**20)
        row = await books(stage, stage.alice)
        assert (row["kind"], row["outcome"]) == ("waived", "gateway_broke")
        assert _found(disk, stage, CANARY, stage.alice.key) == []
        assert any(event["event"] == "call_failed" for event in stage.events)


async def test_what_the_upstream_says_is_not_stored_either(disk: Disk, open_stage: OpenStage) -> None:
    """Its answers, its errors and its headers."""
    error = json.dumps({"type": "error", "error": {"type": CANARY, "message": CANARY}}).encode()
    head = (
        b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\nx-canary: "
        + CANARY.encode()
        + b"\r\ncontent-length: %d\r\n\r\n"
    )
    body = json.dumps(
        {
            "id": "msg_1",
            "model": MODEL,
            "content": CANARY,
            "usage": {"input_tokens": 1, "output_tokens": 1, "note": CANARY},
        }
    ).encode()
    answers = [
        [head % (400, len(error)), error],
        [head % (200, len(body)), body],
        [head % (500, len(error)), error],
        [CANARY.encode()],
    ]
    async with script(*answers) as theirs:  # noqa: SIM117
        async with open_stage(upstreams=upstream("theirs", theirs.port), limits="retry_budget = 0") as stage:
            assert [(await stage.ask(stage.alice))[0] for _ in range(4)] == [400, 200, 502, 502]
            await books(stage, stage.alice, calls=4)
            assert _found(disk, stage, CANARY, "sk-ant-theirs") in ([], ["farebox.toml: sk-ant-theirs"])


async def test_a_simulator_in_process_remembers_no_prompt(tmp_path: Path) -> None:
    (tmp_path / "farebox.toml").write_text(config_text(tmp_path) + "speed = 0\n")
    gateway = await start_gateway(load_config(tmp_path / "farebox.toml", {}))
    try:
        (simulator,) = gateway._simulators.values()
        client = HttpClient(Origin("http", "127.0.0.1", simulator.port, ""), connect_s=5, connections=1)
        headers = [(b"anthropic-version", b"2023-06-01"), (b"content-type", b"application/json")]
        body = json.dumps(message(CANARY)).encode()
        assert (await client.request("POST", "/v1/messages", headers, body, first_byte_s=5)).status == 200
        assert not simulator.requests
        await client.close()
    finally:
        await gateway.stop()


async def test_a_call_is_logged_with_its_figures_and_its_request_id(stage: Stage) -> None:
    heard = await (await listen(stage, stage.alice, "[[sim tokens=33]]")).end()
    (event,) = [event for event in stage.events if event["event"] == "call"]
    row = await books(stage, stage.alice)
    assert event["request_id"].encode() == heard.answer.header(b"request-id")
    assert (event["output_tokens"], event["charged_nanos"]) == (33, row["charged_nanos"])


async def test_the_search_would_find_a_canary_that_had_been_stored(
    disk: Disk, open_stage: OpenStage, database_kind: str
) -> None:
    """A test that cannot fail is worse than none."""
    async with open_stage() as stage:
        stored = CANARY.upper()  # another one: it stays in the server's write-ahead log
        await stage.gateway.store.write([("UPDATE account SET email = ? WHERE id = 1", (stored,))])
        places = {found.partition(":")[0] for found in _found(disk, stage, stored)}
        assert len(places) >= (2 if database_kind == "postgresql" else 1), places  # the table, and the log before it
        heard = Heard(await stage.post(stage.alice, message(stream=True)))
        await asyncio.wait_for(heard.end(), 5)
