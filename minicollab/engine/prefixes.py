"""Who has computed which beginning of a text: a radix tree over token ids."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np


@dataclass(eq=False)
class _Node:
    """A run of tokens that all `holders` (sequence ids) have after their common beginning."""

    run: np.ndarray
    parent: _Node | None = None
    children: dict[int, _Node] = field(default_factory=dict)  # by the first token of their run
    holders: set[int] = field(default_factory=set)
    pins: int = 0  # how many of the holders are pinned


class Match(NamedTuple):
    """`length` tokens of a text are here, with `holders`; the first `pinned` of them are pinned."""

    length: int
    holders: Set[int]
    pinned: int


class Prefixes:
    """Each sequence is a path from the root; paths share their beginnings.

    A look-up walks one path, so its cost grows with the length of the text and not with the
    number of sequences. `pinned`: tokens on the paths of the sequences that are pinned, each
    counted once.
    """

    def __init__(self) -> None:
        self.pinned = 0
        self._root = _Node(np.empty(0, np.int32))
        self._ends: dict[int, tuple[_Node, int]] = {}

    def longest(self, tokens: np.ndarray) -> Match:
        """The longest beginning of `tokens` (int32 ids) that is here."""
        node, at, pinned = self._root, 0, 0
        while at < len(tokens) and (child := node.children.get(int(tokens[at]))):
            same = _common(child.run, tokens[at:])
            node, at = child, at + same
            pinned = at if node.pins else pinned
            if same < len(child.run):
                break
        return Match(at, node.holders, pinned)

    def put(self, sequence: int, tokens: np.ndarray, pin: bool) -> None:
        """`sequence` now has these tokens, and nothing else."""
        self.drop(sequence)
        node, at = self._root, 0
        while at < len(tokens):
            child = node.children.get(int(tokens[at]))
            if child is None:
                child = _Node(tokens[at:].copy(), node)
                node.children[int(tokens[at])] = child
            same = _common(child.run, tokens[at:])
            if same < len(child.run):
                child = self._split(child, same)
            child.holders.add(sequence)
            self._pin(child, int(pin))
            node, at = child, at + same
        self._ends[sequence] = node, int(pin)

    def drop(self, sequence: int) -> None:
        """`sequence` has nothing any more."""
        node, pins = self._ends.pop(sequence, (self._root, 0))
        while node.parent is not None:
            self._pin(node, -pins)
            node.holders.remove(sequence)
            if not node.holders:
                del node.parent.children[int(node.run[0])]
            node = node.parent

    def _pin(self, node: _Node, by: int) -> None:
        before, node.pins = node.pins, node.pins + by
        self.pinned += len(node.run) * (bool(node.pins) - bool(before))

    def _split(self, lower: _Node, at: int) -> _Node:
        """Cut the run of `lower`: its first `at` tokens become a node of their own above it."""
        assert lower.parent is not None
        below = {int(lower.run[at]): lower}
        upper = _Node(lower.run[:at], lower.parent, below, set(lower.holders), lower.pins)
        lower.parent.children[int(lower.run[0])] = upper
        lower.run, lower.parent = lower.run[at:], upper
        return upper


def _common(a: np.ndarray, b: np.ndarray) -> int:
    """How many tokens two texts have in common before they differ."""
    n = min(len(a), len(b))
    different = a[:n] != b[:n]
    first = int(different.argmax())
    return first if different[first] else n
