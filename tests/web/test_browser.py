"""The pages in a real browser, Debian's Chromium: what only a browser can tell about them."""

import os
import shutil
from collections.abc import AsyncIterator
from typing import Final, Literal

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, BrowserContext, Error, Page, Request, async_playwright

from tests.databases import on_sqlite
from tests.stage import MODEL, Person, Stage
from tests.web.browse import PASSWORD, account_of, enter, fund, mailed_path, make_key
from tests.web.test_security import routes

pytestmark = on_sqlite  # a page looks the same whatever is behind it

CAROL: Final = "carol@example.com"
CHROMIUM: Final = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser") or ""
FLAGS: Final = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]


@pytest.fixture
async def chromium() -> AsyncIterator[Browser]:
    assert CHROMIUM, "no Chromium: bash tests/web/install.sh"
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        await browser.close()


class Window:
    """A page, and whatever the browser had to complain about it."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.complaints: list[str] = []
        page.on("console", lambda told: self.complaints.append(f"{page.url} {told.type}: {told.text}"))
        page.on("pageerror", self._wrong)
        page.on("requestfailed", self._failed)

    def _wrong(self, error: Error) -> None:
        if "Transition was aborted" not in str(error):  # the next page came before this one had faded in
            self.complaints.append(f"{self.page.url} {error}")

    def _failed(self, asked: Request) -> None:
        if asked.failure != "net::ERR_ABORTED":  # the next page came before its icon had
            self.complaints.append(f"{self.page.url} {asked.url}: {asked.failure}")


async def open_window(
    chromium: Browser, stage: Stage, *, scheme: Literal["light", "dark"] = "light", width: int = 1280
) -> tuple[BrowserContext, Window]:
    context = await chromium.new_context(
        base_url=f"http://127.0.0.1:{stage.gateway.port}",
        color_scheme=scheme,
        viewport={"width": width, "height": 800},
    )
    context.set_default_timeout(20_000)
    return context, Window(await context.new_page())


async def lend(context: BrowserContext, stage: Stage, cookies: dict[str, str]) -> None:
    """Carry a sign-in over into the real browser."""
    for name, value in cookies.items():
        await context.add_cookies(
            [{"name": name, "value": value, "url": f"http://127.0.0.1:{stage.gateway.port}/", "httpOnly": True}]
        )


async def test_from_sign_up_to_the_first_call_with_a_mouse_and_keyboard(chromium: Browser, stage: Stage) -> None:
    _, window = await open_window(chromium, stage)
    page = window.page
    await page.goto("/")
    await page.get_by_role("link", name="Sign up").first.click()
    await page.get_by_label("E-mail address").fill(CAROL)
    await page.get_by_label("Password").fill(PASSWORD)
    await page.get_by_role("button", name="Sign up").click()
    await page.get_by_text("a mail is on its way").wait_for()
    await page.goto(await mailed_path(stage, CAROL))
    await page.get_by_role("button", name="Yes, this address is mine").click()
    await page.get_by_label("E-mail address").fill(CAROL)
    await page.get_by_label("Password").fill(PASSWORD)
    await page.keyboard.press("Enter")
    await page.get_by_role("heading", name="Overview").wait_for()

    await page.get_by_role("link", name="API keys", exact=True).click()
    await page.get_by_label("Name").fill("laptop")
    await page.get_by_role("button", name="Make a key").click()
    key = await page.get_by_label("Key", exact=True).input_value()
    assert key.startswith("sk-cc-")
    await fund(stage, CAROL, 5)
    assert (await stage.ask(Person(await account_of(stage, CAROL), CAROL, key)))[0] == 200

    await page.get_by_role("link", name="Requests", exact=True).click()
    row = page.get_by_role("region", name="Requests").get_by_role("row").nth(1)
    ((charged,),) = await stage.rows("SELECT charged_nanos FROM usage")
    told = await row.inner_text()
    assert MODEL in told
    assert f"${charged / 1e9:.9f}".rstrip("0") in told
    await row.get_by_role("link").click()
    await page.get_by_role("heading", name="How the cost came about").wait_for()
    await page.get_by_role("link", name="Usage", exact=True).click()
    await page.get_by_role("link", name="Tokens").click()
    await page.get_by_role("heading", name="Tokens by model").wait_for()
    assert page.url.endswith("?metric=tokens&by=model&range=30d")
    await page.go_back()
    await page.get_by_role("heading", name="Spend by model").wait_for()
    assert window.complaints == []


async def paths_of(stage: Stage, key_id: int, request_id: str) -> list[str]:
    """Give an address of every page that customers can look at."""
    values = {"key_id": str(key_id), "request_id": request_id, "page": "quickstart", "slug": "quickstart"}
    values["session:path"] = "a-session"
    found = []
    for route in routes(stage):
        path = route.path
        for name, value in values.items():
            path = path.replace(f"{{{name}}}", value)
        if "GET" in (route.methods or set()) and not path.startswith("/static/") and "{" not in path:
            found.append(path)
    others = (".csv", ".json", ".txt", ".md", ".sh", ".beancount")
    parts = ("/admin", "/dashboard/live", "/dashboard/playground/calls/")
    return [path for path in found if not path.endswith(others) and not path.startswith(parts)]


async def look(window: Window, path: str) -> list[str]:
    """Go to a page; answer what is wrong with it: complaints of the browser, barriers, a sideways scroll on a phone."""
    await window.page.set_viewport_size({"width": 1280, "height": 800})
    await window.page.goto(path)
    wrong = list(window.complaints)
    report = await Axe().run(window.page)
    wrong += [f"{path}: {report.generate_report()}"] if report.violations_count else []
    await window.page.set_viewport_size({"width": 390, "height": 800})
    width = await window.page.evaluate("document.documentElement.scrollWidth")
    wrong += [f"{path} is {width} px wide on a phone"] if width > 390 else []
    window.complaints.clear()  # what the checker itself caused is nobody's fault
    return wrong


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_no_page_has_errors_barriers_or_a_sideways_scroll(
    chromium: Browser, stage: Stage, scheme: Literal["light", "dark"]
) -> None:
    """Console free of errors and policy violations, axe content, and nothing wider than a phone, on every page."""
    visitor = await enter(stage, stage.alice.email)
    person = await make_key(stage, visitor, stage.alice.email)
    for model in (MODEL, "claude-opus-4-6"):
        said = {"model": model, "max_tokens": 50, "messages": [{"role": "user", "content": "Hello"}]}
        answer = await stage.post(person, said, headers={"x-claude-code-session-id": "a-session"})
        assert answer.status == 200
        await answer.read(1 << 20)
    ((request_id,), *_) = await stage.rows("SELECT request_id FROM usage")
    ((key_id,),) = await stage.rows("SELECT id FROM api_key WHERE name = 'laptop'")
    context, window = await open_window(chromium, stage, scheme=scheme)
    await lend(context, stage, visitor.cookies)
    wrong: list[str] = []
    for path in await paths_of(stage, key_id, f"req_{request_id.hex()}"):
        wrong += await look(window, path)
    assert not wrong, "\n".join(wrong)
