"""What users of the Claude Agent SDK write; base URL and key come from the environment alone."""

import asyncio
import json
import sys
from typing import Any

from claude_agent_sdk import (
    AssistantMessage,
    ClaudeAgentOptions,
    ClaudeSDKClient,
    ResultMessage,
    TextBlock,
    create_sdk_mcp_server,
    query,
)
from claude_agent_sdk import (
    tool as agent_tool,
)

MODEL = "claude-sonnet-4-6"
called: list[str] = []


@agent_tool("get_weather", "Tell the weather.", {"city": str})
async def get_weather(given: dict[str, Any]) -> dict[str, Any]:
    called.append(given["city"])
    return {"content": [{"type": "text", "text": f"Sunny in {given['city']}"}]}


def text_of(said: Any) -> str:
    return "".join(block.text for block in said.content if isinstance(block, TextBlock))


async def ended(messages: Any) -> Any:
    texts, result = [], None
    async for said in messages:
        if isinstance(said, AssistantMessage):
            texts.append(text_of(said))
        if isinstance(said, ResultMessage):
            result = said
    assert result is not None
    return {"text": result.result, "texts": texts, "session": result.session_id, "error": result.is_error}


async def message() -> Any:
    return await ended(query(prompt="How are you?", options=ClaudeAgentOptions(model=MODEL)))


async def tool() -> Any:
    server = create_sdk_mcp_server("weather", tools=[get_weather])
    options = ClaudeAgentOptions(
        model=MODEL,
        mcp_servers={"weather": server},
        allowed_tools=["mcp__weather__get_weather"],
        env={"ENABLE_TOOL_SEARCH": "false"},
    )
    async with ClaudeSDKClient(options) as client:
        await client.query("[[sim tool=mcp__weather__get_weather]] What is it like in Ghent?")
        return await ended(client.receive_response()) | {"called": called}


async def turns() -> Any:
    async with ClaudeSDKClient(ClaudeAgentOptions(model=MODEL)) as client:
        await client.query("How are you?")
        first = await ended(client.receive_response())
        await client.query("And now?")
        return await ended(client.receive_response()) | {"first": first["text"]}


async def resumed() -> Any:
    first = await ended(query(prompt="How are you?", options=ClaudeAgentOptions(model=MODEL)))
    options = ClaudeAgentOptions(model=MODEL, resume=first["session"])
    return await ended(query(prompt="And now?", options=options)) | {"first": first["text"]}


async def delegated() -> Any:
    return await ended(query(prompt="[[sim tool=Agent]] Delegate it", options=ClaudeAgentOptions(model=MODEL)))


async def poor() -> Any:
    try:
        return {"error": (await ended(query(prompt="Hi", options=ClaudeAgentOptions(model=MODEL))))["text"]}
    except Exception as error:
        return {"error": str(error)}


print(json.dumps(asyncio.run(globals()[sys.argv[1]]())))
