"""Writing files so that a final name never holds half a file."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from minicollab.errors import RunError


def expanded(name: str) -> Path:
    """The path of that name, "~" at its beginning being a home. RunError if there is no such path."""
    try:
        path = Path(name).expanduser()
        os.fsencode(path)
    except (RuntimeError, ValueError):
        raise RunError(f"{name!r} is no path here", "Write it out, without ~.") from None
    if "\0" in name:
        raise RunError(f"{name!r} is no path here", "Leave the NUL out.")
    return path


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
    """A path next to `target` to write a file or folder at; on success it becomes `target`, whole
    even if the power fails. What was there is never seen half deleted."""
    # The ending stays the same: some writers go by it.
    with scratch(_hidden(target, "partial")) as partial:
        yield partial
        sync(partial)
        if partial.is_dir() and target.exists():  # a folder is replaced in two steps
            with scratch(_hidden(target, "old")) as old:
                os.replace(target, old)
                os.replace(partial, target)
        else:
            os.replace(partial, target)
        _sync_folder(target.parent)


def _hidden(target: Path, mark: str) -> Path:
    return target.with_name(f".{mark}-{target.name}")


def sync(path: Path) -> None:
    """Returns when a file, or a folder with all that is in it, is on the disk."""
    if path.is_dir():
        for inside in path.iterdir():
            sync(inside)
        _sync_folder(path)
    else:
        _fsync(path)


def _sync_folder(path: Path) -> None:
    with suppress(OSError):  # not every file system can
        _fsync(path)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Delete a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def need_space(folder: Path, needed: int, what: str) -> None:
    """Raises RunError if the disk that holds `folder` has fewer than `needed` bytes left."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{folder} cannot be written: {error.strerror}", "Name another folder.") from None
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise RunError(
            f"{what} needs {needed / 1e9:.1f} GB of disk in {folder}, {free / 1e9:.1f} GB are free",
            "Free some space and run the stage again.",
        )
