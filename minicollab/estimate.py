"""How long a recipe's conversations will take: play some of them, and extend that to all."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from minicollab.cache.engine import CachedEngine
from minicollab.cache.store import Store
from minicollab.cast import Cast, Policy
from minicollab.engine.base import Completion, Engine, Prompt, Sampling
from minicollab.judge import Judge
from minicollab.pairs import converse_all
from minicollab.progress import Progress, silent
from minicollab.recipe import Recipe
from minicollab.sandbox import Sandbox
from minicollab.schema import Task
from minicollab.simulator import Simulator
from minicollab.tasks import split

Requests = Mapping[str, int]
"""How many requests (or answers) by role: "policy", "simulator", "judge"."""

_TICK = 0.5  # seconds
_REQUESTS = {"accuracy": 1, "accuracy_judged": 1, "pass_rate": 1}
_ARMS = 3  # of the evaluation: base, proactive, trained


class Counted(CachedEngine):
    """Counts the answers that one role has had, the tokens generated in them, and the prompt
    tokens that the engine has computed meanwhile, for all its roles."""

    def __init__(self, engine: Engine, store: Store):
        super().__init__(engine, store)
        self.begin()

    def begin(self) -> None:
        """Count from now on."""
        self.answers = self.tokens = 0
        self._before = self.usage.prompt_tokens_computed

    @property
    def computed(self) -> int:
        return self.usage.prompt_tokens_computed - self._before

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Completion:
        answer = await super().generate(prompt, sampling)
        self.answers += 1
        self.tokens += answer.tokens
        return answer

    async def score(self, prompt: Prompt, continuations: Sequence[str]) -> list[float]:
        answer = await super().score(prompt, continuations)
        self.answers += 1
        return answer


async def estimate(
    recipe: Recipe,
    engines: Mapping[str, Engine],
    rates: Mapping[str, tuple[float, float]],
    tasks: list[Task],
    seconds: float,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Play the recipe's training conversations for `seconds` after a warm-up (at most as long),
    away from any cache.

    `engines`: by role. `rates`: by role of the local models, tokens per second that they generate
    and read. Returns `played_seconds`, the `answers` by role, and how many seconds the stages
    `simulate` and `eval` will take at most (None if there was no answer in time); train and export
    are not in it.
    """
    train, held_out = split(tasks, recipe.tasks.train, recipe.tasks.eval)
    with TemporaryDirectory(prefix="minicollab-bench-") as folder:
        store = Store(Path(folder))
        counted = {role: Counted(engine, store) for role, engine in engines.items()}
        try:
            spent = await _play(recipe, counted, train, seconds, progress)
        finally:
            store.close()
    answers = {role: engine.answers for role, engine in counted.items()}
    found: dict[str, Any] = {"played_seconds": round(spent, 2), "answers": answers}
    cost = _costs(recipe, counted, rates, spent)
    played = _work(answers, cost)
    for stage, asked in requests(recipe, train, held_out).items():
        found[stage] = round(spent * _work(asked, cost) / played, 2) if played else None
    return found


async def _play(
    recipe: Recipe, cast: Mapping[str, Counted], tasks: list[Task], seconds: float, progress: Progress
) -> float:
    """Play for that long, or to the end, and return how long it was. Answers and time count once
    every role has answered, if that is in time: the examples in the prompts are read only once."""
    judge = Judge(cast["judge"], recipe.judge)
    simulator = Simulator(cast["simulator"], recipe.simulator, recipe.seed)
    sandbox = Sandbox(recipe.sandbox) if "pass_rate" in recipe.reward.weights else None
    people = Cast(Policy(cast["policy"], recipe.policy), simulator, judge, sandbox)

    async def all_of_them() -> None:
        async for _ in converse_all(recipe, people, tasks):
            pass

    begun = counting = now = time.monotonic()
    playing = asyncio.create_task(all_of_them())
    needed = [cast[role] for role, number in requests(recipe, tasks, [])["simulate"].items() if number]
    try:
        while not playing.done() and now < counting + seconds:
            progress("seconds of play", now - counting, seconds)
            await asyncio.wait([playing], timeout=min(_TICK, counting + seconds - now))
            now = time.monotonic()
            warm = all(engine.answers for engine in needed) and not playing.done()
            if warm and counting == begun:
                counting = now
                for engine in cast.values():
                    engine.begin()
        progress("seconds of play", seconds, seconds)
        if playing.done():
            playing.result()
        return now - counting
    finally:
        playing.cancel()
        await asyncio.gather(playing, return_exceptions=True)


def requests(recipe: Recipe, train: list[Task], held_out: list[Task]) -> dict[str, Requests]:
    """The most requests that the stages simulate and eval make: every user stays to the end, and
    whatever the conversation produced must be found by the judge's model."""
    weights = recipe.reward.weights

    def judgements(tasks: Iterable[Task], replies: int) -> int:
        questions = [q for q in recipe.judge.questions.values() if q.metric in weights]
        rubric = recipe.judge.style == "rubric"
        twice = 2 if rubric and recipe.judge.prior_correction else 1
        each = sum(
            (replies if q.scope == "reply" else 1) * (2 if q.reverse and rubric else 1) for q in questions
        )
        asked = (each + ("goal_coverage" in weights) * len(task.details) for task in tasks)
        extracted = sum(_REQUESTS.get(name, 0) for name in weights)
        return sum(twice * number + extracted for number in asked)

    follow_ups = int("follow_up_likelihood" in weights)
    how, candidates = recipe.simulate, recipe.propose.candidates
    turns, futures = len(train) * how.exchanges, candidates * how.futures  # a turn has `futures`
    talks = _ARMS * recipe.eval.samples  # of a held-out task
    return {
        "simulate": {
            "policy": turns * (candidates + futures * how.window),
            "simulator": turns * futures * (how.window + follow_ups),
            "judge": how.exchanges * futures * judgements(train, how.window + 1),
        },
        "eval": {
            "policy": len(held_out) * talks * recipe.eval.exchanges,
            "simulator": len(held_out) * talks * (recipe.eval.exchanges - 1 + follow_ups),
            "judge": talks * judgements(held_out, recipe.eval.exchanges),
        },
    }


def _costs(
    recipe: Recipe, cast: Mapping[str, Counted], rates: Mapping[str, tuple[float, float]], spent: float
) -> dict[str, float]:
    """What one answer of each role costs, in seconds; only their proportions matter. It is what
    was generated and read for it at the model's rates; a role that has not come to answer yet
    generates all it may. A server's rates are unknown: its answers cost what it took."""
    most = {"policy": recipe.policy.max_tokens, "simulator": recipe.simulator.generation.max_tokens}
    found = {}
    for role, engine in cast.items():
        shared = sum(other.answers for other in cast.values() if other.usage is engine.usage) or 1
        if role in rates:
            generates, reads = rates[role]
            tokens = engine.tokens / engine.answers if engine.answers else most.get(role, 0)
            found[role] = tokens / generates + engine.computed / shared / reads
        else:
            found[role] = spent / shared
    return found


def _work(requests: Requests, cost: Mapping[str, float]) -> float:
    return sum(number * cost[role] for role, number in requests.items())
