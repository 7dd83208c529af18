"""`minicollab ambiguity`: the paper's table on Abg-CoQA."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from minicollab.cli_common import (
    display,
    interval,
    json_option,
    out_option,
    run_or_recipe_argument,
    set_option,
)
from minicollab.run import Run

_HEADS = {
    "accuracy_ambiguous": "ambiguous: asks",
    "accuracy_clear": "clear: answers",
    "macro_accuracy": "macro accuracy",
    "macro_f1": "macro F1",
}


@click.command("ambiguity")
@run_or_recipe_argument
@click.option(
    "--trained",
    type=click.Path(path_type=Path),
    metavar="RUN_OR_GGUF",
    help="A third arm: a GGUF, or the model that the run in this folder exported.",
)
@out_option
@set_option
@json_option
def ambiguity(
    run_or_recipe: Path, trained: Path | None, out: Path | None, overrides: tuple[str, ...], as_json: bool
) -> None:
    """Does the assistant ask where a question is ambiguous, and answer where it is clear (Abg-CoQA)?"""
    from minicollab.ambiguity import evaluate

    with (
        Run.open(run_or_recipe, "ambiguity", out, overrides, trial=True) as run,
        display("ambiguity") as progress,
    ):
        result = evaluate(run, trained, progress)
    click.echo(json.dumps(result, indent=1) if as_json else _told(run, result))


def _told(run: Run, result: dict[str, Any]) -> str:
    """The paper's table in percent, with 95% intervals."""
    lines = ["".ljust(16) + "".join(head.rjust(22) for head in _HEADS.values())]
    for name, row in (result["arms"] | result["differences"]).items():
        sign = "+" if name in result["differences"] else ""
        cells = (interval(row[figure], f"{sign}.1f", 100).rjust(22) for figure in _HEADS)
        lines.append(name.ljust(16) + "".join(cells))
    left_out = f", {result['tasks_left_out']} left out as failed" if result["tasks_left_out"] else ""
    counted = f"{result['ambiguous']} ambiguous and {result['clear']} clear questions{left_out}"
    return "\n".join([*lines, f"{counted}, {result['cost']['seconds']:.0f} s", f"  {run / 'ambiguity.json'}"])
