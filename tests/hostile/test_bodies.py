"""Bodies that no Messages API takes: each is refused before anything is held, in words that name the field."""

import asyncio
import gzip
import time
from typing import Any

import pytest

from farebox.gateway.ask import read_request
from farebox.gateway.demand import thinks_hidden
from tests.hostile.raw import CANARY, ask, check_refusal, dial, exchange, head, request
from tests.stage import MODEL, Stage

pytestmark = pytest.mark.asyncio(loop_scope="module")

SAID = f'"messages":[{{"role":"user","content":"{CANARY}"}}]'.encode()
NAMED = f'"model":"{MODEL}"'.encode()
FULL = NAMED + b',"max_tokens":50,' + SAID
DEEP = b"[" * 10_000 + b"]" * 10_000


def block(text: str) -> bytes:
    return b'{"model":"%b","max_tokens":50,"messages":[{"role":"user","content":[%b]}]}' % (
        MODEL.encode(),
        text.encode(),
    )


def tool(text: str) -> bytes:
    return b"{" + FULL + b',"tools":[%b]}' % text.encode()


PAD = '"description":"' + "a" * 100 + '"'
REFUSED: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "JSON"),
    "no JSON": (b"Hello?", "JSON"),
    "half of a body": (ask()[:-20], "JSON"),
    "something behind the body": (ask() + b"{}", "JSON"),
    "single quotes": (b"{'model':'x'}", "JSON"),
    "NaN": (b"{" + FULL + b',"temperature":NaN}', "JSON"),
    "a comma too many": (b"{" + FULL + b",}", "JSON"),
    "a comment": (b"{" + FULL + b"/* */}", "JSON"),
    "a byte order mark": (b"\xef\xbb\xbf" + ask(), "JSON"),
    "UTF-16": (ask().decode().encode("utf-16"), "JSON"),
    "NUL bytes": (b"\x00" * 100, "JSON"),
    "a lone array": (b"[1,2]", "object"),
    "a lone string": (b'"model"', "object"),
    "null": (b"null", "object"),
    "an empty object": (b"{}", "model"),
    "no model": (b"{" + SAID + b"}", "model: field required"),
    "no messages": (b"{" + NAMED + b"}", "messages: field required"),
    "model as a number": (ask(model=7), "model"),
    "model as a list": (ask(model=[MODEL]), "model"),
    "an empty model": (ask(model=""), "not sold here; choose one of"),
    "an unknown model": (ask(model="gpt-4"), "not sold here; choose one of"),
    "a model of a megabyte": (ask(model="x" * 2**20), "not sold here; choose one of"),
    "messages as a string": (ask(messages="Hello"), "messages"),
    "messages as an object": (ask(messages={"role": "user"}), "messages"),
    "messages null": (b"{" + NAMED + b',"messages":null}', "messages"),
    "messages of numbers": (ask(messages=[1, 2]), "messages"),
    "blocks of numbers": (ask(messages=[{"role": "user", "content": [1]}]), "messages"),
    "a block whose type is a number": (ask(messages=[{"role": "user", "content": [{"type": 1}]}]), "messages"),
    "system of numbers": (ask(system=[1]), "system"),
    "tools as a string": (ask(tools="all"), "tools"),
    "tools of numbers": (ask(tools=[1]), "tools"),
    "max_tokens as text": (ask(max_tokens="50"), "max_tokens"),
    "max_tokens as a fraction": (ask(max_tokens=1.5), "max_tokens"),
    "max_tokens true": (ask(max_tokens=True), "max_tokens"),
    "max_tokens negative": (ask(max_tokens=-5), "max_tokens must be 1…"),
    "max_tokens huge": (ask(max_tokens=10**9), "max_tokens must be 1…"),
    "max_tokens past 64 bits": (ask(max_tokens=10**30), "max_tokens"),
    "max_tokens as an exponent": (b"{" + NAMED + b',"max_tokens":1e400,' + SAID + b"}", "max_tokens"),
    "temperature 2": (ask(temperature=2), "temperature must be 0…1, got 2"),
    "temperature below 0": (ask(temperature=-0.1), "temperature must be 0…1, got -0.1"),
    "temperature as text": (ask(temperature="hot"), "temperature"),
    "a lifetime that is a list": (
        ask(messages=[{"role": "user", "content": [{"type": "text", "cache_control": {"ttl": []}}]}], max_tokens=-1),
        "max_tokens",
    ),
    "thinking as text": (ask(thinking="much"), "thinking"),
    "a source as text": (
        ask(messages=[{"role": "user", "content": [{"type": "image", "source": "upload"}]}]),
        "messages",
    ),
    "stream as text": (ask(stream="yes"), "stream"),
    "stream as a number": (ask(stream=1), "stream"),
    "10,000 levels at the top": (DEEP, "object"),
    "10,000 levels in messages": (b"{" + NAMED + b',"max_tokens":50,"messages":' + DEEP + b"}", "nested"),
    "10,000 levels in a block": (block('{"type":"text","text":"a","x":' + DEEP.decode() + "}"), "nested"),
    "10,000 levels in an unknown field": (b"{" + FULL + b',"x":' + DEEP + b"}", "nested"),
    "10,000 objects in tools": (tool('{"a":' * 10_000 + "1" + "}" * 10_000), "nested"),
    "invalid UTF-8 in a prompt": (ask().replace(CANARY.encode(), b"\xff\xfe"), "UTF-8"),
    "invalid UTF-8 in an unknown field": (b"{" + FULL + b',"x":"\xc3"}', "UTF-8"),
    "an overlong encoding": (ask().replace(CANARY.encode(), b"\xc0\xaf"), "UTF-8"),
    "a surrogate in UTF-8": (ask().replace(CANARY.encode(), b"\xed\xa0\x80"), "UTF-8"),
}
TWICE: dict[str, bytes] = {
    "model": b"{" + FULL + b',"model":"claude-haiku-4-5"}',
    "model first": b'{"model":"claude-haiku-4-5",' + FULL + b"}",
    "model, escaped": b"{" + FULL + b',"mod\\u0065l":"claude-haiku-4-5"}',
    "max_tokens": b"{" + FULL + b',"max_tokens":1}',
    "max_tokens, escaped": b"{" + FULL + b',"max\\u005ftokens":1}',
    "messages": b"{" + FULL + b"," + SAID + b"}",
    "messages, one of them large": b'{"messages":[{"role":"user","content":"%b"}],' % (b"a" * 9999) + FULL + b"}",
    "messages, both large and alike": b"{" + b",".join([FULL, SAID.replace(b"canary", b"a" * 5000)] * 2) + b"}",
    "stream": b'{"stream":true,' + FULL + b',"stream":false}',
    "speed": b'{"speed":"fast",' + FULL + b',"speed":"standard"}',
    "inference_geo": b'{"inference_geo":"us",' + FULL + b',"inference_geo":"eu"}',
    "thinking": b'{"thinking":{"type":"adaptive"},' + FULL + b',"thinking":{"type":"disabled"}}',
    "the type of thinking": b'{"thinking":{"type":"adaptive","type":"disabled"},' + FULL + b"}",
    "a field nobody knows": b'{"hologram":1,' + FULL + b',"hologram":2}',
    "the type of a tool": tool('{"type":"code_execution_20250825","type":"custom","name":"x"}'),
    "the type of a large tool": tool('{"type":"code_execution_20250825","type":"custom","name":"x",' + PAD + "}"),
    "the type of a large tool, escaped": tool('{"type":"cod\\u0065_execution_20250825","type":"custom",' + PAD + "}"),
    "max_uses of a tool": tool(
        '{"type":"web_search_20250305","name":"web_search","max_uses":100,"max_uses":1,' + PAD + "}"
    ),
    "the source of a block": block(
        '{"type":"document","source":{"type":"url","url":"http://a/"},"source":{"type":"text","data":"a"},' + PAD + "}"
    ),
    "the type of a source": block(
        '{"type":"document","source":{"type":"file","file_id":"f","type":"text","data":"' + "a" * 100 + '"}}'
    ),
    "cache_control of a block": block(
        '{"type":"text","text":"a","cache_control":{"type":"ephemeral","ttl":"1h"},"cache_control":null,' + PAD + "}"
    ),
    "the ttl of cache_control": block(
        '{"type":"text","text":"a","cache_control":{"type":"ephemeral","ttl":"1h","ttl":"5m"},' + PAD + "}"
    ),
    "content of a message": b"{" + NAMED + b',"max_tokens":50,"messages":[{"role":"user","content":[{"type":"document",'
    b'"source":{"type":"url","url":"http://a/"}}],"content":"%b"}]}' % (b"a" * 100),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_a_body_that_says_nothing_valid_is_refused_by_name(shared: Stage, name: str) -> None:
    body, words = REFUSED[name]
    asked = len(shared.simulator.requests)
    reply = await exchange(shared.gateway.port, request(shared.alice, body))
    check_refusal(reply, 400, words)
    assert len(shared.simulator.requests) == asked


@pytest.mark.parametrize("name", TWICE)
async def test_what_is_said_twice_is_refused_where_money_hangs_on_it(shared: Stage, name: str) -> None:
    reply = await exchange(shared.gateway.port, request(shared.alice, TWICE[name]))
    check_refusal(reply, 400, "given twice")


async def test_an_escaped_name_is_that_name(shared: Stage) -> None:
    body = ask(max_tokens=-5).replace(b'"max_tokens"', b'"max\\u005ftokens"')
    check_refusal(await exchange(shared.gateway.port, request(shared.alice, body)), 400, "max_tokens must be 1…")


@pytest.mark.parametrize("announced", [True, False])
async def test_40_mb_are_refused_and_the_client_can_read_why(shared: Stage, announced: bool) -> None:  # noqa: FBT001
    size = 40 * 2**20
    async with dial(shared.gateway.port) as line:
        how = f"content-length: {size}" if announced else "transfer-encoding: chunked"
        await line.write(head(shared.alice, how) + b"\r\n")
        piece = b"a" * 2**20 if announced else b"100000\r\n" + b"a" * 2**20 + b"\r\n"
        for _ in range(40):
            await line.write(piece)
        check_refusal(await line.reply(), 413, "32 MiB")
        await line.closed()


@pytest.mark.parametrize("coding", ["gzip", "zstd", "br", "deflate, gzip", "GZIP"])
@pytest.mark.parametrize("path", ["/messages", "/messages/count_tokens"])
async def test_a_compressed_body_is_refused_by_the_api_s_own_code(shared: Stage, coding: str, path: str) -> None:
    data = request(shared.alice, gzip.compress(ask()), f"content-encoding: {coding}", path=f"/api/proxy/v1{path}")
    reply = await exchange(shared.gateway.port, data)
    check_refusal_with_code(reply, "request_body_encoding_unsupported")


async def test_identity_is_no_compression(shared: Stage) -> None:
    data = request(shared.alice, ask(max_tokens=-5), "content-encoding: identity")
    check_refusal(await exchange(shared.gateway.port, data), 400, "max_tokens")


def check_refusal_with_code(reply: Any, code: str) -> None:
    assert reply.status == 400, reply.body
    assert reply.json()["error"]["details"] == {"error_code": code}
    assert "content-encoding" in reply.message
    assert reply.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("field", ["metadata", "messages", "tools", "hologram"])
async def test_a_body_of_tiny_values_keeps_nobody_else_waiting(shared: Stage, field: str) -> None:
    """Thirty megabytes of empty objects, from somebody without a cent: the loop goes on serving the others."""
    crowd = b'"%b":[%b{}]' % (field.encode(), b"{}," * 10_000_000)
    body = b"{" + NAMED + b"," + crowd + (b"}" if field == "messages" else b"," + SAID + b"}")
    assert await longest_wait(shared, body, "send less") < 2.0


@pytest.mark.parametrize("where", ["content", "source"])
@pytest.mark.parametrize("hint", ["", '"cache_control":null,'])
async def test_blocks_within_blocks_keep_nobody_else_waiting(shared: Stage, where: str, hint: str) -> None:
    opening, closing = (
        ('{"type":"tool_result",%s"content":[', "]}")
        if where == "content"
        else ('{"type":"document",%s"source":{"type":"content","content":[', "]}}")
    )
    body = block(opening % hint * 300 + '{"type":"text","text":"' + "a" * 30_000_000 + '"}' + closing * 300)
    assert await longest_wait(shared, body, "nested") < 2.0


async def longest_wait(stage: Stage, body: bytes, words: str) -> float:
    """Send a body from somebody without a cent; answers how much computing in one go it caused."""
    slowest, last = 0.0, time.thread_time()

    async def look() -> None:
        nonlocal slowest, last
        while True:
            slowest, last = max(slowest, time.thread_time() - last), time.thread_time()
            await asyncio.sleep(0.01)

    data = request(stage.bob, body)
    looking = asyncio.create_task(look())
    await asyncio.sleep(0)
    check_refusal(await exchange(stage.gateway.port, data), 400, words)
    await asyncio.sleep(0.02)
    looking.cancel()
    return slowest


HIDDEN: dict[str, dict[str, Any]] = {
    "compaction": {"context_management": {"edits": [{"type": "compact_20260112"}]}},
    "code execution": {"tools": [{"type": "code_execution_20250825", "name": "code_execution"}]},
    "a file": {
        "messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "file", "file_id": "f"}}]}]
    },
    "threads": {"thread": {"type": "create"}},
    "another model": {"fallbacks": "default"},
}


@pytest.mark.parametrize("name", HIDDEN)
async def test_escapes_hide_no_feature_that_is_switched_off(shared: Stage, name: str) -> None:
    """Each letter c, f and t of the body written as an escape, in names and in values."""
    body = ask(**HIDDEN[name])
    for letter in b"cft":
        body = body.replace(b"%c" % letter, b"\\u00%02x" % letter)
    check_refusal(await exchange(shared.gateway.port, request(shared.alice, body)), 400, "offer")


async def test_a_type_that_only_mentions_disabled_is_not_disabled() -> None:
    asked = read_request(ask(thinking={"type": "adaptive", "display": "disabled"}))
    assert thinks_hidden(asked)
    assert not thinks_hidden(read_request(ask(thinking={"type": "disabled"})))
