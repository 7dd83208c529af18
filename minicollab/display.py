"""Progress as a person sees it: bars on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars

_LINE_EVERY = 15.0  # seconds between two plain lines about the same work


class Display:
    """Use as a context manager; the object itself is the `Progress` callable."""

    def __init__(self, stage: str, console: Console):
        self._stage, self._console = stage, console
        self._bars = Bars(
            TextColumn("[bold]{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TextColumn("left"), TimeRemainingColumn(), console=console,
        )  # fmt: skip
        self._tasks: dict[str, TaskID] = {}
        self._begun: dict[str, float] = {}
        self._said: dict[str, float] = {}

    def __enter__(self) -> Display:
        if self._console.is_terminal:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._bars.stop()

    def __call__(self, what: str, done: float, total: float) -> None:
        if self._console.is_terminal:
            if what not in self._tasks:
                self._tasks[what] = self._bars.add_task(f"{self._stage}: {what}", total=total)
            self._bars.update(self._tasks[what], completed=done, total=total)
        else:
            self._say(what, done, total)

    def _say(self, what: str, done: float, total: float) -> None:
        now = time.monotonic()
        begun = self._begun.setdefault(what, now)
        if done < total and now - self._said.get(what, 0) < _LINE_EVERY:
            return
        self._said[what] = now
        spent = now - begun
        left = (
            f", about {_duration(spent * (total - done) / done)} left" if 0 < done < total and spent else ""
        )
        self._console.print(
            f"{self._stage}: {what} {_amount(done)}/{_amount(total)}{left}", highlight=False, markup=False
        )


def _amount(number: float) -> str:
    return f"{number / 1e6:.0f}M" if number >= 1e6 else f"{number:.0f}"


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
