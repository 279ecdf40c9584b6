"""`make screenshots`: every page with demo data, at 1440 and 390 px, light and dark, and sheets of them all.

Pages are found by their links, beginning where a visitor, a customer and an operator begin; of many of a kind one.
Says which pages scroll sideways and what the browser complained about, and ends with 1 if there is any such thing.
"""

import argparse
import asyncio
import json
import re
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from playwright.async_api import Browser, ConsoleMessage, Page, async_playwright

from tests.web.test_browser import CHROMIUM, FLAGS

WIDTHS: Final = (1440, 390)
SCHEMES: Final[tuple[Literal["light", "dark"], ...]] = ("light", "dark")
_MOST: Final = 60
_NOWHERE: Final = "/nothing/here"
_TESTED: Final = "/dashboard/doctor"
"""A page whose test is seen through before its picture is taken."""
_HIGHEST: Final = 5000
_ID: Final = re.compile(
    r"/(req_[0-9a-f]+|topup:[^/]+|demo[^/]+|\d{4}-\d\d|[^/]*[0-9a-f]{8}[^/]*|\d+|claude-[^/]+)(?=/|$)"
)
_NO_PAGE: Final = re.compile(r"\.[a-z]+$|^/(static|api|logout)\b|/export\b|/events\b")
_LINKS: Final = (
    "() => [...document.querySelectorAll('a[href]')].map(a => new URL(a.getAttribute('href'), location).href)"
)
_TOO_WIDE: Final = "() => document.documentElement.scrollWidth - innerWidth"
_SHEET_COLUMNS: Final = 5


@asynccontextmanager
async def demo(speed: str) -> AsyncIterator[dict[str, Any]]:
    """Serve the demo with its history from a directory of its own; gives what it shows."""
    with tempfile.TemporaryDirectory() as data:
        words = ("demo", "--with-history", "--port", "0", "--data", data, "--speed", speed, "--json")
        command = (sys.executable, "-c", "from farebox.cli import main; main()", *words)
        process = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
        )
        assert process.stdout is not None
        try:
            shown: dict[str, Any] = {}
            while "api_key" not in shown:
                line = await asyncio.wait_for(process.stdout.readline(), 60)
                assert line, "the demo did not start"
                shown = json.loads(line)
            await _enter_upstream(f"{data}/farebox.toml")
            yield shown
        finally:
            process.terminate()
            await process.wait()


async def _enter_upstream(config: str) -> None:
    """Enter an upstream, so that there is one to change."""
    words = ("upstream", "add", "spare", "--kind", "simulator", "--weight", "0", "--config", config)
    command = (sys.executable, "-c", "from farebox.cli import main; main()", *words)
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.DEVNULL)
    assert await process.wait() == 0


class Photographer:
    """Visits pages as one kind of person, and keeps what they look like."""

    def __init__(self, browser: Browser, site: str, out: Path, who: str) -> None:
        self._browser = browser
        self._site = site
        self._out = out
        self._who = who
        self.complaints: list[str] = []
        self.shots: list[Path] = []

    async def work(self, start: Sequence[str], email: str = "", password: str = "") -> None:
        """Find the pages and take each in every width and scheme."""
        state: Any = None
        paths: list[str] = []
        for scheme in SCHEMES:
            for width in WIDTHS:
                context = await self._browser.new_context(
                    base_url=self._site,
                    color_scheme=scheme,
                    viewport={"width": width, "height": 900},
                    storage_state=state,
                    reduced_motion="reduce",
                )
                page = await context.new_page()
                page.on("console", self._told)
                page.on("pageerror", lambda error: self.complaints.append(str(error)))
                if email and state is None:
                    await page.goto("/login")
                    await page.fill("input[name=email]", email)
                    await page.fill("input[name=password]", password)
                    await page.click("main form button:not([type=button])")
                    await page.wait_for_url("**/dashboard")
                state = state or await context.storage_state()
                if paths:
                    for path in paths:
                        await self._take(page, path, width, scheme)
                else:
                    paths = await self._find(page, start, width, scheme)
                await context.close()

    async def _find(self, page: Page, start: Sequence[str], width: int, scheme: str) -> list[str]:
        """Follow links from where this person begins; takes the pictures of this width and scheme on the way."""
        waiting, kinds = list(start), set(map(kind_of, start))
        found: list[str] = []
        while waiting and len(found) < _MOST:
            path = waiting.pop(0)
            await self._take(page, path, width, scheme)
            found.append(path)
            for link in await page.evaluate(_LINKS):
                target = urlsplit(link)
                ours = f"{target.scheme}://{target.netloc}" == self._site and self._is_theirs(target.path)
                kind = kind_of(target.path)
                if ours and kind not in kinds and not _NO_PAGE.search(target.path):
                    kinds.add(kind)
                    waiting.append(f"{target.path}?{target.query}" if target.query else target.path)
        return found

    def _told(self, told: ConsoleMessage) -> None:
        if "404" not in told.text:  # whether a page is there, _take sees
            self.complaints.append(f"{told.location.get('url')}: {told.text}")

    def _is_theirs(self, path: str) -> bool:
        """Tell whether a page is for this kind of person."""
        area = {"customer": "/dashboard", "operator": "/admin"}.get(self._who)
        return path.startswith(area) if area else not path.startswith(("/dashboard", "/admin"))

    async def _take(self, page: Page, path: str, width: int, scheme: str) -> None:
        answer = await page.goto(path, wait_until="load")
        if answer is None or answer.status != (404 if path == _NOWHERE else 200):
            self.complaints.append(f"{path}: {answer.status if answer else 'no answer'}")
        if path == _TESTED:
            await page.get_by_role("button", name="Test a stream").click()
            await page.locator("#verdict.well").wait_for()
        wider = await page.evaluate(_TOO_WIDE)
        if wider > 0:
            self.complaints.append(f"{path}: {wider} px wider than {width}")
        name = kind_of(path).strip("/").replace("/", ".") or "home"
        file = self._out / f"{self._who}.{name}.{width}.{scheme}.png"
        height = min(_HIGHEST, await page.evaluate("() => document.documentElement.scrollHeight"))
        await page.screenshot(path=file, full_page=True, clip={"x": 0, "y": 0, "width": width, "height": height})
        self.shots.append(file)


def kind_of(path: str) -> str:
    """Name a page without what differs between pages of its kind."""
    return _ID.sub("/one", path.partition("?")[0].rstrip("/") or "/")


async def bind(browser: Browser, out: Path, shots: Sequence[Path], title: str) -> None:
    """Lay pictures out on one sheet, to be seen at a glance."""
    page = await browser.new_page(viewport={"width": 1800, "height": 1000})
    cells = "".join(
        f"<figure><img src='{shot.as_uri()}'><figcaption>{shot.stem}</figcaption></figure>" for shot in shots
    )
    style = (
        f"body{{margin:12px;display:grid;grid-template-columns:repeat({_SHEET_COLUMNS},1fr);gap:12px;background:#888}}"
        "figure{margin:0;font:11px sans-serif}img{width:100%;max-height:460px;object-fit:cover;object-position:top}"
    )
    sheet = out / f"sheet.{title}.html"
    sheet.write_text(f"<!doctype html><meta charset=utf-8><style>{style}</style>{cells}", "utf-8")
    await page.goto(sheet.as_uri())
    await page.screenshot(path=out / f"sheet.{title}.png", full_page=True)
    await page.close()


async def main(out: Path) -> int:
    """Take all pictures. Answers the exit code."""
    assert CHROMIUM, "no Chromium: bash tests/web/install.sh"
    await asyncio.to_thread(out.mkdir, parents=True, exist_ok=True)
    complaints: list[str] = []
    async with demo("0") as shown, async_playwright() as playwright:
        site = shown["base_url"].removesuffix("/api/proxy")
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        for who, start, email, password in (
            ("visitor", ("/", "/login", "/signup", "/forgot", _NOWHERE), "", ""),
            ("customer", ("/dashboard",), shown["account_email"], shown["account_password"]),
            ("operator", ("/admin", "/admin/customers/1"), shown["admin_email"], shown["admin_password"]),
        ):
            photographer = Photographer(browser, site, out, who)
            await photographer.work(start, email, password)
            complaints += photographer.complaints
            for width in WIDTHS:
                for scheme in SCHEMES:
                    chosen = [shot for shot in photographer.shots if shot.stem.endswith(f"{width}.{scheme}")]
                    await bind(browser, out, chosen, f"{who}.{width}.{scheme}")
            print(f"{who}: {len(photographer.shots)} pictures")
        await browser.close()
    for complaint in sorted(set(complaints)):
        print(complaint)
    return 1 if complaints else 0


if __name__ == "__main__":
    reader = argparse.ArgumentParser(description=__doc__)
    reader.add_argument("out", type=Path, nargs="?", default=Path(".screenshots"))
    sys.exit(asyncio.run(main(reader.parse_args().out.resolve())))
