"""The store: request hash → answer, on disk, as checked text.

diskcache keeps the rows (SQLite, WAL). It would unpickle what it finds (CVE-2025-69872) and evict
what it finds too much: the store writes text only, reads nothing else, and never evicts.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import diskcache
from filelock import FileLock

from minicollab.cache.keys import content_hash
from minicollab.cache.rows import BadRow, Row, TextDisk
from minicollab.errors import RunError

DATABASE = "cache.db"
TALLY = "tally"  # the row that counts hits and misses over all runs
FORMAT = 2  # part of every key: raised when equal requests may get other answers
OPENING = "opening.lock"  # held while a database is created or replaced
MEND = "Run: minicollab cache verify --repair; sound rows stay."
_DAMAGE = ("malformed", "not a database", "corrupt")


@dataclass
class Tally:
    """Look-ups of one kind of request, and what those that hit have saved."""

    hits: int = 0
    misses: int = 0
    tokens: int = 0
    seconds: float = 0.0


class Store:
    """Hash → answer, safe for several processes.

    What is put in while an event loop runs is written when the loop comes round, all of it in one
    transaction: an engine that finishes many requests in a step pays once, before its next step.
    RunError, in one line, for a disk that is full, a folder that is not writable, a damaged
    database and a row that is not what was stored.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.recipe = self.stage = ""
        self.tallies: dict[str, Tally] = {}
        self._under_way: dict[str, asyncio.Future[Any]] = {}
        self._waiting: dict[str, str] = {}
        self._failure: Exception | None = None
        self._work = _SharedTime()
        with self._explained():
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with FileLock(folder / OPENING, mode=0o600):  # SQLite may fail where two create it at once
                self._rows = diskcache.Cache(
                    str(folder),
                    disk=TextDisk,
                    eviction_policy="none",
                    cull_limit=0,
                    size_limit=2**40,
                    disk_min_file_size=2**30,  # no row in a file of its own
                    sqlite_mmap_size=2**30,
                )

    # Answers

    async def answer(
        self,
        kind: str,
        request: Any,
        ask: Callable[[], Awaitable[Any]],
        tokens: Callable[[Any], int] = lambda answer: 0,
        keep: Callable[[Any], bool] = lambda answer: True,
    ) -> Any:
        """The stored answer to a request (JSON, as the answer is), else what `ask` gives, which is
        stored if it is one to `keep`. `tokens` says how many were generated for it. Two equal
        requests under way at once are asked once.
        """
        key = content_hash({"format": FORMAT, "kind": kind, "request": request})
        if key in self._under_way:
            return await asyncio.shield(self._under_way[key])
        if (known := self.get(key, kind)) is not None:
            return known

        async def work() -> Any:
            with self._work.charged() as seconds:
                answer = await ask()
                row = Row(kind, answer, tokens(answer), round(seconds(), 4), self.recipe, self.stage)
            if keep(answer):
                self.put(key, row)
            return answer

        # Shielded: whoever asked first may give up, others wait for the same answer.
        task = self._under_way[key] = asyncio.ensure_future(work())
        task.add_done_callback(lambda _: self._under_way.pop(key))
        return await asyncio.shield(task)

    def get(self, key: str, kind: str) -> Any | None:
        """The answer under `key`, counted as a hit; None, counted as a miss."""
        row, tally = self.row(key), self.tallies.setdefault(kind, Tally())
        if row is None:
            tally.misses += 1
            return None
        tally.hits += 1
        tally.tokens += row.tokens
        tally.seconds += row.seconds
        return row.answer

    @property
    def hits(self) -> int:
        return sum(tally.hits for tally in self.tallies.values())

    @property
    def misses(self) -> int:
        return sum(tally.misses for tally in self.tallies.values())

    # Rows

    def row(self, key: str) -> Row | None:
        """What is stored under `key`, not counted."""
        self._raise_failure()
        with self._explained(key):
            sealed = self._waiting.get(key) or self._rows.get(key)
            return None if sealed is None else Row.unseal(key, sealed)

    def put(self, key: str, row: Row) -> None:
        self._raise_failure()
        self._waiting[key] = row.seal(key)
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self.flush()
        else:
            if len(self._waiting) == 1:
                loop.call_soon(self._flush_soon)

    def flush(self) -> None:
        """Write what waits, in one transaction. If that fails it goes on waiting."""
        if not self._waiting:
            return
        with self._writing():
            for key, sealed in self._waiting.items():
                self._rows.set(key, sealed)
        self._waiting.clear()

    def close(self) -> None:
        """Write what waits, and add the tallies to those of all runs so far."""
        self._failure = None
        self.flush()
        with self._explained():
            if any(tally.hits or tally.misses for tally in self.tallies.values()):
                with self._writing():
                    self._rows.set(TALLY, Row(TALLY, self.lifetime()).seal(TALLY))
                self.tallies = {}
            self._rows.close()

    def lifetime(self) -> dict[str, dict[str, float]]:
        """The tallies of all runs, this one's included, by kind."""
        row = self.row(TALLY)
        total: dict[str, dict[str, float]] = row.answer if row else {}
        for kind, tally in self.tallies.items():
            old = total.get(kind, asdict(Tally()))
            total[kind] = {name: old[name] + value for name, value in asdict(tally).items()}
        return total

    # Fingerprints

    def recall(self, key: str) -> Any | None:
        """What was noted under `key`; None as well if its row is bad, since it can be had again."""
        try:
            row = self.row(key)
        except RunError:
            return None
        return row.answer if row and row.kind == "file" else None

    def note(self, key: str, value: Any) -> None:
        self.put(key, Row("file", value))

    # What goes wrong

    def _flush_soon(self) -> None:
        try:
            self.flush()
        except RunError as error:  # nobody would hear it here: the next call raises it
            self._failure = error

    def _raise_failure(self) -> None:
        if self._failure:
            raise self._failure

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """A transaction: all or nothing."""
        try:
            with self._explained(), self._rows.transact():
                yield
        except RunError:
            self._rows.close()  # a transaction that failed half-way ends with its connection
            raise

    @contextmanager
    def _explained(self, key: str = "") -> Iterator[None]:
        try:
            yield
        except BadRow as bad:
            raise RunError(f"the cache row {key} {bad} and is not used", MEND) from None
        except (sqlite3.Error, UnicodeDecodeError, OSError, diskcache.Timeout) as error:
            raise explain(self.folder, error, key) from None


def explain(folder: Path, error: BaseException, key: str = "") -> RunError:
    """What went wrong with the store in `folder`, or with its row `key`, and what to do about it."""
    while isinstance(error.__context__, sqlite3.Error):  # the one before the roll-back that failed, too
        error = error.__context__
    said = str(error.strerror if isinstance(error, OSError) else error).lower()
    if "full" in said or "no space" in said:
        return RunError(
            f"the disk that holds the cache {folder} is full",
            "Free some space and run the same command again: what was stored is there.",
        )
    if "locked" in said or "busy" in said:
        return RunError(
            f"another process has kept the cache {folder} locked for a minute",
            "Run the same command again when it is done.",
        )
    if isinstance(error, UnicodeDecodeError) or any(sign in said for sign in _DAMAGE):
        return RunError(f"the cache in {folder} is damaged ({said})", MEND)
    if "could not decode" in said:
        return RunError(f"the cache row {key} is not text and is not used", MEND)
    return RunError(
        f"the cache folder {folder} cannot be used: {said}",
        "Set MINICOLLAB_CACHE, or cache in the recipe, to a folder you can write.",
    )


@dataclass
class _SharedTime:
    """Whoever is at work is charged an equal share of the time, so that shares add up to it."""

    at_work: int = 0
    passed: float = 0.0
    seen: float = field(default_factory=time.monotonic)

    def now(self) -> float:
        """Seconds that one worker, there from the beginning, would have been charged."""
        moment = time.monotonic()
        if self.at_work:
            self.passed += (moment - self.seen) / self.at_work
        self.seen = moment
        return self.passed

    @contextmanager
    def charged(self) -> Iterator[Callable[[], float]]:
        begin = self.now()
        self.at_work += 1
        try:
            yield lambda: self.now() - begin
        finally:
            self.now()
            self.at_work -= 1
