"""Who runs when, on a tiny real model."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

import pytest
from tiny_gguf import tiny

from minicollab import recipe
from minicollab.engine.base import Completion, Sampling
from minicollab.engine.llama import LlamaEngine
from minicollab.engine.prefixes import Prefixes


def small(**options: Any) -> LlamaEngine:
    return LlamaEngine(tiny("chatml"), "tiny", recipe.Engine(**({"context": 512, "threads": 1} | options)))


def at_once(*work: Awaitable[Any]) -> list[Any]:
    async def gather() -> list[Any]:
        return await asyncio.gather(*work)

    return asyncio.run(gather())


def say(engine: LlamaEngine, text: str, tokens: int = 4) -> Awaitable[Completion]:
    return engine.generate(engine.plain(text), Sampling(tokens, seed=1, temperature=1.0))


def texts(number: int, length: int) -> list[str]:
    return [f"{i}:" + chr(97 + i % 26) * length for i in range(number)]


def test_requests_wait_for_room_and_nothing_is_computed_twice() -> None:
    engine = small(sequences=64)
    answers = at_once(*(say(engine, text) for text in texts(40, 200)))
    assert len(answers) == 40 and all(a.tokens for a in answers)
    assert engine.usage.prompt_tokens_computed <= engine.usage.prompt_tokens_requested
    assert engine.usage.prompt_tokens_requested > 10 * 512


def test_a_long_request_is_not_overtaken_by_those_that_came_later() -> None:
    engine = small(sequences=8)
    order: list[str] = []

    async def noted(name: str, work: Awaitable[Any]) -> None:
        await work
        order.append(name)

    early, late = texts(12, 40), [f"late {t}" for t in texts(60, 40)]
    at_once(
        *(noted("early", say(engine, t)) for t in early),
        noted("long", say(engine, "z" * 400)),
        *(noted("late", say(engine, t)) for t in late),
    )
    assert order.index("long") <= len(early) + 8  # those that ran beside it


def test_cells_that_run_out_send_the_youngest_back(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = texts(12, 200)
    engine = small(deterministic=False, sequences=16)
    calm = [at_once(say(small(), text))[0].tokens for text in asked]
    # As if nobody held any cells: far too many are let in.
    monkeypatch.setattr(Prefixes, "pinned", property(lambda _: 0, lambda *_: None), raising=False)
    answers = at_once(*(say(engine, text) for text in asked))
    assert [a.tokens for a in answers] == calm
    assert engine.usage.prompt_tokens_computed > engine.usage.prompt_tokens_requested


def test_a_prefix_that_nobody_asks_for_again_is_forgotten() -> None:
    engine = small(context=4096)
    text = "remember this, please " * 8

    def computed(text: str, tokens: int = 1) -> int:
        before = engine.usage.prompt_tokens_computed
        at_once(say(engine, text, tokens))
        return engine.usage.prompt_tokens_computed - before

    whole = computed(text)
    assert whole > 50 and computed(text) == 1
    patience = engine.plan.patience
    assert patience is not None
    while patience > 0:
        patience -= at_once(say(engine, "Z", patience))[0].tokens
    computed("Z")
    assert computed(text) == whole


def test_who_gives_up_holds_nobody_up() -> None:
    engine = small(sequences=1)

    async def work() -> Completion:
        given_up = asyncio.ensure_future(say(engine, "a" * 100, 300))
        waiting = asyncio.ensure_future(say(engine, "b" * 100, 300))
        await asyncio.sleep(0.01)
        given_up.cancel()
        waiting.cancel()
        return await say(engine, "c")

    assert asyncio.run(work()).tokens
