"""The simulator answers as the Messages API does: shapes, order, words of refusal, figures."""

import asyncio
import json
from typing import Any

import anthropic
import pytest

from farebox.upstreams.simulator import Simulator
from farebox.upstreams.simulator.ask import count_tokens

from .client import OPUS, Ask, body_of, receive, send

WEATHER = {
    "name": "get_weather",
    "description": "Tell the weather.",
    "input_schema": {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
            "days": {"type": "integer", "minimum": 1},
            "note": {"type": "string"},
        },
        "required": ["city", "unit", "days"],
    },
}
LONG = "The books prove themselves. " * 200


async def test_a_message_says_it_is_simulated_and_its_usage_can_be_counted_by_hand(
    client: anthropic.AsyncAnthropic,
) -> None:
    message = await client.messages.create(
        model=OPUS, max_tokens=500, messages=[{"role": "user", "content": "How are you?"}]
    )
    assert message.content[0].type == "text"
    assert "simulator" in message.content[0].text
    assert "How are you?" in message.content[0].text
    assert message.stop_reason == "end_turn"
    assert message.usage.input_tokens == 3 + 4 + 3
    assert message.usage.output_tokens == -(-len(message.content[0].text) // 4)
    assert message.usage.service_tier == "standard"
    assert message._request_id is not None


async def test_equal_bodies_get_equal_words_and_different_ids(ask: Ask) -> None:
    first, second = (await ask()).json(), (await ask()).json()
    assert first.pop("id") != second.pop("id")
    assert first == second


async def test_ids_repeat_with_a_seed_and_never_without() -> None:
    async def first_id(seed: int | None) -> str:
        simulator = Simulator(speed=0, seed=seed)
        await simulator.listen()
        reply = await receive(await send(simulator.port, body_of()))
        await simulator.close()
        return str(reply.json()["id"])

    assert await first_id(1) == await first_id(1) != await first_id(2)
    assert await first_id(None) != await first_id(None)


async def test_a_stream_keeps_the_order_of_the_api_and_tells_what_the_json_tells(ask: Ask) -> None:
    whole = (await ask()).json()
    reply = await ask(stream=True)
    assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert reply.complete
    names = reply.names()
    assert names[:2] == ["message_start", "content_block_start"]
    assert names[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(names[2:-3]) == {"content_block_delta"}
    events = dict(reply.events())
    start = events["message_start"]["message"]
    assert (start["content"], start["stop_reason"], start["usage"]["output_tokens"]) == ([], None, 1)
    assert events["message_delta"]["usage"]["output_tokens"] == whole["usage"]["output_tokens"]
    assert reply.text() == whole["content"][0]["text"]


async def test_the_streaming_helper_of_the_sdk_puts_the_answer_together(
    client: anthropic.AsyncAnthropic,
) -> None:
    async with client.messages.stream(
        model=OPUS,
        max_tokens=500,
        messages=[{"role": "user", "content": "Stream, please [[sim tokens=100]]"}],
    ) as stream:
        text = "".join([piece async for piece in stream.text_stream])
        message = await stream.get_final_message()
    assert len(text) == 400
    assert message.content[0].type == "text"
    assert message.content[0].text == text
    assert message.usage.output_tokens == 100


@pytest.mark.parametrize("stream", [False, True])
async def test_max_tokens_ends_the_text_exactly(ask: Ask, stream: bool) -> None:  # noqa: FBT001
    reply = await ask(max_tokens=7, stream=stream)
    if stream:
        last = dict(reply.events())["message_delta"]
        assert (len(reply.text()), last["delta"]["stop_reason"]) == (28, "max_tokens")
        assert last["usage"]["output_tokens"] == 7
    else:
        message = reply.json()
        assert (len(message["content"][0]["text"]), message["stop_reason"]) == (28, "max_tokens")
        assert message["usage"]["output_tokens"] == 7


async def test_max_tokens_of_zero_warms_the_cache_and_says_nothing(ask: Ask) -> None:
    message = (await ask([{"type": "text", "text": LONG, "cache_control": {"type": "ephemeral"}}], max_tokens=0)).json()
    assert (message["content"], message["stop_reason"], message["usage"]["output_tokens"]) == (
        [],
        "max_tokens",
        0,
    )
    assert message["usage"]["cache_creation_input_tokens"] > 1000


async def test_a_stop_sequence_ends_the_text_before_it(ask: Ask) -> None:
    message = (await ask(stop_sequences=["zebra", "simulator"])).json()
    assert message["content"][0]["text"] == "This is the Farebox "
    assert (message["stop_reason"], message["stop_sequence"]) == ("stop_sequence", "simulator")


async def test_a_tool_is_called_with_fitting_input_and_its_result_answered_by_text(
    client: anthropic.AsyncAnthropic,
) -> None:
    said: list[Any] = [{"role": "user", "content": "Use the tool for Ghent"}]
    async with client.messages.stream(model=OPUS, max_tokens=500, messages=said, tools=[WEATHER]) as stream:  # type: ignore[list-item]
        message = await stream.get_final_message()
    assert message.stop_reason == "tool_use"
    use = message.content[-1]
    assert use.type == "tool_use"
    assert use.input == {"city": "simulated city", "unit": "celsius", "days": 1}
    said += [
        {"role": "assistant", "content": message.content},
        {
            "role": "user",
            "content": [{"type": "tool_result", "tool_use_id": use.id, "content": "Sunny, 21 degrees"}],
        },
    ]
    answer = await client.messages.create(model=OPUS, max_tokens=500, messages=said, tools=[WEATHER])  # type: ignore[list-item]
    assert answer.stop_reason == "end_turn"
    assert answer.content[0].type == "text"
    assert "Sunny, 21 degrees" in answer.content[0].text


async def test_a_tool_call_streams_as_pieces_of_json_after_an_empty_one(ask: Ask) -> None:
    reply = await ask(stream=True, tools=[WEATHER], tool_choice={"type": "tool", "name": "get_weather"})
    deltas = [data["delta"] for name, data in reply.events() if name == "content_block_delta"]
    pieces = [delta["partial_json"] for delta in deltas if delta["type"] == "input_json_delta"]
    assert pieces[0] == ""
    assert len(pieces) > 3
    assert json.loads("".join(pieces))["unit"] == "celsius"


async def test_tools_lie_unused_when_nobody_asks_for_them(ask: Ask) -> None:
    assert (await ask(tools=[WEATHER])).json()["stop_reason"] == "end_turn"
    assert (await ask("Use the tool", tools=[WEATHER], tool_choice={"type": "none"})).json()[
        "stop_reason"
    ] == "end_turn"


async def test_thinking_is_signed_and_a_changed_thought_is_refused(client: anthropic.AsyncAnthropic) -> None:
    said: list[Any] = [{"role": "user", "content": "Think"}]
    thinking: Any = {"type": "adaptive"}
    async with client.messages.stream(model=OPUS, max_tokens=500, messages=said, thinking=thinking) as stream:
        message = await stream.get_final_message()
    thought = message.content[0]
    assert thought.type == "thinking"
    assert len(thought.thinking) == 32 * 4
    assert message.usage.output_tokens_details is not None
    assert message.usage.output_tokens_details.thinking_tokens == 32
    said += [{"role": "assistant", "content": message.content}, {"role": "user", "content": "Go on"}]
    await client.messages.create(model=OPUS, max_tokens=500, messages=said)
    thought.thinking = thought.thinking.replace("simulator", "Simulator")
    with pytest.raises(anthropic.BadRequestError, match="Invalid `signature` in `thinking` block"):
        await client.messages.create(model=OPUS, max_tokens=500, messages=said)


async def test_omitted_thinking_is_paid_and_shows_only_its_signature(ask: Ask) -> None:
    reply = await ask("Think", stream=True, thinking={"type": "adaptive", "display": "omitted"})
    kinds = [data["delta"]["type"] for name, data in reply.events() if name == "content_block_delta"]
    assert kinds[0] == "signature_delta"
    assert "thinking_delta" not in kinds
    usage = dict(reply.events())["message_delta"]["usage"]
    assert usage["output_tokens_details"] == {"thinking_tokens": 32}
    assert usage["output_tokens"] == 32 + -(-len(reply.text()) // 4)


async def test_a_cached_prefix_is_written_once_and_then_read(ask: Ask) -> None:
    system = [
        {"type": "text", "text": LONG, "cache_control": {"type": "ephemeral", "ttl": "1h"}},
        {"type": "text", "text": LONG, "cache_control": {"type": "ephemeral"}},
    ]
    first = (await ask(system=system)).json()["usage"]
    assert first["cache_creation"] == {"ephemeral_1h_input_tokens": 1403, "ephemeral_5m_input_tokens": 1400}
    assert (first["cache_creation_input_tokens"], first["cache_read_input_tokens"]) == (2803, 0)
    second = (await ask("Something else", system=system)).json()["usage"]
    assert (second["cache_creation_input_tokens"], second["cache_read_input_tokens"]) == (0, 2803)
    assert second["input_tokens"] == 4 + 4
    changed = [system[0], {"type": "text", "text": "x" + LONG, "cache_control": {"type": "ephemeral"}}]
    third = (await ask(system=changed)).json()["usage"]
    assert (third["cache_creation_input_tokens"], third["cache_read_input_tokens"]) == (1401, 1403)


async def test_a_conversation_reads_what_its_last_turn_wrote(ask: Ask) -> None:
    """The mark moves to the newest message, as in Claude Code: the older prefix is still found."""

    def marked(text: str) -> dict[str, Any]:
        return {
            "role": "user",
            "content": [{"type": "text", "text": text, "cache_control": {"type": "ephemeral"}}],
        }

    def bare(text: str) -> dict[str, Any]:
        return {"role": "user", "content": [{"type": "text", "text": text}]}

    first = (await ask(messages=[marked(LONG)])).json()["usage"]
    turns = [bare(LONG), {"role": "assistant", "content": "Indeed."}, marked("And then?")]
    second = (await ask(messages=turns)).json()["usage"]
    assert second["cache_read_input_tokens"] == first["cache_creation_input_tokens"] == 1407
    assert second["cache_creation_input_tokens"] == 4 + 2 + 4 + 3


async def test_a_cached_prefix_expires_by_the_clock() -> None:
    now = [0]
    simulator = Simulator(speed=0, clock=lambda: now[0])
    await simulator.listen()
    said = [{"type": "text", "text": LONG, "cache_control": {"type": "ephemeral"}}]
    reads = []
    for minutes in (0, 4, 8, 14):
        now[0] = minutes * 60_000_000
        reply = await receive(await send(simulator.port, body_of(said)))
        reads.append(reply.json()["usage"]["cache_read_input_tokens"] > 0)
    await simulator.close()
    assert reads == [False, True, True, False]


BODIES: list[dict[str, Any]] = [
    body_of(),
    body_of(LONG, system="Be brief."),
    body_of([{"type": "text", "text": LONG, "cache_control": {"type": "ephemeral"}}], tools=[WEATHER]),
    body_of([{"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}}]),
    body_of([{"type": "document", "source": {"type": "base64", "data": "x", "media_type": "application/pdf"}}]),
]


@pytest.mark.parametrize("body", BODIES)
async def test_count_tokens_agrees_with_the_usage(simulator: Simulator, body: dict[str, Any]) -> None:
    counted = await receive(await send(simulator.port, body, path="/v1/messages/count_tokens"))
    usage = (await receive(await send(simulator.port, body))).json()["usage"]
    total = usage["input_tokens"] + usage["cache_creation_input_tokens"] + usage["cache_read_input_tokens"]
    assert counted.json() == {"input_tokens": total}
    assert total == count_tokens(body)


async def test_a_web_search_counts_and_makes_the_input_grow(ask: Ask) -> None:
    tool = {"type": "web_search_20250305", "name": "web_search", "max_uses": 2}
    reply = await ask("Please search", knobs="searches=5", stream=True, tools=[tool])
    events = reply.events()
    kinds = [data["content_block"]["type"] for name, data in events if name == "content_block_start"]
    assert kinds == ["server_tool_use", "web_search_tool_result"] * 2 + ["text"]
    start, last = dict(events)["message_start"]["message"]["usage"], dict(events)["message_delta"]["usage"]
    assert last["server_tool_use"] == {"web_search_requests": 2, "web_fetch_requests": 0}
    assert last["input_tokens"] == start["input_tokens"] + 3000


async def test_structured_output_fits_the_schema(ask: Ask) -> None:
    """Asked for as it is now, or as it was in its beta, which clients still send."""
    shape = {"type": "json_schema", "schema": WEATHER["input_schema"]}
    for asked in ({"output_config": {"format": shape}}, {"output_format": shape}):
        message = (await ask(**asked)).json()
        assert json.loads(message["content"][0]["text"])["days"] == 1


async def test_an_alias_answers_by_its_dated_id_and_geography_speed_and_tier_are_told(ask: Ask) -> None:
    old = (await ask(model="claude-haiku-4-5")).json()
    assert (old["model"], old["usage"]["inference_geo"]) == ("claude-haiku-4-5-20251001", "not_available")
    new = (await ask(model="claude-opus-5-5", inference_geo="us", speed="fast")).json()
    assert (new["usage"]["inference_geo"], new["usage"]["speed"]) == ("us", "fast")


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"max_tokens": None}, 400, "max_tokens: Field required"),
        ({"model": None}, 400, "model: Field required"),
        ({"messages": None}, 400, "messages: Field required"),
        ({"model": "gpt-9"}, 404, "model: gpt-9"),
        ({"model": 5}, 400, "model: Input should be a valid string"),
        ({"max_tokens": -5}, 400, "max_tokens: Input should be greater than or equal to 0"),
        ({"max_tokens": "many"}, 400, "max_tokens: Input should be a valid integer"),
        ({"max_tokens": 10**6}, 400, "max_tokens: 1000000 > 128000, which is the maximum allowed"),
        ({"messages": []}, 400, "messages: at least one message is required"),
        ({"messages": "hi"}, 400, "messages: Input should be a valid list"),
        ({"messages": [{"role": "robot", "content": "x"}]}, 400, "messages.0.role: Input should be"),
        ({"messages": [{"role": "user"}]}, 400, "messages.0.content: Field required"),
        ({"messages": [{"role": "user", "content": ""}]}, 400, "must have non-empty content"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, 400, "messages.0.content.0: Input should be"),
        ({"messages": [{"role": "user", "content": [{"text": "x"}]}]}, 400, "messages.0.content.0.type"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": ""}]}]},
            400,
            "must be non-empty",
        ),
        ({"temperature": 2}, 400, "temperature: Input should be less than or equal to 1"),
        ({"model": "claude-opus-5", "temperature": 1}, 400, "`temperature` is deprecated for this model."),
        ({"stream": "yes"}, 400, "stream: Input should be a valid boolean"),
        ({"tools": [{"name": "x"}]}, 400, "tools.0.custom.input_schema: Field required"),
        ({"tools": [WEATHER, WEATHER]}, 400, "tools: Tool names must be unique."),
        ({"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "x"}}, 400, "Tool 'x' not found"),
        ({"thinking": {"type": "enabled", "budget_tokens": 5}}, 400, "greater than or equal to 1024"),
        ({"thinking": {"type": "enabled", "budget_tokens": 2000}}, 400, "`max_tokens` must be greater than"),
        ({"model": "claude-opus-5", "thinking": {"type": "enabled"}}, 400, '"thinking.type.adaptive"'),
        ({"system": 5}, 400, "system: Input should be"),
    ],
)
async def test_a_bad_request_is_refused_in_the_words_of_the_api(
    simulator: Simulator, change: dict[str, Any], status: int, words: str
) -> None:
    reply = await receive(await send(simulator.port, body_of(**change)))
    assert reply.status == status
    error = reply.json()
    assert error["type"] == "error"
    assert error["error"]["type"] == ("not_found_error" if status == 404 else "invalid_request_error")
    assert words in error["error"]["message"]
    assert error["request_id"] == reply.headers["request-id"]


@pytest.mark.parametrize("body", [b"{", b"", b"\xff\xfe", b"[" * 100_000, b"[]", b'"text"', b'{"model":"\\ud800"}'])
async def test_a_body_that_is_not_an_object_of_json_is_refused(simulator: Simulator, body: bytes) -> None:
    reply = await receive(await send(simulator.port, body))
    assert (reply.status, reply.json()["error"]["type"]) == (400, "invalid_request_error")


async def test_more_than_32_megabytes_are_refused(simulator: Simulator) -> None:
    reply = await receive(await send(simulator.port, b" " * (32 * 2**20 + 1)))
    assert (reply.status, reply.json()["error"]["type"]) == (413, "request_too_large")


async def test_what_claude_code_sends_is_accepted(ask: Ask) -> None:
    reply = await ask(
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "say ok"}]},
            {"role": "system", "content": [{"type": "text", "text": "# Environment"}], "output_config": {}},
        ],
        tools=[WEATHER, {"name": "DeferredToolPlaceholder", "defer_loading": True}],
        thinking={"type": "adaptive", "display": "omitted"},
        context_management={"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        output_config={"effort": "medium"},
        future_field={"x": 1},
        stream=True,
    )
    assert reply.status == 200
    assert dict(reply.events())["message_delta"]["context_management"] == {"applied_edits": []}


@pytest.mark.parametrize(
    ("head", "words"),
    [
        ("", "anthropic-version: header is required"),
        ("anthropic-version: 2023-06-02\r\n", '"2023-06-02" is not a valid version'),
        ("anthropic-version: 2023-06-01\r\n" * 2, '"2023-06-01, 2023-06-01" is not a valid version'),
    ],
)
async def test_the_version_header_is_required_and_known(simulator: Simulator, head: str, words: str) -> None:
    reply = await receive(await send(simulator.port, body_of(), head=head))
    assert reply.status == 400
    assert words in reply.json()["error"]["message"]


async def test_the_new_version_takes_no_temperature(simulator: Simulator) -> None:
    head = "anthropic-version: 2026-10-21\r\n"
    assert (await receive(await send(simulator.port, body_of(temperature=1), head=head))).status == 400
    assert (await receive(await send(simulator.port, body_of(temperature=1)))).status == 200


@pytest.mark.parametrize("style", ["x-api-key: {}", "authorization: Bearer {}"])
async def test_a_key_is_checked_when_one_was_given(style: str) -> None:
    simulator = Simulator(speed=0, api_key="sk-right")
    await simulator.listen()
    for key, status in (("sk-right", 200), ("sk-wrong", 401)):
        head = "anthropic-version: 2023-06-01\r\n" + style.format(key) + "\r\n"
        reply = await receive(await send(simulator.port, body_of(), head=head))
        assert reply.status == status
    assert reply.json()["error"] == {"type": "authentication_error", "message": "invalid x-api-key"}
    await simulator.close()


async def test_the_models_are_listed_in_pages(client: anthropic.AsyncAnthropic) -> None:
    first = await client.models.list(limit=4)
    assert len(first.data) == 4
    names = [model.id async for model in client.models.list(limit=4)]
    assert len(names) == len(set(names)) > 12
    assert names[:4] == [model.id for model in first.data]
    before = await client.models.list(before_id=names[3], limit=2)
    assert [model.id for model in before.data] == names[1:3]
    assert (await client.models.retrieve("claude-haiku-4-5")).id == "claude-haiku-4-5-20251001"
    with pytest.raises(anthropic.NotFoundError, match="model: gpt-9"):
        await client.models.retrieve("gpt-9")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("HEAD", "/", 200),
        ("GET", "/", 200),
        ("HEAD", "/api/hello", 200),
        ("GET", "/v1/messages", 405),
        ("POST", "/v1/nothing", 404),
        ("GET", "/v1/models?limit=0", 400),
        ("GET", "/v1/models?after_id=gpt-9", 400),
        ("POST", "/v1/messages?beta=true", 200),
    ],
)
async def test_paths_and_methods(simulator: Simulator, method: str, path: str, status: int) -> None:
    body = body_of() if method == "POST" else b""
    reply = await receive(await send(simulator.port, body, method=method, path=path))
    assert reply.status == status
    assert simulator.requests[-1].target == path
    if status >= 400:
        assert reply.json()["type"] == "error"


async def test_answers_carry_the_headers_that_a_gateway_has_to_keep_to_itself(ask: Ask) -> None:
    for reply in (await ask(), await ask(stream=True), await ask(model="gpt-9")):
        for name in ("request-id", "anthropic-organization-id", "set-cookie", "server", "cf-ray", "via"):
            assert name in reply.headers
        assert reply.headers["anthropic-ratelimit-requests-reset"].endswith("Z")


async def test_the_record_tells_what_came_and_how_it_ended(simulator: Simulator) -> None:
    body = json.dumps(body_of("Hello [[sim tokens=12]]", stream=True), indent=3).encode()
    head = "anthropic-version: 2023-06-01\r\nx-custom: Kept\r\n"
    reply = await receive(await send(simulator.port, body, path="/v1/messages?beta=true", head=head))
    request = simulator.requests[-1]
    assert (request.method, request.target, request.body) == ("POST", "/v1/messages?beta=true", body)
    assert request.header(b"x-custom") == b"Kept"
    assert request.message_id == dict(reply.events())["message_start"]["message"]["id"]
    assert request.usage is not None
    assert (request.usage["output_tokens"], request.tokens, request.outcome) == (12, 12, "finished")
    assert request.events == len(reply.events())


async def test_the_record_is_bounded() -> None:
    simulator = Simulator(speed=0, keep=3)
    await simulator.listen()
    await asyncio.gather(*[_once(simulator.port) for _ in range(8)])
    await simulator.close()
    assert len(simulator.requests) == 3


async def _once(port: int) -> None:
    await receive(await send(port, body_of()))
