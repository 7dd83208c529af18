"""What a check of the simulated user has found in its conversations, and the figures of it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from minicollab.drift import ngrams, tells, words
from minicollab.errors import StageError
from minicollab.schema import Rollout, Task

_ENDS = re.compile(
    r"\b(that('s| is| was) (all|it)|nothing (else|more)|i'm (done|good))\b"
    r"|^no\b(\W+(thanks?|thank you).*)?\W*$",
    re.IGNORECASE,
)


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
