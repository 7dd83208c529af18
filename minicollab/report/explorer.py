"""The data of the conversation explorer: every text once, compressed, read by explorer.js."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

from minicollab.report.figures import ARMS
from minicollab.report.reading import KEPT, Found, Row, Turn

LIMIT = 16 << 20  # characters of packed data; the page has 20 MB


def packed(found: Found, limit: int = LIMIT) -> tuple[str, int]:
    """The data as base64 of gzipped JSON, and how many training tasks had to be left out for it to
    have at most `limit` characters."""
    training = [list(turns) for _, turns in groupby(found.turns, key=lambda turn: turn.task_id)]
    shown = training
    while True:
        text = _pack(_data(found, shown))
        if len(text) <= limit or not shown:
            return text, len(training) - len(shown)
        shown = shown[1::2]


def _pack(data: Row) -> str:
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


def _data(found: Found, training: Sequence[Sequence[Turn]]) -> Row:
    """What explorer.js reads. A text is its number in `texts`, a number has four decimals."""
    texts = _Texts()
    questions = {name: question.ask for name, question in found.recipe.judge.questions.items()}
    return {
        "questions": questions,
        "arms": ARMS,
        "heldout": _held_out(found, texts),
        "training": [_task(turns, texts) for turns in training],
        "texts": list(texts.numbers),
    }


class _Texts:
    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def add(self, text: str) -> int:
        return self.numbers.setdefault(text, len(self.numbers))

    def all(self, texts: Iterable[str]) -> list[int]:
        return [self.add(text) for text in texts]

    def talk(self, messages: Iterable[Row]) -> list[list[Any]]:
        return [[message["role"], self.add(message["content"])] for message in messages]


def _task(turns: Sequence[Turn], texts: _Texts) -> Row:
    rows = [row for turn in turns for row in turn.candidates]
    return {
        "id": turns[0].task_id,
        "details": texts.all(rows[0].get("details", ())),
        "gap": _short(max((turn.gap for turn in turns if turn.gap is not None), default=None)),
        "kept": sum(turn.outcome == KEPT for turn in turns),
        "failed": sum(len(row["failures"]) for row in rows),
        "cut": any(future.get("cut") for row in rows for future in row["futures"]),
        "turns": [_turn(turn, texts) for turn in turns],
    }


def _turn(turn: Turn, texts: _Texts) -> Row:
    return {
        "context": texts.talk(turn.candidates[0]["context"]),
        "gap": _short(turn.gap),
        "outcome": turn.outcome,
        "candidates": [
            {
                "text": texts.add(row["candidate"]),
                "style": row["style"],
                "side": _side(row, turn.pair),
                "mr": _short(row["mr"]),
                "se": _short(row["se"]),
                "stop": row["stop_reason"],
                "failures": texts.all(row["failures"]),
                "futures": [_future(future, future["metrics"], texts) for future in row["futures"]],
            }
            for row in turn.candidates
        ],
    }


def _side(row: Row, pair: Row | None) -> str:
    """Texts tell which candidates a pair is of: no two of a turn are equal."""
    sides = ("chosen", "rejected") if pair else ()
    return next((side for side in sides if pair and pair[side][0]["content"] == row["candidate"]), "")


def _held_out(found: Found, texts: _Texts) -> list[Row]:
    tasks: dict[str, dict[int, dict[str, Row]]] = {}
    for row in found.played:
        arms = tasks.setdefault(row["task_id"], {}).setdefault(row["sample"], {})
        arms[row["arm"]] = row
    measured = [name for name in found.evaluation["arms"]["base"] if name != "mr"] if found.evaluation else []
    return [_held_out_task(list(samples.values()), measured, texts) for samples in tasks.values()]


def _held_out_task(samples: Sequence[Mapping[str, Row]], measured: Sequence[str], texts: _Texts) -> Row:
    rows = [row for arms in samples for row in arms.values()]
    scored = [arms for arms in samples if all(a in arms and arms[a]["failure"] is None for a in ARMS)]
    apart = [arms["trained"]["mr"] - arms["base"]["mr"] for arms in scored]
    return {
        "id": rows[0]["task_id"],
        "details": texts.all(rows[0]["details"]),
        "gap": _short(sum(apart) / len(apart)) if apart else None,
        "failed": sum(row["failure"] is not None for row in rows),
        "cut": any(row["cut"] for row in rows),
        "samples": [{arm: _played(row, measured, texts) for arm, row in arms.items()} for arms in samples],
    }


def _played(row: Row, measured: Sequence[str], texts: _Texts) -> Row:
    if row["failure"] is not None:
        return {"failure": texts.add(row["failure"])}
    return _future({**row, "reward": row["mr"]}, {name: row[name] for name in measured}, texts)


def _future(row: Row, metrics: Row, texts: _Texts) -> Row:
    """A scored future, or a scored held-out conversation."""
    return {
        "messages": texts.talk(row["messages"]),
        "stop": row["stop_reason"],
        "reward": _short(row["reward"]),
        "metrics": {name: _short(value) for name, value in metrics.items()},
        "judgements": {name: [_short(a) for a in given] for name, given in row.get("judgements", {}).items()},
        "extracted": {name: texts.add(text) for name, text in row.get("extracted", {}).items()},
        "cut": row.get("cut", {}),
    }


def _short(number: float | None) -> float | None:
    return None if number is None else round(number, 4)
