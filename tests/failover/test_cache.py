"""Balancing loses no cache read: conversations over three organisations read what they would with one upstream."""

import asyncio
import contextlib
import json
from typing import Any, Final

from tests.failover.faulty import three
from tests.gateway.play import upstream
from tests.stage import OpenStage, Stage

_PLAN: Final = """
[[plans]]
name = "all"
requests_per_minute = 100_000
tokens_per_minute = 100_000_000
concurrent = 99
top_up = 0
"""
_CONVERSATIONS: Final = 12
_TURNS: Final = 4
_LONG: Final = "The quick brown fox jumps over the lazy dog. " * 120


def _text(words: str, *, mark: bool) -> list[dict[str, Any]]:
    block: dict[str, Any] = {"type": "text", "text": words}
    return [{**block, "cache_control": {"type": "ephemeral"}} if mark else block]


async def _reads(stage: Stage, conversation: int) -> list[int]:
    """Play a conversation as a plain SDK client does, the cache marked at its last message; answers its cache reads."""
    said: list[tuple[str, str]] = []
    reads = []
    for turn in range(_TURNS):
        said.append(("user", f"{conversation}: {_LONG} {turn}"))
        last = len(said) - 1
        messages = [
            {"role": role, "content": _text(words, mark=number == last)} for number, (role, words) in enumerate(said)
        ]
        status, body = await stage.ask(stage.alice, messages=messages)
        answer = json.loads(body)
        assert status == 200, answer
        reads.append(answer["usage"]["cache_read_input_tokens"])
        said.append(("assistant", answer["content"][0]["text"]))
    return reads


async def _play(open_stage: OpenStage, upstreams: int) -> tuple[list[list[int]], int]:
    """Play all conversations at once; answers their reads, and how many upstreams had calls."""
    async with contextlib.AsyncExitStack() as stack:
        doors = (await stack.enter_async_context(three()))[:upstreams]
        ways = "".join(upstream(f"up{number}", door.port) for number, door in enumerate(doors))
        stage = await stack.enter_async_context(open_stage(_PLAN, upstreams=ways, alice_usd=0))
        stage.alice = await stage.person(f"carol{upstreams}@example.com", 100, plan="all")
        reads = await asyncio.gather(*(_reads(stage, number) for number in range(_CONVERSATIONS)))
        return reads, sum(one.calls > 0 for one in stage.parts.pool.upstreams)


async def test_no_cache_read_is_lost_by_balancing(open_stage: OpenStage) -> None:
    balanced, used = await _play(open_stage, 3)
    alone, _ = await _play(open_stage, 1)
    assert used == 3
    assert balanced == alone
    assert all(later > 0 for reads in alone for later in reads[1:])
