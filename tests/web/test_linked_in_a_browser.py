"""Sign-in with another provider in a real browser: the policy of our pages lets people go there and come back."""

from playwright.async_api import Browser

from tests.databases import on_sqlite
from tests.stage import OpenStage
from tests.web.browse import PASSWORD, enter
from tests.web.test_browser import chromium, lend, open_window
from tests.web.test_linked import CAROL, LINKED, Scripted, configured, identities, provider, secret_file

pytestmark = on_sqlite  # a page looks the same whatever is behind it

__all__ = ["chromium", "provider", "secret_file"]


async def test_there_and_back_again(chromium: Browser, open_stage: OpenStage, provider: Scripted) -> None:
    """Signing up by a link; linking with a proof of who one is in between, whose form may lead nowhere else."""
    async with configured(open_stage, provider) as stage:
        provider.home = f"http://127.0.0.1:{stage.gateway.port}"
        context, window = await open_window(chromium, stage)
        await window.page.goto("/login")
        await window.page.get_by_role("link", name="Continue with Elsewhere").click()
        await window.page.wait_for_url("**/dashboard")
        assert await identities(stage) == [("elsewhere:4711", CAROL)]
        provider.person["sub"] = "4712"
        visitor = await enter(stage, stage.alice.email)
        await stage.gateway.store.write([("UPDATE session SET sure_at = 0", ())])
        await lend(context, stage, visitor.cookies)
        await window.page.goto(LINKED)
        await window.page.get_by_role("link", name="Link Elsewhere").click()
        await window.page.get_by_label("password").fill(PASSWORD)
        await window.page.get_by_role("main").get_by_role("button").first.click()
        await window.page.wait_for_url(f"**{LINKED}")
        await window.page.get_by_role("link", name="Link Elsewhere").click()
        await window.page.get_by_role("button", name="Unlink Elsewhere").wait_for()
        assert ("elsewhere:4712", stage.alice.email) in await identities(stage)
        assert window.complaints == []
