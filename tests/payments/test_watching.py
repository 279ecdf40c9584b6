"""How a watcher is, written down: also when it meets what nobody had thought of."""

import pytest

from farebox.payments.rails import Tip
from farebox.payments.watching import BEHIND_US, Rounds, health_of
from tests.payments.desk import Desk


class OddWatcher:
    """Looks at a chain that at times says numbers no chain has."""

    name: str = "odd"
    pause_s: float = 1.0
    is_odd = False

    async def look(self, now_us: int) -> Tip:
        if self.is_odd:
            raise OverflowError("a block of the next millennium")
        return Tip(1, "a", now_us)

    async def close(self) -> None:
        pass


async def test_nonsense_that_nobody_had_thought_of_is_told_to_those_who_look_on(desk: Desk) -> None:
    warnings: list[str] = []
    watcher = OddWatcher()
    rounds = Rounds(desk.store, watcher, lambda event, **_fields: warnings.append(event))
    await rounds.go(desk.now_us)
    watcher.is_odd = True
    for _ in range(2):
        desk.now_us += BEHIND_US
        with pytest.raises(OverflowError):  # a job tells it
            await rounds.go(desk.now_us)
    (health,) = await health_of(desk.store)
    assert health.error == "OverflowError: a block of the next millennium"
    assert health.is_behind(desk.now_us)
    assert await desk.incidents() == ["watcher_behind"]
    watcher.is_odd = False
    await rounds.go(desk.now_us)
    assert (await health_of(desk.store))[0].error is None
    assert warnings == ["watcher_failing", "watcher_well_again"]
