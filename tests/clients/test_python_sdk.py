"""The official Python SDK, sync and async, current and older, against the gateway: nothing but base URL and key."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import anthropic
import pytest

from tests.clients.run import ENVS, HERE, charges, check_books, run, wanted
from tests.stage import MODEL, Stage, open_stage

OPENED = 100 * 10**9
SAID: list[Any] = [{"role": "user", "content": "How are you?"}]
WEATHER: Any = {
    "name": "get_weather",
    "description": "Tell the weather.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


class Sdk:
    """A client of either kind; `call` brings both to one way of calling."""

    def __init__(self, kind: str, stage: Stage) -> None:
        self.kind = kind
        self.stage = stage

    def client(self, key: str, **settings: Any) -> Any:
        made = anthropic.Anthropic if self.kind == "sync" else anthropic.AsyncAnthropic
        return made(base_url=self.stage.base_url, api_key=key, **settings)

    async def call(self, act: Callable[[Any], Any], key: str | None = None, **settings: Any) -> Any:
        client = self.client(key or self.stage.alice.key, **settings)
        if self.kind == "sync":
            with client:
                return await asyncio.to_thread(act, client)
        async with client:
            return await act(client)


@pytest.fixture(params=["sync", "async"])
def sdk(request: pytest.FixtureRequest, stage: Stage) -> Sdk:
    return Sdk(request.param, stage)


async def test_a_message_comes_back_whole_and_is_charged(sdk: Sdk) -> None:
    message = await sdk.call(lambda c: c.messages.create(model=MODEL, max_tokens=300, messages=SAID))
    assert "How are you?" in message.content[0].text
    assert message.model == MODEL
    assert message._request_id.startswith("req_")
    cost = -(-(message.usage.input_tokens * 1500 + message.usage.output_tokens * 7500) // 1)
    assert await charges(sdk.stage, sdk.stage.alice) == [("exact", MODEL, cost)]
    assert await check_books(sdk.stage, sdk.stage.alice, OPENED) == cost


async def test_the_body_arrives_as_the_sdk_wrote_it(sdk: Sdk) -> None:
    await sdk.call(
        lambda c: c.messages.create(
            model=MODEL, max_tokens=300, messages=SAID, extra_body={"hologram": {"é": [1.0, 2e3]}}
        )
    )
    sent = json.loads(sdk.stage.simulator.requests[-1].body)
    assert sent["hologram"] == {"é": [1.0, 2e3]}
    headers = dict(sdk.stage.simulator.requests[-1].headers)
    assert headers[b"anthropic-version"] == b"2026-10-21"
    assert sdk.stage.alice.key.encode() not in b" ".join(headers.values())


async def test_a_stream_gives_the_same_text_event_by_event_and_as_a_whole(stage: Stage) -> None:
    async with anthropic.AsyncAnthropic(base_url=stage.base_url, api_key=stage.alice.key) as client:
        whole = await client.messages.create(model=MODEL, max_tokens=300, messages=SAID)
        async with client.messages.stream(model=MODEL, max_tokens=300, messages=SAID) as stream:
            text = "".join([piece async for piece in stream.text_stream])
            final = await stream.get_final_message()
    assert whole.content[0].type == "text"
    assert text == whole.content[0].text
    assert final.usage.output_tokens == whole.usage.output_tokens
    assert final.stop_reason == "end_turn"
    assert [kind for kind, _, _ in await charges(stage, stage.alice)] == ["exact", "exact"]
    await check_books(stage, stage.alice, OPENED)


async def test_the_sync_stream_and_raw_events_work_as_well(stage: Stage) -> None:
    def talk() -> tuple[str, list[str]]:
        with anthropic.Anthropic(base_url=stage.base_url, api_key=stage.alice.key) as client:
            with client.messages.stream(model=MODEL, max_tokens=300, messages=SAID) as stream:
                text = "".join(stream.text_stream)
            raw = client.messages.create(model=MODEL, max_tokens=300, messages=SAID, stream=True)
            return text, [event.type for event in raw]

    text, events = await asyncio.to_thread(talk)
    assert "How are you?" in text
    assert events[0] == "message_start"
    assert events[-2:] == ["message_delta", "message_stop"]
    await check_books(stage, stage.alice, OPENED)


async def test_a_stream_left_early_is_charged_and_holds_nothing(tmp_path: Path) -> None:
    async with open_stage(tmp_path, speed=200, limits="drain_s = 0") as stage:
        async with anthropic.AsyncAnthropic(base_url=stage.base_url, api_key=stage.alice.key) as client:
            said: list[Any] = [{"role": "user", "content": "[[sim tokens=2000]]"}]
            async with client.messages.stream(model=MODEL, max_tokens=3000, messages=said) as stream:
                async for _ in stream.text_stream:
                    break
        async with asyncio.timeout(10):
            while not (rows := await charges(stage, stage.alice)):  # noqa: ASYNC110  the gateway's own doing
                await asyncio.sleep(0.02)
        assert rows[0][0] == "estimated"
        assert rows[0][2] > 0
        await check_books(stage, stage.alice, OPENED)


async def test_a_tool_makes_its_round_trip(sdk: Sdk) -> None:
    asked: list[Any] = [{"role": "user", "content": "Use the tool for Ghent"}]
    first = await sdk.call(lambda c: c.messages.create(model=MODEL, max_tokens=500, messages=asked, tools=[WEATHER]))
    assert first.stop_reason == "tool_use"
    use = next(block for block in first.content if block.type == "tool_use")
    result: Any = {"type": "tool_result", "tool_use_id": use.id, "content": "Sunny, 21 degrees"}
    told = [*asked, {"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
    second = await sdk.call(lambda c: c.messages.create(model=MODEL, max_tokens=500, messages=told, tools=[WEATHER]))
    assert second.stop_reason == "end_turn"
    assert len(await charges(sdk.stage, sdk.stage.alice)) == 2
    await check_books(sdk.stage, sdk.stage.alice, OPENED)


async def test_tokens_are_counted_and_never_charged(sdk: Sdk) -> None:
    message = await sdk.call(lambda c: c.messages.create(model=MODEL, max_tokens=10, messages=SAID))
    count = await sdk.call(lambda c: c.messages.count_tokens(model=MODEL, messages=SAID))
    assert count.input_tokens == message.usage.input_tokens
    free = await sdk.call(lambda c: c.messages.count_tokens(model=MODEL, messages=SAID), key=sdk.stage.bob.key)
    assert free.input_tokens == count.input_tokens
    assert len(await charges(sdk.stage, sdk.stage.alice)) == 1


async def test_models_are_listed_page_by_page_and_looked_up(sdk: Sdk) -> None:
    client = sdk.client(sdk.stage.alice.key)
    if sdk.kind == "sync":
        ids = await asyncio.to_thread(lambda: [model.id for model in client.models.list(limit=2)])
    else:
        ids = [model.id async for model in client.models.list(limit=2)]
    assert len(ids) == len(set(ids)) > 4
    assert {"claude-opus-4-6", "claude-sonnet-4-6", "claude-haiku-4-5"} <= set(ids)
    page = await sdk.call(lambda c: c.models.list(limit=2, before_id=ids[3]))
    assert [model.id for model in page.data] == ids[1:3]
    assert page.has_more
    model = await sdk.call(lambda c: c.models.retrieve(MODEL))
    assert (model.id, model.type, model.max_input_tokens) == (MODEL, "model", 200_000)
    with pytest.raises(anthropic.NotFoundError):
        await sdk.call(lambda c: c.models.retrieve("claude-hologram-9"))


def ask(**fields: Any) -> Callable[[Any], Any]:
    return lambda client: client.messages.create(**{"model": MODEL, "max_tokens": 10, "messages": SAID} | fields)


async def test_each_refusal_is_the_right_exception_with_the_gateway_s_words(sdk: Sdk) -> None:
    """And is refused once: what cannot help is not tried again (`max_retries` stays at its default)."""
    cases: list[tuple[type[anthropic.APIStatusError], str | None, Callable[[Any], Any], str]] = [
        (anthropic.AuthenticationError, "sk-ant-api03-of-another-house", ask(), "sk-cc-"),
        (anthropic.PaymentRequiredError, sdk.stage.bob.key, ask(), "/dashboard/topup"),
        (anthropic.BadRequestError, None, ask(model="gpt-4"), "is not sold here"),
        (anthropic.BadRequestError, None, ask(max_tokens=-5), "got -5"),
        (anthropic.BadRequestError, None, ask(extra_body={"temperature": 2}), "temperature must be 0…1"),
        (anthropic.NotFoundError, None, lambda c: c.get("/v1/hologram", cast_to=object), "nothing at"),
        (
            anthropic.RequestBodyEncodingUnsupportedError,
            None,
            ask(extra_headers={"content-encoding": "zstd"}),
            "compressed",
        ),
    ]
    for expected, key, act, words in cases:
        before = sum(sdk.stage.gateway.metrics.responses.values())
        with pytest.raises(expected) as raised:
            await sdk.call(act, key=key)
        assert words in raised.value.message
        assert raised.value.request_id is not None
        assert sum(sdk.stage.gateway.metrics.responses.values()) == before + 1
    assert await charges(sdk.stage, sdk.stage.alice) == []
    assert await sdk.stage.balance(sdk.stage.alice) == (OPENED, 0)


async def test_the_type_of_402_is_insufficient_balance(sdk: Sdk) -> None:
    with pytest.raises(anthropic.PaymentRequiredError) as raised:
        await sdk.call(ask(), key=sdk.stage.bob.key)
    body: Any = raised.value.body
    assert body["error"]["type"] == "insufficient_balance"
    assert body["request_id"] == raised.value.request_id


@pytest.fixture
async def strict(tmp_path: Path) -> AsyncIterator[Stage]:
    """One try upstream for each request, so that what is tried again is the client's doing."""
    async with open_stage(tmp_path, limits="attempts = 1") as opened:
        yield opened


@pytest.mark.parametrize(("kind", "error"), [("sync", "529"), ("async", "500"), ("async", "429; retry_after=0")])
async def test_what_may_pass_is_tried_again_by_the_sdk_and_charged_once(strict: Stage, kind: str, error: str) -> None:
    said = [{"role": "user", "content": f"[[sim fail_first=1; error={error}]] Hello"}]
    message = await Sdk(kind, strict).call(ask(messages=said))
    assert message.stop_reason == "max_tokens"
    assert len(strict.simulator.requests) == 2
    assert [row[0] for row in await charges(strict, strict.alice) if row[2]] == ["exact"]
    await check_books(strict, strict.alice, OPENED)


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_an_upstream_that_stays_broken_is_a_server_error_and_free(strict: Stage, kind: str) -> None:
    said = [{"role": "user", "content": "[[sim close_before]]"}]
    with pytest.raises(anthropic.InternalServerError) as raised:
        await Sdk(kind, strict).call(ask(messages=said), max_retries=1)
    assert raised.value.status_code == 502
    assert await check_books(strict, strict.alice, OPENED) == 0


async def test_a_stream_cut_by_the_upstream_raises_and_is_free(stage: Stage) -> None:
    said: list[Any] = [{"role": "user", "content": "[[sim tokens=60 cut_after=8 events_per_chunk=1]]"}]
    async with anthropic.AsyncAnthropic(base_url=stage.base_url, api_key=stage.alice.key) as client:
        with pytest.raises(anthropic.APIStatusError, match="nothing was charged"):
            async with client.messages.stream(model=MODEL, max_tokens=300, messages=said) as stream:
                await stream.get_final_message()
    assert await check_books(stage, stage.alice, OPENED) == 0


async def test_the_rate_limit_is_a_rate_limit_error_with_its_headers(tmp_path: Path) -> None:
    async with open_stage(tmp_path) as stage:
        carol = await stage.person("carol@example.com", 1, plan="free")
        async with anthropic.AsyncAnthropic(base_url=stage.base_url, api_key=carol.key, max_retries=0) as client:
            answers = [await ask()(client.with_options(max_retries=0)) for _ in range(10)]
            assert all(answer.content for answer in answers)
            with pytest.raises(anthropic.RateLimitError) as raised:
                await ask()(client)
        headers = raised.value.response.headers
        assert headers["anthropic-ratelimit-requests-limit"] == "10"
        assert headers["anthropic-ratelimit-requests-remaining"] == "0"
        assert 1 <= int(headers["retry-after"]) <= 60


async def test_the_older_sdk_that_sends_x_api_key_works_untouched(stage: Stage, tmp_path: Path) -> None:
    python = wanted(ENVS / "anthropic-1" / "bin" / "python")
    env = {
        "ANTHROPIC_BASE_URL": stage.base_url,
        "ANTHROPIC_API_KEY": stage.alice.key,
    }
    ended = await run(python, HERE / "envs" / "anthropic-1" / "older.py", env=env, cwd=tmp_path)
    assert ended.code == 0, ended.err
    said = json.loads(ended.out)
    assert said["version"] == "1.17.0"
    assert "How are you?" in said["text"]
    assert said["streamed"] == said["text"]
    assert said["counted"] > 0
    assert said["error"] == "BadRequestError"
    assert MODEL in said["models"]
    versions = {dict(request.headers)[b"anthropic-version"] for request in stage.simulator.requests}
    assert versions == {b"2023-06-01"}
    assert len(await charges(stage, stage.alice)) == 3
    await check_books(stage, stage.alice, OPENED)


async def test_credentials_in_either_header_or_both_find_the_account(stage: Stage) -> None:
    """As SDKs of all ages and Claude Code send them: one header, both alike, or ours beside somebody else's."""
    key = stage.alice.key
    for headers in (
        {"x-api-key": key, "authorization": ""},
        {"authorization": f"Bearer {key}"},
        {"authorization": f"bearer {key}", "x-api-key": key},
        {"authorization": "Bearer sk-ant-oat01-of-a-subscription", "x-api-key": key},
        {"authorization": f"Bearer {key}", "x-api-key": "sk-ant-api03-of-another-house"},
        {"authorization": f"Bearer {key}", "x-api-key": ""},
    ):
        async with anthropic.AsyncAnthropic(base_url=stage.base_url, api_key="unused") as client:
            await ask(extra_headers=headers)(client)
    assert len(await charges(stage, stage.alice)) == 6
    assert all(key.encode() not in value for r in stage.simulator.requests for _, value in r.headers)
    assert all(b"sk-ant" not in value for r in stage.simulator.requests for _, value in r.headers)
