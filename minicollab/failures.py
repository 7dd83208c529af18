"""Failures are data: one is recorded and its candidate left out, too many stop the run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from minicollab.errors import StageError

_ENOUGH = 20  # futures before their share of failures says anything


class Failure(Exception):
    """A future that cannot be scored. What stands before the first colon is the reason, what
    comes after it the case."""


def tolerate(failures: Sequence[str], futures: int, share: float, last: bool = False) -> None:
    """StageError with the three commonest reasons if more than `share` of the `futures` so far
    have failed; before the `last` it takes twenty to say so."""
    if len(failures) <= share * futures or (futures < _ENOUGH and not last):
        return
    reasons = Counter(failure.partition(":")[0] for failure in failures).most_common(3)
    own = reasons[0][0].startswith("metric ")
    raise StageError(
        f"{len(failures)} of {futures} futures failed: {', '.join(f'{why} ({n})' for why, n in reasons)}",
        f"{'Mend the metric' if own else 'Use a larger judge model'}, or allow more with"
        " simulate.max_failures in the recipe.",
    )
