"""What users of the LiteLLM library write; base URL and key come from the environment alone."""

import asyncio
import json
import sys
from typing import Any

import litellm
from pydantic import BaseModel

MODEL = "anthropic/claude-sonnet-4-6"
WEATHER = {
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


def said(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def message() -> Any:
    answer = litellm.completion(MODEL, said("How are you?"), max_tokens=500)
    assert answer.usage.completion_tokens > 0
    return {"text": answer.choices[0].message.content}


def message_async() -> Any:
    answer = asyncio.run(litellm.acompletion(MODEL, said("How are you?"), max_tokens=500))
    return {"text": answer.choices[0].message.content}


def stream() -> Any:
    pieces = [
        piece.choices[0].delta.content or ""
        for piece in litellm.completion(MODEL, said("How are you?"), max_tokens=500, stream=True)
    ]
    return {"text": "".join(pieces), "pieces": len(pieces)}


def tool() -> Any:
    turns = said("Use the tool for Ghent")
    first = litellm.completion(MODEL, turns, max_tokens=500, tools=[WEATHER]).choices[0].message
    (call,) = first.tool_calls
    city = json.loads(call.function.arguments)["city"]
    turns += [first, {"role": "tool", "tool_call_id": call.id, "content": f"Sunny in {city}"}]
    second = litellm.completion(MODEL, turns, max_tokens=500, tools=[WEATHER])
    return {"called": [city], "text": second.choices[0].message.content}


def structured() -> Any:
    answer = litellm.completion(MODEL, said("Which city?"), max_tokens=500, response_format=City)
    return {"value": City.model_validate_json(answer.choices[0].message.content).model_dump()}


def messages_api() -> Any:
    """Its own front for the Messages API."""
    answer: Any = asyncio.run(litellm.anthropic_messages(messages=said("How are you?"), model=MODEL, max_tokens=500))
    return {"text": answer["content"][0]["text"]}


def retry() -> Any:
    text = "[[sim fail_first=1 error=529]] How are you?"
    answer = litellm.completion(MODEL, said(text), max_tokens=500, num_retries=2)
    return {"text": answer.choices[0].message.content}


def poor() -> Any:
    try:
        litellm.completion(MODEL, said("Hi"), max_tokens=500)
    except Exception as error:
        return {"error": str(error)}


print(json.dumps(globals()[sys.argv[1]]()))
