"""Scores a conversation by questions (R_judge; the paper's section 3.2 uses a written score)."""

from __future__ import annotations

import json
from dataclasses import dataclass

from minicollab import prompts
from minicollab.engine.base import Engine, Sampling, choose
from minicollab.recipe import Judge as Options
from minicollab.schema import Conversation
from minicollab.seeds import seed_of

_VERDICT = r"""
root ::= "{\"reason\": \"" char{1,200} "\", \"score\": " [1-5] "}"
char ::= [^"\\\x00-\x1f]
"""


class JudgeFailure(Exception):
    """A judgement that could not be read. It is recorded and never counted as a score."""


@dataclass(frozen=True)
class Judge:
    engine: Engine
    options: Options

    async def ask(self, conversation: Conversation, question: str) -> float:
        """How far the answer to a yes/no question about the conversation is yes, in [0, 1].

        `rubric`: P(Yes) against P(No), one forward pass. `json`: a written verdict, its score
        of 1 to 5 mapped to [0, 1]; JudgeFailure if there is none.
        """
        shown = prompts.transcript(conversation, "User", "Assistant")
        asked = prompts.chat(f"judge_{self.options.style}", conversation=shown, question=question)
        prompt = self.engine.chat(asked)
        if self.options.style == "rubric":
            return (await choose(self.engine, prompt, ("Yes", "No")))[0]
        sampling = Sampling(max_tokens=120, seed=seed_of("judge"), grammar=_VERDICT)
        answer = await self.engine.generate(prompt, sampling)
        return _score(answer.text)


def _score(text: str) -> float:
    try:
        return (int(json.loads(text)["score"]) - 1) / 4
    except (ValueError, KeyError, TypeError):
        raise JudgeFailure(f"no verdict in {prompts.one_line(text)[:80]!r}") from None
