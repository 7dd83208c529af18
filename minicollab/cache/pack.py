"""Packs: the answers of a store in a file that people can share. Data: nothing in it is ever run.

A pack is gzip over JSON lines: a header, the rows in the order of their keys, and a last line with
their number and the sha256 of all lines before it. Equal rows make equal bytes.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import BaseModel, ConfigDict, Field

from minicollab.cache.rows import Row
from minicollab.cache.store import MEND, Store
from minicollab.cache.walk import connected, entries_by_key, insert
from minicollab.engine.base import Completion
from minicollab.errors import RunError
from minicollab.files import aside
from minicollab.progress import Progress, silent

_HEADER = {"minicollab_pack": 1}
_LONGEST = 16 * 2**20  # bytes of a line: so much is no answer but a bomb
_BATCH = 5000  # rows in a transaction


def export_pack(
    folder: Path,
    file: Path,
    recipe: str | None = None,
    stage: str | None = None,
    progress: Progress = silent,
) -> int:
    """The answers in `folder`'s store → `file`; only those that `recipe` and `stage` asked first, if
    given. Returns their number. RunError if there are none, a row is broken, or `file` is no place for it."""
    if not file.name or file.resolve().is_relative_to(folder.resolve()):
        raise RunError(f"{file} is no place for a pack", "Give a file outside the cache's folder.")
    digest, count = hashlib.sha256(), 0
    with aside(file) as partial, open(partial, "wb") as raw:
        with gzip.GzipFile("", "wb", mtime=0, fileobj=raw) as pack:

            def write(fields: dict[str, Any]) -> None:
                line = json.dumps(fields, separators=(",", ":")).encode() + b"\n"
                digest.update(line)
                pack.write(line)

            write(_HEADER)
            for entry in entries_by_key(folder, progress):
                if entry.row is None:
                    raise RunError(f"the cache row {entry.key} {entry.wrong}", MEND)
                if _chosen(entry.row, recipe, stage):
                    write({"key": entry.key, **asdict(entry.row)})
                    count += 1
            write({"rows": count, "sha256": digest.hexdigest()})
        if not count:
            raise RunError(f"the cache in {folder} has no such answers", "Leave out --recipe or --stage.")
    return count


def _chosen(row: Row, recipe: str | None, stage: str | None) -> bool:
    return row.kind in _SHAPES and recipe in (None, row.recipe) and stage in (None, row.stage)


def import_pack(store: Store, file: Path, progress: Progress = silent) -> int:
    """The rows of a pack → the store. What is there already stays. Returns how many were new.

    RunError, and nothing is stored, unless the whole pack is sound.
    """
    with _explained(file), open(file, "rb") as pack:
        for _ in _rows(pack, "checking the pack", progress):
            pass
        pack.seek(0)
        rows, new = _rows(pack, "storing its rows", progress), 0
        with connected(store.folder, "rw") as database:
            while batch := list(islice(rows, _BATCH)):
                now = time.time()
                new += insert(database, [(key, now, row.seal(key)) for key, row in batch])
    return new


class _Packed(BaseModel):
    """A row as it is in a pack."""

    model_config = ConfigDict(strict=True, extra="forbid")

    key: str = Field(pattern="^[0-9a-f]{64}$")
    kind: str = Field(pattern="^[a-z_]+$")
    answer: Any
    tokens: int = Field(ge=0)
    seconds: float = Field(ge=0, allow_inf_nan=False)
    recipe: str
    stage: str


def _is_completion(answer: Any) -> bool:
    try:
        said = Completion(**answer)
    except TypeError:
        return False
    return isinstance(said.text, str) and isinstance(said.tokens, int) and isinstance(said.stop_reason, str)


def _are_scores(answer: Any) -> bool:
    return isinstance(answer, list) and all(isinstance(score, float | int) for score in answer)


# The kinds that are worth sharing, and what their answers look like; others are of one machine only.
_SHAPES = {"generate": _is_completion, "score": _are_scores}


class _Unfit(Exception):
    """A pack that is cut off, altered or none at all."""


def _rows(pack: BinaryIO, what: str, progress: Progress) -> Iterator[tuple[str, Row]]:
    """Keys and rows, each checked as it comes; _Unfit, at the latest behind the last one."""
    size = pack.seek(0, 2)
    pack.seek(0)
    digest, count, last = hashlib.sha256(), 0, ""
    with gzip.GzipFile(fileobj=pack) as lines:
        try:
            line, fields = _line(lines)
        except (gzip.BadGzipFile, zlib.error, ValueError):
            fields = {}
        if fields != _HEADER:
            raise _Unfit("is not a pack")
        while True:
            digest.update(line)
            line, fields = _line(lines)
            if "sha256" in fields:
                break
            key = _Packed.model_validate(fields).key
            shape = _SHAPES.get(fields["kind"])
            if key <= last or not shape or not shape(fields["answer"]):
                raise _Unfit("was altered")
            last, count = key, count + 1
            yield key, Row(**{name: value for name, value in fields.items() if name != "key"})
            progress(what, pack.tell(), size)
        if fields != {"rows": count, "sha256": digest.hexdigest()} or lines.read(1):
            raise _Unfit("was altered")


def _line(lines: gzip.GzipFile) -> tuple[bytes, dict[str, Any]]:
    line = lines.readline(_LONGEST)
    if not line.endswith(b"\n"):
        raise _Unfit("was altered: a line has no end" if line else "is cut off")
    try:
        fields = json.loads(line.decode("utf-8"))
    except RecursionError:
        raise _Unfit("was altered: a line is nested too deeply") from None
    if not isinstance(fields, dict):
        raise ValueError("not an object")
    return line, fields


@contextmanager
def _explained(file: Path) -> Iterator[None]:
    remedy = "Nothing was stored. Get the pack again."
    try:
        yield
    except _Unfit as unfit:
        raise RunError(f"{file} {unfit}", remedy) from None
    except EOFError:
        raise RunError(f"{file} is cut off", remedy) from None
    except (gzip.BadGzipFile, zlib.error, ValueError):
        raise RunError(f"{file} was altered", remedy) from None
    except FileNotFoundError:
        raise RunError(f"there is no pack {file}", "Name the file that was exported.") from None
