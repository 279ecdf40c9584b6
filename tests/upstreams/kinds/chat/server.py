"""A Chat Completions server that is not there: it says what it was told to; what it was asked is checked afterwards."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from openai.types.chat.completion_create_params import (
    CompletionCreateParamsNonStreaming,
    CompletionCreateParamsStreaming,
)
from pydantic import TypeAdapter

from tests.gateway.play import Script, script

KEY: Final = "sk-theirs-canary"
NAME: Final = "qwen3-coder"
_WHOLE: Final[TypeAdapter[Any]] = TypeAdapter(CompletionCreateParamsNonStreaming)
_STREAMED: Final[TypeAdapter[Any]] = TypeAdapter(CompletionCreateParamsStreaming)
_HEADERS: Final = {
    "host", "content-length", "content-type", "accept", "accept-encoding", "user-agent", "authorization", "connection",
}  # fmt: skip


def streamed(*pieces: bytes) -> list[bytes]:
    """Answer with a stream that ends when the connection does."""
    return [b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n", *pieces]


def whole(body: dict[str, Any] | bytes, status: int = 200, *headers: str) -> list[bytes]:
    """Answer with JSON, or with what is none."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = [f"HTTP/1.1 {status} So", "content-type: application/json", f"content-length: {len(raw)}", *headers]
    return ["\r\n".join([*head, "connection: close", "", ""]).encode() + raw]


@asynccontextmanager
async def serving(
    *answers: list[bytes], models: str = "claude-sonnet-4-6", **settings: str
) -> AsyncIterator[tuple[Script, str]]:
    """Serve answers, one a request, the last one again and again; gives the configuration of the upstream as well."""
    async with script(*answers) as server:
        lines = ["[[upstreams]]", 'name = "chat"', 'kind = "chat"', f'api_key = "{KEY}"']
        lines += [f'base_url = "http://127.0.0.1:{server.port}/v1"']
        lines += [
            f"models = {{ {', '.join(f'{json.dumps(model)} = {json.dumps(NAME)}' for model in models.split())} }}"
        ]
        lines += [f"{name} = {value}" for name, value in settings.items()]
        yield server, "\n".join(lines)


def asked(server: Script) -> list[dict[str, Any]]:
    """Give the bodies of what was asked, each checked as a strict server would."""
    bodies = []
    for request in server.heard:
        head, _, raw = request.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        assert first == "POST /v1/chat/completions HTTP/1.1"
        assert headers["authorization"] == f"Bearer {KEY}"
        assert headers["content-type"] == "application/json"
        assert headers.keys() <= _HEADERS, headers
        body = json.loads(raw)
        (_STREAMED if body.get("stream") else _WHOLE).validate_python(body)
        assert body["model"] == NAME
        _check_calls(body["messages"])
        bodies.append(body)
    return bodies


def _check_calls(messages: list[dict[str, Any]]) -> None:
    """Each call is answered at once and once, and nothing else is (OpenAI, "Function calling")."""
    waiting: set[str] = set()
    for message in messages:
        if message["role"] == "tool":
            waiting.remove(message["tool_call_id"])
            continue
        assert not waiting
        waiting = {call["id"] for call in message.get("tool_calls") or ()}
    assert not waiting
