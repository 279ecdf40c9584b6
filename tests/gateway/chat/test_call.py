"""Chat completions on a running gateway: charged as any call, whatever happens to client, upstream or money."""

import json
import threading
from typing import Any, Final

import pytest

from farebox.billing.ledger import Settle
from farebox.gateway.chat import front
from farebox.gateway.chat.asked import to_messages
from tests.gateway.chat.play import PATH, ask, chat, chunks, error_of, listen, post, text_of
from tests.gateway.play import USD, books, eventually, script, trouble, upstream
from tests.stage import OpenStage, Stage

PREFIXES: Final = ("/api/proxy/v1", "/api/proxy/v1/v1", "/api/proxy", "/v1", "/v1/v1")


@pytest.mark.parametrize("prefix", PREFIXES)
async def test_it_is_served_under_every_form_of_the_base_url(stage: Stage, prefix: str) -> None:
    answer = await post(stage, stage.alice, chat("[[sim echo]] Hello"), f"{prefix}/chat/completions")
    assert answer.status == 200
    names = dict(answer.headers)
    assert names[b"request-id"] == names[b"x-request-id"]
    assert names[b"content-type"] == b"application/json"
    assert b"anthropic-ratelimit-requests-remaining" in names
    assert json.loads(await answer.read(2**20))["object"] == "chat.completion"


async def test_what_goes_up_is_a_message_without_what_is_openais(stage: Stage) -> None:
    headers = [
        (b"x-api-key", stage.alice.key.encode()), (b"anthropic-version", b"2026-10-21"), (b"openai-project", b"p"),
        (b"content-type", b"application/json"),
    ]  # fmt: skip
    body = json.dumps(chat(temperature=0.5)).encode()
    answer = await stage.client.request("POST", f"{PATH}?api-version=3", headers, body, first_byte_s=30)
    assert answer.status == 200, await answer.read(2**20)
    (asked,) = stage.simulator.requests
    sent = dict(asked.headers)
    assert sent[b"anthropic-version"] == b"2023-06-01"
    assert b"openai-project" not in sent
    assert json.loads(asked.body)["messages"] == [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}]


async def test_a_stream_says_what_a_whole_answer_says(stage: Stage) -> None:
    heard = await (
        await listen(stage, stage.alice, "[[sim think=30 tokens=40]]", stream_options={"include_usage": True})
    ).end()
    assert heard.status == 200
    told = chunks(heard.data)
    assert text_of(told)
    assert text_of(told, "reasoning_content")
    assert told[-2]["choices"][0]["finish_reason"] == "stop"
    row = await books(stage, stage.alice)
    assert told[-1]["usage"]["completion_tokens"] == row["output_tokens"]
    assert (row["kind"], row["outcome"], row["streamed"]) == ("exact", "finished", 1)


async def test_the_end_of_a_stream_waits_for_its_charge(stage: Stage) -> None:
    store = trouble(stage)
    store.open.clear()
    heard = await listen(stage, stage.alice, "[[sim tokens=20]]", stream_options={"include_usage": True})
    await store.reached.wait()
    assert not heard.ended
    for last in (b"[DONE]", b'"finish_reason":"', b"prompt_tokens"):
        assert last not in heard.data
    store.open.set()
    await heard.end()
    assert heard.data.endswith(b"data: [DONE]\n\n")
    await books(stage, stage.alice)


async def test_a_whole_answer_waits_for_its_charge_and_is_not_given_without(stage: Stage) -> None:
    store = trouble(stage)
    store.failing = (Settle,)
    status, told = await ask(stage, stage.alice)
    assert store.refused
    assert status in {200, 503}
    assert ("error" in told) is (status == 503)
    store.failing = ()


async def test_a_stream_that_outlives_the_money_ends_with_an_error(open_stage: OpenStage) -> None:
    async with open_stage(alice_usd=0.04, limits="slice_tokens = 1000") as stage:
        heard = await (await listen(stage, stage.alice, "[[sim tokens=20000 rate=200000]]", max_tokens=30_000)).end()
        last = chunks(heard.data)[-1]["error"]
        assert (last["type"], last["code"]) == ("insufficient_quota", "insufficient_quota")
        assert "your balance is used up" in last["message"]
        assert b"[DONE]" not in heard.data
        assert text_of(chunks(heard.data))
        row = await books(stage, stage.alice, had=int(0.04 * USD))
        assert row["outcome"] == "out_of_money"


async def test_a_client_that_hangs_up_pays_for_what_came(stage: Stage) -> None:
    heard = await listen(stage, stage.alice, "[[sim tokens=400 rate=400]]")
    await heard.has(b'"content":')
    heard.hang_up()
    row = await books(stage, stage.alice)
    assert row["outcome"] == "client_gone"
    assert row["charged_nanos"] > 0


@pytest.mark.parametrize("fault", ["cut_after=9", "reset_after=9", "error_after=9", "garbage_after=9"])
async def test_a_stream_that_the_upstream_breaks_is_free(stage: Stage, fault: str) -> None:
    heard = await (await listen(stage, stage.alice, f"[[sim tokens=40 {fault}]]")).end()
    error = chunks(heard.data)[-1]["error"]
    assert error["type"] == "server_error"
    assert b"[DONE]" not in heard.data
    row = await books(stage, stage.alice)
    assert (row["outcome"], row["charged_nanos"]) == ("upstream_broke", 0)


async def test_an_upstreams_refusal_is_told_in_its_words(stage: Stage) -> None:
    answer = await post(stage, stage.alice, chat("[[sim error=413:request_too_large]]"))
    error = error_of(await answer.read(2**20))
    assert (answer.status, error["code"]) == (413, "request_too_large")
    assert answer.header(b"content-type") == b"application/json"
    assert await stage.balance(stage.alice) == (100 * USD, 0)


async def test_a_slow_upstream_is_bridged_with_comments(open_stage: OpenStage) -> None:
    async with open_stage(limits="keep_alive_ping_s = 1") as stage:
        heard = await listen(stage, stage.alice, "[[sim tokens=20 ttft=2500]]")
        await heard.has(b": keep-alive\n\n")
        await heard.end()
        assert heard.data.endswith(b"[DONE]\n\n")
        assert b"event:" not in heard.data


async def test_an_upstream_of_strange_line_ends_is_read_all_the_same(open_stage: OpenStage) -> None:
    async with open_stage() as stage:
        heard = await (await listen(stage, stage.alice, "[[sim tokens=40 crlf chunk=3 unknown_events]]")).end()
        assert heard.data.endswith(b"data: [DONE]\n\n")
        assert text_of(chunks(heard.data))


async def test_an_upstream_that_dies_is_no_end_of_a_stream(open_stage: OpenStage) -> None:
    started = (
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"
        b'event: message_start\ndata: {"type":"message_start","message":{"id":"msg_1","model":"claude-sonnet-4-6",'
        b'"usage":{"input_tokens":5,"output_tokens":1}}}\n\n'
    )
    async with script([started]) as dying, open_stage(upstreams=upstream("dying", dying.port)) as stage:
        heard = await (await listen(stage, stage.alice)).end()
        assert "the upstream broke off" in chunks(heard.data)[-1]["error"]["message"]
        assert (await books(stage, stage.alice))["charged_nanos"] == 0


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, None),
        (b"{", 400, None),
        (b"[" * 200_000, 400, None),
        (b'{"model":' * 5000, 400, None),
        (b'{"model":"gpt-9","messages":[{"role":"user","content":"x"}]}', 404, "model_not_found"),
        (
            b'{"model":"claude-sonnet-4-6","messages":[' + b'{"role":"user","content":"x"},' * 300_000 + b"0]}",
            400,
            None,
        ),
        (b'{"model":"claude-sonnet-4-6","messages":[{"role":"user","content":"x"}],"max_tokens":9999999}', 400, None),
        (b'{"messages":"' + b"a" * (33 << 20) + b'"}', 413, "request_too_large"),
    ],
    ids=["empty", "torn", "deep", "deeper", "unknown-model", "crowd", "too-much", "too-large"],
)
async def test_hostile_bodies_are_refused_in_their_own_envelope(
    stage: Stage, body: bytes, status: int, code: str | None
) -> None:
    answer = await post(stage, stage.alice, body)
    error = error_of(await answer.read(2**20))
    assert (answer.status, error["code"]) == (status, code), error
    assert answer.header(b"x-should-retry") == b"false"
    assert answer.header(b"request-id") == answer.header(b"x-request-id")
    assert await stage.balance(stage.alice) == (100 * USD, 0)
    assert not [event for event in stage.events if event["event"] == "call_failed"]


VALUES: Final[tuple[Any, ...]] = (
    None,
    True,
    5,
    -1,
    2**70,
    1.5,
    "",
    "x",
    [],
    [5],
    [[]],
    {},
    {"type": 5},
    [{"type": "x"}],
)


@pytest.mark.parametrize(
    "field",
    [
        "model", "messages", "max_tokens", "temperature", "top_p", "stop", "stream", "stream_options", "tools",
        "tool_choice", "response_format", "reasoning_effort", "user", "thinking", "cache_control", "n", "logit_bias",
        "content", "tool_calls",
    ],
)  # fmt: skip
async def test_no_type_of_value_breaks_anything(stage: Stage, field: str) -> None:
    for value in VALUES:
        body: dict[str, Any] = chat("[[sim tokens=1]]")
        (body["messages"][0] if field in {"content", "tool_calls"} else body)[field] = value
        answer = await post(stage, stage.alice, body)
        data = await answer.read(2**20)
        assert answer.status in {200, 400, 404}, (value, data)
        if answer.status != 200:
            error_of(data)
    assert not [event for event in stage.events if event["event"] == "call_failed"]


async def test_other_refusals_of_the_path_are_in_its_envelope_too(stage: Stage) -> None:
    key = (b"x-api-key", stage.alice.key.encode())
    for method, headers, status in (("GET", [key], 405), ("POST", [key, (b"content-encoding", b"gzip")], 400),
                                    ("POST", [], 401)):  # fmt: skip
        answer = await stage.client.request(method, PATH, headers, b"", first_byte_s=5)
        assert answer.status == status
        error_of(await answer.read(2**20))


async def test_a_plans_limit_is_told_with_when_to_try_again(stage: Stage) -> None:
    poor = await stage.person("carol@example.com", 5, "free")
    for _ in range(11):
        answer = await post(stage, poor, chat("[[sim tokens=1]]"))
        data = await answer.read(2**20)
    assert (answer.status, error_of(data)["code"]) == (429, "rate_limit_exceeded")
    assert int(answer.header(b"retry-after") or b"0") > 0
    assert answer.header(b"anthropic-ratelimit-requests-limit") == b"10"


async def test_models_are_told_in_one_api_or_in_both(stage: Stage) -> None:
    async def get(path: str, *headers: tuple[bytes, bytes]) -> dict[str, Any]:
        fields = [(b"x-api-key", stage.alice.key.encode()), *headers]
        answer = await stage.client.request("GET", f"/api/proxy/v1{path}", fields, b"", first_byte_s=5)
        told: dict[str, Any] = json.loads(await answer.read(2**22))
        return told

    version = (b"anthropic-version", b"2023-06-01")
    both, one = await get("/models"), await get("/models?limit=1000", version)
    assert both["object"] == "list"
    assert "object" not in one
    others = {"object", "created", "owned_by"}
    assert [{name: value for name, value in model.items() if name not in others} for model in both["data"]] == one[
        "data"
    ]
    assert all(others <= model.keys() for model in both["data"])
    assert len((await get("/models?limit=2"))["data"]) == 2
    assert others <= (await get("/models/claude-sonnet-4-6")).keys()
    assert not others & (await get("/models/claude-sonnet-4-6", version)).keys()


async def test_what_is_said_is_nowhere_in_the_log(stage: Stage) -> None:
    await ask(stage, stage.alice, "[[sim echo]] otter-canary-7")
    await ask(stage, stage.alice, "otter-canary-7", temperature=9)

    async def logged() -> bool:
        return any(event["event"] == "call" for event in stage.events)

    await eventually(logged)
    assert "otter-canary-7" not in json.dumps(stage.events, default=str)


async def test_a_large_request_is_translated_beside_the_loop_and_served(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = []

    def translated(body: bytes) -> Any:
        threads.append(threading.current_thread() is threading.main_thread())
        return to_messages(body)

    monkeypatch.setattr(front, "to_messages", translated)
    url = f"data:image/png;base64,{'A' * 2**20}"
    picture = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]
    for messages in (picture, [{"role": "user", "content": "small"}]):
        assert (await ask(stage, stage.alice, messages=messages))[0] == 200
    assert threads == [False, True]
