"""Promise 10: a refusal has the right status, the envelope, and words that tell what to do; nothing is held."""

import json
import re
from decimal import Decimal
from typing import Any

import pytest

from farebox.ids import new_key
from tests.gateway.play import envelope, message
from tests.stage import MODEL, OpenStage, Person, Stage

URL_IMAGE = {"type": "image", "source": {"type": "url", "url": "https://x.example/a.png"}}
FILE = {"type": "document", "source": {"type": "file", "file_id": "file_1"}}


def tool(kind: str, **fields: Any) -> dict[str, Any]:
    return {"tools": [{"type": kind, "name": kind.rpartition("_")[0], **fields}]}


def content(block: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [{"type": "text", "text": "Look"}, block]}]}


OFF: list[tuple[str, str, dict[str, Any], dict[str, str]]] = [
    ("threads", "thread", {"thread": {"id": "t"}}, {}),
    ("fallbacks", "fallbacks", {"fallbacks": [{"model": "claude-opus-4-6"}]}, {}),
    ("fallback_credit", "fallback_credit_token", {"fallback_credit_token": "t"}, {}),
    ("advisor", "advisor_20260301", tool("advisor_20260301", model="claude-opus-5-5"), {}),
    ("mcp", "mcp_servers", {"mcp_servers": [{"type": "url", "url": "https://x.example", "name": "x"}]}, {}),
    ("mcp", "mcp_toolset", tool("mcp_toolset", mcp_server_name="x"), {}),
    ("code_execution", "code_execution_20250825", tool("code_execution_20250825"), {}),
    ("containers", "container", {"container": "container_1"}, {}),
    ("containers", "container", {"container": {"skills": [{"type": "custom", "skill_id": "x"}]}}, {}),
    ("compaction", "compaction", {"compaction": {"enabled": True}}, {}),
    ("compaction", "context_management", {"context_management": {"edits": [{"type": "compact_20260112"}]}}, {}),
    ("files", "file_id", content(FILE), {}),
    ("files", "container_upload", content({"type": "container_upload", "file_id": "file_1"}), {}),
    (
        "files",
        "file_id",
        content({"type": "tool_result", "tool_use_id": "t", "content": [FILE]}),
        {},
    ),
    ("user_profiles", "user_profile_id", {"user_profile_id": "up_1"}, {}),
    ("user_profiles", "billing_policy", {"billing_policy": {"type": "x"}}, {}),
    ("user_profiles", "anthropic-user-profile-id", {}, {"anthropic-user-profile-id": "up_1"}),
    ("workspaces", "workspace_id", {"workspace_id": "w"}, {}),
    ("workspaces", "anthropic-workspace-id", {}, {"anthropic-workspace-id": "w"}),
    ("web_fetch", "web_fetch_20250910", tool("web_fetch_20250910", max_uses=1), {}),
]
"""Features that are refused unless switched on: switch, what the refusal names, fields, headers."""

ON: list[tuple[str, str, dict[str, Any], dict[str, str]]] = [
    ("web_search", "web_search_20250305", tool("web_search_20250305", max_uses=3), {}),
    ("url_sources", "source.url", content(URL_IMAGE), {}),
    ("fast", "speed", {"speed": "fast", "model": "claude-opus-5-5"}, {}),
]
"""Features that are let through unless switched off."""


async def refused(stage: Stage, fields: dict[str, Any], headers: dict[str, str] | None = None) -> tuple[str, str]:
    """Check that a request is a 400 that leaves no trace; answers the words."""
    answer = await stage.post(stage.alice, message(**fields), headers=headers or {})
    kind, words = envelope(await answer.read(2**20))
    assert (answer.status, kind) == (400, "invalid_request_error"), words
    assert answer.header(b"x-should-retry") == b"false"
    assert await stage.rows("SELECT 1 FROM usage UNION ALL SELECT 1 FROM hold") == []
    assert len(stage.simulator.requests) == 0
    return kind, words


@pytest.mark.parametrize(("switch", "named", "fields", "headers"), OFF)
async def test_a_feature_whose_cost_cannot_be_bounded_is_refused_by_name(
    stage: Stage, switch: str, named: str, fields: dict[str, Any], headers: dict[str, str]
) -> None:
    _, words = await refused(stage, fields, headers)
    assert named in words, (switch, words)


@pytest.mark.parametrize(("switch", "named", "fields", "headers"), OFF)
async def test_each_refused_feature_has_a_switch_of_its_own(
    open_stage: OpenStage, switch: str, named: str, fields: dict[str, Any], headers: dict[str, str]
) -> None:
    async with open_stage(f"[features]\n{switch} = true", alice_usd=10_000) as stage:
        answer = await stage.post(stage.alice, message(**fields), headers=headers)
        body = await answer.read(2**20)
        if switch == "files":  # somebody else's
            assert (answer.status, envelope(body)[0]) == (404, "not_found_error")
        else:
            assert len(stage.simulator.requests) == 1, named


@pytest.mark.parametrize(("switch", "named", "fields", "headers"), ON)
async def test_features_that_are_on_can_be_switched_off(
    open_stage: OpenStage, switch: str, named: str, fields: dict[str, Any], headers: dict[str, str]
) -> None:
    async with open_stage(f"[features]\n{switch} = false", alice_usd=10_000) as stage:
        _, words = await refused(stage, fields, headers)
        assert named in words
        alice = stage.alice
    async with open_stage() as stage:
        assert (await stage.post(alice, message(**fields), headers=headers)).status == 200


@pytest.mark.parametrize(
    "field", ["thread", "fallbacks", "mcp_servers", "container", "compaction", "context_management"]
)
async def test_a_field_that_is_null_asks_for_nothing(stage: Stage, field: str) -> None:
    answer = await stage.post(stage.alice, {**message(), field: None})
    await answer.read(2**20)
    assert len(stage.simulator.requests) == 1


@pytest.mark.parametrize("max_uses", [None, 0, -1, 101])
async def test_web_search_needs_max_uses_which_bounds_its_cost(stage: Stage, max_uses: int | None) -> None:
    fields = tool("web_search_20250305") if max_uses is None else tool("web_search_20250305", max_uses=max_uses)
    _, words = await refused(stage, fields)
    assert "max_uses" in words


async def test_threads_are_refused_with_the_apis_own_error_code(stage: Stage) -> None:
    answer = await stage.post(stage.alice, message(thread={"id": "t"}))
    error = json.loads(await answer.read(2**20))["error"]
    assert error["details"] == {"error_code": "thread_unsupported_request"}


WRONG: list[tuple[bytes, str]] = [
    (b"", "JSON"),
    (b"{", "JSON"),
    (b"nonsense", "JSON"),
    (b"[]", "object"),
    (b"3", "object"),
    (b'{"model":"\xff","messages":[]}', "UTF-8"),
    (b'{"messages":[{"role":"user","content":"Hi"}]}', "model"),
    (b'{"model":"claude-sonnet-4-6"}', "messages"),
    (b'{"model":"claude-sonnet-4-6","messages":"Hi"}', "messages"),
    (b'{"model":7,"messages":[{"role":"user","content":"Hi"}]}', "model"),
    (b'{"model":"gpt-9","messages":[{"role":"user","content":"Hi"}]}', "claude-sonnet-4-6"),
    (b'{"model":"claude-sonnet-4-6","model":"claude-opus-4-6","messages":[{"role":"user","content":"Hi"}]}', "twice"),
    (
        b'{"model":"claude-sonnet-4-6","messages":[{"role":"user","content":"Hi"}],"max_tokens":5,"max_tokens":6}',
        "twice",
    ),
    (
        b'{"model":"claude-sonnet-4-6","messages":[{"role":"user","content":"Hi"}],"m\\u0061x_tokens":5,"max_tokens":6}',
        "twice",
    ),
    (b'{"model":"claude-sonnet-4-6","messages":[{"role":"user","content":"Hi"}],"stream":"yes"}', "stream"),
]


@pytest.mark.parametrize(("body", "named"), WRONG)
async def test_a_body_that_is_wrong_is_refused_in_words_that_name_the_place(
    stage: Stage, body: bytes, named: str
) -> None:
    answer = await stage.post(stage.alice, body)
    kind, words = envelope(await answer.read(2**20))
    assert (answer.status, kind) == (400, "invalid_request_error")
    assert named in words
    assert await stage.rows("SELECT 1 FROM usage UNION ALL SELECT 1 FROM hold") == []


FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"max_tokens": -5}, "max_tokens must be"),
    ({"max_tokens": 10**30}, "max_tokens"),
    ({"max_tokens": 128_001}, "128000"),
    ({"max_tokens": "many"}, "max_tokens"),
    ({"max_tokens": 1.5}, "max_tokens"),
    ({"temperature": 2}, "temperature must be 0…1, got 2"),
    ({"temperature": -0.1}, "temperature must be"),
    ({"temperature": "hot"}, "temperature"),
    ({"messages": []}, "message"),
    ({"model": ""}, "model"),
    ({"model": "x" * 10_000}, "not sold here"),
]


@pytest.mark.parametrize(("fields", "named"), FIELDS)
async def test_a_wrong_value_is_refused_with_the_value_seen(stage: Stage, fields: dict[str, Any], named: str) -> None:
    _, words = await refused(stage, fields)
    assert named in words
    assert len(words) < 2000


async def test_a_body_that_is_too_large_is_a_413_before_it_has_been_sent(stage: Stage) -> None:
    answer = await stage.post(stage.alice, b"{" + b" " * (33 * 2**20))
    kind, words = envelope(await answer.read(2**20))
    assert (answer.status, kind) == (413, "request_too_large")
    assert "32 MiB" in words


async def test_deep_nesting_is_refused_and_the_server_goes_on(stage: Stage) -> None:
    deep = b"[" * 10_000 + b"]" * 10_000
    for body in (
        deep,
        b'{"model":"claude-sonnet-4-6","messages":' + deep + b"}",
        b'{"model":"claude-sonnet-4-6","messages":[{"role":"user","content":"Hi"}],"x":' + deep + b"}",
        b'{"model":"claude-sonnet-4-6","messages":[{"role":"user","content":' + deep + b"}]}",
    ):
        answer = await stage.post(stage.alice, body)
        assert (answer.status, envelope(await answer.read(2**20))[0]) == (400, "invalid_request_error")
    assert (await stage.ask(stage.alice))[0] == 200


async def test_too_many_calls_at_once_are_told_to_come_back(open_stage: OpenStage) -> None:
    async with open_stage(limits="concurrent_calls = 1") as stage:
        first = await stage.post(stage.alice, message("[[sim tokens=50 rate=100 ttft=0]]", stream=True))
        answer = await stage.post(stage.alice, message())
        assert (answer.status, envelope(await answer.read(2**20))[0]) == (529, "overloaded_error")
        assert (answer.header(b"x-should-retry"), answer.header(b"retry-after")) == (b"true", b"2")
        await first.read(2**20)
        assert (await stage.ask(stage.alice))[0] == 200


async def test_a_402_is_not_to_be_tried_again_and_says_how_much_is_missing(stage: Stage) -> None:
    carl = await stage.person("carl@example.com", 0.01)
    answer = await stage.post(carl, message(max_tokens=100_000))
    kind, words = envelope(await answer.read(2**20))
    assert (answer.status, kind) == (402, "insufficient_balance")
    assert answer.header(b"x-should-retry") == b"false"
    assert answer.header(b"retry-after") is None
    told = re.fullmatch(
        r"your free balance is \$(0\.01) and this call needs \$([\d.]+) held: \$([\d.]+) short; "
        r"top up at (http\S+)/dashboard/topup, or lower max_tokens to at most (\d+)",
        words,
    )
    assert told is not None, words
    free, needed, short = map(Decimal, told.groups()[:3])
    assert needed - free == short
    assert told[4] == stage.gateway.config.public_url
    assert len(words) < 250, "clients show it as it is"
    assert (await stage.post(carl, message(max_tokens=int(told[5])))).status == 200


@pytest.mark.parametrize("stream", [False, True])
async def test_an_empty_balance_is_told_what_the_call_needs(stage: Stage, stream: bool) -> None:  # noqa: FBT001
    answer = await stage.post(stage.bob, message(stream=stream))
    _, words = envelope(await answer.read(2**20))
    told = re.fullmatch(
        r"your free balance is \$0\.00 and this call needs (\$[\d.]+) held: (\$[\d.]+) short; top up at http\S+", words
    )
    assert told is not None, words
    assert told[1] == told[2]


async def test_keys_that_do_not_do_lead_to_where_keys_are_made(stage: Stage) -> None:
    url = f"{stage.gateway.config.public_url}/dashboard/keys"
    store, now_us = stage.gateway.store, stage.gateway.clock()
    expired = await stage.person("expired@example.com")
    revoked = await stage.person("revoked@example.com")
    await store.write([
        ("UPDATE api_key SET expires_at = ? WHERE account_id = ?", (now_us, expired.account_id)),
        ("UPDATE api_key SET revoked_at = ? WHERE account_id = ?", (now_us, revoked.account_id)),
    ])  # fmt: skip
    unknown = Person(0, "", new_key("sk-cc-"))
    for person, word in (
        (expired, "expired"),
        (revoked, "revoked"),
        (unknown, "not known"),
        (Person(0, "", ""), "needed"),
    ):
        answer = await stage.post(person, message())
        kind, words = envelope(await answer.read(2**20))
        assert (answer.status, kind) == (401, "authentication_error")
        assert word in words
        assert words.endswith(f"at {url}")


async def test_where_the_bound_by_bytes_would_refuse_a_small_balance_the_upstreams_count_decides(stage: Stage) -> None:
    """A prompt of 40,000 letters is 10,000 tokens, not 40,000."""
    carl = await stage.person("carl@example.com", 0.03)
    status, _ = await stage.ask(carl, "x" * 40_000, max_tokens=100)
    assert status == 200
    assert [request.path for request in stage.simulator.requests] == ["/v1/messages/count_tokens", "/v1/messages"]


async def test_a_failure_of_the_gateway_itself_is_a_500_that_says_nothing_of_its_inside(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ValueError(f"secret {stage.alice.key}")

    monkeypatch.setattr("farebox.gateway.messages.conversation_of", broken)
    status, body = await stage.ask(stage.alice, model=MODEL)
    assert (status, envelope(body)[0]) == (500, "internal_error")
    assert b"secret" not in body
    assert "secret" not in repr(stage.events)
    assert any(event["event"] == "call_failed" for event in stage.events)


async def test_fast_mode_is_refused_where_it_has_no_price(stage: Stage) -> None:
    status, body = await stage.ask(stage.alice, speed="fast")
    assert (status, b"fast mode is not sold with" in body) == (400, True)
    assert not stage.simulator.requests


async def test_counting_tokens_does_not_reach_into_the_operators_account(stage: Stage) -> None:
    source = {"type": "file", "file_id": "file_somebody_elses"}
    body = {"model": MODEL, "messages": [{"role": "user", "content": [{"type": "document", "source": source}]}]}
    answer = await stage.post(stage.alice, body, path="/api/proxy/v1/messages/count_tokens")
    assert (answer.status, b"file_id" in await answer.read(2**16)) == (400, True)
    assert not stage.simulator.requests


async def test_an_upstream_without_funds_is_the_operators_matter(stage: Stage) -> None:
    """The API tells an empty account by a 400 of its own; a customer gets a 502, the operator an alert."""
    stage.simulator.knobs = "error=400:billing_error"
    status, body = await stage.ask(stage.alice)
    assert status == 502
    assert b"billing" not in body
    assert b"operator" in body
    assert any(event["event"] == "upstream_refuses_operator" for event in stage.events)
    assert (await stage.balance(stage.alice))[1] == 0
