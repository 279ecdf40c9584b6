"""What a customer's own doctor tells of their calls: address, credential, money, models, and who holds streams back."""

import asyncio
import json
from typing import Any

import pytest

from farebox.accounts.key_rules import Rules
from farebox.accounts.keys import change_key, find_key
from farebox.upstreams.pool import Pool
from tests.gateway.play import USD, Heard
from tests.stage import OpenStage, Person, Stage


async def ask(stage: Stage, person: Person, prefix: str = "/api/proxy/v1", **headers: str) -> dict[str, Any]:
    sent = headers or {"x-api-key": person.key}
    fields = [(name.replace("_", "-").encode(), value.encode()) for name, value in sent.items()]
    answer = await stage.client.request("GET", f"{prefix}/doctor", fields, b"", first_byte_s=5)
    told = json.loads(await answer.read(2**20))
    assert answer.status == 200, told
    assert not any('"' in finding["words"] for finding in told["findings"]), "a shell reads them"
    return {"well": told["well"], **{one["check"]: (one["status"], one["words"]) for one in told["findings"]}}


async def test_all_is_well(stage: Stage) -> None:
    told = await ask(stage, stage.alice)
    assert told["well"] is True
    assert told["address"] == ("ok", f"calls come to {stage.gateway.config.public_url}/api/proxy")
    assert told["credential"] == ("ok", "the key comes in x-api-key")
    assert told["balance"] == ("ok", "$100.00 are free")
    assert told["upstreams"][0] == "ok"
    assert "small_model" not in told
    assert not stage.simulator.requests
    assert await stage.balance(stage.alice) == (100 * USD, 0)


@pytest.mark.parametrize(
    ("prefix", "words"),
    [
        ("/api/proxy/v1/v1", "the base URL ends with /v1, which clients add themselves: use "),
        ("/v1/v1", "the base URL ends with /v1, which clients add themselves: use "),
        ("/v1", "calls come without /api/proxy, which works, too: use "),
    ],
)
async def test_an_address_that_is_not_quite_right_is_told(stage: Stage, prefix: str, words: str) -> None:
    told = await ask(stage, stage.alice, prefix)
    assert told["address"] == ("warn", f"{words}{stage.gateway.config.public_url}/api/proxy")
    assert told["well"] is True


async def test_the_header_of_the_credential_is_told(stage: Stage) -> None:
    key = stage.alice.key
    other = "Bearer sk-ant-oat01-of-a-subscription"
    assert "in authorization" in (await ask(stage, stage.alice, authorization=f"Bearer {key}"))["credential"][1]
    both = await ask(stage, stage.alice, x_api_key=key, authorization=f"Bearer {key}")
    assert both["credential"] == ("ok", "the key comes in x-api-key and in authorization")
    assert (await ask(stage, stage.alice, x_api_key=key, authorization=other))["credential"][0] == "warn"


@pytest.mark.parametrize(("usd", "status"), [(0, "fail"), (0.5, "warn"), (1, "ok")])
async def test_a_balance_that_is_low_or_used_up_is_told(open_stage: OpenStage, usd: float, status: str) -> None:
    async with open_stage(alice_usd=usd) as stage:
        told = await ask(stage, stage.alice)
        assert told["balance"][0] == status
        assert told["well"] is (status != "fail")
        assert (status == "ok") is ("/dashboard/topup" not in told["balance"][1])


async def test_what_a_key_may_spend_and_ask_for_is_told(stage: Stage) -> None:
    store, clock = stage.gateway.store, stage.gateway.clock
    key = await find_key(store, stage.alice.key)
    rules = Rules(limit_nanos=USD, resets="daily", models=("claude-sonnet-4-6",))
    await change_key(store, key, "k", rules, clock())
    stage.gateway.gatehouse.forget_keys()
    told = await ask(stage, stage.alice)
    assert told["spend_limit"] == ("ok", "this key may spend $1.00 more")
    assert told["models"][1].endswith("models sold here: claude-sonnet-4-6")
    assert told["small_model"][0] == "warn"
    await store.write([("UPDATE key_budget SET used_nanos = ?, since = ?", (USD, clock()))])
    assert (await ask(stage, stage.alice))["spend_limit"][0] == "fail"


async def test_models_that_nobody_serves_are_told(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pool, "ways_up", lambda _, model: (0, 1) if "opus" in model else (1, 1))
    told = await ask(stage, stage.alice)
    assert told["upstreams"][0] == "warn"
    assert "opus" in told["upstreams"][1]
    assert "sonnet" not in told["upstreams"][1]
    monkeypatch.setattr(Pool, "ways_up", lambda *_: (0, 1))
    assert (await ask(stage, stage.alice))["upstreams"][0] == "fail"


async def test_a_wrong_key_is_refused_as_everywhere(stage: Stage) -> None:
    for path in ("doctor", "doctor/stream"):
        answer = await stage.client.request(
            "GET", f"/api/proxy/v1/{path}", [(b"x-api-key", b"no")], b"", first_byte_s=5
        )
        assert answer.status == 401
        await answer.read(2**16)


async def test_the_test_stream_comes_piece_by_piece_and_ends_when_its_client_goes(stage: Stage) -> None:
    headers = [(b"x-api-key", stage.alice.key.encode())]
    answer = await stage.client.request("GET", "/api/proxy/v1/doctor/stream", headers, b"", first_byte_s=5)
    heard = Heard(answer)
    loop = asyncio.get_running_loop()
    await heard.until(lambda: len(heard.events) >= 1)
    begun = loop.time()
    await heard.end()
    assert 0.9 < loop.time() - begun < 5
    assert [event["piece"] for _, event in heard.events] == list(range(11))
    gone = Heard(await stage.client.request("GET", "/api/proxy/v1/doctor/stream", headers, b"", first_byte_s=5))
    await gone.until(lambda: len(gone.events) >= 1)
    gone.hang_up()
    assert (await ask(stage, stage.alice))["well"] is True


async def test_it_has_the_limit_of_questions(open_stage: OpenStage) -> None:
    async with open_stage(limits="questions_per_minute = 1") as stage:
        await ask(stage, stage.alice)
        headers = [(b"x-api-key", stage.alice.key.encode())]
        answer = await stage.client.request("GET", "/api/proxy/v1/doctor", headers, b"", first_byte_s=5)
        await answer.read(2**16)
        assert answer.status == 429
