"""Does the simulated user keep to its part, and to its goal?

Each task is played twice. Once as eval's base arm plays it: does the user stay the user, whatever this
policy says? Once with an interviewer, who asks for everything and nothing in particular: does the user
tell what it has in mind, nothing else, and end when all is told? What it said is looked at by rule and
by the recipe's judge. A judge that cannot judge makes the figures that come from it worthless: they are
named after where they come from.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, get_args

from minicollab import prompts, roles
from minicollab.cast import Cast, Policy
from minicollab.drift import assistant_like, ngrams, tells, words
from minicollab.engine.base import Completion, Prompt, choose
from minicollab.errors import RecipeError, StageError
from minicollab.failures import Failure
from minicollab.fit import fit
from minicollab.judge import Judge
from minicollab.metrics import goal_coverage
from minicollab.progress import Progress, Watcher, silent
from minicollab.recipe import Recipe
from minicollab.recipe import Simulator as Options
from minicollab.rollout import roll
from minicollab.run import Result, Run, run_check
from minicollab.running import run_together
from minicollab.schema import Candidate, Conversation, Cut, Message, Rollout, Task
from minicollab.seeds import seed_of
from minicollab.tasks import load_tasks

CONVERSATIONS = "simulator_check.jsonl"
_EXCHANGES = 3  # at least: with two the user speaks once
_QUESTIONS = (
    "Gladly! What is it for, and what matters to you?",
    "Thank you. What else should I know?",
    "Good. Is there anything else, or is that all?",
)
_ASKED = 5  # questions: the last one again, if need be
_ENDS = re.compile(
    r"\b(that('s| is| was) (all|it)|nothing (else|more)|i'm (done|good))\b"
    r"|^no\b(\W+(thanks?|thank you).*)?\W*$",
    re.IGNORECASE,
)
_ANSWER = 4  # tokens that "Yes" or "No" may have
_HELPS = "Does this message give help, as an AI does?"
_WANTS_HELP = "Does this message come from somebody who wants help?"


@dataclass(frozen=True)
class Turn:
    """What the user says to the policy. `rule`: whether `assistant_like` says that it is the
    assistant's; `judge`: the judge's probability of that. `tokens` by the policy's tokenizer."""

    text: str
    tokens: int
    rule: bool
    judge: float


@dataclass(frozen=True)
class Answer:
    """What the user says to the interviewer. `tells`: the judge's probability that it tells something;
    `agrees`: if it does, that this is a detail of the goal; `words`: whether it has half of the words of
    a detail (`drift.tells`)."""

    text: str
    tells: float
    agrees: float | None
    words: bool

    @property
    def faithful(self) -> bool:
        """What tells something and is a detail of the goal, by the judge or by its words."""
        return self.tells > 0.5 and (self.words or _sure([self.agrees]) == 1)


class Interviewer(Policy):
    """An assistant that asks `_QUESTIONS`."""

    async def reply(self, talk: Conversation, seed: int) -> tuple[Completion, Cut]:
        text = _QUESTIONS[min(talk.exchanges, len(_QUESTIONS) - 1)]
        return Completion(text, self.engine.count(text), "end"), Cut()


@dataclass(frozen=True)
class Checked:
    """A task: the `talk` with the policy, and the `interview`. `leaked` and `told`: the judge's
    probability, by detail, that the user has said it in the first message, and in all of the interview.
    `failure` says why there is none of all that."""

    style: str
    task: Task
    talk: Rollout | None = None
    interview: Rollout | None = None
    turns: tuple[Turn, ...] = ()
    answers: tuple[Answer, ...] = ()
    leaked: tuple[float, ...] = ()
    told: tuple[float, ...] = ()
    failure: str | None = None

    def row(self) -> dict[str, Any]:
        """For simulator_check.jsonl."""
        return {
            "style": self.style,
            "task_id": self.task.id,
            "details": list(self.task.details),
            "talk": _row(self.talk),
            "interview": _row(self.interview),
            "turns": [asdict(turn) for turn in self.turns],
            "answers": [asdict(answer) for answer in self.answers],
            "leaked": list(self.leaked),
            "told": list(self.told),
            "failure": self.failure,
        }

    def ends(self, done: bool, covered: bool | None = None) -> tuple[int, int]:
        """Whether the user ended the interview, or said that it was over, after all was told or before:
        1 of 1, or 0."""
        assert self.interview
        said = any(_ENDS.search(answer.text.replace("\u2019", "'")) for answer in self.answers)
        same = (said or self.interview.stop_reason == "user_done") == done
        return int(same and covered in (None, all(self.covered))), 1

    @property
    def covered(self) -> list[bool]:
        """By detail: whether the interviewer got to hear it, by the judge or by its words."""
        said = " ".join([self.task.opening, *(answer.text for answer in self.answers)])
        return [p > 0.5 or tells(said, d) for p, d in zip(self.told, self.task.details, strict=True)]


def _row(rollout: Rollout | None) -> dict[str, Any] | None:
    if not rollout:
        return None
    return {"messages": rollout.conversation.as_dicts(), "stop_reason": rollout.stop_reason}


def _sure(probabilities: Sequence[float | None]) -> int:
    return sum(p is not None and p > 0.5 for p in probabilities)


SHARES: Mapping[str, Callable[[Checked], tuple[int, int]]] = {
    "drift_rule": lambda c: (sum(t.rule for t in c.turns), len(c.turns)),
    "drift_judge": lambda c: (_sure([t.judge for t in c.turns]), len(c.turns)),
    "drift_both": lambda c: (_sure([t.judge for t in c.turns if t.rule]), len(c.turns)),
    "leak_judge": lambda c: (_sure(c.leaked), len(c.leaked)),
    "leak_words": lambda c: (sum(tells(c.task.opening, d) for d in c.task.details), len(c.task.details)),
    "faithful_judge": lambda c: (_sure([a.agrees for a in c.answers]), _sure([a.tells for a in c.answers])),
    "faithful": lambda c: (sum(a.faithful for a in c.answers), _sure([a.tells for a in c.answers])),
    "coverage": lambda c: (sum(c.covered), len(c.covered)),
    "ended_covered": lambda c: c.ends(True, True),
    "ended_before": lambda c: c.ends(True, False),
    "never_ended": lambda c: c.ends(False),
    "tokens": lambda c: (sum(t.tokens for t in c.turns), len(c.turns)),
}
"""How many, of how many, in one conversation; the figure is the sum of the first over the sum of
the second, over all conversations."""


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
            _play(recipe, cast, task, _exchanges(recipe)), _play(recipe, interviewer, task, _ASKED)
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


async def _play(recipe: Recipe, cast: Cast, task: Task, exchanges: int) -> Rollout:
    opened = Conversation() + cast.simulator.open(task)
    answer, cut = await cast.policy.reply(opened, seed_of(recipe.seed, task.id, "eval", 0, "first reply"))
    first = Candidate(0, "plain", answer.text.strip(), answer.stop_reason, cut)
    return await roll(recipe, cast, task, opened, first, exchanges - 1, "eval", 0)


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


def figures(checked: Sequence[Checked], seed: int, draws: int) -> dict[str, Any]:
    """`SHARES` with intervals, and `diversity`, of the conversations of one style; `failed` of them
    are left out.

    `low` and `high` bound the 95% interval: percentile bootstrap over tasks (`draws` resamples). None
    where there is nothing to count. StageError if no conversation is left.
    """
    import numpy as np

    whole = [each for each in checked if not each.failure]
    if not whole:
        reasons = Counter(str(each.failure).partition(":")[0] for each in checked).most_common(3)
        raise StageError(
            f"no conversation could be checked: {', '.join(f'{why} ({n})' for why, n in reasons)}",
            "Use a larger judge model, or raise simulator.redraws in the recipe.",
        )
    drawn = np.random.default_rng(seed).integers(0, len(whole), (draws, len(whole)))

    def share(count: Callable[[Checked], tuple[int, int]]) -> dict[str, float] | None:
        some, all_ = np.array([count(each) for each in whole], float).T
        if not all_.sum():
            return None
        sums = all_[drawn].sum(1)
        low, high = np.percentile((some[drawn].sum(1) / np.maximum(sums, 1))[sums > 0], [2.5, 97.5])
        return {"value": float(some.sum() / all_.sum()), "low": float(low), "high": float(high)}

    said = [turn.text for each in whole for turn in each.turns]
    return {
        **{name: share(count) for name, count in SHARES.items()},
        **diversity(said),
        "turns": len(said),
        "answers": sum(len(each.answers) for each in whole),
        "conversations": len(whole),
        "failed": len(checked) - len(whole),
    }


def diversity(texts: Sequence[str]) -> dict[str, float | None]:
    """distinct-n: different n-grams of words over all of them, within messages (Li et al. 2016).
    repeated: the share of messages that another one before them equals, word for word."""
    tokens = [words(text) for text in texts]

    def distinct(n: int) -> float | None:
        grams = [gram for each in tokens for gram in ngrams(each, n)]
        return len(set(grams)) / len(grams) if grams else None

    repeated = 1 - len({tuple(each) for each in tokens}) / len(tokens) if tokens else None
    return {"distinct_1": distinct(1), "distinct_2": distinct(2), "repeated": repeated}
