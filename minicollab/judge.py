"""Scores a conversation by questions (R_judge; the paper's section 3.2 uses a written score)."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from dataclasses import dataclass

from minicollab import prompts
from minicollab.engine.base import Engine, Prompt, Sampling, choose
from minicollab.failures import Failure
from minicollab.fit import fit
from minicollab.recipe import Judge as Options
from minicollab.recipe import Question
from minicollab.schema import Conversation, Cut
from minicollab.seeds import seed_of

_VERDICT = {
    "type": "object",
    "properties": {
        "reason": {"type": "string", "maxLength": 200},
        "score": {"type": "integer", "enum": [1, 2, 3, 4, 5]},
    },
    "required": ["reason", "score"],
    "additionalProperties": False,
}
_ANSWER = {"rubric": 4, "json": 120}  # tokens that an answer may have; few tokenizers split "Yes"


@dataclass(frozen=True)
class Judge:
    engine: Engine
    options: Options

    async def weigh(self, conversation: Conversation, question: Question) -> tuple[float, Cut]:
        """`ask` by a question of the recipe, and by its reverse, whose answer counts the other way."""
        reply = question.scope == "reply"
        if self.options.style == "json" or not question.reverse:
            return await self.ask(conversation, question.ask, question.examples, reply)
        (yes, cut), (no, _) = await asyncio.gather(
            self.ask(conversation, question.ask, question.examples, reply),
            self.ask(conversation, question.reverse, question.examples, reply, reverse=True),
        )
        return (yes + 1 - no) / 2, cut

    async def ask(
        self,
        conversation: Conversation,
        question: str,
        examples: str = "general",
        reply: bool = False,
        reverse: bool = False,
    ) -> tuple[float, Cut]:
        """How far the answer to a yes/no question about the conversation, or about the `reply` that ends
        it, is yes, in [0, 1].

        `rubric`: P(Yes) against P(No), one forward pass, after examples that are answered the other way
        round for a `reverse` question. `json`: a written verdict, its score of 1 to 5 mapped to [0, 1];
        Failure if there is none. With it comes what had to be cut from the conversation to fit the
        context (`fit`): what is asked about may have been there.
        """

        def show(shown: Conversation) -> Prompt:
            talk = prompts.transcript(shown, "User", "Assistant")
            if self.options.style == "json":
                return self.engine.chat(prompts.chat("judge_json", conversation=talk, question=question))
            asked = question
            if reply and shown:
                last = prompts.one_line(shown.messages[-1].content)
                asked = prompts.fill("judge_reply", reply=last, question=question)
            yes, no = ("No", "Yes") if reverse else ("Yes", "No")
            values = {"conversation": talk, "question": asked, "example": question, "yes": yes, "no": no}
            return self.engine.chat(prompts.chat(f"judge_{examples}", **values))

        prompt, cut = fit(self.engine, "judge", conversation, show, _ANSWER[self.options.style])
        if self.options.style == "json":
            sampling = Sampling(max_tokens=_ANSWER["json"], seed=seed_of("judge"), json_schema=_VERDICT)
            return _score((await self.engine.generate(prompt, sampling)).text), cut
        yes = (await choose(self.engine, prompt, ("Yes", "No")))[0]
        if self.options.prior_correction:
            yes = _corrected(yes, (await choose(self.engine, show(Conversation()), ("Yes", "No")))[0])
        return yes, cut


def _corrected(p: float, prior: float) -> float:
    """The probability whose odds are those of `p` divided by those of `prior` (Zhao et al. 2021's
    contextual calibration, of two answers)."""
    yes, no = p * (1 - prior), (1 - p) * prior
    return yes / (yes + no) if yes + no else 0.5


def _score(text: str) -> float:
    with suppress(ValueError, KeyError, TypeError, OverflowError, RecursionError):
        # Not strict: not every server's JSON schema keeps line breaks out of a string.
        score = int(json.loads(text, strict=False)["score"])
        if 1 <= score <= 5:
            return (score - 1) / 4
    raise Failure(f"the judge wrote no verdict: {prompts.one_line(text)[:80]!r}")
