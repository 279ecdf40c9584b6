"""What users of OpenAI's Python SDK write; base URL and key come from the environment alone."""

import asyncio
import json
import sys
from typing import Any

import openai
from pydantic import BaseModel

MODEL = "claude-sonnet-4-6"
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Tell the weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


class City(BaseModel):
    name: str
    people: int


def saying(text: str) -> Any:
    return {"model": MODEL, "messages": [{"role": "user", "content": text}]}


def message() -> Any:
    said = openai.OpenAI().chat.completions.create(**saying("How are you?"))
    assert said.usage.total_tokens == said.usage.prompt_tokens + said.usage.completion_tokens
    return {"text": said.choices[0].message.content, "request_id": said._request_id}


async def message_async() -> Any:
    async with openai.AsyncOpenAI() as client:
        said = await client.chat.completions.create(**saying("How are you?"))
    return {"text": said.choices[0].message.content, "request_id": said._request_id}


def stream() -> Any:
    with openai.OpenAI().chat.completions.stream(**saying("How are you?")) as events:
        pieces = [event.delta for event in events if event.type == "content.delta"]
        final = events.get_final_completion().choices[0].message.content
    assert "".join(pieces) == final
    return {"text": final, "pieces": len(pieces)}


async def stream_async() -> Any:
    async with openai.AsyncOpenAI() as client:
        chunks = await client.chat.completions.create(
            **saying("How are you?"), stream=True, stream_options={"include_usage": True}
        )
        seen = [chunk async for chunk in chunks]
    assert seen[-1].usage.completion_tokens > 0
    pieces = [chunk.choices[0].delta.content or "" for chunk in seen if chunk.choices]
    return {"text": "".join(pieces), "pieces": len(pieces)}


def tool() -> Any:
    client = openai.OpenAI()
    asked = saying("Use the tool for Ghent")
    first = client.chat.completions.create(**asked, tools=[WEATHER]).choices[0]
    assert first.finish_reason == "tool_calls"
    (call,) = first.message.tool_calls
    city = json.loads(call.function.arguments)["city"]
    asked["messages"] += [first.message, {"role": "tool", "tool_call_id": call.id, "content": f"Sunny in {city}"}]
    second = client.chat.completions.create(**asked, tools=[WEATHER])
    return {"called": [city], "text": second.choices[0].message.content}


def structured() -> Any:
    said = openai.OpenAI().chat.completions.parse(**saying("Which city?"), response_format=City)
    return {"value": said.choices[0].message.parsed.model_dump()}


def models() -> Any:
    client = openai.OpenAI()
    return {"ids": [model.id for model in client.models.list()], "one": client.models.retrieve(MODEL).id}


def retry() -> Any:
    said = openai.OpenAI().chat.completions.create(**saying("[[sim fail_first=1 error=529]] How are you?"))
    return {"text": said.choices[0].message.content}


def refused() -> Any:
    try:
        openai.OpenAI().chat.completions.create(**saying("Hi") | {"model": "claude-hologram-9"})
    except openai.NotFoundError as error:
        return {"error": str(error)}


def poor() -> Any:
    try:
        openai.OpenAI().chat.completions.create(**saying("Hi"))
    except openai.APIStatusError as error:
        return {"error": str(error)}


seen = globals()[sys.argv[1]]()
print(json.dumps(asyncio.run(seen) if asyncio.iscoroutine(seen) else seen))
