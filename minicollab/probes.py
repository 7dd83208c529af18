"""What a judge is asked about labelled conversations: as the reward asks it, by the metrics' own code."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from minicollab.cast import Cast
from minicollab.failures import Failure
from minicollab.judge import Judge
from minicollab.labelled import Labelled
from minicollab.metrics import goal_coverage, rubric
from minicollab.progress import Progress, silent
from minicollab.schema import Conversation, Cut, Message, Rollout, Task

GOAL = "goal_coverage"
LABELS = ("interactivity", "helpfulness", "repetition", "politeness")
_NEUTRAL = "This is a message from the assistant. It belongs to the conversation above."


@dataclass(frozen=True)
class Case:
    """One judgement that has a label: about the reply that ends `talk`, or whether the user has told
    a `detail`."""

    item: str
    sampled: bool
    talk: Conversation
    label: bool
    detail: str = ""

    @property
    def words(self) -> int:
        """How long what is judged is: the reply, or the conversation that a detail is looked for in."""
        judged = self.talk.messages if self.detail else self.talk.messages[-1:]
        return max(1, sum(len(message.content.split()) for message in judged))

    def followed(self) -> Case:
        """With two sentences after the reply that change nothing."""
        *before, last = self.talk.messages
        talk = Conversation((*before, Message(last.role, f"{last.content} {_NEUTRAL}")))
        return replace(self, talk=talk)


def cases(metric: str, items: Sequence[Labelled]) -> list[Case]:
    if metric == GOAL:
        return [
            Case(i.id, i.sampled, i.talk, told, detail) for i in items for detail, told in i.details.items()
        ]
    return [Case(i.id, i.sampled, i.talk, i.labels[metric]) for i in items if metric in i.labels]


@dataclass(frozen=True)
class Probe:
    """One question of a judge: of the recipe's `questions`, or goal coverage's own."""

    name: str
    metric: str
    cast: Cast

    @property
    def style(self) -> str:
        return self.cast.judge.options.style

    def styled(self, style: str) -> Probe:
        options = self.cast.judge.options.model_copy(update={"style": style})
        return self._by(replace(self.cast.judge, options=options))

    def ended(self, words: str) -> Probe:
        """The same question with `words` after it."""
        return self._by(_Ended(self.cast.judge.engine, self.cast.judge.options, words))

    def _by(self, judge: Judge) -> Probe:
        return replace(self, cast=replace(self.cast, judge=judge))

    async def scores(self, given: Sequence[Case], progress: Progress = silent) -> list[float | None]:
        """All at once, as one batch of the engine: each in [0, 1]; None where the judge wrote no
        verdict."""
        done = 0

        async def one(case: Case) -> float | None:
            nonlocal done
            score = await self._score(case)
            done += 1
            progress(f"{self.name}, {self.style}", done, len(given))
            return score

        return await asyncio.gather(*(one(case) for case in given))

    async def _score(self, case: Case) -> float | None:
        rollout = Rollout(case.talk, len(case.talk) - 1, 0, "window")
        task = Task(case.item, "", (case.detail,))
        try:
            if self.metric == GOAL:
                return (await goal_coverage.measure(rollout, task, self.cast)).value
            return (await rubric.measure(rollout, task, self.cast, self.metric)).value
        except Failure:
            return None


@dataclass(frozen=True)
class _Ended(Judge):
    words: str

    async def ask(
        self, conversation: Conversation, question: str, *how: Any, **more: Any
    ) -> tuple[float, Cut]:
        return await super().ask(conversation, f"{question} {self.words}", *how, **more)


def probes(cast: Cast) -> list[Probe]:
    """Whatever has labels, each question by itself."""
    judge = cast.judge
    found = []
    for name, question in judge.options.questions.items():
        if question.metric in LABELS:
            alone = judge.options.model_copy(update={"questions": {name: question}})
            found.append(Probe(name, question.metric, replace(cast, judge=replace(judge, options=alone))))
    return [*found, Probe(GOAL, GOAL, cast)]
