"""A request of the Messages API, put as one of Chat Completions. What cannot be said there is refused by name.

Fields that mean nothing to such a server are left out; docs/upstreams.md has the whole table.
"""

import hashlib
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from farebox.errors import InvalidRequest
from farebox.http.surrogates import without_halves
from farebox.upstreams.kinds.chat.content import to_messages
from farebox.upstreams.kinds.chat.manner import Manner

_TRANSLATED: Final = frozenset(
    {
        "model", "messages", "system", "max_tokens", "stream", "temperature", "top_p", "top_k", "stop_sequences",
        "tools", "tool_choice", "metadata", "thinking", "output_config", "output_format",
    }
)  # fmt: skip
_LEFT_OUT: Final = frozenset({"betas", "cache_control", "context_management", "diagnostics", "service_tier"})
"""They change what a call costs or what is told of it, not what is asked."""
_HARMLESS: Final[Mapping[str, tuple[Any, ...]]] = {"inference_geo": ("global",), "speed": ("standard",)}
"""Fields that ask for nothing with these values."""
_EFFORTS: Final[Mapping[str, str]] = {
    "low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "high",
}  # fmt: skip
_LOW_BUDGET: Final = 4096
_MEDIUM_BUDGET: Final = 16384
_USER_CHARS: Final = 64
_CHOICES: Final[Mapping[str, str]] = {"auto": "auto", "any": "required", "none": "none"}
_asked: Final = msgspec.json.Decoder(dict[str, Any])
_TOOL_KEYS: Final = ("name", "description")


def to_chat(body: bytes, name: str, manner: Manner) -> bytes:
    """Translate a request; `name` is what the server calls the model. Raises InvalidRequest, naming the field."""
    try:
        try:
            asked: dict[str, Any] = _asked.decode(body)
        except msgspec.DecodeError:
            asked = _asked.decode(without_halves(body) or body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise InvalidRequest("the body cannot be read: it must be a JSON object, nested 500 levels at most") from None
    asked = {field: value for field, value in asked.items() if value is not None}
    _refuse_unknown(asked)
    chat: dict[str, Any] = {"model": name, "messages": to_messages(asked.get("system"), asked.get("messages"), manner)}
    _put_limits(asked, chat, manner)
    _put_tools(asked, chat)
    _put_thinking(asked, chat, manner)
    if asked.get("stream"):
        chat["stream"] = True
        chat["stream_options"] = {"include_usage": True}
        if "continuous_usage" in manner.takes:
            chat["stream_options"]["continuous_usage_stats"] = True
    return msgspec.json.encode(chat)


def _refuse_unknown(asked: Mapping[str, Any]) -> None:
    for field, value in asked.items():
        if field in _TRANSLATED or field in _LEFT_OUT or value in _HARMLESS.get(field, ()):
            continue
        raise InvalidRequest(
            f"{field[:100]}: Extra inputs are not permitted: the server behind this model does not know it; "
            "leave it out"
        )
    if "compact_" in str(asked.get("context_management", "")):
        raise InvalidRequest("context_management: the server behind this model cannot compact; leave out its edit")


def _put_limits(asked: Mapping[str, Any], chat: dict[str, Any], manner: Manner) -> None:
    most = asked.get("max_tokens")
    if type(most) is not int or most < 1:
        raise InvalidRequest(f"max_tokens must be 1 or more with the server behind this model, got {most!r:.40}")
    chat[manner.max_tokens_as] = min(most, manner.output_tokens or most)
    for field in ("temperature", "top_p", *(("top_k",) if "top_k" in manner.takes else ())):
        if field in asked:
            chat[field] = asked[field]
    stops = asked.get("stop_sequences")
    if stops:
        if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
            raise InvalidRequest("stop_sequences must be a list of strings")
        chat["stop"] = stops
    user = _object_of(asked, "metadata").get("user_id")
    if isinstance(user, str) and user:
        chat["user"] = user if len(user) <= _USER_CHARS else hashlib.sha256(user.encode()).hexdigest()


def _put_tools(asked: Mapping[str, Any], chat: dict[str, Any]) -> None:
    tools = asked.get("tools") or []
    if not isinstance(tools, list):
        raise InvalidRequest("tools must be a list")
    if tools:
        chat["tools"] = [_tool(tool, at) for at, tool in enumerate(tools)]
    choice = _object_of(asked, "tool_choice")
    if not choice:
        return
    kind = choice.get("type")
    if choice.get("disable_parallel_tool_use") is True and tools:
        chat["parallel_tool_calls"] = False
    if kind == "tool" and isinstance(choice.get("name"), str):
        put: Any = {"type": "function", "function": {"name": choice["name"]}}
    elif isinstance(kind, str) and kind in _CHOICES:
        put = _CHOICES[kind]
    else:
        raise InvalidRequest(f"tool_choice.type must be auto, any, none, or tool with a name, got {kind!r:.40}")
    if tools:
        chat["tool_choice"] = put
    elif put not in {"auto", "none"} if isinstance(put, str) else True:
        raise InvalidRequest("tool_choice: there are no tools to choose from")


def _tool(tool: Any, at: int) -> dict[str, Any]:
    if not isinstance(tool, dict):
        raise InvalidRequest(f"tools.{at} must be an object")
    kind = tool.get("type")
    if kind is not None and kind != "custom":
        raise InvalidRequest(
            f"tools.{at}: {str(kind)[:60]} is a tool of Anthropic's own, which the server behind this model lacks; "
            "leave it out"
        )
    schema = tool.get("input_schema")
    if not isinstance(tool.get("name"), str) or not isinstance(schema, dict):
        raise InvalidRequest(f"tools.{at}: name and input_schema are required")
    function = {key: tool[key] for key in _TOOL_KEYS if isinstance(tool.get(key), str)}
    function["parameters"] = schema
    if tool.get("strict") is True:
        function["strict"] = True
    return {"type": "function", "function": function}


def _put_thinking(asked: Mapping[str, Any], chat: dict[str, Any], manner: Manner) -> None:
    config = _object_of(asked, "output_config")
    for field, value in config.items():
        if field not in {"effort", "format", "task_budget"} and value is not None:
            raise InvalidRequest(
                f"output_config.{field[:100]}: the server behind this model does not know it; leave it out"
            )
    wanted = config.get("format") or asked.get("output_format")
    if wanted is not None:
        schema = wanted.get("schema") if isinstance(wanted, dict) and wanted.get("type") == "json_schema" else None
        if not isinstance(schema, dict):
            raise InvalidRequest("output_config.format must have type json_schema and a schema")
        schema = {"name": "answer", "schema": schema, "strict": True}
        chat["response_format"] = {"type": "json_schema", "json_schema": schema}
    thinking = _object_of(asked, "thinking")
    effort = config.get("effort")
    if manner.thinking == "off" or thinking.get("type") == "disabled":
        return
    if isinstance(effort, str) and effort in _EFFORTS:
        chat["reasoning_effort"] = _EFFORTS[effort]
    elif effort is not None:
        raise InvalidRequest(f"output_config.effort must be one of {', '.join(_EFFORTS)}, got {effort!r:.40}")
    elif type(budget := thinking.get("budget_tokens")) is int:
        chat["reasoning_effort"] = "low" if budget < _LOW_BUDGET else "medium" if budget < _MEDIUM_BUDGET else "high"


def _object_of(asked: Mapping[str, Any], field: str) -> Mapping[str, Any]:
    """Give a field that is an object, empty when it is not there. Raises InvalidRequest for anything else."""
    value = asked.get(field)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidRequest(f"{field} must be an object")
    return value
