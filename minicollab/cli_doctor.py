"""`minicollab doctor`: is the machine fit, and does a recipe fit the machine?"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from minicollab.cli_common import json_option, set_option

if TYPE_CHECKING:
    from minicollab.doctor import Line

_UNFIT = 8  # exit code; those below are of errors


@click.command("doctor")
@click.argument("recipe", type=click.Path(path_type=Path), required=False)
@set_option
@json_option
def doctor(recipe: Path | None, overrides: tuple[str, ...], as_json: bool) -> None:
    """Is this machine fit, and does RECIPE (or a run folder) fit into its memory and disk?

    Memory is estimated stage by stage, at its peak. Nothing is loaded or downloaded. The exit code is
    8 if something is missing or does not fit.
    """
    from minicollab.doctor import check_machine, check_recipe
    from minicollab.errors import RecipeError
    from minicollab.needs.machine import look

    if overrides and not recipe:
        raise RecipeError("--set changes a recipe, and none was named", "Type: minicollab doctor RECIPE.")
    machine = look()
    lines = check_machine(machine) + (check_recipe(recipe, machine, overrides) if recipe else [])
    click.echo(json.dumps([asdict(line) for line in lines], indent=1) if as_json else _told(lines))
    if any(line.status == "fail" for line in lines):
        click.get_current_context().exit(_UNFIT)


def _told(lines: list[Line]) -> str:
    width = max(len(line.what) for line in lines)
    rows = []
    for line in lines:
        rows.append(f"{line.status:<4}  {line.what:<{width}}  {line.says}")
        if line.fix:
            rows.append(f"{'':<{width + 8}}→ {line.fix}")
    return "\n".join(rows)
