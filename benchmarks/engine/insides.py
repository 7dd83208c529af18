"""What the engine adds to llama.cpp: its decoding against a bare loop over the same batches, and
the share of a step that is not spent in llama.cpp."""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import llama_cpp as lc
import numpy as np

from benchmarks.engine import ours, workloads
from benchmarks.engine.contest import Answer, serve
from minicollab.schema import Message

_FIELDS = ("token", "pos", "n_seq_id", "logits")
_CELLS = ("llama_memory_seq_rm", "llama_memory_seq_cp", "llama_memory_seq_keep", "llama_memory_clear")


class Tape:
    """Stands before all functions of llama_cpp: adds up the seconds inside them, and keeps batches
    and operations on cells, so that a second, equal context can be taken through the same."""

    def __init__(self) -> None:
        self.inside = 0.0
        self.steps: list[Callable[[Any], Any]] = []
        names = [n for n, f in vars(lc).items() if n.startswith("llama_") and isinstance(f, ctypes._CFuncPtr)]
        for name in names:
            setattr(lc, name, self._watched(name, getattr(lc, name)))

    def _watched(self, name: str, function: Any) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            start = time.perf_counter()
            result = function(*arguments)
            self.inside += time.perf_counter() - start
            if name == "llama_init_from_model":
                self._twin = partial(function, *arguments)
            elif name == "llama_decode":
                self.steps.append(partial(_decode, function, _copied(arguments[1])))
            elif name in _CELLS:
                self.steps.append(partial(_cells, function, arguments[1:]))
            return result

        return call

    def twin(self) -> Any:
        """A context with the parameters of the last one that was made."""
        return self._twin()

    def play(self, context: Any) -> float:
        """Take `context` through what is on the tape, and empty it. Returns the seconds."""
        start = time.perf_counter()
        for step in self.steps:
            step(context)
        seconds = time.perf_counter() - start
        self.steps.clear()
        return seconds


def _copied(batch: Any) -> Any:
    """A llama_batch with memory of its own, each entry of one sequence."""
    n = batch.n_tokens
    copy = lc.llama_batch_init(n, 0, 1)
    copy.n_tokens = n
    for field in _FIELDS:
        source, target = (np.ctypeslib.as_array(getattr(b, field), (n,)) for b in (batch, copy))
        target[:] = source
    for i in range(n):
        copy.seq_id[i][0] = batch.seq_id[i][0]
    return copy


def _decode(function: Any, batch: Any, context: Any) -> None:
    status = function(context, batch)
    assert status in (0, 1), f"llama_decode: {status}"
    lc.llama_synchronize(context)


def _cells(function: Any, arguments: tuple[Any, ...], context: Any) -> None:
    function(lc.llama_get_memory(context), *arguments)


def main(gguf: Path, sequences: int) -> None:
    tape = Tape()
    engine = ours.never_ending(ours.make(gguf))
    twin = tape.twin()

    def decode(number: int, tokens: int) -> Answer:
        """First the prompt, not timed; then `sequences` answers at once, by the engine, and the
        same batches by the bare loop."""
        prompt = engine.chat([Message(m["role"], m["content"]) for m in workloads.story(number)])  # type: ignore[arg-type]
        ours.timed(engine.generate(prompt, workloads.sampling(1, 1)), engine)
        tape.play(twin)
        tape.inside = 0.0
        work = [engine.generate(prompt, workloads.sampling(i + 1, tokens)) for i in range(sequences)]
        answer = ours.timed(ours.together(work), engine)
        inside, batches = tape.inside, len(tape.steps)
        raw = tape.play(twin)
        share = 1 - inside / answer["seconds"]
        return answer | {"raw_seconds": raw, "python_share": share, "calls": batches}

    serve({"decode": decode})


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
