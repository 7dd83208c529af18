"""`minicollab simulator-check`: whether the simulated user can be trusted."""

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

_ROWS = {
    "drift_rule": "role drift, by rule",
    "drift_judge": "role drift, by judge",
    "drift_both": "role drift, by both",
    "leak_judge": "told at once, by judge",
    "leak_words": "told at once, by words",
    "faithful_judge": "asked: faithful, by judge",
    "faithful": "asked: ... or by words",
    "coverage": "asked: told in the end",
    "ended_covered": "asked: ended, all told",
    "ended_before": "asked: ended before that",
    "never_ended": "asked: never ended",
}
_NUMBERS = {"tokens": "tokens a turn"}
_PLAIN = {"distinct_1": "distinct-1", "distinct_2": "distinct-2", "repeated": "said before"}
_LEFT, _CELL = 26, 24  # characters


@click.command("simulator-check")
@run_or_recipe_argument
@click.option("-n", "number", type=click.IntRange(1), default=50, show_default=True, help="Tasks, at most.")
@click.option(
    "--styles", default="", metavar="STYLE,STYLE", help="Styles of the simulator; default the recipe's."
)
@out_option
@set_option
@json_option
def simulator_check(
    run_or_recipe: Path, number: int, styles: str, out: Path | None, overrides: tuple[str, ...], as_json: bool
) -> None:
    """Does the simulated user keep to its part, and to its goal?"""
    from minicollab.simulator_check import check

    asked = [style.strip() for style in styles.split(",") if style.strip()]
    with (
        Run.open(run_or_recipe, "simulator-check", out, overrides, trial=True) as run,
        display("simulator-check") as progress,
    ):
        result = check(run, number, asked, progress)
    click.echo(json.dumps(result, indent=1) if as_json else _told(run, result))


def _told(run: Run, result: dict[str, Any]) -> str:
    """Shares in percent with 95% intervals, a column for each style."""
    styles = result["styles"]
    rows = {"": list(styles)}
    rows |= {head: [_cell(s[name], 100) for s in styles.values()] for name, head in _ROWS.items()}
    rows |= {head: [_cell(s[name], 1) for s in styles.values()] for name, head in _NUMBERS.items()}
    rows |= {head: [_percent(s[name]) for s in styles.values()] for name, head in _PLAIN.items()}
    rows["turns, answers"] = [f"{s['turns']}, {s['answers']}" for s in styles.values()]
    rows["failed conversations"] = [f"{s['failed']} of {result['tasks']}" for s in styles.values()]
    lines = [head.ljust(_LEFT) + "".join(cell.rjust(_CELL) for cell in cells) for head, cells in rows.items()]
    counted = f"{result['tasks']} tasks of {result['exchanges']} exchanges, {result['cost']['seconds']:.0f} s"
    return "\n".join([*lines, counted, f"  {run / 'simulator_check.json'}"])


def _cell(figure: dict[str, float] | None, scale: int) -> str:
    return "-" if figure is None else interval(figure, ".1f", scale)


def _percent(share: float | None) -> str:
    return "-" if share is None else format(100 * share, ".1f")
