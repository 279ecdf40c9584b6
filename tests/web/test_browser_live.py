"""What moves on a page, in Debian's Chromium: news as they come, the playground, charts, and what all of it weighs."""

import re
from typing import Final

from playwright.async_api import Browser, Locator, Page, expect

from farebox.web.assets import Assets
from tests.databases import on_sqlite
from tests.stage import MODEL, OpenStage, Person, Stage
from tests.web.browse import account_of, enter, fund, make_key
from tests.web.test_browser import chromium, lend, open_window

__all__ = ["chromium"]

TABS: Final = 10
MOST_BYTES: Final = 30_000
SHIFTS: Final = """new Promise((done) => {
  let sum = 0;
  new PerformanceObserver((list) => list.getEntries().forEach((one) => (sum += one.value)))
    .observe({ type: "layout-shift", buffered: true });
  setTimeout(() => done(sum), 300);
})"""
LOADED: Final = (
    """performance.getEntries().filter((one) => one.transferSize).reduce((sum, one) => sum + one.transferSize, 0)"""
)


@on_sqlite
async def test_a_call_shows_up_by_itself_with_its_cost_and_moves_the_balance(chromium: Browser, stage: Stage) -> None:
    """Sign-up's checklist, the log and the balance, without a reload."""
    visitor = await enter(stage, stage.bob.email)
    person = await make_key(stage, visitor, stage.bob.email)
    context, window = await open_window(chromium, stage)
    await lend(context, stage, visitor.cookies)
    overview, log = window.page, await context.new_page()
    await overview.goto("/dashboard")
    await log.goto("/dashboard/requests")
    await expect(overview.get_by_text("Send the first call")).to_be_visible()
    await fund(stage, stage.bob.email, 5)
    await expect(log.locator("#balance")).to_contain_text("$5.00")
    assert (await stage.ask(person))[0] == 200
    ((charged,),) = await stage.rows("SELECT charged_nanos FROM usage")
    row = log.get_by_role("region", name="Requests").get_by_role("row").nth(1)
    await expect(row).to_contain_text(f"${charged / 1e9:.9f}".rstrip("0"))
    await expect(row).to_contain_text(MODEL)
    await expect(log.locator("#balance")).to_contain_text("$4.99")
    await expect(overview.get_by_text("The first call has arrived")).to_be_visible()
    await log.get_by_label("Follow").uncheck()
    assert (await stage.ask(person))[0] == 200
    await expect(overview.locator("#tiles")).to_contain_text("Requests today2")
    await expect(log.locator("#calls tr")).to_have_count(1)
    await log.get_by_label("Follow").check()
    await expect(log.locator("#calls tr")).to_have_count(2)
    assert window.complaints == []
    await context.close()


@on_sqlite
async def test_ten_tabs_share_one_stream_and_go_on_when_the_first_is_closed(chromium: Browser, stage: Stage) -> None:
    visitor = await enter(stage, stage.alice.email)
    context, window = await open_window(chromium, stage)
    await lend(context, stage, visitor.cookies)
    tabs: list[Page] = [window.page, *[await context.new_page() for _ in range(TABS - 1)]]
    for tab in tabs:
        await tab.goto("/dashboard/keys")
    await fund(stage, stage.alice.email, 11)
    for tab in tabs:
        await expect(tab.locator("#balance")).to_contain_text("$111.00")
    assert len(stage.parts.hub) == 1
    await tabs.pop(0).close()
    await fund(stage, stage.alice.email, 11)
    for tab in tabs:
        await expect(tab.locator("#balance")).to_contain_text("$122.00", timeout=10_000)
    await tabs[0].get_by_role("button", name="Sign out").click()
    await expect(tabs[0]).to_have_url(re.compile("/$|/login"))
    assert window.complaints == []
    await context.close()


@on_sqlite
async def test_the_playground_streams_stops_and_tells_what_it_cost(chromium: Browser, open_stage: OpenStage) -> None:
    async with open_stage(limits="drain_s = 0", speed=50) as stage:
        visitor = await enter(stage, stage.alice.email)
        context, window = await open_window(chromium, stage)
        await lend(context, stage, visitor.cookies)
        page = window.page
        await page.goto("/dashboard/playground")
        await page.get_by_label("Turn 1", exact=True).fill("tokens=2000 please")
        await page.get_by_label("Max tokens").fill("3000")
        await expect(page.locator("#estimate")).to_contain_text("at most $")
        await page.keyboard.press("Control+Enter")
        await expect(page.locator("#answer")).to_contain_text(re.compile("[a-z]{3}"))
        await page.get_by_role("button", name="Stop").click()
        await expect(page.locator("#ended")).to_have_text("stopped")
        await expect(page.locator("#m-cost")).to_contain_text("$")
        ((outcome, charged),) = await stage.rows("SELECT outcome, charged_nanos FROM usage")
        assert outcome == "client_gone"
        assert charged > 0
        assert await page.locator("#m-cost").inner_text() == f"${charged / 1e9:.9f}".rstrip("0")
        await page.get_by_role("button", name="Take it into the conversation").click()
        await expect(page.get_by_label("Turn 2", exact=True)).to_have_value(re.compile("[a-z]{3}"))
        await page.get_by_role("tab", name="Code").click()
        for language, mark in (
            ("curl", "curl "),
            ("python", "client.messages.stream("),
            ("typescript", "await stream"),
        ):
            await page.get_by_label("Language").select_option(language)
            await expect(page.locator("#code")).to_contain_text(mark)
        await page.reload()
        await expect(page.get_by_label("Turn 1", exact=True)).to_have_value("tokens=2000 please")
        assert window.complaints == []
        await page.get_by_role("button", name="Sign out").click()
        await page.goto("/")
        assert await page.evaluate("Object.keys(localStorage).filter((name) => name.startsWith('playground'))") == []
        await context.close()


@on_sqlite
async def test_a_chart_is_read_out_by_keyboard_and_pointer(chromium: Browser, stage: Stage) -> None:
    """What it reads out stays, and stays right, when a call comes in meanwhile and the chart is drawn anew."""
    visitor = await enter(stage, stage.alice.email)
    for model in (MODEL, "claude-opus-4-6"):
        assert (await stage.ask(stage.alice, model=model))[0] == 200
    context, window = await open_window(chromium, stage)
    await lend(context, stage, visitor.cookies)
    page = window.page
    await page.goto("/dashboard/usage")
    await page.locator(".chart").focus()
    await page.keyboard.press("ArrowLeft")
    tip = page.locator(".chart output")
    await expect(tip).to_contain_text(MODEL)
    await _changes(tip, stage)
    await page.keyboard.press("Escape")
    await expect(tip).to_be_hidden()
    await page.locator(".hit").first.hover()
    await expect(tip).to_contain_text("claude-opus-4-6")
    await _changes(tip, stage)
    await page.locator("h1").hover()
    await page.keyboard.press("g")
    await page.keyboard.press("k")
    await expect(page).to_have_url(re.compile("/dashboard/keys$"))
    await page.keyboard.press("/")
    await expect(page).to_have_url(re.compile("/dashboard/requests$"))
    assert window.complaints == []
    await context.close()


async def _changes(tip: Locator, stage: Stage) -> None:
    """Make a call, and see what is read out come to count it."""
    words = await tip.inner_text()
    assert (await stage.ask(stage.alice))[0] == 200
    await expect(tip).not_to_have_text(words, use_inner_text=True)
    await expect(tip).to_be_visible()
    await expect(tip).to_contain_text(MODEL)


@on_sqlite
async def test_pages_are_light_and_stand_still(chromium: Browser, stage: Stage) -> None:
    """A first load is under 30 KB on the wire, and nothing moves while it comes or afterwards."""
    visitor = await enter(stage, stage.alice.email)
    person = Person(await account_of(stage, stage.alice.email), stage.alice.email, stage.alice.key)
    for model in (MODEL, "claude-opus-4-6"):
        assert (await stage.ask(person, model=model))[0] == 200
    for path in (
        "/",
        "/dashboard",
        "/dashboard/requests",
        "/dashboard/playground",
        "/dashboard/keys",
        "/docs/quickstart",
    ):
        context, window = await open_window(chromium, stage)
        await lend(context, stage, visitor.cookies)
        await window.page.goto(path)
        assert await window.page.evaluate(SHIFTS) == 0, path
        assert await window.page.evaluate(LOADED) < MOST_BYTES, path
        await context.close()


def test_all_scripts_and_styles_together_are_under_thirty_kilobytes_compressed() -> None:
    assert Assets().size() < MOST_BYTES
