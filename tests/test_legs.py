"""A long run that was ended in the middle goes on with its next leg, and tells what all of them showed."""

from collections import Counter
from pathlib import Path

import pytest

from tests.legs import Journey, Leg, Seen


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_run_that_was_ended_goes_on_with_its_next_leg() -> None:
    run: list[Leg] = []

    def walk(leg: Leg) -> Seen:
        run.append(leg)
        if len(run) == 3:
            raise KeyboardInterrupt
        return Seen(Counter(steps=leg.size), {"seconds": float(len(run))})

    with pytest.raises(KeyboardInterrupt):
        Journey("walk", "steps", 25, seed=7).go_on(10, "sqlite", walk)
    again = Journey("walk", "steps", 25, seed=None)
    assert (again.done, again.seed) == (20, 7)
    whole = again.go_on(10, "sqlite", walk)
    assert [(leg.size, leg.seed) for leg in run] == [(10, 7), (10, 1007), (5, 2007), (5, 2007)]
    assert str(whole) == "25 steps; seconds 4.00 at most"


def test_a_run_that_is_over_and_one_of_another_seed_or_length_begin_anew() -> None:
    def walk(leg: Leg) -> Seen:
        return Seen(Counter(steps=leg.size))

    def stumble(leg: Leg) -> Seen:
        if leg.seed != 7:
            raise KeyboardInterrupt
        return walk(leg)

    Journey("walk", "steps", 20, seed=7).go_on(10, "", walk)
    assert Journey("walk", "steps", 20, seed=7).done == 0
    with pytest.raises(KeyboardInterrupt):
        Journey("walk", "steps", 20, seed=7).go_on(10, "", stumble)
    assert Journey("walk", "steps", 20, seed=7).done == 10
    assert Journey("walk", "steps", 20, seed=8).done == 0
    assert Journey("walk", "steps", 30, seed=7).done == 0
