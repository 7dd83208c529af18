"""R_ext of a task with hidden details: the share of them that the conversation has brought out."""

from __future__ import annotations

import asyncio
from statistics import fmean

from minicollab import prompts
from minicollab.cast import Cast, Measured
from minicollab.schema import Conversation, Rollout, Task, most_cut


async def measure(rollout: Rollout, task: Task, cast: Cast) -> Measured:
    """In [0, 1]: the mean probability that the user has said a detail, one question each.

    Asked about the conversation up to the user's last message: what follows cannot bring out
    more, and futures that end alike up to there share their judgements. A conversation that was
    cut to fit the judge's context counts only what is left of it: see `Measured.cut`.
    """
    messages = rollout.conversation.messages
    end = max(i for i, m in enumerate(messages) if m.role == "user") + 1
    said = Conversation(messages[:end])
    questions = [prompts.fill("goal_detail", detail=prompts.one_line(d)) for d in task.details]
    asked = await asyncio.gather(*(cast.judge.ask(said, question) for question in questions))
    answers = tuple(answer for answer, _ in asked)
    return Measured(fmean(answers), {"goal_coverage": answers}, most_cut(cut for _, cut in asked))
