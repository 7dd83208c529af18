"""One llama.cpp context: cells, batches and logits, as plain Python calls."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any
from weakref import finalize

import numpy as np

from minicollab.engine.quiet import last_error
from minicollab.engine.sizing import Plan
from minicollab.engine.weights import Weights
from minicollab.errors import ModelError, StageError

_NO_KV_SLOT = 1  # llama_decode: the batch did not fit into the context's cells, nothing was changed


def set_adapter(model: Any, context: Any, adapter: Path) -> Any:
    """Put a LoRA GGUF on a llama.cpp context at full strength. Returns llama.cpp's handle on it, which
    the model owns and frees."""
    import llama_cpp as lc

    lora = lc.llama_adapter_lora_init(model, str(adapter).encode())
    if not lora:
        raise ModelError(
            f"llama.cpp cannot load the adapter {adapter.name}: {last_error()}",
            "Give the adapter.gguf that was exported for this model.",
        )
    _set_strength(context, lora, 1.0)
    return lora


def _set_strength(context: Any, lora: Any, strength: float) -> None:
    import llama_cpp as lc

    adapters = (lc.llama_adapter_lora_p_ctypes * 1)(lora)
    lc.llama_set_adapters_lora(context, adapters, 1, (ctypes.c_float * 1)(strength))


def _free(context: Any, weights: Weights) -> None:
    """`weights` must still be there then: whoever holds this holds them."""
    import llama_cpp as lc

    lc.llama_free(context)


class Batch:
    """What one llama_decode computes: runs of consecutive tokens, each of one sequence.

    Its memory is numpy's, so that a run is written in a few assignments.
    """

    def __init__(self, size: int):
        import llama_cpp as lc

        self.size, self.used, self.wanted = size, 0, 0
        self._tokens, self._positions, self._sequences = (np.zeros(size, np.int32) for _ in range(3))
        self._counts, self._outputs = np.ones(size, np.int32), np.zeros(size, np.int8)
        one = self._sequences.itemsize
        self._pointers = self._sequences.ctypes.data + one * np.arange(size, dtype=np.uintp)
        self._struct = lc.llama_batch(0)
        for name, array in (
            ("token", self._tokens), ("pos", self._positions), ("n_seq_id", self._counts),
            ("seq_id", self._pointers), ("logits", self._outputs),
        ):  # fmt: skip
            kind = dict(lc.llama_batch._fields_)[name]
            setattr(self._struct, name, ctypes.cast(array.ctypes.data, kind))

    @property
    def room(self) -> int:
        return self.size - self.used

    def clear(self) -> None:
        self.used = self.wanted = 0

    def add(self, sequence: int, position: int, tokens: np.ndarray) -> int:
        """Put the tokens of a sequence in, the first of them at `position`. Returns where they begin."""
        start, end = self.used, self.used + len(tokens)
        self._tokens[start:end] = tokens
        self._positions[start:end] = np.arange(position, position + len(tokens))
        self._sequences[start:end] = sequence
        self._outputs[start:end] = 0
        self.used = end
        return start

    def want(self, index: int) -> None:
        """Ask for the logits after the entry `index`; rows come in the order of the entries."""
        self._outputs[index] = 1
        self.wanted += 1

    def struct(self) -> Any:
        self._struct.n_tokens = self.used
        return self._struct


class Context:
    """A context on `weights`, with a LoRA adapter if one is given. Its sequences share one pool
    of cells (`kv_unified`), so copying a prefix marks cells as shared and moves no data."""

    def __init__(self, weights: Weights, plan: Plan, sequences: int, threads: int, adapter: Path | None):
        import llama_cpp as lc

        self.plan, self.sequences = plan, sequences
        params = lc.llama_context_default_params()
        params.n_ctx = plan.context
        params.n_batch = params.n_ubatch = plan.batch
        params.n_seq_max = sequences
        params.n_threads = params.n_threads_batch = threads
        params.kv_unified = True
        params.flash_attn_type = int(plan.flash)
        params.no_perf = True
        self._n_vocab = weights.n_vocab
        self._context = lc.llama_init_from_model(weights.model, params)
        if not self._context:
            raise ModelError(
                f"llama.cpp cannot make a context of {plan.context} tokens for {weights.path.name}",
                "Lower engine.context in the recipe, or --context.",
            )
        self.free = finalize(self, _free, self._context, weights)  # or when nobody uses it any more
        self.free.atexit = False
        self._memory = lc.llama_get_memory(self._context)
        self.batch = Batch(plan.batch)
        self._adapter = set_adapter(weights.model, self._context, adapter) if adapter else None

    def set_strength(self, strength: float) -> None:
        """How much of the adapter counts from now on. What is in the cells was computed before."""
        _set_strength(self._context, self._adapter, strength)

    def forget(self, sequence: int, start: int = 0) -> None:
        """Free the sequence's cells from position `start` on."""
        import llama_cpp as lc

        lc.llama_memory_seq_rm(self._memory, sequence, start, -1)

    def share(self, source: int, target: int, tokens: int) -> None:
        """Let `target` have the first `tokens` cells of `source`."""
        import llama_cpp as lc

        lc.llama_memory_seq_cp(self._memory, source, target, 0, tokens)

    def decode(self) -> bool:
        """Compute `batch`. False if the cells do not suffice: then nothing was changed.

        StageError if llama.cpp fails.
        """
        import llama_cpp as lc

        status = lc.llama_decode(self._context, self.batch.struct())
        if status not in (0, _NO_KV_SLOT):
            raise StageError(
                f"llama.cpp cannot compute a batch: {last_error()}", "Lower engine.batch or engine.context."
            )
        return status == 0

    def logits(self) -> np.ndarray:
        """What the last batch was asked for, float32 (wanted, n_vocab); good until the next one."""
        import llama_cpp as lc

        rows = lc.llama_get_logits(self._context)
        return np.ctypeslib.as_array(rows, (self.batch.wanted, self._n_vocab))
