"""The playground: calls with a session in the place of a key, held, charged and limited like any other."""

import json
from typing import Any

from farebox.http.client import Answer
from tests.stage import MODEL, OpenStage, Stage
from tests.web.browse import Browser, Page, enter
from tests.web.operators import enter_admin

ASK = {"model": MODEL, "max_tokens": 200, "messages": [{"role": "user", "content": "Hello"}]}
PATH = "/dashboard/playground/messages"
JSON = {"sec-fetch-site": "same-origin", "content-type": "application/json"}


async def play(browser: Browser, path: str = PATH, **fields: Any) -> Page:
    return await browser.send("POST", path, json.dumps(ASK | fields).encode(), JSON)


async def stream(stage: Stage, browser: Browser, **fields: Any) -> Answer:
    """Begin a streamed call, whose answer is still to be read."""
    cookie = "; ".join(f"{name}={value}" for name, value in browser.cookies.items())
    headers = [*((name.encode(), value.encode()) for name, value in JSON.items()), (b"cookie", cookie.encode())]
    body = json.dumps(ASK | {"stream": True} | fields).encode()
    return await stage.client.request("POST", PATH, headers, body, first_byte_s=30)


async def test_a_call_is_charged_and_logged_under_a_key_of_its_own(stage: Stage) -> None:
    browser = await enter(stage, stage.alice.email)
    before, _ = await stage.balance(stage.alice)
    for _ in range(2):
        page = await play(browser)
        assert page.status == 200
        assert json.loads(page.text)["type"] == "message"
    rows = await stage.rows("SELECT k.name, k.purpose, u.charged_nanos FROM usage u JOIN api_key k ON k.id = u.key_id")
    assert [row[:2] for row in rows] == [("Playground", "playground")] * 2
    assert await stage.balance(stage.alice) == (before - sum(row[2] for row in rows), 0)
    told = json.loads((await browser.get(f"/dashboard/playground/calls/{page.header('request-id')}")).text)
    assert told["kind"] == "exact"
    assert told["cost"] == f"${rows[1][2] / 1e9:.9f}".rstrip("0")
    assert "Playground" in (await browser.get("/dashboard/requests")).words
    other = await enter(stage, stage.bob.email)
    assert (await other.get(f"/dashboard/playground/calls/{page.header('request-id')}")).status == 204


async def test_what_was_written_goes_up_byte_for_byte_and_nothing_else_of_the_browser(stage: Stage) -> None:
    browser = await enter(stage, stage.alice.email)
    body = b'{"model":"' + MODEL.encode() + b'", "max_tokens": 9,"messages":[{"role":"user","content":"H\\u0069"}] }'
    assert (await browser.send("POST", PATH, body, {**JSON, "accept-language": "de", "x-mark": "1"})).status == 200
    seen = stage.simulator.requests[-1]
    assert seen.body == body
    names = {name for name, _ in seen.headers}
    assert not names & {b"cookie", b"user-agent", b"sec-fetch-site", b"accept-language", b"x-mark", b"referer"}


async def test_a_stream_that_is_stopped_is_charged_for_what_came(open_stage: OpenStage) -> None:
    async with open_stage(limits="drain_s = 0", speed=1) as stage:
        browser = await enter(stage, stage.alice.email)
        before, _ = await stage.balance(stage.alice)
        answer = await stream(stage, browser, max_tokens=4000)
        assert answer.status == 200
        answer.abandon()
        request_id = (answer.header(b"request-id") or b"").decode()
        while (page := await browser.get(f"/dashboard/playground/calls/{request_id}")).status == 204:
            pass
        told = json.loads(page.text)
        assert told["outcome"] == "client_gone"
        after, held = await stage.balance(stage.alice)
        assert held == 0
        assert 0 < before - after < 60_000_000


async def test_who_may_not_call_is_told_why(stage: Stage) -> None:
    bob = await enter(stage, stage.bob.email)
    refused = await play(bob)
    assert refused.status == 402
    assert json.loads(refused.text)["error"]["type"] == "insufficient_balance"
    assert (await play(bob, model="nothing")).status == 400
    assert (await bob.send("POST", PATH, b"{", JSON)).status == 400
    assert (await bob.send("POST", PATH, b"{}", {**JSON, "sec-fetch-site": "cross-site"})).status == 403
    carol = await stage.person("carol@example.com", 5)
    browser = await enter(stage, carol.email)
    await stage.gateway.store.write([("UPDATE account SET status = 'suspended' WHERE id = ?", (carol.account_id,))])
    assert (await play(browser)).status == 403
    assert await stage.rows("SELECT 1 FROM usage") == []


async def test_an_operator_who_looks_on_calls_nothing(stage: Stage) -> None:
    admin = await enter_admin(stage)
    await stage.gateway.store.write([("UPDATE session SET viewing = ?", (stage.alice.account_id,))])
    assert "as its owner does" in (await admin.get("/dashboard/playground")).words
    for path in (PATH, "/dashboard/playground/quote"):
        assert (await play(admin, path)).status == 403
    assert await stage.rows("SELECT 1 FROM usage") == []


async def test_a_quote_tells_what_a_call_would_come_to(stage: Stage) -> None:
    browser = await enter(stage, stage.alice.email)
    page = await play(browser, "/dashboard/playground/quote")
    assert page.status == 200
    told = json.loads(page.text)
    assert told["admitted"] == "yes"
    assert float(told["expected_cost"]) <= float(told["highest_cost"])
    assert await stage.rows("SELECT 1 FROM usage") == []


async def test_a_playground_that_is_revoked_begins_anew(stage: Stage) -> None:
    browser = await enter(stage, stage.alice.email)
    assert (await play(browser)).status == 200
    await stage.gateway.store.write([("UPDATE api_key SET revoked_at = 1 WHERE purpose = 'playground'", ())])
    stage.gateway.gatehouse.forget_keys()
    assert (await play(browser)).status == 200
    assert len(await stage.rows("SELECT 1 FROM api_key WHERE purpose = 'playground'")) == 2
