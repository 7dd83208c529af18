"""The rows of the table: who races whom at what, and the targets."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.engine import workloads
from benchmarks.engine.contest import BENCH_PYTHON, Answer, Contestant, in_turns
from benchmarks.engine.measure import Line, race
from minicollab.models import QWEN, SMOLLM2, resolve

SLOTS = 8
SAMPLES = 8
SERVER = "llama.cpp server, 8 slots"


@dataclass(frozen=True)
class Size:
    """How much of everything. `--quick` shrinks it to see whether all runs; its figures say nothing."""

    repeat: int = 5
    repeat_official: int = 5
    tokens: int = 64
    decode_tokens: int = 128
    marks: tuple[int, int] = (500, 5000)
    prompts: int = 64
    greedy_tokens: int = 48


QUICK = Size(1, 1, 8, 8, (32, 96), 4, 8)


def gguf(name: str) -> str:
    return str(resolve(name, Path()))


def ours(model: str, context: int = workloads.CONTEXT) -> Contestant:
    return Contestant("ours", gguf(model), str(context))


def server(model: str, slots: int = SLOTS) -> Contestant:
    return Contestant("server", gguf(model), str(slots), python=BENCH_PYTHON)


def flat(size: Size) -> list[Line]:
    """8 samples of one prompt, cold, against one chat completion after another."""
    with ours(SMOLLM2, workloads.SMALL_CONTEXT) as we, Contestant("one_by_one", gguf(SMOLLM2)) as they:
        turns = in_turns([we, they], size.repeat, lambda c, n: _samples(c, n, SAMPLES, size.tokens))
    return [_raced("flat", _flat(size), "create_chat_completion, one by one", turns, 1.8)]


def slots(size: Size) -> list[Line]:
    """The same against the server: cold, and then again with other seeds."""

    def work(contestant: Contestant, number: int) -> Answer:
        cold = _samples(contestant, number, SAMPLES, size.tokens)
        return {"cold": cold, "warm": _samples(contestant, number, SAMPLES, size.tokens, seed=101, warm=True)}

    with ours(SMOLLM2, workloads.SMALL_CONTEXT) as we, server(SMOLLM2) as they:
        turns = in_turns([we, they], size.repeat, work)
        about = they("about")["build"]
    targets = {"cold": 2.0, "warm": 1.1}
    return [
        _raced("slots", f"{_flat(size)}, {state}", SERVER, _part(turns, state), target, build=about)
        for state, target in targets.items()
    ]


def build(size: Size) -> list[Line]:
    """One sequence alone: what the two builds of llama.cpp differ by, before any batching."""

    def work(contestant: Contestant, number: int) -> Answer:
        prompt = _samples(contestant, number, 1, 1)
        return {"prompt": prompt, "answer": _samples(contestant, number, 1, size.tokens, warm=True)}

    with ours(SMOLLM2, workloads.SMALL_CONTEXT) as we, server(SMOLLM2) as they:
        turns = in_turns([we, they], size.repeat, work)
        about = they("about")["build"]
    names = {"prompt": "reading a prompt", "answer": f"{size.tokens} tokens after it"}
    return [
        _raced("build", f"one sequence: {name}", SERVER, _part(turns, part), None, build=about)
        for part, name in names.items()
    ]


def tree(size: Size) -> list[Line]:
    """One turn of the method, SmolLM2 in all roles."""
    return _tree("tree", "SmolLM2", SMOLLM2, size)


def tree_qwen(size: Size) -> list[Line]:
    """One turn of the method, Qwen in all roles."""
    return _tree("tree_qwen", "Qwen 1.5B", QWEN, size)


def _tree(row: str, name: str, model: str, size: Size) -> list[Line]:
    """Recorded once, and replayed by both."""
    with ours(model) as we, server(model) as they, tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/answers.json"
        recorded = we("record", path=path)
        turns = in_turns(
            [we, they], size.repeat, lambda c, n: c("replay", path=path, number=n + 1), warm_up=0
        )
        about = they("about")["build"]
    for t in [*turns[0], *turns[1]]:
        _same("requests", t, recorded)
    share = recorded["prompt_tokens_computed"] / recorded["prompt_tokens_requested"]
    work = f"prompt tokens computed / requested, {name}"
    return [
        _raced(row, f"one turn, {name}", SERVER, turns, 2.0, recorded=recorded, build=about),
        Line(row, work, "-", share, 0.15, at_least=False, unit="", figures=recorded),
    ]


def decode(size: Size) -> list[Line]:
    """Decoding alone, against a bare loop over the same batches, and the Python share of it."""
    with Contestant("insides", gguf(SMOLLM2), str(SAMPLES)) as we:
        (turns,) = in_turns([we], size.repeat, lambda c, n: c("decode", number=n, tokens=size.decode_tokens))
    raw, seconds = ([t[key] for t in turns] for key in ("raw_seconds", "seconds"))
    share = median(t["python_share"] for t in turns)
    figures = {"turns": turns}
    return [
        Line("decode", f"decode, {SAMPLES} sequences", "bare llama_decode loop",
             median(raw) / median(seconds), 0.9, figures=figures),
        Line("decode", f"Python share of a step, {SAMPLES} sequences", "-",
             share, 0.05, at_least=False, unit="", figures=figures),
    ]  # fmt: skip


def official(size: Size) -> list[Line]:
    """One MR, against the official pipeline on the server with 3 slots."""
    futures = workloads.RECIPE.simulate.futures
    with ours(QWEN) as we, server(QWEN, futures) as host:
        address = host("about")["address"]
        with Contestant("official", address, python=BENCH_PYTHON) as they:
            turns = in_turns([we, they], size.repeat_official, lambda c, n: c("reward", number=n))
            about = host("about")["build"]
    against = "collabllm 0.0.8, server with 3 slots"
    return [_raced("official", "one MR of 3 futures, Qwen 1.5B", against, turns, 8.0, build=about)]


def memory(size: Size) -> list[Line]:
    """Growth of the process between two counts of small, mixed requests."""
    with Contestant("soundness", gguf(SMOLLM2)) as we:
        found = we("memory", marks=size.marks)
    early, late = (found["resident_mib"][str(mark)] for mark in size.marks)
    work = f"memory at request {size.marks[1]} over {size.marks[0]}"
    return [Line("memory", work, "-", late - early, 16, at_least=False, unit=" MiB", figures=found)]


def company(size: Size) -> list[Line]:
    """The share of greedy answers that batch mates change."""
    lines = []
    with Contestant("soundness", gguf(SMOLLM2)) as we:
        for deterministic, target in ((False, None), (True, 0.0)):
            found = we(
                "company", prompts=size.prompts, tokens=size.greedy_tokens, deterministic=deterministic
            )
            work = f"greedy answers changed by company, deterministic: {str(deterministic).lower()}"
            share = found["changed"] / found["prompts"]
            lines.append(Line("company", work, "-", share, target, at_least=False, unit="", figures=found))
    return lines


ROWS: dict[str, Callable[[Size], list[Line]]] = {
    f.__name__: f for f in (flat, slots, build, tree, tree_qwen, decode, official, memory, company)
}


def _flat(size: Size) -> str:
    return f"{SAMPLES} samples of {size.tokens} tokens, SmolLM2"


def _samples(contestant: Contestant, number: int, count: int, tokens: int, **how: Any) -> Answer:
    answer = contestant("samples", number=number, count=count, tokens=tokens, **how)
    _same("generated_tokens", answer, {"generated_tokens": count * tokens})
    return answer


def _part(turns: list[list[Answer]], part: str) -> list[list[Answer]]:
    return [[turn[part] | {"idle": turn["idle"]} for turn in each] for each in turns]


def _same(key: str, answer: Answer, wanted: Answer) -> None:
    if answer[key] != wanted[key]:
        raise RuntimeError(f"the work was not the same for all: {key} {answer[key]}, not {wanted[key]}")


def _raced(
    row: str, work: str, against: str, turns: list[list[Answer]], target: float | None, **more: Any
) -> Line:
    line = race(row, work, against, dict(zip(("ours", "theirs"), turns, strict=True)), target)
    line.figures.update(more)
    return line
