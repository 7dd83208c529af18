"""`minicollab judge-check`: whether the recipe's judge can judge."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from minicollab import markdown
from minicollab.cli_common import (
    display,
    interval,
    json_option,
    out_option,
    run_or_recipe_argument,
    set_option,
)
from minicollab.run import Run

_FIGURES = ("auc_sampled", "brier", "ece", "agreement", "kappa")


@click.command("judge-check")
@run_or_recipe_argument
@click.option("--tune", is_flag=True, help="The half that prompts may be tuned on, not the held-out one.")
@click.option("--short", is_flag=True, help="Only a few questions: can it judge at all? Writes nothing.")
@out_option
@set_option
@json_option
def judge_check(
    run_or_recipe: Path, tune: bool, short: bool, out: Path | None, overrides: tuple[str, ...], as_json: bool
) -> None:
    """Can the judge tell good replies from bad ones? Compares it with labels given by reading."""
    from minicollab import judge_check as checking

    result: dict[str, Any]
    with (
        Run.open(run_or_recipe, "judge-check", out, overrides, trial=True) as run,
        display("judge-check") as progress,
    ):
        if short:
            result = checking.short(run, progress)
        else:
            result = checking.check(run, "tune" if tune else "held_out", progress)
    if as_json:
        click.echo(json.dumps(result, indent=1))
    else:
        click.echo(_told_short(result) if short else _told(run, result))


def _told_short(result: dict[str, Any]) -> str:
    return "\n".join(
        f"{name}: AUC {row['auc']:.2f} on {row['judgements']} labelled judgements"
        for name, row in result.items()
    )


def _told(run: Run, result: dict[str, Any]) -> str:
    """Two tables in Markdown: agreement with the labels, and what moves the answer without reason."""
    rows = result["questions"]
    half = result["half"].replace("_", "-")
    lines = [f"{result['judge']}, {half} half", "", _agreement(rows), "", _moves(rows)]
    if result["unlabelled"]:
        lines += ["", f"Without labels, so not checked: {', '.join(result['unlabelled'])}."]
    return "\n".join([*lines, "", f"{result['cost']['seconds']:.0f} s", f"  {run / 'judge_check.json'}"])


def _agreement(rows: Sequence[dict[str, Any]]) -> str:
    heads = (
        "question", "style", "judgements", "failed", "AUC", "AUC, sampled", "Brier", "ECE", "agreement",
        "kappa", "s each", "verdict",
    )  # fmt: skip
    cells = [
        [
            row["question"],
            row["style"],
            str(row["judgements"]),
            str(row["failed"]),
            _interval(row.get("auc"), ""),
            *(_number(row.get(figure)) for figure in _FIGURES),
            _number(row["seconds"]),
            row["verdict"],
        ]
        for row in rows
    ]
    return markdown.table(heads, cells)


def _moves(rows: Sequence[dict[str, Any]]) -> str:
    heads = ("question", "style", "order, size", "length", "deceptive - honest", "verbosity (r)")
    cells = [
        [
            row["question"],
            row["style"],
            _number((row.get("order") or {}).get("moved")),
            *(_interval(row.get(what), "+") for what in ("length", "deceptive")),
            _number(row.get("verbosity")),
        ]
        for row in rows
    ]
    return markdown.table(heads, cells)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _interval(figure: dict[str, float] | None, sign: str) -> str:
    return interval(figure, f"{sign}.2f") if figure else ""
