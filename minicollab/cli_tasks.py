"""`minicollab tasks` and `minicollab init`: a look at the data before anything is computed."""

from __future__ import annotations

import json
from itertools import takewhile
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import click

from minicollab.cli_common import json_option, recipe_argument, set_option
from minicollab.errors import TaskError
from minicollab.terminal import printable

if TYPE_CHECKING:
    from minicollab.recipe import Recipe
    from minicollab.schema import Task
    from minicollab.tasks import Checked

_SHOWN = 20  # bad rows that a person is shown


@click.group("tasks")
def tasks() -> None:
    """Look at a recipe's tasks; a data set of the Hugging Face hub is fetched for it."""


@tasks.command("check")
@recipe_argument
@set_option
@json_option
def check_command(recipe: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """List every bad row by line and why, and say how many tasks there are and how long."""
    from minicollab.loading import recipe_at
    from minicollab.tasks import check_tasks, split

    options = recipe_at(recipe, overrides).tasks
    checked = check_tasks(options)
    found = {"family": options.family} | _figures(checked)
    click.echo(json.dumps(found, indent=1) if as_json else printable(_said(found)))
    if checked.bad:
        number = f"{len(checked.bad):,} bad row{'s' * (len(checked.bad) != 1)}"
        raise TaskError(
            f"{checked.path.name} has {number}", "Mend the file, or set tasks.columns or tasks.family."
        )
    split(checked.tasks, options.train, options.eval)


@tasks.command("preview")
@recipe_argument
@click.option("-n", "number", type=click.IntRange(1), default=5, show_default=True, help="How many tasks.")
@set_option
@json_option
def preview_command(recipe: Path, number: int, overrides: tuple[str, ...], as_json: bool) -> None:
    """Show tasks as the simulated user will see them: opening, details and the prompt itself."""
    from minicollab.loading import recipe_at
    from minicollab.tasks import load_tasks

    chosen = recipe_at(recipe, overrides)
    shown = [_shown(chosen, task) for task in load_tasks(chosen.tasks)[:number]]
    click.echo(json.dumps(shown, indent=1) if as_json else printable(_previewed(shown)))


@click.command("init")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="Your own tasks, .csv, .jsonl or .parquet: two columns, what is asked for and the details.",
)
def init(folder: Path, data: Path | None) -> None:
    """Begin a task of your own: FOLDER with a recipe that runs at once, ten tasks and a metric."""
    from minicollab.loading import load_recipe
    from minicollab.tasks.new import new_task

    recipe = new_task(folder, data)
    for field, column in load_recipe(recipe).tasks.columns.items():
        click.echo(f"{field}: the column {column}")
    click.echo(f"{recipe.parent}: {', '.join(sorted(p.name for p in recipe.parent.iterdir()))}\n")
    for command in ("tasks check", "tasks preview", "run"):
        click.echo(f"  minicollab {command} {recipe}")


def _figures(checked: Checked) -> dict[str, Any]:
    tasks = checked.tasks
    details = [len(task.details) for task in tasks]
    lengths = {
        "opening": [len(task.opening) for task in tasks],
        "details": [sum(map(len, task.details)) for task in tasks],
        "reference": [len(task.reference) for task in tasks if task.reference],
    }
    return {
        "file": str(checked.path),
        "tasks": len(tasks),
        "skipped": checked.skipped,
        "bad": [{"where": where, "fault": fault} for where, fault in checked.bad],
        "details": {"median": median(details), "most": max(details)} if details else {},
        "characters": {
            name: {"median": median(each), "longest": max(each)} for name, each in lengths.items() if each
        },
    }


def _said(found: dict[str, Any]) -> str:
    lines = [f"{row['where']}: {row['fault']}" for row in found["bad"]]
    if len(lines) > _SHOWN:
        lines = [*lines[:_SHOWN], f"… and {len(lines) - _SHOWN:,} more: --json gives all of them"]
    skipped = f", {found['skipped']:,} rows skipped" if found["skipped"] else ""
    bad = f"{len(found['bad']):,} bad rows" if found["bad"] else "no bad rows"
    lines.append(f"{found['tasks']:,} tasks of the family {found['family']}{skipped}, {bad}")
    if found["details"]:
        lines.append(
            f"  details    {found['details']['median']:g} of them, {found['details']['most']} at most"
        )
    for name, each in found["characters"].items():
        lines.append(f"  {name:<10} {each['median']:,.0f} characters, {each['longest']:,} at most")
    return "\n".join([*lines, f"  {found['file']}"])


def _shown(recipe: Recipe, task: Task) -> dict[str, Any]:
    return {
        "id": task.id,
        "opening": task.opening,
        "details": list(task.details),
        "reference": task.reference,
        "prompt": _prompt(recipe, task),
    }


def _prompt(recipe: Recipe, task: Task) -> str:
    """What the simulated user is shown when the assistant has first replied."""
    from minicollab import prompts
    from minicollab.engine.scripted import ScriptedEngine
    from minicollab.schema import Conversation, Message
    from minicollab.simulator import Simulator

    if recipe.simulator.style == "yes-no":
        asked = prompts.chat("simulator_yes_no", thing=task.details[0], question="…?")
        return "\n".join(message.content for message in asked)
    simulator = Simulator(ScriptedEngine(), recipe.simulator, recipe.seed)
    talk = Conversation() + simulator.open(task) + Message("assistant", "…")
    return "".join(segment.text for segment in simulator.prompt(task, talk) if not segment.control)


def _previewed(shown: list[dict[str, Any]]) -> str:
    """The lines that all prompts begin with are shown once."""
    prompts = [task["prompt"].split("\n") for task in shown]
    alike = takewhile(lambda lines: len(set(lines)) == 1, zip(*prompts, strict=False))
    same = [lines[0] for lines in alike] if len(shown) > 1 else []
    parts = [f"Every prompt begins:\n\n{_indented(same)}\n"] if same else []
    for task, prompt in zip(shown, prompts, strict=True):
        details = "\n".join(f"  - {detail}" for detail in task["details"])
        reference = f"reference: {task['reference']}\n" if task["reference"] else ""
        parts.append(
            f"── {task['id']}\nopening: {task['opening']}\ndetails:\n{details}\n{reference}"
            f"{'… ' * bool(same)}prompt:\n{_indented(prompt[len(same) :])}\n"
        )
    return "\n".join(parts)


def _indented(lines: list[str]) -> str:
    return "\n".join(f"  │ {line}" for line in lines)
