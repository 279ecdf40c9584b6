"""The operator's pages: who sees them, what they tell, and that what they change is changed once and written down."""

from typing import Final

from farebox.accounts.accounts import find_account
from farebox.accounts.operators import Operator, change_role
from tests.stage import OpenStage, Stage
from tests.web.browse import Browser, enter

OPERATOR: Final = "olga@example.com"
FRANK: Final = '[site]\nadmin_factor = "optional"\n'


async def enter_admin(stage: Stage, email: str = OPERATOR) -> Browser:
    """Sign an operator in, who has given a second factor just now."""
    if not await stage.rows("SELECT 1 FROM account WHERE email = ?", email):
        await stage.person(email)
    account = await find_account(stage.gateway.store, email)
    await change_role(stage.gateway.store, Operator("cli:test", ""), account, "admin", "a test")
    browser = await enter(stage, email)
    give = "UPDATE session SET factor_at = ? WHERE account_id = ?"
    await stage.gateway.store.write([(give, (stage.gateway.clock(), account.id))])
    return browser


async def age(stage: Stage, minutes: int) -> None:
    """Let the last proof of every session be older."""
    await stage.gateway.store.write([("UPDATE session SET sure_at = sure_at - ?", (minutes * 60_000_000,))])


async def test_there_is_no_admin_for_anybody_else(stage: Stage) -> None:
    nothing = await (await enter(stage, stage.alice.email)).get("/nothing/here")
    page = await (await enter(stage, stage.alice.email)).get("/admin")
    assert (page.status, page.words) == (404, nothing.words)


async def test_an_operator_sees_it_with_a_second_factor_and_is_led_to_set_one_up(open_stage: OpenStage) -> None:
    async with open_stage() as stage:
        browser = await enter_admin(stage)
        page = await browser.get("/admin")
        assert page.status == 200
        assert [link.text for link in page.find("a") if link.get("aria-current")][:1] == ["Today"]
        await stage.gateway.store.write([("UPDATE session SET factor_at = NULL", ())])
        page = await browser.get("/admin")
        assert page.status == 403
        assert "A second factor first" in page.words
    async with open_stage(FRANK) as stage:
        assert (await browser_again(stage, browser).get("/admin")).status == 200


def browser_again(stage: Stage, browser: Browser) -> Browser:
    """Use a browser's cookies at the same site, started anew."""
    again = Browser(stage.client, origin=stage.gateway.config.public_url)
    again.cookies = browser.cookies
    return again
