"""Base, proactive base and trained on held-out tasks, with everything else equal.

A whole conversation is played per task, sample and arm, with the same simulated user, judge
and seeds, and scored as in training (paper, section 4).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from minicollab.cast import Cast, Policy
from minicollab.failures import Failure, tolerate
from minicollab.progress import Watcher, silent
from minicollab.recipe import Recipe
from minicollab.rollout import roll, score
from minicollab.schema import Candidate, Conversation, Rollout, Score, Task
from minicollab.seeds import seed_of

BASELINES = ("base", "proactive")


@dataclass(frozen=True)
class Played:
    """One scored conversation of an arm; `failure` says why there is no score."""

    arm: str
    task: Task
    sample: int
    rollout: Rollout | None = None
    score: Score | None = None
    failure: str | None = None

    def figures(self) -> dict[str, float]:
        """The conversation's row of the table: its reward, what was rewarded, what it took; tokens
        read in thousands."""
        assert self.score is not None
        figures = {"mr": self.score.reward, **self.score.metrics}
        return figures | {"tokens_read_k": figures.pop("tokens_read") / 1000}

    def row(self) -> dict[str, Any]:
        """For eval_conversations.jsonl."""
        row: dict[str, Any] = {"arm": self.arm, "task_id": self.task.id, "sample": self.sample}
        row["details"] = list(self.task.details)
        if self.rollout and self.score:
            row |= self.figures()
            row["messages"] = self.rollout.conversation.as_dicts()
            row["stop_reason"] = self.rollout.stop_reason
            row["cut"] = self.rollout.cut | self.score.cut
            row["judgements"] = {name: list(values) for name, values in self.score.judgements.items()}
            row["extracted"] = dict(self.score.extracted)
        return row | {"failure": self.failure}


async def play(recipe: Recipe, cast: Cast, arm: str, task: Task, sample: int) -> Played:
    """One conversation of `recipe.eval.exchanges` exchanges, scored."""
    try:
        rollout = await whole(recipe, cast, task, recipe.eval.exchanges, sample)
        return Played(arm, task, sample, rollout, await score(recipe, cast, task, rollout))
    except Failure as failure:
        return Played(arm, task, sample, failure=str(failure))


async def whole(recipe: Recipe, cast: Cast, task: Task, exchanges: int, sample: int) -> Rollout:
    """A conversation from the task's opening on. Seeds do not depend on who the policy is."""
    opened = Conversation() + cast.simulator.open(task)
    seed = seed_of(recipe.seed, task.id, "eval", sample, "first reply")
    answer, cut = await cast.policy.reply(opened, seed)
    first = Candidate(0, "plain", answer.text.strip(), answer.stop_reason, cut)
    return await roll(recipe, cast, task, opened, first, exchanges - 1, "eval", sample)


async def play_all(
    recipe: Recipe,
    cast: Cast,
    policies: Mapping[str, Policy],
    tasks: Sequence[Task],
    progress: Watcher = silent,
) -> list[Played]:
    """Every arm on every task, `recipe.eval.samples` conversations each, in a fixed order.
    `progress` hears the mean MR of each arm so far."""
    gate = asyncio.Semaphore(recipe.engine.concurrent_tasks * recipe.propose.candidates)
    done = 0
    failed: list[str] = []
    rewards: dict[str, list[float]] = {}
    total = len(policies) * len(tasks) * recipe.eval.samples
    progress("held-out conversations", done, total)

    async def one(arm: str, task: Task, sample: int) -> Played:
        nonlocal done
        async with gate:
            played = await play(recipe, replace(cast, policy=policies[arm]), arm, task, sample)
        done += 1
        failed.extend([played.failure] if played.failure else [])
        # Of all: those that fail end early, and would be most of the first.
        tolerate(failed, total, recipe.simulate.max_failures, last=True)
        if played.score:
            rewards.setdefault(arm, []).append(played.score.reward)
        means = {f"mr_{name}": fmean(values) for name, values in rewards.items()}
        progress("held-out conversations", done, total, **means)
        return played

    samples = range(recipe.eval.samples)
    return await asyncio.gather(*(one(a, t, s) for t in tasks for s in samples for a in policies))


def compare(played: Iterable[Played], seed: int, draws: int) -> dict[str, Any]:
    """Means of each arm and the paired differences trained minus each baseline.

    `low` and `high` bound the 95% interval of the mean difference: percentile bootstrap over
    tasks (`draws` resamples), each task's conversations averaged first. A task that has no
    score in some arm is left out of all of them and counted in `tasks_left_out`; `cut_futures`
    counts the scored conversations that were too long for some role and shown to it cut.
    """
    import numpy as np

    played = list(played)
    by_task: dict[str, dict[str, list[dict[str, float]]]] = {}
    for p in played:
        arms = by_task.setdefault(p.task.id, {})
        arms.setdefault(p.arm, []).extend([p.figures()] if p.score else [])
    whole = [arms for arms in by_task.values() if all(arms.values())]
    names = list(whole[0]) if whole else []
    metrics = list(whole[0][names[0]][0]) if whole else []
    table = {
        arm: {m: np.array([np.mean([f[m] for f in arms[arm]]) for arms in whole]) for m in metrics}
        for arm in names
    }
    draw = np.random.default_rng(seed).integers(0, len(whole), (draws, len(whole))) if whole else None
    differences = {}
    for baseline in BASELINES if whole else ():
        row = {}
        for metric in metrics:
            difference = table["trained"][metric] - table[baseline][metric]
            low, high = np.percentile(difference[draw].mean(axis=1), [2.5, 97.5])
            row[metric] = {"mean": float(difference.mean()), "low": float(low), "high": float(high)}
        differences[f"trained-{baseline}"] = row
    return {
        "arms": {arm: {m: float(v.mean()) for m, v in row.items()} for arm, row in table.items()},
        "differences": differences,
        "tasks": len(whole),
        "tasks_left_out": len(by_task) - len(whole),
        "cut_futures": sum(bool(p.rollout.cut | p.score.cut) for p in played if p.rollout and p.score),
    }


def verdict(evaluation: Mapping[str, Any]) -> str:
    """One plain sentence: better, worse, or no measurable difference, against each baseline."""
    if evaluation["tasks"] < 2:
        return "One held-out task shows nothing: an interval needs several."
    words = []
    for baseline in BASELINES:
        mr = evaluation["differences"][f"trained-{baseline}"]["mr"]
        word = (
            "better than"
            if mr["low"] > 0
            else "worse than"
            if mr["high"] < 0
            else "not measurably different from"
        )
        words.append(
            f"{word} {baseline} (MR {mr['mean']:+.3f}, 95% interval {mr['low']:+.3f} to {mr['high']:+.3f})"
        )
    return f"On {evaluation['tasks']} held-out tasks the trained model is " + "; ".join(words) + "."
