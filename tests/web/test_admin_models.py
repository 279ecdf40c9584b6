"""Models and prices: a new version is in force at once, for calls from then on; none is ever changed."""

import asyncio
import json

import pytest
from msgspec.structs import replace

from farebox.billing.pricing import Model
from farebox.books.audit import audit
from farebox.books.prices import pin_prices, publish_prices
from farebox.errors import StoreConflict
from farebox.money import NANOS_PER_USD
from farebox.store.open import open_store
from tests.gateway.play import eventually, listen
from tests.stage import MODEL, OpenStage, Stage
from tests.web.browse import Browser, Page, browser_of, enter
from tests.web.operators import enter_admin, forget_proof

PRICES = "/admin/models"
HERE = f"{PRICES}/of/{MODEL}"


async def publish(browser: Browser, **fields: str) -> Page:
    """Fill in the form, look at the preview, and publish what it shows."""
    preview = await browser.submit(await browser.get(HERE), HERE, **fields)
    assert (preview.status, preview.faults()) == (200, []), preview.words
    _, target, filled = preview.form(HERE)
    return await browser.post(target, {**filled, "reason": "dearer coffee", "step": "publish"})


async def rows_of(stage: Stage) -> list[tuple[int, int, int, int]]:
    return await stage.rows("SELECT price_version, input_tokens, output_tokens, cost_nanos FROM usage ORDER BY at")


async def test_a_new_version_is_in_force_at_once_everywhere(stage: Stage) -> None:
    operator = await enter_admin(stage)
    assert (await stage.ask(stage.alice))[0] == 200
    first = await operator.get(HERE)
    preview = await operator.submit(first, HERE, sell_input="3.21", sell_output="12.34")
    assert "Version 2 changes" in preview.words
    assert preview.rows("A usual call")[1][:2] == ["With the new prices", "$0.04444"], "0.0321 + 0.01234"
    assert (await browser_of(stage).get("/models")).text.count("3.21") == 0, "a preview changes nothing"
    page = await publish(operator, sell_input="3.21", sell_output="12.34")
    assert (page.status, page.path) == (200, PRICES)
    assert (await stage.ask(stage.alice))[0] == 200
    before, after = await rows_of(stage)
    assert (before[0], before[3]) == (1, before[1] * 1500 + before[2] * 7500)
    assert (after[0], after[3]) == (2, after[1] * 3210 + after[2] * 12340)
    for path in ("/models", "/docs/models.md", f"/models?model={MODEL}&input=1000000&output=0"):
        assert "3.21" in (await browser_of(stage).get(path)).text, path
    key = [(b"x-api-key", stage.alice.key.encode())]
    listed = await stage.client.request("GET", f"/api/proxy/v1/models/{MODEL}", key, b"", first_byte_s=20)
    assert json.loads(await listed.read(2**20))["pricing"]["sell"]["input"] == "3.21"
    (line,) = await stage.rows(
        "SELECT actor, action, target, reason, after FROM audit_log WHERE action LIKE 'prices.%'"
    )
    assert line[:4] == ("olga@example.com", "prices.publish", "prices:2", "dearer coffee")
    assert json.loads(line[4]) == {f"{MODEL}: input, sell": "$3.21", f"{MODEL}: output, sell": "$12.34"}
    history = await operator.get(f"{PRICES}/history")
    assert [MODEL, "input, sell", "$1.50", "$3.21"] in history.rows("Changes of version 2")
    assert not history.faults()
    assert all(check.ok for check in await audit(stage.gateway.store))


async def test_a_call_under_way_keeps_the_prices_it_came_under(stage: Stage) -> None:
    operator = await enter_admin(stage)
    heard = await listen(stage, stage.alice, "[[sim tokens=60 rate=40 ttft=0]]")
    await heard.has(b"content_block_delta")
    await publish(operator, sell_input="100", sell_output="1000")
    await heard.end(20)

    async def booked() -> bool:
        return bool(await rows_of(stage))

    await eventually(booked)
    ((version, input_tokens, output_tokens, cost),) = await rows_of(stage)
    assert (version, cost) == (1, input_tokens * 1500 + output_tokens * 7500)


async def test_a_model_goes_off_sale_and_comes_back_as_it_was(stage: Stage) -> None:
    operator = await enter_admin(stage)
    page = await operator.get(HERE)
    page = await operator.submit(page, f"{HERE}/hide", reason="gone upstream")
    assert MODEL not in [row[0].split()[-1] for row in page.rows("Models sold")]
    status, body = await stage.ask(stage.alice)
    assert status == 400
    assert b"is not sold here" in body
    assert MODEL not in (await browser_of(stage).get("/models")).text
    back = await operator.get(HERE)
    assert "not sold now" in back.words
    _, target, filled = back.form(HERE)
    await operator.post(target, {**filled, "reason": "back", "step": "publish"})
    assert (await stage.ask(stage.alice))[0] == 200
    ((version, input_tokens, output_tokens, cost),) = await rows_of(stage)
    assert (version, cost) == (3, input_tokens * 1500 + output_tokens * 7500)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"sell_input": "-1"}, "could not be read"),
        ({"sell_input": "1e9"}, "could not be read"),
        ({"list_output": "0.0000000001"}, "could not be read"),
        ({"sell_input": "1000001"}, "a price is at most"),
        ({"base": "17", "sell_input": "9", "step": "publish", "reason": "x"}, "changed meanwhile"),
        ({"step": "publish", "reason": "x"}, "Nothing is different"),
        ({"step": "publish", "sell_input": "9"}, "Say why"),
    ],
)
async def test_what_makes_no_sense_is_refused_in_words(stage: Stage, fields: dict[str, str], says: str) -> None:
    operator = await enter_admin(stage)
    page = await operator.post(HERE, {"base": "1", **fields})
    assert (page.status, page.faults()) == (422, [])
    assert says in page.words
    assert await stage.rows("SELECT count(*) FROM price_list") == [(1,)]


async def test_what_loses_money_is_told_in_red(open_stage: OpenStage) -> None:
    async with open_stage("[site]\ncost_percent = 80\n") as stage:
        operator = await enter_admin(stage)
        page = await operator.get(PRICES)
        bad = ["".join(cell.itertext()) for cell in page.find("td") if "bad" in cell.get("class", "").split()]
        assert bad
        assert all(text.startswith("-$") for text in bad)
        assert "Sold for less than the upstream takes" in (await operator.get(HERE)).words


async def test_another_process_brings_in_a_version_and_this_one_follows(stage: Stage, database_url: str) -> None:
    now = stage.gateway.config.models
    cheap = tuple(_sold_at(model, 7 * NANOS_PER_USD) for model in now)
    store = await open_store(database_url)
    try:
        assert await publish_prices(store, 1, cheap, stage.gateway.clock(), []) == 2
        with pytest.raises(StoreConflict):
            await publish_prices(store, 1, now, stage.gateway.clock(), [])
    finally:
        await store.close()

    async def followed() -> bool:
        return "$7.00" in (await browser_of(stage).get("/models")).text

    await eventually(followed)
    assert (await stage.ask(stage.alice))[0] == 200
    assert (await rows_of(stage))[0][0] == 2


async def test_a_body_that_is_long_in_coming_keeps_no_prices_of_before(stage: Stage) -> None:
    body = json.dumps({"model": MODEL, "max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}]}).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", stage.gateway.port)
    head = f"POST /v1/messages HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx-api-key: {stage.alice.key}\r\n"
    writer.write(head.encode() + b"content-length: %d\r\n\r\n%b" % (len(body), body[:9]))
    await writer.drain()

    async def begun() -> bool:
        return stage.gateway.gatehouse._messages._bodies._taken > 0

    await eventually(begun)
    dear = tuple(_sold_at(model, 90 * NANOS_PER_USD) for model in stage.gateway.config.models)
    assert await publish_prices(stage.gateway.store, 1, dear, stage.gateway.clock(), []) == 2
    await stage.parts.prices.follow()
    writer.write(body[9:])
    assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
    writer.close()
    assert (await rows_of(stage))[0][0] == 2


async def test_the_file_wins_when_it_has_changed_and_else_the_newest_version_stays(stage: Stage) -> None:
    store, now_us = stage.gateway.store, stage.gateway.clock()
    first = stage.gateway.config.models
    other = tuple(_sold_at(model, 9 * NANOS_PER_USD) for model in first)
    assert await publish_prices(store, 1, other, now_us, []) == 2
    kept = await pin_prices(store, first, now_us)
    assert (kept.version, kept.prices.models) == (2, other), "the file is as it was: the operator's version stays"
    third = tuple(_sold_at(model, 8 * NANOS_PER_USD) for model in first)
    changed = await pin_prices(store, third, now_us)
    assert (changed.version, changed.prices.models) == (3, third), "the file has changed: it wins"
    back = await pin_prices(store, first, now_us)
    assert (back.version, back.prices.models) == (4, first)
    sources = await store.fetch("SELECT source FROM price_list ORDER BY version")
    assert [row[0] for row in sources] == ["file", "admin", "file", "file"]


async def test_it_needs_an_operator_and_a_recent_proof(stage: Stage) -> None:
    operator, mallory = await enter_admin(stage), await enter(stage, stage.bob.email)
    for path in (PRICES, HERE, f"{PRICES}/history"):
        assert (await mallory.get(path)).status == 404
    fields = {"base": "1", "sell_input": "0", "reason": "mine", "step": "publish"}
    assert (await mallory.post(HERE, fields)).status == 404
    assert (await operator.get(f"{PRICES}/of/nothing")).status == 404
    await forget_proof(stage)
    await operator.post(HERE, fields, follow=False)
    assert await stage.rows("SELECT count(*) FROM price_list") == [(1,)]


def _sold_at(model: Model, nanos: int) -> Model:
    return replace(model, rates=replace(model.rates, sell=replace(model.rates.sell, input=nanos)))
