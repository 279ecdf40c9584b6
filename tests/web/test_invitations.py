"""Invitations: a link opens one account, for whom it was made, once; whatever else is tried with it says the same."""

import asyncio
from collections.abc import AsyncIterator
from typing import Final

import pytest

from farebox.accounts.invitations import (
    Invited,
    create_invitation,
    list_invitations,
    revoke_invitation,
)
from farebox.clock import DAY_US
from farebox.errors import InvalidRequest, NotFound
from tests.stage import OpenStage, Stage
from tests.web.browse import PASSWORD, browser_of, mailed_path, mails_to

CAROL: Final = "carol@example.com"
DAVE: Final = "dave@example.com"
TOO_LATE: Final = "works no longer"


@pytest.fixture
async def closed(open_stage: OpenStage) -> AsyncIterator[Stage]:
    async with open_stage('[site]\nsign_up = "invitation"') as stage:
        yield stage


async def invite(stage: Stage, email: str = "", days: int = 14) -> Invited:
    return await create_invitation(
        stage.gateway.store,
        stage.gateway.config.public_url,
        "Farebox",
        by="operator:test",
        now_us=stage.gateway.clock(),
        email=email,
        note="from the test",
        days=days,
    )


def path_of(invited: Invited) -> str:
    return invited.url[invited.url.index("/signup") :]


async def accounts(stage: Stage) -> set[str]:
    return {row[0] for row in await stage.rows("SELECT email FROM account")} - {stage.alice.email, stage.bob.email}


async def test_a_link_opens_one_account_and_no_second(closed: Stage) -> None:
    invited = await invite(closed)
    browser = browser_of(closed)
    assert (await browser.get("/signup")).path == "/signup"
    assert "by invitation" in (await browser.get("/signup")).words
    page = await browser.submit(await browser.get(path_of(invited)), email=CAROL, password=PASSWORD)
    assert page.status == 200
    await browser.submit(await browser.get(await mailed_path(closed, CAROL)))
    await browser.sign_in(CAROL)
    assert (await browser.get("/dashboard")).path == "/dashboard"
    (kept,) = await list_invitations(closed.gateway.store)
    assert kept.state(closed.gateway.clock()) == "used"
    ((account_id,),) = await closed.rows("SELECT id FROM account WHERE email = ?", CAROL)
    assert kept.account_id == account_id
    again = await browser_of(closed).get(path_of(invited))
    assert TOO_LATE in again.words
    form = {"invitation": path_of(invited).partition("=")[2], "email": DAVE, "password": PASSWORD}
    assert (await browser_of(closed).post("/signup", form)).status == 403
    assert await accounts(closed) == {CAROL}


async def test_without_a_link_nobody_comes_in_and_every_wrong_one_says_the_same(closed: Stage) -> None:
    used, late, taken_back = await invite(closed), await invite(closed, days=1), await invite(closed)
    browser = browser_of(closed)
    await browser.submit(await browser.get(path_of(used)), email=CAROL, password=PASSWORD)
    await closed.gateway.store.write(
        [("UPDATE invitation SET ends_at = ends_at - ? WHERE id = ?", (DAY_US, late.invitation.id))]
    )
    await revoke_invitation(closed.gateway.store, taken_back.invitation.id, closed.gateway.clock())
    told = set()
    for link in (path_of(used), path_of(late), path_of(taken_back), "/signup?invitation=made-up"):
        page = await browser.get(link)
        assert page.status == 200
        told.add(page.words)
        sent = {"invitation": link.partition("=")[2], "email": DAVE, "password": PASSWORD}
        refused = await browser.post("/signup", sent)
        assert refused.status == 403
        told.add(refused.words)
    assert len(told) == 1
    assert TOO_LATE in told.pop()
    assert (await browser.post("/signup", {"email": DAVE, "password": PASSWORD})).status == 403
    assert await accounts(closed) == {CAROL}


async def test_a_link_for_an_address_is_mailed_there_and_opens_no_other(closed: Stage) -> None:
    invited = await invite(closed, email=" Carol@Example.com ")
    ((subject, body),) = await mails_to(closed, CAROL)
    assert subject == "An invitation to Farebox"
    assert invited.url in body
    browser = browser_of(closed)
    page = await browser.get(path_of(invited))
    (field,) = page.find("input", name="email")
    assert field.get("value") == CAROL
    assert field.get("readonly") is not None
    await browser.submit(page, email=DAVE, password=PASSWORD)
    assert await accounts(closed) == {CAROL}


async def test_an_address_with_an_account_gets_the_same_answer_and_leaves_the_link_unused(closed: Stage) -> None:
    invited = await invite(closed)
    browser = browser_of(closed)
    known = await browser.submit(await browser.get(path_of(invited)), email=closed.alice.email, password=PASSWORD)
    assert not await closed.rows("SELECT 1 FROM credential")
    assert (await list_invitations(closed.gateway.store))[0].state(closed.gateway.clock()) == "open"
    fresh = await browser.submit(await browser.get(path_of(invited)), email=CAROL, password=PASSWORD)
    assert known.words.replace(closed.alice.email, "") == fresh.words.replace(CAROL, "")
    assert [subject for subject, _ in await mails_to(closed, closed.alice.email)] == ["You have an account at Farebox"]


async def test_of_many_at_once_by_one_link_one_gets_an_account(closed: Stage) -> None:
    invited = await invite(closed)
    token = path_of(invited).partition("=")[2]
    forms = [{"invitation": token, "email": f"guest{n}@example.com", "password": PASSWORD} for n in range(8)]
    pages = await asyncio.gather(*(browser_of(closed).post("/signup", form) for form in forms))
    assert sum(page.status == 200 for page in pages) == 1
    assert len(await accounts(closed)) == 1
    assert len(await closed.rows("SELECT 1 FROM credential")) == 1


async def test_where_sign_up_is_open_links_work_too_and_bad_ones_are_told(stage: Stage) -> None:
    browser = browser_of(stage)
    assert TOO_LATE in (await browser.get("/signup?invitation=made-up")).words
    await browser.submit(await browser.get(path_of(await invite(stage))), email=CAROL, password=PASSWORD)
    assert await accounts(stage) == {CAROL}
    (kept,) = await list_invitations(stage.gateway.store)
    assert kept.used_at_us is not None


async def test_what_no_invitation_can_be_is_refused(stage: Stage) -> None:
    for wrong in ({"email": "nobody"}, {"days": 0}, {"days": 366}):
        with pytest.raises(InvalidRequest):
            await invite(stage, **wrong)
    with pytest.raises(NotFound):
        await revoke_invitation(stage.gateway.store, 4711, stage.gateway.clock())
    assert await list_invitations(stage.gateway.store) == []
