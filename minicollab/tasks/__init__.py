"""Where tasks come from, and which of them are held out."""

from __future__ import annotations

from minicollab.errors import TaskError
from minicollab.schema import Task
from minicollab.tasks.jsonl import load_tasks

__all__ = ["load_tasks", "split"]


def split(tasks: list[Task], train: int, eval: int, seed: int = 0) -> tuple[list[Task], list[Task]]:
    """The first `train` tasks and, held out, the last `eval`, in file order, never overlapping.

    `seed` draws nothing here: runs that differ in seed alone are compared on the same held-out tasks.
    Raises TaskError if there are too few.
    """
    if train + eval > len(tasks):
        raise TaskError(
            f"tasks.train = {train} and tasks.eval = {eval} are more than the {len(tasks)} tasks there are",
            "Lower tasks.train or tasks.eval in the recipe, or add tasks to the file.",
        )
    return tasks[:train], tasks[len(tasks) - eval :]
