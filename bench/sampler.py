"""Farebox with a sampler in it: `python bench/sampler.py OUT serve --config FILE` does what `farebox serve` does.

A thousand times per second of CPU the kernel interrupts the process, and the CPU time that the main thread has used
since the last time is booked to the line at work: what C code and the kernel did for a line is that line's. The rest of
the process's time is other threads'. In the end OUT has it all as JSON.
"""

import atexit
import json
import signal
import sys
import time
from collections import defaultdict
from pathlib import Path
from types import CodeType, FrameType
from typing import Final

from farebox.cli import main

EVERY_S: Final = 0.001


class Sampler:
    """Books CPU time by function and line."""

    def __init__(self) -> None:
        self.by_line: defaultdict[tuple[CodeType | None, int, str], float] = defaultdict(float)
        self.others_s = 0.0
        self._main_s, self._all_s = time.thread_time(), time.process_time()

    def look(self, _: int, frame: FrameType | None) -> None:
        """Book what was used since the last look to the innermost line of ours."""
        main_s, all_s = time.thread_time(), time.process_time()
        inner = frame.f_code.co_name if frame else ""
        while frame is not None and "/farebox/" not in frame.f_code.co_filename:
            frame = frame.f_back
        where = (frame.f_code, frame.f_lineno, inner) if frame is not None else (None, 0, inner)
        self.by_line[where] += main_s - self._main_s
        self.others_s += max(0.0, (all_s - self._all_s) - (main_s - self._main_s))
        self._main_s, self._all_s = main_s, all_s

    def write(self, out: Path) -> None:
        """Write all of it. Lines: file below the package, function, line, the function below it, seconds."""
        lines = [
            (
                code.co_filename.rpartition("/farebox/")[2] if code else "",
                code.co_qualname if code else "",
                line,
                inner,
                s,
            )
            for (code, line, inner), s in self.by_line.items()
        ]
        out.write_text(json.dumps({"lines": lines, "others_s": self.others_s}))


def begin(out: Path) -> None:
    """Sample from now on; write when the process ends."""
    sampler = Sampler()
    signal.signal(signal.SIGPROF, sampler.look)
    signal.siginterrupt(signal.SIGPROF, False)  # noqa: FBT003
    signal.setitimer(signal.ITIMER_PROF, EVERY_S, EVERY_S)
    atexit.register(sampler.write, out)


if __name__ == "__main__":
    begin(Path(sys.argv[1]))
    main(sys.argv[2:])
