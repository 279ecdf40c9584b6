"""Claude Code from npm at an upstream that speaks Chat Completions: translated, it works as ever, tools included."""

import json
from pathlib import Path

from tests.clients.run import charges, run, wanted
from tests.clients.test_claude_code import CLAUDE
from tests.gateway.play import usage_rows
from tests.stage import open_stage
from tests.upstreams.kinds.chat.recorded import DONE, call, chunk, counted
from tests.upstreams.kinds.chat.server import asked, serving, streamed

MODELS = "claude-opus-5-5 claude-haiku-5-5 claude-sonnet-5-5"


async def test_it_answers(tmp_path: Path) -> None:
    told = streamed(
        chunk({"role": "assistant", "content": ""}), chunk({"reasoning": "hm"}), chunk({"content": "Ahoy from qwen"})
    )
    told += [chunk({}, "stop"), chunk(usage=counted(9000, 12, prompt_tokens_details={"cached_tokens": 8000})), DONE]
    async with (
        serving(told, models=MODELS, output_tokens="32000") as (server, up),
        open_stage(tmp_path, upstreams=up) as stage,
    ):
        env = {"ANTHROPIC_BASE_URL": stage.base_url, "ANTHROPIC_AUTH_TOKEN": stage.alice.key}
        ended = await run(wanted(CLAUDE), "-p", "say ok", env=env, cwd=tmp_path)
        assert ended.code == 0, ended
        assert ended.out.strip() == "Ahoy from qwen"
        assert [(kind, model) for kind, model, _ in await charges(stage, stage.alice)] == [("exact", "claude-opus-5-5")]
        row = (await usage_rows(stage, stage.alice))[0]
        assert (row["input_tokens"], row["cache_read_tokens"], row["output_tokens"]) == (1000, 8000, 12)
        (body,) = asked(server)
        assert body["max_tokens"] == 32000
        assert {message["role"] for message in body["messages"]} >= {"system", "user"}
        assert any(tool["function"]["name"] == "Read" for tool in body["tools"])


async def test_two_tools_at_once_are_used_and_answered(tmp_path: Path) -> None:
    """Their calls interleave in the chunks, as no real API would do it, and both files are read."""
    (tmp_path / "one.txt").write_text("the first is plum")
    (tmp_path / "two.txt").write_text("the second is fig")
    paths = [json.dumps({"file_path": str(tmp_path / name)}) for name in ("one.txt", "two.txt")]
    pieces = [call(0, "", "call_1", "Read"), call(1, "", "call_2", "Read")]
    pieces += [call(0, paths[0][:9]), call(1, paths[1][:9]), call(1, paths[1][9:]), call(0, paths[0][9:])]
    first = streamed(*map(chunk, pieces), chunk({}, "tool_calls", usage=counted(9000, 60)), DONE)
    last = streamed(chunk({"content": "Plum and fig"}), chunk({}, "stop", usage=counted(9500, 5)), DONE)
    async with (
        serving(first, last, models=MODELS, output_tokens="32000") as (server, up),
        open_stage(tmp_path, upstreams=up) as stage,
    ):
        env = {"ANTHROPIC_BASE_URL": stage.base_url, "ANTHROPIC_API_KEY": stage.alice.key}
        ended = await run(wanted(CLAUDE), "-p", "read both", env=env, cwd=tmp_path)
        assert ended.code == 0, ended
        assert ended.out.strip() == "Plum and fig"
        bodies = asked(server)
        answers = {one["tool_call_id"]: one["content"] for one in bodies[-1]["messages"] if one["role"] == "tool"}
        assert "the first is plum" in answers["call_1"]
        assert "the second is fig" in answers["call_2"]
        assert [kind for kind, _, _ in await charges(stage, stage.alice)] == ["exact", "exact"]
