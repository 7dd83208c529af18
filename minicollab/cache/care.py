"""Care of the store: count it, check it, mend it, make it smaller."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterable
from contextlib import closing, suppress
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

from filelock import FileLock

from minicollab.cache.pages import salvage
from minicollab.cache.store import DATABASE, OPENING, TALLY, Store
from minicollab.cache.walk import ERRORS, Damaged, Entry, connected, drop, entries, insert, is_damage
from minicollab.errors import RunError
from minicollab.files import aside, scratch
from minicollab.progress import Progress, silent

_LOG = f"{DATABASE}-wal"
_EMPTY = 32768  # bytes of a database without answers


# Counting


def stats(folder: Path, progress: Progress = silent) -> dict[str, Any]:
    """What the store holds by kind, and what it was good for over all runs so far. JSON-able."""
    kinds: dict[str, dict[str, Any]] = {}
    tallies: dict[str, dict[str, float]] = {}
    broken = 0
    for entry in entries(folder, progress):
        if entry.row is None:
            broken += 1
        elif entry.row.kind == TALLY:
            tallies = entry.row.answer
        else:
            kind = kinds.setdefault(entry.row.kind, {"entries": 0, "bytes": 0})
            kind["entries"] += 1
            kind["bytes"] += entry.size
    for name, tally in tallies.items():
        kind = kinds.setdefault(name, {"entries": 0, "bytes": 0})
        asked = tally["hits"] + tally["misses"]
        kind |= {"hits": tally["hits"], "misses": tally["misses"], "hit_rate": tally["hits"] / asked}
    return {
        "cache": str(folder),
        "bytes_on_disk": size_on_disk(folder),
        "entries": sum(kind["entries"] for kind in kinds.values()),
        "broken": broken,
        "kinds": dict(sorted(kinds.items())),
        "tokens_saved": sum(tally["tokens"] for tally in tallies.values()),
        "hours_saved": sum(tally["seconds"] for tally in tallies.values()) / 3600,
    }


def size_on_disk(folder: Path) -> int:
    """Bytes of the database, and of the log of what is not in it yet."""
    return sum(path.stat().st_size for path in (folder / DATABASE, folder / _LOG) if path.exists())


# Checking and mending


def verify(folder: Path, repair: bool = False, progress: Progress = silent) -> dict[str, Any]:
    """Checks the database and every row. `repair` drops the broken rows; where the database itself
    is damaged it moves all sound rows to a new one and keeps the old one beside it.

    Returns {"rows": sound ones, "broken": [{"row", "wrong"}], "damage": what SQLite says, "repaired",
    "kept": the damaged file}. RunError if another process has a damaged database open.
    """
    rows, broken, damage, kept = 0, [], "", None
    try:
        with connected(folder) as database:
            damage = _damage(database, folder)
        for entry in entries(folder, progress):
            rows += entry.row is not None
            if entry.row is None:
                broken.append(entry)
    except Damaged as error:
        damage = str(error.__cause__)
    if repair and damage:
        rows, kept = _rebuild(folder, progress)
    elif repair and broken:
        with connected(folder, "rw") as database:
            drop(database, broken)
    return {
        "cache": str(folder),
        "rows": rows,
        "broken": [{"row": entry.key, "wrong": entry.wrong} for entry in broken],
        "damage": damage,
        "repaired": repair and bool(damage or broken),
        "kept": str(kept) if kept else None,
    }


def _damage(rows: sqlite3.Connection, folder: Path) -> str:
    """What SQLite says, or its header. Nothing if all is well."""
    (said,) = rows.execute("PRAGMA integrity_check(1)").fetchone()
    with open(folder / DATABASE, "rb") as file:
        written_by = file.read(19)[18:]
    if written_by > b"\2":  # SQLite reads on, and writes no more
        return "its header names a later file format"
    return "" if said == "ok" else " ".join(said.split())


def _rebuild(folder: Path, progress: Progress) -> tuple[int, Path]:
    """Sound rows → a new database in the old one's place. Returns their number, and where the old
    one is now."""
    old, fresh = folder / DATABASE, folder / "salvaged"
    damaged = next(p for n in count(1) if not (p := folder / f"{DATABASE}.damaged-{n}").exists())
    with FileLock(folder / OPENING, mode=0o600), aside(old) as new, scratch(fresh):
        _merge_log(folder)
        Store(fresh).close()
        with connected(fresh, "rw") as rows:
            number = insert(rows, salvage(old, progress))
            rows.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # here a full disk is an error, at the end not
        os.replace(fresh / DATABASE, new)
        os.link(old, damaged)
        with suppress(FileNotFoundError):  # left there it would be taken for the new one's
            os.replace(folder / _LOG, f"{damaged}-wal")
    return number, damaged


def _merge_log(folder: Path) -> None:
    """What is in the log goes to the database, page by page, as whenever the last process leaves.
    RunError if another process has it open: what it goes on writing would be lost."""
    try:
        with closing(sqlite3.connect(folder / DATABASE, timeout=1)) as rows:
            rows.execute("PRAGMA locking_mode = exclusive")  # nobody else may hold it, not even idle
            rows.execute("SELECT * FROM sqlite_schema")
    except ERRORS as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY:
            raise RunError(
                f"the cache in {folder} is in use by another process",
                "Stop the run that uses it, then repair.",
            ) from None
        if not is_damage(error):
            raise


# Making it smaller


def prunable(
    folder: Path,
    older_than_days: float | None = None,
    recipe: str | None = None,
    to_bytes: int | None = None,
    progress: Progress = silent,
) -> list[Entry]:
    """Which rows would have to go, without what is in them: those stored longer ago, those that
    `recipe` asked first, or the oldest until the database is no larger than `to_bytes`. Never the
    tallies, nor broken rows, which `verify` drops."""
    sound = (entry for entry in entries(folder, progress) if entry.row and entry.row.kind != TALLY)
    if recipe is not None:
        return [replace(entry, row=None) for entry in sound if entry.row and entry.row.recipe == recipe]
    bare = [replace(entry, row=None) for entry in sound]
    if older_than_days is not None:
        limit = time.time() - older_than_days * 86400
        return [entry for entry in bare if entry.stored < limit]
    return _oldest(bare, folder, to_bytes or 0)


def _oldest(bare: list[Entry], folder: Path, to_bytes: int) -> list[Entry]:
    with connected(folder) as rows:
        (pages,), (page,) = (rows.execute(f"PRAGMA page_{name}").fetchone() for name in ("count", "size"))
    total = sum(entry.size for entry in bare)
    # Each row's share of the file is as its size.
    surplus = total * (pages * page - to_bytes) / max(pages * page - _EMPTY, 1)
    doomed = []
    for entry in sorted(bare, key=lambda entry: entry.stored):
        if surplus <= 0:
            break
        doomed.append(entry)
        surplus -= entry.size
    return doomed


def prune(folder: Path, doomed: Iterable[Entry]) -> int:
    """Delete rows in one transaction, and give their space back. Returns how many were there."""
    with connected(folder, "rw") as rows:
        dropped = drop(rows, doomed)
        with suppress(sqlite3.OperationalError):  # on a full disk the space is only used again
            rows.execute("VACUUM")
        rows.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # the file is as long as before until then
    return dropped
