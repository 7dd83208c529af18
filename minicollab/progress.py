"""How long work tells whoever watches how far it is."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, float, float], None]
"""progress(what, done, total): called often; done == total ends that piece of work."""


def silent(what: str, done: float, total: float) -> None:
    """Nobody is watching."""
