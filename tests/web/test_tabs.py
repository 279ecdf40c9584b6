"""The public pages in a real browser: tabs of samples, copying, and every page of the manual for everybody's eyes."""

from typing import Literal

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, Page

from tests.stage import Stage
from tests.web.test_browser import chromium, open_window  # noqa: F401  chromium is a fixture
from tests.web.test_public import MANUAL, plain  # noqa: F401  plain is a fixture


async def shown(page: Page) -> set[str | None]:
    """The languages of the samples that can be seen."""
    tabs = page.locator("[role=tab][aria-selected=true]")
    for tab in await tabs.all():
        assert await page.locator(f"#{await tab.get_attribute('aria-controls')}").is_visible()
    assert await page.locator("[role=tabpanel]:visible").count() == await tabs.count()
    return {await tab.get_attribute("data-lang") for tab in await tabs.all()}


async def test_the_choice_of_a_language_is_remembered(chromium: Browser, plain: Stage) -> None:  # noqa: F811
    """All samples switch together, by mouse and by keyboard; other pages follow, and an address that says so wins."""
    context, window = await open_window(chromium, plain)
    page = window.page
    await page.goto("/docs/models")
    assert await shown(page) == {"curl"}
    await page.get_by_role("tab", name="Python").last.click()
    assert await shown(page) == {"python"}
    assert page.url.endswith("/docs/models")
    await page.keyboard.press("ArrowRight")
    assert await shown(page) == {"typescript"}
    await page.keyboard.press("Home")
    await page.keyboard.press("ArrowLeft")
    assert await shown(page) == {"typescript"}
    await page.goto("/docs/quickstart")
    assert await shown(page) == {"typescript"}
    await page.goto("/")
    assert await shown(page) == {"typescript"}
    await page.goto("/docs/quickstart?lang=python")
    assert await shown(page) == {"python"}
    await page.goto("/docs/claude-code")
    assert await shown(page) == {"claude-code"}
    assert window.complaints == []
    await context.close()


async def test_samples_are_copied_as_they_stand_afterwards(chromium: Browser, plain: Stage) -> None:  # noqa: F811
    """From the home page without what goes, and from the manual without its colours."""
    context, window = await open_window(chromium, plain)
    await context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = window.page
    for path, begins, ends in (
        ("/", "export ANTHROPIC_BASE_URL=", "\nclaude"),
        ("/docs/quickstart?lang=python#send-the-first-call-code-1", "import os\n", "print(message.content[0].text)"),
    ):
        await page.goto(path)
        await page.locator(".box").first.get_by_role("button", name="Copy").click()
        await page.get_by_role("button", name="Copied").wait_for()
        copied = await page.evaluate("navigator.clipboard.readText()")
        assert copied.startswith(begins)
        assert copied.endswith(ends)
        assert "sk-ant" not in copied
    assert window.complaints == []
    await context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_the_whole_manual_is_free_of_barriers(
    chromium: Browser,  # noqa: F811
    plain: Stage,  # noqa: F811
    scheme: Literal["light", "dark"],
) -> None:
    """axe content with every language, no complaint on the console, and nothing wider than a phone."""
    context, window = await open_window(chromium, plain, scheme=scheme)
    wrong: list[str] = []
    for path in [*MANUAL, "/?lang=curl", "/docs/messages?lang=python", "/models?sort=-input&model=x&input=abc"]:
        await window.page.set_viewport_size({"width": 1440, "height": 900})
        await window.page.goto(path)
        wrong += window.complaints
        report = await Axe().run(window.page)
        wrong += [f"{path} ({scheme}): {report.generate_report()}"] if report.violations_count else []
        await window.page.set_viewport_size({"width": 390, "height": 800})
        width = await window.page.evaluate("document.documentElement.scrollWidth")
        wrong += [f"{path} is {width} px wide on a phone"] if width > 390 else []
        window.complaints.clear()  # what the checker itself caused is nobody's fault
    assert not wrong, "\n".join(wrong)
    await context.close()
