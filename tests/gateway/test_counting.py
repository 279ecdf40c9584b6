"""Token counts: the upstream's own wherever one counts, else an estimate that says so; and never money."""

import json
from typing import Any

import msgspec
import pytest

from farebox.http.client import Answer
from tests.gateway.play import envelope, message
from tests.stage import OpenStage, Stage
from tests.upstreams.kinds.chat.server import serving, whole

COUNT = "/api/proxy/v1/messages/count_tokens"
SIMULATOR = '[[upstreams]]\nname = "sim"\nkind = "simulator"\npriority = 9'
LONG = "It was the best of times, it was the worst of times. " * 30


async def count(stage: Stage, **fields: Any) -> tuple[Answer, Any]:
    answer = await stage.post(stage.bob, message(**fields), path=COUNT)
    return answer, json.loads(await answer.read(2**20))


def at(tokens: int, answer: Any) -> bool:
    """Tell whether an estimate is not far below what it should be, and not silly."""
    return bool(tokens <= answer["input_tokens"] <= 2 * tokens)


async def test_where_nobody_counts_the_answer_is_an_estimate_that_says_so(open_stage: OpenStage) -> None:
    async with serving(whole({})) as (server, upstreams), open_stage(upstreams=upstreams) as stage:
        answer, body = await count(stage, messages=[{"role": "user", "content": LONG}])
        assert (answer.status, answer.header(b"farebox-token-count")) == (200, b"estimated")
        assert body.keys() == {"input_tokens"}
        assert at(len(LONG) // 4, body)
        assert answer.header(b"content-type") == b"application/json"
        assert answer.header(b"request-id")
        assert answer.header(b"anthropic-ratelimit-requests-limit")
        assert server.heard == []
        assert await stage.rows("SELECT 1 FROM usage UNION ALL SELECT 1 FROM hold") == []


async def test_an_estimate_knows_pictures_documents_and_tools(open_stage: OpenStage) -> None:
    def block(kind: str, size: int) -> list[Any]:
        source = {"type": "base64", "media_type": "image/png", "data": "A" * size}
        return [{"role": "user", "content": [{"type": kind, "source": source}]}]

    async with serving(whole({})) as (_, upstreams), open_stage(upstreams=upstreams) as stage:
        small = (await count(stage))[1]["input_tokens"]
        picture = (await count(stage, messages=block("image", 1_000_000)))[1]["input_tokens"]
        page = (await count(stage, messages=block("document", 4_000)))[1]["input_tokens"]
        pages = (await count(stage, messages=block("document", 1_000_000)))[1]["input_tokens"]
        tools = (await count(stage, tools=[{"name": "a", "input_schema": {"type": "object"}}]))[1]["input_tokens"]
        told = (await count(stage, system=LONG))[1]["input_tokens"]
    assert small < 20
    assert picture - small in range(4_784, 4_900)
    assert page - small in range(2_500, 5_000)
    assert pages - small in range(20 * 2_500, 25 * 2_500)
    assert tools - small in range(1_000, 1_100)
    assert told - small in range(len(LONG) // 4, len(LONG) // 2)


async def test_a_count_goes_to_the_upstream_that_counts_and_the_conversation_stays(open_stage: OpenStage) -> None:
    """The first choice does not count, so another is asked; calls go to the first as before."""
    answered = {
        "id": "c", "object": "chat.completion", "created": 1, "model": "qwen3-coder",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11},
    }  # fmt: skip
    async with (
        serving(whole(answered)) as (server, first),
        open_stage(upstreams=f"{first}\n{SIMULATOR}") as stage,
    ):
        for _ in range(3):
            answer, body = await count(stage)
            assert (answer.status, answer.header(b"farebox-token-count")) == (200, None)
            assert body["input_tokens"] > 0
        assert [one.path for one in stage.simulator.requests] == ["/v1/messages/count_tokens"] * 3
        assert (await stage.ask(stage.alice))[0] == 200
        assert len(server.heard) == 1
        assert len(stage.simulator.requests) == 3


async def test_an_upstream_that_counts_and_fails_is_not_made_up_for(open_stage: OpenStage) -> None:
    async with open_stage(limits="attempts = 1") as stage:
        stage.simulator.knobs = "error=500"
        answer = await stage.post(stage.alice, message(), path=COUNT)
        kind, _ = envelope(await answer.read(2**20))
        assert (answer.status, kind) == (502, "upstream_error")
        assert answer.header(b"farebox-token-count") is None


async def test_what_a_call_would_be_refused_for_is_refused_where_it_is_estimated(open_stage: OpenStage) -> None:
    async with serving(whole({})) as (_, upstreams), open_stage(upstreams=upstreams) as stage:
        for fields in ({"thread": {"id": "t"}}, {"messages": [1]}, {"model": "nobody"}):
            answer = await stage.post(stage.alice, message(**fields), path=COUNT)
            assert (answer.status, envelope(await answer.read(2**20))[0]) == (400, "invalid_request_error")


async def test_an_estimate_lets_nobody_in_whose_balance_is_too_small(open_stage: OpenStage) -> None:
    """Where little is left the upstream's count may lower the bound; an estimate must not."""
    async with serving(whole({})) as (server, upstreams), open_stage(upstreams=upstreams, alice_usd=0.001) as stage:
        status, body = await stage.ask(stage.alice, LONG, max_tokens=1)
        assert (status, envelope(body)[0]) == (402, "insufficient_balance")
        assert server.heard == []


@pytest.mark.parametrize("asked", ["active", "retired", "deprecated"])
async def test_models_are_listed_by_their_stage(stage: Stage, asked: str) -> None:
    headers = [(b"x-api-key", stage.alice.key.encode()), (b"anthropic-version", b"2023-06-01")]
    target = f"/v1/models?limit=1000&lifecycle%5B%5D={asked}"
    answer = await stage.client.request("GET", target, headers, b"", first_byte_s=5)
    page = msgspec.json.decode(await answer.read(2**20))
    assert bool(page["data"]) is (asked == "active")
    assert all(model["lifecycle"] == "active" for model in page["data"])
    assert page["has_more"] is False


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "limit=x", "after_id=nobody", "lifecycle[]=new"])
async def test_a_page_of_models_that_cannot_be_is_refused(stage: Stage, query: str) -> None:
    headers = [(b"x-api-key", stage.alice.key.encode())]
    answer = await stage.client.request("GET", f"/v1/models?{query}", headers, b"", first_byte_s=5)
    assert (answer.status, envelope(await answer.read(2**20))[0]) == (400, "invalid_request_error")
