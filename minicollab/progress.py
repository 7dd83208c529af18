"""How work tells whoever watches how far it is, and how long it will still take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

Progress = Callable[[str, float, float], None]
"""progress(what, done, total): called often; done == total ends that piece of work."""

_MIX = 0.03  # of the work: what has just been asked of the cache says what will be
_TOO_EARLY = 0.05  # of the work: before, a time left would be a guess


class Watcher(Protocol):
    """A `Progress` that hears figures of the work, too, by name, such as its mean MR so far."""

    def __call__(self, what: str, done: float, total: float, **figures: float) -> None: ...


def silent(what: str, done: float, total: float, **figures: float) -> None:
    """Nobody is watching."""


def counted(usages: Sequence[Any], store: Any) -> dict[str, int]:
    """What the engines (by their usage) and the cache have done so far."""
    return {
        "generated_tokens": sum(usage.generated_tokens for usage in usages),
        "prompt_tokens_computed": sum(usage.prompt_tokens_computed for usage in usages),
        "cache_hits": store.hits,
        "cache_misses": store.misses,
    }


def metered(progress: Watcher, usages: Sequence[Any], store: Any) -> Watcher:
    """`progress`, told what is `counted`, too; nothing of that while there is no engine."""

    def tell(what: str, done: float, total: float, **figures: float) -> None:
        progress(what, done, total, **figures, **(counted(usages, store) if usages else {}))

    return tell


class Pace:
    """How long a piece of work will still take, in seconds, from how it went so far.

    What the cache knows is done in no time and says nothing about the rest. So the clock starts
    with the first answer that is computed, and what is done counts by the share of its requests
    that were computed, as what is left counts by that share lately. The speed is that of all the
    time since: work finishes in bursts, and a shorter while says less.
    """

    def __init__(self, now: float, done: float, total: float):
        self.begun = self._told = now
        self._done, self._total = done, total
        self._hits = self._misses = 0.0
        self._computed, self._share, self._mix = 0.0, 1.0, 1.0

    def tell(self, now: float, done: float, hits: float = 0, misses: float = 0) -> None:
        """`hits` and `misses` of the cache so far; without any, all is computed."""
        if asked := hits - self._hits + misses - self._misses:  # else it belongs to what was told before
            self._share = (misses - self._misses) / asked
        gained = done - self._done
        self._computed += self._share * gained
        if not (self._hits or self._misses):
            self._mix = self._share
        elif gained:
            self._mix += (self._share - self._mix) * min(1, gained / (_MIX * self._total))
        if not self._computed:
            self.begun = now
        self._told, self._done, self._hits, self._misses = now, done, hits, misses

    def left(self, now: float) -> float | None:
        """None while it is too early to tell."""
        rest = self._mix * (self._total - self._done)
        if not self._computed or self._computed < _TOO_EARLY * (self._computed + rest):
            return None
        return max(0.0, rest * (self._told - self.begun) / self._computed - (now - self._told))


def duration(seconds: float) -> str:
    """In words, as exact as is of use."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60, 1)
    if minutes < 10:
        return f"{minutes:.1f} min"
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
