"""What of the API is offered, and what is refused: each line of docs/offered.md, on a running gateway."""

import json
from typing import Any

import pytest

from farebox.gateway.settings import Features
from farebox.gateway.unoffered import UNOFFERED, why_not
from tests.gateway.play import envelope, message
from tests.gateway.test_refusals import OFF, ON
from tests.house.pages import ROOT, codes, rows, section
from tests.stage import MODEL, OpenStage, Stage

PAGE = (ROOT / "docs" / "offered.md").read_text()
FAMILIES = [
    "agents", "agents/agent_1/versions", "sessions", "sessions/sesn_1/events/stream", "sessions/sesn_1/threads",
    "environments", "environments/env_1/work", "deployments", "deployment_runs", "vaults", "vaults/vlt_1/credentials",
    "memory_stores", "memory_stores/memstore_1/memories", "dreams", "tunnels", "organizations/cost_report",
    "organizations/me", "user_profiles", "user_profiles/uprof_1/enrollment_url", "skills", "skills/skill_1/versions",
    "files", "files/file_1/content", "messages/cache_touch", "complete",
]  # fmt: skip
"""One path of each family of the API that costs what cannot be seen, or reaches into other customers' state."""
BETAS = [
    "claude-code-20250219", "interleaved-thinking-2025-05-14", "context-1m-2025-08-07", "effort-2025-11-24",
    "context-management-2025-06-27", "structured-outputs-2025-12-15", "extended-cache-ttl-2025-04-11",
    "prompt-caching-scope-2026-01-05", "thinking-token-count-2026-05-13", "tool-search-tool-2025-10-19",
    "output-300k-2026-03-24", "redact-thinking-2026-02-12", "files-api-2025-04-14", "message-threads-2026-08-12",
    "fast-mode-2026-02-01", "server-side-fallback-2026-07-01", "some-beta-of-2031",
]  # fmt: skip


@pytest.mark.parametrize("path", FAMILIES)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
async def test_what_is_not_offered_is_a_404_that_says_why(stage: Stage, method: str, path: str) -> None:
    for prefix in ("/api/proxy/v1", "/v1", "/api/proxy"):
        headers = [(b"x-api-key", stage.alice.key.encode())]
        target = f"{prefix}/{path}?beta=true"
        answer = await stage.client.request(method, target, headers, b"", first_byte_s=5)
        kind, words = envelope(await answer.read(2**20))
        assert (answer.status, kind) == (404, "not_found_error")
        assert answer.header(b"x-should-retry") == b"false"
        assert words.startswith(why_not(f"/{path}") or "?")
        assert "nothing at" not in words
    assert len(stage.simulator.requests) == 0


def test_the_page_has_every_endpoint_that_is_refused() -> None:
    told = [name for row in rows(section(PAGE, "Endpoints that are refused")) for name in codes(row[0])]
    assert set(told) == set(UNOFFERED)
    assert len(told) == len(set(told))
    assert {next(name for name in UNOFFERED if f"/{path}".startswith(name)) for path in FAMILIES} == set(UNOFFERED)


def test_a_path_that_only_begins_alike_is_another() -> None:
    assert why_not("/filesystem") is None
    assert why_not("/messages") is None


async def test_the_page_has_every_endpoint_that_is_offered(stage: Stage) -> None:
    told = [codes(row[0]) for row in rows(section(PAGE, "Endpoints"))]
    for method, path in (line.split() for cell in told for line in cell):
        headers = [(b"x-api-key", stage.alice.key.encode())]
        target = f"/v1{path.replace('{id}', MODEL if 'models' in path else 'msgbatch_1')}"
        answer = await stage.client.request(method, target, headers, b"", first_byte_s=5)
        assert answer.status != 405, target
        assert b"nothing at" not in await answer.read(2**20), target


def test_the_page_has_every_switch_with_what_it_lets_through() -> None:
    told = {codes(row[0])[0]: codes(row[1]) for row in rows(section(PAGE, "Features of a request"))}
    assert told.keys() == set(Features.__struct_fields__)
    for switch, named, _, _ in (*OFF, *ON):
        assert any(name.rstrip("…") in named for name in told[switch]), (switch, named)
    assert told.keys() == {switch for switch, *_ in (*OFF, *ON)}, "each switch is tried in test_refusals"


def test_the_switches_that_are_on_are_bounded_or_priced() -> None:
    assert {name for name in Features.__struct_fields__ if getattr(Features(), name)} == {name for name, *_ in ON}


@pytest.mark.parametrize("beta", BETAS)
async def test_a_beta_header_by_itself_goes_up_as_it_came(stage: Stage, beta: str) -> None:
    answer = await stage.post(stage.alice, message(), headers={"anthropic-beta": beta})
    assert answer.status == 200
    await answer.read(2**20)
    assert stage.simulator.requests[-1].header(b"anthropic-beta") == beta.encode()


SEARCH: dict[str, Any] = {"tools": [{"type": "web_search_20250305", "name": "web_search", "max_uses": 3}]}


async def held(stage: Stage, beta: str, fields: dict[str, Any]) -> float:
    answer = await stage.post(
        stage.alice, message(**fields), path="/v1/messages/quote", headers={"anthropic-beta": beta}
    )
    body = await answer.read(2**20)
    assert answer.status == 200, body
    return float(json.loads(body)["highest_cost"])


async def test_a_wider_window_asked_for_by_a_header_is_bounded(stage: Stage) -> None:
    """A call with 3 searches reads its window 4 times at most, and no search but at the price of one."""
    plain = await held(stage, "effort-2025-11-24", SEARCH)
    wide = await held(stage, "effort-2025-11-24,context-1m-2025-08-07", SEARCH)
    assert wide - plain == pytest.approx(4 * (1_000_000 - 200_000) * 1.5 / 1e6)


async def test_more_input_than_a_models_window_is_bounded_by_the_widest_there_is(open_stage: OpenStage) -> None:
    """With the header the upstream takes 1,000,000 tokens for a model that is sold with 200,000."""
    async with open_stage() as stage:
        text = "a b " * 300_000
        fields = {"messages": [{"role": "user", "content": text}], "max_tokens": 1}
        cost = await held(stage, "context-1m-2025-08-07", fields)
        assert cost == pytest.approx(1_000_000 * 1.5 / 1e6, rel=0.001)


async def test_longer_output_asked_for_by_a_header_is_not_let_through(stage: Stage) -> None:
    headers = {"anthropic-beta": "output-300k-2026-03-24"}
    answer = await stage.post(stage.alice, message(max_tokens=300_000), headers=headers)
    kind, words = envelope(await answer.read(2**20))
    assert (answer.status, kind) == (400, "invalid_request_error")
    assert "max_tokens" in words
    body = {"requests": [{"custom_id": "a", "params": message(max_tokens=300_000)}]}
    answer = await stage.post(stage.alice, body, path="/v1/messages/batches", headers=headers)
    assert answer.status == 400
    assert "max_tokens" in envelope(await answer.read(2**20))[1]
