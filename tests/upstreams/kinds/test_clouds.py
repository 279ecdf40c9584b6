"""Clouds through the running gateway: what goes up is what each of them takes, what comes down is a Messages API."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

import anthropic
import msgspec
import pytest

from tests.gateway.play import USD, Heard, books, envelope, exact, message, nanos, usage_rows
from tests.stage import OpenStage, Stage
from tests.upstreams.kinds.clouds import (
    ACCESS_KEY,
    BEDROCK_KEY,
    CLIENT_SECRET,
    COUNTED,
    FOUNDRY_KEY,
    PROFILE,
    REGION,
    SECRET_KEY,
    SESSION_TOKEN,
    Bedrock,
    Cloud,
    Foundry,
    Mantle,
    Request,
    Said,
    Vertex,
    chunk,
    events_of,
    exception,
    message_of,
    running,
    sse,
)

COST: Final = nanos(exact(input=12, write_5m=100, read=1000, output=34))
PLAIN: Final = "anthropic.claude-sonnet-4-6"
TOOLS: Final = [{"name": "weather", "description": "…", "input_schema": {"type": "object"}}]
SIGNED: Final = f'access_key_id = "{ACCESS_KEY}"\nsecret_access_key = "{SECRET_KEY}"'
WAYS: Final[dict[str, tuple[type[Cloud], str]]] = {
    "invoke": (Bedrock, f'kind = "bedrock"\nregion = "{REGION}"\n{SIGNED}'),
    "invoke, temporary": (
        Bedrock, f'kind = "bedrock"\nregion = "{REGION}"\n{SIGNED}\nsession_token = "{SESSION_TOKEN}"',
    ),
    "invoke, key": (Bedrock, f'kind = "bedrock"\nregion = "{REGION}"\napi_key = "{BEDROCK_KEY}"'),
    "messages": (Mantle, f'kind = "bedrock"\napi = "messages"\nregion = "{REGION}"\n{SIGNED}'),
    "messages, key": (Mantle, f'kind = "bedrock"\napi = "messages"\nregion = "{REGION}"\napi_key = "{BEDROCK_KEY}"'),
    "vertex": (Vertex, 'kind = "vertex"\nregion = "us-east5"\nservice_account = "file:account.json"'),
    "foundry": (Foundry, f'kind = "foundry"\napi_key = "{FOUNDRY_KEY}"'),
    "foundry, entra": (
        Foundry,
        f'kind = "foundry"\ntenant_id = "tenant.example"\nclient_id = "app-1"\nclient_secret = "{CLIENT_SECRET}"',
    ),
}  # fmt: skip
SECRETS: Final = (SECRET_KEY, SESSION_TOKEN, BEDROCK_KEY, FOUNDRY_KEY, CLIENT_SECRET, "PRIVATE KEY", "ya29.", "eyJ.")
OpenCloud = Callable[..., Any]


@pytest.fixture
def open_cloud(open_stage: OpenStage, tmp_path: Path) -> OpenCloud:
    """A gateway whose upstream is a cloud; `beside`: further upstreams, `more`: further settings of the first."""

    @asynccontextmanager
    async def opened(way: str, more: str = "", beside: str = "") -> AsyncIterator[tuple[Stage, Any]]:
        type_, settings = WAYS[way]
        async with AsyncExitStack() as stack:
            cloud = await stack.enter_async_context(running(type_()))
            lines = ["[[upstreams]]", 'name = "cloud"', f'base_url = "{cloud.url}"', settings, more]
            if isinstance(cloud, Vertex):
                (tmp_path / "account.json").write_text(json.dumps(cloud.account, indent=2))
            if isinstance(cloud, Foundry) and "tenant" in settings:
                lines.append(f'authority = "{cloud.authority}"')
            if "models" not in more:
                name = {"invoke": PROFILE, "messages": PLAIN, "foundry": "my-sonnet"}.get(way.partition(",")[0])
                lines.append(f'models = {{ "claude-sonnet-4-6" = "{name}" }}' if name else "")
            stage = await stack.enter_async_context(open_stage(upstreams="\n".join(lines) + f"\n{beside}"))
            yield stage, cloud
            told = json.dumps(stage.events, default=str)
            assert not [secret for secret in SECRETS if secret in told]

    return opened


def asked(cloud: Cloud) -> list[Request]:
    """The requests that are not for tokens."""
    return [request for request in cloud.requests if not request.path.endswith("/token")]


def fields(body: bytes) -> dict[str, bytes]:
    return {name: bytes(raw) for name, raw in msgspec.json.decode(body, type=dict[str, msgspec.Raw]).items()}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("more", [{}, {"tools": TOOLS}], ids=["text", "tools"])
async def test_a_message_comes_down_as_it_came_and_is_charged(
    open_cloud: OpenCloud, way: str, more: dict[str, Any]
) -> None:
    async with open_cloud(way) as (stage, cloud):
        status, body = await stage.ask(stage.alice, **more)
        assert (status, body) == (200, message_of(more))
        row = await books(stage, stage.alice)
        assert (row["charged_nanos"], row["upstream"], row["model"]) == (COST, "cloud", "claude-sonnet-4-6")
        assert not cloud.refused


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("more", [{}, {"tools": TOOLS}], ids=["text", "tools"])
async def test_a_stream_comes_down_as_it_came_and_is_charged(
    open_cloud: OpenCloud, way: str, more: dict[str, Any]
) -> None:
    async with open_cloud(way) as (stage, cloud):
        cloud.pause_s = 0.002
        heard = await Heard(await stage.post(stage.alice, message(stream=True, **more))).end()
        assert heard.status == 200
        assert (heard.answer.header(b"content-type") or b"").startswith(b"text/event-stream")
        assert heard.data == b"".join(sse(event) for event in events_of(more, metrics=way.startswith("invoke")))
        row = await books(stage, stage.alice)
        assert (row["charged_nanos"], row["streamed"], row["outcome"]) == (COST, 1, "finished")
        assert row["stop_reason"] == ("tool_use" if more else "end_turn")


@pytest.mark.parametrize("way", WAYS)
async def test_every_field_but_those_that_are_changed_goes_up_byte_for_byte(open_cloud: OpenCloud, way: str) -> None:
    raw = (
        '{ "model" : "claude-sonnet-4-6",\n "max_tokens":  100 , "future": {"a":1.50e3 , "b":[ 1,2 ]},'
        '"messages": [ {"role":"user", "content":"Gr\\u00fcezi \\ud83d\\ude00 世界"} ], "stream" : true,'
        '\t"metadata": {} }'
    ).encode()
    async with open_cloud(way) as (stage, cloud):
        heard = await Heard(await stage.post(stage.alice, raw, headers={"content-type": "application/json"})).end()
        assert heard.status == 200
        sent, got = fields(raw), fields(asked(cloud)[0].raw)
        same = sent.keys() - {"model", "stream"}
        assert {name: got[name] for name in same} == {name: sent[name] for name in same}
        theirs = {
            "invoke": {"anthropic_version": b'"bedrock-2023-05-31"'},
            "messages": {"model": f'"{PLAIN}"'.encode(), "stream": b"true"},
            "vertex": {"anthropic_version": b'"vertex-2023-10-16"', "stream": b"true"},
            "foundry": {"model": b'"my-sonnet"', "stream": b"true"},
        }[way.partition(",")[0]]
        assert {name: got[name] for name in got.keys() - same} == theirs


@pytest.mark.parametrize("way", WAYS)
async def test_tokens_are_counted_where_the_call_would_go(open_cloud: OpenCloud, way: str) -> None:
    async with open_cloud(way) as (stage, cloud):
        body = {"model": "claude-sonnet-4-6", "messages": [{"role": "user", "content": "Hi"}]}
        answer = await stage.post(stage.alice, body, path="/v1/messages/count_tokens")
        assert (answer.status, json.loads(await answer.read(2**16))) == (200, {"input_tokens": COUNTED})
        assert await usage_rows(stage, stage.alice) == []
        if way.startswith("invoke"):
            assert asked(cloud)[0].path == "/model/anthropic.claude-sonnet-4-6-v1%3A0/count-tokens"


@pytest.mark.parametrize("way", ["invoke", "messages", "vertex", "foundry"])
async def test_version_and_betas_go_where_the_cloud_looks_for_them(open_cloud: OpenCloud, way: str) -> None:
    betas = "context-1m-2025-08-07, advanced-tool-use-2025-11-20,unheard-of"
    headers = {"anthropic-beta": betas, "anthropic-version": "2026-10-21"}
    async with open_cloud(way, 'drop_betas = ["unheard-of"]') as (stage, cloud):
        assert (await stage.post(stage.alice, message(), headers=headers)).status == 200
        (request,) = asked(cloud)
        named = "advanced-tool-use-2025-11-20" if way == "foundry" else "tool-search-tool-2025-10-19"
        if way == "invoke":
            assert request.body["anthropic_beta"] == ["context-1m-2025-08-07", named]
            assert request.body["anthropic_version"] == "2026-10-21"
            assert {"anthropic-beta", "anthropic-version"}.isdisjoint(request.headers)
        else:
            assert request.headers["anthropic-beta"] == f"context-1m-2025-08-07,{named}"
            assert "anthropic_beta" not in request.body
        if way == "vertex":
            assert request.body["anthropic_version"] == "2026-10-21"
        elif way != "invoke":
            assert request.headers["anthropic-version"] == "2026-10-21"


@pytest.mark.parametrize("way", WAYS)
async def test_no_header_of_a_customer_chooses_anything_of_the_operators(open_cloud: OpenCloud, way: str) -> None:
    theirs = {
        "x-amz-security-token": "mallory", "x-amz-date": "20000101T000000Z", "x-amzn-bedrock-guardrailidentifier": "g",
        "x-goog-user-project": "mallory", "x-vertex-ai-llm-request-type": "dedicated", "api-key": "mallory",
        "x-ms-client": "mallory",
        "x-http-method-override": "DELETE", "ocp-apim-subscription-key": "mallory", "authorization": "Bearer mallory",
        "accept": "text/event-stream", "x-stainless-lang": "python",
    }  # fmt: skip
    async with open_cloud(way) as (stage, cloud):
        assert (await stage.post(stage.alice, message(), headers=theirs)).status == 200
        (request,) = asked(cloud)
        assert "mallory" not in str(request.fields)
        clouds = ("x-goog", "x-vertex", "x-ms", "ocp", "x-http")
        assert not [name for name, _ in request.fields if name.startswith(clouds)]
        assert stage.alice.key not in str(request.fields)
        assert request.headers["x-stainless-lang"] == "python"
        assert len({name for name, _ in request.fields}) == len(request.fields)


async def test_what_a_cloud_says_of_itself_stays_here(open_cloud: OpenCloud) -> None:
    async with open_cloud("invoke") as (stage, _):
        for stream in (False, True):
            answer = await stage.post(stage.alice, message(stream=stream))
            assert not [name for name, _ in answer.headers if name.startswith(b"x-amz")]
            await answer.read(2**20)


def aws(status: int, kind: str, words: str, **headers: str) -> Said:
    return Said(status, {"message": words}, x_amzn_errortype=f"{kind}:http://internal.amazon.com/", **headers)


TOO_LONG: Final = "prompt is too long: 213462 tokens > 200000 maximum"
ENVELOPED: Final = (
    b'{"type":"error", "error":{"type":"invalid_request_error","message":"max_tokens: x"},"request_id":"r"}'
)
SHOWN: Final[dict[str, tuple[str, Said, int, str, str]]] = {
    "validation": ("invoke", aws(400, "ValidationException", TOO_LONG), 400, "invalid_request_error", TOO_LONG),
    "account": ("invoke", aws(400, "ValidationException", "on arn:aws:bedrock:us-east-1:123456789012:x/y no"),
                400, "invalid_request_error", "on … no"),
    "too large": ("invoke", Said(413, {"message": "Too big"}), 413, "request_too_large", "Too big"),
    "validation, messages": ("messages", aws(400, "ValidationException", "x"), 400, "invalid_request_error", "x"),
    "google": ("vertex", Said(400, [{"error": {"code": 400, "message": "payload size", "status": "INVALID_ARGUMENT"}}]),
               400, "invalid_request_error", "payload size"),
    "google, no list": ("vertex", Said(413, {"error": {"code": 413, "message": TOO_LONG}}),
                        413, "request_too_large", TOO_LONG),
    "azure": ("foundry", Said(400, {"error": {"code": "content_filter", "message": "filtered"}}),
              400, "invalid_request_error", "filtered"),
    "no json": ("foundry", Said(422, b"<html>"), 422, "invalid_request_error", "the upstream answered 422"),
}  # fmt: skip
"""What is the customer's to see: the words as they came."""


@pytest.mark.parametrize("case", SHOWN)
async def test_an_error_of_a_request_is_told_in_the_envelope(open_cloud: OpenCloud, case: str) -> None:
    way, said, status, kind, words = SHOWN[case]
    async with open_cloud(way) as (stage, cloud):
        for stream in (False, True):
            cloud.next = [said]
            got, body = await stage.ask(stage.alice, stream=stream)
            error = json.loads(body)
            assert (got, error["type"], error["error"]) == (status, "error", {"type": kind, "message": words})
        assert await stage.balance(stage.alice) == (100 * USD, 0)


@pytest.mark.parametrize("way", WAYS)
async def test_an_error_in_the_envelope_passes_as_it_came(open_cloud: OpenCloud, way: str) -> None:
    async with open_cloud(way) as (stage, cloud):
        cloud.next = [Said(400, ENVELOPED)]
        assert await stage.ask(stage.alice) == (400, ENVELOPED)


ON_DEMAND: Final = (
    "Invocation of model ID anthropic.claude-sonnet-4-6 with on-demand throughput isn\u2019t supported. Retry your "
    "request with the ID or ARN of an inference profile that contains this model."
)


def google(status: int, code: str) -> Said:
    return Said(status, {"error": {"code": status, "message": "projects/fare-project", "status": code}})


HIDDEN: Final[dict[str, tuple[str, Said]]] = {
    "throttled": ("invoke", aws(429, "ThrottlingException", "Too many requests", retry_after="1")),
    "quota": ("invoke", aws(400, "ServiceQuotaExceededException", "account 123456789012")),
    "not ready": ("invoke", aws(429, "ModelNotReadyException", "not ready")),
    "model error": ("invoke", aws(424, "ModelErrorException", "model error")),
    "model timeout": ("invoke", aws(408, "ModelTimeoutException", "timeout")),
    "424": ("invoke", Said(424, {"message": "x"})),
    "internal": ("invoke", aws(500, "InternalServerException", "x")),
    "denied": ("invoke", aws(403, "AccessDeniedException", "User: arn:aws:iam::123456789012:user/fare is not")),
    "expired": ("invoke", aws(403, "ExpiredTokenException", "expired")),
    "no such model": ("invoke", aws(404, "ResourceNotFoundException", "arn:aws:bedrock:123456789012")),
    "no such id": ("invoke", aws(400, "ValidationException", "The provided model identifier is invalid.")),
    "on demand": ("invoke", aws(400, "ValidationException", ON_DEMAND)),
    "denied, messages": ("messages", aws(403, "AccessDeniedException", "arn:aws:iam::123456789012")),
    "google quota": ("vertex", google(429, "RESOURCE_EXHAUSTED")),
    "google denied": ("vertex", google(403, "PERMISSION_DENIED")),
    "google model": ("vertex", google(404, "NOT_FOUND")),
    "google agreement": ("vertex", google(400, "FAILED_PRECONDITION")),
    "google overloaded": ("vertex", Said(529, {"type": "error", "error": {"type": "overloaded_error"}})),
    "azure key": ("foundry", Said(401, {"error": {"code": "401", "message": "Access denied due to fare-project"}})),
    "azure deployment": ("foundry", Said(404, {"error": {"code": "DeploymentNotFound", "message": "fare-project"}})),
    "azure quota": ("foundry", Said(429, {"error": {"code": "429", "message": "x"}}, retry_after="2")),
}  # fmt: skip
"""What is the operator's, or passes: another upstream gets the call, and without one nothing of it is shown."""


@pytest.mark.parametrize("case", HIDDEN)
@pytest.mark.parametrize("stream", [False, True])
async def test_trouble_of_the_operators_sends_the_call_elsewhere(
    open_cloud: OpenCloud, case: str, *, stream: bool
) -> None:
    way, said = HIDDEN[case]
    beside = '[[upstreams]]\nname = "other"\nkind = "simulator"\nweight = 0'
    async with open_cloud(way, beside=beside) as (stage, cloud):
        cloud.next = [said] * 3
        heard = await Heard(await stage.post(stage.alice, message("[[sim tokens=5]]", stream=stream))).end()
        assert heard.status == 200
        row = await books(stage, stage.alice)
        assert (row["upstream"], row["attempts"]) == ("other", 2)
        assert len(cloud.refused) == 1


@pytest.mark.parametrize("case", HIDDEN)
async def test_without_another_upstream_it_is_a_failure_that_names_nobody(open_cloud: OpenCloud, case: str) -> None:
    way, said = HIDDEN[case]
    async with open_cloud(way) as (stage, cloud):
        cloud.next = [said] * 20
        answer = await stage.post(stage.alice, message())
        status, (kind, words) = answer.status, envelope(await answer.read(2**20))
        if "retry-after" in said.headers:
            assert answer.header(b"retry-after") == said.headers["retry-after"].encode()
        assert (status, kind) in {(502, "upstream_error"), (429, "rate_limit_error"), (529, "overloaded_error")}
        assert not [name for name in ("1234", "arn:", "fare-project", "fare ") if name in words]
        assert await stage.balance(stage.alice) == (100 * USD, 0)


async def test_an_exception_in_the_middle_ends_the_stream_and_is_free(open_cloud: OpenCloud) -> None:
    frames = [chunk(event) for event in events_of({})[:4]]
    headers = {"content-type": "application/vnd.amazon.eventstream"}
    cases = {
        "modelStreamErrorException": "api_error", "throttlingException": "rate_limit_error",
        "serviceUnavailableException": "overloaded_error", "accessDeniedException": "upstream_error",
    }  # fmt: skip
    async with open_cloud("invoke") as (stage, cloud):
        for number, (kind, wire_type) in enumerate(cases.items(), 1):
            broken = [*frames, exception(kind, "Account 123456789012 broke")]
            cloud.next = [lambda _, pieces=broken: (200, headers, pieces)]
            heard = await Heard(await stage.post(stage.alice, message(stream=True))).end()
            assert heard.names[-2:] == ["content_block_delta", "error"]
            assert heard.last[1]["error"]["type"] == wire_type
            row = await books(stage, stage.alice, calls=number)
            assert (row["charged_nanos"], row["outcome"]) == (0, "upstream_broke")
            assert row["waived_nanos"] > 0


@pytest.mark.parametrize("cut", [3, 40, 900])
@pytest.mark.parametrize("rest", [b"", b"\0"])
async def test_a_stream_that_breaks_within_a_frame_is_told_and_free(
    open_cloud: OpenCloud, cut: int, rest: bytes
) -> None:
    broken = b"".join(chunk(event) for event in events_of({}))[:-cut] + rest * cut
    headers = {"content-type": "application/vnd.amazon.eventstream"}
    async with open_cloud("invoke") as (stage, cloud):
        cloud.next = [lambda _: (200, headers, [broken])] * 20
        heard = await Heard(await stage.post(stage.alice, message(stream=True))).end()
        assert b"message_stop" not in heard.data
        assert b'"error"' in heard.data
        assert (await books(stage, stage.alice))["charged_nanos"] == 0


async def test_an_exception_before_the_first_byte_sends_the_call_elsewhere(open_cloud: OpenCloud) -> None:
    headers = {"content-type": "application/vnd.amazon.eventstream"}
    beside = '[[upstreams]]\nname = "other"\nkind = "simulator"\nweight = 0'
    async with open_cloud("invoke", beside=beside) as (stage, cloud):
        cloud.next = [lambda _: (200, headers, [exception("throttlingException", "x")])]
        heard = await Heard(await stage.post(stage.alice, message("[[sim tokens=5]]", stream=True))).end()
        assert heard.names[-1] == "message_stop"
        assert (await books(stage, stage.alice))["upstream"] == "other"


# tokens


async def test_a_token_is_had_once_for_many_calls_and_anew_before_it_ends(open_cloud: OpenCloud) -> None:
    async with open_cloud("vertex") as (stage, cloud):
        answers = await asyncio.gather(*(stage.ask(stage.alice) for _ in range(20)))
        assert {status for status, _ in answers} == {200}
        assert len(cloud.tokens) == 1
        (upstream,) = stage.parts.pool.upstreams
        upstream.kind.tokens._renew_at = 0
        upstream.kind.tokens._rests_until = 0
        assert {(await stage.ask(stage.alice))[0] for _ in range(5)} == {200}
        assert len(cloud.tokens) == 2


async def test_a_token_that_is_not_taken_any_more_is_replaced(open_cloud: OpenCloud) -> None:
    async with open_cloud("vertex") as (stage, cloud):
        assert (await stage.ask(stage.alice))[0] == 200
        cloud.good.clear()
        (upstream,) = stage.parts.pool.upstreams
        upstream.kind.tokens._rests_until = 0
        assert (await stage.ask(stage.alice))[0] == 200  # by a second try
        assert len(cloud.tokens) == 2


async def test_without_a_token_the_upstream_cannot_be_reached_and_the_log_says_why(open_cloud: OpenCloud) -> None:
    refusal = Said(400, {"error": "invalid_grant", "error_description": "Invalid JWT Signature."})
    async with open_cloud("vertex") as (stage, cloud):
        cloud.token_trouble = [refusal] * 50
        assert (await stage.ask(stage.alice))[0] == 502
        assert len(cloud.requests) <= 2  # and not once for every try
        assert "invalid_grant Invalid JWT Signature." in str(stage.events)
        assert not asked(cloud)


async def test_a_count_hides_what_is_the_operators_as_well(open_cloud: OpenCloud) -> None:
    said = aws(400, "ValidationException", "The provided model identifier is invalid.")
    body = {"model": "claude-sonnet-4-6", "messages": [{"role": "user", "content": "Hi"}]}
    async with open_cloud("invoke") as (stage, cloud):
        cloud.next = [said] * 20
        answer = await stage.post(stage.alice, body, path="/v1/messages/count_tokens")
        assert answer.status == 502
        assert b"identifier" not in await answer.read(2**16)


@pytest.mark.parametrize("way", ["invoke", "messages", "vertex", "foundry"])
async def test_a_large_body_is_signed_and_sent_whole(open_cloud: OpenCloud, way: str) -> None:
    async with open_cloud(way) as (stage, cloud):
        status, _ = await stage.ask(stage.alice, "ä" * 2**20, max_tokens=1)
        assert status == 200
        assert len(asked(cloud)[0].raw) > 2**20
        assert not cloud.refused


@pytest.mark.parametrize("way", ["invoke", "messages"])
async def test_no_customer_can_spoil_a_signature(open_cloud: OpenCloud, way: str) -> None:
    """Else mallory could have the upstream taken for one that refuses its operator."""
    async with open_cloud(way) as (stage, cloud):
        odd = {"content-type": 'Application/JSON ;  charset="utf-8"', "x-amz-content-sha256": "UNSIGNED-PAYLOAD"}
        for query in ("", "?beta=true", "?a=%2F%zz&b=%ff&a=+x&&c=%C3%A9;d", "?Z=1&a=2&A=3&a="):
            answer = await stage.post(stage.alice, message(), headers=odd, path=f"/v1/messages{query}")
            assert answer.status == 200, query
            await answer.read(2**20)
        assert not cloud.refused


@pytest.mark.parametrize("name", ["Operation not allowed", "The provided model identifier is invalid."])
async def test_no_customer_can_have_the_upstream_taken_for_broken(open_cloud: OpenCloud, name: str) -> None:
    async with open_cloud("invoke") as (stage, cloud):
        cloud.next = [aws(400, "ValidationException", f"{name}: Extra inputs are not permitted")] * 8
        for _ in range(8):
            assert (await stage.ask(stage.alice, **{name: 1}))[0] == 400
        assert (await stage.ask(stage.alice))[0] == 200


@pytest.mark.parametrize("way", ["invoke", "messages", "vertex", "foundry"])
async def test_the_sdk_does_not_see_which_cloud_it_is(open_cloud: OpenCloud, way: str) -> None:
    async with open_cloud(way) as (stage, _):
        async with anthropic.AsyncAnthropic(api_key=stage.alice.key, base_url=stage.base_url, max_retries=0) as client:
            ask: dict[str, Any] = {
                "model": "claude-sonnet-4-6", "max_tokens": 100, "messages": [{"role": "user", "content": "Hi"}],
                "tools": TOOLS,
            }  # fmt: skip
            async with client.messages.stream(**ask) as stream:
                final = await stream.get_final_message()
            assert final.stop_reason == "tool_use"
            (block,) = final.content
            assert block.type == "tool_use"
            assert (block.name, block.input) == ("weather", {"city": "Zürich"})
            counted = await client.messages.count_tokens(**{name: ask[name] for name in ("model", "messages", "tools")})
            assert counted.input_tokens == COUNTED
        assert (await books(stage, stage.alice))["charged_nanos"] == COST


@pytest.mark.parametrize("count", [-1, 10**13, 1.5, "7", None])
async def test_a_count_that_is_none_is_a_failure_and_told_to_nobody(open_cloud: OpenCloud, count: Any) -> None:
    body = {"model": "claude-sonnet-4-6", "messages": [{"role": "user", "content": "Hi"}]}
    async with open_cloud("invoke") as (stage, cloud):
        cloud.next = [Said(200, {"inputTokens": count})] * 20
        answer = await stage.post(stage.alice, body, path="/v1/messages/count_tokens")
        assert answer.status == 502, await answer.read(2**16)
