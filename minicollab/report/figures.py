"""The numbers of a report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

from minicollab.evaluate import BASELINES
from minicollab.report.reading import KEPT, Found, Row
from minicollab.run import STAGES

ARMS = (*BASELINES, "trained")
STYLES = ("plain", "proactive")
_DRAWS = 2000


@dataclass(frozen=True)
class Estimate:
    """A mean over tasks with its 95% interval."""

    mean: float
    low: float
    high: float


Series = dict[str, dict[int, Estimate]]
"""By name (an arm, a style) and turn or reply, counted from 1."""


def estimate(values: Iterable[tuple[str, float]]) -> Estimate:
    """Of (task, value) pairs: each task's values are averaged first; percentile bootstrap over tasks,
    as in `evaluate.compare`."""
    import numpy as np

    by_task: dict[str, list[float]] = {}
    for task, value in values:
        by_task.setdefault(task, []).append(value)
    means = np.array([fmean(found) for found in by_task.values()])
    draw = np.random.default_rng(0).integers(0, len(means), (_DRAWS, len(means)))
    low, high = np.percentile(means[draw].mean(axis=1), [2.5, 97.5])
    return Estimate(float(means.mean()), float(low), float(high))


def estimates(values: Iterable[tuple[str, int, str, float]]) -> Series:
    """Of (name, turn, task, value)."""
    grouped: dict[str, dict[int, list[tuple[str, float]]]] = {}
    for name, turn, task, value in values:
        grouped.setdefault(name, {}).setdefault(turn, []).append((task, value))
    return {n: {turn: estimate(found) for turn, found in sorted(row.items())} for n, row in grouped.items()}


def headline(evaluation: Row, baseline: str) -> str:
    """What training changed, measured against a baseline, in one sentence."""
    mr = evaluation["differences"][f"trained-{baseline}"]["mr"]
    tasks = evaluation["tasks"]
    bounds = f"95% interval {signed(mr['low'])} to {signed(mr['high'])}"
    on = f"on {tasks} held-out task{'s' * (tasks != 1)}"
    if mr["low"] <= 0 <= mr["high"]:
        return f"No effect seen against {baseline}: MR {signed(mr['mean'])} {on} ({bounds})."
    verb = "raised" if mr["mean"] > 0 else "lowered"
    return f"Training {verb} MR by {abs(mr['mean']):.3f} against {baseline} {on} ({bounds})."


def signed(number: float) -> str:
    return f"{number:+.3f}".replace("-", "\N{MINUS SIGN}")


def by_arm(played: Sequence[Row], metrics: Iterable[str]) -> dict[str, dict[str, Estimate]]:
    """By metric and arm, over the tasks that have a score in every arm (`evaluate.compare`)."""
    scored = [row for row in played if row["failure"] is None]
    arms: dict[str, set[str]] = {}
    for row in scored:
        arms.setdefault(row["task_id"], set()).add(row["arm"])
    whole = [row for row in scored if arms[row["task_id"]] >= set(ARMS)]
    return {
        metric: {a: estimate((row["task_id"], row[metric]) for row in whole if row["arm"] == a) for a in ARMS}
        for metric in metrics
    }


def by_turn(rollouts: Sequence[Row]) -> dict[str, Series]:
    """By metric, style and turn, of the candidates that have an MR; tokens read in thousands, as in
    eval.json."""
    measured: dict[str, list[tuple[str, int, str, float]]] = {}
    for row in rollouts:
        for metric, value in candidate_metrics(row).items():
            point = (row["style"], row["turn"] + 1, row["task_id"], value)
            measured.setdefault(metric, []).append(point)
    return {metric: estimates(points) for metric, points in measured.items()}


def candidate_metrics(row: Row) -> dict[str, float]:
    """A candidate's MR, and the mean of each metric over its futures; nothing if it has no MR."""
    if row["mr"] is None:
        return {}
    names = row["futures"][0]["metrics"] if row["futures"] else ()
    means = {name: fmean(future["metrics"][name] for future in row["futures"]) for name in names}
    if "tokens_read" in means:
        means["tokens_read_k"] = means.pop("tokens_read") / 1000
    return {"mr": row["mr"], **means}


def by_reply(found: Found) -> dict[str, Series]:
    """Of each question that is asked of single replies: P(yes) by arm and reply, on held-out tasks."""
    return {
        name: estimates(
            (row["arm"], number, row["task_id"], answer)
            for row in found.played
            if row["failure"] is None
            for number, answer in enumerate(row["judgements"].get(name, ()), 1)
        )
        for name, question in found.recipe.judge.questions.items()
        if question.scope == "reply"
    }


def candidates(found: Found) -> dict[str, Any]:
    """How many candidates there are and ask, what became of them, and of the turns and pairs."""
    rows, sides = found.rollouts, ("chosen", "rejected")
    styles = {style: [row["asks"] for row in rows if row["style"] == style] for style in STYLES}
    gaps = [pair["chosen_mr"] - pair["rejected_mr"] for pair in found.pairs]
    failures = Counter(f.partition(":")[0] for row in rows for f in row["failures"])
    return {
        "count": len(rows),
        "unscored": sum(row["mr"] is None for row in rows),
        "failures": failures.most_common(3),
        "cut": sum(bool(future.get("cut")) for row in rows for future in row["futures"]),
        "asks": {style: fmean(asks) for style, asks in styles.items() if asks},
        "asks_in_pairs": {
            side: fmean("?" in pair[side][0]["content"] for pair in found.pairs)
            for side in sides
            if found.pairs
        },
        "turns": len(found.turns),
        "pairs": len(gaps),
        "median_gap": median(gaps) if gaps else None,
        "no_pair": Counter(turn.outcome for turn in found.turns if turn.outcome != KEPT).most_common(),
    }


def costs(stages: Mapping[str, Row]) -> list[dict[str, Any]]:
    """What each stage cost when it was computed, in order, and the sum (of memory: the largest).

    Seconds, tokens, cache lookups, MB, Wh if it was measured. The report's own stage is left out:
    it writes this.
    """
    rows: list[dict[str, Any]] = [
        {"stage": stage, **stages[stage]["computed"]}
        for stage in STAGES
        if stage in stages and stage != "report"
    ]
    if not rows:
        return []
    keys = dict.fromkeys(key for row in rows for key in row if key not in ("stage", "peak_memory_mb"))
    total = {key: sum(row.get(key, 0) for row in rows) for key in keys}
    peak = max(row["peak_memory_mb"] for row in rows)
    return [*rows, {"stage": "all", **total, "peak_memory_mb": peak}]
