"""The radix tree against a list that is searched from end to end."""

from __future__ import annotations

import random

import numpy as np
import pytest

from minicollab.engine.prefixes import Prefixes


def ids(*tokens: int) -> np.ndarray:
    return np.array(tokens, np.int32)


def common(a: np.ndarray, b: np.ndarray) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def test_an_empty_tree_has_nothing() -> None:
    assert Prefixes().longest(ids(1, 2, 3)).length == 0
    assert Prefixes().longest(ids()).length == 0


def test_a_branch_in_the_middle_of_a_run_is_found() -> None:
    tree = Prefixes()
    tree.put(0, ids(1, 2, 3, 4), pin=False)
    tree.put(1, ids(1, 2, 5), pin=True)
    assert tree.longest(ids(1, 2, 3, 9)) == (3, {0}, 2)
    assert tree.longest(ids(1, 2, 5, 6)) == (3, {1}, 3)
    assert tree.longest(ids(1, 2)) == (2, {0, 1}, 2)
    assert tree.longest(ids(7)).length == 0 and tree.pinned == 3


def test_what_was_dropped_is_not_found_again() -> None:
    tree = Prefixes()
    tree.put(0, ids(1, 2, 3), pin=True)
    tree.put(0, ids(4), pin=True)
    assert tree.longest(ids(1, 2, 3)).length == 0 and tree.pinned == 1
    tree.drop(0)
    tree.drop(0)
    assert tree.longest(ids(4)).length == 0 and tree.pinned == 0


@pytest.mark.parametrize("seed", range(20))
def test_it_finds_what_a_search_through_everything_finds(seed: int) -> None:
    rng = random.Random(seed)
    tree, there, pinned = Prefixes(), {}, set()

    def text() -> np.ndarray:
        return ids(*(rng.randrange(3) for _ in range(rng.randrange(12))))

    for _ in range(300):
        sequence = rng.randrange(8)
        if rng.random() < 0.2:
            tree.drop(sequence)
            there.pop(sequence, None)
            pinned.discard(sequence)
        else:
            tokens, pin = text(), rng.random() < 0.5
            tree.put(sequence, tokens, pin)
            there[sequence] = tokens
            (pinned.add if pin else pinned.discard)(sequence)
        asked = text()
        match = tree.longest(asked)
        assert match.length == max((common(t, asked) for t in there.values()), default=0)
        if match.length:
            assert match.holders == {s for s, t in there.items() if common(t, asked) == match.length}
        assert match.pinned == max((common(there[s], asked) for s in pinned), default=0)
        assert tree.pinned == len({tuple(there[s][:n]) for s in pinned for n in range(1, len(there[s]) + 1)})
