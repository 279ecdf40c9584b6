"""A request of Chat Completions, put as one of the Messages API. What cannot be said there is refused by name.

It decides nothing about money: what comes of it is read, bounded and held for as any other call.
docs/openai.md has each field and what becomes of it; a test compares.
"""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from farebox.errors import InvalidRequest
from farebox.gateway.chat.turns import NULL, Turn, is_given, to_turns
from farebox.gateway.duplicates import refuse_crowd
from farebox.http.surrogates import without_halves

IGNORED: Final = frozenset(
    {
        "seed", "presence_penalty", "frequency_penalty", "repetition_penalty", "min_p", "top_a", "verbosity",
        "prediction", "service_tier", "store", "metadata", "prompt_cache_key", "prompt_cache_retention",
        "include_reasoning", "usage", "keep_alive",
    }
)  # fmt: skip
"""Hints, tastes and bookkeeping: an answer without them is still an answer to what was asked."""
NOTHING: Final[Mapping[str, tuple[Any, ...]]] = {
    "n": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "audio": (),
    "web_search_options": (),
    "functions": ([],),
    "function_call": (),
}
"""Fields that ask for what cannot be had here, and the values with which they ask for nothing."""
WORDS: Final[Mapping[str, str]] = {
    "n": "one answer a call; ask again for another",
    "functions": "give them as `tools`",
    "function_call": "give it as `tool_choice`",
    "modalities": "answers are text",
    "audio": "answers are text",
}
PASSED: Final = frozenset({"thinking", "top_k", "cache_control"})
"""Fields of the Messages API that go on as they are."""
EFFORTS: Final[Mapping[str, str]] = {
    "minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "xhigh", "max": "max",
}  # fmt: skip
JSON_ONLY: Final = "Answer with one JSON object and nothing else: no words around it, no code fence."
_CHOICES: Final[Mapping[str, str]] = {"none": "none", "auto": "auto", "required": "any"}
_SHOWN: Final = 60


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class Function(msgspec.Struct):
    name: str
    description: str | None = None
    parameters: msgspec.Raw = NULL
    strict: bool | None = None


class Tool(msgspec.Struct):
    type: str
    function: Function | None = None
    cache_control: msgspec.Raw = NULL


class Named(msgspec.Struct):
    name: str


class Choice(msgspec.Struct):
    type: str
    function: Named | None = None


class JsonSchema(msgspec.Struct):
    schema: msgspec.Raw = NULL


class Format(msgspec.Struct):
    type: str
    json_schema: JsonSchema | None = None


class ChatRequest(msgspec.Struct, kw_only=True):
    """The fields that are translated. What stands in `Raw` goes on as it was written."""

    model: str
    messages: list[Turn]
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: msgspec.Raw = NULL
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    tools: list[Tool] | None = None
    tool_choice: str | Choice | None = None
    parallel_tool_calls: bool | None = None
    response_format: Format | None = None
    reasoning_effort: str | None = None
    user: str | None = None
    safety_identifier: str | None = None


class Asked(msgspec.Struct, frozen=True):
    """A request in the words of the Messages API, and what the answer's shape hangs on."""

    model: str
    body: bytes
    include_usage: bool


_fields: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_request: Final = msgspec.json.Decoder(ChatRequest)
_encode: Final = msgspec.json.Encoder().encode


def to_messages(body: bytes) -> Asked:
    """Translate a request. Raises InvalidRequest, naming the field."""
    refuse_crowd(body)
    fields, chat = _read(body)
    passed = _check(fields)
    if not chat.messages:
        raise InvalidRequest("messages: an array of at least one message is required")
    system, turns = to_turns(chat.messages)
    message: dict[str, Any] = {"model": chat.model}
    _put_limits(chat, message)
    output = _put_format(chat, system)
    if chat.reasoning_effort is not None:
        _put_effort(chat, message, output, thinks="thinking" in passed)
    if output:
        message["output_config"] = output
    _put_tools(chat, message)
    message |= passed
    if system:
        message["system"] = system
    message["messages"] = turns
    options = chat.stream_options
    return Asked(chat.model, _encode(message), bool(options and options.include_usage))


def _read(body: bytes) -> tuple[dict[str, msgspec.Raw], ChatRequest]:
    try:
        try:
            return _fields.decode(body), _request.decode(body)
        except msgspec.ValidationError:
            raise
        except msgspec.DecodeError:
            readable = without_halves(body)
            if readable is None:
                raise
            return _fields.decode(readable), _request.decode(readable)
    except msgspec.ValidationError as error:
        raise InvalidRequest(_words(str(error))) from None
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"the body is not valid JSON: {str(error).removeprefix('JSON is malformed: ')}") from None
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"the body is not valid UTF-8: see byte {error.start}") from None
    except RecursionError:
        raise InvalidRequest("the body is nested too deeply; at most 500 levels are read") from None


def _words(error: str) -> str:
    """Put "Expected `str`, got `int` - at `$.messages[0].role`" with the field first."""
    what, _, place = error.replace("`", "").rpartition(" - at ")
    if not place.startswith("$."):
        missing = error.replace("`", "")
        return missing if what else f"the body must be a JSON object with model and messages: {missing}"
    return f"{place[2:][:200]}: {what}"


def _check(fields: Mapping[str, msgspec.Raw]) -> dict[str, msgspec.Raw]:
    """Give the fields that go on as they are. Raises InvalidRequest for what cannot be had or is not known."""
    passed = {}
    for name, raw in fields.items():
        if name in ChatRequest.__struct_fields__ or name in IGNORED or not is_given(raw):
            continue
        if name in PASSED:
            passed[name] = raw
        elif name not in NOTHING:
            raise InvalidRequest(f"{name[:100]}: this endpoint does not know the field; leave it out")
        elif not any(_is(raw, value) for value in NOTHING[name]):
            raise InvalidRequest(
                f"{name}: not offered here: {WORDS.get(name, 'the models cannot do it')}; leave it out"
            )
    return passed


def _is(raw: msgspec.Raw, value: object) -> bool:
    try:
        return bool(len(bytes(raw)) < _SHOWN and msgspec.json.decode(raw) == value)
    except (msgspec.DecodeError, RecursionError):
        return False


def _put_limits(chat: ChatRequest, message: dict[str, Any]) -> None:
    most = chat.max_tokens if chat.max_completion_tokens is None else chat.max_completion_tokens
    if most is not None:
        if not 1 <= most < 2**53:
            raise InvalidRequest(f"max_completion_tokens must be 1 or more, got {most}")
        message["max_tokens"] = most
    if chat.temperature is not None:
        if not 0 <= chat.temperature <= 1:
            raise InvalidRequest(f"temperature must be 0…1 with these models, got {chat.temperature:g}")
        message["temperature"] = chat.temperature
    if is_given(chat.top_p):
        message["top_p"] = chat.top_p
    stops = [chat.stop] if isinstance(chat.stop, str) else chat.stop or []
    if any(stops):
        message["stop_sequences"] = [stop for stop in stops if stop]
    if chat.stream:
        message["stream"] = True
    user = chat.user or chat.safety_identifier
    if user:
        message["metadata"] = {"user_id": user}


def _put_format(chat: ChatRequest, system: list[dict[str, Any]]) -> dict[str, Any]:
    """Give the output_config of a response_format, or add to the system prompt what has no field there."""
    wanted = chat.response_format
    if wanted is None or wanted.type == "text":
        return {}
    if wanted.type == "json_object":
        system.append({"type": "text", "text": JSON_ONLY})
        return {}
    if wanted.type != "json_schema":
        raise InvalidRequest(
            f"response_format.type must be text, json_object or json_schema, got {wanted.type[:_SHOWN]!r}"
        )
    schema = wanted.json_schema.schema if wanted.json_schema else NULL
    if not bytes(schema).startswith(b"{"):
        raise InvalidRequest("response_format.json_schema.schema: an object is required")
    return {"format": {"type": "json_schema", "schema": schema}}


def _put_effort(chat: ChatRequest, message: dict[str, Any], output: dict[str, Any], *, thinks: bool) -> None:
    """Put the effort, and let the model think where nothing else that is asked for forbids it."""
    effort = chat.reasoning_effort or ""
    if effort == "none":
        if not thinks:
            message["thinking"] = {"type": "disabled"}
        return
    if effort not in EFFORTS:
        raise InvalidRequest(f"reasoning_effort must be none, {', '.join(EFFORTS)}, got {effort[:_SHOWN]!r}")
    output["effort"] = EFFORTS[effort]
    is_forced = isinstance(chat.tool_choice, Choice) or chat.tool_choice == "required"
    if not (thinks or is_forced or effort == "minimal" or chat.temperature is not None):
        message["thinking"] = {"type": "adaptive", "display": "summarized"}


def _put_tools(chat: ChatRequest, message: dict[str, Any]) -> None:
    if not chat.tools:
        if isinstance(chat.tool_choice, Choice) or chat.tool_choice == "required":
            raise InvalidRequest("tool_choice: there are no tools to choose from; give some in tools")
        return
    message["tools"] = [_tool(number, tool) for number, tool in enumerate(chat.tools)]
    choice = _choice(chat.tool_choice)
    if chat.parallel_tool_calls is False:
        choice = choice or {"type": "auto"}
        if choice["type"] != "none":
            choice["disable_parallel_tool_use"] = True
    if choice is not None:
        message["tool_choice"] = choice


def _tool(number: int, tool: Tool) -> dict[str, Any]:
    at = f"tools[{number}]"
    if tool.type != "function" or tool.function is None:
        raise InvalidRequest(f"{at}: tools of type function are taken here, not {tool.type[:_SHOWN]!r}")
    function = tool.function
    described: dict[str, Any] = {"name": function.name}
    if function.description:
        described["description"] = function.description
    described["input_schema"] = _input_schema(at, function.parameters)
    if function.strict:
        described["strict"] = True
    if is_given(tool.cache_control):
        described["cache_control"] = tool.cache_control
    return described


def _input_schema(at: str, parameters: msgspec.Raw) -> object:
    """Give a tool's schema as it was written; the one that takes nothing may be left out, or be an empty object."""
    if not is_given(parameters):
        return {"type": "object", "properties": {}}
    try:
        fields = _fields.decode(parameters)
    except (msgspec.DecodeError, RecursionError):
        raise InvalidRequest(f"{at}.function.parameters: a JSON Schema, an object, is required") from None
    return parameters if "type" in fields else {"type": "object", **fields}


def _choice(choice: str | Choice | None) -> dict[str, Any] | None:
    if choice is None:
        return None
    if isinstance(choice, Choice):
        if choice.type != "function" or choice.function is None:
            raise InvalidRequest(f"tool_choice: name a function, got one of type {choice.type[:_SHOWN]!r}")
        return {"type": "tool", "name": choice.function.name}
    if choice not in _CHOICES:
        raise InvalidRequest(f"tool_choice must be none, auto, required or a function, got {choice[:_SHOWN]!r}")
    return {"type": _CHOICES[choice]}
