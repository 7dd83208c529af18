"""What is said of work under way: time left that is true, few lines, events for programs."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import selectors
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from tiny_gguf import write_tiny

from minicollab.cache.engine import CachedEngine
from minicollab.cache.store import Store
from minicollab.cast import Cast, Policy
from minicollab.display import Display
from minicollab.engine.base import Completion, Prompt, Sampling
from minicollab.engine.scripted import ScriptedEngine
from minicollab.judge import Judge
from minicollab.pairs import converse_all
from minicollab.progress import Pace, Watcher, duration, metered
from minicollab.recipe import Recipe
from minicollab.schema import Task
from minicollab.simulator import Simulator

TASKS = [Task(f"t{i}", f"make card {i}", ("it has a zebra", "it has a walrus")) for i in range(24)]


# Time left


def wrong(moments: Sequence[tuple[float, float | None]], end: float) -> list[tuple[float, float | None]]:
    """When a time left was missing, or off by more than a quarter (or ten seconds, near the end),
    after the first tenth."""
    return [
        (now, left)
        for now, left in moments
        if 0.1 * end <= now < end and (left is None or abs(left - (end - now)) > max(0.25 * (end - now), 10))
    ]


_SLOWER = pytest.mark.xfail(strict=True, reason="from 597 s on it was slower by 30%, which no one foresees")


@pytest.mark.parametrize("name", ["resume", "eval", pytest.param("simulate", marks=_SLOWER)])
def test_time_left_of_recorded_runs(name: str, repo: Path) -> None:
    """Rebuilt from when each answer was stored in real runs, one state a second: seconds, done, hits,
    misses. Which judgement belonged to which future is not stored: they are taken in order."""
    run = json.loads((repo / "tests" / "data" / "pace.json").read_text("utf-8"))[name]
    pace, moments = Pace(0, 0, run["total"]), []
    for second, done, hits, misses in run["ticks"]:
        pace.tell(second, done, hits, misses)
        moments.append((second, pace.left(second)))
    assert len(moments) > 50 and wrong(moments, run["ticks"][-1][0]) == []


class VirtualLoop(asyncio.SelectorEventLoop):
    """Where nothing is to be done before some moment, it is that moment."""

    def __init__(self) -> None:
        loop, self.now = self, 0.0

        class Selector(selectors.DefaultSelector):  # type: ignore[misc,valid-type]
            def select(self, timeout: float | None = None) -> Any:
                loop.now += timeout or 0
                return super().select(0)

        super().__init__(Selector())

    def time(self) -> float:
        return self.now


class BatchEngine(ScriptedEngine):
    """Answers what waits, eight at most in a batch, which takes 0.5 s and 0.1 s for each of them."""

    def __init__(self) -> None:
        super().__init__(lambda r: f"a reply of some words {len(self.requests)}?", lambda r: [-0.5, -1.0])
        self._waiting: list[asyncio.Future[None]] = []
        self._busy = False

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Completion:
        await self._turn()
        return await super().generate(prompt, sampling)

    async def score(self, prompt: Prompt, continuations: Sequence[str]) -> list[float]:
        await self._turn()
        return await super().score(prompt, continuations)

    async def _turn(self) -> None:
        loop = asyncio.get_running_loop()
        self._waiting.append(turn := loop.create_future())
        if not self._busy:
            self._busy = True
            loop.call_soon(self._step)
        await turn

    def _step(self) -> None:
        batch, self._waiting = self._waiting[:8], self._waiting[8:]
        self._busy = bool(batch)
        if batch:
            asyncio.get_running_loop().call_later(0.5 + 0.1 * len(batch), self._answer, batch)

    def _answer(self, batch: list[asyncio.Future[None]]) -> None:
        for turn in batch:
            turn.set_result(None)
        asyncio.get_running_loop().call_later(0.01, self._step)  # what they ask next waits by then


class Watched:
    """A `Watcher` that notes, at every moment, the last that was told and the time left."""

    def __init__(self, loop: VirtualLoop):
        self._loop = loop
        self.told: list[tuple[float, dict[str, float]]] = []
        self.done: dict[float, float] = {}
        self.moments: dict[float, float | None] = {}

    def __call__(self, what: str, done: float, total: float, **figures: float) -> None:
        now = self._loop.time()
        if not self.told:
            self._pace = Pace(now, done, total)
        self._pace.tell(now, done, figures["cache_hits"], figures["cache_misses"])
        self.told.append((done, figures))
        self.done[now] = done
        self.moments[now] = self._pace.left(now)


def recipe() -> Recipe:
    return Recipe.model_validate(
        {
            "name": "t",
            "models": {"policy": "p"},
            "tasks": {"path": "t.jsonl"},
            "propose": {"candidates": 3},
            "simulate": {"exchanges": 2, "futures": 2, "window": 1},
            "judge": {"questions": {"asks": {"ask": "INTERACTIVE", "scope": "reply"}}},
            "engine": {"concurrent_tasks": 4},
        }
    )


def watched(folder: Path, play: Callable[[Cast, Watcher], Any]) -> Watched:
    """What was told while it played with one model in every role, on a clock of its own."""
    loop, store, engine = VirtualLoop(), Store(folder), BatchEngine()
    options, cached = recipe(), CachedEngine(engine, store)
    cast = Cast(
        Policy(cached, options.policy), Simulator(cached, options.simulator, 0), Judge(cached, options.judge)
    )
    watcher = Watched(loop)
    try:
        loop.run_until_complete(play(cast, metered(watcher, [engine.usage], store)))
    finally:
        store.close()
        loop.close()
    return watcher


def simulated(tasks: Sequence[Task]) -> Callable[[Cast, Watcher], Any]:
    async def play(cast: Cast, progress: Watcher) -> None:
        async for _ in converse_all(recipe(), cast, tasks, progress):
            pass

    return play


def test_time_left_of_conversations_that_end_in_bursts(tmp_path: Path) -> None:
    found = watched(tmp_path, simulated(TASKS))
    moments = list(found.moments.items())
    assert len(moments) > 10 and wrong(moments, moments[-1][0]) == []
    done = [done for done, _ in found.told]
    assert done == sorted(done) and done[0] == 0 and done[-1] == len(TASKS)
    candidates, figures = [figures["candidates"] for _, figures in found.told], found.told[-1][1]
    assert candidates[-1] == 6 * len(TASKS) and candidates == sorted(candidates)
    assert figures["cache_misses"] > 500 and 0 < figures["mr"] < 2


def test_time_left_where_the_cache_knows_the_first_half(tmp_path: Path) -> None:
    watched(tmp_path, simulated(TASKS[:12]))
    found = watched(tmp_path, simulated(TASKS))
    moments = list(found.moments.items())
    assert wrong(moments, moments[-1][0]) == []
    assert found.done[0] > 11  # before anything was computed


# What is shown


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def shown(clock: Clock, work: Callable[[Display], None], **how: Any) -> list[str]:
    out = io.StringIO()
    with Display("simulate", Console(file=out, **how), clock=clock) as display:
        work(display)
    return out.getvalue().splitlines()


def steps(clock: Clock, seconds: float) -> Iterator[int]:
    """40 steps, one in every so many seconds."""
    for step in range(41):
        yield step
        clock.now += seconds


def test_a_line_in_fifteen_seconds_at_most(clock: Clock) -> None:
    def work(display: Display) -> None:
        for what in ("merge", "quantize", "verify"):
            for step in steps(clock, 0.5):
                display(what, step, 40)

    lines = shown(clock, work)
    assert lines[0] == "simulate: merge 0/40" and len(lines) == 1 + 60 // 15
    assert lines[1] == "simulate: merge 30/40, about 5 s left"


def test_a_line_says_what_is_to_be_known(clock: Clock) -> None:
    def work(display: Display) -> None:
        display("conversations", 0, 40, candidates=0, cache_hits=0, cache_misses=0, generated_tokens=0)
        clock.now += 60
        figures = {"cache_hits": 10, "cache_misses": 30, "generated_tokens": 1200, "mr": 0.623}
        display("conversations", 10.6, 40, candidates=90, **figures)

    (_, line) = shown(clock, work)
    assert line.startswith(
        "simulate: conversations 10/40, 90.0 candidates/min, 20 tokens/s, MR 0.62, 25% from"
    )
    assert line.endswith("left")


def test_of_a_training_steps_and_loss_of_an_evaluation_the_arms(clock: Clock) -> None:
    def work(display: Display) -> None:
        clock.now += 15
        display("training", 3, 10, loss=0.5, seconds_per_step=4.0)
        clock.now += 15
        display("held-out conversations", 3, 10, mr_base=0.5, mr_trained=0.75)

    assert shown(clock, work) == [
        "simulate: training 3/10, 0.25 steps/s, loss 0.50",
        "simulate: held-out conversations 3/10, MR base 0.50, trained 0.75",
    ]


def test_work_that_is_none_at_all(clock: Clock) -> None:
    lines = shown(clock, lambda display: display("conversations", 0, 0, cache_hits=0, cache_misses=0))
    assert lines == ["simulate: conversations 0/0"]


def test_what_is_logged_is_a_line_of_its_own(clock: Clock) -> None:
    logged = shown(clock, lambda display: logging.getLogger("minicollab.x").info("on %d cores", 2))
    assert logged == ["simulate: on 2 cores"]


@pytest.mark.parametrize("width", [80, 120])
def test_bars_keep_to_one_row_of_the_terminal(clock: Clock, width: int) -> None:
    def work(display: Display) -> None:
        for step in steps(clock, 30):
            figures = {"cache_hits": 10, "cache_misses": 30 + step, "generated_tokens": 500 * step, "mr": 0.6}
            display("training conversations", step, 40, candidates=6 * step, **figures)
            if step == 20:
                break

    drawn = "".join(shown(clock, work, force_terminal=True, width=width, color_system=None))
    row = drawn.split("\x1b[2K")[-1].partition("\x1b")[0]
    assert "20/40" in row and "about 10 min left" in row and len(row) <= width


def test_events_are_lines_of_json(clock: Clock, tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"of": "the stage before"}\n')
    with Display("train", Console(file=io.StringIO()), path, clock) as display:
        logging.getLogger("minicollab.x").info("on 2 cores")
        for step in steps(clock, 0.25):
            display("training", step, 40, loss=1 / (1 + step))
    before, message, *rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert before == {"of": "the stage before"}
    assert (message["stage"], message["message"]) == ("train", "on 2 cores")
    assert [row["done"] for row in rows] == list(range(0, 41, 4))  # one a second, and the last
    assert rows[5] == rows[5] | {"what": "training", "total": 40, "seconds_left": 5.0, "loss": 0.048}
    assert rows[-1]["seconds_left"] == 0 and all(row["time"] > 1.7e9 for row in rows)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(12.4, "12 s"), (89, "89 s"), (100, "1.7 min"), (700, "12 min"), (5300, "88 min"), (9000, "2.5 h")],
)
def test_durations_are_short(seconds: float, words: str) -> None:
    assert duration(seconds) == words


# The command line, with a tiny real model


def command(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    repo = Path(__file__).resolve().parents[1]
    where = os.environ | {"PYTHONPATH": str(repo), "MINICOLLAB_CACHE": str(folder / "cache")}
    return subprocess.run(
        [sys.executable, "-m", "minicollab", *map(str, arguments)],
        cwd=folder, env=where, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.fixture
def tiny_recipe(tmp_path: Path) -> Path:
    raw = recipe().model_dump(exclude_none=True, include={"name", "propose", "judge", "engine"})
    raw["models"] = {"policy": str(write_tiny(tmp_path / "tiny.gguf", "chatml"))}
    raw["tasks"] = {"path": "tasks.jsonl", "train": 2, "eval": 1}
    raw["policy"], raw["simulator"] = {"max_tokens": 8}, {"style": "chat", "generation": {"max_tokens": 8}}
    raw["simulate"] = {"exchanges": 1, "futures": 1, "window": 1, "max_failures": 1.0}
    raw["engine"] |= {"context": 2048, "threads": 1}
    rows = [{"opening": task.opening, "details": list(task.details)} for task in TASKS[:3]]
    (tmp_path / "tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(raw), "utf-8")
    return tmp_path / "recipe.yaml"


def test_a_run_hands_its_events_on_to_its_stages(tiny_recipe: Path) -> None:
    folder = tiny_recipe.parent
    done = command(folder, "run", tiny_recipe, "--until", "simulate", "--events", "events.jsonl", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["simulate"]["tasks"] == 2  # nothing else is on standard output
    assert "simulate: the judge cannot judge: " in done.stderr
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text("utf-8").splitlines()]
    played = [event for event in events if event.get("what") == "training conversations"]
    first, last = played[0], played[-1]
    assert (first["stage"], first["done"], first["total"]) == ("simulate", 0, 2)
    assert last["done"] == 2 and last["candidates"] > 0 and last["generated_tokens"] > 0
    cost = json.loads((folder / "runs" / "t" / "run.json").read_text("utf-8"))["stages"]["simulate"][
        "computed"
    ]
    counted = ("generated_tokens", "prompt_tokens_computed", "cache_hits", "cache_misses")
    assert {key: last[key] for key in counted} == {key: cost[key] for key in counted}


def test_events_that_cannot_be_written(tiny_recipe: Path) -> None:
    done = command(tiny_recipe.parent, "simulate", tiny_recipe, "--events", "no/such/folder.jsonl")
    assert done.returncode == 5 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("minicollab: events cannot be written to no/such/folder.jsonl: No such file")
