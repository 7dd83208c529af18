"""What the stages of a run have written, as its report needs it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from minicollab.errors import RunError
from minicollab.recipe import Pairs, Recipe
from minicollab.run import STAGES, Run

Row = Mapping[str, Any]
KEPT = "kept"
# What rows of older versions lack.
_SCORED = ("task_id", "turn", "candidate", "style", "mr", "futures")
_CANDIDATE: Row = {"se": None, "cut": {}}
_PLAYED: Row = {"cut": {}, "judgements": {}, "extracted": {}}


@dataclass(frozen=True)
class Turn:
    """One turn of a training conversation: its candidates, and its pair if one was kept. `gap` is
    best less worst MR, None with fewer than two scored; `outcome` is "kept" or why there is no pair."""

    task_id: str
    turn: int
    candidates: Sequence[Row]
    pair: Row | None
    gap: float | None
    outcome: str


@dataclass(frozen=True)
class Found:
    """A run's files. `stages` are the entries of run.json that have finished, `undone` the names of
    the others. `evaluation` is None, and `played` empty, where eval is one of these."""

    recipe: Recipe
    stages: Row
    versions: Row
    rollouts: Sequence[Row]
    pairs: Sequence[Row]
    turns: Sequence[Turn]
    evaluation: Row | None
    played: Sequence[Row]
    undone: Sequence[str]


def read(folder: Path) -> Found:
    """Raises RunError, with the stage to run, if `folder` is no run, was never simulated, or holds
    a broken file."""
    if not (folder / "recipe.yaml").is_file():
        raise RunError(
            f"{folder} is not a run folder: it has no recipe.yaml",
            f"Run: minicollab run RECIPE --out {folder}",
        )
    run = Run.at(folder)
    rollouts = [{**_CANDIDATE, **row} for row in _rows(run, "rollouts.jsonl", "simulate", *_SCORED)]
    pairs = _rows(run, "pairs.jsonl", "simulate", "task_id", "turn")
    journal = _parsed(run, "run.json", "simulate")
    if journal.get("stages") != run.journal()["stages"]:  # which is empty if they are no stages
        raise _broken(run, "run.json", "simulate")
    # A stage that was begun again has inputs of "" until it has finished (`run.begin`).
    stages = {name: entry for name, entry in journal["stages"].items() if entry["inputs"]}
    return Found(
        run.recipe,
        stages,
        journal.get("versions", {}),
        rollouts,
        pairs,
        turns(rollouts, pairs, run.recipe.pairs),
        _parsed(run, "eval.json", "eval") if "eval" in stages else None,
        [{**_PLAYED, **row} for row in _rows(run, "eval_conversations.jsonl", "eval")]
        if "eval" in stages
        else [],
        [stage for stage in STAGES if stage not in (*stages, "report")],
    )


def turns(rollouts: Sequence[Row], pairs: Sequence[Row], options: Pairs) -> list[Turn]:
    """The candidates by turn, in the order of the rows."""
    kept = {(pair["task_id"], pair["turn"]): pair for pair in pairs}
    found = []
    for (task_id, turn), group in groupby(rollouts, key=lambda row: (row["task_id"], row["turn"])):
        candidates, pair = list(group), kept.get((task_id, turn))
        mrs = [row["mr"] for row in candidates if row["mr"] is not None]
        gap = max(mrs) - min(mrs) if len(mrs) > 1 else None
        outcome = KEPT if pair else _why_not(gap, options)
        found.append(Turn(task_id, turn, candidates, pair, gap, outcome))
    return found


def _why_not(gap: float | None, options: Pairs) -> str:
    """Why a turn has no pair (`pairs.best_against_worst`)."""
    if gap is None:
        return "fewer than two scored candidates"
    if gap < max(options.min_gap, 1e-9):
        return f"a gap below {options.min_gap:g}" if options.min_gap else "equal scores"
    return f"a gap below {options.min_gap_se:g} of its standard errors"


def _parsed(run: Run, name: str, stage: str) -> Any:
    return _parse(run, name, stage, run.need(name, stage).read_bytes())


def _rows(run: Run, name: str, stage: str, *keys: str) -> list[Row]:
    # Not splitlines(): JSON leaves U+2028 and its like as they are, and they end no row.
    lines = run.need(name, stage).read_bytes().split(b"\n")
    rows = [_parse(run, name, stage, line) for line in lines if line]
    if not all(key in row for row in rows for key in keys):
        raise _broken(run, name, stage)
    return rows


def _parse(run: Run, name: str, stage: str, text: bytes) -> Row:
    try:
        found = json.loads(text)
        if not isinstance(found, dict):
            raise ValueError
        return found
    except (ValueError, RecursionError):
        raise _broken(run, name, stage) from None


def _broken(run: Run, name: str, stage: str) -> RunError:
    return RunError(f"{run / name} is broken", f"Delete it and run: minicollab {stage} {run.folder}")
