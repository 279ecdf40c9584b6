"""All of it at once: a seeded crowd of calls, faults and hang-ups, and the books afterwards."""

import asyncio
import json
import random

import pytest

from farebox.errors import FareboxError
from tests.gateway.play import USD, Heard, books, exact, message, nanos, usage_rows
from tests.stage import OpenStage, Person, Stage

KNOBS = [
    "", "", "", "", "", "crlf", "chunk=9", "unknown_events", "refusal",
    "fail_first=1 error=529", "fail_first=1 close_before", "error=400", "error=401", "error=500", "html", "bad_json",
    "cut_after=7", "reset_after=7", "truncate=6", "truncate", "garbage_after=7", "error_after=6", "no_usage", "gzip",
    "wrong_length", "delay=60", "rate=3000 ttft=0",
]  # fmt: skip


async def one_call(stage: Stage, person: Person, dice: random.Random) -> tuple[str, int] | None:
    """Make one call; answers message id and output tokens when the client saw it finished."""
    stream = dice.random() < 0.6
    tokens = dice.randint(1, 300)
    body = message(f"[[sim tokens={tokens} {dice.choice(KNOBS)}]] {dice.random()}", stream=stream)
    hang_up_s = dice.random() * 0.1 if dice.random() < 0.3 else None
    try:
        async with asyncio.timeout(hang_up_s):
            answer = await stage.post(person, body)
    except (TimeoutError, FareboxError):
        return None
    if not stream:
        try:
            async with asyncio.timeout(hang_up_s):
                data = await answer.read(2**22)
        except (TimeoutError, FareboxError):
            answer.abandon()
            return None
        done = json.loads(data) if answer.status == 200 else None
        return (done["id"], done["usage"]["output_tokens"]) if done else None
    heard = Heard(answer)
    if hang_up_s is not None:
        await asyncio.sleep(hang_up_s)
        heard.hang_up()
    await heard.until(lambda: heard.ended)
    if b"event: message_stop" not in heard.data:
        return None
    return heard.events[0][1]["message"]["id"], heard.final_usage["output_tokens"]


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_whatever_happens_to_a_crowd_of_calls_the_books_stay_true(open_stage: OpenStage, seed: int) -> None:
    """Each answer a client saw finished is charged exactly once; nobody else pays but those who hung up."""
    async with open_stage(limits="stall_s = 1\nretry_budget = 1") as stage:
        people = [
            await stage.person(f"p{n}@example.com", usd, "enterprise") for n, usd in enumerate((50, 5, 0.02, 0.005))
        ]
        calls = [(person, random.Random(f"{seed} {n}")) for n in range(150) for person in [people[n % 4]]]
        gate = asyncio.Semaphore(25)

        async def limited(person: Person, dice: random.Random) -> tuple[str, int] | None:
            async with gate:
                return await one_call(stage, person, dice)

        finished = dict(filter(None, await asyncio.gather(*(limited(*call) for call in calls))))
        assert len(finished) > 15
        server = stage.gateway._server
        assert server is not None
        await asyncio.wait(server.tasks, timeout=20) if server.tasks else None
        for person, usd in zip(people, (50, 5, 0.02, 0.005), strict=True):
            await _check(stage, person, int(usd * USD), finished)
        paid = await stage.rows("SELECT message_id, count(*) FROM usage WHERE charged_nanos > 0 GROUP BY message_id")
        assert {count for _, count in paid} == {1}
        refusals = {row[0] for row in await stage.rows("SELECT message_id FROM usage WHERE stop_reason = 'refusal'")}
        assert finished.keys() <= {message_id for message_id, _ in paid} | refusals
        assert stage.gateway.metrics.shortfall_nanos == 0
        told = {event["event"] for event in stage.events if event["level"] == "error"}
        told -= {"pricing_doubt", "upstream_refuses_operator", "upstream_without_usage"}  # the crowd asks for these
        assert not told


async def _check(stage: Stage, person: Person, had: int, finished: dict[str, int]) -> None:
    rows = await usage_rows(stage, person)
    assert rows
    await books(stage, person, had=had, calls=len(rows))
    for row in rows:
        if row["message_id"] in finished:
            assert row["kind"] == "exact"
            assert row["output_tokens"] >= finished[row["message_id"]]
        elif row["charged_nanos"]:
            # "finished" too: a client may hang up while the last bytes are on their way to it
            assert row["outcome"] in {"finished", "client_gone", "out_of_money"}
        if row["outcome"] in {"upstream_broke", "refused_upstream", "gateway_broke"}:
            assert row["charged_nanos"] == 0
        if row["kind"] == "estimated":
            assert row["cost_nanos"] == nanos(
                exact(input=row["input_tokens"], output=row["output_tokens"], read=row["cache_read_tokens"])
            )
