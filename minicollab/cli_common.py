"""What commands have in common: arguments, options, progress on standard error, and how figures read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from minicollab.display import Display


class Number(click.FloatRange):
    """A range in which there is no NaN and nothing infinite."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a number that counts.", param, ctx)
        return number


recipe_argument = click.argument("recipe", type=click.Path(path_type=Path))
run_or_recipe_argument = click.argument("run_or_recipe", type=click.Path(path_type=Path))
out_option = click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Run folder; default the one given, or runs/<name of the recipe>.",
)
set_option = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key of the recipe."
)
events_option = click.option(
    "--events", type=click.Path(path_type=Path), metavar="FILE", help="Add progress to FILE, as JSON lines."
)
json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print the result as JSON on standard output."
)


def display(stage: str, events: Path | None = None) -> Display:
    """`events`: a file to which progress is added, too, as JSON lines."""
    from rich.console import Console

    from minicollab.display import Display

    return Display(stage, Console(stderr=True), events)


def interval(figure: Mapping[str, float], spec: str, scale: float = 1) -> str:
    """A `value` and the 95% interval from `low` to `high`, times `scale`: "0.93 [0.90, 0.96]"."""
    value, low, high = (format(scale * figure[key], spec) for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"
