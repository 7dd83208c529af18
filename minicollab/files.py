"""Writing files so that a final name never holds half a file."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from minicollab.errors import RunError


@contextmanager
def scratch(path: Path) -> Iterator[Path]:
    """`path`, free to write a file or folder at; removed at the end, and first of all if a
    killed process has left it there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    remove(path)
    try:
        yield path
    finally:
        remove(path)


@contextmanager
def aside(target: Path) -> Iterator[Path]:
    """A path next to `target` to write a file or folder at; it becomes `target` on success."""
    # The ending stays the same: some writers go by it.
    with scratch(target.with_name(f".partial-{target.name}")) as partial:
        yield partial
        if partial.is_dir():
            remove(target)
        os.replace(partial, target)


def remove(path: Path) -> None:
    """Delete a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def need_space(folder: Path, needed: int, what: str) -> None:
    """Raises RunError if the disk that holds `folder` has fewer than `needed` bytes left."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise RunError(
            f"{what} needs {needed / 1e9:.1f} GB of disk in {folder}, {free / 1e9:.1f} GB are free",
            "Free some space and run the stage again.",
        )
