"""How long the pairs of a training are: counted where there are pairs, else as long as they may be."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from minicollab.engine.quiet import quiet
from minicollab.engine.template import ChatTemplate
from minicollab.models import describe
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
    quiet()
    import llama_cpp as lc

    params = lc.llama_model_default_params()
    params.vocab_only = True
    # Kept until the process ends, as the counter is.
    model = lc.llama_model_load_from_file(str(gguf).encode(), params)
    vocab = lc.llama_model_get_vocab(model)

    def text(token: int) -> str:
        return str(lc.llama_vocab_get_text(vocab, token).decode()) if token >= 0 else ""

    bos, eos = lc.llama_vocab_bos(vocab), lc.llama_vocab_eos(vocab)
    template = ChatTemplate(describe(gguf)["chat_template"], text(bos), text(eos))

    def count(talk: list[Message]) -> int:
        raw = "".join(segment.text for segment in template.render(talk)).encode("utf-8", "replace")
        room = (ctypes.c_int32 * (len(raw) + 8))()
        return int(lc.llama_tokenize(vocab, raw, len(raw), room, len(room), True, True))

    return count
