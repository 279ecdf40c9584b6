"""For any bytes and any JSON: an answer or a closed connection, never a 500, never a cent."""

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.databases import on_sqlite
from tests.hostile.raw import CANARY, ask, dial, request
from tests.stage import MODEL, Stage

pytestmark = [pytest.mark.asyncio(loop_scope="module"), on_sqlite]

quick = settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
GOOD = (
    b"POST /api/proxy/v1/messages HTTP/1.1\r\nhost: a\r\nx-api-key: sk-cc-x\r\ncontent-type: application/json\r\n"
    b"content-length: %d\r\n\r\n%b"
) % (len(ask()), ask())


async def answers(stage: Stage, data: bytes) -> list[int]:
    """Send bytes and the end of the sending side; answers the statuses that came back, each whole."""
    statuses = []
    async with dial(stage.gateway.port) as line:
        await line.write(data + request(None, b"", "connection: close", method="GET", path="/healthz"))
        while True:
            try:
                statuses.append((await line.reply()).status)
            except (EOFError, ConnectionError):
                return statuses


@quick
@given(data=st.binary(max_size=300))
async def test_any_bytes_get_an_answer_or_a_closed_connection(shared: Stage, data: bytes) -> None:
    assert all(status in {200, 400, 401, 404, 405, 408, 413, 431} for status in await answers(shared, data))


@quick
@given(
    at=st.integers(0, len(GOOD)),
    cut=st.integers(0, 20),
    put=st.one_of(
        st.binary(max_size=20), st.sampled_from([b"\r\n", b"\n", b"\r\n\r\n", b"\x00", b": ", b" ", b"chunked"])
    ),
)
async def test_any_change_to_a_good_request_gets_an_answer(shared: Stage, at: int, cut: int, put: bytes) -> None:
    data = GOOD[:at] + put + GOOD[at + cut :]
    assert all(status in {200, 400, 401, 404, 405, 408, 413, 431} for status in await answers(shared, data))


scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.integers(-(2**70), 2**70)
)
words = st.sampled_from(
    ["type", "text", "source", "content", "cache_control", "ttl", "url", "file", "base64", "data", "tool_result",
     "document", "image", "media_type", "application/pdf", "web_search_20250305", "max_uses", "edits", "compact_1",
     "ephemeral", "1h", "adaptive", "disabled", "session_id", "custom", "name", "role", "user"]
)  # fmt: skip
anything = st.recursive(
    st.one_of(scalars, words),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.one_of(words, st.text(max_size=5)), inner, max_size=4)
    ),
    max_leaves=20,
)
fields = st.sampled_from(
    ["model", "messages", "max_tokens", "stream", "temperature", "system", "tools", "thinking", "metadata",
     "cache_control", "context_management", "container", "speed", "inference_geo", "mcp_servers", "hologram"]
)  # fmt: skip


@quick
@given(changes=st.dictionaries(fields, anything, min_size=1, max_size=3), spaced=st.booleans())
async def test_any_fields_are_refused_or_passed_on_and_never_break_the_gateway(
    shared: Stage,
    changes: dict[str, Any],
    spaced: bool,  # noqa: FBT001
) -> None:
    """From somebody without a cent, so that the last line of defence is a 402."""
    base = {"model": MODEL, "max_tokens": 5, "messages": [{"role": "user", "content": CANARY}]}
    body = json.dumps(base | changes, separators=None if spaced else (",", ":")).encode("utf-8", "surrogatepass")
    async with dial(shared.gateway.port) as line:
        await line.write(request(shared.bob, body))
        reply = await line.reply()
    assert reply.status in {400, 402}, (reply.status, body)
    assert reply.json()["error"]["message"]


@quick
@given(content=anything, where=st.sampled_from(["content", "block", "source", "tool", "system"]))
async def test_any_content_is_weighed_without_breaking(shared: Stage, content: Any, where: str) -> None:
    shapes: dict[str, dict[str, Any]] = {
        "content": {"messages": [{"role": "user", "content": content}]},
        "block": {"messages": [{"role": "user", "content": [content]}]},
        "source": {"messages": [{"role": "user", "content": [{"type": "document", "source": content}]}]},
        "tool": {"tools": [content]},
        "system": {"system": [content]},
    }
    async with dial(shared.gateway.port) as line:
        await line.write(request(shared.bob, ask(**shapes[where])))
        reply = await line.reply()
    assert reply.status in {400, 402}, (reply.status, content)
