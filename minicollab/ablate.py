"""Ablation: runs of one recipe that differ in the values of some keys, side by side."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from minicollab import markdown
from minicollab.errors import RecipeError
from minicollab.files import aside
from minicollab.loading import recipe_at
from minicollab.needs.supplies import needed
from minicollab.recipe import label
from minicollab.run import Run
from minicollab.tasks import load_tasks, split


@dataclass(frozen=True)
class Variant:
    """One run of an ablation: `overrides` as `minicollab run` takes them, `values` of the varied keys."""

    recipe: Path
    folder: Path
    values: Mapping[str, str]
    overrides: tuple[str, ...]

    @property
    def command(self) -> str:
        """What makes the same run."""
        options = [word for override in self.overrides for word in ("--set", override)]
        return shlex.join(["minicollab", "run", str(self.recipe), *options, "--out", str(self.folder)])


def variants(recipe: Path, vary: Sequence[str], overrides: Sequence[str], out: Path | None) -> list[Variant]:
    """Every combination of the values in `vary` ("key=value,value"), in its order, each with a run
    folder of its own in `out`. RecipeError if one of them is no recipe."""
    varied: dict[str, list[str]] = {}
    for text in vary:
        key, _, listed = text.partition("=")
        values = listed.split(",")
        if not key or not all(values):
            raise RecipeError(f"--vary {text} has no values", "Write it as --vary key.path=value,value.")
        varied.setdefault(key, []).extend(values)
    out = out or Path("runs") / f"{recipe_at(recipe, overrides).name}-ablate"
    found = []
    for combination in product(*varied.values()):
        chosen = dict(zip(varied, combination, strict=True))
        pairs = tuple(f"{key}={value}" for key, value in chosen.items())
        folder = out / ",".join(pairs).replace("/", "_")
        found.append(Variant(recipe, folder, chosen, (*overrides, *pairs)))
        recipe_at(recipe, found[-1].overrides)
    return found


def check(variant: Variant) -> None:
    """Before any of them runs: MinicollabError if this one lacks a model or tasks."""
    recipe = recipe_at(variant.recipe, variant.overrides)
    *_, tasks = needed(recipe)
    if tasks.path:  # else it is fetched when its run begins
        split(load_tasks(recipe.tasks), recipe.tasks.train, recipe.tasks.eval)


def compared(finished: Sequence[Variant], out: Path) -> dict[str, Any]:
    """What came of each run, also written to ablation.json and ablation.md in `out`.

    A row has its `values`, `folder` and `command`, how many `pairs` and held-out `tasks` there were,
    and the `differences` of trained and each baseline (`evaluate.compare`) in MR, every metric that a
    recipe weighs, and tokens read in thousands. RunError if a run was not evaluated.
    """
    runs = [Run.at(variant.folder) for variant in finished]
    weighed = {label(name): None for run in runs for name in run.recipe.reward.weights}
    metrics = ["mr", *weighed, "tokens_read_k"]
    rows = [_row(variant, run, metrics) for variant, run in zip(finished, runs, strict=True)]
    result = {"metrics": metrics, "rows": rows}
    texts = {"ablation.json": json.dumps(result, indent=1, ensure_ascii=False), "ablation.md": table(result)}
    for name, text in texts.items():
        with aside(out / name) as partial:
            partial.write_text(text, "utf-8")
    return result


def table(result: Mapping[str, Any]) -> str:
    """The rows as a Markdown table, two a run, and under it the commands that made them."""
    rows, metrics = result["rows"], result["metrics"]
    heads = [*rows[0]["values"], "pairs", "tasks", "difference", *metrics]
    lines = []
    for row in rows:
        for name, difference in row["differences"].items():
            cells = [_cell(difference.get(metric)) for metric in metrics]
            lines.append([*row["values"].values(), str(row["pairs"]), str(row["tasks"]), name, *cells])
    commands = [f"    {row['command']}" for row in rows]
    return "\n".join([markdown.table(heads, lines), "", *commands, ""])


def _row(variant: Variant, run: Run, metrics: Sequence[str]) -> dict[str, Any]:
    evaluation = run.read_json("eval.json", "eval")
    return {
        "values": dict(variant.values),
        "folder": str(variant.folder),
        "command": variant.command,
        "pairs": run.journal()["stages"]["simulate"]["result"]["pairs"],
        "tasks": evaluation["tasks"],
        "differences": {
            name: {metric: difference[metric] for metric in metrics if metric in difference}
            for name, difference in evaluation["differences"].items()
        },
    }


def _cell(difference: Mapping[str, float] | None) -> str:
    """Mean and 95% interval; nothing if that run did not measure it."""
    return "{mean:+.3f} [{low:+.3f}, {high:+.3f}]".format(**difference) if difference else ""
