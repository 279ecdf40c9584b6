"""A machine whose clock is wrong by hours serves like any other: the database's clock is everybody's."""

from pathlib import Path

import pytest

from farebox import app
from farebox.accounts.keys import create_key
from farebox.clock import DAY_US, US_PER_S, Clock, steady_clock
from tests.gateway.play import eventually
from tests.stage import Person, Stage, open_stage
from tests.trouble.acts import charged_exactly

HOUR_US = 3600 * US_PER_S


def wrong_clock(hours: int) -> Clock:
    right = steady_clock()
    return lambda: right() + hours * HOUR_US


@pytest.mark.parametrize("hours", [-30, -5, 5, 30])
async def test_calls_keys_limits_and_days_go_by_the_clock_of_the_database(
    tmp_path: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    with monkeypatch.context() as skewed:
        skewed.setattr(app, "steady_clock", lambda: wrong_clock(hours))
        async with open_stage(tmp_path, database_url=postgres_url, database="lease_s = 0.5") as stage:
            assert (await stage.ask(stage.alice))[0] == 200
            row = await charged_exactly(stage, stage.alice)
            assert row["kind"] == "exact"
            ((off_us,),) = await stage.rows("SELECT now_us() - max(at) FROM usage")
            assert 0 <= off_us < 60 * US_PER_S
            await a_key_lives_as_long_as_it_says(stage)
            await no_day_is_closed_before_it_is_over(stage)
            answer = await stage.post(stage.alice, {"model": "nothing"})
            assert answer.status == 400
            left = int(answer.header(b"anthropic-ratelimit-requests-remaining") or b"-1")
            assert left >= 290
            await answer.read(2**20)


async def a_key_lives_as_long_as_it_says(stage: Stage) -> None:
    ((now_us,),) = await stage.rows("SELECT now_us()")
    for lives_us, status in ((HOUR_US, 200), (-HOUR_US, 401)):
        _, text = await create_key(stage.gateway.store, stage.alice.account_id, "brief", "sk-cc-", now_us)
        await stage.gateway.store.write(
            [("UPDATE api_key SET expires_at = ? WHERE name = 'brief' AND expires_at IS NULL", (now_us + lives_us,))]
        )
        assert (await stage.ask(Person(stage.alice.account_id, "", text)))[0] == status


async def no_day_is_closed_before_it_is_over(stage: Stage) -> None:
    books = stage.gateway.books
    assert books is not None

    async def leads() -> bool:
        return books.runs.leads

    await eventually(leads)
    insert = (
        "INSERT INTO transfer (id, at, debit_account, credit_account, amount_nanos, code, actor, memo) "
        "VALUES ('old', now_us() - ?, 'house:cash', 'house:promotion', 1, 'credit', 'test', '')"
    )
    await stage.gateway.store.write([(insert, (2 * DAY_US,))])
    await books.close_days()
    ((days,),) = await stage.rows("SELECT count(*) FROM day_close WHERE day >= to_char(now(), 'YYYY-MM-DD')")
    assert days == 0
    assert await stage.rows("SELECT 1 FROM day_close")
