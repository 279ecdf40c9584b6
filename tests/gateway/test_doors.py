"""Paths, keys, probes and the free endpoints: what people paste and what clients send before they ask for anything."""

import asyncio
import json

import pytest

from farebox.accounts.keys import create_key
from farebox.http.client import Answer
from farebox.ids import new_key
from tests.gateway.play import USD, envelope, message, nanos, upstream
from tests.stage import OpenStage, Person, Stage

PREFIXES = ["/api/proxy/v1", "/api/proxy/v1/v1", "/api/proxy", "/v1", "/v1/v1"]
LIMITS = [
    f"anthropic-ratelimit-{bucket}-{what}".encode()
    for bucket in ("requests", "tokens")
    for what in ("limit", "remaining", "reset")
]


async def send(
    stage: Stage, method: str, path: str, headers: dict[str, str], body: bytes = b""
) -> tuple[Answer, bytes]:
    fields = [(name.encode(), value.encode()) for name, value in headers.items()]
    answer = await stage.client.request(method, path, fields, body, first_byte_s=10)
    return answer, await answer.read(2**24)


def keyed(person: Person) -> dict[str, str]:
    return {"x-api-key": person.key, "anthropic-version": "2023-06-01"}


@pytest.mark.parametrize("prefix", PREFIXES)
async def test_every_form_of_the_base_url_people_paste_works(stage: Stage, prefix: str) -> None:
    headers = keyed(stage.alice)
    body = json.dumps(message()).encode()
    assert (await send(stage, "POST", f"{prefix}/messages", headers, body))[0].status == 200
    assert stage.simulator.requests[-1].target == "/v1/messages"
    assert (await send(stage, "POST", f"{prefix}/messages/count_tokens", headers, body))[0].status == 200
    assert stage.simulator.requests[-1].target == "/v1/messages/count_tokens"
    assert (await send(stage, "GET", f"{prefix}/models", headers))[0].status == 200
    assert (await send(stage, "GET", f"{prefix}/models/claude-sonnet-4-6", headers))[0].status == 200


@pytest.mark.parametrize(
    "path", ["/api/proxy/v1/complete", "/api/proxy/message", "/v2/messages", "/v1/messages/", "/v1/messages/batchez"]
)
async def test_what_is_not_there_is_a_404_that_says_where_calls_go(stage: Stage, path: str) -> None:
    answer, body = await send(stage, "POST", path, keyed(stage.alice), b"{}")
    kind, words = envelope(body)
    assert (answer.status, kind) == (404, "not_found_error")
    assert "/api/proxy/v1/messages" in words
    assert answer.header(b"x-should-retry") == b"false"


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("GET", "/v1/messages", b"POST"), ("DELETE", "/v1/models", b"GET"), ("PUT", "/v1/messages", b"POST")],
)
async def test_a_wrong_method_is_a_405_that_names_the_right_one(
    stage: Stage, method: str, path: str, allowed: bytes
) -> None:
    answer, body = await send(stage, method, path, keyed(stage.alice))
    assert (answer.status, answer.header(b"allow")) == (405, allowed)
    assert envelope(body)[0] == "invalid_request_error"


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("path", ["/", "/api/hello", "/api/proxy", "/api/proxy/", "/healthz", "/readyz"])
async def test_probes_are_answered_without_a_key_and_never_reach_the_upstream(
    stage: Stage, method: str, path: str
) -> None:
    answer, body = await send(stage, method, path, {})
    assert answer.status == 200
    assert (body == b"") is (method == "HEAD")
    assert len(stage.simulator.requests) == 0


# keys


async def _status(stage: Stage, headers: dict[str, str]) -> tuple[int, bytes]:
    answer, body = await send(
        stage, "POST", "/v1/messages", {"anthropic-version": "2023-06-01", **headers}, json.dumps(message()).encode()
    )
    return answer.status, body


async def test_a_key_works_in_either_header_and_however_it_is_spelt(stage: Stage) -> None:
    key = stage.alice.key
    for headers in (
        {"x-api-key": key},
        {"X-API-Key": f" {key} "},
        {"authorization": f"Bearer {key}"},
        {"Authorization": f"bearer  {key}"},
        {"x-api-key": key, "authorization": f"Bearer {key}"},
    ):
        assert (await _status(stage, headers))[0] == 200, headers


@pytest.mark.parametrize("other", ["sk-ant-api03-something", "", "null", "sk-cc-short"])
async def test_of_two_different_headers_the_one_with_a_gateway_key_wins(stage: Stage, other: str) -> None:
    """Claude Code sends its own token beside the key it was given."""
    key = stage.alice.key
    assert (await _status(stage, {"x-api-key": other, "authorization": f"Bearer {key}"}))[0] == 200
    assert (await _status(stage, {"x-api-key": key, "authorization": f"Bearer {other}"}))[0] == 200


async def test_a_well_formed_key_nobody_made_beside_a_real_one_does_no_harm(stage: Stage) -> None:
    headers = {"x-api-key": new_key("sk-cc-"), "authorization": f"Bearer {stage.alice.key}"}
    assert (await _status(stage, headers))[0] == 200


async def test_valid_keys_of_two_accounts_are_refused_rather_than_guessed_between(stage: Stage) -> None:
    status, body = await _status(stage, {"x-api-key": stage.alice.key, "authorization": f"Bearer {stage.bob.key}"})
    kind, words = envelope(body)
    assert (status, kind) == (401, "authentication_error")
    assert "two accounts" in words


async def test_two_keys_of_one_account_are_fine(stage: Stage) -> None:
    store = stage.gateway.store
    _, second = await create_key(store, stage.alice.account_id, "second", "sk-cc-", stage.gateway.clock())
    assert (await _status(stage, {"x-api-key": stage.alice.key, "authorization": f"Bearer {second}"}))[0] == 200


NO_KEYS = [
    ({}, "an API key is needed"),
    ({"x-api-key": ""}, "an API key is needed"),
    ({"x-api-key": "sk-ant-api03-x"}, "not an API key of this gateway"),
    ({"authorization": "Basic abc"}, "an API key is needed"),
    ({"x-api-key": new_key("sk-cc-")}, "not known here"),
    ({"x-api-key": new_key("sk-cc-")[:-1]}, "not an API key of this gateway"),
    ({"x-api-key": "žluť"}, "not an API key of this gateway"),
]


@pytest.mark.parametrize(("headers", "words"), NO_KEYS)
async def test_without_a_valid_key_the_answer_is_401_and_says_what_is_wrong(
    stage: Stage, headers: dict[str, str], words: str
) -> None:
    status, body = await _status(stage, headers)
    assert (status, envelope(body)[0]) == (401, "authentication_error")
    assert words in envelope(body)[1]
    for value in headers.values():
        assert not value.startswith("sk-cc-") or value not in body.decode()


async def test_a_typo_in_a_key_is_recognised_without_asking_the_books(stage: Stage) -> None:
    key = stage.alice.key
    typo = key[:20] + ("a" if key[20] != "a" else "b") + key[21:]
    _, body = await _status(stage, {"x-api-key": typo})
    assert "checksum" in envelope(body)[1]


async def test_a_revoked_key_and_a_suspended_account_are_refused_at_once(stage: Stage) -> None:
    store = stage.gateway.store
    assert (await stage.ask(stage.alice))[0] == 200
    await store.write([("UPDATE api_key SET revoked_at = 1 WHERE account_id = ?", (stage.alice.account_id,))])
    status, body = await stage.ask(stage.alice)
    assert (status, envelope(body)[0]) == (401, "authentication_error")
    assert "revoked" in envelope(body)[1]
    await store.write([("UPDATE account SET status = 'suspended' WHERE id = ?", (stage.bob.account_id,))])
    status, body = await stage.ask(stage.bob)
    assert (status, envelope(body)[0]) == (403, "permission_error")
    assert len(stage.simulator.requests) == 1


async def test_an_expired_key_is_refused(stage: Stage) -> None:
    store = stage.gateway.store
    await store.write([("UPDATE api_key SET expires_at = 1 WHERE account_id = ?", (stage.alice.account_id,))])
    status, body = await stage.ask(stage.alice)
    assert (status, "expired" in envelope(body)[1]) == (401, True)


# models


async def test_the_list_of_models_has_the_shape_of_the_api_and_the_prices(stage: Stage) -> None:
    answer, body = await send(stage, "GET", "/api/proxy/v1/models?limit=1000", keyed(stage.bob))
    page = json.loads(body)
    assert answer.status == 200
    assert page["has_more"] is False
    assert (page["first_id"], page["last_id"]) == (page["data"][0]["id"], page["data"][-1]["id"])
    opus, sonnet, haiku = (
        next(m for m in page["data"] if m["id"] == name)
        for name in ("claude-opus-4-6", "claude-sonnet-4-6", "claude-haiku-4-5")
    )
    assert {"type", "id", "display_name", "created_at"} <= opus.keys()
    assert [(m["pricing"]["sell"]["input"], m["pricing"]["list"]["input"]) for m in (opus, sonnet, haiku)] == [
        ("7.50", "15.00"), ("1.50", "3.00"), ("0.40", "0.80")
    ]  # fmt: skip
    assert [(m["pricing"]["sell"]["output"], m["pricing"]["list"]["output"]) for m in (opus, sonnet, haiku)] == [
        ("37.50", "75.00"), ("7.50", "15.00"), ("2.00", "4.00")
    ]  # fmt: skip
    assert {m["max_input_tokens"] for m in (opus, sonnet, haiku)} == {200_000}


async def test_pages_forwards_and_backwards_give_every_model_once(stage: Stage) -> None:
    _, body = await send(stage, "GET", "/v1/models?limit=1000", keyed(stage.bob))
    ids = [model["id"] for model in json.loads(body)["data"]]
    for cursor, way in (("after_id", 1), ("before_id", -1)):
        seen: list[str] = []
        place = f"before_id={ids[-1]}" if way < 0 else "limit=4"
        while True:
            _, body = await send(stage, "GET", f"/v1/models?limit=4&{place}", keyed(stage.bob))
            page = json.loads(body)
            found = [model["id"] for model in page["data"]]
            seen = seen + found if way > 0 else found + seen
            if not page["has_more"]:
                break
            place = f"{cursor}={page['last_id'] if way > 0 else page['first_id']}"
        assert seen == (ids if way > 0 else ids[:-1])


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=1001", "limit=x", f"limit={'9' * 5000}", "limit=-1", "after_id=nobody", "before_id=nobody"],
)
async def test_a_page_that_cannot_be_is_a_400(stage: Stage, query: str) -> None:
    answer, body = await send(stage, "GET", f"/v1/models?{query}", keyed(stage.bob))
    assert (answer.status, envelope(body)[0]) == (400, "invalid_request_error")


async def test_one_model_is_found_by_id_and_by_alias_and_another_is_a_404(stage: Stage) -> None:
    for name in ("claude-haiku-4-5", "claude-haiku-4-5-20251001"):
        _, body = await send(stage, "GET", f"/v1/models/{name}", keyed(stage.bob))
        assert json.loads(body)["id"] == "claude-haiku-4-5"
    answer, body = await send(stage, "GET", "/v1/models/gpt-9", keyed(stage.bob))
    assert (answer.status, envelope(body)[0]) == (404, "not_found_error")


# count_tokens


async def test_counting_tokens_is_free_needs_no_balance_and_goes_up_as_it_came(stage: Stage) -> None:
    body = json.dumps(
        {"model": "claude-sonnet-4-6", "messages": [{"role": "user", "content": "Hello there"}]}, indent=1
    ).encode()
    answer, counted = await send(stage, "POST", "/api/proxy/v1/messages/count_tokens?beta=true", keyed(stage.bob), body)
    assert answer.status == 200
    assert json.loads(counted)["input_tokens"] > 0
    assert stage.simulator.requests[-1].body == body
    assert stage.simulator.requests[-1].target == "/v1/messages/count_tokens?beta=true"
    assert await stage.rows("SELECT 1 FROM usage UNION ALL SELECT 1 FROM hold") == []


async def test_twenty_five_counts_in_a_second_are_fine_and_leave_the_plans_limits_alone(stage: Stage) -> None:
    carl = await stage.person("carl@example.com", plan="free")
    body = json.dumps(message()).encode()
    answers = await asyncio.gather(
        *(send(stage, "POST", "/v1/messages/count_tokens", keyed(carl), body) for _ in range(25))
    )
    assert {answer.status for answer, _ in answers} == {200}
    assert answers[-1][0].header(b"anthropic-ratelimit-requests-remaining") == b"10"


async def test_counting_has_a_limit_of_its_own_and_says_when_to_come_back(open_stage: OpenStage) -> None:
    async with open_stage(limits="count_tokens_per_minute = 3") as stage:
        body = json.dumps(message()).encode()
        for _ in range(3):
            assert (await send(stage, "POST", "/v1/messages/count_tokens", keyed(stage.alice), body))[0].status == 200
        answer, words = await send(stage, "POST", "/v1/messages/count_tokens", keyed(stage.alice), body)
        assert (answer.status, envelope(words)[0]) == (429, "rate_limit_error")
        assert answer.header(b"retry-after") == b"20"
        assert (await send(stage, "POST", "/v1/messages/count_tokens", keyed(stage.bob), body))[0].status == 200
        assert (await stage.ask(stage.alice))[0] == 200


@pytest.mark.parametrize(
    ("knobs", "status"),
    [("error=400", 400), ("error=404", 404), ("error=401", 502), ("error=529", 529), ("close_before", 502)],
)
async def test_a_failed_count_is_told_like_a_failed_call(stage: Stage, knobs: str, status: int) -> None:
    answer, _ = await send(
        stage, "POST", "/v1/messages/count_tokens", keyed(stage.bob), json.dumps(message(f"[[sim {knobs}]]")).encode()
    )
    assert answer.status == status


# what every answer carries


async def test_every_answer_to_a_known_caller_carries_its_limits_and_a_request_id(stage: Stage) -> None:
    good, bad = json.dumps(message()).encode(), b'{"model":"nobody","messages":[{"role":"user","content":"Hi"}]}'
    asks = [
        ("POST", "/v1/messages", good), ("POST", "/v1/messages", bad), ("POST", "/v1/messages", b"{"),
        ("POST", "/v1/messages", json.dumps(message("[[sim error=400]]")).encode()),
        ("POST", "/v1/messages", json.dumps(message("[[sim error=500]]")).encode()),
        ("POST", "/v1/messages", json.dumps(message(stream=True)).encode()),
        ("POST", "/v1/messages/count_tokens", good), ("POST", "/v1/messages/count_tokens", bad),
        ("POST", "/v1/messages/count_tokens", b"{"),
        ("POST", "/v1/messages/count_tokens", json.dumps(message("[[sim error=500]]")).encode()),
        ("GET", "/v1/models", b""), ("GET", "/v1/models/nobody", b""), ("GET", "/v1/models?limit=x", b""),
    ]  # fmt: skip
    for method, path, body in asks:
        answer, _ = await send(stage, method, path, keyed(stage.alice), body)
        names = [name for name, _ in answer.headers]
        assert [name for name in LIMITS if names.count(name) != 1] == [], (path, body, answer.status)
        assert names.count(b"request-id") == 1


async def test_request_ids_differ_and_are_the_ones_in_the_books(stage: Stage) -> None:
    first = await stage.post(stage.alice, message())
    second = await stage.post(stage.alice, message())
    shown = [answer.header(b"request-id") for answer in (first, second)]
    rows = await stage.rows("SELECT request_id FROM usage ORDER BY at")
    assert [b"req_" + row[0].hex().encode() for row in rows] == shown


async def test_a_models_restriction_of_an_upstream_is_kept(open_stage: OpenStage) -> None:
    """What no upstream serves is a 502 in words, and free."""
    upstreams = (
        upstream("one", 9, models='["claude-opus-4-6"]')
        + '[[upstreams]]\nname = "sim"\nkind = "simulator"\nmodels = ["claude-sonnet-4-6"]\n'
    )
    async with open_stage(upstreams=upstreams) as stage:
        assert (await stage.ask(stage.alice))[0] == 200
        status, body = await stage.ask(stage.alice, model="claude-haiku-4-5")
        assert (status, envelope(body)[0]) == (502, "upstream_error")
        charged = await stage.rows("SELECT sum(charged_nanos) FROM usage WHERE asked_model = 'claude-haiku-4-5'")
        assert charged == [(0,)]
        assert (await stage.balance(stage.alice))[1] == nanos() * USD
