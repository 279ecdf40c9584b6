"""What one key may do: its models, its addresses, its pace and what it may spend; and an account's own limits."""

import json
from datetime import UTC, datetime, timedelta
from ipaddress import ip_network
from typing import Any

import pytest

from farebox.accounts.key_rules import Rules
from farebox.accounts.keys import change_key, disable_key, enable_key, find_key
from farebox.billing.budgets import Resets, period_end_us, period_start_us
from farebox.http.client import Answer
from tests.gateway.play import USD, books, envelope, eventually, listen, message
from tests.stage import MODEL, Person, Stage

UNIFIED = b"anthropic-ratelimit-unified-"
OTHER = "claude-haiku-4-5"


async def rule(stage: Stage, person: Person, **rules: Any) -> int:
    """Give a person's key its rules, as the page of its keys does; answers its id."""
    store, now_us = stage.gateway.store, stage.gateway.clock()
    key = await find_key(store, person.key)
    await change_key(store, key, "k", Rules(**rules), now_us)
    stage.gateway.gatehouse.forget_keys()
    return key.id


async def ask(stage: Stage, person: Person, **fields: Any) -> tuple[Answer, str, str]:
    """Answers the head, and type and words where it is a refusal."""
    answer = await stage.post(person, message(**fields))
    body = await answer.read(2**24)
    return (answer, *envelope(body)) if answer.status >= 400 else (answer, "", "")


async def get(stage: Stage, person: Person, path: str) -> tuple[int, Any]:
    headers = [(b"x-api-key", person.key.encode())]
    answer = await stage.client.request("GET", f"/api/proxy/v1/{path}", headers, b"", first_byte_s=5)
    return answer.status, json.loads(await answer.read(2**20))


async def used(stage: Stage) -> int:
    return int((await stage.rows("SELECT used_nanos FROM key_budget"))[0][0])


async def test_a_key_that_rests_is_refused_until_it_works_again(stage: Stage) -> None:
    key_id = (await find_key(stage.gateway.store, stage.alice.key)).id
    await disable_key(stage.gateway.store, key_id, stage.gateway.clock())
    stage.gateway.gatehouse.forget_keys()
    answer, kind, words = await ask(stage, stage.alice)
    assert (answer.status, kind) == (403, "permission_error")
    assert "disabled" in words
    assert "/dashboard/keys" in words
    assert answer.header(b"x-should-retry") == b"false"
    await enable_key(stage.gateway.store, key_id)
    stage.gateway.gatehouse.forget_keys()
    assert (await ask(stage, stage.alice))[0].status == 200


async def test_a_key_may_use_only_its_models_and_is_shown_no_others(stage: Stage) -> None:
    await rule(stage, stage.alice, models=(MODEL,))
    answer, kind, words = await ask(stage, stage.alice, model=OTHER)
    assert (answer.status, kind) == (403, "permission_error")
    assert f"may not use {OTHER}, only {MODEL}" in words
    assert (await ask(stage, stage.alice))[0].status == 200
    status, listed = await get(stage, stage.alice, "models")
    assert (status, [model["id"] for model in listed["data"]]) == (200, [MODEL])
    assert (await get(stage, stage.alice, f"models/{MODEL}"))[0] == 200
    assert (await get(stage, stage.alice, f"models/{OTHER}"))[0] == 403
    counting = await stage.post(
        stage.alice, {"model": OTHER, "messages": message()["messages"]}, path="/api/proxy/v1/messages/count_tokens"
    )
    assert (counting.status, envelope(await counting.read(2**20))[0]) == (403, "permission_error")
    assert len((await get(stage, stage.bob, "models"))[1]["data"]) > 1


@pytest.mark.parametrize(
    ("networks", "status"),
    [
        (("127.0.0.1/32",), 200),
        (("10.0.0.0/8", "127.0.0.0/8"), 200),
        (("10.0.0.0/8",), 403),
        (("::1/128", "2001:db8::/32"), 403),
    ],
)
async def test_a_key_works_only_from_its_addresses(stage: Stage, networks: tuple[str, ...], status: int) -> None:
    await rule(stage, stage.alice, networks=networks)
    answer, kind, words = await ask(stage, stage.alice)
    assert answer.status == status
    if status == 403:
        assert kind == "permission_error"
        assert "may not be used from 127.0.0.1" in words
        assert (await get(stage, stage.alice, "models"))[0] == 403


async def test_a_header_does_not_make_another_address_of_a_peer(stage: Stage) -> None:
    await rule(stage, stage.alice, networks=("10.0.0.0/8",))
    answer = await stage.post(
        stage.alice, message(), headers={"x-forwarded-for": "10.0.0.1", "forwarded": "for=10.0.0.1"}
    )
    assert answer.status == 403


@pytest.mark.parametrize(
    ("forwarded", "status"),
    [("10.0.0.1", 200), ("9.9.9.9", 403), ("10.0.0.1, 9.9.9.9", 403), ("9.9.9.9, 10.0.0.1", 200), ("nonsense", 403)],
)
async def test_a_trusted_proxy_says_for_whom_it_speaks(stage: Stage, forwarded: str, status: int) -> None:
    assert stage.gateway._server is not None
    stage.gateway._server.proxies = (ip_network("127.0.0.0/8"),)
    await rule(stage, stage.alice, networks=("10.0.0.0/8",))
    answer = await stage.post(stage.alice, message(), headers={"x-forwarded-for": forwarded})
    assert answer.status == status


async def test_a_key_has_a_pace_of_its_own(stage: Stage) -> None:
    await rule(stage, stage.alice, requests_per_minute=2)
    assert [(await ask(stage, stage.alice))[0].status for _ in range(2)] == [200, 200]
    answer, kind, words = await ask(stage, stage.alice)
    assert (answer.status, kind) == (429, "rate_limit_error")
    assert "this key allows 2 requests a minute" in words
    assert 1 <= int(answer.header(b"retry-after") or b"0") <= 30
    assert answer.header(b"x-should-retry") == b"true"


async def test_an_accounts_own_limits_are_in_force_and_in_the_headers(stage: Stage) -> None:
    change = "UPDATE account SET requests_per_minute = 1, tokens_per_minute = 5000 WHERE id = ?"
    await stage.gateway.store.write([(change, (stage.alice.account_id,))])
    stage.gateway.gatehouse.forget_keys()
    first = (await ask(stage, stage.alice))[0]
    assert first.header(b"anthropic-ratelimit-requests-limit") == b"1"
    assert first.header(b"anthropic-ratelimit-tokens-limit") == b"5000"
    answer, _, words = await ask(stage, stage.alice)
    assert answer.status == 429
    assert "1 requests a minute" in words
    wrong = (await ask(stage, stage.alice, model="nobody"))[0]
    assert (wrong.status, wrong.header(b"anthropic-ratelimit-requests-limit")) == (400, b"1")


def _next(resets: Resets) -> str:
    today = datetime.now(UTC)
    if resets == "weekly":
        return f"on {today + timedelta(days=7 - today.weekday()):%Y-%m-%d} "
    return f"on {(today.replace(day=1) + timedelta(days=32)).replace(day=1):%Y-%m-%d} " if resets == "monthly" else ""


@pytest.mark.parametrize(
    ("resets", "each"), [("daily", "a day"), ("weekly", "a week"), ("monthly", "a month"), ("never", "in all")]
)
async def test_a_spend_limit_that_is_used_up_says_when_it_starts_anew_and_where_to_raise_it(
    stage: Stage, resets: Resets, each: str
) -> None:
    await rule(stage, stage.alice, limit_nanos=0, resets=resets)
    answer, kind, words = await ask(stage, stage.alice)
    anew = "" if resets == "never" else f"it starts anew {_next(resets)}at 00:00 UTC; "
    url = f"{stage.gateway.config.public_url}/dashboard/keys"
    assert (answer.status, kind) == (402, "insufficient_balance")
    assert words == f"the spend limit of this key, $0.00 {each}, is used up; {anew}raise it at {url}"
    assert answer.header(b"x-should-retry") == b"false"
    assert len(stage.simulator.requests) == 0
    assert await stage.balance(stage.alice) == (100 * USD, 0)


@pytest.mark.parametrize(
    ("spent_cents", "status", "used", "passed"),
    [
        (0, b"allowed", b"0.00", None),
        (75, b"allowed", b"0.75", None),
        (76, b"allowed_warning", b"0.76", b"0.75"),
        (96, b"allowed_warning", b"0.96", b"0.95"),
    ],
)
async def test_claude_code_is_told_how_much_of_a_keys_limit_is_used(
    stage: Stage, spent_cents: int, status: bytes, used: bytes, passed: bytes | None
) -> None:
    await rule(stage, stage.alice, limit_nanos=USD, resets="monthly")
    since = period_start_us("monthly", stage.gateway.clock())
    spent = ("UPDATE key_budget SET used_nanos = ?, since = ?", (spent_cents * 10**7, since))
    await stage.gateway.store.write([spent])
    for stream in (False, True):
        answer = await stage.post(stage.alice, message(stream=stream, max_tokens=64))
        await answer.read(2**20)
        told = {name.removeprefix(UNIFIED): value for name, value in answer.headers if name.startswith(UNIFIED)}
        assert told.pop(b"overage-reset") == told.pop(b"reset") == b"%d" % (_month_end_us(stage) // 10**6)
        expected = {b"status": status, b"representative-claim": b"overage", b"overage-status": status}
        if passed:
            expected[b"overage-surpassed-threshold"] = passed
        assert told == expected | {b"overage-utilization": used}
        await eventually(lambda: _nothing_held(stage))
        await stage.gateway.store.write([spent])


async def test_a_limit_without_an_end_and_a_key_without_a_limit_tell_no_more_than_there_is(stage: Stage) -> None:
    answer = await stage.post(stage.alice, message())
    assert not any(name.startswith(UNIFIED) for name, _ in answer.headers)
    await rule(stage, stage.alice, limit_nanos=USD, resets="never")
    answer = await stage.post(stage.alice, message(max_tokens=64))
    assert answer.header(UNIFIED + b"status") == b"allowed"
    assert answer.header(UNIFIED + b"reset") is None


async def _nothing_held(stage: Stage) -> bool:
    return not await stage.rows("SELECT 1 FROM hold")


def _month_end_us(stage: Stage) -> int:
    end_us = period_end_us("monthly", stage.gateway.clock())
    assert end_us is not None
    return end_us


async def test_a_call_that_needs_more_than_its_key_has_left_is_told_what_would_fit(stage: Stage) -> None:
    await rule(stage, stage.alice, limit_nanos=5 * 10**6, resets="daily")
    answer, _, words = await ask(stage, stage.alice, max_tokens=2000)
    assert answer.status == 402
    assert "the spend limit of this key, $0.005 a day, leaves $0.005 and this call needs" in words
    fits = int(words.rpartition(" ")[2])
    assert 0 < fits < 2000
    stage.simulator.requests.clear()
    assert (await ask(stage, stage.alice, max_tokens=fits))[0].status == 200


async def test_what_a_call_costs_is_taken_from_what_its_key_may_spend(stage: Stage) -> None:
    await rule(stage, stage.alice, limit_nanos=USD, resets="daily")
    await ask(stage, stage.alice, text="[[sim tokens=100]]")
    row = await books(stage, stage.alice)
    assert await used(stage) == row["charged_nanos"] > 0


async def test_a_large_prompt_is_counted_before_a_key_is_said_to_have_too_little_left(stage: Stage) -> None:
    await rule(stage, stage.alice, limit_nanos=45 * 10**6, resets="daily")
    text = "word " * 8_000  # 40,000 bytes, a quarter as many tokens: bound at $0.06, counted at $0.02
    assert (await ask(stage, stage.alice, text=text, max_tokens=10))[0].status == 200
    assert [request.path.rpartition("/")[2] for request in stage.simulator.requests] == ["count_tokens", "messages"]


async def test_a_stream_ends_where_its_key_may_spend_no_more_and_what_came_is_charged(stage: Stage) -> None:
    await rule(stage, stage.alice, limit_nanos=10**7, resets="daily")
    heard = await (await listen(stage, stage.alice, "[[sim tokens=30000]]", max_tokens=64_000)).end()
    row = await books(stage, stage.alice)
    name, event = heard.last
    assert (name, event["error"]["type"]) == ("error", "insufficient_balance")
    words = event["error"]["message"]
    assert words.startswith("the spend limit of this key, $0.01 a day, is used up, so the stream ends here; what you")
    assert words.endswith("/dashboard/keys")
    assert "message_stop" not in heard.names
    assert (row["kind"], row["outcome"]) == ("estimated", "out_of_money")
    assert await used(stage) == row["charged_nanos"]
    assert 10**7 // 3 < row["charged_nanos"] <= 10**7
