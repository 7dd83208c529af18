"""`minicollab ablate`: the same recipe with other values, one run each, and a table of them."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext, redirect_stdout
from pathlib import Path

import click

from minicollab.cli_common import json_option, recipe_argument, set_option
from minicollab.run import STAGES


@click.command("ablate")
@recipe_argument
@click.option(
    "--vary",
    multiple=True,
    required=True,
    metavar="KEY=VALUE,VALUE",
    help="A key of the recipe and its values; of several keys, every combination.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder of the runs; default runs/<name>-ablate."
)
@set_option
@click.option(
    "--until",
    type=click.Choice(STAGES),
    default=STAGES[-1],
    help="The last stage of each run; without eval there is no table.",
)
@json_option
@click.pass_context
def ablate(
    context: click.Context,
    recipe: Path,
    vary: tuple[str, ...],
    out: Path | None,
    overrides: tuple[str, ...],
    until: str,
    as_json: bool,
) -> None:
    """Run RECIPE (or a run folder's) once for every value of a key, and compare the results.

    Each is what `minicollab run --set KEY=VALUE` does, in a folder of its own.
    """
    from minicollab.ablate import check, compared, table, variants

    commands = context.find_root().command
    assert isinstance(commands, click.Group)
    asked = variants(recipe, vary, overrides, out)
    for variant in asked:
        check(variant)
    with redirect_stdout(sys.stderr) if as_json else nullcontext():
        for number, variant in enumerate(asked, 1):
            click.echo(f"{variant.folder.name} ({number} of {len(asked)})")
            context.invoke(
                commands.commands["run"],
                recipe=variant.recipe,
                out=variant.folder,
                overrides=variant.overrides,
                until=until,
                as_json=False,
            )
    if STAGES.index(until) < STAGES.index("eval"):
        return
    folder = asked[0].folder.parent
    result = compared(asked, folder)
    click.echo(json.dumps(result, indent=1) if as_json else f"\n{table(result)}\n  {folder / 'ablation.md'}")
