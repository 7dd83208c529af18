"""`minicollab fetch`: everything that a recipe needs, before it runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from minicollab.cli_common import display, json_option, recipe_argument, set_option

if TYPE_CHECKING:
    from minicollab.needs.supplies import Supply


@click.command("fetch")
@recipe_argument
@set_option
@json_option
def fetch(recipe: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """Download the models and data sets of RECIPE (or a run folder), and check their sha256.

    What broke off goes on where it stopped. With HF_HUB_OFFLINE=1 nothing is downloaded: the command
    says what is missing.
    """
    from minicollab.loading import recipe_at
    from minicollab.needs.supplies import fetch_all

    chosen = recipe_at(recipe, overrides)
    with display("fetch") as progress:
        found = [_row(supply) for supply in fetch_all(chosen, progress)]
    click.echo(json.dumps(found, indent=1) if as_json else "\n".join(map(_line, found)))


def _row(supply: Supply) -> dict[str, Any]:
    path = supply.path
    assert path  # `fetch_all` returns what is here
    files = [file for file in path.iterdir() if file.is_file()] if path.is_dir() else [path]
    size = sum(file.stat().st_size for file in files)
    return {"role": supply.role, "name": supply.name, "path": str(path), "bytes": size}


def _line(row: dict[str, Any]) -> str:
    size = f"{row['bytes'] / 1e9:.1f} GB" if row["bytes"] >= 1e9 else f"{row['bytes'] / 1e6:.1f} MB"
    return f"{row['role']:<11} {size:>9}  {row['path']}"
