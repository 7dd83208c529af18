"""A folder to begin a task of one's own with: a recipe, tasks, a metric."""

from __future__ import annotations

import json
import re
import shutil
from itertools import islice
from pathlib import Path

from minicollab.errors import RunError, TaskError
from minicollab.files import aside
from minicollab.tasks.source import entries

_TEMPLATE = Path(__file__).with_name("template")
_OPENINGS = ("opening", "request", "prompt", "question", "task", "message", "query", "instruction")
_DETAILS = ("details", "detail", "goal", "needs", "wishes", "requirements", "constraints", "context")
_NEITHER = ("id", "category")
_TASKS = re.compile(r"^tasks:\n(?: .*\n)+", re.MULTILINE)
_MOST_TRAINED, _MOST_HELD_OUT = 36, 12


def new_task(folder: Path, data: Path | None = None) -> Path:
    """Make `folder` with recipe.yaml, metrics.py and tasks.jsonl, ten tasks of ours, or a copy of
    `data`, whose columns are guessed. Returns the recipe. Raises RunError if there is such a folder
    or it cannot have that name, TaskError if `data` cannot be used."""
    if not re.fullmatch(r"[A-Za-z0-9._-]+", folder.name):
        raise RunError(
            f"{folder.name or folder} cannot be a task's name",
            "Use letters, digits, dot, dash and underscore.",
        )
    if folder.exists():
        raise RunError(f"{folder} is there already", "Give another name; nothing is overwritten.")
    if data and not data.is_file():
        raise TaskError(f"there is no file {data}", "Give the path of your tasks.")
    section = _section(data) if data else None
    with aside(folder) as made:
        shutil.copytree(_TEMPLATE, made, ignore=shutil.ignore_patterns("__pycache__"))
        recipe = (made / "recipe.yaml").read_text("utf-8")
        recipe = recipe.replace("name: my-task", f"name: {json.dumps(folder.name)}")  # 2026 is no name
        if data and section:
            (made / "tasks.jsonl").unlink()
            shutil.copyfile(data, made / data.name)
            recipe = _TASKS.sub(lambda _: section, recipe)
        (made / "recipe.yaml").write_text(recipe, "utf-8")
    return folder / "recipe.yaml"


def _section(data: Path) -> str:
    """The recipe's `tasks` for this file."""
    found = list(islice(entries(data), _MOST_TRAINED + _MOST_HELD_OUT))
    names = next((list(entry.row) for entry in found if entry.row), [])
    if len(found) < 2 or not names:
        bad = "".join(f"; row {entry.number}: {entry.fault}" for entry in found if entry.fault)
        raise TaskError(f"{data} has fewer than two rows{bad}", "Give a file with at least two tasks.")
    eval = max(1, min(_MOST_HELD_OUT, round(0.3 * len(found))))
    return (
        "tasks:\n"
        f"  path: {json.dumps(data.name)}\n"
        f"  columns: {json.dumps(guessed(names, data), ensure_ascii=False)}   # what your file calls them\n"
        f"  train: {len(found) - eval}\n"
        f"  eval: {eval}\n"
    )


def guessed(names: list[str], data: Path) -> dict[str, str]:
    """Which column is the opening and which holds the details, by name, else by order."""
    rest = [name for name in names if name.lower() not in _NEITHER]
    found: dict[str, str] = {}
    for field, known in (("opening", _OPENINGS), ("details", _DETAILS)):
        by_name = [name for word in known for name in rest if name.lower() == word]
        others = [name for name in rest if name.lower() not in _OPENINGS + _DETAILS]
        if not by_name + others:
            raise TaskError(
                f"{data} has no column that could be the {field} (it has: {', '.join(names)})",
                "It takes two: what the person asks for, and the details, with ; between them.",
            )
        found[field] = (by_name + others)[0]
        rest.remove(found[field])
    return found
