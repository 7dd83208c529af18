"""Your own tasks: JSON Lines, one task a line, plain or gzipped."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from minicollab.errors import TaskError
from minicollab.schema import Task

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class Row(BaseModel):
    """One line. Unknown keys are refused; what is your own goes into `metadata`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    id: Text | None = None
    opening: Text
    details: list[Text] = Field(min_length=1)
    category: str = ""
    metadata: dict[str, Any] = Field(default_factory=dict)


def load_tasks(path: Path) -> list[Task]:
    """The tasks of a .jsonl or .jsonl.gz file, in file order; empty lines are skipped.

    A task without an id is called after its line ("task-17"). Raises TaskError with file,
    line and fault.
    """
    tasks: dict[str, Task] = {}
    for number, line in enumerate(_read(path).split("\n"), start=1):
        if not line.strip():
            continue
        task = _task(line, path, number)
        if task.id in tasks:
            raise TaskError(
                f"{path.name} line {number}: the id {task.id} is taken", "Give every task an id of its own."
            )
        tasks[task.id] = task
    if not tasks:
        raise TaskError(
            f"{path.name} holds no tasks", 'Write one {"opening": ..., "details": [...]} per line.'
        )
    return list(tasks.values())


def _task(line: str, path: Path, number: int) -> Task:
    try:
        row = Row.model_validate_json(line)
    except ValidationError as error:
        raise TaskError(f"{path.name} line {number}: {_fault(error)}", "Mend that line.") from None
    return Task(row.id or f"task-{number}", row.opening, tuple(row.details), row.category, row.metadata)


def _fault(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    match first["type"]:
        case "json_invalid":
            return f"not JSON ({first['ctx']['error']})"
        case "missing":
            return f"{where} is missing"
        case "string_too_short" | "too_short":
            return f"{where} is empty"
        case "extra_forbidden":
            return f"there is no field {where} (known: {', '.join(Row.model_fields)})"
        case _:
            return f"{where}: {first['msg'].lower()}".removeprefix(": ")


def _read(path: Path) -> str:
    remedy = "Set tasks.path in the recipe to a JSON Lines file (.jsonl or .jsonl.gz)."
    try:
        raw = path.read_bytes()
        if path.suffix == ".gz":
            raw = gzip.decompress(raw)
    except FileNotFoundError:
        raise TaskError(f"there is no task file {path}", remedy) from None
    except (OSError, EOFError, zlib.error) as error:
        raise TaskError(f"{path} cannot be read: {error}", remedy) from None
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise TaskError(f"{path.name} line {line}: not UTF-8", "Save the file as UTF-8.") from None
