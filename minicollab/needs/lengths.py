"""How long the pairs of a training are: counted where there are pairs, else as long as they may be."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from minicollab.engine.weights import Weights
from minicollab.recipe import Recipe
from minicollab.schema import Message, Task
from minicollab.train import read_pairs

_CHARACTERS = 4  # of English in a token
_SYSTEM, _AROUND = 32, 6  # tokens: a template's own system message, and its marks around a message
_UNKNOWN = 128  # tokens of an opening that cannot be looked at yet


@dataclass(frozen=True)
class Lengths:
    """`pairs` to train on; tokens of the `longest` side of one, and of all sides in the `mean`.
    `counted`: from pairs that are there; else none can be longer, and there cannot be more."""

    pairs: int
    longest: int
    mean: float
    counted: bool


def lengths(recipe: Recipe, tasks: list[Task], pairs: Path | None, gguf: Path | None) -> Lengths:
    """Of `pairs` (a pairs.jsonl), in the tokens of `gguf`; without both of them the most that the
    recipe allows."""
    if pairs and pairs.is_file() and gguf:
        return _counted(pairs, _counter(gguf), recipe.train.max_length)
    talk, longest = recipe.simulate.exchanges, recipe.train.max_length
    openings = [len(task.opening) // _CHARACTERS for task in tasks] or [_UNKNOWN]
    said = recipe.policy.max_tokens + recipe.simulator.generation.max_tokens + 2 * _AROUND

    def tokens(exchanges: float) -> int:
        whole = _SYSTEM + max(openings) + exchanges * said + recipe.policy.max_tokens + 2 * _AROUND
        return min(longest, math.ceil(whole))

    return Lengths(recipe.tasks.train * talk, tokens(talk - 1), tokens((talk - 1) / 2), counted=False)


def _counted(pairs: Path, count: Callable[[list[Message]], int], longest: int) -> Lengths:
    sides = [
        min(longest, count([Message(m["role"], m["content"]) for m in row["prompt"] + row[side]]))
        for row in read_pairs(pairs)
        for side in ("chosen", "rejected")
    ]
    return Lengths(len(sides) // 2, max(sides), sum(sides) / len(sides), counted=True)


def _counter(gguf: Path) -> Callable[[list[Message]], int]:
    """Counts the tokens of a conversation with the GGUF's vocabulary; its weights are not loaded."""
    weights = Weights(gguf, vocab_only=True)  # kept until the process ends, as the counter is

    def count(talk: list[Message]) -> int:
        text = "".join(segment.text for segment in weights.template.render(talk))
        return len(weights.read(text, special=True))

    return count
