"""Announcements: everybody is told, from when until when an operator says, and it is written down who said so."""

import pytest

from farebox.accounts.announcements import AT_ONCE
from farebox.clock import DAY_US, iso
from tests.gateway.play import eventually
from tests.stage import Stage
from tests.web.browse import Browser, Page, enter
from tests.web.operators import enter_admin, forget_proof

HERE = "/admin/announcements"


def told(page: Page) -> list[str]:
    return ["".join(found.itertext()).strip() for found in page.find("aside") if "told" in found.get("class", "")]


async def announce(browser: Browser, words: str, **more: str) -> Page:
    return await browser.submit(await browser.get(HERE), HERE, words=words, **more)


async def test_everybody_is_told_at_once_until_it_is_taken_down(stage: Stage) -> None:
    operator, alice = await enter_admin(stage), await enter(stage, stage.alice.email)
    stranger = Browser(stage.client)
    page = await announce(operator, "Maintenance <b>on Sunday</b>", level="warning")
    assert (page.status, told(page)) == (200, ["Maintenance <b>on Sunday</b>"])
    for browser, path in ((alice, "/dashboard"), (stranger, "/"), (stranger, "/login"), (stranger, "/nothing/here")):
        shown = await browser.get(path)
        assert told(shown) == ["Maintenance <b>on Sunday</b>"], path
        assert not shown.faults(), path
    (down,) = [action for action in (form.get("action", "") for form in page.find("form")) if action.endswith("/end")]
    page = await operator.submit(page, down)
    assert (told(page), told(await stranger.get("/"))) == ([], [])
    assert (await operator.post(down)).status == 200, "taking it down twice changes nothing"
    lines = await stage.rows(
        "SELECT actor, action, target FROM audit_log WHERE action LIKE 'announcement.%' ORDER BY id"
    )
    assert [line[1] for line in lines] == ["announcement.make", "announcement.take_down"]
    assert {line[0] for line in lines} == {"olga@example.com"}
    assert (await operator.post(f"{HERE}/987654321/end")).status == 404


async def test_one_for_later_waits_and_one_with_an_end_goes_by_itself(stage: Stage) -> None:
    operator = await enter_admin(stage)
    tomorrow = iso(stage.gateway.clock() + DAY_US)[:16]
    page = await announce(operator, "Tomorrow", begins=tomorrow)
    assert (page.status, told(page)) == (200, [])
    assert [row[:2] for row in page.rows("Announcements")] == [["Tomorrow", "scheduled"]]
    page = await announce(operator, "Until tomorrow", ends=tomorrow)
    assert told(page) == ["Until tomorrow"]
    await stage.gateway.store.write([("UPDATE announcement SET ends_at = begins_at + 1 WHERE ends_at IS NOT NULL", ())])

    async def nothing_is_told() -> bool:
        return not told(await operator.get("/"))

    await eventually(nothing_is_told, 20)  # it was ended elsewhere: this process reads them every few seconds


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"words": " "}, "1 to 300 characters"),
        ({"words": "x" * 301}, "1 to 300 characters"),
        ({"words": "a", "level": "shouting"}, "level info or warning"),
        ({"words": "a", "level": "info", "begins": "soon"}, "a moment such as"),
        ({"words": "a", "level": "info", "ends": "0001-01-01T00:00"}, "ends after it begins"),
        (
            {"words": "a", "level": "info", "begins": "2040-01-02T00:00", "ends": "2040-01-01T00:00"},
            "ends after it begins",
        ),
    ],
)
async def test_one_that_makes_no_sense_is_refused_in_words(stage: Stage, fields: dict[str, str], says: str) -> None:
    operator = await enter_admin(stage)
    page = await operator.post(HERE, fields)
    assert page.status == 422
    assert says in page.words
    assert not page.faults()
    assert not await stage.rows("SELECT 1 FROM announcement")


async def test_there_is_room_for_a_few_only(stage: Stage) -> None:
    operator = await enter_admin(stage)
    for number in range(AT_ONCE):
        assert (await announce(operator, f"Number {number}")).status == 200
    assert "take one down first" in (await announce(operator, "One more")).words
    assert len(told(await operator.get("/"))) == AT_ONCE


async def test_it_needs_an_operator_and_a_recent_proof(stage: Stage) -> None:
    operator, mallory = await enter_admin(stage), await enter(stage, stage.bob.email)
    assert (await mallory.get(HERE)).status == (await mallory.post(HERE, {"words": "Pay me"})).status == 404
    await forget_proof(stage)
    await operator.post(HERE, {"words": "Late"}, follow=False)
    assert not await stage.rows("SELECT 1 FROM announcement")
