"""An `Engine` on a local GGUF: llama.cpp in this process, all requests in one running batch."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minicollab import recipe
from minicollab.engine.base import Completion, Hear, Prompt, Sampling, Segment, Usage
from minicollab.engine.batching import Batcher, Job
from minicollab.engine.context import Context
from minicollab.engine.sizing import cores, plan
from minicollab.engine.turns import turns
from minicollab.engine.weights import load_weights
from minicollab.errors import ModelError
from minicollab.schema import Message

_LOG = logging.getLogger("minicollab")


class LlamaEngine:
    """The model of a GGUF, with a LoRA adapter on top if one is given. Engines on the same GGUF
    share its weights; each has its own context, so no prefix is ever taken from another adapter.

    With `options.deterministic` an answer depends on its request alone: one request is computed
    at a time, as if it were the only one.
    """

    def __init__(self, gguf: Path, fingerprint: str, options: recipe.Engine, adapter: Path | None = None):
        # Answers of the two kinds of arithmetic are not the same, so neither is served as the other.
        self.fingerprint = f"{fingerprint}-deterministic" if options.deterministic else fingerprint
        self.usage = Usage()
        self.size = gguf.stat().st_size
        self._weights = load_weights(gguf, options.gpu_layers)
        self.plan = plan(self._weights, options)
        _LOG.info(self.plan.line)
        self.context = self.plan.longest
        sequences = 1 if options.deterministic else options.sequences
        self._context = Context(self._weights, self.plan, sequences, options.threads or cores(), adapter)
        self._batcher = Batcher(self._weights, self._context, self.usage, options.deterministic)

    def chat(self, messages: Iterable[Message], reply: str = "") -> Prompt:
        return self._weights.template.render(messages, reply)

    def plain(self, text: str) -> Prompt:
        bos = self._weights.bos
        return (Segment(bos, control=True), Segment(text)) if bos else (Segment(text),)

    def count(self, text: str) -> int:
        return len(self._weights.text_tokens(text))

    def length(self, prompt: Prompt) -> int:
        return len(self._weights.tokenize(prompt))

    def set_strength(self, strength: float) -> None:
        """How much of the adapter counts from now on: 0 nothing, 1 all of it. What was computed is
        forgotten. Not for an engine whose answers are cached."""
        self._context.set_strength(strength)
        self._batcher.forget()

    async def generate(self, prompt: Prompt, sampling: Sampling, hear: Hear | None = None) -> Completion:
        answer: Completion = await self._submit(self._weights.tokenize(prompt), sampling=sampling, hear=hear)
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
        job = Job(np.array(tokens, np.int32), asyncio.get_running_loop().create_future(), **what)
        if job.longest > self.context:
            raise ModelError(
                f"a conversation needs {job.longest} tokens, the context has {self.context}",
                "Raise engine.context, or lower max_tokens or exchanges in the recipe.",
            )
        self._batcher.submit(job)
        turns.wake(self)
        return await job.future

    # What `turns` drives

    @property
    def busy(self) -> bool:
        return self._batcher.busy

    def step(self) -> None:
        self._batcher.step()

    def fail(self, error: Exception) -> None:
        self._batcher.fail(error)
