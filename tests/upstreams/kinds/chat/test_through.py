"""Chat Completions servers behind a running gateway: what is charged and told; no balance goes below zero."""

import json
from pathlib import Path
from typing import Any

import pytest
from anthropic import AsyncAnthropic

from farebox.config import load_config
from farebox.errors import ConfigError
from tests.gateway.play import USD, WAIT, Heard, books, envelope, eventually, exact, listen, message, nanos
from tests.stage import MODEL, OpenStage
from tests.upstreams.kinds.chat.recorded import BROKEN, DONE, STREAMS, chunk, counted
from tests.upstreams.kinds.chat.server import NAME, asked, serving, streamed, whole

COMPLETION = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "model": "theirs-2026-01-01",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello ✓"}, "finish_reason": "stop"}],
    "usage": counted(19, 10, prompt_tokens_details={"cached_tokens": 8}),
}
COST = nanos(exact(input=11, read=8, output=10))
SCHEMA = {"type": "object", "properties": {"location": {"type": "string"}}, "required": ["location"]}
TOOL: Any = {"name": "get_weather", "input_schema": SCHEMA}


async def test_a_stream_comes_translated_and_costs_what_the_server_counted(open_stage: OpenStage) -> None:
    recorded = STREAMS["OpenAI, text"]
    async with (
        serving(streamed(recorded.text[:300], recorded.text[300:])) as (server, up),
        open_stage(upstreams=up) as stage,
    ):
        heard = await (await listen(stage, stage.alice, "Hi")).end()
        row = await books(stage, stage.alice)
        assert heard.names[:2] == ["message_start", "ping"]
        assert heard.names[-2:] == ["message_delta", "message_stop"]
        assert heard.start_usage["input_tokens"] == 0
        assert heard.final_usage == recorded.usage
        assert (row["kind"], row["model"], row["charged_nanos"], row["shortfall_nanos"]) == ("exact", MODEL, COST, 0)
        (body,) = asked(server)
        assert body["messages"] == [{"role": "user", "content": "Hi"}]
        assert body["stream_options"] == {"include_usage": True}
        assert NAME.encode() not in heard.data


async def test_a_whole_answer_costs_the_same(open_stage: OpenStage) -> None:
    async with serving(whole(COMPLETION)) as (server, up), open_stage(upstreams=up) as stage:
        status, body = await stage.ask(stage.alice, "Hi", system="Be kind", metadata={"user_id": "u"})
        row = await books(stage, stage.alice)
        assert (status, json.loads(body)["content"]) == (200, [{"type": "text", "text": "Hello ✓"}])
        assert (row["kind"], row["charged_nanos"]) == ("exact", COST)
        assert asked(server)[0]["user"] == "u"


async def test_a_server_that_ignores_the_wish_for_a_stream_is_put_as_one(open_stage: OpenStage) -> None:
    async with serving(whole(COMPLETION)) as (_, up), open_stage(upstreams=up) as stage:
        heard = await (await listen(stage, stage.alice)).end()
        assert heard.names[-1] == "message_stop"
        assert (await books(stage, stage.alice))["charged_nanos"] == COST


@pytest.mark.parametrize("stream", [True, False])
async def test_without_usage_nothing_is_charged(open_stage: OpenStage, *, stream: bool) -> None:
    told = (
        streamed(chunk({"content": "Hi"}), chunk({}, "stop"), DONE) if stream else whole({**COMPLETION, "usage": None})
    )
    async with serving(told) as (_, up), open_stage(upstreams=up) as stage:
        status, body = await stage.ask(stage.alice, stream=stream)
        row = await books(stage, stage.alice)
        assert (row["kind"], row["outcome"], row["charged_nanos"]) == ("waived", "upstream_broke", 0)
        if stream:
            assert b"the upstream reported no usage for its answer; nothing was charged" in body
            assert b"message_stop" not in body
        else:
            assert (status, envelope(body)[0]) == (502, "upstream_error")


async def test_the_hold_covers_the_prompt_until_the_server_has_counted_it(open_stage: OpenStage) -> None:
    """The start of the message says 0 tokens of input. That frees nothing: another call cannot spend that money."""
    words = "a" * 20_000
    end = chunk({}, "stop") + chunk(usage=counted(20_000, 30)) + DONE
    answer = streamed(chunk({"content": "Hi"}), WAIT, end)
    async with serving(answer) as (server, up), open_stage(upstreams=up, alice_usd=0.05, limits="drain_s = 5") as stage:
        had = int(0.05 * USD)
        heard = await listen(stage, stage.alice, words, max_tokens=500)
        await heard.has(b"Hi")
        _, held = await stage.balance(stage.alice)
        assert held >= nanos(exact(input=20_000))
        status, body = await stage.ask(stage.alice, words)
        assert (status, envelope(body)[0]) == (402, "insufficient_balance")
        assert len(server.heard) == 1
        heard.hang_up()
        posted, held = await stage.balance(stage.alice)
        assert posted == had
        assert held > 0


async def test_many_streams_at_once_never_take_a_balance_below_zero(open_stage: OpenStage) -> None:
    """Each is counted as much as its bound allows: all that were let in are paid in full."""
    words = "a" * 10_000
    answer = streamed(chunk({"content": "Hi"}), chunk({}, "stop"), chunk(usage=counted(10_000, 30)), DONE)
    async with serving(answer) as (_, up), open_stage(upstreams=up, alice_usd=0.1) as stage:
        calls = [await listen(stage, stage.alice, words, max_tokens=300) for _ in range(20)]
        for heard in calls:
            await heard.end()
        served = [heard for heard in calls if heard.status == 200]
        row = await books(stage, stage.alice, had=int(0.1 * USD), calls=len(served))
        assert 0 < len(served) < 20
        assert row["shortfall_nanos"] == 0


async def test_who_hangs_up_pays_what_the_server_counts_at_the_end(open_stage: OpenStage) -> None:
    text = STREAMS["OpenAI, text"].text
    cut = text.index(b"\n\n") + 2
    more = [piece + b"\n\n" for piece in text[cut:].split(b"\n\n")[:-1]]
    async with serving(streamed(text[:cut], *more)) as (_, up), open_stage(upstreams=up) as stage:
        heard = await listen(stage, stage.alice)
        heard.hang_up()
        row = await books(stage, stage.alice)
        assert (row["kind"], row["charged_nanos"]) == ("exact", COST)


@pytest.mark.parametrize(("counts", "input_"), [(False, 0), (True, 12)])
async def test_what_is_cut_before_the_server_has_counted_costs_its_output_alone(
    open_stage: OpenStage, *, counts: bool, input_: int
) -> None:
    """A server that counts in every chunk is paid for the input as well."""
    usage: dict[str, Any] = {"usage": counted(12, 0)} if counts else {}
    answer = streamed(chunk({"role": "assistant"}, **usage), chunk({"content": "abcdefgh"}, **usage), WAIT)
    settings = {"takes": '["continuous_usage"]'} if counts else {}
    async with (
        serving(answer, **settings) as (server, up),
        open_stage(upstreams=up, limits="drain_s = 0.2") as stage,
    ):
        heard = await listen(stage, stage.alice)
        await heard.has(b"abcdefgh")
        heard.hang_up()
        row = await books(stage, stage.alice)
        assert (row["kind"], row["input_tokens"], row["output_tokens"]) == ("estimated", input_, 2)
        assert asked(server)[0]["stream_options"].get("continuous_usage_stats", False) is counts


async def test_money_that_runs_out_in_the_middle_ends_the_stream(open_stage: OpenStage) -> None:
    pieces = [chunk({"content": "word " * 200}) for _ in range(200)]
    async with serving(streamed(*pieces, WAIT)) as (_, up), open_stage(upstreams=up, alice_usd=0.02) as stage:
        heard = await (await listen(stage, stage.alice, max_tokens=60_000)).end(30)
        row = await books(stage, stage.alice, had=int(0.02 * USD))
        assert heard.last[1]["error"]["type"] == "insufficient_balance"
        assert (row["outcome"], row["shortfall_nanos"]) == ("out_of_money", 0)
        assert row["charged_nanos"] == nanos(exact(output=row["output_tokens"]))


@pytest.mark.parametrize("name", BROKEN)
async def test_a_stream_that_breaks_is_free_and_says_so(open_stage: OpenStage, name: str) -> None:
    _, text, _ = BROKEN[name]
    cut = text.index(b"\n\n") + 2
    async with serving(streamed(text[:cut], text[cut:])) as (_, up), open_stage(upstreams=up) as stage:
        heard = await (await listen(stage, stage.alice)).end()
        row = await books(stage, stage.alice)
        assert (row["outcome"], row["charged_nanos"]) == ("upstream_broke", 0)
        assert b"org-123" not in heard.data
        if heard.status == 200:
            assert heard.last[0] == "error"
            assert heard.last[1]["error"]["type"] != "billing_error"


ERRORS = {
    "too long": (
        whole(
            {"error": {"message": "maximum context length is 9 tokens. However, you requested 12", "code": 400}}, 400
        ),
        (400, "invalid_request_error", "prompt is too long: 12 tokens > 9 maximum"),
        1,
    ),
    "no such model": (
        whole({"error": {"message": f"The model `{NAME}` does not exist", "code": "model_not_found"}}, 404),
        (502, "upstream_error", "the upstream does not accept this gateway at the moment"),
        3,
    ),
    "no quota": (
        whole({"error": {"message": "org-123", "code": "insufficient_quota"}}, 429, "x-should-retry: false"),
        (502, "upstream_error", "the upstream does not accept this gateway at the moment"),
        3,
    ),
    "too fast": (whole({"error": {"message": "org-123"}}, 429), (429, "rate_limit_error", "rate limit"), 3),
    "flagged": (
        whole({"error": {"message": "your input was flagged"}}, 403),
        (400, "invalid_request_error", "flagged"),
        1,
    ),
    "no key": (whole({"error": "no"}, 401), (502, "upstream_error", "does not accept this gateway"), 3),
    "an error in an answer": (
        whole({"error": {"message": "x", "code": 502}}),
        (502, "upstream_error", "no usable answer"),
        3,
    ),
    "a page": (
        [b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 2\r\nconnection: close\r\n\r\nhi"],
        (502, "upstream_error", "no usable answer"),
        3,
    ),
}


@pytest.mark.parametrize("name", ERRORS)
async def test_errors_are_told_in_words_that_help_and_never_name_the_operator_s_account(
    open_stage: OpenStage, name: str
) -> None:
    answer, (status, kind, words), tries = ERRORS[name]
    async with serving(answer) as (server, up), open_stage(upstreams=up) as stage:
        got, body = await stage.ask(stage.alice)
        row = await books(stage, stage.alice)
        assert got == status
        error = json.loads(body)["error"]
        assert error["type"] == kind
        assert words in error["message"]
        assert b"org-123" not in body
        assert NAME.encode() not in body
        assert row["charged_nanos"] == 0
        assert len(server.heard) == tries


async def test_what_cannot_be_asked_is_refused_before_anything_is_sent(open_stage: OpenStage) -> None:
    async with serving(whole(COMPLETION)) as (server, up), open_stage(upstreams=up) as stage:
        status, body = await stage.ask(stage.alice, tools=[{"type": "bash_20250124", "name": "bash"}])
        assert (status, envelope(body)[0]) == (400, "invalid_request_error")
        assert b"bash_20250124" in body
        assert not server.heard

        async def nothing_held() -> bool:
            return (await stage.balance(stage.alice)) == (100 * USD, 0)

        await eventually(nothing_held)


@pytest.mark.parametrize("stream", [True, False])
async def test_tools_go_round_with_anthropic_s_own_client(open_stage: OpenStage, *, stream: bool) -> None:
    """Two calls at once, both answered, one with an error; thinking is there and goes up no more."""
    first = STREAMS["OpenAI, parallel tool calls"].text
    calls = [
        {
            "id": id_,
            "type": "function",
            "function": {"name": "get_weather", "arguments": json.dumps({"location": place})},
        }
        for id_, place in (("call_DdmO9p", "Paris"), ("call_XxLq2w", "Bogotá"))
    ]
    said = {"role": "assistant", "content": None, "reasoning": "hm", "tool_calls": calls}
    answers = [
        whole({**COMPLETION, "choices": [{"index": 0, "message": said, "finish_reason": "tool_calls"}]}),
        whole(COMPLETION),
    ]
    if stream:
        answers = [streamed(chunk({"reasoning": "hm"}), first), streamed(STREAMS["OpenAI, text"].text)]
    async with serving(*answers) as (server, up), open_stage(upstreams=up) as stage:
        async with AsyncAnthropic(api_key=stage.alice.key, base_url=stage.base_url, max_retries=0) as client:
            messages: list[Any] = [{"role": "user", "content": "How is the weather?"}]
            fields: dict[str, Any] = {"model": MODEL, "max_tokens": 500, "tools": [TOOL]}
            replies: list[Any] = []
            for _ in range(2):
                if stream:
                    async with client.messages.stream(messages=messages, **fields) as events:
                        reply: Any = await events.get_final_message()
                else:
                    reply = await client.messages.create(messages=messages, **fields)
                replies.append(reply)
                uses = [block for block in reply.content if block.type == "tool_use"]
                results = [{"type": "tool_result", "tool_use_id": use.id, "content": "17°"} for use in uses]
                if results:
                    results[1]["is_error"] = True
                messages += [{"role": "assistant", "content": reply.content}, {"role": "user", "content": results}]
        assert [block.type for block in replies[0].content] == ["thinking", "tool_use", "tool_use"]
        assert replies[0].stop_reason == "tool_use"
        assert [use.input for use in replies[0].content[1:]] == [{"location": "Paris"}, {"location": "Bogotá"}]
        assert replies[1].content[0].text == "Hello ✓"
        assert (replies[1].usage.input_tokens, replies[1].usage.output_tokens) == (11, 10)
        _, body = asked(server)
        assert [one["role"] for one in body["messages"]] == ["user", "assistant", "tool", "tool"]
        assert [one["content"] for one in body["messages"][2:]] == ["17°", "Error: 17°"]
        await books(stage, stage.alice, calls=2)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("", "base_url is missing; it must be the URL of a server"),
        ('base_url = "http://h/v1/chat/completions"', "leave out the /chat/completions"),
        ('base_url = "http://h/v1"\ntakes = ["x"]', "takes"),
        ('base_url = "http://h/v1"\noutput_tokens = -1', "output_tokens is -1"),
        ('base_url = "http://h/v1"\nregion = "us-east-1"', "region is for upstreams of kind"),
    ],
)
def test_settings_that_cannot_be_are_told(tmp_path: Path, lines: str, words: str) -> None:
    path = tmp_path / "farebox.toml"
    path.write_text(f'[[upstreams]]\nname = "c"\nkind = "chat"\n{lines}\n')
    with pytest.raises(ConfigError, match=words):
        load_config(path, {})


def test_the_least_that_must_be_set_is_an_address(tmp_path: Path) -> None:
    path = tmp_path / "farebox.toml"
    path.write_text('[[upstreams]]\nname = "c"\nkind = "chat"\nbase_url = "http://localhost:8000"\n')
    assert load_config(path, {}).upstreams[0].base_url == "http://localhost:8000"


async def test_a_call_of_claude_code_s_shape_is_taken(open_stage: OpenStage) -> None:
    """Everything that its captured main request has, its headers included."""
    body = message(
        "say ok",
        stream=True,
        max_tokens=60_000,
        system=[
            {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1.330.839; cc_entrypoint=sdk-cli;"},
            {"type": "text", "text": "You are a Claude agent", "cache_control": {"type": "ephemeral"}},
        ],
        tools=[
            {"name": "Bash", "description": "d", "input_schema": {"type": "object"}, "eager_input_streaming": True},
            {"name": "DeferredToolPlaceholder", "input_schema": {"type": "object"}, "defer_loading": True},
        ],
        metadata={"user_id": json.dumps({"device_id": "d" * 64, "session_id": "s"})},
        thinking={"type": "adaptive", "display": "omitted"},
        context_management={"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        output_config={"effort": "medium"},
    )
    body["messages"].append(
        {"role": "system", "content": [{"type": "text", "text": "# Environment"}], "output_config": {}}
    )
    async with (
        serving(streamed(STREAMS["OpenAI, text"].text), output_tokens="32000", thinking='"reasoning_effort"') as (
            server,
            up,
        ),
        open_stage(upstreams=up) as stage,
    ):
        headers = {"anthropic-beta": "claude-code-20250219", "x-app": "cli", "x-claude-code-session-id": "s" * 36}
        answer = await stage.post(stage.alice, body, path="/api/proxy/v1/messages?beta=true", headers=headers)
        heard = await Heard(answer).end()
        assert heard.names[-1] == "message_stop"
        (chat,) = asked(server)
        assert (chat["max_tokens"], chat["reasoning_effort"]) == (32000, "medium")
        assert [one["role"] for one in chat["messages"]] == ["system", "user", "system"]
