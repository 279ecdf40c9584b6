"""Second factors in a real browser: an app's code, a passkey of Chromium's own virtual authenticator, both themes."""

import re
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Literal

import pyotp
import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, BrowserContext, CDPSession, Page

from tests import stage as stages
from tests.stage import Stage, open_stage
from tests.web.browse import PASSWORD, enter
from tests.web.test_browser import Window, chromium  # noqa: F401  chromium is a fixture
from tests.web.test_second_factor import forget_steps

SETTINGS = "/dashboard/settings"
PHONE = {
    "protocol": "ctap2", "transport": "internal", "hasResidentKey": True, "hasUserVerification": True,
    "isUserVerified": True, "automaticPresenceSimulation": True,
}  # fmt: skip


@pytest.fixture
async def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stage]:
    """A gateway that is reached as localhost, which is a name."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    text = stages.config_text
    at = f'port = {port}\npublic_url = "http://localhost:{port}"'
    monkeypatch.setattr(stages, "config_text", lambda *args, **more: text(*args, **more).replace("port = 0", at))
    async with open_stage(tmp_path) as opened:
        yield opened


async def open_local(
    chromium: Browser,  # noqa: F811
    stage: Stage,
    scheme: Literal["light", "dark"] = "light",
) -> tuple[BrowserContext, Window, CDPSession, str]:
    """Open a window with an authenticator of its own. Answers that one's id last."""
    context = await chromium.new_context(
        base_url=stage.gateway.config.public_url, color_scheme=scheme, viewport={"width": 1280, "height": 800}
    )
    context.set_default_timeout(20_000)
    window = Window(await context.new_page())
    devices = await context.new_cdp_session(window.page)
    await devices.send("WebAuthn.enable")
    made = await devices.send("WebAuthn.addVirtualAuthenticator", {"options": PHONE})
    return context, window, devices, made["authenticatorId"]


async def sign_in(page: Page, email: str) -> None:
    await page.goto("/login")
    await page.get_by_label("E-mail address").fill(email)
    await page.get_by_label("Password").fill(PASSWORD)
    await page.get_by_role("button", name="Sign in", exact=True).click()


async def code_now(stage: Stage, secret: str) -> str:
    await forget_steps(stage)
    return pyotp.TOTP(secret).at(stage.gateway.clock() // 1_000_000)


async def axe_of(page: Page, complaints: list[str]) -> list[str]:
    """Name what is wrong with a page for those who do not see it, or hold it on a phone."""
    report = await Axe().run(page)
    wrong = [f"{page.url}: {report.generate_report()}"] if report.violations_count else []
    await page.set_viewport_size({"width": 390, "height": 800})
    width = await page.evaluate("document.documentElement.scrollWidth")
    wrong += [f"{page.url} is {width} px wide on a phone"] if width > 390 else []
    await page.set_viewport_size({"width": 1280, "height": 800})
    complaints.clear()  # what the checker itself caused is nobody's fault
    return wrong


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_an_app_is_set_up_and_asked_for(
    chromium: Browser,  # noqa: F811
    local: Stage,
    scheme: Literal["light", "dark"],
    tmp_path: Path,
) -> None:
    await enter(local, local.alice.email)
    context, window, _, _ = await open_local(chromium, local, scheme)
    await context.grant_permissions(["clipboard-read", "clipboard-write"])
    page, wrong = window.page, []
    await sign_in(page, local.alice.email)
    await page.goto(SETTINGS)
    await page.get_by_role("navigation", name="Settings").get_by_role("link", name="Two-step sign-in").click()
    wrong += window.complaints + await axe_of(page, window.complaints)
    await page.get_by_role("link", name="Set up an app").click()
    secret = re.sub(r"\s", "", await page.locator("code[data-copy]").inner_text())
    wrong += window.complaints + await axe_of(page, window.complaints)
    await page.get_by_label("Code of six digits").fill(await code_now(local, secret))
    await page.keyboard.press("Enter")
    await page.get_by_text("Two-step sign-in is on").wait_for()
    codes = (await page.locator("#codes").inner_text()).split()
    assert len(codes) == 10
    await page.locator("#codes + button").click()
    assert (await page.evaluate("navigator.clipboard.readText()")).split() == codes
    async with page.expect_download() as saving:
        await page.get_by_role("button", name="Download as a file").click()
    await (await saving.value).save_as(tmp_path / "codes.txt")
    assert all(code in (tmp_path / "codes.txt").read_text() for code in codes)
    wrong += window.complaints + await axe_of(page, window.complaints)
    await page.get_by_role("link", name="I have kept them").click()
    wrong += window.complaints + await axe_of(page, window.complaints)

    await context.clear_cookies()
    await sign_in(page, local.alice.email)
    await page.get_by_role("heading", name="One more step").wait_for()
    wrong += window.complaints + await axe_of(page, window.complaints)
    await page.get_by_label("Code from your app").fill("000000")
    await page.keyboard.press("Enter")
    await page.get_by_text("that code is not right").wait_for()
    window.complaints.clear()  # the browser notes the 422
    wrong += await axe_of(page, window.complaints)
    await page.get_by_label("Code from your app").fill(await code_now(local, secret))
    await page.keyboard.press("Enter")
    await page.get_by_role("heading", name="Overview").wait_for()
    for path in ("/confirm", SETTINGS, f"{SETTINGS}/sign-in", f"{SETTINGS}/passkeys", f"{SETTINGS}/passkeys/new"):
        await page.goto(path)
        wrong += window.complaints + await axe_of(page, window.complaints)
    assert not wrong, "\n".join(wrong)


async def test_a_passkey_is_made_and_signs_in_by_a_button_and_beside_the_password(
    chromium: Browser,  # noqa: F811
    local: Stage,
) -> None:
    await enter(local, local.alice.email)
    context, window, devices, phone = await open_local(chromium, local)
    page = window.page
    await context.add_init_script("PublicKeyCredential.isConditionalMediationAvailable = async () => false;")
    await sign_in(page, local.alice.email)
    await page.get_by_role("heading", name="Overview").wait_for()
    await page.goto(f"{SETTINGS}/passkeys")
    await page.get_by_role("link", name="Add a passkey").click()
    await page.get_by_label("Name").fill("Alice's phone")
    await page.get_by_role("button", name="Add a passkey").click()
    await page.get_by_role("cell", name="Alice's phone", exact=True).wait_for()
    assert len((await devices.send("WebAuthn.getCredentials", {"authenticatorId": phone}))["credentials"]) == 1
    await page.get_by_role("link", name="Add a passkey").click()
    await page.get_by_label("Name").fill("again")
    await page.get_by_role("button", name="Add a passkey").click()
    await page.get_by_text("This device has a passkey for this account already.").wait_for()

    await context.clear_cookies()
    await page.goto("/login?next=/dashboard/keys")
    await page.get_by_role("button", name="Sign in with a passkey").click()
    await page.get_by_role("heading", name="API keys").wait_for()
    ((used, factor),) = await local.rows(
        "SELECT p.used_at, s.factor_at FROM passkey p JOIN session s ON s.account_id = p.account_id "
        "WHERE s.factor_at IS NOT NULL"
    )
    assert used
    assert factor
    await local.gateway.store.write([("UPDATE account SET role = 'admin' WHERE email = ?", (local.alice.email,))])
    await context.clear_cookies()
    await sign_in(page, local.alice.email)
    await page.get_by_role("button", name="Use a passkey").click()
    await page.get_by_role("heading", name="Overview").wait_for()
    await page.goto("/confirm?next=/dashboard/keys")
    await page.get_by_role("button", name="Use a passkey").click()
    await page.get_by_role("heading", name="API keys").wait_for()
    assert window.complaints == []


async def test_the_browser_offers_the_passkey_by_itself(
    chromium: Browser,  # noqa: F811
    local: Stage,
) -> None:
    """Conditional UI: with the page open the authenticator may sign without a button being pressed."""
    await enter(local, local.alice.email)
    context, window, _, _ = await open_local(chromium, local)
    page = window.page
    await sign_in(page, local.alice.email)
    await page.goto(f"{SETTINGS}/passkeys/new")
    await page.get_by_label("Name").fill("phone")
    await page.get_by_role("button", name="Add a passkey").click()
    await page.get_by_role("cell", name="phone", exact=True).wait_for()
    await context.clear_cookies()
    await page.goto("/login")
    await page.get_by_role("heading", name="Overview").wait_for()
    assert window.complaints == []


async def test_browsers_without_the_newer_calls_make_and_use_passkeys_too(
    chromium: Browser,  # noqa: F811
    local: Stage,
) -> None:
    await enter(local, local.alice.email)
    context, window, _, _ = await open_local(chromium, local)
    page = window.page
    await context.add_init_script(
        "for (const name of ['parseCreationOptionsFromJSON', 'parseRequestOptionsFromJSON', "
        "'isConditionalMediationAvailable']) delete PublicKeyCredential[name]; "
        "delete PublicKeyCredential.prototype.toJSON;"
    )
    await sign_in(page, local.alice.email)
    await page.goto(f"{SETTINGS}/passkeys/new")
    await page.get_by_label("Name").fill("phone")
    await page.get_by_role("button", name="Add a passkey").click()
    await page.get_by_role("cell", name="phone", exact=True).wait_for()
    await context.clear_cookies()
    await page.goto("/login")
    await page.get_by_role("button", name="Sign in with a passkey").click()
    await page.get_by_role("heading", name="Overview").wait_for()
    assert window.complaints == []
