"""What the log tells of upstreams that fail: the right one by its name, and once."""

from typing import Any, Final

from farebox.upstreams.simulator import Simulator
from tests.gateway.play import eventually, upstream
from tests.stage import OpenStage, Stage

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
