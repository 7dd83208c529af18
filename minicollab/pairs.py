"""The main loop: tasks → scored candidates → preference pairs (paper, section 3.3)."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from minicollab.cast import Cast
from minicollab.failures import Failure
from minicollab.progress import Watcher, silent
from minicollab.recipe import Pairs, Recipe, Reward
from minicollab.reward import gap_error, multiturn_aware_reward, reward, standard_error
from minicollab.rollout import propose, score_candidates
from minicollab.schema import Conversation, Cut, Message, PreferencePair, ScoredCandidate, Task
from minicollab.seeds import seed_of
from minicollab.simulate_progress import ConversationProgress, SimulateProgress

Row = dict[str, Any]
"""One candidate with its futures, as in rollouts.jsonl."""


@dataclass(frozen=True)
class Turn:
    """One turn of one conversation: what was said, and every scored candidate.
    `cut` is what the simulator was not shown when it wrote the last of `talk` outside a rollout."""

    task: Task
    talk: Conversation
    scored: tuple[ScoredCandidate, ...]
    cut: Cut = field(default_factory=Cut)

    def rows(self) -> list[Row]:
        """One row a candidate."""
        return [_row(self, candidate) for candidate in self.scored]


async def converse(
    recipe: Recipe, cast: Cast, task: Task, steps: ConversationProgress | None = None
) -> list[Turn]:
    """Talk a task through; at every turn the best candidate is what the assistant said."""
    steps = steps or SimulateProgress(recipe, 1, silent).begin()
    talk, cut = Conversation() + cast.simulator.open(task), Cut()
    turns: list[Turn] = []
    while True:
        candidates = await propose(recipe, cast, task, talk)
        steps.proposed(candidates)
        scored = await score_candidates(recipe, cast, task, talk, candidates, steps.step)
        turns.append(Turn(task, talk, tuple(scored), cut))
        steps.scored(scored)
        usable = [s for s in scored if not math.isnan(s.mr)]
        if not usable or talk.exchanges + 1 == recipe.simulate.exchanges:
            break
        best = max(usable, key=lambda s: s.mr)
        seed = seed_of(recipe.seed, task.id, talk.exchanges, "user")
        going_on = await answered(cast, task, talk, best, seed)
        if going_on is None:
            break
        talk, cut = going_on
    steps.end()
    return turns


async def answered(
    cast: Cast, task: Task, talk: Conversation, best: ScoredCandidate, seed: int
) -> tuple[Conversation, Cut] | None:
    """`talk`, the best candidate, and what the user said to it in its first future; without a
    future (w = 0) the user is asked now, and `Cut` is what was not shown. None if the user was done."""
    first = best.rollouts[0]
    if first.stop_reason == "user_done" and len(first.conversation) == first.start + 1:
        return None
    if len(first.conversation) > first.start + 1:
        return talk + best.candidate.message + first.conversation.messages[first.start + 1], Cut()
    try:
        said, cut = await cast.simulator.next(task, talk + best.candidate.message, seed)
    except Failure:
        return None
    return (talk + best.candidate.message + said, cut) if said else None


async def converse_all(
    recipe: Recipe, cast: Cast, tasks: Sequence[Task], progress: Watcher = silent
) -> AsyncIterator[list[Turn]]:
    """The turns of each task, in the order of the tasks, some tasks at a time."""
    watched = SimulateProgress(recipe, len(tasks), progress)
    gate = asyncio.Semaphore(recipe.engine.concurrent_tasks)

    async def one(task: Task) -> list[Turn]:
        async with gate:
            return await converse(recipe, cast, task, watched.begin())

    under_way = [asyncio.create_task(one(task)) for task in tasks]
    try:
        for conversation in under_way:
            yield await conversation
    finally:  # one failed: the others stop
        for conversation in under_way:
            conversation.cancel()


def weigh(row: Row, weights: Reward) -> Row:
    """The row with its rewards, MR and standard error by these weights: what was measured stays."""
    futures = [future | {"reward": reward(future["metrics"], weights)} for future in row["futures"]]
    rewards = [future["reward"] for future in futures]
    known = not row["failures"]
    return row | {
        "futures": futures,
        "mr": multiturn_aware_reward(rewards) if known else None,
        "se": standard_error(rewards) if known else None,
    }


def build_pairs(rows: Iterable[Row], options: Pairs) -> list[PreferencePair]:
    """Best against worst of every turn, in the order of the rows."""
    turns = groupby(rows, key=lambda row: (row["task_id"], row["turn"]))
    found = (best_against_worst(list(candidates), options) for _, candidates in turns)
    return [pair for pair in found if pair]


def best_against_worst(candidates: Sequence[Row], options: Pairs) -> PreferencePair | None:
    """The pair of highest against lowest MR of a turn, if they are far enough apart: `min_gap`, and
    `min_gap_se` standard errors of the gap (`gap_error`)."""
    usable = [row for row in candidates if row["mr"] is not None]
    if len(usable) < 2:
        return None
    best, worst = max(usable, key=lambda row: row["mr"]), min(usable, key=lambda row: row["mr"])
    gap = best["mr"] - worst["mr"]
    if gap < max(options.min_gap, 1e-9) or not _significant(gap, best, worst, options.min_gap_se):
        return None
    return PreferencePair(
        best["task_id"],
        best["turn"],
        Conversation.from_dicts(best["context"]),
        Message("assistant", best["candidate"]),
        Message("assistant", worst["candidate"]),
        best["mr"],
        worst["mr"],
        best["se"],
        worst["se"],
    )


def _significant(gap: float, best: Row, worst: Row, errors: float) -> bool:
    if not errors:
        return True
    error = gap_error(*([future["reward"] for future in row["futures"]] for row in (best, worst)))
    return error is not None and gap >= errors * error


def _row(turn: Turn, scored: ScoredCandidate) -> Row:
    candidate = scored.candidate
    futures = [
        {
            "sample": rollout.sample,
            "messages": Conversation(rollout.conversation.messages[rollout.start + 1 :]).as_dicts(),
            "stop_reason": rollout.stop_reason,
            "metrics": dict(score.metrics),
            "judgements": {name: list(values) for name, values in score.judgements.items()},
            "reward": score.reward,
            "cut": rollout.cut | score.cut,
            "extracted": dict(score.extracted),
        }
        for rollout, score in zip(scored.rollouts, scored.scores, strict=True)
    ]
    return {
        "task_id": turn.task.id,
        "details": list(turn.task.details),
        "turn": turn.talk.exchanges,
        "context": turn.talk.as_dicts(),
        "candidate": candidate.text,
        "index": candidate.index,
        "style": candidate.style,
        "stop_reason": candidate.stop_reason,
        "asks": "?" in candidate.text,
        "mr": None if math.isnan(scored.mr) else scored.mr,
        "se": scored.se,
        "futures": futures,
        "cut": turn.cut | candidate.cut,
        "failures": list(scored.failures),
    }
