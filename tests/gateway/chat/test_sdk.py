"""OpenAI's own Python SDK, as it comes, against a running gateway: whole, streamed, with tools, parsed, refused."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from tests.gateway.play import USD, books, usage_rows
from tests.stage import MODEL, Person, Stage

TOOL: Final[Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Tell the weather of a place",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
    },
}


def client_of(stage: Stage, person: Person) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{stage.base_url}/v1", api_key=person.key, max_retries=0)


@pytest.fixture
async def client(stage: Stage) -> AsyncIterator[AsyncOpenAI]:
    async with client_of(stage, stage.alice) as made:
        yield made


def said(text: str) -> Any:
    return [{"role": "system", "content": "Be short."}, {"role": "user", "content": text}]


async def test_a_whole_answer(stage: Stage, client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model=MODEL, messages=said("[[sim echo]] Grüße 🦦"))
    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    assert answer._request_id is not None
    assert answer._request_id.removeprefix("req_") == answer.id.removeprefix("chatcmpl-")
    assert "Grüße 🦦" in (answer.choices[0].message.content or "")
    assert answer.choices[0].finish_reason == "stop"
    row = await books(stage, stage.alice)
    assert answer.usage is not None
    assert (row["input_tokens"], row["output_tokens"]) == (answer.usage.prompt_tokens, answer.usage.completion_tokens)
    assert row["kind"] == "exact"


async def test_the_same_without_asyncio(stage: Stage) -> None:
    def call() -> tuple[str, str]:
        with OpenAI(base_url=f"{stage.base_url}/v1", api_key=stage.alice.key) as client:
            whole = client.chat.completions.create(model=MODEL, messages=said("[[sim echo]] one"))
            stream = client.chat.completions.create(model=MODEL, messages=said("[[sim echo]] two"), stream=True)
            pieces = [chunk.choices[0].delta.content or "" for chunk in stream]
            return whole.choices[0].message.content or "", "".join(pieces)

    one, two = await asyncio.to_thread(call)
    assert "one" in one
    assert "two" in two
    await books(stage, stage.alice, calls=2)


async def test_a_stream_with_its_usage(stage: Stage, client: AsyncOpenAI) -> None:
    async with client.chat.completions.stream(
        model=MODEL, messages=said("[[sim tokens=50 cache_read=700]]"), stream_options={"include_usage": True}
    ) as stream:
        events = [event.type async for event in stream]
        answer = await stream.get_final_completion()
    assert events.count("content.delta") > 5
    row = await books(stage, stage.alice)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == row["output_tokens"]
    assert answer.usage.prompt_tokens == row["input_tokens"] + row["cache_read_tokens"]
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 700


@pytest.mark.parametrize("stream", [False, True])
async def test_tools_there_and_back(stage: Stage, client: AsyncOpenAI, *, stream: bool) -> None:
    messages = said("[[sim tool=get_weather]] The weather?")
    async with client.chat.completions.stream(model=MODEL, messages=messages, tools=[TOOL]) as streamed:
        whole: Any = await streamed.get_final_completion()
    if not stream:
        whole = await client.chat.completions.create(model=MODEL, messages=messages, tools=[TOOL])
    assert whole.choices[0].finish_reason == "tool_calls"
    (call,) = whole.choices[0].message.tool_calls
    assert call.function.name == "get_weather"
    result: Any = {"role": "tool", "tool_call_id": call.id, "content": "Rain"}
    turn: Any = whole.choices[0].message.model_dump(exclude_none=True)
    after = await client.chat.completions.create(model=MODEL, messages=[*messages, turn, result], tools=[TOOL])
    assert after.choices[0].finish_reason in {"stop", "tool_calls"}
    assert all(row["kind"] == "exact" for row in await usage_rows(stage, stage.alice))


async def test_models_are_listed_and_found(stage: Stage, client: AsyncOpenAI) -> None:
    models = [model async for model in client.models.list()]
    assert {model.id for model in models} == set(stage.parts.prices.now.models)
    assert all(model.object == "model" and model.created > 0 and model.owned_by for model in models)
    assert (await client.models.retrieve(MODEL)).id == MODEL
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("gpt-9")


async def test_refusals_are_its_own_errors(stage: Stage, client: AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        await client.chat.completions.create(model="gpt-9", messages=said("Hello"))
    assert unknown.value.code == "model_not_found"
    assert MODEL in unknown.value.message
    with pytest.raises(openai.APIStatusError) as poor:
        await client_of(stage, stage.bob).chat.completions.create(model=MODEL, messages=said("Hello"))
    assert (poor.value.status_code, poor.value.code) == (402, "insufficient_quota")
    assert "top up at" in poor.value.message
    wrong = Person(0, "", "sk-cc-wrong")
    with pytest.raises(openai.AuthenticationError) as stranger:
        await client_of(stage, wrong).chat.completions.create(model=MODEL, messages=said("Hello"))
    assert stranger.value.code == "invalid_api_key"
    with pytest.raises(openai.BadRequestError) as hot:
        await client.chat.completions.create(model=MODEL, messages=said("Hello"), temperature=1.5)
    assert hot.value.param == "temperature"
    assert await stage.balance(stage.alice) == (100 * USD, 0)


async def test_an_error_in_a_stream_is_raised(client: AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(model=MODEL, messages=said("[[sim error_after=5]]"), stream=True)
    with pytest.raises(openai.APIError):
        async for _ in stream:
            pass
