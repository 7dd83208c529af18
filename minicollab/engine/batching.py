"""Continuous batching over one llama.cpp context.

Every step admits the jobs that fit to free sequences, computes one batch for all of them,
samples, and hands back what finished. A sequence keeps its tokens after its job is done: a new
job takes over the cells of the longest prefix that is still there and computes only the rest.
Scheduling depends on the order of the jobs and on nothing else.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from minicollab.engine.base import Completion, Hear, Sampling, Usage
from minicollab.engine.context import Context
from minicollab.engine.prefixes import Prefixes
from minicollab.engine.sampler import Candidates, Sampler, log_probabilities
from minicollab.engine.weights import Weights
from minicollab.errors import MinicollabError

# Deterministic: a token's arithmetic depends on which tokens are computed with it, so prompts are
# computed, and reused, in whole pieces of this many tokens. Flash attention's tiles are as long.
_GRID = 64


@dataclass(eq=False)
class Job:
    """`tokens`: the prompt's ids, int32. `reads`: position → ids whose log-probability there is
    wanted (a score). `sampling`: how to go on after the last token (a generation), and who hears it."""

    tokens: np.ndarray
    future: asyncio.Future[Any]
    sampling: Sampling | None = None
    reads: dict[int, list[int]] = field(default_factory=dict)
    hear: Hear | None = None
    waits_for: tuple[_Sequence, Job, int] | None = None

    def __post_init__(self) -> None:
        self.outputs = sorted(self.reads) if self.reads else [len(self.tokens) - 1]

    @property
    def longest(self) -> int:
        """How many tokens it may have in the end."""
        return len(self.tokens) + (self.sampling.max_tokens if self.sampling else 0)


@dataclass(eq=False)
class _Sequence:
    """One llama.cpp sequence: `tokens[:length]` are known, `tokens[:done]` are in its cells,
    `tokens[:reach]` will be once the batch is computed."""

    id: int
    tokens: np.ndarray = field(default_factory=lambda: np.empty(0, np.int32))
    length: int = 0
    done: int = 0
    reach: int = 0
    last_used: int = 0
    job: Job | None = None
    sampler: Sampler | None = None
    text: bytes = b""
    logs: list[float] = field(default_factory=list)

    @property
    def produced(self) -> int:
        assert self.job is not None
        return self.length - len(self.job.tokens)


class Batcher:
    """Jobs go in with `submit`; each `step` moves all that are running on by one batch."""

    def __init__(self, weights: Weights, context: Context, usage: Usage, deterministic: bool):
        self._weights, self._context, self._usage = weights, context, usage
        self._deterministic = deterministic
        self._candidates = Candidates(weights.n_vocab)
        self._prefixes = Prefixes()
        self._sequences = [_Sequence(i) for i in range(context.sequences)]
        self._idle = list(self._sequences)
        self._running: list[_Sequence] = []
        self._queue: list[Job] = []
        self._clock = 0

    def submit(self, job: Job) -> None:
        self._usage.prompt_tokens_requested += len(job.tokens)
        self._queue.append(job)

    @property
    def busy(self) -> bool:
        return bool(self._queue or self._running)

    def step(self) -> None:
        """Admit what fits, compute one batch, hand back what finished."""
        self._drop_cancelled()
        self._forget_old()
        self._admit()
        while self._running:
            outputs = self._fill()
            if self._context.decode():
                for sequence in self._running:
                    sequence.done = sequence.reach
                self._read(outputs)
                break
            self._make_room()

    def forget(self) -> None:
        """Nothing that was computed so far is used again. Only while nobody waits."""
        self._drop_cancelled()
        for sequence in self._sequences:
            self._forget(sequence)

    def fail(self, error: Exception) -> None:
        """Hand `error` to everybody who waits."""
        for job in [*self._queue, *(s.job for s in self._running if s.job)]:
            if not job.future.done():
                job.future.set_exception(error)

    # Who runs

    def _drop_cancelled(self) -> None:
        self._queue = [job for job in self._queue if not job.future.done()]
        for sequence in [s for s in self._running if s.job and s.job.future.done()]:
            self._release(sequence)

    def _admit(self) -> None:
        if self._deterministic and self._idle:  # no answer depends on the order: waste least
            self._queue.sort(key=lambda job: -self._donor(job)[0])
        waiting = []
        for position, job in enumerate(self._queue):
            if self._prefix_under_way(job):
                waiting.append(job)
            elif not self._start(job):  # later jobs do not overtake, or a long one might wait forever
                waiting += self._queue[position:]
                break
        self._queue = waiting

    def _prefix_under_way(self, job: Job) -> bool:
        """Whether another sequence is just computing a beginning of this job's prompt."""
        if job.waits_for:
            sequence, its_job, needed = job.waits_for
            if sequence.job is its_job and sequence.done < needed:
                return True
        shared, donor = self._donor(job)
        job.waits_for = (donor, donor.job, shared) if donor and donor.job else None
        return donor is not None and donor.done < shared

    def _donor(self, job: Job) -> tuple[int, _Sequence | None]:
        """How many tokens of the job's prompt are there, or under way, and in which sequence."""
        match = self._prefixes.longest(job.tokens[: job.outputs[0]])
        shared = match.length - match.length % _GRID if self._deterministic else match.length
        if not shared:
            return 0, None
        return shared, max((self._sequences[i] for i in sorted(match.holders)), key=lambda s: s.done)

    def _start(self, job: Job) -> bool:
        """Give the job a sequence, if there is one, and cells for all that it may need."""
        if not self._idle:
            return False
        pinned = self._prefixes.longest(job.tokens).pinned
        answers = sum(s.job.longest - len(s.job.tokens) for s in self._running if s.job)
        if (
            self._running
            and self._prefixes.pinned + answers + job.longest - pinned > self._context.plan.context
        ):
            return False
        shared, donor = self._donor(job)
        spare = sorted(self._idle, key=lambda s: (s.done > 0, s.last_used, s.id))
        self._take(next((s for s in spare if s is not donor), spare[0]), job, donor, shared)
        return True

    def _take(self, sequence: _Sequence, job: Job, donor: _Sequence | None, shared: int) -> None:
        sampler = None
        if job.sampling:
            try:
                sampler = Sampler(self._weights.vocab, self._candidates, job.sampling, job.tokens)
            except MinicollabError as error:
                job.future.set_exception(error)
                return
        if donor:
            donor.last_used = self._clock
        if sequence is donor:
            self._context.forget(sequence.id, shared)
        else:
            self._context.forget(sequence.id)
            if donor:
                self._context.share(donor.id, sequence.id, shared)
        self._idle.remove(sequence)
        self._running.append(sequence)
        sequence.tokens = np.empty(job.longest, np.int32)
        sequence.tokens[: len(job.tokens)] = job.tokens
        sequence.length, sequence.done, sequence.job = len(job.tokens), shared, job
        sequence.sampler, sequence.text, sequence.logs = sampler, b"", []
        self._prefixes.put(sequence.id, job.tokens, pin=True)
        self._usage.prompt_tokens_computed += len(job.tokens) - shared

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
        self._forget(victim)

    def _forget_old(self) -> None:
        patience = self._context.plan.patience
        if patience is None:
            return
        for sequence in self._idle:
            if sequence.done and self._clock - sequence.last_used > patience:
                self._forget(sequence)

    def _forget(self, sequence: _Sequence) -> None:
        self._context.forget(sequence.id)
        self._prefixes.drop(sequence.id)
        sequence.length = sequence.done = 0

    def _release(self, sequence: _Sequence) -> None:
        """The sequence's job is over; what was computed for it stays until the room is needed."""
        assert sequence.job is not None
        if sequence.sampler:
            sequence.sampler.free()
        if self._deterministic:  # what was generated token by token is not what a prompt would be
            sequence.done = min(sequence.done, len(sequence.job.tokens))
        sequence.length = sequence.done
        self._prefixes.put(sequence.id, sequence.tokens[: sequence.done], pin=False)
        sequence.job = sequence.sampler = None
        self._running.remove(sequence)
        self._idle.append(sequence)

    # What they compute

    def _fill(self) -> list[tuple[_Sequence, int]]:
        """Write the next tokens of all running sequences into the batch, single steps before
        prompts. Returns the (sequence, position) of every row of logits that will come."""
        batch, outputs = self._context.batch, []
        batch.clear()
        self._clock += 1
        for sequence in sorted(self._running, key=lambda s: s.length - s.done > 1):
            start, job = sequence.done, sequence.job
            assert job is not None
            end = min(sequence.length, start + batch.room)
            if self._deterministic:
                end = min(end, start - start % _GRID + _GRID)
            at = batch.add(sequence.id, start, sequence.tokens[start:end])
            wanted = job.outputs if sequence.produced == 0 else [sequence.length - 1]
            for position in wanted:
                if start <= position < end:
                    batch.want(at + position - start)
                    outputs.append((sequence, position))
            sequence.reach, sequence.last_used = end, self._clock
        return outputs

    def _read(self, outputs: list[tuple[_Sequence, int]]) -> None:
        if not outputs:
            return
        for (sequence, position), row in zip(outputs, self._context.logits(), strict=True):
            job = sequence.job
            assert job is not None
            if job.sampling:
                self._extend(sequence, job, job.sampling, row)
                continue
            sequence.logs += log_probabilities(row, job.reads[position])
            if position == job.outputs[-1]:
                self._release(sequence)
                job.future.set_result(sequence.logs)

    def _extend(self, sequence: _Sequence, job: Job, sampling: Sampling, row: np.ndarray) -> None:
        assert sequence.sampler is not None
        token = sequence.sampler.next(row)
        self._usage.generated_tokens += 1
        sequence.tokens[sequence.length] = token
        sequence.length += 1
        if sampling.logprobs:
            sequence.logs += log_probabilities(row, [token])
        if self._weights.ends(token):
            return self._finish(sequence, job, "end")
        sequence.text += self._weights.piece(token)
        text = sequence.text.decode("utf-8", "ignore")
        cut = min((at for s in sampling.stop if (at := text.find(s)) >= 0), default=-1)
        if cut >= 0:
            sequence.text = text[:cut].encode()
            return self._finish(sequence, job, "stop")
        if job.hear:
            job.hear(text)
        if sequence.produced == sampling.max_tokens:
            self._finish(sequence, job, "length")

    def _finish(self, sequence: _Sequence, job: Job, reason: str) -> None:
        assert job.sampling is not None
        logs = tuple(sequence.logs) if job.sampling.logprobs else None
        text, produced = sequence.text.decode("utf-8", "ignore"), sequence.produced
        self._release(sequence)
        job.future.set_result(Completion(text, produced, reason, logs))  # type: ignore[arg-type]
