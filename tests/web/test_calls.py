"""What the pages tell of calls beyond their price: time, attempts, holds, advice, pictures, and when money runs low."""

import json
from typing import Any, Final

import pytest

from farebox.books.log import LoggedCall
from farebox.clock import DAY_US, day_of
from farebox.money import NANOS_PER_USD
from farebox.web.timings import spans_of
from tests.stage import Stage
from tests.web.browse import enter, fund, make_key
from tests.web.test_dashboard import OPUS, dollars, past_call

TRIES: Final = [
    {"upstream": "a-secret-name", "status": 529, "started_ms": 40, "took_ms": 380},
    {"upstream": "b", "error": "ConnectFailed", "started_ms": 900, "took_ms": 30},
    {"upstream": "a-secret-name", "status": 200, "started_ms": 1200, "took_ms": 2400},
]


def call(**fields: Any) -> LoggedCall:
    """Make a call that took 3.6 s, its first byte after 1.9 s."""
    numbers = dict.fromkeys(LoggedCall.__struct_fields__, 0)
    texts = {"request_id": b"\0" * 16, "kind": "exact", "model": "m", "asked_model": "m", "outcome": "finished"}
    nothing = dict.fromkeys(("detail", "stop_reason", "message_id", "session", "agent", "parent_agent", "tries"))
    values = {**numbers, **texts, **nothing, "streamed": 1, "first_byte_us": 1_900_000, "duration_us": 3_600_000}
    return LoggedCall(**{**values, **fields})


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({}, [("Waiting", "wait"), ("Answer", "flow")]),
        ({"first_byte_us": None}, [("Without an answer", "failed")]),
        (
            {"tries": json.dumps(TRIES)},
            [
                *(("Let in", "wait"), ("Attempt 1", "failed"), ("Attempt 2", "failed")),
                *(("Attempt 3, waiting", "wait"), ("Answer", "flow")),
            ],
        ),
        (
            {"tries": json.dumps(TRIES[:2]), "first_byte_us": None},
            [("Let in", "wait"), ("Attempt 1", "failed"), ("Attempt 2", "failed")],
        ),
        ({"tries": "not json"}, [("Waiting", "wait"), ("Answer", "flow")]),
        ({"tries": "{}"}, [("Waiting", "wait"), ("Answer", "flow")]),
        ({"duration_us": 0, "first_byte_us": 0}, [("Waiting", "wait"), ("Answer", "flow")]),
    ],
)
def test_a_call_in_time_is_its_attempts_its_wait_and_its_answer(
    fields: dict[str, Any], told: list[tuple[str, str]]
) -> None:
    spans = spans_of(call(**fields))
    assert [(span.what, span.kind) for span in spans] == told
    for span in spans:
        assert 0 <= span.begin_us <= span.end_us <= max(1, call(**fields).duration_us)
        assert 0 <= span.x <= span.x + span.width <= 100.001


def test_what_lies_outside_of_a_call_is_drawn_at_its_edge() -> None:
    odd = [{"started_ms": -5, "took_ms": 10**9, "status": 500}, {"started_ms": 10**9, "took_ms": -1, "error": "Cut"}]
    for span in spans_of(call(tries=json.dumps(odd))):
        assert 0 <= span.x <= span.x + span.width <= 100.001
        assert span.took_us >= 0


async def test_attempts_hold_and_settlement_show_on_the_page_of_a_call(stage: Stage) -> None:
    browser = await enter(stage, stage.alice.email)
    person = await make_key(stage, browser, stage.alice.email)
    assert (await stage.ask(person))[0] == 200
    ((request_id, held, charged),) = await stage.rows("SELECT request_id, held_nanos, charged_nanos FROM usage")
    assert held >= charged > 0
    page = await browser.get(f"/dashboard/requests/req_{request_id.hex()}")
    assert f"Held at most {dollars(held)}" in page.words
    assert f"Given back {dollars(held - charged)}" in page.words
    assert [row[0] for row in page.rows("In time")] == ["Waiting", "Answer"]
    assert [one.get("data-copy") for one in page.find("span") if one.get("data-copy")] == [f"req_{request_id.hex()}"]
    copy = (
        "INSERT INTO usage (request_id, at, account_id, key_id, kind, model, asked_model, price_version, cost_nanos, "
        "list_nanos, charged_nanos, shortfall_nanos, waived_nanos, status, outcome, first_byte_us, duration_us, "
        "attempts, tries) SELECT ?, at, account_id, key_id, 'exact', model, asked_model, price_version, cost_nanos, "
        "list_nanos, charged_nanos, 0, 0, 200, 'finished', 1900000, 3600000, 3, ? FROM usage WHERE request_id = ?"
    )
    await stage.gateway.store.write([(copy, (b"x" * 16, json.dumps(TRIES), request_id))])
    page = await browser.get(f"/dashboard/requests/req_{(b'x' * 16).hex()}")
    assert [row[3] for row in page.rows("In time")] == [
        *("authenticated, held", "HTTP 529", "connect failed", "to the first byte", "read"),
    ]
    assert "3 attempts at the provider" in page.words
    assert "a-secret-name" not in page.text


@pytest.mark.parametrize(
    ("fields", "advice"),
    [
        ({"outcome": "refused_upstream", "status": 413, "kind": "failed"}, "send less"),
        ({"outcome": "refused_upstream", "status": 418, "kind": "failed"}, "The message that came with it"),
        ({"outcome": "upstream_broke", "kind": "waived"}, "Send it again"),
        ({"outcome": "client_gone"}, "longer timeout"),
        ({"outcome": "out_of_money"}, "Add funds"),
    ],
)
async def test_a_call_that_went_wrong_comes_with_advice(stage: Stage, fields: dict[str, Any], advice: str) -> None:
    browser = await enter(stage, stage.alice.email)
    name = await past_call(stage, stage.alice.account_id, stage.gateway.clock(), **fields)
    page = await browser.get(f"/dashboard/requests/{name}")
    assert advice in page.words
    well = await past_call(stage, stage.alice.account_id, stage.gateway.clock())
    assert not list((await browser.get(f"/dashboard/requests/{well}")).find("p", class_="notice"))


async def test_the_picture_above_the_log_counts_what_the_filter_lets_through(stage: Stage) -> None:
    browser = await enter(stage, stage.alice.email)
    now = stage.gateway.clock()
    for days, fields in ((0, {}), (0, {"outcome": "upstream_broke"}), (3, {"model": OPUS}), (40, {})):
        await past_call(stage, stage.alice.account_id, now - days * DAY_US, **fields)
    for query, calls in (
        ("", "3 calls"),
        ("?since=90d", "4 calls"),
        ("?since=24h", "2 calls"),
        (f"?model={OPUS}", "1 calls"),
        ("?status=upstream_broke", "1 calls"),
        ("?key=999", ""),
        ("?since=1h", ""),
        ("?session=x", ""),
    ):
        page = await browser.get(f"/dashboard/requests{query}")
        labels = [one.get("aria-label", "") for one in page.find("svg", role="img")]
        assert [label.partition(",")[0] for label in labels] == ([calls] if calls else []), query


async def test_usage_is_set_against_the_period_before(stage: Stage) -> None:
    browser = await enter(stage, stage.alice.email)
    today = stage.gateway.clock() // DAY_US * DAY_US
    for days in (0, 0, 0, 8):
        await past_call(stage, stage.alice.account_id, today - days * DAY_US + 1)
    for query, words in (
        ("?range=7d", "in the last 7 days, 200% more than in the 7 days before"),
        ("?range=7d&metric=requests", "3 in the last 7 days, 200% more than"),
        ("?range=30d", "in the last 30 days"),
        (f"?day={day_of(today - 8 * DAY_US)}&metric=requests", f"1 on {day_of(today - 8 * DAY_US)}"),
    ):
        page = await browser.get(f"/dashboard/usage{query}")
        assert words in page.words, query
    assert "before" not in (await browser.get("/dashboard/usage?range=30d")).rows("Usage by model")[0]
    hours = (await browser.get(f"/dashboard/usage?day={day_of(today - 8 * DAY_US)}")).rows("Figures")
    assert [row[0] for row in hours] == [f"{day_of(today - 8 * DAY_US)} 00:00"]


@pytest.mark.parametrize("day", ["2026-13-01", "2026-02-30", "0001-01-01", "x", "2026-1-1", "9999-12-31"])
async def test_a_day_that_is_none_shows_the_usual_range(stage: Stage, day: str) -> None:
    browser = await enter(stage, stage.alice.email)
    page = await browser.get(f"/dashboard/usage?day={day}")
    assert page.status == 200
    assert ("in the last 30 days" in page.words) == (day != "9999-12-31")


async def test_a_balance_that_runs_low_is_said_in_time(stage: Stage) -> None:
    browser = await enter(stage, stage.bob.email)
    assert "Add funds" in (await browser.get("/dashboard")).words
    await fund(stage, stage.bob.email, 50)
    assert (await stage.ask(stage.bob))[0] == 200
    assert "left" not in (await browser.get("/dashboard")).words
    spent = 49 * NANOS_PER_USD
    await past_call(stage, stage.bob.account_id, stage.gateway.clock(), charged_nanos=spent, cost_nanos=spent)
    assert "left" not in (await browser.get("/dashboard")).words
    await past_call(stage, stage.bob.account_id, stage.gateway.clock(), charged_nanos=3 * spent, cost_nanos=3 * spent)
    assert "$49.99 left: about 1 day at the rate of this week" in (await browser.get("/dashboard")).words


async def test_first_steps_turn_green_one_by_one(stage: Stage) -> None:
    browser = await enter(stage, stage.bob.email)
    await stage.gateway.store.write([("DELETE FROM api_key WHERE account_id = ?", (stage.bob.account_id,))])

    async def done() -> list[str | None]:
        page = await browser.get("/dashboard")
        return [step.get("class") for step in page.tree.iter() if step.get("class") in {"done", "next"}]

    assert await done() == ["done", "next"]
    await fund(stage, stage.bob.email, 5)
    assert await done() == ["done", "done", "next"]
    person = await make_key(stage, browser, stage.bob.email)
    assert await done() == ["done", "done", "done", "next"]
    assert (await stage.ask(person))[0] == 200
    assert await done() == []
