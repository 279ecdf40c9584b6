"""The official TypeScript SDK under Node.js: base URL and key from the environment, nothing else changed."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.clients.run import ENVS, HERE, charges, check_books, run, wanted
from tests.stage import MODEL, Stage, open_stage

HOME = ENVS / "typescript-sdk"
OPENED = 100 * 10**9


async def act(stage: Stage, home: Path, *scene: str, key: str = "") -> Any:
    script = home / "sdk.mjs"
    if not script.exists():
        (home / "node_modules").symlink_to(wanted(HOME / "node_modules"))
        shutil.copy(HERE / "envs" / "typescript-sdk" / "sdk.mjs", script)
    env = {"ANTHROPIC_BASE_URL": stage.base_url, "ANTHROPIC_API_KEY": key or stage.alice.key}
    ended = await run("node", script, *scene, env=env, cwd=home)
    assert ended.code == 0, ended.err
    return json.loads(ended.out)


async def test_a_message_comes_back_whole_and_is_charged(stage: Stage, tmp_path: Path) -> None:
    seen = await act(stage, tmp_path, "message")
    assert "How are you?" in seen["text"]
    assert seen["requestId"].startswith("req_")
    cost = seen["usage"]["input_tokens"] * 1500 + seen["usage"]["output_tokens"] * 7500
    assert await charges(stage, stage.alice) == [("exact", MODEL, cost)]
    assert await check_books(stage, stage.alice, OPENED) == cost


async def test_streams_give_the_same_text(stage: Stage, tmp_path: Path) -> None:
    seen = await act(stage, tmp_path, "stream")
    assert seen == {"same": True, "stop": "end_turn", "first": "message_start", "last": "message_stop"}
    assert [row[0] for row in await charges(stage, stage.alice)] == ["exact"] * 3
    await check_books(stage, stage.alice, OPENED)


async def test_a_tool_makes_its_round_trip(stage: Stage, tmp_path: Path) -> None:
    assert await act(stage, tmp_path, "tools") == {"first": "tool_use", "second": "end_turn"}
    assert len(await charges(stage, stage.alice)) == 2
    await check_books(stage, stage.alice, OPENED)


async def test_tokens_are_counted_and_models_listed_page_by_page_for_free(stage: Stage, tmp_path: Path) -> None:
    assert (await act(stage, tmp_path, "count", key=stage.bob.key))["input_tokens"] > 0
    seen = await act(stage, tmp_path, "models", key=stage.bob.key)
    assert {"claude-opus-4-6", "claude-sonnet-4-6", "claude-haiku-4-5"} <= set(seen["ids"])
    assert len(seen["ids"]) == len(set(seen["ids"]))
    assert seen["one"]["id"] == MODEL
    assert await charges(stage, stage.bob) == []


@pytest.mark.parametrize(
    ("fields", "error", "status", "kind", "words"),
    [
        ({"model": "gpt-4"}, "BadRequestError", 400, "invalid_request_error", "is not sold here"),
        ({"max_tokens": -5}, "BadRequestError", 400, "invalid_request_error", "got -5"),
        ({"messages": []}, "BadRequestError", 400, "invalid_request_error", "messages"),
    ],
)
async def test_refusals_are_the_right_exceptions(
    stage: Stage, tmp_path: Path, fields: dict[str, Any], error: str, status: int, kind: str, words: str
) -> None:
    seen = await act(stage, tmp_path, "error", json.dumps(fields))
    assert (seen["error"], seen["status"], seen["type"]) == (error, status, kind)
    assert words in seen["message"]
    assert seen["requestId"].startswith("req_")
    assert await stage.balance(stage.alice) == (OPENED, 0)


async def test_keys_and_balances_are_refused_once(stage: Stage, tmp_path: Path) -> None:
    seen = await act(stage, tmp_path, "error", "{}", key="sk-ant-api03-of-another-house")
    assert (seen["error"], seen["status"]) == ("AuthenticationError", 401)
    seen = await act(stage, tmp_path, "error", "{}", key=stage.bob.key)
    assert (seen["error"], seen["status"], seen["type"]) == ("PaymentRequiredError", 402, "insufficient_balance")
    assert dict(stage.gateway.metrics.responses) == {401: 1, 402: 1}


async def test_what_may_pass_is_tried_again_and_charged_once(tmp_path: Path) -> None:
    async with open_stage(tmp_path, limits="attempts = 1") as stage:
        assert await act(stage, tmp_path, "retried") == {"stop": "end_turn"}
        assert len(stage.simulator.requests) == 2
        assert [row[0] for row in await charges(stage, stage.alice) if row[2]] == ["exact"]
        await check_books(stage, stage.alice, OPENED)


async def test_a_stream_cut_by_the_upstream_throws_and_is_free(stage: Stage, tmp_path: Path) -> None:
    seen = await act(stage, tmp_path, "cut")
    assert seen["error"] == "APIError"
    assert "nothing was charged" in seen["message"]
    assert await check_books(stage, stage.alice, OPENED) == 0
