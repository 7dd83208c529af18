from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from test_pairs import TASK, cast, recipe, says, verdict

from minicollab.cast import Policy
from minicollab.engine.scripted import ScriptedEngine
from minicollab.errors import StageError
from minicollab.evaluate import Played, compare, play_all
from minicollab.evaluate import verdict as sentence
from minicollab.schema import Conversation, Rollout, Score, Task

ARMS = ("base", "proactive", "trained")
ROLLOUT = Rollout(Conversation(), 0, 0, "window")


def played(task: str, arm: str, mr: float | None, goal: float = 0.5, tokens: float = 100) -> Played:
    where = Task(task, "x", ("y",))
    if mr is None:
        return Played(arm, where, 0, failure="no verdict")
    metrics = {"goal_coverage": goal, "tokens_read": tokens, "interactivity": 0.25}
    return Played(arm, where, 0, ROLLOUT, Score(metrics, {}, mr))


def compared(rows: dict[str, tuple[float | None, float | None, float | None]]) -> dict[str, Any]:
    return compare(
        [played(t, a, v) for t, row in rows.items() for a, v in zip(ARMS, row, strict=True)], 0, 2000
    )


def test_means_and_paired_differences() -> None:
    # Tasks differ far more than arms do: only paired differences show it.
    result = compared({f"t{i}": (10.0 * i, 10.0 * i + 0.2, 10.0 * i + 0.1 * (i + 1)) for i in range(4)})
    assert {arm: row["mr"] for arm, row in result["arms"].items()} == pytest.approx(
        {"base": 15.0, "proactive": 15.2, "trained": 15.25}
    )
    against_base = result["differences"]["trained-base"]["mr"]
    assert against_base["mean"] == pytest.approx(0.25)  # of 0.1, 0.2, 0.3, 0.4
    assert 0.1 <= against_base["low"] < 0.25 < against_base["high"] <= 0.4
    assert result["differences"]["trained-proactive"]["mr"]["mean"] == pytest.approx(0.05)
    assert result["differences"]["trained-base"]["interactivity"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    assert result["arms"]["base"]["tokens_read_k"] == pytest.approx(0.1)
    assert (result["tasks"], result["tasks_left_out"]) == (4, 0)


def test_the_interval_is_the_95_percent_bootstrap() -> None:
    """Two tasks, differences 0 and 1: the resampled mean is 0, 0.5 or 1, with 1/4, 1/2, 1/4."""
    result = compared({"a": (0, 0, 0), "b": (0, 0, 1)})
    assert result["differences"]["trained-base"]["mr"] == {"mean": 0.5, "low": 0.0, "high": 1.0}
    again = compared({"a": (0, 0, 0), "b": (0, 0, 1)})
    assert again == result


def test_the_samples_of_a_task_are_averaged_first() -> None:
    rows = [played("a", arm, 0.0) for arm in ARMS]
    rows += [
        played("b", arm, value) for arm in ARMS for value in (0.0, 0.0, 3.0 if arm == "trained" else 0.0)
    ]
    difference = compare(rows, 0, 500)["differences"]["trained-base"]["mr"]
    assert difference["mean"] == pytest.approx(0.5)  # of 0 and 1, not of 0, 0, 0, 3


def test_a_task_with_a_failed_arm_is_left_out_of_all() -> None:
    result = compared({"a": (0.1, 0.1, 0.3), "b": (None, 9, 9), "c": (0.1, 0.1, 0.3)})
    assert (result["tasks"], result["tasks_left_out"]) == (2, 1)
    assert result["arms"]["proactive"]["mr"] == pytest.approx(0.1)
    assert result["differences"]["trained-base"]["mr"]["mean"] == pytest.approx(0.2)
    nothing = compared({"a": (None, 1, 1)})
    assert (nothing["arms"], nothing["differences"], nothing["tasks"], nothing["tasks_left_out"]) == (
        {},
        {},
        0,
        1,
    )


@pytest.mark.parametrize(
    ("trained", "words"),
    [
        ((0.5, 0.6, 0.7), "better than base"),
        ((-0.5, -0.6, -0.7), "worse than base"),
        ((-0.5, 0.0, 0.6), "not measurably different from base"),
    ],
)
def test_the_verdict_in_words(trained: tuple[float, ...], words: str) -> None:
    text = sentence(compared({f"t{i}": (0, 5, value) for i, value in enumerate(trained)}))
    assert words in text and "worse than proactive" in text and "3 held-out tasks" in text
    assert "\n" not in text


def test_all_arms_play_the_same_conversations() -> None:
    options = recipe(eval={"samples": 2, "exchanges": 2})
    who = cast(options)
    engines = {arm: ScriptedEngine(says) for arm in ARMS}
    policies = {
        arm: Policy(e, options.policy, proactive_system=arm == "proactive") for arm, e in engines.items()
    }
    told: list[tuple[float, float]] = []
    tasks = [TASK, Task("u", "another", ("walrus",))]
    found = asyncio.run(
        play_all(options, who, policies, tasks, lambda what, done, total, **_: told.append((done, total)))
    )
    assert {(p.arm, p.task.id, p.sample) for p in found} == {
        (arm, task.id, sample) for arm in ARMS for task in tasks for sample in range(2)
    }
    assert told[-1] == (12, 12) and [done for done, _ in told] == sorted(done for done, _ in told)
    seeds = {arm: sorted(r.sampling.seed for r in e.requests if r.sampling) for arm, e in engines.items()}
    assert seeds["base"] == seeds["trained"] == seeds["proactive"] and len(set(seeds["base"])) == 8
    flat = {arm: {r.prompt for r in e.requests} for arm, e in engines.items()}
    assert flat["base"] == flat["trained"]
    assert all(prompt.startswith("<system>") for prompt in flat["proactive"])
    assert all(p.rollout and p.rollout.conversation.exchanges == 2 for p in found)
    result = compare(found, 0, 100)
    assert result["differences"]["trained-base"]["mr"] == {"mean": 0.0, "low": 0.0, "high": 0.0}


def test_a_failed_conversation_is_recorded_without_a_score() -> None:
    judge = {"style": "json", "questions": {"asks": {"ask": "INTERACTIVE", "scope": "reply"}}}

    def with_at_most(max_failures: float) -> list[Played]:
        options = recipe(
            judge=judge, eval={"samples": 1, "exchanges": 2}, simulate={"max_failures": max_failures}
        )
        who = cast(options, user=lambda _: "beta", verdict=verdict)
        return asyncio.run(play_all(options, who, {"base": who.policy}, [TASK]))

    with pytest.raises(StageError, match="1 of 1 futures failed: the judge wrote no verdict"):
        with_at_most(0.9)
    (found,) = with_at_most(1.0)
    assert found.score is None and found.failure
    row = found.row()
    assert row["failure"] == found.failure and "mr" not in row


def test_failures_that_come_first_are_a_share_of_all() -> None:
    """A conversation that fails ends early, so the first to end are mostly failures."""
    options = recipe(eval={"samples": 1, "exchanges": 2}, simulate={"max_failures": 0.5})
    tasks = [replace(TASK, id=f"t{i}", opening=f"{'fail' if i % 3 == 0 else 'go'} {i}") for i in range(60)]
    who = cast(options, user=lambda request: "" if "fail" in request.prompt else "beta", verdict=verdict)
    found = asyncio.run(play_all(options, who, {"base": who.policy}, tasks))
    assert [p.failure is not None for p in found] == [i % 3 == 0 for i in range(60)]


def test_one_task_shows_nothing() -> None:
    assert "shows nothing" in sentence(compared({"t0": (0.1, 0.2, 0.3)}))


@pytest.mark.parametrize("simulate", [{"window": 0}, {"window": 2, "futures": 4, "allocation": "adaptive"}])
def test_evaluation_is_of_whole_conversations_whatever_was_simulated(simulate: dict[str, Any]) -> None:
    def rows(**sections: Any) -> list[dict[str, Any]]:
        options = recipe(eval={"samples": 1, "exchanges": 3}, **sections)
        who = cast(options)
        played = asyncio.run(play_all(options, who, {"base": who.policy}, [TASK]))
        return [p.row() for p in played]

    assert rows(simulate=simulate) == rows()
    assert len(rows()[0]["messages"]) == 6
