"""Does the assistant ask where a question is ambiguous, and answer where it is clear?

Abg-CoQA (Guo et al., 2021) labels questions about a story. As in CollabLLM, section 5.3 and table 2,
the assistant replies once to each, and its reply is one of two actions: it *asks* the user back, or
it *answers*. Unlike there (appendix E), it is shown the conversation so far, which the labels
presuppose, and the judge is asked for the action without being told the label.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minicollab import exporting, prompts, roles
from minicollab.cache.keys import file_fingerprint
from minicollab.cast import Policy
from minicollab.errors import RecipeError, StageError
from minicollab.failures import Failure, tolerate
from minicollab.judge import Judge
from minicollab.models import check
from minicollab.progress import Progress, Watcher, silent
from minicollab.recipe import Recipe
from minicollab.run import Result, Run, run_check
from minicollab.running import run_together
from minicollab.schema import Conversation, Message, Task
from minicollab.seeds import seed_of
from minicollab.stages import EVALUATION_ONLY
from minicollab.tasks import load_tasks, split

REPLIES = "ambiguity_replies.jsonl"
_QUESTION_MARKS = "?\uff1f\u061f"  # Latin, Chinese and Japanese, Arabic


@dataclass(frozen=True)
class Reply:
    """An arm's reply to a task's question. `asks` is the judge's probability that it asks the user
    something; `failure` says why there is none."""

    arm: str
    task: Task
    text: str
    asks: float | None = None
    failure: str | None = None

    @property
    def action(self) -> str | None:
        return None if self.asks is None else "asks" if self.asks > 0.5 else "answers"

    def row(self) -> dict[str, Any]:
        """For ambiguity_replies.jsonl."""
        return {
            "arm": self.arm,
            "task_id": self.task.id,
            "question": self.task.metadata["question"],
            "ambiguous": self.task.metadata["ambiguous"],
            "reply": self.text,
            "asks": self.asks,
            "action": self.action,
            "failure": self.failure,
        }


def evaluate(run: Run, trained: Path | None = None, progress: Watcher = silent) -> Result:
    """The held-out questions of the recipe → ambiguity.json and ambiguity_replies.jsonl.

    `trained` is a run folder whose export is a third arm, or a GGUF. Returns `compare`, and what
    it cost. Raises RecipeError if the recipe's tasks are others.
    """
    if run.recipe.tasks.family != EVALUATION_ONLY:
        raise RecipeError(
            f"the tasks of {run.recipe.name} are of the family {run.recipe.tasks.family}, not "
            f"{EVALUATION_ONLY}",
            "Name a recipe of that family, or type minicollab eval for this one.",
        )
    return run_check(run, "ambiguity", progress, lambda usages, told: _evaluate(run, trained, usages, told))


def _evaluate(run: Run, trained: Path | None, usages: list[Any], progress: Progress) -> Result:
    recipe = run.recipe
    _, tasks = split(load_tasks(recipe.tasks), recipe.tasks.train, recipe.tasks.eval)
    _need_both(tasks)
    weights = _weights(trained) if trained else None
    cast = roles.cast(run, usages, progress)
    policies = {
        "base": cast.policy,
        "proactive": Policy(cast.policy.engine, recipe.policy, proactive_system=True),
    }
    if weights:
        engine = roles.local_engine(run, weights, file_fingerprint(weights, run.store), usages)
        policies["trained"] = Policy(engine, recipe.policy)
    replies = run_together(reply_all(recipe, policies, cast.judge, tasks, progress))
    run.write_jsonl(REPLIES, (reply.row() for reply in replies))
    return compare(replies, recipe.seed, recipe.eval.bootstrap)


def _weights(trained: Path) -> Path:
    """The checked GGUF that `trained` is, or that the run in that folder exported."""
    if trained.is_dir():
        trained = exporting.trained(Run.at(trained))
    check(trained)
    return trained


async def reply_all(
    recipe: Recipe,
    policies: Mapping[str, Policy],
    judge: Judge,
    tasks: Sequence[Task],
    progress: Progress = silent,
) -> list[Reply]:
    """Every arm's reply to every question, in a fixed order."""
    gate = asyncio.Semaphore(recipe.engine.concurrent_tasks * recipe.propose.candidates)
    done = 0
    failed: list[str] = []
    total = len(policies) * len(tasks)

    async def one(arm: str, task: Task) -> Reply:
        nonlocal done
        async with gate:
            reply = await reply_to(recipe, policies[arm], judge, arm, task)
        done += 1
        failed.extend([reply.failure] if reply.failure else [])
        # Of all: those that fail end early, and would be most of the first.
        tolerate(failed, total, recipe.simulate.max_failures, last=True)
        progress("questions", done, total)
        return reply

    return await asyncio.gather(*(one(arm, task) for task in tasks for arm in policies))


async def reply_to(recipe: Recipe, policy: Policy, judge: Judge, arm: str, task: Task) -> Reply:
    """One reply and what the judge makes of it. Seeds do not depend on the arm.

    A reply without a question mark asks nothing. Of the others the judge sees the last question and
    the reply: these are enough to tell asking from answering.
    """
    talk = Conversation((Message("user", task.opening),))
    answer, _ = await policy.reply(talk, seed_of(recipe.seed, task.id, "ambiguity"))
    text = answer.text.strip()
    last = Conversation((Message("user", task.metadata["question"]), Message("assistant", text)))
    try:
        if not text:
            raise Failure("the assistant said nothing")
        if not any(mark in text for mark in _QUESTION_MARKS):
            return Reply(arm, task, text, asks=0.0)
        asks, _ = await judge.ask(last, prompts.load("ambiguity_asks"))
        return Reply(arm, task, text, asks)
    except Failure as failure:
        return Reply(arm, task, text, failure=str(failure))


def figures(asked: Any, ambiguous: float, asked_clear: Any, clear: float) -> dict[str, Any]:
    """The table's columns, from how many of the `ambiguous` questions the assistant `asked` back
    about, and of the `clear` ones. Numbers, or arrays of them.

    accuracy_ambiguous = TP / ambiguous and accuracy_clear = TN / clear, where TP = asked and
    TN = clear - asked_clear (action-level accuracy); macro_accuracy is their mean. macro_f1 is the
    mean of F1(asks) = 2 TP / (2 TP + FP + FN) and F1(answers) = 2 TN / (2 TN + FP + FN), where
    FP = asked_clear and FN = ambiguous - asked. It depends on how many questions are ambiguous.
    """
    tp, fn, fp, tn = asked, ambiguous - asked, asked_clear, clear - asked_clear
    return {
        "accuracy_ambiguous": tp / ambiguous,
        "accuracy_clear": tn / clear,
        "macro_accuracy": (tp / ambiguous + tn / clear) / 2,
        "macro_f1": (2 * tp / (2 * tp + fp + fn) + 2 * tn / (2 * tn + fp + fn)) / 2,
    }


def compare(replies: Iterable[Reply], seed: int, draws: int) -> dict[str, Any]:
    """`figures` of each arm, and the paired differences of the others from base.

    `low` and `high` bound the 95% interval: percentile bootstrap over questions (`draws` resamples,
    the same for all arms), drawn within the ambiguous and within the clear ones. A question that has
    no verdict in some arm is left out of all of them and counted in `tasks_left_out`.
    """
    import numpy as np

    by_task: dict[str, dict[str, Reply]] = {}
    for reply in replies:
        by_task.setdefault(reply.task.id, {})[reply.arm] = reply
    whole = [arms for arms in by_task.values() if all(reply.action for reply in arms.values())]
    kinds = np.array(_need_both([arms["base"].task for arms in whole]))
    ambiguous, clear = np.flatnonzero(kinds), np.flatnonzero(~kinds)
    rng = np.random.default_rng(seed)
    drawn = [rng.choice(items, (draws, len(items))) for items in (ambiguous, clear)]

    seen, resampled = {}, {}
    for arm in whole[0]:
        asked = np.array([arms[arm].action == "asks" for arms in whole])
        seen[arm], resampled[arm] = (
            figures(asked[a].sum(-1), len(ambiguous), asked[c].sum(-1), len(clear))
            for a, c in ((ambiguous, clear), drawn)
        )

    def interval(value: Any, values: Any) -> dict[str, float]:
        low, high = np.percentile(values, [2.5, 97.5])
        return {"value": float(value), "low": float(low), "high": float(high)}

    return {
        "arms": {
            arm: {name: interval(value, resampled[arm][name]) for name, value in row.items()}
            for arm, row in seen.items()
        },
        "differences": {
            f"{arm}-base": {
                name: interval(row[name] - value, resampled[arm][name] - resampled["base"][name])
                for name, value in seen["base"].items()
            }
            for arm, row in seen.items()
            if arm != "base"
        },
        "ambiguous": len(ambiguous),
        "clear": len(clear),
        "tasks_left_out": len(by_task) - len(whole),
    }


def _need_both(tasks: Sequence[Task]) -> list[bool]:
    """Which of the tasks are ambiguous. StageError if all are, or none."""
    kinds = [bool(task.metadata["ambiguous"]) for task in tasks]
    if len(set(kinds)) < 2:
        raise StageError(
            f"{sum(kinds)} of {len(kinds)} questions are ambiguous, and the table needs both kinds",
            "Raise tasks.eval in the recipe.",
        )
    return kinds
