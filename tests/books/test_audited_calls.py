"""Whatever a gateway books, the audit prices again to the same nano-dollar."""

import asyncio

from farebox.billing.usage import Line, Usage
from farebox.books.audit import audit
from farebox.gateway.call import _detail
from tests.stage import Stage

KNOBS = (
    "tokens=300", "think=64", "hidden_think=64", "searches", "refusal", "refusal=7", "iterations",
    "refusal iterations", "fallback", "model_answered=unheard-of", "model_answered=claude-haiku-4-5",
    "geo=us", "tier=batch", "speed=fast", "unknown_usage", "cache_read=900 cache_write_5m=80 cache_write_1h=7",
    "many_deltas", "cut_after=9", "error_after=9",
    "truncate", "no_usage", "no_usage=delta", "error=400", "error=529", "bad_json", "usage_output=100000",
)  # fmt: skip


async def test_every_kind_of_call_passes_the_audit(stage: Stage) -> None:
    tools = [{"type": "web_search_20250305", "name": "web_search", "max_uses": 3}]
    for stream in (False, True):
        calls = [stage.ask(stage.alice, f"[[sim {knobs}]] hello", stream=stream) for knobs in KNOBS]
        calls.append(stage.ask(stage.alice, "search for it", stream=stream, tools=tools))
        await asyncio.gather(*calls)
    kinds = {row[0] for row in await stage.rows("SELECT DISTINCT kind FROM usage")}
    assert kinds >= {"exact", "waived", "failed"}
    assert (await stage.rows("SELECT count(*) FROM usage WHERE detail IS NOT NULL"))[0][0] >= 8
    assert [check for check in await audit(stage.gateway.store) if not check.ok] == []


def test_one_step_by_another_model_than_the_answers_is_kept_in_detail() -> None:
    """Its columns would say the tokens, but not whose price they have."""
    assert _detail(Usage((Line("claude-opus-4-6", 5),)), "claude-opus-4-6") is None
    assert _detail(Usage((Line("claude-haiku-4-5", 5),)), "claude-opus-4-6") is not None
