"""The operator's pages in a real browser: no barriers, nothing too wide, and an entry made with mouse and keyboard."""

import re
from typing import Final, Literal

import pytest
from playwright.async_api import Browser

from tests.databases import on_sqlite
from tests.stage import MODEL, Stage
from tests.web.browse import enter
from tests.web.operators import enter_admin
from tests.web.test_browser import chromium as chromium  # noqa: PLC0414  a fixture
from tests.web.test_browser import lend, look, open_window
from tests.web.test_security import routes

pytestmark = on_sqlite  # a page looks the same whatever is behind it

FILES: Final = (".csv", ".json")


def admin_paths(stage: Stage, letter_id: int) -> list[str]:
    """Give an address of every page of operators that needs no more than these to be known."""
    values = {
        "account_id": str(stage.alice.account_id),
        "letter_id": str(letter_id),
        "model_id": MODEL,
        "name": "mine",
        "kind": "bedrock",
    }
    found = []
    for route in routes(stage):
        path = re.sub(r"\{(\w+)(?::\w+)?\}", lambda name: values.get(name[1], "{"), route.path)
        if path.startswith("/admin") and "GET" in (route.methods or set()) and not path.endswith(FILES):
            found.append(path)
    assert not [path for path in found if "{" in path]
    return [path for path in found if path != "/admin/ledger/entry"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_no_page_of_operators_has_errors_barriers_or_a_sideways_scroll(
    chromium: Browser, stage: Stage, scheme: Literal["light", "dark"]
) -> None:
    for model in (MODEL, "claude-opus-4-6"):
        assert (await stage.ask(stage.alice, model=model))[0] == 200
    await enter(stage, stage.alice.email)
    visitor = await enter_admin(stage)
    customer = f"/admin/customers/{stage.alice.account_id}"
    await visitor.submit(await visitor.get(customer), f"{customer}/suspend", reason="a long reason, " * 20)
    await visitor.submit(await visitor.get("/admin/invitations"), "/admin/invitations", email="carol@example.com")
    form = await visitor.get("/admin/upstreams/new/of/simulator")
    await visitor.submit(form, "/admin/upstreams/new/of/simulator", name="mine", reason="a trial")
    ((letter_id,), *_) = await stage.rows("SELECT id FROM outbox ORDER BY id")
    context, window = await open_window(chromium, stage, scheme=scheme)
    await lend(context, stage, visitor.cookies)
    wrong: list[str] = []
    for path in (*admin_paths(stage, letter_id), "/admin/ledger/entry?id=test:alice@example.com"):
        wrong += await look(window, path)
    await visitor.post(f"{customer}/view", {"reason": "a look"})
    for path in ("/dashboard/transactions", customer):
        wrong += await look(window, path)
    assert not wrong, "\n".join(wrong)


async def test_a_credit_with_mouse_and_keyboard(chromium: Browser, stage: Stage) -> None:
    visitor = await enter_admin(stage)
    context, window = await open_window(chromium, stage)
    await lend(context, stage, visitor.cookies)
    page = window.page
    await page.goto("/admin")
    await page.get_by_role("link", name="Customers").click()
    await page.get_by_label("Address, id or end of a key").fill("bob@")
    await page.keyboard.press("Enter")
    await page.get_by_role("link", name=stage.bob.email).click()
    await page.get_by_role("link", name="Credit or debit").click()
    await page.get_by_label("Kind").select_option("promotion")
    await page.get_by_label("Amount in US dollars").fill("2.50")
    await page.get_by_label("Reason").fill("welcome")
    await page.get_by_role("button", name="Show what it does").click()
    await page.get_by_text("+$2.50").wait_for()
    await page.get_by_role("button", name="Book $2.50").dblclick()
    await page.get_by_role("heading", name=stage.bob.email).wait_for()
    await page.wait_for_load_state()
    assert await stage.balance(stage.bob) == (2_500_000_000, 0)
    await page.get_by_role("link", name="All of it").click()
    await page.get_by_role("heading", name="Audit log").wait_for()
    assert await page.get_by_role("region", name="Audit log").get_by_text("account.credit").count() == 1
    assert window.complaints == []
