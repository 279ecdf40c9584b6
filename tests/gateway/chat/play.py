"""What the tests of chat completions share: asking for one, and reading its chunks."""

import json
from typing import Any, Final

from farebox.http.client import Answer
from tests.gateway.play import Heard
from tests.stage import MODEL, Person, Stage

PATH: Final = "/api/proxy/v1/chat/completions"


def chat(text: str = "Hello", **fields: Any) -> dict[str, Any]:
    """Give the body of a request."""
    return {"model": MODEL, "max_tokens": 2000, "messages": [{"role": "user", "content": text}], **fields}


async def post(stage: Stage, person: Person, body: dict[str, Any] | bytes, path: str = PATH) -> Answer:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = [(b"authorization", f"Bearer {person.key}".encode()), (b"content-type", b"application/json")]
    return await stage.client.request("POST", path, headers, raw, first_byte_s=30)


async def ask(stage: Stage, person: Person, text: str = "Hello", **fields: Any) -> tuple[int, dict[str, Any]]:
    answer = await post(stage, person, chat(text, **fields))
    return answer.status, json.loads(await answer.read(2**26))


async def listen(stage: Stage, person: Person, text: str = "Hello", **fields: Any) -> Heard:
    return Heard(await post(stage, person, chat(text, stream=True, **fields)))


def chunks(data: bytes) -> list[dict[str, Any]]:
    """Read the data of a stream, all but its [DONE]."""
    lines = [line[6:] for line in data.split(b"\n") if line.startswith(b"data: ")]
    return [json.loads(line) for line in lines if line != b"[DONE]"]


def text_of(heard: list[dict[str, Any]], name: str = "content") -> str:
    """Put the pieces of what was said together."""
    return "".join(choice["delta"].get(name) or "" for chunk in heard for choice in chunk.get("choices", []))


def error_of(body: bytes) -> dict[str, Any]:
    """Give an error, checking the shape of its envelope."""
    told = json.loads(body)
    assert told.keys() == {"error"}
    assert told["error"].keys() == {"message", "type", "param", "code"}
    assert told["error"]["message"]
    error: dict[str, Any] = told["error"]
    return error
