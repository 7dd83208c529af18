"""R_judge: what yes/no questions say of a conversation (interactivity, helpfulness, one's own)."""

from __future__ import annotations

import asyncio
from statistics import fmean

from minicollab.cast import Cast, Measured
from minicollab.recipe import Question
from minicollab.schema import Conversation, Cut, Rollout, Task, most_cut


async def measure(rollout: Rollout, task: Task, cast: Cast, metric: str = "interactivity") -> Measured:
    """In [0, 1]: sum(w_q P_q) / sum(w_q) over the recipe's questions that name `metric`, P_q the
    judge's probability of yes. A question of scope "reply" is asked once about each assistant reply
    from the candidate on, and the mean counts (paper, section 3.2, where a judge writes a score)."""
    questions = {name: q for name, q in cast.judge.options.questions.items() if q.metric == metric}
    asked = await asyncio.gather(*(_ask(rollout, question, cast) for question in questions.values()))
    answers = [tuple(answer for answer, _ in each) for each in asked]
    weights = [question.weight for question in questions.values()]
    value = sum(w * fmean(a) for w, a in zip(weights, answers, strict=True)) / sum(weights)
    cut = most_cut(cut for each in asked for _, cut in each)
    return Measured(value, dict(zip(questions, answers, strict=True)), cut)


async def _ask(rollout: Rollout, question: Question, cast: Cast) -> list[tuple[float, Cut]]:
    messages = rollout.conversation.messages
    ends = rollout.new_replies if question.scope == "reply" else [len(messages) - 1]
    parts = [Conversation(messages[: end + 1]) for end in ends]
    return await asyncio.gather(*(cast.judge.weigh(part, question) for part in parts))
