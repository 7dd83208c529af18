"""Progress as a person sees it: bars on a terminal, a plain line now and then elsewhere; and as
a program reads it: JSON lines."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TaskID, TextColumn
from rich.progress import Progress as Bars
from rich.table import Column
from rich.text import Text

from minicollab.errors import RunError
from minicollab.progress import Pace, duration

Clock = Callable[[], float]

_LOGGER = logging.getLogger("minicollab")
_LINE_EVERY = 15.0  # seconds at least from one plain line to the next
_EVENT_EVERY = 1.0  # seconds at least from one event to the next of the same work


class Display(logging.Handler):
    """Use as a context manager; the object itself is the `Watcher`. What minicollab's modules log
    meanwhile (level INFO and above) is shown as lines. `events`: a file to which the same is
    added as JSON, an object a line."""

    def __init__(
        self, stage: str, console: Console, events: Path | None = None, clock: Clock = time.monotonic
    ):
        super().__init__(logging.INFO)
        self._stage, self._console, self._events, self._clock = stage, console, events, clock
        self._file: TextIO | None = None
        self._bars = Bars(
            TextColumn("[bold]{task.description}"), BarColumn(10), MofNCompleteColumn(), _Words(clock),
            console=console, expand=True,
        )  # fmt: skip
        self._tasks: dict[str, TaskID] = {}
        self._works: dict[str, _Work] = {}
        self._written: dict[str, float] = {}
        self._said: float | None = None

    def __enter__(self) -> Display:
        if self._events:
            with self._told():
                self._file = open(self._events, "a", encoding="utf-8", buffering=1)
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
        if self._file:
            with suppress(OSError):  # of a line that could not be written, which was told
                self._file.close()

    def emit(self, record: logging.LogRecord) -> None:
        self._line(f"{self._stage}: {record.getMessage()}")
        self._event(message=record.getMessage())

    def __call__(self, what: str, done: float, total: float, **figures: float) -> None:
        now = self._clock()
        work = self._works.setdefault(what, _Work(now, done, total))
        work.tell(now, done, total, figures)
        if self._console.is_terminal:
            if what not in self._tasks:
                self._tasks[what] = self._bars.add_task(f"{self._stage}: {what}", total=total, work=work)
            self._bars.update(self._tasks[what], completed=done, total=total)
        elif self._said is None or now - self._said >= _LINE_EVERY:
            self._said = now
            told = [f"{what} {_amount(done)}/{_amount(total)}", *work.words(now)]
            self._line(f"{self._stage}: {', '.join(told)}")
        if done >= total or now - self._written.get(what, float("-inf")) >= _EVENT_EVERY:
            self._written[what] = now
            left = work.pace.left(now)
            self._event(what=what, done=done, total=total, seconds_left=left, **figures)

    def _line(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _event(self, **told: Any) -> None:
        if self._file:
            event = {"time": time.time(), "stage": self._stage} | told
            rounded = {k: round(v, 3) if isinstance(v, float) else v for k, v in event.items()}
            with self._told():
                self._file.write(json.dumps(rounded, ensure_ascii=False) + "\n")

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RunError(
                f"events cannot be written to {self._events}: {error.strerror}", "Name another file."
            ) from None


class _Work:
    """A piece of work as far as it was told, and what a person wants to know of it."""

    def __init__(self, now: float, done: float, total: float):
        self.pace = Pace(now, done, total)
        self._done, self._total = done, total
        self._figures: Mapping[str, float] = {}
        self._before: Mapping[str, float] = {}  # the figures when something was first computed

    def tell(self, now: float, done: float, total: float, figures: Mapping[str, float]) -> None:
        self.pace.tell(now, done, figures.get("cache_hits", 0), figures.get("cache_misses", 0))
        self._done, self._total, self._figures = done, total, figures
        if self.pace.begun == now:
            self._before = figures

    def words(self, now: float) -> list[str]:
        figures, words = self._figures, []
        if candidates := self._per_second("candidates", now):
            words.append(f"{60 * candidates:.1f} candidates/min")
        if tokens := self._per_second("generated_tokens", now):
            words.append(f"{tokens:.0f} tokens/s")
        if step := figures.get("seconds_per_step"):
            words.append(f"{1 / step:.2g} steps/s")
        if "loss" in figures:
            words.append(f"loss {figures['loss']:.2f}")
        if means := [f"{name[3:]} {mean:.2f}".strip() for name, mean in figures.items() if name[:2] == "mr"]:
            words.append(f"MR {', '.join(means)}")
        if hits := figures.get("cache_hits"):
            words.append(f"{hits / (hits + figures['cache_misses']):.0%} from the cache")
        left = self.pace.left(now)
        if left is not None and self._done < self._total:
            words.append(f"about {duration(left)} left")
        return words

    def _per_second(self, figure: str, now: float) -> float:
        """How much of it was added in a second, since something is computed."""
        spent = now - self.pace.begun
        return (self._figures.get(figure, 0) - self._before.get(figure, 0)) / spent if spent else 0.0


class _Words(ProgressColumn):
    """What there is to know of a bar's work, the last first: a narrow terminal cuts the rest off."""

    def __init__(self, clock: Clock):
        super().__init__(Column(ratio=1, no_wrap=True, overflow="ellipsis"))
        self._clock = clock

    def render(self, task: Task) -> Text:
        work: _Work = task.fields["work"]
        *figures, last = work.words(self._clock()) or [""]
        return Text(", ".join([last, *figures]))


def _amount(number: float) -> str:
    return f"{number / 1e6:.0f}M" if number >= 1e6 else f"{int(number)}"
