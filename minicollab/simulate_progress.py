"""How far the training conversations are, told in steps: a candidate, a future played, a future scored."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from minicollab.progress import Watcher
from minicollab.recipe import Recipe
from minicollab.schema import ScoredCandidate


class SimulateProgress:
    """Tells `progress` how many of the conversations under way together are done, parts of them
    included, how many candidates are scored and what their MR is on average."""

    def __init__(self, recipe: Recipe, conversations: int, progress: Watcher):
        self.turn = recipe.propose.candidates * (1 + 2 * recipe.simulate.futures)  # steps, at most
        self.conversation = recipe.simulate.exchanges * self.turn + 1
        self._conversations, self._progress = conversations, progress
        self._steps = self._candidates = self._scored = 0
        self._mr = 0.0
        self.step(0)

    def begin(self) -> ConversationProgress:
        """A conversation begins."""
        return ConversationProgress(self)

    def scored(self, candidates: Sequence[ScoredCandidate]) -> None:
        known = [candidate.mr for candidate in candidates if not math.isnan(candidate.mr)]
        self._candidates += len(candidates)
        self._scored += len(known)
        self._mr += sum(known)

    def step(self, number: int) -> None:
        self._steps += number
        figures = {"mr": self._mr / self._scored} if self._scored else {}
        done = self._steps / self.conversation
        self._progress(
            "training conversations", done, self._conversations, candidates=self._candidates, **figures
        )


class ConversationProgress:
    """The steps of one conversation. Whatever it leaves out counts as done when it goes on."""

    def __init__(self, whole: SimulateProgress):
        self._whole = whole
        self._made = self._turns = 0

    def step(self) -> None:
        self._reach(self._made + 1)

    def proposed(self, candidates: Sequence[Any]) -> None:
        self._reach(self._turns * self._whole.turn + len(candidates))

    def scored(self, candidates: Sequence[ScoredCandidate]) -> None:
        self._whole.scored(candidates)
        self._turns += 1
        self._reach(self._turns * self._whole.turn)

    def end(self) -> None:
        self._reach(self._whole.conversation)

    def _reach(self, made: int) -> None:
        self._whole.step(made - self._made)
        self._made = made
