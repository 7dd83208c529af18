"""Nothing is generated or judged twice: answers under the hash of the request.

diskcache keeps the rows (SQLite). It would unpickle what it finds (CVE-2025-69872) and evict
what it finds too much: the store below writes text only, refuses every pickled row, and never
evicts.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import diskcache
from diskcache.core import MODE_PICKLE, MODE_TEXT

from minicollab.engine.base import Completion, Engine, Prompt, Sampling
from minicollab.errors import RunError
from minicollab.schema import Message


class _TextDisk(diskcache.Disk):
    """Text keys and text values; whatever else lies in the database is not read."""

    def get(self, key: Any, raw: Any) -> Any:
        if not raw:
            raise RunError("the cache holds a pickled key", "Delete the cache folder and run again.")
        return super().get(key, raw)

    def store(self, value: Any, read: bool, key: Any = None) -> Any:
        if not isinstance(value, str):
            raise TypeError("the cache stores text only")
        return super().store(value, read, key)

    def fetch(self, mode: int, filename: Any, value: Any, read: bool) -> Any:
        if mode == MODE_PICKLE or (mode != MODE_TEXT and filename):
            raise RunError("the cache holds a pickled value", "Delete the cache folder and run again.")
        return super().fetch(mode, filename, value, read)


class Store:
    """Hash → JSON value, on disk, safe for several processes. Counts its hits and misses."""

    def __init__(self, folder: Path):
        self.hits = self.misses = 0
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            folder.chmod(0o700)
            self._rows = diskcache.Cache(
                str(folder), disk=_TextDisk, eviction_policy="none", cull_limit=0, size_limit=2**40
            )
        except OSError as error:
            raise RunError(
                f"the cache folder {folder} cannot be used: {error.strerror}",
                "Set MINICOLLAB_CACHE, or cache in the recipe, to a folder you can write.",
            ) from None
        except sqlite3.DatabaseError as error:
            raise RunError(f"the cache in {folder} is damaged: {error}", "Move that folder away.") from None

    def get(self, key: str) -> Any | None:
        """The answer under `key`, counted as a hit; None, counted as a miss."""
        value = self.peek(key)
        self.hits += value is not None
        self.misses += value is None
        return value

    def peek(self, key: str) -> Any | None:
        """The same without counting."""
        text = self._rows.get(key, retry=True)
        return None if text is None else json.loads(text)

    def put(self, key: str, value: Any) -> None:
        self._rows.set(key, json.dumps(value, ensure_ascii=False), retry=True)

    def close(self) -> None:
        self._rows.close()


def content_hash(request: Any) -> str:
    """sha256 over canonical JSON: the order of keys and the spacing do not matter."""
    text = json.dumps(request, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def file_fingerprint(path: Path, store: Store | None = None) -> str:
    """sha256 of a file's content, remembered by its size, time and inode."""
    status = os.stat(path)
    key = content_hash(["file", str(path.resolve()), status.st_size, status.st_mtime_ns, status.st_ino])
    if store and (known := store.peek(key)):
        return str(known)
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if store:
        store.put(key, digest)
    return digest


class CachedEngine:
    """An engine whose answers are kept. Two equal requests under way at once are asked once."""

    def __init__(self, engine: Engine, store: Store):
        self._engine, self._store = engine, store
        self.fingerprint, self.usage, self.context = engine.fingerprint, engine.usage, engine.context
        self._under_way: dict[str, asyncio.Future[Any]] = {}

    def chat(self, messages: Iterable[Message], reply: str = "") -> Prompt:
        return self._engine.chat(messages, reply)

    def plain(self, text: str) -> Prompt:
        return self._engine.plain(text)

    def count(self, text: str) -> int:
        return self._engine.count(text)

    def length(self, prompt: Prompt) -> int:
        return self._engine.length(prompt)

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Completion:
        async def ask() -> dict[str, Any]:
            return asdict(await self._engine.generate(prompt, sampling))

        known = await self._answer("generate", prompt, asdict(sampling), ask)
        logprobs = known.get("logprobs")
        return Completion(**known | {"logprobs": tuple(logprobs) if logprobs is not None else None})

    async def score(self, prompt: Prompt, continuations: Sequence[str]) -> list[float]:
        async def ask() -> list[float]:
            return await self._engine.score(prompt, continuations)

        return list(await self._answer("score", prompt, list(continuations), ask))

    async def _answer(self, kind: str, prompt: Prompt, how: Any, ask: Any) -> Any:
        segments = [[s.text, s.control] for s in prompt]
        key = content_hash({"kind": kind, "model": self.fingerprint, "prompt": segments, "how": how})
        if key in self._under_way:
            return await asyncio.shield(self._under_way[key])
        if (known := self._store.get(key)) is not None:
            return known

        async def work() -> Any:
            answer = await ask()
            self._store.put(key, answer)
            return answer

        # Shielded: whoever asked first may give up, others wait for the same answer.
        task = self._under_way[key] = asyncio.ensure_future(work())
        task.add_done_callback(lambda _: self._under_way.pop(key))
        return await asyncio.shield(task)
