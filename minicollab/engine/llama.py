"""Continuous batching over one llama.cpp context.

Coroutines put jobs in; every step admits what fits to free sequences, decodes one batch for
all of them, samples, and hands back what finished. A sequence keeps its tokens after its job
is done: a new job copies the cells of the longest prefix that is still there (`kv_unified`:
a copy marks cells as shared and moves no data) and computes only the rest. Scheduling depends
on the order of the requests and on nothing else, so the same requests give the same answers.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from minicollab import recipe
from minicollab.engine.base import Completion, Prompt, Sampling, Segment, Usage
from minicollab.engine.weights import load_weights
from minicollab.errors import ModelError, StageError
from minicollab.schema import Message

_NO_KV_SLOT = 1  # llama_decode: the batch did not fit into the context's cells, nothing was changed
_SETTLE = 12  # turns of the event loop between two steps, for coroutines to ask for more


@dataclass(eq=False)
class _Job:
    """`reads`: position → token ids whose log-probability there is wanted (a score);
    `sampling`: how to go on after the last token (a generation)."""

    tokens: np.ndarray
    future: asyncio.Future[Any]
    sampling: Sampling | None = None
    reads: dict[int, list[int]] = field(default_factory=dict)
    logs: list[float] = field(default_factory=list)
    waits_for: tuple[_Sequence, _Job, int] | None = None

    @property
    def first_output(self) -> int:
        return min(self.reads) if self.reads else len(self.tokens) - 1


@dataclass(eq=False)
class _Sequence:
    """One llama.cpp sequence: the tokens whose cells are computed, the tokens still to do."""

    id: int
    tokens: np.ndarray
    done: int = 0  # tokens[:done] are in the cells
    job: _Job | None = None
    sampler: Any = None
    produced: int = 0
    text: bytes = b""
    last_used: int = 0


def _common_prefix(a: np.ndarray, b: np.ndarray) -> int:
    n = min(len(a), len(b))
    different = a[:n] != b[:n]
    first = int(different.argmax()) if n else 0
    return first if n and different[first] else n


class LlamaEngine:
    """An `Engine` on a GGUF, with a LoRA adapter on top if one is given."""

    def __init__(self, gguf: Path, fingerprint: str, options: recipe.Engine, adapter: Path | None = None):
        import llama_cpp as lc

        self.fingerprint = fingerprint
        self.usage = Usage()
        self._weights = load_weights(gguf, options.gpu_layers)
        params = lc.llama_context_default_params()
        params.n_ctx = options.context
        params.n_batch = params.n_ubatch = options.batch
        params.n_seq_max = options.sequences
        params.kv_unified = True
        params.flash_attn_type = 1  # skips masked cells: other conversations in the pool cost nothing
        params.no_perf = True
        params.n_threads = params.n_threads_batch = options.threads or len(os.sched_getaffinity(0))
        self._context = lc.llama_init_from_model(self._weights.model, params)
        if not self._context:
            raise ModelError(
                f"llama.cpp cannot make a context of {options.context} tokens for {gguf.name}",
                "Lower engine.context in the recipe.",
            )
        self._memory = lc.llama_get_memory(self._context)
        if adapter:
            self._set_adapter(adapter)
        self._cells, self._room = options.context, options.batch
        self._batch = lc.llama_batch_init(options.batch, 0, 1)
        self._idle = [_Sequence(i, np.empty(0, np.int32)) for i in range(options.sequences)]
        self._running: list[_Sequence] = []
        self._queue: list[_Job] = []
        self._pump: asyncio.Task[None] | None = None
        self._clock = 0

    def _set_adapter(self, adapter: Path) -> None:
        import ctypes

        import llama_cpp as lc

        lora = lc.llama_adapter_lora_init(self._weights.model, str(adapter).encode())
        if not lora:
            raise ModelError(f"llama.cpp cannot load the adapter {adapter}", "Run the export stage again.")
        adapters = (lc.llama_adapter_lora_p_ctypes * 1)(lora)
        lc.llama_set_adapters_lora(self._context, adapters, 1, (ctypes.c_float * 1)(1.0))

    # What an Engine offers

    def chat(self, messages: Iterable[Message], reply: str = "") -> Prompt:
        return self._weights.template.render(messages, reply)

    def plain(self, text: str) -> Prompt:
        bos = self._weights.bos
        return (Segment(bos, control=True), Segment(text)) if bos else (Segment(text),)

    def count(self, text: str) -> int:
        return len(self._weights.text_tokens(text))

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Completion:
        return await self._submit(self._weights.tokenize(prompt), sampling=sampling)

    async def score(self, prompt: Prompt, continuations: Sequence[str]) -> list[float]:
        start = self._weights.tokenize(prompt)
        endings = [self._weights.text_tokens(c) for c in continuations]
        last = len(start) - 1
        if all(len(e) == 1 for e in endings):  # one pass: all are read off the same position
            return await self._submit(start, reads={last: [e[0] for e in endings]})
        parts = await asyncio.gather(
            *(self._submit(start + e[:-1], reads={last + i: [t] for i, t in enumerate(e)}) for e in endings)
        )
        return [sum(logs) for logs in parts]

    # The loop

    async def _submit(self, tokens: list[int], **what: Any) -> Any:
        job = _Job(np.array(tokens, np.int32), asyncio.get_running_loop().create_future(), **what)
        needed = len(tokens) + (job.sampling.max_tokens if job.sampling else 0)
        if needed > self._cells:
            raise ModelError(
                f"a conversation needs {needed} tokens, the context has {self._cells}",
                "Raise engine.context, or lower max_tokens or exchanges in the recipe.",
            )
        self.usage.prompt_tokens_requested += len(tokens)
        self._queue.append(job)
        if self._pump is None or self._pump.done():
            self._pump = asyncio.get_running_loop().create_task(self._run())
        return await job.future

    async def _run(self) -> None:
        try:
            while self._queue or self._running:
                for _ in range(_SETTLE):
                    await asyncio.sleep(0)
                self._step()
        except Exception as error:
            for job in [*self._queue, *(s.job for s in self._running if s.job)]:
                if not job.future.done():
                    job.future.set_exception(error)
            self._queue.clear()

    def _step(self) -> None:
        self._drop_cancelled()
        self._admit()
        while self._running:
            outputs, reached = self._fill_batch()
            if not self._decode():
                self._make_room()
                continue
            for sequence, done in reached:
                sequence.done = done
            for sequence, position, index in outputs:
                self._read(sequence, position, index)
            break

    def _drop_cancelled(self) -> None:
        self._queue = [job for job in self._queue if not job.future.done()]
        for sequence in [s for s in self._running if s.job and s.job.future.done()]:
            self._release(sequence)

    def _admit(self) -> None:
        waiting = []
        for position, job in enumerate(self._queue):
            if not self._idle:
                waiting += self._queue[position:]
                break
            if not self._start(job):
                waiting.append(job)
        self._queue = waiting

    def _start(self, job: _Job) -> bool:
        """Give the job a sequence; False if another one is just computing a prefix of it."""
        if job.waits_for:
            first, first_job, needed = job.waits_for
            if first.job is first_job and first.done < needed:
                return False
        donor: _Sequence | None = None
        shared = 0
        for sequence in [*self._running, *self._idle]:
            common = min(_common_prefix(sequence.tokens, job.tokens), job.first_output)
            if common > shared:
                donor, shared = sequence, common
        if donor and donor.done < shared:
            job.waits_for = (donor, donor.job, shared) if donor.job else None
            if donor.job:
                return False
            shared = donor.done
        spare = sorted(self._idle, key=lambda s: (len(s.tokens) > 0, s.last_used, s.id))
        sequence = next((s for s in spare if s is not donor), spare[0])
        self._take(sequence, job, donor, shared)
        return True

    def _take(self, sequence: _Sequence, job: _Job, donor: _Sequence | None, shared: int) -> None:
        import llama_cpp as lc

        if sequence is donor:
            lc.llama_memory_seq_rm(self._memory, sequence.id, shared, -1)
        else:
            lc.llama_memory_seq_rm(self._memory, sequence.id, -1, -1)
            if donor and shared:
                lc.llama_memory_seq_cp(self._memory, donor.id, sequence.id, 0, shared)
        self._idle.remove(sequence)
        self._running.append(sequence)
        sequence.tokens, sequence.done, sequence.job = job.tokens, shared, job
        sequence.produced, sequence.text = 0, b""
        sequence.sampler = self._sampler(job.sampling) if job.sampling else None
        job.logs.clear()
        self.usage.prompt_tokens_computed += len(job.tokens) - shared

    def _fill_batch(self) -> tuple[list[tuple[_Sequence, int, int]], list[tuple[_Sequence, int]]]:
        """Next tokens of all running sequences, single steps before prompts.

        Returns the outputs to read (sequence, position, index in the batch) and how far each
        sequence will be once the batch is decoded.
        """
        batch, size = self._batch, 0
        outputs, reached = [], []
        for sequence in sorted(self._running, key=lambda s: s.produced == 0):
            todo = min(len(sequence.tokens) - sequence.done, self._room - size)
            job = sequence.job
            assert job is not None
            for position in range(sequence.done, sequence.done + todo):
                wanted = position in job.reads or (job.sampling and position == len(sequence.tokens) - 1)
                batch.token[size] = int(sequence.tokens[position])
                batch.pos[size] = position
                batch.n_seq_id[size] = 1
                batch.seq_id[size][0] = sequence.id
                batch.logits[size] = bool(wanted)
                if wanted:
                    outputs.append((sequence, position, size))
                size += 1
            self._clock += 1
            sequence.last_used = self._clock
            reached.append((sequence, sequence.done + todo))
        batch.n_tokens = size
        return outputs, reached

    def _decode(self) -> bool:
        import llama_cpp as lc

        status = lc.llama_decode(self._context, self._batch)
        if status == _NO_KV_SLOT:
            return False
        if status != 0:
            raise StageError(
                f"llama_decode failed with status {status}", "Lower engine.batch or engine.context."
            )
        return True

    def _make_room(self) -> None:
        """The cells are used up: forget the prefix that was idle longest, else send the youngest job back."""
        import llama_cpp as lc

        kept = [s for s in self._idle if s.done]
        if kept:
            victim = min(kept, key=lambda s: s.last_used)
        else:
            victim = self._running[-1]
            assert victim.job is not None
            self._queue.insert(0, victim.job)
            self._release(victim)
        lc.llama_memory_seq_rm(self._memory, victim.id, -1, -1)
        victim.tokens, victim.done = np.empty(0, np.int32), 0

    def _release(self, sequence: _Sequence) -> None:
        import llama_cpp as lc

        if sequence.sampler:
            lc.llama_sampler_free(sequence.sampler)
        sequence.tokens = sequence.tokens[: sequence.done]
        sequence.job = sequence.sampler = None
        self._running.remove(sequence)
        self._idle.append(sequence)

    # Reading what a step computed

    def _read(self, sequence: _Sequence, position: int, index: int) -> None:
        job = sequence.job
        assert job is not None
        if job.sampling:
            self._sample(sequence, job, job.sampling, index)
            return
        job.logs += self._log_probabilities(index, job.reads[position])
        if position == max(job.reads):
            self._release(sequence)
            job.future.set_result(list(job.logs))

    def _log_probabilities(self, index: int, tokens: list[int]) -> list[float]:
        import llama_cpp as lc

        row = lc.llama_get_logits_ith(self._context, index)
        logits = np.ctypeslib.as_array(row, (self._weights.n_vocab,)).astype(np.float64)
        top = logits.max()
        total = top + np.log(np.exp(logits - top).sum())
        return [float(logits[t] - total) for t in tokens]

    def _sample(self, sequence: _Sequence, job: _Job, sampling: Sampling, index: int) -> None:
        import llama_cpp as lc

        token = lc.llama_sampler_sample(sequence.sampler, self._context, index)
        self.usage.generated_tokens += 1
        sequence.produced += 1
        if self._weights.ends(token):
            return self._finish(sequence, job, "end")
        sequence.text += self._weights.piece(token)
        text = sequence.text.decode("utf-8", "ignore")
        cut = min((at for s in sampling.stop if (at := text.find(s)) >= 0), default=-1)
        if cut >= 0:
            sequence.text = text[:cut].encode()
            return self._finish(sequence, job, "stop")
        if sequence.produced == sampling.max_tokens:
            return self._finish(sequence, job, "length")
        sequence.tokens = np.append(sequence.tokens, np.int32(token))

    def _finish(self, sequence: _Sequence, job: _Job, reason: str) -> None:
        text = sequence.text.decode("utf-8", "ignore")
        produced = sequence.produced
        self._release(sequence)
        job.future.set_result(Completion(text, produced, reason))  # type: ignore[arg-type]

    def _sampler(self, sampling: Sampling) -> Any:
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
