"""Models on OpenAI-compatible servers: llama-server, vLLM, Ollama, LM Studio, OpenAI's own.

They answer in slightly different shapes; where they do, the comment says who does it how.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, lru_cache
from itertools import repeat
from typing import Any

from minicollab import recipe
from minicollab.engine.base import Completion, Prompt, Sampling, Segment, Usage
from minicollab.engine.server import Refusal, Server
from minicollab.errors import ModelError, NoLogprobsError
from minicollab.schema import Message

_ALTERNATIVES = 20  # as many as OpenAI and vLLM list at most
_BYTES_PER_TOKEN, _TOKENS_PER_MESSAGE = 4, 4  # for estimates


class RemoteEngine:
    """An `Engine` that asks a server. `name` is the recipe's `http://host:port/v1#model`.

    `fingerprint` is the sha256 of address and model name: what weights the server really holds
    cannot be known, so a server that swaps them under the same name needs another name or cache.
    Messages travel as JSON; whether one that spells a control token becomes one is up to the server.
    """

    def __init__(self, name: str, options: recipe.Remote):
        url, _, self._model = name.partition("#")
        url = url.rstrip("/")
        self.fingerprint = hashlib.sha256(json.dumps([url, self._model]).encode()).hexdigest()
        self.usage, self.context = Usage(), options.context
        self._server = Server(url, options)
        self._tokenizer = Server(url.removesuffix("/v1"), options)
        self._known_counts = lru_cache(maxsize=10_000)(self._tokenize)

    def chat(self, messages: Iterable[Message], reply: str = "") -> Prompt:
        """The messages as they are, each a control segment (its role) and a plain one; the
        server has the template. An assistant message at the end is to be continued."""
        begun = (Message("assistant", reply),) if reply else ()
        return tuple(
            s for m in (*messages, *begun) for s in (Segment(m.role, control=True), Segment(m.content))
        )

    def plain(self, text: str) -> Prompt:
        return (Segment(text),)

    def count(self, text: str) -> int:
        """Tokens of `text` by the server's tokenizer (llama-server and vLLM have one), remembered;
        without one an estimate, a token for four bytes. Blocks. Raises ModelError."""
        known = self._known_counts(text) if text and self._has_tokenizer else None
        return _estimate(text) if known is None else known

    def length(self, prompt: Prompt) -> int:
        """As `count`, and an estimate of four tokens for each message's place in the template."""
        return sum(_TOKENS_PER_MESSAGE if s.control else self.count(s.text) for s in prompt)

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Completion:
        """`stop_reason` is "end" for a stop string, too, unless the server tells (vLLM does).
        Raises ModelError if the server refuses, or has not answered after all retries."""
        path, asked = self._asked(prompt, _parameters(sampling, prompt[0].control))

        def read(answer: Any) -> Completion:
            choice = answer["choices"][0]
            text = choice["message"]["content"] if prompt[0].control else choice["text"]
            text = _well_formed(text or "").removeprefix(_begun(prompt))  # some repeat what they continued
            logs = tuple(log for log, _ in _positions(choice)) if sampling.logprobs else None
            tokens = self._count_usage(answer) or len(logs or ()) or _estimate(text)
            self.usage.generated_tokens += tokens
            reason = "length" if choice.get("finish_reason") == "length" else "end"
            if reason == "end" and isinstance(choice.get("stop_reason"), str):  # vLLM: the stop string
                reason = "stop"
            return Completion(text, tokens, reason, logs)  # type: ignore[arg-type]

        completion = await self._server.ask(path, asked, read)
        if sampling.logprobs and not completion.logprobs and completion.tokens:
            raise ModelError(
                f"{self._server.url} gives no log-probabilities", "Use llama-server or vLLM for this."
            )
        return completion

    async def score(self, prompt: Prompt, continuations: Sequence[str]) -> list[float]:
        """Natural-log probability of each continuation after `prompt`, which must be one token
        and is looked up among the 20 likeliest; one that is not there gets the least probability
        that is, which its own cannot exceed. Raises ModelError if that cannot be had."""
        chat = prompt[0].control
        listing = {"logprobs": True, "top_logprobs": _ALTERNATIVES} if chat else {"logprobs": _ALTERNATIVES}
        path, asked = self._asked(prompt, {"max_tokens": 1, "temperature": 0} | listing)

        def read(answer: Any) -> list[tuple[str, float]]:
            positions = _positions(answer["choices"][0])
            self.usage.generated_tokens += self._count_usage(answer) or 1
            return positions[0][1] if positions else []

        listed = await self._server.ask(path, asked, read)
        found = [[log for token, log in listed if token.lstrip() == c.strip()] for c in continuations]
        problem = ""
        if not listed:
            problem = "gives no log-probabilities"
        elif any(self._of_many_tokens(c) for c, logs in zip(continuations, found, strict=True) if not logs):
            problem = "cannot score answers of several tokens"
        elif not any(found):
            problem = f"lists none of {', '.join(c.strip() for c in continuations)} as likely answers"
        if problem:
            raise NoLogprobsError(f"{self._server.url} {problem}")
        least = min(log for _, log in listed)
        return [_log_of_sum(logs) if logs else least for logs in found]

    def _asked(self, prompt: Prompt, how: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        if not prompt[0].control:
            return "/completions", {"model": self._model, "prompt": prompt[0].text, **how}
        pairs = zip(prompt[::2], prompt[1::2], strict=True)
        messages = [{"role": role.text, "content": content.text} for role, content in pairs]
        # vLLM has to be told to go on with an assistant's message; llama-server does so anyway.
        goes_on = {"continue_final_message": True, "add_generation_prompt": False} if _begun(prompt) else {}
        return "/chat/completions", {"model": self._model, "messages": messages, **how, **goes_on}

    def _count_usage(self, answer: Mapping[str, Any]) -> int:
        """Add what the prompt cost; returns the tokens of the answer, 0 if the server does not say."""
        usage = answer.get("usage") or {}
        requested = int(usage.get("prompt_tokens") or 0)
        cached = int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)
        self.usage.prompt_tokens_requested += requested
        self.usage.prompt_tokens_computed += requested - cached
        return int(usage.get("completion_tokens") or 0)

    @cached_property
    def _has_tokenizer(self) -> bool:
        return self._tokenize("a") is not None

    def _of_many_tokens(self, text: str) -> bool:
        """As far as one can tell."""
        return len(text.split()) > 1 or (self._has_tokenizer and (self._known_counts(text) or 0) > 1)

    def _tokenize(self, text: str) -> int | None:
        # llama-server reads content and parse_special, vLLM model, prompt and add_special_tokens.
        asked = {"content": text, "parse_special": False}
        asked |= {"model": self._model, "prompt": text, "add_special_tokens": False}

        def read(answer: Any) -> int | None:
            # LM Studio says 200 and "unexpected endpoint" where others say 404.
            return len(answer["tokens"]) if "tokens" in answer else None

        async def ask() -> int | None:
            return await self._tokenizer.ask("/tokenize", asked, read)

        try:
            with ThreadPoolExecutor(1) as pool:  # a loop of its own: the caller's is running
                return pool.submit(asyncio.run, ask()).result()
        except Refusal:
            return None


def _parameters(sampling: Sampling, chat: bool) -> dict[str, Any]:
    """As JSON. What is off is left out, since plain servers refuse keys they do not know; the
    server's own default holds then (llama-server's top_k is 40)."""
    how: dict[str, Any] = {
        "max_tokens": sampling.max_tokens,
        "seed": sampling.seed,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
    }
    penalty = sampling.repetition_penalty if sampling.repetition_penalty != 1 else None
    schema = dict(sampling.json_schema) if sampling.json_schema is not None else None
    extra: dict[str, Any] = {
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "repetition_penalty": penalty,  # vLLM
        "repeat_penalty": penalty,  # llama-server
        "stop": list(sampling.stop),
        "grammar": sampling.grammar,  # llama-server
        "logprobs": sampling.logprobs and (True if chat else 1),
        "response_format": schema
        and {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}},
        "json_schema": None if chat else schema,  # llama-server's plain completions
    }
    return how | {key: value for key, value in extra.items() if value}


def _positions(choice: Mapping[str, Any]) -> list[tuple[float, list[tuple[str, float]]]]:
    """Of each generated token: its natural-log probability, and the likeliest tokens with theirs."""
    logs = choice.get("logprobs") or {}
    if logs.get("content"):  # chat; llama-server's plain completions, too
        return [
            (float(p["logprob"]), [(t["token"], float(t["logprob"])) for t in p.get("top_logprobs") or []])
            for p in logs["content"]
        ]
    listed = logs.get("top_logprobs") or repeat({})
    return [(float(log), list(tops.items())) for log, tops in zip(logs.get("token_logprobs") or [], listed)]  # noqa: B905


def _log_of_sum(logs: Sequence[float]) -> float:
    top = max(logs)
    return top + math.log(sum(math.exp(log - top) for log in logs))


def _begun(prompt: Prompt) -> str:
    """What the assistant has already said of the message to generate."""
    return prompt[-1].text if len(prompt) > 1 and prompt[-2].text == "assistant" else ""


def _estimate(text: str) -> int:
    return math.ceil(len(text.encode("utf-8", "replace")) / _BYTES_PER_TOKEN)


def _well_formed(text: str) -> str:
    """Half a surrogate pair (an emoji that max_tokens cut) could not be written to any file."""
    return text.encode("utf-8", "replace").decode()
