"""Does the simulated user keep to its part, and to its goal?

Each task is played twice. Once as eval's base arm plays it: does the user stay the user, whatever this
policy says? Once with an interviewer, who asks for everything and nothing in particular: does the user
tell what it has in mind, nothing else, and end when all is told? What it said is looked at by rule and
by the recipe's judge. A judge that cannot judge makes the figures that come from it worthless: they are
named after where they come from.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, get_args

from minicollab import prompts, roles
from minicollab.cast import Cast, Policy
from minicollab.drift import assistant_like, tells
from minicollab.engine.base import Completion, Prompt, choose
from minicollab.errors import RecipeError
from minicollab.evaluate import whole
from minicollab.failures import Failure
from minicollab.fit import fit
from minicollab.judge import Judge
from minicollab.metrics import goal_coverage
from minicollab.progress import Progress, Watcher, silent
from minicollab.recipe import Recipe
from minicollab.recipe import Simulator as Options
from minicollab.run import Result, Run, run_check
from minicollab.running import run_together
from minicollab.schema import Conversation, Cut, Message, Rollout, Task
from minicollab.simulator_figures import Answer, Checked, Turn, figures
from minicollab.tasks import load_tasks

CONVERSATIONS = "simulator_check.jsonl"
_EXCHANGES = 3  # at least: with two the user speaks once
_QUESTIONS = (
    "Gladly! What is it for, and what matters to you?",
    "Thank you. What else should I know?",
    "Good. Is there anything else, or is that all?",
)
_ASKED = 5  # questions: the last one again, if need be
_ANSWER = 4  # tokens that "Yes" or "No" may have
_HELPS = "Does this message give help, as an AI does?"
_WANTS_HELP = "Does this message come from somebody who wants help?"


class Interviewer(Policy):
    """An assistant that asks `_QUESTIONS`."""

    async def reply(self, talk: Conversation, seed: int) -> tuple[Completion, Cut]:
        text = _QUESTIONS[min(talk.exchanges, len(_QUESTIONS) - 1)]
        return Completion(text, self.engine.count(text), "end"), Cut()


def check(run: Run, number: int, styles: Sequence[str] = (), progress: Watcher = silent) -> Result:
    """The last `number` tasks of the recipe's file, the held-out ones among them, played in each
    simulator style (default: the recipe's) → simulator_check.json and simulator_check.jsonl.

    Returns `figures` by style, and what it cost. Raises RecipeError for a style that there is not.
    """
    known = get_args(Options.model_fields["style"].annotation)
    for style in styles:
        if style not in known:
            raise RecipeError(f"{style} is no style of the simulator", f"Known ones: {', '.join(known)}.")
    asked = tuple(dict.fromkeys(styles)) or (run.recipe.simulator.style,)
    return run_check(
        run, "simulator-check", progress, lambda usages, told: _check(run, number, asked, usages, told)
    )


def _check(run: Run, number: int, styles: Sequence[str], usages: list[Any], progress: Progress) -> Result:
    recipe = run.recipe
    tasks = load_tasks(recipe.tasks)[-number:]
    cast = roles.cast(run, usages, progress)
    found = run_together(check_all(recipe, cast, styles, tasks, progress))
    run.write_jsonl(CONVERSATIONS, (each.row() for each in found))
    by_style = {style: [each for each in found if each.style == style] for style in styles}
    return {
        "styles": {s: figures(each, recipe.seed, recipe.eval.bootstrap) for s, each in by_style.items()},
        "tasks": len(tasks),
        "exchanges": _exchanges(recipe),
    }


def _exchanges(recipe: Recipe) -> int:
    return max(recipe.eval.exchanges, _EXCHANGES)


async def check_all(
    recipe: Recipe, cast: Cast, styles: Sequence[str], tasks: Sequence[Task], progress: Progress = silent
) -> list[Checked]:
    """Every task in every style, in a fixed order. Failures are kept: they are part of the finding."""
    gate = asyncio.Semaphore(recipe.engine.concurrent_tasks * recipe.propose.candidates)
    done = 0

    async def one(style: str, task: Task) -> Checked:
        nonlocal done
        options = cast.simulator.options.model_copy(update={"style": style})
        who = replace(cast, simulator=replace(cast.simulator, options=options))
        async with gate:
            checked = await check_task(recipe, who, task)
        done += 1
        progress("conversations", done, len(styles) * len(tasks))
        return checked

    return await asyncio.gather(*(one(style, task) for task in tasks for style in styles))


async def check_task(recipe: Recipe, cast: Cast, task: Task) -> Checked:
    """Both conversations of a task and all that is asked about them. Their seeds are those of eval's
    first sample."""
    style = cast.simulator.options.style
    interviewer = replace(cast, policy=Interviewer(cast.policy.engine, cast.policy.options))
    try:
        talk, interview = await asyncio.gather(
            whole(recipe, cast, task, _exchanges(recipe), 0), whole(recipe, interviewer, task, _ASKED, 0)
        )
        opened = replace(interview, conversation=Conversation(interview.conversation.messages[:1]))
        turns, answers, first, all_of_it = await asyncio.gather(
            asyncio.gather(*(check_turn(cast, task, *said) for said in _said(talk))),
            asyncio.gather(*(check_answer(cast, task, *said) for said in _said(interview))),
            goal_coverage.measure(opened, task, cast),
            goal_coverage.measure(interview, task, cast),
        )
        leaked, told = (each.judgements["goal_coverage"] for each in (first, all_of_it))
        return Checked(style, task, talk, interview, tuple(turns), tuple(answers), leaked, told)
    except Failure as failure:
        return Checked(style, task, failure=str(failure))


def _said(rollout: Rollout) -> list[tuple[Conversation, str]]:
    """What the user said after the opening, and the conversation before it."""
    messages = rollout.conversation.messages
    return [(Conversation(messages[:i]), m.content) for i, m in enumerate(messages) if i and m.role == "user"]


async def check_turn(cast: Cast, task: Task, before: Conversation, text: str) -> Turn:
    """Whose words are these? The judge sees the request and the assistant's last message before."""
    judge, seen = cast.judge, _seen(before)
    helps, wants = await asyncio.gather(
        _yes(judge, "part", seen, text, question=_HELPS, yes="Yes", no="No"),
        _yes(judge, "part", seen, text, question=_WANTS_HELP, yes="No", no="Yes"),
    )
    tokens, rule = cast.policy.engine.count(text), assistant_like(text, task, before)
    return Turn(text, tokens, rule, (helps + 1 - wants) / 2)


async def check_answer(cast: Cast, task: Task, before: Conversation, text: str) -> Answer:
    """Is something told, and is it so?"""
    seen = _seen(before)
    remark = await _yes(cast.judge, "remark", seen, text)
    agrees = await _detail(cast, task, seen + Message("user", text)) if remark < 0.5 else None
    return Answer(text, 1 - remark, agrees, any(tells(text, detail) for detail in task.details))


def _seen(before: Conversation) -> Conversation:
    return Conversation((before.messages[0], before.messages[-1]))


async def _detail(cast: Cast, task: Task, talk: Conversation) -> float:
    """The judge's probability that the user has told a detail, the largest of all, as goal coverage asks
    it. What the opening has told counts, too."""
    asked = await goal_coverage.measure(Rollout(talk, len(talk), 0, "window"), task, cast)
    return max(asked.judgements["goal_coverage"])


async def _yes(judge: Judge, name: str, talk: Conversation, said: str, **values: str) -> float:
    """P(Yes) against P(No), whichever style the judge has: these are questions of our own, with
    examples of their own."""
    values["said"] = prompts.one_line(said)

    def show(shown: Conversation) -> Prompt:
        conversation = prompts.transcript(shown, "Human", "AI")
        filled = prompts.chat(f"simulator_check_{name}", conversation=conversation, **values)
        return judge.engine.chat(filled)

    prompt, _ = fit(judge.engine, "judge", talk, show, _ANSWER)
    return (await choose(judge.engine, prompt, ("Yes", "No")))[0]
