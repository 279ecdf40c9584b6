"""What users of LlamaIndex write; base URL and key come from the environment alone."""

import asyncio
import json
import sys
from typing import Any

from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.llms import ChatMessage
from llama_index.llms.anthropic import Anthropic
from pydantic import BaseModel

MODEL = "claude-sonnet-4-6"


class City(BaseModel):
    """A city."""

    name: str
    people: int


called: list[str] = []


def get_weather(city: str) -> str:
    """Tell the weather."""
    called.append(city)
    return f"Sunny in {city}"


def chat() -> Anthropic:
    return Anthropic(model=MODEL, max_tokens=500)


def message() -> Any:
    return {"text": chat().chat([ChatMessage(role="user", content="How are you?")]).message.content}


def message_async() -> Any:
    return {"text": asyncio.run(chat().achat([ChatMessage(role="user", content="How are you?")])).message.content}


def stream() -> Any:
    pieces = [piece.delta for piece in chat().stream_complete("How are you?")]
    return {"text": "".join(pieces), "pieces": len(pieces)}


def tool() -> Any:
    async def talk() -> str:
        return str(await FunctionAgent(tools=[get_weather], llm=chat()).run("Use the tool for Ghent"))

    return {"text": asyncio.run(talk()), "called": called}


def structured() -> Any:
    return {"value": chat().as_structured_llm(City).complete("Which city?").raw.model_dump()}


def retry() -> Any:
    return {"text": chat().complete("[[sim fail_first=1 error=529]] How are you?").text}


def poor() -> Any:
    try:
        chat().complete("Hi")
    except Exception as error:
        return {"error": str(error)}


print(json.dumps(globals()[sys.argv[1]]()))
