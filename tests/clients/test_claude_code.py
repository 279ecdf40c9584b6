"""Claude Code from npm, in print mode, as its users set it up: two variables and nothing else."""

import json
import re
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest

from farebox.accounts.key_rules import Rules
from farebox.accounts.keys import change_key, find_key
from farebox.billing.budgets import period_start_us
from tests.clients.run import ENVS, Ended, charges, check_books, run, wanted
from tests.stage import Person, Stage, open_stage

CLAUDE = ENVS / "claude-code" / "node_modules" / "@anthropic-ai" / "claude-code-linux-x64" / "claude"
OPENED = 100 * 10**9
ANSWER = "This is the Farebox simulator answering as claude-opus-5-5"


async def say(stage: Stage, env: Mapping[str, str], home: Path, text: str = "say ok") -> Ended:
    return await run(wanted(CLAUDE), "-p", text, env={"ANTHROPIC_BASE_URL": stage.base_url, **env}, cwd=home)


def messages_sent(stage: Stage) -> int:
    return sum(1 for request in stage.simulator.requests if request.path == "/v1/messages")


CREDENTIALS = {
    "an API key": lambda key: {"ANTHROPIC_API_KEY": key},
    "an auth token": lambda key: {"ANTHROPIC_AUTH_TOKEN": key},
    "our key beside somebody else's token": lambda key: {
        "ANTHROPIC_API_KEY": key,
        "ANTHROPIC_AUTH_TOKEN": "sk-ant-oat01-of-a-subscription",
    },
    "our token beside somebody else's key": lambda key: {
        "ANTHROPIC_API_KEY": "sk-ant-api03-of-another-house",
        "ANTHROPIC_AUTH_TOKEN": key,
    },
}


@pytest.mark.parametrize("name", CREDENTIALS)
async def test_it_answers_with_its_default_model_and_is_charged(stage: Stage, tmp_path: Path, name: str) -> None:
    ended = await say(stage, CREDENTIALS[name](stage.alice.key), tmp_path)
    assert ended.code == 0, ended
    assert ANSWER in ended.out
    assert messages_sent(stage) == 1
    assert [(kind, model) for kind, model, _ in await charges(stage, stage.alice)] == [("exact", "claude-opus-5-5")]
    assert await check_books(stage, stage.alice, OPENED) > 0
    request = stage.simulator.requests[-1]
    assert request.query == "beta=true"
    assert all(b"sk-" not in value for _, value in request.headers)


async def test_two_dollars_are_enough_though_it_asks_for_128_000_tokens(stage: Stage, tmp_path: Path) -> None:
    carol = await stage.person("carol@example.com", 2)
    ended = await say(stage, {"ANTHROPIC_API_KEY": carol.key}, tmp_path)
    assert ended.code == 0, ended
    assert ANSWER in ended.out
    await check_books(stage, carol, 2 * 10**9)


@pytest.mark.parametrize(("percent", "warned_at"), [(10, None), (80, 0.75), (97, 0.95)])
async def test_it_warns_by_itself_when_much_of_what_its_key_may_spend_is_used(
    stage: Stage, tmp_path: Path, percent: int, warned_at: float | None
) -> None:
    store, clock = stage.gateway.store, stage.gateway.clock
    key = await find_key(store, stage.alice.key)
    await change_key(store, key, "k", Rules(limit_nanos=50 * 10**9, resets="monthly"), clock())
    spent = (percent * 5 * 10**8, period_start_us("monthly", clock()))
    await store.write([("UPDATE key_budget SET used_nanos = ?, since = ?", spent)])
    stage.gateway.gatehouse.forget_keys()
    env = {"ANTHROPIC_BASE_URL": stage.base_url, "ANTHROPIC_AUTH_TOKEN": stage.alice.key}
    env["CLAUDE_CODE_USE_GATEWAY"] = "1"
    args = ("-p", "say ok", "--output-format", "stream-json", "--verbose")
    ended = await run(wanted(CLAUDE), *args, env=env, cwd=tmp_path)
    assert ended.code == 0, ended
    events = [json.loads(line) for line in ended.out.splitlines() if "rate_limit_event" in line]
    assert [event["rate_limit_info"].get("surpassedThreshold") for event in events] == [warned_at]


async def test_the_turns_after_a_tool_are_served_as_well(stage: Stage, tmp_path: Path) -> None:
    ended = await say(stage, {"ANTHROPIC_API_KEY": stage.alice.key}, tmp_path, "[[sim tool]] look around")
    assert ended.code == 0, ended
    rows = await charges(stage, stage.alice)
    assert len(rows) == messages_sent(stage) > 1
    assert {row[0] for row in rows} == {"exact"}
    ((session,),) = await stage.rows("SELECT DISTINCT session FROM usage")
    assert session, "it names its session no more, by which its cost is summed and by which it is stopped"
    await check_books(stage, stage.alice, OPENED)


async def shown(stage: Stage, person: Person, env: Mapping[str, str], home: Path, words: str) -> int:
    """What the gateway says is what the terminal shows, word for word; answers after how many refusals."""
    ended = await say(stage, env, home)
    assert ended.code == 1
    assert re.fullmatch(words, ended.out.strip()), ended.out
    assert messages_sent(stage) == 0
    assert await charges(stage, person) == []
    return sum(count for status, count in stage.gateway.metrics.responses.items() if status >= 400)


async def test_an_empty_balance_is_told_word_for_word_after_one_request(stage: Stage, tmp_path: Path) -> None:
    words = (
        r"API Error: 402 your free balance is \$0\.00 and this call needs (\$\d+\.\d+) held: \1 short; "
        r"top up at http://[\d.:]+/dashboard/topup"
    )
    assert await shown(stage, stage.bob, {"ANTHROPIC_API_KEY": stage.bob.key}, tmp_path, words) == 1


async def test_a_model_that_is_not_sold_is_told_word_for_word(stage: Stage, tmp_path: Path) -> None:
    """Not after one request: on a 400 this version leaves out one beta after the other first, within half a second,
    whatever `x-should-retry` says."""
    sold = ", ".join(sorted(model.id for model in stage.gateway.config.models)[:30])
    words = re.escape(f"API Error: 400 model: 'claude-hologram-9' is not sold here; choose one of: {sold}")
    env = {"ANTHROPIC_API_KEY": stage.alice.key, "ANTHROPIC_MODEL": "claude-hologram-9"}
    assert 1 <= await shown(stage, stage.alice, env, tmp_path, words) <= 6


async def test_a_key_with_a_typo_is_told_after_one_request(stage: Stage, tmp_path: Path) -> None:
    before = stage.gateway.metrics.responses[401]
    ended = await say(stage, {"ANTHROPIC_API_KEY": stage.alice.key[:-1] + "_"}, tmp_path)
    assert ended.code == 1
    assert "a typo or a missing character shows" in ended.out
    assert stage.gateway.metrics.responses[401] == before + 1


async def test_an_answer_cut_by_the_upstream_is_free_and_said_so(stage: Stage, tmp_path: Path) -> None:
    knobs = "[[sim tokens=60 cut_after=8 events_per_chunk=1]]"
    ended = await say(stage, {"ANTHROPIC_API_KEY": stage.alice.key}, tmp_path, f"{knobs} say ok")
    assert ended.code == 1
    assert "the upstream broke off" in ended.out
    assert "nothing was charged" in ended.out
    rows = await charges(stage, stage.alice)
    assert rows
    assert {row[0] for row in rows} <= {"waived", "failed"}
    assert await check_books(stage, stage.alice, OPENED) == 0


async def test_an_overloaded_upstream_is_waited_out(stage: Stage, tmp_path: Path) -> None:
    ended = await say(stage, {"ANTHROPIC_API_KEY": stage.alice.key}, tmp_path, "[[sim fail_first=4 error=529]] say ok")
    assert ended.code == 0, ended
    assert ANSWER in ended.out
    assert [row[0] for row in await charges(stage, stage.alice) if row[2]] == ["exact"]
    await check_books(stage, stage.alice, OPENED)


@pytest.fixture
async def poor(tmp_path: Path) -> AsyncIterator[Stage]:
    async with open_stage(tmp_path, alice_usd=0.3) as opened:
        yield opened


async def test_money_that_runs_out_in_the_middle_is_told_in_the_gateway_s_words(poor: Stage, tmp_path: Path) -> None:
    text = "[[sim tokens=60000]] say ok"
    ended = await say(
        poor, {"ANTHROPIC_API_KEY": poor.alice.key, "CLAUDE_CODE_MAX_OUTPUT_TOKENS": "64000"}, tmp_path, text
    )
    assert ended.code == 1
    assert "top up at http" in ended.out
    posted, held = await poor.balance(poor.alice)
    assert (held, posted >= 0) == (0, True)


async def test_it_finds_the_models_that_are_sold(stage: Stage, tmp_path: Path) -> None:
    env = {"ANTHROPIC_API_KEY": stage.alice.key, "CLAUDE_CODE_ENABLE_GATEWAY_MODEL_DISCOVERY": "1"}
    ended = await say(stage, env, tmp_path)
    assert ended.code == 0, ended
    assert not [status for status in stage.gateway.metrics.responses if status >= 400]
