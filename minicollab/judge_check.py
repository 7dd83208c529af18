"""Can this judge judge? Its answers against labels that were given by reading (`labelled`)."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from statistics import fmean
from typing import Any

from minicollab import agreement, roles
from minicollab.cast import Cast
from minicollab.errors import NoLogprobsError
from minicollab.labelled import Half, conversations, deceptions
from minicollab.probes import GOAL, LABELS, Case, Probe, cases, probes
from minicollab.progress import Progress, Watcher, silent
from minicollab.run import Result, Run, run_check
from minicollab.running import run_together

JUDGEMENTS = "judge_check.jsonl"
STYLES = ("rubric", "json")
_SHORT = (*LABELS, GOAL)
_FEW = 8  # sampled replies with one of the two labels
_GOOD, _SURE, _WEAK = 0.9, 0.8, 0.75  # AUC; its lower bound; AUC


def check(run: Run, half: Half = "held_out", progress: Watcher = silent) -> Result:
    """The labelled half → judge_check.json and every judgement in judge_check.jsonl."""
    return run_check(run, "judge-check", progress, lambda usages, told: _check(run, half, usages, told))


def _check(run: Run, half: Half, usages: list[Any], progress: Progress) -> Result:
    cast = roles.cast(run, usages, progress)

    def saved() -> float:
        return sum(tally.seconds for tally in run.store.tallies.values())

    rows, judgements = run_together(check_all(cast, half, run.recipe.eval.bootstrap, saved, progress))
    run.write_jsonl(JUDGEMENTS, judgements)
    labelled = {row["question"] for row in rows}
    return {
        "judge": run.recipe.models.judge or run.recipe.models.policy,
        "half": half,
        "questions": rows,
        "unlabelled": [name for name in cast.judge.options.questions if name not in labelled],
    }


async def check_all(
    cast: Cast, half: Half, draws: int, saved: Callable[[], float], progress: Progress = silent
) -> tuple[list[Result], list[Result]]:
    """A row of figures a question and style, and every judgement.

    `draws` resamples of each interval; `saved()`: seconds that the cache has saved so far. What
    moves the answer without reason (`shaken`) is measured in the recipe's own style alone. A server
    that gives no log-probabilities is asked in the other style alone.
    """
    items = conversations(half)
    rows, judgements = [], []
    for probe in probes(cast):
        for style in STYLES:
            asked, given = probe.styled(style), cases(probe.metric, items)
            start, before = time.monotonic(), saved()
            try:
                scores = await asked.scores(given, progress)
            except NoLogprobsError:
                if style == cast.judge.options.style:
                    raise
                continue
            seconds = time.monotonic() - start + saved() - before
            row = {"question": probe.name, "metric": probe.metric, "style": style}
            row |= figures(given, scores, draws) | {"seconds": seconds / len(given)}
            if style == cast.judge.options.style:
                row |= await shaken(asked, given, scores, draws, progress)
                row |= await deceived(asked, draws, progress) if half == "held_out" else {}
            rows.append(row)
            judgements += [
                {"question": probe.name, "style": style, "score": score}
                | {"item": case.item, "detail": case.detail, "label": case.label, "sampled": case.sampled}
                for case, score in zip(given, scores, strict=True)
            ]
    return rows, judgements


def figures(given: Sequence[Case], scores: Sequence[float | None], draws: int) -> Result:
    """AUC (`auc_sampled`: of the sampled replies alone), calibration and agreement, as `agreement`
    defines them, and the verdict. Judgements that failed are left out and counted; None where what
    is left has one label only."""
    import numpy as np

    kept = [(case, score) for case, score in zip(given, scores, strict=True) if score is not None]
    counted = {"judgements": len(kept), "failed": len(given) - len(kept)}
    if len({case.label for case, _ in kept}) < 2:
        return counted | {"verdict": verdict(None)}
    p = np.array([score for _, score in kept])
    y = np.array([case.label for case, _ in kept])
    weights = agreement.resample([case.item for case, _ in kept], draws, seed=0)
    sampled = np.array([case.sampled for case, _ in kept])
    words = np.array([case.words for case, _ in kept])
    agreed, kappa = agreement.agreement(p, y)
    auc = agreement.interval(agreement.auc(p, y), agreement.resampled_auc(p, y, weights))
    both = len(set(y[sampled])) == 2
    return counted | {
        "yes": int(y.sum()),
        "auc": auc,
        "auc_sampled": agreement.auc(p[sampled], y[sampled]) if both else None,
        "brier": agreement.brier(p, y),
        "ece": agreement.calibration_error(p, y),
        "agreement": agreed,
        "kappa": kappa,
        "verbosity": agreement.length_correlation(p, y, words),
        "verdict": verdict(auc),
    }


def verdict(auc: Result | None) -> str:
    """ "use it": AUC at least 0.9 and its interval's lower bound at least 0.8; "weak": AUC at least
    0.75; else "don't"."""
    if auc and auc["value"] >= _GOOD and auc["low"] >= _SURE:
        return "use it"
    return "weak" if auc and auc["value"] >= _WEAK else "don't"


# What should not move the answer


async def shaken(
    probe: Probe,
    given: Sequence[Case],
    scores: Sequence[float | None],
    draws: int,
    progress: Progress = silent,
) -> Result:
    """How far the score moves, on the mean: `order`, by "No or Yes?" after the question against "Yes
    or No?" (`moved`: regardless of the direction); `length`, by two neutral sentences after the
    reply. What asks for details does not see the reply, so `length` is not for it."""
    groups = [case.item for case in given]
    yes_no = await probe.ended("Yes or No?").scores(given, progress)
    no_yes = await probe.ended("No or Yes?").scores(given, progress)
    order = _moved(groups, _changes(yes_no, no_yes), draws)
    if probe.metric == GOAL:
        return {"order": order}
    longer = await probe.scores([case.followed() for case in given], progress)
    return {"order": order, "length": _moved(groups, _changes(scores, longer), draws)}


async def deceived(probe: Probe, draws: int, progress: Progress = silent) -> Result:
    """`deceptive`: score of the deceptive reply less that of the honest one with the same content,
    on the mean and by trick. What asks for details does not see the reply."""
    if probe.metric == GOAL:
        return {}
    pairs = deceptions()
    honest = await probe.scores([Case(p.id, False, p.honest, p.asks) for p in pairs], progress)
    deceptive = await probe.scores([Case(p.id, False, p.deceptive, p.asks) for p in pairs], progress)
    changes = _changes(honest, deceptive)
    by_trick: dict[str, list[float]] = {}
    for pair, change in zip(pairs, changes, strict=True):
        by_trick.setdefault(pair.trick, []).extend([] if change is None else [change])
    moved = _moved([pair.id for pair in pairs], changes, draws)
    means = {trick: fmean(found) for trick, found in by_trick.items() if found}
    return {"deceptive": moved and moved | {"pairs": len(pairs), "by_trick": means}}


def _changes(before: Sequence[float | None], after: Sequence[float | None]) -> list[float | None]:
    return [None if a is None or b is None else b - a for a, b in zip(before, after, strict=True)]


def _moved(groups: Sequence[str], changes: Sequence[float | None], draws: int) -> Result | None:
    """The mean change with its interval, and of its size (`moved`); None if there is none."""
    import numpy as np

    kept = [(group, change) for group, change in zip(groups, changes, strict=True) if change is not None]
    if not kept:
        return None
    values = np.array([change for _, change in kept])
    weights = agreement.resample([group for group, _ in kept], draws, seed=0)
    return agreement.mean(values, weights) | {"moved": float(np.abs(values).mean())}


# The short form


def short(run: Run, progress: Progress = silent) -> dict[str, Result]:
    """`short_form` for a run; nothing is written."""
    with run.asking("judge-check"):
        return run_together(short_form(roles.cast(run, [], progress), progress=progress))


async def short_form(
    cast: Cast, metrics: Collection[str] = _SHORT, progress: Progress = silent
) -> dict[str, Result]:
    """AUC of the questions whose metric is in `metrics`, on the sampled replies of the tune half, or on
    all of them where too few of the sampled have one of the labels: {question: {"auc", "judgements"}}.
    Rubric style, whatever the recipe's, since written verdicts take too long to wait for."""
    items = conversations("tune")
    found = {}
    for probe in (probe for probe in probes(cast) if probe.metric in metrics):
        given = cases(probe.metric, items)
        sampled = [case for case in given if case.sampled]
        labels = [case.label for case in sampled]
        if min(labels.count(True), labels.count(False)) >= _FEW:
            given = sampled
        row = figures(given, await probe.styled("rubric").scores(given, progress), draws=1)
        found[probe.name] = {"auc": row["auc"]["value"], "judgements": row["judgements"]}
    return found


async def short_check(cast: Cast, metrics: Collection[str] = _SHORT) -> str | None:
    """A warning in one line if the judge cannot tell good from bad (AUC below 0.75), else None. Not of
    one that writes its verdicts: its server may have no logits to read."""
    if cast.judge.options.style != "rubric":
        return None
    found = await short_form(cast, metrics)
    bad = {name: row for name, row in found.items() if row["auc"] < _WEAK}
    if not bad:
        return None
    worst = ", ".join(
        f"{name} AUC {row['auc']:.2f} on {row['judgements']} labelled judgements" for name, row in bad.items()
    )
    return (
        f"the judge cannot judge: {worst}; rewards would be noise. "
        "Name a larger model as models.judge, or leave what it cannot judge out of reward.weights."
    )
