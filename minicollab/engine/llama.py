"""Continuous batching over one llama.cpp context.

Coroutines put jobs in; every step admits what fits to free sequences, decodes one batch for
all of them, samples, and hands back what finished. A sequence keeps its tokens after its job
is done: a new job takes over the cells of the longest prefix that is still there and computes
only the rest. Scheduling depends on the order of the requests and on nothing else, so the same
requests give the same answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from minicollab import recipe
from minicollab.engine.base import Completion, Prompt, Sampling, Segment, Usage
from minicollab.engine.context import Context
from minicollab.engine.turns import turns
from minicollab.engine.weights import load_weights
from minicollab.errors import ModelError
from minicollab.schema import Message


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

    def wants(self, position: int, length: int) -> bool:
        """Whether what the model says at `position` of a sequence of `length` tokens is needed."""
        return position in self.reads or (self.sampling is not None and position == length - 1)


@dataclass(eq=False)
class _Sequence:
    """One llama.cpp sequence; `tokens[:done]` are in its cells."""

    id: int
    tokens: np.ndarray = field(default_factory=lambda: np.empty(0, np.int32))
    done: int = 0
    job: _Job | None = None
    sampler: Any = None
    produced: int = 0
    text: bytes = b""
    last_used: int = 0


@dataclass(frozen=True)
class _Batch:
    """`entries` as Context.decode takes them; `outputs`: (sequence, position, index in the batch)
    to read; `reached`: how far each sequence is once the batch is computed."""

    entries: list[tuple[int, int, int, bool]]
    outputs: list[tuple[_Sequence, int, int]]
    reached: list[tuple[_Sequence, int]]


class LlamaEngine:
    """An `Engine` on a GGUF, with a LoRA adapter on top if one is given."""

    def __init__(self, gguf: Path, fingerprint: str, options: recipe.Engine, adapter: Path | None = None):
        self.fingerprint = fingerprint
        self.usage = Usage()
        self.size = gguf.stat().st_size
        self._weights = load_weights(gguf, options.gpu_layers)
        self._context = Context(self._weights, options, adapter)
        self.context, self._batch_size = self._context.cells, self._context.batch_size
        self._idle = [_Sequence(i) for i in range(options.sequences)]
        self._running: list[_Sequence] = []
        self._queue: list[_Job] = []
        self._clock = 0

    # What an Engine offers

    def chat(self, messages: Iterable[Message], reply: str = "") -> Prompt:
        return self._weights.template.render(messages, reply)

    def plain(self, text: str) -> Prompt:
        bos = self._weights.bos
        return (Segment(bos, control=True), Segment(text)) if bos else (Segment(text),)

    def count(self, text: str) -> int:
        return len(self._weights.text_tokens(text))

    def length(self, prompt: Prompt) -> int:
        return len(self._weights.tokenize(prompt))

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Completion:
        answer: Completion = await self._submit(self._weights.tokenize(prompt), sampling=sampling)
        return answer

    async def score(self, prompt: Prompt, continuations: Sequence[str]) -> list[float]:
        start = self._weights.tokenize(prompt)
        endings = [self._weights.text_tokens(c) for c in continuations]
        last = len(start) - 1
        if all(len(e) == 1 for e in endings):  # one pass: all are read off the same position
            return list(await self._submit(start, reads={last: [e[0] for e in endings]}))
        parts = await asyncio.gather(
            *(self._submit(start + e[:-1], reads={last + i: [t] for i, t in enumerate(e)}) for e in endings)
        )
        return [sum(logs) for logs in parts]

    async def _submit(self, tokens: list[int], **what: Any) -> Any:
        job = _Job(np.array(tokens, np.int32), asyncio.get_running_loop().create_future(), **what)
        needed = len(tokens) + (job.sampling.max_tokens if job.sampling else 0)
        if needed > self.context:
            raise ModelError(
                f"a conversation needs {needed} tokens, the context has {self.context}",
                "Raise engine.context, or lower max_tokens or exchanges in the recipe.",
            )
        self.usage.prompt_tokens_requested += len(tokens)
        self._queue.append(job)
        turns.wake(self)
        return await job.future

    # The loop

    @property
    def busy(self) -> bool:
        return bool(self._queue or self._running)

    def step(self) -> None:
        """Admit what fits, compute one batch, hand back what finished."""
        self._drop_cancelled()
        self._admit()
        while self._running:
            batch = self._next_batch()
            if not self._context.decode(batch.entries):
                self._make_room()
                continue
            for sequence, done in batch.reached:
                sequence.done = done
            for sequence, position, index in batch.outputs:
                self._read(sequence, position, index)
            break

    def fail(self, error: Exception) -> None:
        """Hand `error` to everybody who waits."""
        for job in [*self._queue, *(s.job for s in self._running if s.job)]:
            if not job.future.done():
                job.future.set_exception(error)

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
        if donor and donor.job and donor.done < shared:
            job.waits_for = (donor, donor.job, shared)
            return False
        spare = sorted(self._idle, key=lambda s: (s.done > 0, s.last_used, s.id))
        self._take(next((s for s in spare if s is not donor), spare[0]), job, donor, shared)
        return True

    def _take(self, sequence: _Sequence, job: _Job, donor: _Sequence | None, shared: int) -> None:
        if sequence is donor:
            self._context.forget(sequence.id, shared)
        else:
            self._context.forget(sequence.id)
            if donor:
                self._context.share(donor.id, sequence.id, shared)
        self._idle.remove(sequence)
        self._running.append(sequence)
        sequence.tokens, sequence.done, sequence.job = job.tokens, shared, job
        sequence.produced, sequence.text = 0, b""
        sequence.sampler = self._context.sampler(job.sampling) if job.sampling else None
        job.logs.clear()
        self.usage.prompt_tokens_computed += len(job.tokens) - shared

    def _next_batch(self) -> _Batch:
        """The next tokens of all running sequences, single steps before prompts."""
        batch = _Batch([], [], [])
        for sequence in sorted(self._running, key=lambda s: s.produced == 0):
            assert sequence.job is not None
            length = len(sequence.tokens)
            end = min(length, sequence.done + self._batch_size - len(batch.entries))
            for position in range(sequence.done, end):
                wanted = sequence.job.wants(position, length)
                if wanted:
                    batch.outputs.append((sequence, position, len(batch.entries)))
                batch.entries.append((int(sequence.tokens[position]), position, sequence.id, wanted))
            batch.reached.append((sequence, end))
            self._clock += 1
            sequence.last_used = self._clock
        return batch

    def _make_room(self) -> None:
        """The cells are used up: forget the prefix that was idle longest, else send the youngest
        job back to begin again."""
        kept = [s for s in self._idle if s.done]
        if kept:
            victim = min(kept, key=lambda s: s.last_used)
        else:
            victim = self._running[-1]
            assert victim.job is not None
            self._queue.insert(0, victim.job)
            self._release(victim)
        self._context.forget(victim.id)
        victim.tokens, victim.done = victim.tokens[:0], 0

    def _release(self, sequence: _Sequence) -> None:
        if sequence.sampler:
            self._context.free_sampler(sequence.sampler)
        sequence.tokens = sequence.tokens[: sequence.done]
        sequence.job = sequence.sampler = None
        self._running.remove(sequence)
        self._idle.append(sequence)

    def _read(self, sequence: _Sequence, position: int, index: int) -> None:
        job = sequence.job
        assert job is not None
        if job.sampling:
            self._extend(sequence, job, job.sampling, index)
            return
        job.logs += self._context.log_probabilities(index, job.reads[position])
        if position == max(job.reads):
            self._release(sequence)
            job.future.set_result(list(job.logs))

    def _extend(self, sequence: _Sequence, job: _Job, sampling: Sampling, index: int) -> None:
        token = self._context.sample(sequence.sampler, index)
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
        text, produced = sequence.text.decode("utf-8", "ignore"), sequence.produced
        self._release(sequence)
        job.future.set_result(Completion(text, produced, reason))  # type: ignore[arg-type]


def _common_prefix(a: np.ndarray, b: np.ndarray) -> int:
    n = min(len(a), len(b))
    different = a[:n] != b[:n]
    first = int(different.argmax()) if n else 0
    return first if n and different[first] else n
