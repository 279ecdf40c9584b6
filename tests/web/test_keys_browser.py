"""Keys, charts and sessions in a real browser: what only it can tell about them."""

from collections.abc import AsyncIterator

import pytest
from playwright.async_api import Browser, async_playwright

from farebox.clock import DAY_US, day_of
from tests.databases import on_sqlite
from tests.stage import MODEL, Stage
from tests.web.browse import enter, make_key
from tests.web.test_browser import CHROMIUM, FLAGS, lend, open_window
from tests.web.test_dashboard import past_call
from tests.web.test_work import SESSION, ask


@pytest.fixture
async def chromium() -> AsyncIterator[Browser]:
    assert CHROMIUM, "no Chromium: bash tests/web/install.sh"
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        await browser.close()


@on_sqlite
async def test_a_new_key_is_copied_with_what_uses_it(chromium: Browser, stage: Stage) -> None:
    visitor = await enter(stage, stage.alice.email)
    context, window = await open_window(chromium, stage)
    await lend(context, stage, visitor.cookies)
    await context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = window.page
    await page.goto("/dashboard/keys")
    await page.get_by_label("Name").fill("laptop")
    await page.get_by_label("Spend limit").fill("25")
    await page.get_by_label("Limit begins anew").select_option("monthly")
    await page.get_by_text("Models, addresses and requests a minute").click()
    await page.get_by_label(MODEL, exact=True).check()
    await page.get_by_role("button", name="Make a key").click()
    key = await page.get_by_label("Key", exact=True).input_value()
    await page.get_by_role("button", name="Copy").first.click()
    assert await page.evaluate("navigator.clipboard.readText()") == key
    panels = page.get_by_role("tabpanel")
    assert await panels.count() == 1
    assert f"export ANTHROPIC_AUTH_TOKEN={key}" in await panels.inner_text()
    await page.get_by_role("tab", name="Python").click()
    await panels.get_by_role("button", name="Copy").click()
    copied = await page.evaluate("navigator.clipboard.readText()")
    assert f'api_key="{key}"' in copied
    assert f'model="{MODEL}"' in copied
    await page.get_by_role("link", name="I have saved it").click()
    await page.get_by_text("$0.00 of $25.00").wait_for()
    assert key not in await page.content()
    assert window.complaints == []


@on_sqlite
async def test_without_scripts_a_new_key_comes_with_every_sample(chromium: Browser, stage: Stage) -> None:
    visitor = await enter(stage, stage.alice.email)
    context = await chromium.new_context(base_url=f"http://127.0.0.1:{stage.gateway.port}", java_script_enabled=False)
    await lend(context, stage, visitor.cookies)
    page = await context.new_page()
    await page.goto("/dashboard/keys")
    await page.get_by_label("Name").fill("laptop")
    await page.get_by_role("button", name="Make a key").click()
    await page.get_by_text("This is the only time").wait_for()
    samples = page.locator("pre")
    assert await samples.count() == 4
    for sample in await samples.all():
        await sample.wait_for(state="visible")


@on_sqlite
async def test_a_bar_leads_to_its_day_by_the_hour_and_back(chromium: Browser, stage: Stage) -> None:
    visitor = await enter(stage, stage.alice.email)
    day_us = stage.gateway.clock() // DAY_US * DAY_US - 3 * DAY_US
    await past_call(stage, stage.alice.account_id, day_us + 5 * DAY_US // 24)
    context, window = await open_window(chromium, stage)
    await lend(context, stage, visitor.cookies)
    page = window.page
    await page.goto("/dashboard/usage")
    await page.locator("#usage .chart .hit").click()
    await page.get_by_text(f"on {day_of(day_us)}").wait_for()
    assert f"day={day_of(day_us)}" in page.url
    await page.get_by_text("All figures of this chart").click()
    await page.get_by_role("cell", name=f"{day_of(day_us)} 05:00").wait_for()
    await page.get_by_role("link", name="by the day").click()
    await page.get_by_text("in the last 30 days").wait_for()
    await page.get_by_role("link", name=day_of(day_us), exact=True).click()
    await page.get_by_text(f"on {day_of(day_us)}").wait_for()
    assert window.complaints == []


@on_sqlite
async def test_a_runaway_session_is_stopped_with_two_clicks(chromium: Browser, stage: Stage) -> None:
    visitor = await enter(stage, stage.alice.email)
    await make_key(stage, visitor, stage.alice.email)
    assert await ask(stage, SESSION) == 200
    context, window = await open_window(chromium, stage)
    await lend(context, stage, visitor.cookies)
    page = window.page
    await page.goto("/dashboard")
    await page.get_by_role("link", name="Sessions").click()
    await page.get_by_role("link", name=SESSION).click()
    await page.get_by_role("link", name="Stop this session").click()
    await page.get_by_role("button", name="Stop this session").click()
    await page.get_by_text("Calls of this session are refused").wait_for()
    assert await ask(stage, SESSION) == 403
    await page.get_by_role("button", name="Let it go on").click()
    await page.get_by_text("running").wait_for()
    assert await ask(stage, SESSION) == 200
    assert window.complaints == []
