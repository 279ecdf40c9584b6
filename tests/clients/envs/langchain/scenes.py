"""What users of LangChain write; base URL and key come from the environment alone."""

import asyncio
import json
import sys
from typing import Any

from langchain.agents import create_agent
from langchain_anthropic import ChatAnthropic
from langchain_core.messages import HumanMessage
from langchain_core.tools import tool as langchain_tool
from pydantic import BaseModel

MODEL = "claude-sonnet-4-6"


class City(BaseModel):
    """A city."""

    name: str
    people: int


called: list[str] = []


@langchain_tool
def get_weather(city: str) -> str:
    """Tell the weather."""
    called.append(city)
    return f"Sunny in {city}"


def chat(**settings: Any) -> ChatAnthropic:
    return ChatAnthropic(model=MODEL, max_tokens=500, **settings)


def message() -> Any:
    said = chat().invoke("How are you?")
    assert said.usage_metadata["output_tokens"] > 0
    return {"text": said.text}


def message_async() -> Any:
    return {"text": asyncio.run(chat().ainvoke("How are you?")).text}


def stream() -> Any:
    pieces = [piece.text for piece in chat().stream("How are you?")]
    return {"text": "".join(pieces), "pieces": len(pieces)}


def tool() -> Any:
    turns = create_agent(chat(), [get_weather]).invoke({"messages": [("user", "Use the tool for Ghent")]})["messages"]
    return {"called": called, "text": turns[-1].text}


def structured() -> Any:
    return {"value": chat().with_structured_output(City, method="json_schema").invoke("Which city?").model_dump()}


def structured_by_tool() -> Any:
    return {"value": chat().with_structured_output(City).invoke("Which city?").model_dump()}


def count() -> Any:
    return {"tokens": chat().get_num_tokens_from_messages([HumanMessage("Hi")])}


def retry() -> Any:
    return {"text": chat().invoke("[[sim fail_first=1 error=529]] How are you?").text}


def poor() -> Any:
    try:
        chat().invoke("Hi")
    except Exception as error:
        return {"error": str(error)}


print(json.dumps(globals()[sys.argv[1]]()))
