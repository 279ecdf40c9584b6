"""A request, read as the Messages API reads it: refused in its words, or counted and understood.

Unknown fields are accepted: the gateway in front has to pass on fields that are not invented yet.
One token is four characters, so that every figure can be checked by hand; see docs/simulator.md.
"""

import base64
import hashlib
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from farebox.errors import InvalidRequest, NotFound
from farebox.upstreams.simulator.catalogue import Model

VERSIONS: Final = frozenset({"2023-06-01", "2026-10-21"})
SAMPLING: Final = ("temperature", "top_p", "top_k")
REQUEST_TOKENS: Final = 3
MESSAGE_TOKENS: Final = 4
TOOLS_TOKENS: Final = 290
IMAGE_TOKENS: Final = 1_500
DOCUMENT_TOKENS: Final = 2_000
_ROLES: Final = ("user", "assistant", "system")


def members(value: Any) -> dict[str, Any]:
    """Give an object's members, none for anything else: what the API would ignore or we do not check."""
    return value if isinstance(value, dict) else {}


def text_tokens(text: str) -> int:
    """Count a text: four characters to a token, rounded up."""
    return (len(text) + 3) // 4


class Ask(msgspec.Struct, frozen=True):
    """A valid request: the body as it came, its JSON, and what the answer depends on."""

    body: bytes
    fields: dict[str, Any]
    model: Model
    max_tokens: int
    last_text: str
    last_blocks: list[dict[str, Any]]

    @property
    def stream(self) -> bool:
        return self.fields.get("stream") is True

    @property
    def tools(self) -> list[dict[str, Any]]:
        return self.fields.get("tools") or []

    @property
    def stop_sequences(self) -> list[str]:
        return self.fields.get("stop_sequences") or []

    @property
    def thinks(self) -> bool:
        """Whether visible or hidden thinking was asked for."""
        return (self.fields.get("thinking") or {}).get("type") in ("enabled", "adaptive")

    @property
    def hides_thinking(self) -> bool:
        return (self.fields.get("thinking") or {}).get("display") == "omitted"

    def digest(self) -> bytes:
        return hashlib.sha256(self.body).digest()


def read_ask(body: bytes, version: str, models: dict[str, Model], *, counting: bool) -> Ask:
    """Read and check a body of POST /v1/messages, or of count_tokens when `counting`.

    Raises InvalidRequest or NotFound in the real API's words.
    """
    try:
        fields = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"The request body is not valid JSON: {error}") from None
    if not isinstance(fields, dict):
        raise InvalidRequest("Input should be a valid dictionary")
    for name in ("model", "messages") if counting else ("model", "max_tokens", "messages"):
        if name not in fields:
            raise InvalidRequest(f"{name}: Field required")
    _check_types(fields)
    model = models.get(fields["model"])
    if model is None:
        raise NotFound(f"model: {fields['model']}")
    max_tokens = fields.get("max_tokens", 0)
    if max_tokens > model.max_output:
        raise InvalidRequest(
            f"max_tokens: {max_tokens} > {model.max_output}, which is the maximum allowed number of output"
            f" tokens for {fields['model']}"
        )
    _check_sampling(fields, version, model)
    _check_thinking(fields, model)
    _check_tools(fields, model)
    _check_messages(fields, model)
    last_text, last_blocks = _last_user(fields["messages"])
    return Ask(body, fields, model, max_tokens, last_text, last_blocks)


def _check_types(fields: dict[str, Any]) -> None:
    if not isinstance(fields["model"], str):
        raise InvalidRequest("model: Input should be a valid string")
    max_tokens = fields.get("max_tokens", 0)
    if not isinstance(max_tokens, int) or isinstance(max_tokens, bool):
        raise InvalidRequest("max_tokens: Input should be a valid integer")
    if max_tokens < 0:
        raise InvalidRequest("max_tokens: Input should be greater than or equal to 0")
    if not isinstance(fields["messages"], list):
        raise InvalidRequest("messages: Input should be a valid list")
    if not isinstance(fields.get("stream", False), bool):
        raise InvalidRequest("stream: Input should be a valid boolean")
    for name in ("tools", "stop_sequences"):
        if not isinstance(fields.get(name) or [], list):
            raise InvalidRequest(f"{name}: Input should be a valid list")
    if not all(isinstance(stop, str) and stop.strip() for stop in fields.get("stop_sequences") or []):
        raise InvalidRequest("stop_sequences: each stop sequence must contain non-whitespace")
    if not isinstance(fields.get("system") or "", str | list):
        raise InvalidRequest("system: Input should be a valid string")
    for name in ("thinking", "tool_choice", "output_config", "metadata"):
        if not isinstance(fields.get(name) or {}, dict):
            raise InvalidRequest(f"{name}: Input should be a valid dictionary")


def _check_sampling(fields: dict[str, Any], version: str, model: Model) -> None:
    for name in SAMPLING:
        if fields.get(name) is None:
            continue
        if version >= "2026-10-21":
            raise InvalidRequest(f"{name}: not accepted under anthropic-version {version}")
        if not model.takes_sampling:
            raise InvalidRequest(f"`{name}` is deprecated for this model.")
        if isinstance(fields[name], bool) or not isinstance(fields[name], int | float):
            raise InvalidRequest(f"{name}: Input should be a valid number")
    temperature = fields.get("temperature")
    if temperature is not None and not 0 <= temperature <= 1:
        bound = "less than or equal to 1" if temperature > 1 else "greater than or equal to 0"
        raise InvalidRequest(f"temperature: Input should be {bound}")


def _check_thinking(fields: dict[str, Any], model: Model) -> None:
    thinking = fields.get("thinking") or {}
    kind = thinking.get("type")
    if thinking and kind not in ("enabled", "disabled", "adaptive"):
        raise InvalidRequest(
            f"thinking: Input tag '{kind}' found using 'type' does not match any of the expected tags:"
            " 'adaptive', 'disabled', 'enabled'"
        )
    if kind == "disabled" and model.always_thinks:
        raise InvalidRequest('"thinking.type.disabled" is not supported for this model.')
    if kind == "enabled":
        if not model.takes_thinking_budget:
            raise InvalidRequest(
                '"thinking.type.enabled" is not supported for this model. Use "thinking.type.adaptive" and'
                ' "output_config.effort" to control thinking behavior.'
            )
        budget = thinking.get("budget_tokens")
        if not isinstance(budget, int):
            raise InvalidRequest("thinking.enabled.budget_tokens: Field required")
        if budget < 1024:
            raise InvalidRequest("thinking.enabled.budget_tokens: Input should be greater than or equal to 1024")
        if "max_tokens" in fields and fields["max_tokens"] <= budget:
            raise InvalidRequest("`max_tokens` must be greater than `thinking.budget_tokens`.")


def _check_tools(fields: dict[str, Any], model: Model) -> None:
    names = []
    for at, tool in enumerate(fields.get("tools") or []):
        if not isinstance(tool, dict):
            raise InvalidRequest(f"tools.{at}: Input should be a valid dictionary")
        if tool.get("type") in (None, "custom"):
            if not isinstance(tool.get("name"), str):
                raise InvalidRequest(f"tools.{at}.custom.name: Field required")
            if "input_schema" not in tool and not tool.get("defer_loading"):
                raise InvalidRequest(f"tools.{at}.custom.input_schema: Field required")
        name = tool.get("name", f"tool {at}")
        if not isinstance(name, str):
            raise InvalidRequest(f"tools.{at}.name: Input should be a valid string")
        names.append(name)
    if len(set(names)) < len(names):
        raise InvalidRequest("tools: Tool names must be unique.")
    choice = (fields.get("tool_choice") or {}).get("type", "auto")
    if choice not in ("auto", "any", "tool", "none"):
        raise InvalidRequest(
            f"tool_choice: Input tag '{choice}' found using 'type' does not match any of the expected tags"
        )
    if choice in ("any", "tool"):
        if not names:
            raise InvalidRequest("tool_choice.any may only be specified while providing tools.")
        if not model.takes_forced_tools:
            raise InvalidRequest(f"tool_choice.{choice}: forced tool use is not supported for this model.")
        wanted = fields["tool_choice"].get("name")
        if choice == "tool" and wanted not in names:
            raise InvalidRequest(f"Tool '{wanted}' not found in provided tools")


def _check_messages(fields: dict[str, Any], model: Model) -> None:
    messages = fields["messages"]
    if not messages:
        raise InvalidRequest("messages: at least one message is required")
    awaited: set[str] = set()
    for at, message in enumerate(messages):
        if not isinstance(message, dict):
            raise InvalidRequest(f"messages.{at}: Input should be a valid dictionary")
        if message.get("role") not in _ROLES:
            raise InvalidRequest(f"messages.{at}.role: Input should be 'user', 'assistant' or 'system'")
        blocks = _blocks(message, at, last=at == len(messages) - 1)
        if message["role"] == "system":
            continue
        awaited = _check_tool_results(blocks, at, awaited)
    if messages[-1]["role"] == "assistant" and not model.takes_prefill:
        raise InvalidRequest(
            "This model does not support assistant message prefill. The conversation must end with a user message."
        )
    found = sum(1 for kind, block in walk(fields) if kind != "head" and block.get("cache_control"))
    if found > 4:
        raise InvalidRequest(f"A maximum of 4 blocks with cache_control may be provided. Found {found}.")


def _blocks(message: dict[str, Any], at: int, *, last: bool) -> list[dict[str, Any]]:
    if "content" not in message:
        raise InvalidRequest(f"messages.{at}.content: Field required")
    content = message["content"]
    if not isinstance(content, str | list):
        raise InvalidRequest(f"messages.{at}.content: Input should be a valid list")
    if not content and not (last and message["role"] == "assistant"):
        raise InvalidRequest(
            f"messages.{at}: all messages must have non-empty content except for the optional final assistant message"
        )
    if isinstance(content, str):
        return []
    for place, block in enumerate(content):
        where = f"messages.{at}.content.{place}"
        if not isinstance(block, dict):
            raise InvalidRequest(f"{where}: Input should be a valid dictionary")
        kind = block.get("type")
        if not isinstance(kind, str):
            raise InvalidRequest(f"{where}.type: Field required")
        if kind == "text":
            if not isinstance(block.get("text"), str):
                raise InvalidRequest(f"{where}.text.text: Field required")
            if not block["text"]:
                raise InvalidRequest("messages: text content blocks must be non-empty")
        if kind == "thinking" and block.get("signature") != sign(str(block.get("thinking"))):
            raise InvalidRequest(f"{where}: Invalid `signature` in `thinking` block")
    return content


def _check_tool_results(blocks: list[dict[str, Any]], at: int, awaited: set[str]) -> set[str]:
    results = {str(block.get("tool_use_id")) for block in blocks if block["type"] == "tool_result"}
    if results - awaited:
        stray = min(results - awaited)
        raise InvalidRequest(
            f"messages.{at}.content.0: unexpected `tool_use_id` found in `tool_result` blocks: {stray}. Each"
            " `tool_result` block must have a corresponding `tool_use` block in the previous message."
        )
    if awaited - results:
        missing = ", ".join(sorted(awaited - results))
        raise InvalidRequest(
            f"messages.{at - 1}: `tool_use` ids were found without `tool_result` blocks immediately after:"
            f" {missing}. Each `tool_use` block must have a corresponding `tool_result` block in the next"
            " message."
        )
    return {str(block.get("id")) for block in blocks if block["type"] == "tool_use"}


def _last_user(messages: list[dict[str, Any]]) -> tuple[str, list[dict[str, Any]]]:
    for message in reversed(messages):
        if message["role"] == "user":
            content = message["content"]
            if isinstance(content, str):
                return content, []
            texts = [block["text"] for block in content if block["type"] == "text"]
            return "\n".join(texts), content
    return "", []


def sign(thinking: str) -> str:
    """Sign a thinking block: a change of one byte on its way through clients and gateways shows."""
    digest = hashlib.sha256(b"farebox simulator thinking " + thinking.encode("utf-8", "replace")).digest()
    return "EqQB" + base64.b64encode(digest * 3).decode()


# Counting, in the order the prompt cache sees it: tools, system, messages.


def walk(fields: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Go through a prompt block by block; a `head` opens a message and costs tokens of its own."""
    for tool in fields.get("tools") or []:
        yield "tool", tool
    system = fields.get("system") or []
    for block in [{"type": "text", "text": system}] if isinstance(system, str) else system:
        if isinstance(block, dict):
            yield "system", block
    for message in fields["messages"]:
        yield "head", {"role": message["role"]}
        content = message["content"]
        if isinstance(content, str):
            yield "block", {"type": "text", "text": content}
        else:
            for block in content:
                yield "block", block


def piece_tokens(kind: str, block: dict[str, Any]) -> int:
    """Count one step of `walk`."""
    if kind == "head":
        return MESSAGE_TOKENS
    if kind == "tool":
        return text_tokens(msgspec.json.encode(_without_cache_control(block)).decode())
    return _block_tokens(block)


def count_tokens(fields: dict[str, Any]) -> int:
    """Count a whole prompt: what count_tokens answers, and the sum of the usage's input figures."""
    return base_tokens(fields) + sum(piece_tokens(kind, block) for kind, block in walk(fields))


def base_tokens(fields: dict[str, Any]) -> int:
    """Count what no block carries: the frame, and the prompt that tools bring along."""
    return REQUEST_TOKENS + (TOOLS_TOKENS if fields.get("tools") else 0)


def _block_tokens(block: dict[str, Any]) -> int:
    kind = block.get("type")
    if kind == "text":
        return text_tokens(str(block.get("text", "")))
    if kind == "image":
        return IMAGE_TOKENS
    if kind == "document" and members(block.get("source")).get("type") != "text":
        return DOCUMENT_TOKENS
    if kind == "tool_result" and isinstance(block.get("content"), list):
        return sum(_block_tokens(inner) for inner in block["content"] if isinstance(inner, dict))
    if kind == "thinking":
        return text_tokens(str(block.get("thinking", "")))
    return text_tokens(msgspec.json.encode(_without_cache_control(block)).decode())


def _without_cache_control(block: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in block.items() if name != "cache_control"}
