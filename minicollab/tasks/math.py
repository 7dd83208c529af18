"""Problems with a final answer: MATH (Hendrycks et al. 2021), GSM8K; the paper's MATH-Chat.

The user asks vaguely, tells the problem piece by piece, and is served by the right answer.
"""

from __future__ import annotations

import re

from pydantic import field_validator

from minicollab.extraction import DOLLARS, boxed
from minicollab.schema import Task
from minicollab.tasks.family import Family, Id, Text, a, pick
from minicollab.tasks.pieces import at_most, clauses, sentences

_PIECES = 6
_WHOLE = re.compile(
    r"\[asy\].*?\[/asy\]|\\begin\{(\w+\*?)\}.*?\\end\{\1\}|\\\[.*?\\\]|\\\(.*?\\\)"
    r"|\$\$.*?\$\$|" + re.sub(r"\?P<\w+>", "?:", DOLLARS),
    re.DOTALL,
)
_OPENINGS = (
    "can you help me with {a} problem?",
    "I'm stuck on {a} problem, can you solve it for me?",
    "I have {a} problem for homework and need the answer",
    "I need some help with {topic}",
    "could you work out {a} question for me?",
    "there's {a} problem that I can't get right",
    "what do I do with this {topic} problem?",
    "I want to check my answer to {a} problem",
)


def gold(solution: str) -> str:
    """The final answer of a worked solution: boxed (MATH), or after `####` (GSM8K)."""
    return boxed(solution) or solution.rpartition("####")[2].strip() * ("####" in solution)


class Row(Family):
    id: Id = None
    problem: Text
    solution: Text
    type: str = "math"

    @field_validator("solution")
    @classmethod
    def _has_an_answer(cls, solution: str) -> str:
        if not gold(solution):
            raise ValueError("has no answer, neither in \\boxed{} nor after ####")
        return solution

    def as_task(self, name: str) -> Task:
        name, topic = self.id or name, self.type.strip().lower() or "math"
        opening = pick(_OPENINGS, name).format(topic=topic, a=a(topic))
        return Task(name, opening, told(self.problem), self.type.strip() or "math", gold(self.solution))


def told(problem: str) -> tuple[str, ...]:
    """The whole problem in order, by sentences, a single one by clauses; formulas and drawings
    stay whole."""
    pieces = at_most(sentences(problem, _WHOLE), _PIECES)
    if len(pieces) == 1:
        pieces = at_most(clauses(problem, _WHOLE), _PIECES)
    return tuple(pieces)
