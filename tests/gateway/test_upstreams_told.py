"""What the log tells of upstreams that fail: the right one by its name, and once."""

from typing import Any, Final

import pytest

from farebox.upstreams.simulator import Simulator
from tests.gateway.batches import bench
from tests.gateway.play import books, eventually, message, upstream
from tests.stage import MODEL, OpenStage, Stage
from tests.upstreams.kinds.chat.recorded import DONE, chunk
from tests.upstreams.kinds.chat.server import serving, streamed, whole

SIMULATOR: Final = '[[upstreams]]\nname = "sim"\nkind = "simulator"\nspeed = 0\n'


def told(stage: Stage, event: str) -> list[dict[str, Any]]:
    """Give the lines about something."""
    return [one for one in stage.events if one["event"] == event]


async def is_told(stage: Stage, event: str) -> None:
    """Wait until there is a line about something."""

    async def there() -> bool:
        return told(stage, event) != []

    await eventually(there)


async def test_it_is_the_upstream_that_refuses_the_operator_which_is_named(open_stage: OpenStage) -> None:
    """Another one answers the call in the end: nothing is wrong with that one."""
    theirs = Simulator(speed=0, knobs="error=401:authentication_error")
    port = await theirs.listen()
    try:
        both = f"{upstream('theirs', port)}\n{SIMULATOR}\npriority = 1\n"
        async with open_stage(upstreams=both) as stage:
            assert (await stage.ask(stage.alice))[0] == 200
            (line,) = told(stage, "upstream_refuses_operator")
            assert (line["upstream"], line["status"]) == ("theirs", 401)
    finally:
        await theirs.close()


async def test_a_refusal_is_told_of_though_another_upstream_failed_after_it(open_stage: OpenStage) -> None:
    theirs = Simulator(speed=0, knobs="error=403:permission_error")
    port = await theirs.listen()
    try:
        both = f"{upstream('theirs', port)}\n{upstream('dead', 9, priority='1')}"
        async with open_stage(upstreams=both, limits="attempts = 2") as stage:
            assert (await stage.ask(stage.alice))[0] == 502
            (line,) = told(stage, "upstream_refuses_operator")
            assert (line["upstream"], line["status"]) == ("theirs", 403)
    finally:
        await theirs.close()


async def test_an_upstream_that_comes_to_rest_is_told_of_once_and_when_it_is_well_again(open_stage: OpenStage) -> None:
    async with open_stage(limits="attempts = 1") as stage:
        stage.simulator.knobs = "error=500"
        for _ in range(7):
            assert (await stage.ask(stage.alice))[0] == 502
        await is_told(stage, "upstream_rests")
        (line,) = told(stage, "upstream_rests")
        assert (line["upstream"], line["failed_by"], line["level"]) == ("sim", 500, "warning")
        assert 0 < line["for_s"] <= 10
        stage.simulator.knobs = ""
        assert (await stage.ask(stage.alice))[0] == 200
        await is_told(stage, "upstream_well_again")
        assert len(told(stage, "upstream_rests")) == 1


async def test_an_upstream_that_refuses_the_operator_is_told_of_once_not_by_every_try(open_stage: OpenStage) -> None:
    async with open_stage(limits="attempts = 2") as stage:
        stage.simulator.knobs = "error=403:permission_error"
        for _ in range(5):
            assert (await stage.ask(stage.alice))[0] == 502
        (line,) = told(stage, "upstream_refuses_operator")
        assert (line["upstream"], line["status"], line["level"]) == ("sim", 403, "error")


async def test_a_refused_count_is_told_of_as_well(open_stage: OpenStage) -> None:
    async with open_stage(limits="attempts = 1") as stage:
        stage.simulator.knobs = "error=401:authentication_error"
        answer = await stage.post(stage.alice, message(), path="/api/proxy/v1/messages/count_tokens")
        assert answer.status == 502
        (line,) = told(stage, "upstream_refuses_operator")
        assert (line["upstream"], line["status"]) == ("sim", 401)


WITHOUT_USAGE: Final = {
    "id": "chatcmpl-1",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}],
}


@pytest.mark.parametrize("stream", [False, True])
async def test_an_upstream_without_usage_is_told_of_and_not_paid_for_the_same_again(
    open_stage: OpenStage, *, stream: bool
) -> None:
    chunks = chunk({"content": "Hi"}) + chunk({}, "stop") + DONE
    async with (
        serving(streamed(chunks) if stream else whole(WITHOUT_USAGE)) as (server, up),
        open_stage(upstreams=up) as stage,
    ):
        for number in (1, 2):
            answer = await stage.post(stage.alice, message(stream=stream))
            data = await answer.read(2**20)
            assert b"nothing was charged" in data
            if not stream:
                assert (answer.status, answer.header(b"x-should-retry")) == (502, b"false")
            assert len(server.heard) == number
        row = await books(stage, stage.alice, calls=2)
        assert (row["charged_nanos"], row["outcome"], row["attempts"]) == (0, "upstream_broke", 1)
        (line,) = told(stage, "upstream_without_usage")
        assert (line["upstream"], line["model"], line["level"]) == ("chat", MODEL, "error")


async def test_an_upstream_without_usage_leaves_the_call_to_another_that_has_it(open_stage: OpenStage) -> None:
    async with (
        serving(whole(WITHOUT_USAGE)) as (_, up),
        open_stage(upstreams=f"{up}\n{SIMULATOR}\npriority = 1\n") as stage,
    ):
        assert (await stage.ask(stage.alice))[0] == 200
        assert (await books(stage, stage.alice))["upstream"] == "sim"


async def test_an_item_of_a_batch_is_not_paid_for_again_where_there_is_no_usage(open_stage: OpenStage) -> None:
    async with open_stage(bench.OWN) as stage:
        stage.simulator.knobs = "no_usage"
        made = await bench.make(stage, stage.alice, bench.items("one", "two"))
        batch = await bench.ended(stage, stage.alice, made["id"])
        assert batch["request_counts"]["errored"] == 2
        assert len(stage.simulator.requests) == 2
        assert len(told(stage, "upstream_without_usage")) == 1
        assert await bench.books_agree(stage, stage.alice) == 0


async def test_what_is_so_of_every_item_of_a_batch_is_told_of_once(open_stage: OpenStage) -> None:
    async with open_stage(bench.OWN) as stage:
        stage.simulator.knobs = "unknown_usage=17"
        made = await bench.make(stage, stage.alice, bench.items("one", "two", "three"))
        await bench.ended(stage, stage.alice, made["id"])
        assert len(told(stage, "pricing_doubt")) == 1
        assert stage.gateway.metrics.doubts == 3
