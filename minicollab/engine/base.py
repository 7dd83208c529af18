"""The one seam to a model: `generate` text, `score` continuations, and on it `choose`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from minicollab.recipe import Generation
from minicollab.schema import Message


@dataclass(frozen=True)
class Segment:
    """A stretch of prompt. Only in control text do template markers mean anything:
    whatever people or models wrote is tokenized as plain text."""

    text: str
    control: bool = False


Prompt = tuple[Segment, ...]
Hear = Callable[[str], None]
"""Called with the whole text so far, each time that there is more of it."""


@dataclass(frozen=True)
class Sampling:
    """How to continue. `temperature` 0 is greedy; `top_k` 0 and `repetition_penalty` 1 are off.
    `stop` strings are cut from the answer, which keeps to `grammar` (GBNF) or `json_schema`, if
    there is one. The seed is always explicit, so that an answer can be had again."""

    max_tokens: int
    seed: int
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    grammar: str | None = None
    json_schema: Mapping[str, Any] | None = None
    logprobs: bool = False

    @classmethod
    def of(cls, how: Generation, seed: int, stop: tuple[str, ...] = ()) -> Sampling:
        """As the recipe says."""
        return cls(seed=seed, stop=stop, **how.model_dump())


@dataclass(frozen=True)
class Completion:
    """`stop_reason`: "end" (the model ended), "stop" (a stop string), "length" (max_tokens).
    `logprobs`, if asked for: the natural-log probability of each of the `tokens` that were
    generated, as the model gave it, before sampling cut anything off."""

    text: str
    tokens: int
    stop_reason: Literal["end", "stop", "length"]
    logprobs: tuple[float, ...] | None = None


@dataclass
class Usage:
    """What an engine has done, in tokens. `requested` counts every prompt token asked for,
    `computed` those whose keys and values were not already there."""

    generated_tokens: int = 0
    prompt_tokens_requested: int = 0
    prompt_tokens_computed: int = 0


class Engine(Protocol):
    """`fingerprint` names the weights by content; `usage` counts the work done so far;
    `context` is the most tokens that one request may have, its answer included."""

    fingerprint: str
    usage: Usage
    context: int

    def chat(self, messages: Iterable[Message], reply: str = "") -> Prompt:
        """The messages in the model's own chat template, opened for the assistant, whose
        answer already begins with `reply`."""
        ...

    def plain(self, text: str) -> Prompt:
        """`text` to be continued as it stands, without a template."""
        ...

    def count(self, text: str) -> int:
        """How many tokens `text` is for this model."""
        ...

    def length(self, prompt: Prompt) -> int:
        """How many tokens `prompt` is for this model."""
        ...

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Completion: ...

    async def score(self, prompt: Prompt, continuations: Sequence[str]) -> list[float]:
        """Natural-log probability of each continuation after `prompt`."""
        ...


async def choose(engine: Engine, prompt: Prompt, options: Sequence[str]) -> list[float]:
    """Probability of each option, given that the answer is one of them (they sum to 1)."""
    logs = await engine.score(prompt, options)
    top = max(logs)
    weights = [math.exp(x - top) for x in logs]
    return [w / sum(weights) for w in weights]
