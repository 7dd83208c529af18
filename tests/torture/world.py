"""Where it happens: a folder, a small real recipe, the command line, and an undisturbed run."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from minicollab.cache.store import DATABASE, TALLY
from minicollab.models import user_cache
from tests.torture.findings import tidied

REPO = Path(__file__).resolve().parents[2]
QUICKSTART = REPO / "recipes/quickstart/smollm2.yaml"
RESULTS: Mapping[str, tuple[str, ...]] = {
    "simulate": ("rollouts.jsonl", "pairs.jsonl"),
    "train": ("adapter/adapter_model.safetensors",),
    "export": ("export/adapter.gguf", "export/model-q8_0.gguf"),
    "eval": ("eval_conversations.jsonl", "eval.json"),
}
STAGES = tuple(RESULTS)
_THREADS = 2  # their number decides how sums round, and others may confine us to fewer cores meanwhile


@dataclass(frozen=True)
class Outcome:
    """How a command ended; `line` is what it said to the person, without the program's name."""

    code: int
    stdout: str
    stderr: str

    @property
    def line(self) -> str:
        return " / ".join(_ours(self.stderr))

    @property
    def refused(self) -> bool:
        """Ended in the way of a command that can't: one line and an exit code of its own."""
        return self.code > 1 and len(_ours(self.stderr)) == 1 and "Traceback" not in self.stderr

    @property
    def told(self) -> str:
        return f"exit {self.code}: “{self.line}”" if self.code else "done"


def _ours(stderr: str) -> list[str]:
    said = (line.partition("minicollab: ") for line in stderr.splitlines())
    return [line for before, found, line in said if found and not before]


@dataclass(frozen=True)
class Whole:
    """A run that nobody disturbed, its cache, and the seconds from the end of the stage before
    (or the start) to the end of each stage."""

    run: Path
    cache: Path
    seconds: Mapping[str, float]


class World:
    """`folder` is empty and of our own. All randomness comes from `seed`. `sections` replace those of
    the recipe."""

    def __init__(self, folder: Path, seed: int = 0, **sections: Any):
        self.folder = folder.resolve()
        self.chance = random.Random(seed)
        self._started: list[subprocess.Popen[str]] = []
        self.recipe = self.folder / "small.yaml"
        self.recipe.write_text(yaml.safe_dump(_small() | sections), "utf-8")
        # Of the person's own cache only the models are used: they would be fetched again.
        own = self.folder / "own/minicollab"
        own.mkdir(parents=True)
        models = user_cache() / "models"
        models.mkdir(exist_ok=True)
        (own / "models").symlink_to(models)

    def start(self, cache: Path, *arguments: Any, stderr: Any = subprocess.PIPE) -> subprocess.Popen[str]:
        """The command line at work, in a process group of its own."""
        where = {
            "PYTHONPATH": str(REPO),
            "XDG_CACHE_HOME": str(self.folder / "own"),
            "OMP_NUM_THREADS": str(_THREADS),
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "minicollab", *map(str, arguments)],
            env=os.environ | where | {"MINICOLLAB_CACHE": str(cache)},
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            start_new_session=True,
        )
        self._started.append(process)
        return process

    def close(self) -> None:
        """Kill what still runs: Ctrl-C here is not heard there."""
        for process in self._started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def run(self, cache: Path, *arguments: Any) -> Outcome:
        return self.end(self.start(cache, *arguments))

    def end(self, process: subprocess.Popen[str]) -> Outcome:
        """Wait for a command."""
        stdout, stderr = process.communicate()
        return Outcome(process.returncode, stdout, tidied(stderr or "", self.folder))

    @cached_property
    def whole(self) -> Whole:
        """Made at the first use. Its stages are timed as the kills will be: by the journal."""
        run, cache = self.folder / "whole/run", self.folder / "whole/cache"
        seconds: dict[str, float] = {}
        process = self.start(cache, "run", self.recipe, "--out", run, stderr=subprocess.DEVNULL)
        for stage in STAGES:
            begin = time.monotonic()
            under_way_for(math.inf, stage, run, process)
            seconds[stage] = time.monotonic() - begin
        if self.end(process).code:
            again = self.run(cache, "run", self.recipe, "--out", run)
            raise RuntimeError(f"the undisturbed run did not end well: {again.told}")
        return Whole(run, cache, seconds)

    def copy_results(self, run: Path, before: str) -> None:
        """Puts what the undisturbed run's stages made before the stage `before` into `run`."""
        names = {Path(name).parts[0] for stage in STAGES[: STAGES.index(before)] for name in RESULTS[stage]}
        for name in names:
            source = self.whole.run / name
            (shutil.copytree if source.is_dir() else shutil.copy2)(source, run / name)

    def differing(self, run: Path, *stages: str) -> list[str]:
        """The results of these stages (all, if none is named) that the undisturbed run has otherwise."""
        names = [name for stage in stages or STAGES for name in RESULTS[stage]]
        return [name for name in names if not _same(run / name, self.whole.run / name)]


def _small() -> dict[str, Any]:
    """The quickstart's recipe, small: SmolLM2 in all roles. Deterministic, since only then is an
    answer independent of what else was computed at the time, and the bytes are equal."""
    raw: dict[str, Any] = yaml.safe_load(QUICKSTART.read_text("utf-8"))
    return raw | {
        "name": "small",
        "models": {"policy": "smollm2-135m-instruct"},
        "tasks": {"path": str(QUICKSTART.parent / "tasks.jsonl"), "train": 2, "eval": 1},
        "policy": {"max_tokens": 24},
        "pairs": {"min_gap": 0.0},
        "train": {
            "epochs": 1, "batch_size": 1, "save_steps": 1, "learning_rate": 1e-3, "sft_weight": 1.0,
            "lora_r": 8,
        },
        "export": {"quantization": "q8_0"},
        "eval": {"samples": 1, "exchanges": 2},
        "engine": raw["engine"] | {"deterministic": True, "threads": _THREADS},
    }  # fmt: skip


def journal(run: Path) -> dict[str, Any]:
    """The stages that run.json tells of; none as long as it is not there."""
    try:
        return dict(json.loads((run / "run.json").read_text("utf-8"))["stages"])
    except FileNotFoundError:
        return {}


def under_way_for(seconds: float, stage: str, run: Path, process: subprocess.Popen[str]) -> bool:
    """Waits until `stage` was the next to be done for so long. False if it was done before."""
    begin = None
    while process.poll() is None:
        done = journal(run)
        if stage in done:
            return False
        if all(before in done for before in STAGES[: STAGES.index(stage)]):
            begin = begin or time.monotonic()
            if time.monotonic() - begin >= seconds:
                return True
        time.sleep(0.01)
    return False


def wait(until: Callable[[], bool], seconds: float = 120) -> None:
    """Until something is so. TimeoutError if it never is."""
    end = time.monotonic() + seconds
    while not until():
        if time.monotonic() > end:
            raise TimeoutError("it did not come to that")
        time.sleep(0.01)


def answers(cache: Path) -> dict[str, float]:
    """The keys of all answers in a store and when they were stored, read beside whoever uses it."""
    if not (cache / DATABASE).exists():
        return {}
    with closing(sqlite3.connect(f"file:{cache / DATABASE}?mode=ro", uri=True)) as rows:
        if not rows.execute("SELECT 1 FROM sqlite_master WHERE name = 'Cache'").fetchall():
            return {}
        found = rows.execute("SELECT key, store_time, value FROM Cache WHERE key != ?", (TALLY,))
        return {key: stored for key, stored, value in found if _is_answer(value)}


def _is_answer(sealed: str | bytes) -> bool:
    # What is remembered of a file is written anew when the file is.
    return isinstance(sealed, bytes) or '"kind":"file"' not in sealed


def _same(one: Path, other: Path) -> bool:
    return one.is_file() and one.read_bytes() == other.read_bytes()
