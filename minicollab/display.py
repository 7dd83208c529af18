"""Progress as a person sees it: bars on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import logging
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

_LOGGER = logging.getLogger("minicollab")
_LINE_EVERY = 15.0  # seconds between two plain lines about the same work


class Display(logging.Handler):
    """Use as a context manager; the object itself is the `Progress` callable. What minicollab's
    modules log meanwhile (level INFO and above) is shown as lines."""

    def __init__(self, stage: str, console: Console):
        super().__init__(logging.INFO)
        self._stage, self._console = stage, console
        self._bars = Bars(
            TextColumn("[bold]{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TextColumn("left"), TimeRemainingColumn(), console=console,
        )  # fmt: skip
        self._tasks: dict[str, TaskID] = {}
        self._begun: dict[str, float] = {}
        self._said: dict[str, float] = {}

    def __enter__(self) -> Display:
        _LOGGER.setLevel(logging.INFO)
        _LOGGER.addHandler(self)
        if self._console.is_terminal:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _LOGGER.removeHandler(self)
        if self._console.is_terminal:
            self._bars.stop()

    def emit(self, record: logging.LogRecord) -> None:
        self._line(f"{self._stage}: {record.getMessage()}")

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
        left = f", about {duration(spent * (total - done) / done)} left" if 0 < done < total and spent else ""
        self._line(f"{self._stage}: {what} {_amount(done)}/{_amount(total)}{left}")

    def _line(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)


def _amount(number: float) -> str:
    return f"{number / 1e6:.0f}M" if number >= 1e6 else f"{number:.0f}"


def duration(seconds: float) -> str:
    """In words, to the second or minute."""
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
