"""Where tasks come from, and which of them are held out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from minicollab.errors import TaskError
from minicollab.recipe import HUB, Tasks
from minicollab.schema import Task
from minicollab.tasks import abg_coqa, code, details, document, hub, in3, math, twenty_questions
from minicollab.tasks.family import Family
from minicollab.tasks.source import Entry, entries, kind_of

FAMILIES: Mapping[str, type[Family]] = {
    "details": details.Row,
    "math": math.Row,
    "code": code.Row,
    "document": document.Row,
    "in3": in3.Row,
    "twenty-questions": twenty_questions.Row,
    "abg-coqa": abg_coqa.Row,
}


@dataclass
class Checked:
    """What is in a task file: the tasks, the bad rows by place ("line 3") and fault, and how many
    rows are none for the family."""

    path: Path
    tasks: list[Task] = field(default_factory=list)
    bad: list[tuple[str, str]] = field(default_factory=list)
    skipped: int = 0


def load_tasks(options: Tasks) -> list[Task]:
    """The tasks that a recipe names, in file order. A task without an id is called after its line
    ("task-17"). Raises TaskError with file, line and fault of the first bad row."""
    checked = check_tasks(options)
    if checked.bad:
        where, fault = checked.bad[0]
        raise TaskError(
            f"{checked.path.name} {where}: {fault}", "Mend it, or set tasks.columns or tasks.family."
        )
    if not checked.tasks:
        fields = ", ".join(FAMILIES[options.family].model_fields)
        raise TaskError(
            f"{checked.path.name} holds no tasks", f"A row of the family {options.family} has: {fields}."
        )
    return checked.tasks


def check_tasks(options: Tasks) -> Checked:
    """Every row of the file (or of the slice of it), good or bad."""
    path = tasks_file(options)
    unit = "row" if kind_of(path) == ".parquet" else "line"
    checked, seen = Checked(path), set[str]()
    _check_columns(options)
    for entry in islice(entries(path), *_bounds(options.slice)):
        try:
            task = _task(entry, options, path)
        except ValueError as error:
            checked.bad.append((f"{unit} {entry.number}", str(error)))
            continue
        if task is None:
            checked.skipped += 1
        elif task.id in seen:
            checked.bad.append((f"{unit} {entry.number}", f"the id {task.id} is taken"))
        else:
            seen.add(task.id)
            checked.tasks.append(task)
    return checked


def tasks_file(options: Tasks) -> Path:
    """The local file that the tasks are read from; a data set of the hub is fetched if need be."""
    return hub.kept(options) if options.path.startswith(HUB) else Path(options.path)


def split(tasks: list[Task], train: int, eval: int) -> tuple[list[Task], list[Task]]:
    """The first `train` tasks and, held out, the last `eval`, in file order, never overlapping: whatever
    the seed, runs are compared on the same ones. Raises TaskError if there are too few."""
    if train + eval > len(tasks):
        raise TaskError(
            f"tasks.train = {train} and tasks.eval = {eval} are more than the {len(tasks)} tasks there are",
            "Lower tasks.train or tasks.eval in the recipe, or add tasks to the file.",
        )
    return tasks[:train], tasks[len(tasks) - eval :]


def _bounds(slice: str | None) -> tuple[int | None, int | None]:
    begin, _, end = (slice or ":").partition(":")
    return int(begin) if begin else None, int(end) if end else None


def _check_columns(options: Tasks) -> None:
    fields = FAMILIES[options.family].model_fields
    for name in options.columns:
        if name not in fields:
            raise TaskError(
                f"tasks.columns.{name} is no field of the family {options.family}",
                f"Its fields: {', '.join(fields)}.",
            )


def _task(entry: Entry, options: Tasks, path: Path) -> Task | None:
    """Raises ValueError with the fault of a bad row."""
    if entry.fault:
        raise ValueError(entry.fault)
    family, columns = FAMILIES[options.family], options.columns
    given = {name: value for name, value in entry.row.items() if value is not None}
    row: dict[str, Any] = {
        name: value for name, value in given.items() if name not in columns and name not in columns.values()
    }
    row |= {name: given[column] for name, column in columns.items() if column in given}
    if columns or kind_of(path) != ".jsonl":  # a table may have columns of its own
        row = {name: value for name, value in row.items() if name in family.model_fields}
    try:
        return family.model_validate(row).as_task(f"task-{entry.number}")
    except ValidationError as error:
        raise ValueError(_fault(error, options)) from None


def _fault(error: ValidationError, options: Tasks) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    column = options.columns.get(where)
    named = f"{where} (column {column})" if column else where
    match first["type"]:
        case "missing":
            return f"{named} is missing"
        case "string_too_short" | "too_short":
            return f"{named} is empty"
        case "extra_forbidden":
            return f"there is no field {where} (known: {', '.join(FAMILIES[options.family].model_fields)})"
        case "value_error":
            return f"{named} {first['msg'].removeprefix('Value error, ')}"
        case _:
            return f"{named}: {first['msg'].lower()}"
