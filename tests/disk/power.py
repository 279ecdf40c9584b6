"""Power cuts at random moments of recorded lives of the books, each followed by the check of what is there then."""

import asyncio
import random
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tests.cluster import memory
from tests.disk.disk import WAYS, Disk
from tests.disk.oracle import Lost, check_after_cut, check_spool_after_cut
from tests.disk.recording import Recording, record, record_spool

CUTS_EACH: Final = 30
"""Power cuts of one recording; a longer run makes more recordings."""
OPERATIONS: Final = 600
_CHECKPOINTS: Final = (1000, 120, 40)
"""Pages of the log after which it is brought into the database: SQLite's own, and fewer, to see more of it."""
SETTLES: Final = 240
_FILES: Final = {"books.db": "the database", "books.db-wal": "the log"}
_FAILING: Final = "error=EIO:when={}+{}"


class Power:
    """One run over SQLite books. With a `synchronous` less than FULL, what is lost is counted and no failure."""

    def __init__(self, seed: int, synchronous: str = "FULL") -> None:
        self.seed = seed
        self.synchronous = synchronous
        self.seen: Counter[str] = Counter()
        self.lost = 0
        """Cuts after which something that had been answered was not there."""
        self.recordings = 0

    async def run(self, cuts: int, on_progress: Callable[[int], None] | None = None) -> None:
        """Make so many cuts. Each recording has a seed of its own, by which it can be repeated, named by a failure.

        Every other one is made on a disk whose syncs fail now and then.
        """
        done = 0
        while done < cuts:
            seed = self.seed + self.recordings
            choices = random.Random(seed)
            with tempfile.TemporaryDirectory(prefix="farebox-power-", dir=memory()) as directory:
                faults = self._faults(choices) if seed % 2 else ""
                recording = await self._record(Path(directory), seed, choices, faults)
                self._count(recording)
                disk = Disk(recording, Path(directory))
                for _ in range(min(CUTS_EACH, cuts - done)):
                    await self._cut(disk, recording, choices, Path(directory), seed)
                    done += 1
                    if on_progress:
                        on_progress(done)
            self.recordings += 1

    def _faults(self, choices: random.Random) -> str:
        return _FAILING.format(choices.randint(3, 40), choices.randint(9, 25))

    async def _record(self, directory: Path, seed: int, choices: random.Random, faults: str) -> Recording:
        """Record a life of the books."""
        return await record(
            directory,
            seed,
            operations=OPERATIONS,
            synchronous=self.synchronous,
            checkpoint=choices.choice(_CHECKPOINTS),
            faults=faults,
        )

    async def _check(self, rebuilt: Path, recording: Recording, moment: int, choices: random.Random) -> None:
        """See what is there after a cut."""
        books = rebuilt / "data" / "books.db"
        if choices.random() < 0.5 and await asyncio.to_thread(books.exists):
            # what was in the shared memory is worth nothing
            books.with_name(books.name + "-shm").write_bytes(choices.randbytes(32_768))
            self.seen["garbage in the shared memory"] += 1
        await check_after_cut(books, recording.told, moment, self.seen)

    def _count(self, recording: Recording) -> None:
        self.seen["commands"] += sum("sent" in line for _, line in recording.told)
        self.seen["commands not answered"] += sum("unknown" in line for _, line in recording.told)
        for event in recording.events:
            if event.name in {"fsync", "fdatasync"}:
                of = _FILES.get(Path(event.path).name, "a directory")
                of = "a spool" if event.path.endswith(".spool") else of
                self.seen["syncs that failed" if event.returned else f"syncs of {of}"] += 1

    async def _cut(self, disk: Disk, recording: Recording, choices: random.Random, directory: Path, seed: int) -> None:
        """Cut the power just after something was told, when most is at stake, or at any moment."""
        moments = [moment for moment, line in recording.told if line.keys() & {"done", "kept"}]
        if not moments or choices.random() < 0.5:
            moments = [event.began for event in recording.events]
        moment = choices.choice(moments) + 1
        way = choices.choice(WAYS)
        doubtful = disk.cut(moment, way, choices, directory / "rebuilt")
        self.seen[f"cuts that left {way}"] += 1
        self.seen["changes that might be lost"] += doubtful
        try:
            await self._check(directory / "rebuilt", recording, moment, choices)
        except Exception as error:
            error.add_note(f"power {seed}: a cut at {moment} of {recording.length} that left {way}")
            if not isinstance(error, Lost) or self.synchronous == "FULL":
                raise
            self.lost += 1


class SpoolPower(Power):
    """One run over a spool, which has what the books could not take."""

    def _faults(self, choices: random.Random) -> str:
        return _FAILING.format(choices.randint(1, 4), choices.randint(2, 6))  # of each of several threads

    async def _record(self, directory: Path, seed: int, choices: random.Random, faults: str) -> Recording:  # noqa: ARG002
        """Record what three processes do with it, one after the other."""
        return await record_spool(directory, seed, settles=SETTLES, faults=faults)

    async def _check(self, rebuilt: Path, recording: Recording, moment: int, choices: random.Random) -> None:  # noqa: ARG002
        await check_spool_after_cut(rebuilt / "data" / "spool", recording.told, moment, self.seen)
