"""Contestants, each in a process of its own, that do a piece of work when they are told to.

The parent sends one JSON object a line and reads one back, so only one contestant works at a
time; time is taken inside the contestant, and the processor time that the others use meanwhile
is measured (`idle`), so that nobody's waiting threads disturb whose turn it is.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).parents[2]
BENCH_PYTHON = str(ROOT / ".venv-bench/bin/python")  # sees the project's packages too
Answer = dict[str, Any]


class Contestant:
    """A module of this folder, run as a process with these arguments."""

    def __init__(self, module: str, *arguments: str, python: str = sys.executable):
        self.name = module
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the process runs
        self._process = subprocess.Popen(
            [python, "-m", f"benchmarks.engine.{module}", *arguments],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True,
        )  # fmt: skip

    def __call__(self, do: str, **what: Any) -> Answer:
        """Have a piece of work done. RuntimeError with the contestant's own words if it fails."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps({"do": do, **what}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            raise RuntimeError(f"{self.name} died:\n{self._log.read().decode(errors='replace')[-2000:]}")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"{self.name}: {do} failed:\n{answer['error']}")
        return dict(answer)

    @property
    def cpu_seconds(self) -> float:
        """Processor time that its process has used so far."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def __enter__(self) -> Contestant:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()


Turn = Callable[[Contestant, int], Answer]


def in_turns(
    contestants: Sequence[Contestant], repeat: int, work: Turn, warm_up: int = 1
) -> list[list[Answer]]:
    """`work(contestant, number)` by each contestant in turn, `repeat` times, numbers from 0; the
    first `warm_up` rounds are extra and not counted. Returns the answers of each contestant; `idle`
    in them is the processor time in seconds that the other contestants used meanwhile."""
    answers: list[list[Answer]] = [[] for _ in contestants]
    for number in range(warm_up + repeat):
        for contestant, mine in zip(contestants, answers, strict=True):
            others = [c for c in contestants if c is not contestant]
            before = sum(c.cpu_seconds for c in others)
            answer = work(contestant, number)
            answer["idle"] = round(sum(c.cpu_seconds for c in others) - before, 2)
            if number >= warm_up:
                mine.append(answer)
    return answers


def serve(work: dict[str, Callable[..., Answer]]) -> None:
    """The contestant's side: do what each line of stdin says until it ends.

    Libraries print what they like: their stdout becomes stderr.
    """
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out:
        os.dup2(2, 1)
        for line in sys.stdin:
            what = json.loads(line)
            try:
                answer = work[what.pop("do")](**what)
            except Exception:
                answer = {"error": traceback.format_exc()}
            out.write(json.dumps(answer) + "\n")
            out.flush()
