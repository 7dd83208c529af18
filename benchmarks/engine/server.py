"""llama.cpp's own server in this process (package `xllamacpp`), asked by as many threads as it
has slots. Its samplers are put in our order, which is also its fastest: min-p leaves top-p few
tokens to sort."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import xllamacpp

from benchmarks.engine import workloads
from benchmarks.engine.contest import Answer, serve
from minicollab.engine.base import Completion, Prompt, Sampling, Segment, Usage
from minicollab.engine.weights import load_weights
from minicollab.schema import Message

_ORDER = {"samplers": ["min_p", "top_k", "top_p", "temperature"], "top_k": 0}


class ServerEngine:
    """An `Engine` on the server, for `Replaying`: it computes what is asked, with the same token
    ids, and never ends before `max_tokens`. `score` costs what reading Yes and No off it would:
    one token, with the most likely ten; its values are not used."""

    fingerprint, context = "server", workloads.CONTEXT

    def __init__(self, server: xllamacpp.Server, pool: ThreadPoolExecutor, gguf: Path):
        self.usage = Usage()
        self._server, self._pool, self._weights = server, pool, load_weights(gguf, 0)

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
        how = {"temperature": sampling.temperature, "top_p": sampling.top_p, "min_p": sampling.min_p}
        tokens = await self._complete(prompt, sampling.max_tokens, how | {"seed": sampling.seed})
        return Completion("", tokens, "length")

    async def score(self, prompt: Prompt, continuations: Sequence[str]) -> list[float]:
        await self._complete(prompt, 1, {"temperature": 0.0, "logprobs": 10})
        return [0.0 for _ in continuations]

    async def _complete(self, prompt: Prompt, tokens: int, how: dict[str, Any]) -> int:
        ids = self._weights.tokenize(prompt)
        request = {"prompt": ids, "n_predict": tokens, "ignore_eos": True, **_ORDER, **how}
        ask = partial(self._server.handle_completions, request)
        usage = (await asyncio.get_running_loop().run_in_executor(self._pool, ask))["usage"]
        self.usage.generated_tokens += usage["completion_tokens"]
        self.usage.prompt_tokens_requested += usage["prompt_tokens"]
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        self.usage.prompt_tokens_computed += usage["prompt_tokens"] - cached
        return int(usage["completion_tokens"])


def start(gguf: Path, slots: int) -> xllamacpp.Server:
    params = xllamacpp.CommonParams()
    params.model.path = str(gguf)
    params.n_parallel, params.n_ctx = slots, workloads.CONTEXT
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = workloads.THREADS
    params.verbosity = -1
    return xllamacpp.Server(params)


def main(gguf: Path, slots: int) -> None:
    server, pool = start(gguf, slots), ThreadPoolExecutor(slots)

    def samples(number: int, count: int, tokens: int, seed: int = 1, warm: bool = False) -> Answer:
        common = {"messages": workloads.story(number), "max_tokens": tokens, "ignore_eos": True}
        requests = [{**common, "seed": seed + i, **workloads.SAMPLING, **_ORDER} for i in range(count)]
        begin = time.perf_counter()
        usages = [answer["usage"] for answer in pool.map(server.handle_chat_completions, requests)]
        return {
            "seconds": time.perf_counter() - begin,
            "prompt_tokens": usages[0]["prompt_tokens"],
            "generated_tokens": sum(u["completion_tokens"] for u in usages),
            "cached_tokens": [u["prompt_tokens_details"]["cached_tokens"] for u in usages],
        }

    def replay(path: str, number: int) -> Answer:
        engine = ServerEngine(server, pool, gguf)
        replaying = workloads.Replaying(engine, number, json.loads(Path(path).read_text("utf-8")))
        begin = time.perf_counter()
        asyncio.run(workloads.one_turn(replaying))
        seconds = time.perf_counter() - begin
        return {"seconds": seconds, **vars(engine.usage), "requests": replaying.requests}

    def about() -> Answer:
        build = {"xllamacpp": xllamacpp.__version__, "instructions": xllamacpp.get_system_info()}
        return {"address": server.listening_address, "build": build}

    serve({"samples": samples, "replay": replay, "about": about})


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
