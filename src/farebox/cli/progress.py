"""How far a long work has come: a bar for people, a line a stage for logs, an event for scripts."""

import sys
import time
from typing import Any, Final

import click

from farebox.cli.common import Invocation, print_json

_PAUSE_S: Final = 1.0


class Progress:
    """Shows stages as they are told of. On a terminal each is a bar; scripts get an event a second at most."""

    def __init__(self, invocation: Invocation) -> None:
        self._as_json = invocation.as_json
        self._bar_wanted = sys.stderr.isatty() and not invocation.as_json
        self._bar: Any = None
        self._stage = ""
        self._done = 0
        self._told_at = 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Tell that `done` of `total` are done. A stage ends when another one begins, or with the last of it."""
        if stage != self._stage:
            self.close()
            self._stage, self._done, self._told_at = stage, 0, 0.0
        if self._bar_wanted:
            self._draw(done, total)
        elif self._as_json:
            now = time.monotonic()
            if done >= total or now - self._told_at >= _PAUSE_S:
                self._told_at = now
                print_json({"event": "progress", "stage": stage, "done": done, "total": total})
        elif done >= total:
            click.echo(f"{stage}: {total:,}", err=True)
        self._done = done

    def close(self) -> None:
        """End the stage that is under way."""
        if self._bar is not None:
            self._bar.render_finish()
            self._bar = None

    def _draw(self, done: int, total: int) -> None:
        if self._bar is None:
            self._bar = click.progressbar(length=total, label=f"{self._stage:<24}", file=sys.stderr)
            self._bar.render_progress()
        self._bar.update(done - self._done)
