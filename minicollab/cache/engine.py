"""An engine whose answers are kept."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from minicollab.cache.store import Store
from minicollab.engine.base import Completion, Engine, Prompt, Sampling
from minicollab.schema import Message


class CachedEngine:
    """Asks `engine` what `store` does not know yet."""

    def __init__(self, engine: Engine, store: Store):
        self._engine, self._store = engine, store
        self.fingerprint, self.usage, self.context = engine.fingerprint, engine.usage, engine.context

    def chat(self, messages: Iterable[Message], reply: str = "") -> Prompt:
        return self._engine.chat(messages, reply)

    def plain(self, text: str) -> Prompt:
        return self._engine.plain(text)

    def count(self, text: str) -> int:
        return self._engine.count(text)

    def length(self, prompt: Prompt) -> int:
        return self._engine.length(prompt)

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Completion:
        async def ask() -> dict[str, Any]:
            return asdict(await self._engine.generate(prompt, sampling))

        # As text: the order of a schema's properties is that of the answer's.
        how = asdict(sampling) | {"json_schema": sampling.json_schema and json.dumps(sampling.json_schema)}
        request = self._request(prompt, how)
        known = await self._store.answer("generate", request, ask, tokens=lambda answer: answer["tokens"])
        logprobs = known.get("logprobs")
        return Completion(**known | {"logprobs": tuple(logprobs) if logprobs is not None else None})

    async def score(self, prompt: Prompt, continuations: Sequence[str]) -> list[float]:
        async def ask() -> list[float]:
            return await self._engine.score(prompt, continuations)

        return list(await self._store.answer("score", self._request(prompt, list(continuations)), ask))

    def _request(self, prompt: Prompt, how: Any) -> dict[str, Any]:
        """All that the answer depends on. The prompt is rendered: it holds the template's part."""
        return {"model": self.fingerprint, "prompt": [[s.text, s.control] for s in prompt], "how": how}
