"""One llama.cpp context: cells, batches, logits and samplers, as plain Python calls."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from minicollab import recipe
from minicollab.engine.base import Sampling
from minicollab.engine.quiet import last_error
from minicollab.engine.weights import Weights
from minicollab.errors import ModelError, StageError

_NO_KV_SLOT = 1  # llama_decode: the batch did not fit into the context's cells, nothing was changed


def set_adapter(model: Any, context: Any, adapter: Path) -> None:
    """Put a LoRA GGUF on a llama.cpp context at full strength; the model owns and frees it."""
    import llama_cpp as lc

    lora = lc.llama_adapter_lora_init(model, str(adapter).encode())
    if not lora:
        raise ModelError(
            f"llama.cpp cannot load the adapter {adapter.name}: {last_error()}", "Run the export stage again."
        )
    adapters = (lc.llama_adapter_lora_p_ctypes * 1)(lora)
    lc.llama_set_adapters_lora(context, adapters, 1, (ctypes.c_float * 1)(1.0))


class Context:
    """A context on `weights`, with a LoRA adapter if one is given. Its sequences share one pool
    of cells (`kv_unified`), so copying a prefix marks cells as shared and moves no data."""

    def __init__(self, weights: Weights, options: recipe.Engine, adapter: Path | None):
        import llama_cpp as lc

        self.cells, self.batch_size = options.context or 8192, options.batch or 512
        params = lc.llama_context_default_params()
        params.n_ctx = self.cells
        params.n_batch = params.n_ubatch = self.batch_size
        params.n_seq_max = options.sequences
        params.n_threads = params.n_threads_batch = options.threads or len(os.sched_getaffinity(0))
        params.kv_unified = True
        params.flash_attn_type = 1  # skips masked cells: other conversations in the pool cost little
        params.no_perf = True
        self._weights = weights
        self._context = lc.llama_init_from_model(weights.model, params)
        if not self._context:
            raise ModelError(
                f"llama.cpp cannot make a context of {self.cells} tokens for {weights.path.name}",
                "Lower engine.context in the recipe.",
            )
        self._memory = lc.llama_get_memory(self._context)
        self._batch = lc.llama_batch_init(self.batch_size, 0, 1)
        if adapter:
            set_adapter(weights.model, self._context, adapter)

    def forget(self, sequence: int, start: int = 0) -> None:
        """Free the sequence's cells from position `start` on."""
        import llama_cpp as lc

        lc.llama_memory_seq_rm(self._memory, sequence, start, -1)

    def share(self, source: int, target: int, tokens: int) -> None:
        """Let `target` have the first `tokens` cells of `source`."""
        import llama_cpp as lc

        lc.llama_memory_seq_cp(self._memory, source, target, 0, tokens)

    def decode(self, entries: Iterable[tuple[int, int, int, bool]]) -> bool:
        """Compute (token, position, sequence, output wanted) entries in one batch.

        False if the cells do not suffice: then nothing was changed. StageError if llama.cpp fails.
        """
        import llama_cpp as lc

        batch, size = self._batch, 0
        for token, position, sequence, wanted in entries:
            batch.token[size] = token
            batch.pos[size] = position
            batch.n_seq_id[size] = 1
            batch.seq_id[size][0] = sequence
            batch.logits[size] = wanted
            size += 1
        batch.n_tokens = size
        status = lc.llama_decode(self._context, batch)
        if status not in (0, _NO_KV_SLOT):
            raise StageError(
                f"llama.cpp cannot compute a batch: {last_error()}", "Lower engine.batch or engine.context."
            )
        return status == 0

    def log_probabilities(self, index: int, tokens: list[int]) -> list[float]:
        """Natural logs of the tokens' probabilities after the entry `index` of the last batch."""
        import llama_cpp as lc

        row = lc.llama_get_logits_ith(self._context, index)
        logits = np.ctypeslib.as_array(row, (self._weights.n_vocab,)).astype(np.float64)
        top = logits.max()
        total = top + np.log(np.exp(logits - top).sum())
        return [float(logits[t] - total) for t in tokens]

    def sampler(self, sampling: Sampling) -> Any:
        """A sampler chain of llama.cpp's; `free_sampler` it."""
        import llama_cpp as lc

        chain = lc.llama_sampler_chain_init(lc.llama_sampler_chain_default_params())
        if sampling.grammar:
            grammar = lc.llama_sampler_init_grammar(self._weights.vocab, sampling.grammar.encode(), b"root")
            lc.llama_sampler_chain_add(chain, grammar)
        if sampling.temperature == 0:
            lc.llama_sampler_chain_add(chain, lc.llama_sampler_init_greedy())
            return chain
        # min-p first: it needs no sorting, and leaves top-p few tokens to sort.
        lc.llama_sampler_chain_add(chain, lc.llama_sampler_init_min_p(sampling.min_p, 1))
        lc.llama_sampler_chain_add(chain, lc.llama_sampler_init_top_p(sampling.top_p, 1))
        lc.llama_sampler_chain_add(chain, lc.llama_sampler_init_temp(sampling.temperature))
        lc.llama_sampler_chain_add(chain, lc.llama_sampler_init_dist(sampling.seed))
        return chain

    def sample(self, sampler: Any, index: int) -> int:
        """The next token after the entry `index` of the last batch."""
        import llama_cpp as lc

        return int(lc.llama_sampler_sample(sampler, self._context, index))

    def free_sampler(self, sampler: Any) -> None:
        import llama_cpp as lc

        lc.llama_sampler_free(sampler)
