"""Whatever JSON comes in, the simulator answers or refuses; a handler that raises would be its own bug."""

import copy
import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from farebox.errors import InvalidRequest, NotFound
from farebox.upstreams.simulator.answer import events, message, plan
from farebox.upstreams.simulator.ask import count_tokens, read_ask
from farebox.upstreams.simulator.cache import PromptCache
from farebox.upstreams.simulator.catalogue import catalogue
from farebox.upstreams.simulator.knobs import PLAIN, Knobs

MODELS = catalogue(())
SCHEMA = {
    "type": "object",
    "properties": {
        "a": {"type": "array", "items": {"$ref": "#/$defs/b"}, "minItems": 1},
        "c": {"enum": ["x"]},
    },
    "required": ["a"],
    "$defs": {"b": {"type": "string", "minLength": 3, "maxLength": 9, "format": "date"}},
}
FULL: dict[str, Any] = {
    "model": "claude-haiku-4-5",
    "max_tokens": 2000,
    "stream": True,
    "system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral", "ttl": "1h"}}],
    "thinking": {"type": "enabled", "budget_tokens": 1024, "display": "omitted"},
    "stop_sequences": ["zebra"],
    "tools": [
        {"name": "tool", "input_schema": SCHEMA},
        {"type": "web_search_20250305", "name": "web_search", "max_uses": 2},
    ],
    "tool_choice": {"type": "tool", "name": "tool"},
    "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": SCHEMA}},
    "context_management": {"edits": []},
    "inference_geo": "us",
    "speed": "fast",
    "cache_control": {"type": "ephemeral"},
    "messages": [
        {"role": "user", "content": "search and use tool"},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "tool", "input": {}}]},
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "ok"}]},
                {"type": "image", "source": {"type": "url", "url": "u"}},
                {"type": "document", "source": {"type": "text", "data": "d"}},
                {"type": "text", "text": "search, and use tool", "cache_control": {"type": "ephemeral"}},
            ],
        },
    ],
}


def _paths(node: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [at, *(path for key, value in inner for path in _paths(value, (*at, key)))]


def _with(body: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    changed = copy.deepcopy(body)
    node = changed
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return changed


def _answer(body: Any, knobs: Knobs = PLAIN) -> bool:
    """Take a body through everything but the wire; tells whether it was accepted."""
    try:
        ask = read_ask(json.dumps(body).encode(), "2023-06-01", MODELS, counting=False)
    except (InvalidRequest, NotFound):
        return False
    prompt = PromptCache().classify(ask, 0)
    assert prompt.total == count_tokens(ask.fields)
    answer = plan(ask, knobs, prompt, "msg_sim_1")
    whole = json.loads(json.dumps(message(answer)))
    streamed = [json.loads(event.data.partition(b"\ndata: ")[2]) for event in events(answer, knobs)]
    assert whole["usage"]["output_tokens"] <= max(ask.max_tokens, 0)
    assert streamed[-2]["usage"]["output_tokens"] == whole["usage"]["output_tokens"]
    return True


def test_the_full_body_is_accepted() -> None:
    assert _answer(FULL)
    assert _answer(FULL | {"messages": FULL["messages"][:1]})
    assert _answer({"model": "claude-opus-5-5", "max_tokens": 1, "messages": [{"role": "user", "content": "x"}]})


SCALARS = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=9)
JSON = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["type", "text", "content", "name", "schema", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=1_000, deadline=None)
@given(path=st.sampled_from(_paths(FULL)), value=JSON, first=st.booleans())
def test_no_value_anywhere_in_a_body_makes_it_raise(path: tuple[Any, ...], value: Any, first: bool) -> None:  # noqa: FBT001
    changed = _with(FULL, path, value)
    if first and isinstance(changed, dict) and isinstance(changed.get("messages"), list):
        changed["messages"] = changed["messages"][:1]
    _answer(changed)


@settings(max_examples=500, deadline=None)
@given(
    max_tokens=st.integers(0, 300),
    tokens=st.none() | st.integers(0, 300),
    think=st.none() | st.integers(0, 300),
    refusal=st.none() | st.integers(0, 300),
    searches=st.none() | st.integers(0, 3),
    delta=st.integers(1, 50),
    stop=st.sampled_from(["", "simulator", " ", "e"]),
    tool=st.none() | st.just("*"),
)
def test_output_never_exceeds_max_tokens_and_is_the_sum_of_its_pieces(
    max_tokens: int,
    tokens: int | None,
    think: int | None,
    refusal: int | None,
    searches: int | None,
    delta: int,
    stop: str,
    tool: str | None,
) -> None:
    body = FULL | {
        "max_tokens": max_tokens,
        "stop_sequences": [stop] if stop.strip() else [],
        "thinking": None,
    }
    body["messages"] = [{"role": "user", "content": "Hello"}]
    knobs = Knobs(tokens=tokens, think=think, refusal=refusal, searches=searches, delta=delta, tool=tool)
    ask = read_ask(json.dumps(body).encode(), "2023-06-01", MODELS, counting=False)
    answer = plan(ask, knobs, PromptCache().classify(ask, 0), "msg_sim_1")
    assert answer.usage_final is not None
    produced = sum(event.tokens for event in events(answer, knobs))
    assert answer.usage_final["output_tokens"] == produced <= max_tokens
