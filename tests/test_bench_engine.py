"""The arithmetic and the order of the engine's benchmark."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from minicollab.engine.base import Completion, Prompt, Sampling, Segment, Usage


@pytest.fixture(autouse=True)
def _path(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(repo))


def test_a_race_compares_medians_and_leaves_failures_out() -> None:
    from benchmarks.engine.measure import race

    ours = [{"seconds": s} for s in (1.0, 2.0, 30.0)]
    theirs = [{"seconds": s} for s in (8.0, 7.0, 90.0)] + [{"seconds": 0.1, "failed": "no JSON"}]
    line = race("row", "work", "them", {"ours": ours, "theirs": theirs}, 4.0)
    assert line.value == 4.0 and line.met
    assert len(line.figures["turns"]["theirs"]) == 4


def test_a_race_that_nobody_finished_meets_no_target() -> None:
    from benchmarks.engine.measure import race

    turns = {"ours": [{"seconds": 1.0}], "theirs": [{"seconds": 9.0, "failed": "no JSON"}]}
    line = race("row", "work", "them", turns, 1.0)
    assert line.met is False and line.as_dict()["value"] is None


@pytest.mark.parametrize(
    ("value", "target", "at_least", "met"),
    [(2.0, 2.0, True, True), (1.9, 2.0, True, False), (0.1, 0.15, False, True), (0.2, 0.15, False, False),
     (5.0, None, True, None)],
)  # fmt: skip
def test_a_target_is_met_on_its_own_side(
    value: float, target: float | None, at_least: bool, met: Any
) -> None:
    from benchmarks.engine.measure import Line

    assert Line("row", "work", "-", value, target, at_least).met is met


def test_rows_that_were_not_measured_again_stay(tmp_path: Path) -> None:
    from benchmarks.engine.measure import Line, save

    path, about = tmp_path / "engine.json", {"load_1_minute": 0.5}
    save(path, about, [Line("flat", "a", "-", 1.0), Line("tree", "b", "-", 2.0)])
    save(path, about, [Line("flat", "c", "-", 3.0)])
    lines = json.loads(path.read_text("utf-8"))["lines"]
    assert {(line["row"], line["work"]) for line in lines} == {("tree", "b"), ("flat", "c")}


def test_contestants_work_in_turns_and_the_first_turn_does_not_count() -> None:
    from benchmarks.engine.contest import in_turns

    class Idle:
        cpu_seconds = 0.0

    order: list[tuple[Any, int]] = []

    def work(contestant: Any, number: int) -> dict[str, Any]:
        order.append((contestant, number))
        return {"seconds": float(number)}

    us, them = Idle(), Idle()
    answers = in_turns([us, them], 2, work)  # type: ignore[list-item]
    assert order == [(us, 0), (them, 0), (us, 1), (them, 1), (us, 2), (them, 2)]
    assert [[a["seconds"] for a in each] for each in answers] == [[1.0, 2.0]] * 2


class Counting:
    """Answers with as many tokens as it is told, or ends after three."""

    fingerprint, context, usage = "counting", 100, Usage()

    def __init__(self, ends: bool):
        self.ends, self.asked = ends, []

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Completion:
        self.asked.append((prompt, sampling))
        tokens = min(3, sampling.max_tokens) if self.ends else sampling.max_tokens
        return Completion(f"text {len(self.asked)}", tokens, "end")


def test_a_replay_asks_for_the_recorded_length_and_gives_the_recorded_answer() -> None:
    from benchmarks.engine.workloads import Recording, Replaying

    prompt, sampling = (Segment("hello"),), Sampling(40, 7, 0.8, stop=("x",))
    recording = Recording(Counting(ends=True))  # type: ignore[arg-type]
    first = asyncio.run(recording.generate(prompt, sampling))
    inner = Counting(ends=False)
    again = asyncio.run(Replaying(inner, 5, recording.answers).generate(prompt, sampling))  # type: ignore[arg-type]
    assert again == first and first.tokens == 3
    ((asked, how),) = inner.asked
    assert asked[0].text == "0005 " and asked[1:] == prompt
    assert how == replace(sampling, max_tokens=3, stop=())


def test_a_replay_that_is_not_the_same_work_fails() -> None:
    from benchmarks.engine.workloads import Recording, Replaying

    prompt, sampling = (Segment("hello"),), Sampling(40, 7)
    recording = Recording(Counting(ends=False))  # type: ignore[arg-type]
    asyncio.run(recording.generate(prompt, sampling))
    short = Replaying(Counting(ends=True), 1, recording.answers)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="3 tokens came, 40 were recorded"):
        asyncio.run(short.generate(prompt, sampling))
