"""Promise 8: what the client sent is what the upstream gets, byte for byte, and the answer likewise."""

import asyncio
import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farebox.gateway.ask import read_request, with_max_tokens
from farebox.http.client import HttpClient, Origin
from tests.gateway.play import Heard, books, message, script, upstream
from tests.stage import MODEL, OpenStage, Stage

HI = b'"messages":[{"role":"user","content":"Hi"}]'
SONNET = b'"model":"claude-sonnet-4-6","max_tokens":50'
ODD_BODIES = {
    "whitespace": b' \r\n\t{ "model" :"claude-sonnet-4-6",\n\n "max_tokens":  50 ,' + HI + b" }\n ",
    "unknown fields": b'{"hologram":{"depth":3.0e0},' + SONNET + b"," + HI + b"}",
    "escapes": b"{" + SONNET + b',"messages":[{"role":"user","content":"\\u00e9\\/\\ud83d\\ude00\\u0000"}]}',
    "raw UTF-8": b"{" + SONNET + ',"messages":[{"role":"user","content":"žluť 😀 \u2028"}]}'.encode(),
    "escaped model": b'{"m\\u006fdel":"claude-sonnet\\u002d4-6","max_tokens":50,' + HI + b"}",
    "numbers": b'{"temperature":1.0,"metadata":{"n":1E30,"z":-0.0},' + SONNET + b"," + HI + b"}",
    "odd order": b'{"messages":[{"content":"Hi","role":"user"}],"stream":false,' + SONNET + b"}",
}


@pytest.mark.parametrize("name", ODD_BODIES)
async def test_the_body_goes_up_byte_for_byte(stage: Stage, name: str) -> None:
    answer = await stage.post(stage.alice, ODD_BODIES[name])
    body = await answer.read(2**20)
    assert answer.status == 200, body
    assert stage.simulator.requests[-1].body == ODD_BODIES[name]


async def test_a_body_sent_in_chunks_goes_up_whole(stage: Stage) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", stage.gateway.port)
    body = ODD_BODIES["raw UTF-8"]
    writer.write(
        b"POST /v1/messages HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx-api-key: " + stage.alice.key.encode()
    )
    writer.write(b"\r\ntransfer-encoding: chunked\r\n\r\n")
    for at in range(0, len(body), 7):
        piece = body[at : at + 7]
        writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        await writer.drain()
    writer.write(b"0\r\n\r\n")
    assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
    writer.close()
    assert stage.simulator.requests[-1].body == body
    assert stage.simulator.requests[-1].header(b"content-length") == b"%d" % len(body)


async def test_max_tokens_is_inserted_only_where_there_is_none(stage: Stage) -> None:
    body = b'\n{ "model":"claude-sonnet-4-6", "messages":[{"role":"user","content":"Hi"}]}'
    assert (await stage.post(stage.alice, body)).status == 200
    assert stage.simulator.requests[-1].body == b'\n{"max_tokens":4096, ' + body[3:]


async def test_max_tokens_hidden_in_other_fields_is_not_mistaken_for_the_requests(stage: Stage) -> None:
    inner = {"role": "user", "content": '"max_tokens": 5'}
    body = json.dumps({"model": MODEL, "messages": [inner], "metadata": {"max_tokens": 7}}).encode()
    assert (await stage.post(stage.alice, body)).status == 200
    assert stage.simulator.requests[-1].body.startswith(b'{"max_tokens":4096,')


async def test_a_default_larger_than_the_models_output_is_cut_to_it(open_stage: OpenStage) -> None:
    async with open_stage(limits="default_max_tokens = 100000") as stage:
        body = {"model": "claude-haiku-4-5", "messages": [{"role": "user", "content": "Hi"}]}
        assert (await stage.post(stage.alice, body)).status == 200
        assert stage.simulator.requests[-1].body.startswith(b'{"max_tokens":64000,')


async def test_max_tokens_null_does_not_make_a_body_with_the_field_twice(stage: Stage) -> None:
    answer = await stage.post(stage.alice, message(max_tokens=None))
    await answer.read(2**20)
    assert answer.status == 400
    assert all(request.body.count(b"max_tokens") == 1 for request in stage.simulator.requests)


@given(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5), max_size=4), st.integers(1, 10**6))
def test_inserting_max_tokens_changes_nothing_else(fields: dict[str, object], count: int) -> None:
    body = json.dumps({**fields, "model": "m", "messages": []}).encode()
    assert json.loads(with_max_tokens(body, count)) == {**json.loads(body), "max_tokens": count}
    assert with_max_tokens(body, count).endswith(body[1:])
    plain = b'{"model":"m","messages":[{"role":"user","content":"Hi"}]}'
    assert read_request(with_max_tokens(plain, count)).max_tokens == count


@pytest.mark.parametrize("query", ["", "?beta=true", "?x=%2F%20&y=a+b&beta=true&beta=false", "?%ff"])
async def test_the_query_goes_up_as_it_came(stage: Stage, query: str) -> None:
    answer = await stage.post(stage.alice, message(), path=f"/api/proxy/v1/messages{query}")
    assert answer.status == 200
    assert stage.simulator.requests[-1].target == f"/v1/messages{query}"


@pytest.mark.parametrize("version", ["2023-06-01", "2023-01-01"])
async def test_the_api_version_goes_up_as_it_came(stage: Stage, version: str) -> None:
    await stage.post(stage.alice, message(), headers={"anthropic-version": version})
    assert stage.simulator.requests[-1].header(b"anthropic-version") == version.encode()


PASSED_UP = {
    "anthropic-beta": "context-1m-2025-08-07,some-beta-of-tomorrow-2027-01-01",
    "anthropic-dangerous-direct-browser-access": "true",
    "user-agent": "claude-cli/2.1.197 (external, cli)",
    "x-app": "cli",
    "x-stainless-lang": "js",
    "x-stainless-retry-count": "0",
    "accept": "application/json",
    "content-type": "application/json; charset=utf-8",
    "x-of-tomorrow": "Kept As Is; Q=0.5",
}
KEPT_BACK_UP = {
    "authorization": "Bearer sk-theirs",
    "cookie": "a=b",
    "proxy-authorization": "Basic x",
    "forwarded": "for=1.2.3.4",
    "x-forwarded-for": "1.2.3.4",
    "x-forwarded-host": "h",
    "x-forwarded-proto": "https",
    "x-real-ip": "1.2.3.4",
    "cf-connecting-ip": "1.2.3.4",
    "via": "1.1 x",
    "te": "trailers",
    "keep-alive": "timeout=5",
    "origin": "https://evil.example",
    "referer": "https://evil.example/",
    "x-hop": "named by connection",
}


async def test_headers_go_up_by_the_list(stage: Stage) -> None:
    """The gateway's key stays here, the upstream gets the operator's; hop-by-hop fields end here (RFC 9110 7.6.1)."""
    headers = {**PASSED_UP, **KEPT_BACK_UP, "connection": "keep-alive, x-hop", "accept-encoding": "gzip, br"}
    answer = await stage.post(stage.alice, message(), headers=headers)
    assert answer.status == 200
    request = stage.simulator.requests[-1]
    for name, value in PASSED_UP.items():
        assert request.header(name.encode()) == value.encode(), name
    for name in KEPT_BACK_UP:
        assert request.header(name.encode()) is None, name
    assert [value for name, value in request.headers if name == b"accept-encoding"] == [b"identity"]
    assert [name for name, _ in request.headers].count(b"content-type") == 1
    assert stage.alice.key.encode() not in b"".join(value for _, value in request.headers)


async def test_the_operators_key_and_host_go_up_and_the_base_urls_path_before_ours(open_stage: OpenStage) -> None:
    async with script(ANSWER) as theirs:
        config = upstream("theirs", theirs.port).replace(f'{theirs.port}"', f'{theirs.port}/some/path/"')
        async with open_stage(upstreams=config) as stage:
            await stage.post(stage.alice, message())
            head = theirs.heard[0].partition(b"\r\n\r\n")[0].lower()
            assert head.startswith(b"post /some/path/v1/messages http/1.1\r\n")
            assert b"\r\nx-api-key: sk-ant-theirs" in head
            assert b"\r\nhost: 127.0.0.1:%d" % theirs.port in head
            assert stage.alice.key.lower().encode() not in head


JSON_BODY = (
    b'{ "id":"msg_1","model":"claude-sonnet-4-6" ,"usage":{"input_tokens":3, "output_tokens":4},\n'
    b' "content":[{"type":"hologram","x":1.50}]}'
)
HEAD_LINES = [
    b"HTTP/1.1 200 OK",
    b"Content-Type: application/json; charset=utf-8",
    b"X-Of-Tomorrow: Kept As Is",
    b"x-envoy-upstream-service-time: 12",
    b"request-id: req_theirs",
    b"anthropic-organization-id: org-secret",
    b"openai-organization: org-secret",
    b"location: http://inside.example/",
    b"x-ratelimit-remaining-requests: 888888",
    b"x-litellm-response-cost: 0.0777",
    b"x-litellm-model-api-base: http://inside.example/",
    b"llm_provider-request-id: req_theirs",
    b"anthropic-ratelimit-requests-limit: 999999",
    b"anthropic-ratelimit-input-tokens-remaining: 1",
    b"anthropic-priority-input-tokens-limit: 1",
    b"anthropic-fast-output-tokens-limit: 1",
    b"set-cookie: a=b",
    b"strict-transport-security: max-age=1",
    b"server: cloudflare",
    b"via: 1.1 google",
    b"cf-ray: abc",
    b"alt-svc: h3",
    b"x-should-retry: true",
    b"retry-after: 7",
    b"date: Thu, 01 Jan 1970 00:00:00 GMT",
    b"keep-alive: timeout=5",
    b"content-length: %d" % len(JSON_BODY),
]
ANSWER = [b"\r\n".join([*HEAD_LINES, b"", b""]), JSON_BODY]
HIDDEN = [
    b"req_theirs", b"org-secret", b"999999", b"priority", b"fast-output", b"set-cookie", b"strict-transport",
    b"cloudflare", b"inside.example", b"888888", b"0.0777",
    b"google", b"cf-ray", b"alt-svc", b"retry-after", b"1970", b"input-tokens",
]  # fmt: skip


async def test_an_answer_comes_down_byte_for_byte_and_its_headers_by_the_list(open_stage: OpenStage) -> None:
    async with script(ANSWER) as theirs:  # noqa: SIM117
        async with open_stage(upstreams=upstream("theirs", theirs.port)) as stage:
            answer = await stage.post(stage.alice, message())
            assert await answer.read(2**20) == JSON_BODY
            assert answer.header(b"content-type") == b"application/json; charset=utf-8"
            assert answer.header(b"x-of-tomorrow") == b"Kept As Is"
            head = b"\n".join(name + b": " + value for name, value in answer.headers)
            assert [part for part in HIDDEN if part in head] == []
            for once in (b"request-id", b"date", b"content-length"):
                assert [name for name, _ in answer.headers].count(once) == 1
            assert answer.header(b"anthropic-ratelimit-requests-limit") == b"300"


STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\nconnection: close\r\n\r\n"
STREAM = (
    b": hello\r\n\r\n"
    b'event: message_start\r\ndata: {"type":"message_start","message":'
    b'{"id":"m","model":"claude-sonnet-4-6","usage":{"input_tokens":3}}}\r\n\r\n'
    b"event: of_tomorrow\nid: 7\nretry: 10\ndata: not JSON\ndata: in two lines\n\n\n"
    b"event: content_block_delta\ndata: "
    b'{"delta": {"type":"text_delta","text":"\xc5\xbelu\xc5\xa5 \xf0\x9f\x98\x80 message_stop error"}}\n\n'
    b'data: {"type":"content_block_delta","delta":{"type":"text_delta","text":"nameless"}}\n\n'
    b'event:message_delta\ndata:{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":9}}\n\n'
    b": last words\n\n"
    b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
)


@pytest.mark.parametrize("size", [1, 3, 17, 64, 10_000])
async def test_a_stream_comes_down_byte_for_byte_however_it_is_cut(open_stage: OpenStage, size: int) -> None:
    """Comments, ids, unknown events, mixed line ends, characters cut in half: the client's business, not ours."""
    pieces = [STREAM[at : at + size] for at in range(0, len(STREAM), size)]
    async with script([STREAM_HEAD, *pieces]) as theirs:  # noqa: SIM117
        async with open_stage(upstreams=upstream("theirs", theirs.port)) as stage:
            heard = await Heard(await stage.post(stage.alice, message(stream=True))).end()
            row = await books(stage, stage.alice)
            assert heard.data == STREAM
            assert (row["kind"], row["input_tokens"], row["output_tokens"]) == ("exact", 3, 9)
            assert heard.answer.header(b"content-type") == b"text/event-stream; charset=utf-8"
            assert heard.answer.header(b"x-accel-buffering") == b"no"


@pytest.mark.parametrize(
    "knobs",
    ["crlf", "chunk=1", "chunk=5 crlf", "events_per_chunk=100", "big_event=2000000", "unknown_events", "pings=9"],
)
async def test_a_stream_is_the_same_with_and_without_a_gateway(stage: Stage, knobs: str) -> None:
    """All but the message id, which the upstream makes anew for each call."""
    body = message(f"[[sim tokens=40 {knobs}]]", stream=True, max_tokens=100_000)
    direct = HttpClient(Origin("http", "127.0.0.1", stage.simulator.port, ""), connect_s=5, connections=2)
    headers = [(b"anthropic-version", b"2023-06-01"), (b"content-type", b"application/json")]
    answer = await direct.request("POST", "/v1/messages", headers, json.dumps(body).encode(), first_byte_s=5)
    bare = await answer.read(2**26)
    await direct.close()
    heard = await Heard(await stage.post(stage.alice, body)).end()
    first, second = stage.simulator.requests[-2].message_id.encode(), stage.simulator.requests[-1].message_id.encode()
    assert heard.data.replace(second, b"ID") == bare.replace(first, b"ID")


async def test_an_answer_that_is_compressed_though_nobody_asked_is_never_passed_on_unmetered(
    open_stage: OpenStage,
) -> None:
    packed = gzip.compress(JSON_BODY)
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-encoding: gzip\r\ncontent-length: %d\r\n\r\n"
    async with script([head % len(packed), packed]) as theirs:  # noqa: SIM117
        async with open_stage(upstreams=upstream("theirs", theirs.port)) as stage:
            assert (await stage.ask(stage.alice))[0] == 502
            assert (await books(stage, stage.alice))["charged_nanos"] == 0


@pytest.mark.parametrize("size", [100_000, 5_000_000])
async def test_a_large_body_goes_up_whole(stage: Stage, size: int) -> None:
    rich = await stage.person("rich@example.com", 1000, plan="enterprise")
    body = json.dumps(message("x" * size, model="claude-fable-5")).encode()
    answer = await stage.post(rich, body)
    await answer.read(2**20)
    assert stage.simulator.requests[-1].body == body


async def test_a_slow_reader_gets_every_byte(stage: Stage) -> None:
    """The upstream is slowed down, not buffered without end."""
    answer = await stage.post(stage.alice, message("[[sim big_event=3000000]]", stream=True, max_tokens=100_000))
    answer.pause()
    await asyncio.sleep(0.3)
    heard = await Heard(answer).end()
    assert heard.names[-1] == "message_stop"
    assert len(heard.data) > 3_000_000
