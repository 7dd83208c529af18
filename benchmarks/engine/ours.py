"""The contestant of this project: `LlamaEngine`, no cache in front of it."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.engine import workloads
from benchmarks.engine.contest import Answer, serve
from benchmarks.engine.workloads import Numbered, Recording, Replaying
from minicollab import recipe
from minicollab.engine.llama import LlamaEngine
from minicollab.schema import Message


def make(gguf: Path, **options: Any) -> LlamaEngine:
    options = {"context": workloads.CONTEXT, "threads": workloads.THREADS} | options
    return LlamaEngine(gguf, "bench", recipe.Engine(**options))


def never_ending(engine: LlamaEngine) -> LlamaEngine:
    """An end-of-text token does not end an answer any more, so that lengths are the same for all
    (the server's `ignore_eos`). The engine itself has no such option."""
    engine._weights.ends = lambda token: False  # type: ignore[method-assign]
    return engine


def timed(work: Awaitable[Any], engine: LlamaEngine) -> Answer:
    """How long the work took, in seconds, and what the engine did for it, in tokens."""

    async def run() -> Any:
        return await work

    before, start = asdict(engine.usage), time.perf_counter()
    asyncio.run(run())
    seconds = time.perf_counter() - start
    return {"seconds": seconds, **{k: v - before[k] for k, v in asdict(engine.usage).items()}}


def main(gguf: Path, context: int) -> None:
    engine = make(gguf, context=context)

    def samples(number: int, count: int, tokens: int, seed: int = 1, warm: bool = False) -> Answer:
        nonlocal engine
        if not warm:
            engine = make(gguf, context=context)
        never_ending(engine)
        prompt = engine.chat([Message(m["role"], m["content"]) for m in workloads.story(number)])  # type: ignore[arg-type]
        work = [engine.generate(prompt, workloads.sampling(seed + i, tokens)) for i in range(count)]
        return timed(together(work), engine) | {"prompt_tokens": engine.length(prompt)}

    def record(path: str) -> Answer:
        recording = Recording(engine)
        answer = timed(workloads.one_turn(recording), engine)
        Path(path).write_text(json.dumps(recording.answers), "utf-8")
        return answer | {"requests": recording.requests}

    def replay(path: str, number: int) -> Answer:
        never_ending(engine)
        replaying = Replaying(engine, number, json.loads(Path(path).read_text("utf-8")))
        return timed(workloads.one_turn(replaying), engine) | {"requests": replaying.requests}

    def reward(number: int) -> Answer:
        counted = Numbered(engine, None)
        return timed(workloads.one_reward(counted, number), engine) | {"requests": counted.requests}

    serve({"samples": samples, "record": record, "replay": replay, "reward": reward})


async def together(work: list[Any]) -> list[Any]:
    return await asyncio.gather(*work)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
