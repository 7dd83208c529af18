"""An engine that says what it was told to: tests of the logic need no model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from minicollab.engine.base import Completion, Prompt, Sampling, Segment, Usage
from minicollab.schema import Message

T = TypeVar("T")


@dataclass(frozen=True)
class Request:
    """What was asked: the prompt as flat text, and either how to go on or what to score."""

    kind: Literal["generate", "score"]
    prompt: str
    sampling: Sampling | None = None
    continuations: tuple[str, ...] = ()


class ScriptedEngine:
    """An `Engine` whose answers come from a list, in the order of the requests, or from a callable.

    `generate` gives texts or whole completions, `score` natural-log probabilities, one list a
    request. A token is a word. `requests` holds whatever was asked. AssertionError when a list
    has run out of lines.
    """

    def __init__(
        self,
        generate: Sequence[str | Completion] | Callable[[Request], str | Completion] = (),
        score: Sequence[list[float]] | Callable[[Request], list[float]] = (),
        fingerprint: str = "scripted",
        context: int = 10_000,
    ):
        self.fingerprint, self.usage, self.context = fingerprint, Usage(), context
        self.requests: list[Request] = []
        self._generate, self._score = _answerer(generate), _answerer(score)

    def chat(self, messages: Iterable[Message], reply: str = "") -> Prompt:
        turns = [(Segment(f"<{m.role}>", control=True), Segment(m.content)) for m in messages]
        return (*(s for turn in turns for s in turn), Segment("<assistant>", control=True), Segment(reply))

    def plain(self, text: str) -> Prompt:
        return (Segment(text),)

    def count(self, text: str) -> int:
        return len(text.split())

    def length(self, prompt: Prompt) -> int:
        return self.count(_flat(prompt))

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Completion:
        answer = self._generate(self._note(Request("generate", _flat(prompt), sampling)))
        if isinstance(answer, str):
            answer = Completion(answer, self.count(answer), "end")
        self.usage.generated_tokens += answer.tokens
        return answer

    async def score(self, prompt: Prompt, continuations: Sequence[str]) -> list[float]:
        return self._score(self._note(Request("score", _flat(prompt), None, tuple(continuations))))

    def _note(self, request: Request) -> Request:
        self.requests.append(request)
        self.usage.prompt_tokens_requested += self.count(request.prompt)
        self.usage.prompt_tokens_computed += self.count(request.prompt)
        return request


def _flat(prompt: Prompt) -> str:
    return "".join(segment.text for segment in prompt)


def _answerer(script: Sequence[T] | Callable[[Request], T]) -> Callable[[Request], T]:
    if callable(script):
        return script
    lines = iter(script)

    def next_line(request: Request) -> T:
        for line in lines:
            return line
        raise AssertionError(f"the script has no line left for: {request}")

    return next_line
