"""Is it sound as well as fast: memory over many requests, and greedy answers in company."""

from __future__ import annotations

import asyncio
import os
import random
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.engine import ours
from benchmarks.engine.contest import Answer, serve
from minicollab.engine.base import Prompt, Sampling
from minicollab.engine.llama import LlamaEngine
from minicollab.schema import Message

_YES_NO = 'root ::= "Yes" | "No"'
_TOPICS = (
    "rain", "bread", "trains", "Lisbon", "chess", "violins", "tides", "owls",
    "maps", "glass", "tea", "snow", "bees", "rivers", "keys", "ink",
)  # fmt: skip
_ASKS = ("Tell me about {}.", "Write a haiku about {}.", "Why do people like {}?", "i need help with {}")
_AT_ONCE = 32


def resident() -> float:
    """Memory of this process, MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


async def _mixed(engine: LlamaEngine, marks: Sequence[int]) -> dict[int, float]:
    """As many small requests as the last of `marks`, `_AT_ONCE` at a time: generate and score, mixed
    lengths, seeds and grammars. Returns MiB in use after each mark."""
    random_, found = random.Random(7), {}

    async def one(index: int) -> None:
        topic = random_.choice(_TOPICS)
        prompt = engine.plain(f"{index} " + f"All about {topic}. " * random_.randint(1, 12))
        if index % 3 == 0:
            await engine.score(prompt, ("Yes", "No", f" {topic} and more"))
            return
        grammar = _YES_NO if index % 3 == 1 else None
        await engine.generate(prompt, Sampling(random_.randint(1, 8), index + 1, 0.8, grammar=grammar))

    done = 0
    while done < marks[-1]:
        end = min(done + _AT_ONCE, *(m for m in marks if m > done))
        await asyncio.gather(*(one(i) for i in range(done, end)))
        done = end
        if done in marks:
            found[done] = resident()
    return found


def _asked(engine: LlamaEngine, count: int) -> list[Prompt]:
    texts = [ask.format(topic) for topic in _TOPICS for ask in _ASKS][:count]
    return [engine.chat([Message("user", text)]) for text in texts]


def main(gguf: Path) -> None:
    def memory(marks: list[int]) -> Answer:
        found = asyncio.run(_mixed(ours.make(gguf), marks))
        return {"resident_mib": {str(mark): mib for mark, mib in found.items()}}

    def company(prompts: int, tokens: int, deterministic: bool) -> Answer:
        """How many of the greedy answers are not the one that the request gets alone."""
        greedy = Sampling(tokens, 1)

        async def texts(together: bool) -> list[str]:
            engine = ours.make(gguf, deterministic=deterministic)
            asked = _asked(engine, prompts)
            if together:
                answers = await asyncio.gather(*(engine.generate(p, greedy) for p in asked))
            else:
                answers = [await engine.generate(p, greedy) for p in asked]
            return [a.text for a in answers]

        alone, together = (asyncio.run(texts(how)) for how in (False, True))
        changed = sum(a != b for a, b in zip(alone, together, strict=True))
        return {"prompts": prompts, "tokens": tokens, "changed": changed}

    serve({"memory": memory, "company": company})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
