"""Long runs that can be ended and taken up again: each is a row of legs, and what a leg showed is kept when it ends."""

import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Self

KEPT: Final = Path(".soak")
_SEEDS_APART: Final = 1_000
"""A leg may use as many seeds of its own: one for each short life in it."""
_TELL_EVERY_S: Final = 5.0

Tell = Callable[[int], None]
"""Is told how much of a leg is done."""


@dataclass
class Seen:
    """What came of a leg, or of several: counts, and the greatest of what was measured."""

    counts: Counter[str] = field(default_factory=Counter)
    most: dict[str, float] = field(default_factory=dict)

    def add(self, other: Self) -> None:
        self.counts.update(other.counts)
        for what, value in other.most.items():
            self.most[what] = max(value, self.most.get(what, value))

    def __str__(self) -> str:
        parts = [f"{count:,} {what}" for what, count in self.counts.items()]
        return "; ".join([*parts, *(f"{what} {value:.2f} at most" for what, value in self.most.items())])


@dataclass(frozen=True)
class Leg:
    size: int
    seed: int
    kind: str
    """Whose books: one of KINDS, or nothing where there is no choice."""
    tell: Tell


class Journey:
    """One long run on its way: how much of it is done, and what that showed."""

    def __init__(self, name: str, noun: str, total: int, seed: int | None) -> None:
        self._path = KEPT / f"{name}.json"
        self.noun, self.total = noun, total
        self.legs: list[dict[str, Any]] = []
        kept = json.loads(self._path.read_text()) if self._path.exists() else None
        if kept and kept["total"] == total and seed in {None, kept["seed"]} and self._sum(kept["legs"]) < total:
            self.seed, self.legs = kept["seed"], kept["legs"]
        else:
            self.seed = random.SystemRandom().getrandbits(32) if seed is None else seed

    @property
    def done(self) -> int:
        return self._sum(self.legs)

    def go_on(self, leg_size: int, kind: str, run: Callable[[Leg], Seen]) -> Seen:
        """Run what is left, leg by leg; answers what all of it showed. A leg that fails raises, and is not kept."""
        print(f"seed {self.seed}" + (f", {self.done:,} {self.noun} done before" if self.legs else ""), flush=True)
        while self.done < self.total:
            size = min(leg_size, self.total - self.done)
            seed = (self.seed + _SEEDS_APART * len(self.legs)) % 2**32
            seen = run(Leg(size, seed, kind, self._progress()))
            at = datetime.now(UTC).isoformat(timespec="seconds")
            self.legs.append({"size": size, "seed": seed, "at": at, "counts": seen.counts, "most": seen.most})
            self._keep()
        whole = Seen()
        for leg in self.legs:
            whole.add(Seen(Counter(leg["counts"]), leg["most"]))
        return whole

    def _keep(self) -> None:
        KEPT.mkdir(exist_ok=True)
        whole = json.dumps({"total": self.total, "seed": self.seed, "legs": self.legs}, indent=1)
        partial = self._path.with_suffix(".part")
        partial.write_text(whole)
        partial.replace(self._path)

    def _progress(self) -> Tell:
        began = told = time.monotonic()
        before, total, noun = self.done, self.total, self.noun

        def tell(done: int) -> None:
            nonlocal told
            now = time.monotonic()
            if done and now - told >= _TELL_EVERY_S:
                told = now
                left = (now - began) / done * (total - before - done)
                print(f"  {before + done:,} of {total:,} {noun}, about {left:.0f} s left", file=sys.stderr, flush=True)

        return tell

    @staticmethod
    def _sum(legs: list[dict[str, Any]]) -> int:
        return sum(int(leg["size"]) for leg in legs)
