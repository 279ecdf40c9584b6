"""Check my set-up: the page says what the books and the gateway say, of one's own account alone; streams are timed."""

import asyncio
import re
from typing import Any

import pytest
from playwright.async_api import Browser as Chromium
from playwright.async_api import BrowserContext, Page, expect

from farebox.accounts.key_rules import Rules
from farebox.accounts.keys import create_key
from farebox.billing.plans import Plan
from farebox.web.checkup import MOST_KEYS, told_address, told_limits, told_models
from farebox.web.limits import Use
from tests.stage import MODEL, Stage
from tests.web.browse import Browser, browser_of, enter
from tests.web.test_browser import chromium, lend, open_window
from tests.web.test_setup import collecting_proxy
from tests.web.test_work import past_call

__all__ = ["chromium"]

PAGE = "/dashboard/doctor"
STREAM = "/dashboard/doctor/stream"
WANTS = {"accept": "text/event-stream"}
BASE = "https://farebox.example/api/proxy"


async def change_key(stage: Stage, change: str, *values: Any) -> None:
    update = f"UPDATE api_key SET {change} WHERE account_id = ?"
    await stage.gateway.store.write([(update, (*values, stage.alice.account_id))])


async def test_where_all_is_well_it_says_so_and_how_clients_are_set(stage: Stage) -> None:
    browser = await enter(stage, stage.alice.email)
    page = await browser.get(PAGE)
    assert page.status == 200
    assert page.faults() == []
    assert "Nothing stands in the way of calls here." in page.words
    for told in ("$100.00 are free.", "1 key is active.", "models are served.", "No call has come yet.", "Plan "):
        assert told in page.words, told
    assert "in the way" not in {tag.text for tag in page.find("span")}
    url = stage.gateway.config.public_url
    copied = {one.get("data-copy") for kind in ("code", "pre") for one in page.find(kind)}
    assert {f"{url}/api/proxy", f"curl -fsSL {url}/setup | sh", f"curl -fsSL {url}/doctor | sh"} <= copied
    assert "x-api-key: sk-cc-…" in page.words
    assert "You have no streamed calls yet" in page.words
    assert stage.alice.key not in page.text
    assert PAGE in (await browser.get("/dashboard")).links()


@pytest.mark.parametrize(
    ("change", "values", "words"),
    [
        ("disabled_at = ?", (1,), "No key works, 1 is disabled."),
        ("expires_at = ?", ("now - 1h",), "It has expired: a client that still has it is refused with 401."),
        ("revoked_at = ?", ("now - 1h",), "It was revoked: a client that still has it is refused with 401."),
        ("revoked_at = ?", (1,), "No key works: all have expired or were revoked."),
        ("expires_at = ?", ("now + 30h",), "It works for 29 hours more."),
        ("models = ?", ("gone-1 gone-2",), "None of the models it may use is sold any more."),
        ("models = ?", (MODEL,), f"It may use {MODEL} only: others are refused with 403. Claude Code asks a Haiku"),
        ("networks = ?", ("10.0.0.0/8 192.0.2.1/32",), "It may be used from 10.0.0.0/8, 192.0.2.1/32 only"),
        ("requests_per_minute = ?", (12,), "It may make 12 requests a minute."),
    ],
)
async def test_what_a_key_may_is_told(stage: Stage, change: str, values: tuple[Any, ...], words: str) -> None:
    browser = await enter(stage, stage.alice.email)
    now_us, hour_us = stage.gateway.clock(), 3_600_000_000
    moments = {"now - 1h": now_us - hour_us, "now + 30h": now_us + 30 * hour_us}
    await change_key(stage, change, *(moments.get(value, value) for value in values))
    page = await browser.get(PAGE)
    assert words in page.words
    assert page.faults() == []


async def test_of_many_keys_the_worst_are_told_and_the_others_counted(stage: Stage) -> None:
    browser = await enter(stage, stage.alice.email)
    for number in range(MOST_KEYS + 3):
        rules = Rules(requests_per_minute=5 + number)
        await create_key(stage.gateway.store, stage.alice.account_id, f"key-{number}", "sk-cc-", 1, rules)
    rest = "UPDATE api_key SET disabled_at = 1 WHERE name = ?"
    await stage.gateway.store.write([(rest, (f"key-{MOST_KEYS + 2}",))])
    words = (await browser.get(PAGE)).words
    assert f"{MOST_KEYS + 3} keys are active, 1 is disabled." in words
    assert f"note Key key-{MOST_KEYS + 2} It is disabled" in words
    assert "There is something to say of 3 more." in words
    assert words.count("requests a minute. Its rules") == MOST_KEYS - 1


async def test_money_spend_limits_and_a_suspended_account_stand_in_the_way(stage: Stage) -> None:
    browser = await enter(stage, stage.bob.email)
    page = await browser.get(PAGE)
    assert "1 thing stands in the way of calls" in page.words
    assert "in the way Balance The balance is used up. Add funds" in page.words
    budget = (
        "INSERT INTO key_budget (key_id, limit_nanos, resets, since, used_nanos) "
        "SELECT id, 1000, 'never', 0, 1000 FROM api_key WHERE account_id = ?"
    )
    suspend = "UPDATE account SET status = 'suspended' WHERE id = ?"
    mine = (stage.bob.account_id,)
    await stage.gateway.store.write([(budget, mine), (suspend, mine)])
    page = await browser.get(PAGE)
    assert "3 things stand in the way of calls" in page.words
    assert "What this key may spend is used up." in page.words
    assert "The account is suspended: calls are refused with 403." in page.words


async def test_the_last_hours_calls_are_told_by_class_with_what_to_do(stage: Stage) -> None:
    browser = await enter(stage, stage.alice.email)
    now_us = stage.gateway.clock()
    assert (await stage.ask(stage.alice))[0] == 200
    await past_call(stage, now_us - 60_000_000, "s", outcome="client_gone")
    for minute in (2, 3):
        await past_call(stage, now_us - minute * 60_000_000, "s", outcome="refused_upstream", status=429)
    await past_call(stage, now_us - 4 * 60_000_000, "s", outcome="canceled")
    await past_call(stage, now_us - 2 * 3_600_000_000, "s", outcome="upstream_broke", status=502)
    page = await browser.get(PAGE)
    assert "1 of 5 in the last hour: client gone. The client hung up before the end" in page.words
    assert "let it stream" in page.words
    assert "2 of 5 in the last hour: refused upstream, HTTP 429. The model's provider refused" in page.words
    assert "Wait as retry-after says" in page.words
    assert "upstream broke" not in page.words
    assert "/dashboard/requests?status=client_gone&since=1h" in page.links()
    assert len((await browser.get("/dashboard/requests?status=refused_upstream&since=1h")).rows("Requests")) == 2
    ((request_id,),) = await stage.rows("SELECT request_id FROM usage WHERE outcome = 'client_gone'")
    call = await browser.get(f"/dashboard/requests/req_{bytes(request_id).hex()}")
    assert "Check your set-up" in call.words
    ((request_id,),) = await stage.rows("SELECT request_id FROM usage WHERE outcome = 'finished'")
    assert "Check your set-up" not in (await browser.get(f"/dashboard/requests/req_{bytes(request_id).hex()}")).words


async def test_streamed_calls_tell_how_long_they_waited(stage: Stage) -> None:
    browser = await enter(stage, stage.alice.email)
    for _ in range(3):
        assert (await stage.ask(stage.alice, stream=True))[0] == 200
    assert (await stage.ask(stage.alice))[0] == 200
    waits = sorted(row[0] for row in await stage.rows("SELECT first_byte_us FROM usage WHERE streamed = 1"))
    assert len(waits) == 3
    words = (await browser.get(PAGE)).words
    assert f"Of your last 3 streamed calls the first byte was here after {waits[1] // 1000} ms" in words
    assert f"{waits[0] // 1000} ms to {waits[2] // 1000} ms" in words
    assert "All 4 of the last hour went well." in words


async def test_nothing_of_anothers_account_is_told(stage: Stage) -> None:
    """Alice's calls, keys and money leave bob's page as it was."""
    browser = await enter(stage, stage.bob.email)
    before = (await browser.get(PAGE)).words
    assert (await stage.ask(stage.alice, stream=True))[0] == 200
    await past_call(stage, stage.gateway.clock() - 1_000_000, "s", outcome="upstream_broke", status=502)
    await change_key(stage, "disabled_at = 1, name = ?", "alices-laptop")
    assert (await browser.get(PAGE)).words == before
    assert (await browser_of(stage).get(PAGE)).path == f"/login?next={PAGE}"


@pytest.mark.parametrize(
    ("address", "status", "words"),
    [
        (BASE, "ok", "right as it is"),
        (f"{BASE}/", "ok", "right as it is"),
        (f"{BASE}/v1", "warn", "ends with /v1"),
        ("https://farebox.example", "warn", "without /api/proxy"),
        (f"{BASE}/v1/messages", "fail", "nothing is at /api/proxy/v1/messages/v1/messages"),
        (f"{BASE}?x=1", "fail", "nothing is at"),
        ("http://farebox.example/api/proxy", "fail", "begins with http, not with https"),
        ("https://api.elsewhere.example", "fail", "leads to api.elsewhere.example"),
        ("farebox.example/api/proxy", "fail", "no address"),
        ("https://[", "fail", "no address"),
        ("javascript:alert(1)", "fail", "no address"),
    ],
)
def test_a_base_url_is_told_right_or_wrong(address: str, status: str, words: str) -> None:
    told = told_address(address, BASE)
    assert told.status == status
    assert words in told.words


async def test_a_base_url_is_looked_at_and_a_key_in_its_place_is_not_shown(stage: Stage) -> None:
    browser = await enter(stage, stage.alice.email)
    page = await browser.get(PAGE)
    page = await browser.submit(page, PAGE, address=f"{stage.gateway.config.public_url}/api/proxy/v1")
    assert "It ends with /v1" in page.words
    page = await browser.submit(page, PAGE, address=stage.alice.key)
    assert "That is a key, not an address" in page.words
    assert stage.alice.key not in page.text
    assert stage.alice.key not in repr(stage.events)


def test_models_and_limits_are_told_as_they_are() -> None:
    def told(**states: Any) -> list[tuple[str, str]]:
        return [(one.status, one.words) for one in told_models(list(states), states.__getitem__)]

    assert told(a="up", b="up") == [("ok", "All 2 models are served.")]
    assert told(a="down", b="up") == [("warn", "No upstream serves a at the moment.")]
    assert told(a="down", b="down") == [("fail", "No upstream serves a, b at the moment.")]
    assert told(a="reduced", b="up")[0][1].startswith("Fewer upstreams than usual serve a")
    plan = Plan("free", 10, 40_000, 4, 0)
    free = Use("Requests a minute", 10, 9, 54_000_000, own=False)
    full = Use("Tokens a minute", 40_000, 40_000, 60_000_000, own=False)
    assert told_limits(plan, [free]).status == "ok"
    crowded = told_limits(plan, [free, full])
    assert crowded.status == "warn"
    assert "40,000 of 40,000 tokens a minute are in use; all of it is free in 60.00 s" in crowded.words
    assert "requests" not in crowded.words


async def test_the_test_stream_is_whole_and_one_at_a_time(stage: Stage) -> None:
    browser = await enter(stage, stage.alice.email)
    other = await enter(stage, stage.alice.email)
    first, second, third = await asyncio.gather(
        browser.send("GET", STREAM, b"", WANTS),
        browser.send("GET", STREAM, b"", WANTS),
        other.send("GET", STREAM, b"", WANTS),
    )
    assert {first.status, second.status} == {200, 429}
    whole, refused = (first, second) if first.status == 200 else (second, first)
    assert refused.header("retry-after") == "2"
    for page in (whole, third):
        assert page.status == 200
        assert page.header("content-type").startswith("text/event-stream")
        assert page.header("x-accel-buffering") == "no"
        assert page.text.count("event: ping\n") == 11
    assert (await browser.send("GET", STREAM, b"", WANTS)).status == 200
    assert (await browser.get(STREAM)).path == PAGE
    assert (await browser_of(stage).send("GET", STREAM, b"", WANTS)).status == 303


async def test_a_test_stream_ends_when_its_client_has_gone(stage: Stage) -> None:
    browser = await enter(stage, stage.alice.email)
    _, writer, status = await begin_stream(stage, browser)
    assert status == b"200"
    assert (await begin_stream(stage, browser))[2] == b"429"
    writer.close()
    async with asyncio.timeout(0.6):  # less than what was left of the stream
        await until_it_begins(stage, browser)


async def until_it_begins(stage: Stage, browser: Browser) -> None:
    for _ in range(100):
        _, writer, status = await begin_stream(stage, browser)
        writer.close()
        if status == b"200":
            return
        await asyncio.sleep(0.01)


async def begin_stream(stage: Stage, browser: Browser) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, bytes]:
    """Ask for a test stream, and read no more of the answer than its status."""
    cookie = "; ".join(f"{name}={value}" for name, value in browser.cookies.items())
    reader, writer = await asyncio.open_connection("127.0.0.1", stage.gateway.port)
    head = f"GET {STREAM} HTTP/1.1\r\nhost: x\r\naccept: text/event-stream\r\ncookie: {cookie}\r\n\r\n"
    writer.write(head.encode())
    return reader, writer, (await reader.readline()).split()[1]


async def verdict(context: BrowserContext, page: Page) -> str:
    """Press the button, and give the verdict."""
    context.set_default_timeout(20_000)
    await page.goto(PAGE)
    await expect(page.locator("#verdict")).to_have_text("Not tested yet.")
    await page.get_by_role("button", name="Test a stream").click()
    await expect(page.locator("#m-pieces")).to_have_text("11 of 11")
    await expect(page.get_by_role("button", name="Test a stream")).to_be_enabled()
    assert await page.locator("#progress").evaluate("(bar) => bar.value") == 11
    return await page.locator("#verdict").inner_text()


async def test_a_browser_says_that_streams_come_as_they_are_sent(chromium: Chromium, stage: Stage) -> None:
    visitor = await enter(stage, stage.alice.email)
    context, window = await open_window(chromium, stage)
    await lend(context, stage, visitor.cookies)
    assert await verdict(context, window.page) == "Each piece comes as it is sent."
    await expect(window.page.locator("#m-spread")).to_have_text(re.compile(r"^(9\d\d|1,\d\d\d) ms$"))
    assert window.complaints == []
    await context.close()


async def test_a_browser_says_that_streams_are_held_back(chromium: Chromium, stage: Stage) -> None:
    visitor = await enter(stage, stage.alice.email)
    async with collecting_proxy(stage.gateway.port) as port:
        context = await chromium.new_context(base_url=f"http://127.0.0.1:{port}")
        await lend(context, stage, visitor.cookies)  # cookies are for a host, whatever its port
        words = await verdict(context, await context.new_page())
        await context.close()
    assert words.endswith("something on the way holds streams back.")
