"""What users of the official Python SDK write, sync and async; base URL and key come from the environment alone."""

import asyncio
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import anthropic
from pydantic import BaseModel

MODEL = "claude-sonnet-4-6"
SIZE: Any = {"model": MODEL, "max_tokens": 500}


def saying(text: str) -> Any:
    return {**SIZE, "messages": [{"role": "user", "content": text}]}


class City(BaseModel):
    name: str
    people: int


called: list[str] = []


@anthropic.beta_tool
def get_weather(city: str) -> str:
    """Tell the weather.

    Args:
        city: Where.
    """
    called.append(city)
    return f"Sunny in {city}"


@anthropic.beta_async_tool
async def get_weather_async(city: str) -> str:
    """Tell the weather.

    Args:
        city: Where.
    """
    called.append(city)
    return f"Sunny in {city}"


def message() -> Any:
    said = anthropic.Anthropic().messages.create(**saying("How are you?"))
    return {"text": said.content[0].text, "request_id": said._request_id}


async def message_async() -> Any:
    async with anthropic.AsyncAnthropic() as client:
        said = await client.messages.create(**saying("How are you?"))
    return {"text": said.content[0].text, "request_id": said._request_id}


def stream() -> Any:
    with anthropic.Anthropic().messages.stream(**saying("How are you?")) as events:
        pieces = list(events.text_stream)
        final = events.get_final_message()
    assert "".join(pieces) == final.content[0].text
    return {"text": final.content[0].text, "pieces": len(pieces)}


async def stream_async() -> Any:
    async with anthropic.AsyncAnthropic() as client, client.messages.stream(**saying("How are you?")) as events:
        kinds = [event.type async for event in events]
        final = await events.get_final_message()
    assert {"message_start", "text", "content_block_stop", "message_stop"} <= set(kinds)
    return {"text": final.content[0].text, "pieces": kinds.count("text")}


def tool() -> Any:
    runner = anthropic.Anthropic().beta.messages.tool_runner(**saying("Use the tool for Ghent"), tools=[get_weather])
    return {"called": called, "text": runner.until_done().content[0].text}


async def tool_async() -> Any:
    async with anthropic.AsyncAnthropic() as client:
        runner = client.beta.messages.tool_runner(**saying("Use the tool for Ghent"), tools=[get_weather_async])
        return {"text": (await runner.until_done()).content[0].text, "called": called}


def structured() -> Any:
    said = anthropic.Anthropic().messages.parse(**saying("Which city?"), output_format=City)
    assert isinstance(said.parsed_output, City)
    return {"value": said.parsed_output.model_dump()}


async def structured_async() -> Any:
    async with anthropic.AsyncAnthropic() as client:
        said = await client.messages.parse(**saying("Which city?"), output_format=City)
    assert isinstance(said.parsed_output, City)
    return {"value": said.parsed_output.model_dump()}


def thinking() -> Any:
    asked = {**saying("How are you?"), "max_tokens": 3000, "thinking": {"type": "enabled", "budget_tokens": 1024}}
    with anthropic.Anthropic().messages.stream(**asked) as events:
        first = events.get_final_message()
    thought = next(block for block in first.content if block.type == "thinking")
    turns = [*asked["messages"], {"role": "assistant", "content": first.content}, *saying("And now?")["messages"]]
    second = anthropic.Anthropic().messages.create(**{**asked, "messages": turns})
    return {"thought": thought.thinking, "text": second.content[-1].text}


def count() -> Any:
    return {
        "tokens": anthropic.Anthropic()
        .messages.count_tokens(model=MODEL, messages=saying("Hi")["messages"])
        .input_tokens
    }


def models() -> Any:
    client = anthropic.Anthropic()
    return {"ids": [model.id for model in client.models.list(limit=3)], "one": client.models.retrieve(MODEL).id}


def beta() -> Any:
    asked = {**saying("How are you?"), "betas": ["context-management-2025-06-27"]}
    edits: Any = {"edits": [{"type": "clear_tool_uses_20250919"}]}
    client = anthropic.Anthropic()
    said = client.beta.messages.create(**asked, context_management=edits)
    tokens = client.beta.messages.count_tokens(model=MODEL, messages=asked["messages"], betas=asked["betas"])
    return {"text": said.content[0].text, "tokens": tokens.input_tokens}


def batch() -> Any:
    client = anthropic.Anthropic()
    good, bad = saying("How are you?"), saying("[[sim error=400]] Hi")
    items: Any = [{"custom_id": "good", "params": good}, {"custom_id": "bad", "params": bad}]
    made = client.messages.batches.create(requests=items)
    while made.processing_status != "ended":
        time.sleep(0.1)
        made = client.messages.batches.retrieve(made.id)
    results = {one.custom_id: one.result for one in client.messages.batches.results(made.id)}
    listed = made.id in [one.id for one in client.messages.batches.list()]
    return {
        "status": made.processing_status,
        "results": {name: result.type for name, result in results.items()},
        "text": results["good"].message.content[0].text,
        "listed": listed,
    }


def files() -> Any:
    client = anthropic.Anthropic()
    betas: Any = ["files-api-2025-04-14"]
    made = client.beta.files.upload(file=("day.txt", b"What a quiet day.", "text/plain"), betas=betas)
    source: Any = {"type": "document", "source": {"type": "file", "file_id": made.id}}
    asked: Any = {**saying("How are you?"), "betas": betas}
    asked["messages"] = [{"role": "user", "content": [source, {"type": "text", "text": "How are you?"}]}]
    said = client.beta.messages.create(**asked)
    listed = made.id in [one.id for one in client.beta.files.list(betas=betas)]
    client.beta.files.delete(made.id, betas=betas)
    gone = made.id not in [one.id for one in client.beta.files.list(betas=betas)]
    return {"id": made.id, "size": made.size_bytes, "text": said.content[0].text, "listed": listed, "gone": gone}


def retry() -> Any:
    said = anthropic.Anthropic().messages.create(**saying("[[sim fail_first=1 error=529]] How are you?"))
    return {"text": said.content[0].text}


def refused() -> Any:
    try:
        anthropic.Anthropic().messages.create(**{**saying("Hi"), "model": "claude-hologram-9"})
    except anthropic.BadRequestError as error:
        return {"error": str(error)}


def poor() -> Any:
    try:
        anthropic.Anthropic().messages.create(**saying("Hi"))
    except anthropic.APIStatusError as error:
        return {"error": str(error)}


SCENES: dict[str, Callable[[], Any]] = {
    scene.__name__: scene
    for scene in (
        message, message_async, stream, stream_async, tool, tool_async, structured, structured_async,
        thinking, count, models, beta, batch, files, retry, refused, poor,
    )
}  # fmt: skip
seen = SCENES[sys.argv[1]]()
print(json.dumps(asyncio.run(seen) if asyncio.iscoroutine(seen) else seen))
