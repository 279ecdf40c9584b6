"""The clients of docs/clients.md and what is exercised with each."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from tests.clients import agents
from tests.clients.rounds import Client, Exercise, Round
from tests.stage import MODEL

ANSWER: Final = f"This is the Farebox simulator answering as {MODEL}"


def answered(seen: Any) -> None:
    assert ANSWER in seen["text"], seen
    assert 'You wrote: "How are you?"' in seen["text"], seen
    assert seen.get("request_id", "req_").startswith("req_"), seen


def streamed(seen: Any) -> None:
    answered(seen)
    assert seen["pieces"] > 3, seen


def used_a_tool(seen: Any) -> None:
    """The client ran the tool with what the model gave, and the model was told what the tool said."""
    assert seen["called"] == ["simulated city"], seen
    assert 'The tool answered: "Sunny in simulated city' in seen["text"], seen


def fitted(seen: Any) -> None:
    assert seen["value"] == {"name": "simulated name", "people": 42}, seen


def continued(seen: Any) -> None:
    """The second answer follows from the second question, and the prompt had grown by the first turn."""
    assert 'You wrote: "How are you?"' in seen["first"], seen
    assert 'You wrote: "And now?"' in seen["text"], seen


def thought(seen: Any) -> None:
    """The simulator refuses a thinking block that came back changed."""
    assert seen["thought"].startswith("The user sent a request to a simulator"), seen
    assert 'You wrote: "And now?"' in seen["text"], seen


def counted(seen: Any) -> None:
    assert seen["tokens"] > 0, seen


def listed(seen: Any) -> None:
    assert {"claude-opus-4-6", MODEL, "claude-haiku-4-5"} <= set(seen["ids"]), seen
    assert len(seen["ids"]) == len(set(seen["ids"])), seen
    assert seen["one"] == MODEL, seen


def passed_betas(seen: Any) -> None:
    answered(seen)
    counted(seen)


def batched(seen: Any) -> None:
    """Two items, one of which the simulator refuses: that one is free."""
    assert seen["status"] == "ended", seen
    assert seen["results"]["good"] == "succeeded", seen
    assert seen["results"]["bad"] == "errored", seen
    assert ANSWER in seen["text"], seen
    assert seen["listed"], seen


def filed(seen: Any) -> None:
    """A file that is sent up, named in a call, listed, and deleted again."""
    assert seen["id"].startswith("file_"), seen
    assert seen["size"] == len("What a quiet day."), seen
    assert seen["listed"], seen
    assert seen["gone"], seen
    answered(seen)


def refused(seen: Any) -> None:
    assert "'claude-hologram-9' is not sold here" in seen["error"], seen


def told_to_top_up(seen: Any) -> None:
    assert "your free balance is $0.00" in seen["error"], seen
    assert "top up at http" in seen["error"], seen


def scripted(scene: str, name: str, check: Callable[[Any], None], calls: int, *, poor: bool = False) -> Exercise:
    """Make an exercise of a scene of the client's script."""

    async def act(at: Round) -> None:
        check(await at.scene(scene))
        if scene == "retry":
            assert at.sent() == 2
        if scene.startswith("beta"):
            said = {dict(request.headers).get(b"anthropic-beta") for request in at.stage.simulator.requests}
            assert any(b"context-management-2025-06-27" in (value or b"") for value in said), said
        if poor:
            assert at.sent() == 0

    return Exercise(name, act, calls, poor)


SCENES: Final = {
    part[0]: scripted(*part)
    for part in (
        ("message", "message", answered, 1),
        ("message_async", "message, async", answered, 1),
        ("stream", "stream", streamed, 1),
        ("stream_async", "stream, async", streamed, 1),
        ("tool", "tool", used_a_tool, 2),
        ("tool_async", "tool, async", used_a_tool, 2),
        ("structured", "structured output", fitted, 1),
        ("structured_async", "structured output, async", fitted, 1),
        ("structured_by_tool", "structured output by a tool", fitted, 1),
        ("messages_api", "its own Messages API", answered, 1),
        ("turns", "several turns", continued, 2),
        ("resumed", "resumed session", continued, 2),
        ("thinking", "thinking over two turns", thought, 2),
        ("count", "token count", counted, 0),
        ("models", "models", listed, 0),
        ("beta", "betas", passed_betas, 1),
        ("batch", "batch", batched, 1),
        ("files", "files", filed, 1),
        ("retry", "retry of an overload", answered, 1),
        ("refused", "refusal", refused, 0),
    )
} | {"poor": scripted("poor", "empty balance", told_to_top_up, 0, poor=True)}


def scenes(*names: str) -> tuple[Exercise, ...]:
    return tuple(SCENES[name] for name in names)


BASE: Final = "ANTHROPIC_BASE_URL=https://HOST/api/proxy"
KEY: Final = "ANTHROPIC_API_KEY=KEY"
OPENAI: Final = ("OPENAI_BASE_URL=https://HOST/api/proxy/v1", "OPENAI_API_KEY=KEY")
SDK: Final = scenes(
    "message", "message_async", "stream", "stream_async", "tool", "tool_async", "structured", "structured_async",
    "thinking", "count", "models", "beta", "batch", "files", "retry", "refused", "poor",
)  # fmt: skip
CLIENTS: Final = (
    Client("Anthropic SDK for Python", "anthropic", "anthropic-2", (BASE, KEY), SDK),
    Client("Anthropic SDK for Python, before 2.0", "anthropic", "anthropic-1", (BASE, KEY), SDK, script="anthropic-2"),
    Client(
        "Anthropic SDK for TypeScript",
        "@anthropic-ai/sdk",
        "typescript-sdk",
        (BASE, KEY),
        scenes(
            "message",
            "stream",
            "tool",
            "structured",
            "thinking",
            "count",
            "models",
            "beta",
            "batch",
            "files",
            "retry",
            "refused",
            "poor",
        ),
    ),
    Client(
        "Claude Code",
        "@anthropic-ai/claude-code",
        "claude-code",
        (BASE, KEY),
        agents.CLAUDE_CODE,
        agents.quiet("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC"),
    ),
    Client(
        "Claude Agent SDK",
        "claude-agent-sdk",
        "agent-sdk",
        (BASE, KEY),
        (*agents.AGENT_SDK, replace(SCENES["tool"], calls=None), SCENES["poor"]),
        agents.quiet("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC"),
    ),
    Client(
        "LangChain",
        "langchain-anthropic",
        "langchain",
        (BASE, KEY),
        scenes(
            "message", "message_async", "stream", "tool", "structured", "structured_by_tool", "count", "retry", "poor"
        ),
        {"LANGSMITH_TRACING": "false"},
    ),
    Client(
        "LlamaIndex",
        "llama-index-llms-anthropic",
        "llama-index",
        (BASE, KEY),
        scenes("message", "message_async", "stream", "tool", "structured", "retry", "poor"),
    ),
    Client(
        "Pydantic AI",
        "pydantic-ai-slim",
        "pydantic-ai",
        (BASE, KEY),
        scenes("message", "stream", "tool", "structured", "structured_by_tool", "turns", "retry", "poor"),
    ),
    Client(
        "LiteLLM",
        "litellm",
        "litellm",
        (BASE, KEY),
        scenes("message", "message_async", "stream", "tool", "structured", "messages_api", "retry", "poor"),
        {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS": "True"},
    ),
    Client(
        "Vercel AI SDK",
        "@ai-sdk/anthropic",
        "vercel-ai",
        (f"{BASE}/v1", KEY),
        scenes("message", "stream", "tool", "structured", "retry", "poor"),
    ),
    Client("llm with llm-anthropic", "llm-anthropic", "llm", (BASE, KEY), agents.LLM),
    Client(
        "Aider",
        "aider-chat",
        "aider",
        ("ANTHROPIC_API_BASE=https://HOST/api/proxy", KEY),
        agents.AIDER,
        {"LITELLM_LOCAL_MODEL_COST_MAP": "True"},
    ),
    Client(
        "OpenCode",
        "opencode-linux-x64",
        "opencode",
        (f"{BASE}/v1", KEY),
        agents.OPENCODE,
        agents.quiet("OPENCODE_DISABLE_AUTOUPDATE", "OPENCODE_DISABLE_MODELS_FETCH", "OPENCODE_DISABLE_LSP_DOWNLOAD"),
    ),
    Client(
        "OpenAI SDK for Python",
        "openai",
        "openai-python",
        OPENAI,
        scenes(
            "message",
            "message_async",
            "stream",
            "stream_async",
            "tool",
            "structured",
            "models",
            "retry",
            "refused",
            "poor",
        ),
    ),
    Client(
        "OpenAI SDK for Node.js",
        "openai",
        "openai-node",
        OPENAI,
        scenes("message", "stream", "tool", "structured", "models", "retry", "refused", "poor"),
    ),
)
