"""R_ext of a task with hidden details: the share of them that the conversation has brought out."""

from __future__ import annotations

import asyncio
from statistics import fmean

from minicollab import prompts
from minicollab.cast import Cast, Measured
from minicollab.schema import Rollout, Task


async def measure(rollout: Rollout, task: Task, cast: Cast) -> Measured:
    """In [0, 1]: the mean probability that the user has said a detail, one question each."""
    questions = [prompts.fill("goal_detail", detail=prompts.one_line(d)) for d in task.details]
    said = await asyncio.gather(*(cast.judge.ask(rollout.conversation, q) for q in questions))
    return Measured(fmean(said), {"goal_coverage": tuple(said)})
