"""The next token: llama.cpp's samplers, spared the tokens that have no chance."""

from __future__ import annotations

import ctypes
import math
from typing import Any

import numpy as np

from minicollab.engine.base import Sampling
from minicollab.engine.grammar import gbnf
from minicollab.engine.quiet import last_error
from minicollab.errors import ModelError, StageError

_PENALTY_WINDOW = 64  # tokens of prompt and answer that a repetition penalty looks back


class Candidates:
    """Room for the candidates of one token, as llama.cpp's samplers take them."""

    def __init__(self, n_vocab: int):
        import llama_cpp as lc

        self.n_vocab = n_vocab
        self._ids = np.arange(n_vocab, dtype=np.int32)
        self._rows = np.zeros(n_vocab, np.dtype([("id", "i4"), ("logit", "f4"), ("p", "f4")]))
        self._data = ctypes.cast(self._rows.ctypes.data, ctypes.POINTER(lc.llama_token_data))
        self._array = lc.llama_token_data_array()

    def fill(self, logits: np.ndarray, ids: np.ndarray | None = None) -> None:
        """Make `ids` the candidates (without them all), with their logits out of `logits` (n_vocab,)."""
        ids = self._ids if ids is None else ids
        rows = self._rows[: len(ids)]
        rows["id"], rows["logit"] = ids, logits[ids]
        array = self._array
        array.data, array.size, array.selected, array.sorted = self._data, len(ids), -1, False

    def apply(self, sampler: Any) -> None:
        import llama_cpp as lc

        lc.llama_sampler_apply(sampler, ctypes.byref(self._array))

    @property
    def selected(self) -> int:
        return int(self._array.data[self._array.selected].id)

    @property
    def possible(self) -> bool:
        """Whether the first candidate was not ruled out."""
        return bool(self._array.data[0].logit > -math.inf)


class Sampler:
    """One request's choice of tokens, with its own seed. ModelError for a grammar that is none."""

    def __init__(self, vocab: Any, candidates: Candidates, sampling: Sampling, prompt: np.ndarray):
        import llama_cpp as lc

        self._candidates = candidates
        self._plain = sampling.repetition_penalty == 1
        self._greedy = sampling.temperature == 0
        # The chain makes the exact cut; here only what it would cut for certain is left out.
        self._margin = math.log(sampling.min_p) - 1e-3 if sampling.min_p > 0 else -math.inf
        self._grammar = _grammar(vocab, sampling)
        self._chain = _chain(candidates.n_vocab, sampling)
        if not self._plain:
            for token in prompt[-_PENALTY_WINDOW:]:
                lc.llama_sampler_accept(self._chain, int(token))

    def next(self, logits: np.ndarray) -> int:
        """The token after the position that `logits` (n_vocab,) are of."""
        import llama_cpp as lc

        token = self._draw(logits)
        if self._grammar:
            # Most tokens that the model likes fit: testing one is cheaper than ruling out the others.
            self._candidates.fill(logits, np.array([token]))
            self._candidates.apply(self._grammar)
            if not self._candidates.possible:
                self._candidates.fill(logits)
                self._candidates.apply(self._grammar)
                self._candidates.apply(self._chain)
                token = self._candidates.selected
            lc.llama_sampler_accept(self._grammar, token)
        if not self._plain:
            lc.llama_sampler_accept(self._chain, token)
        return token

    def _draw(self, logits: np.ndarray) -> int:
        _must_be_numbers(logits)  # else llama.cpp's samplers would end the process
        if self._plain and self._greedy:
            return int(logits.argmax())
        likely = None
        if self._plain and self._margin > -math.inf:
            likely = np.flatnonzero(logits >= logits.max() + self._margin)
        self._candidates.fill(logits, likely)
        self._candidates.apply(self._chain)
        return self._candidates.selected

    def free(self) -> None:
        import llama_cpp as lc

        lc.llama_sampler_free(self._chain)
        if self._grammar:
            lc.llama_sampler_free(self._grammar)


def _chain(n_vocab: int, sampling: Sampling) -> Any:
    import llama_cpp as lc

    chain = lc.llama_sampler_chain_init(lc.llama_sampler_chain_default_params())
    steps = []
    if sampling.repetition_penalty != 1:
        penalty = sampling.repetition_penalty
        steps.append(lc.llama_sampler_init_penalties(n_vocab, _PENALTY_WINDOW, penalty, 0.0, 0.0))
    if sampling.temperature == 0:
        steps.append(lc.llama_sampler_init_greedy())
    else:
        # min-p first: it needs no sorting, and leaves the others few tokens to sort.
        steps += [
            lc.llama_sampler_init_min_p(sampling.min_p, 1),
            lc.llama_sampler_init_top_k(sampling.top_k),
            lc.llama_sampler_init_top_p(sampling.top_p, 1),
            lc.llama_sampler_init_temp(sampling.temperature),
            lc.llama_sampler_init_dist(sampling.seed),
        ]
    for step in steps:
        lc.llama_sampler_chain_add(chain, step)
    return chain


def _grammar(vocab: Any, sampling: Sampling) -> Any:
    import llama_cpp as lc

    schema = sampling.json_schema
    text = gbnf(schema) if schema is not None else sampling.grammar
    if text is None:
        return None
    grammar = lc.llama_sampler_init_grammar(vocab, text.encode(), b"root")
    if not grammar:
        raise ModelError(f"llama.cpp cannot read a grammar: {last_error()}", "Mend the grammar (GBNF).")
    return grammar


def _must_be_numbers(logits: np.ndarray) -> None:
    if not np.isfinite(logits.max()):
        raise StageError(
            "the model computes no numbers (NaN): its weights, or its adapter's, are broken",
            "Use another model or adapter, or a lower strength of it.",
        )


def log_probabilities(logits: np.ndarray, tokens: list[int]) -> list[float]:
    """Natural logs of the tokens' probabilities, from logits (n_vocab,)."""
    _must_be_numbers(logits)
    top = logits.max()
    total = float(top) + math.log(np.exp(logits - top).sum(dtype=np.float64))
    return [float(logits[token]) - total for token in tokens]
