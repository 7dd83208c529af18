"""Every request's seed follows from its coordinates, never from when it ran."""

from __future__ import annotations

import hashlib
import json


def seed_of(*coordinates: str | int) -> int:
    """A seed in [1, 2**31) for these coordinates (run seed, task, turn, candidate, sample, role …)."""
    digest = hashlib.sha256(json.dumps(coordinates).encode()).digest()
    return int.from_bytes(digest[:4], "big") % (2**31 - 1) + 1
