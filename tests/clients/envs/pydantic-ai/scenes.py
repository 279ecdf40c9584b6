"""What users of Pydantic AI write; base URL and key come from the environment alone."""

import asyncio
import json
import sys
from typing import Any

from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput

MODEL = "anthropic:claude-sonnet-4-6"


class City(BaseModel):
    name: str
    people: int


called: list[str] = []


def get_weather(city: str) -> str:
    """Tell the weather."""
    called.append(city)
    return f"Sunny in {city}"


def message() -> Any:
    return {"text": Agent(MODEL).run_sync("How are you?").output}


def stream() -> Any:
    async def talk() -> list[str]:
        async with Agent(MODEL).run_stream("How are you?") as answer:
            return [piece async for piece in answer.stream_text(delta=True, debounce_by=None)]

    pieces = asyncio.run(talk())
    return {"text": "".join(pieces), "pieces": len(pieces)}


def tool() -> Any:
    return {"text": Agent(MODEL, tools=[get_weather]).run_sync("Use the tool for Ghent").output, "called": called}


def structured() -> Any:
    return {"value": Agent(MODEL, output_type=NativeOutput(City)).run_sync("Which city?").output.model_dump()}


def structured_by_tool() -> Any:
    return {"value": Agent(MODEL, output_type=City).run_sync("Which city?").output.model_dump()}


def turns() -> Any:
    first = Agent(MODEL).run_sync("How are you?")
    second = Agent(MODEL).run_sync("And now?", message_history=first.all_messages())
    return {"first": first.output, "text": second.output}


def retry() -> Any:
    return {"text": Agent(MODEL).run_sync("[[sim fail_first=1 error=529]] How are you?").output}


def poor() -> Any:
    try:
        Agent(MODEL).run_sync("Hi")
    except Exception as error:
        return {"error": str(error)}


print(json.dumps(globals()[sys.argv[1]]()))
