"""A made-up run as the stages write one, of any size. For the report's tests, and to look at:

python -m tests.synthetic_run FOLDER    2,000 candidates with two futures each, and FOLDER/report.html
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from minicollab.evaluate import Played, compare, verdict
from minicollab.pairs import build_pairs, weigh
from minicollab.recipe import Pairs, Reward
from minicollab.schema import Conversation, Message, Rollout, Score, Task

ARMS = ("base", "proactive", "trained")
NASTY = "</script><img src='http://x.test/y' onerror=alert(1)> {{ recipe }} & \"quotes\"\u2028end"
_RECIPE = """\
name: synthetic
models: {policy: smollm2-135m-instruct, judge: qwen2.5-coder-1.5b-instruct}
tasks: {path: tasks.jsonl}
judge: {questions: {asks: {ask: "Does it ask?", scope: reply}}}
reward: {weights: {goal_coverage: 1.0, interactivity: 1.0}}
pairs: {min_gap: 0.05}
"""
_COST = {
    "seconds": 161.2, "generated_tokens": 12345, "prompt_tokens_computed": 67890, "cache_hits": 5,
    "cache_misses": 95, "peak_memory_mb": 812.3,
}  # fmt: skip


def write_run(folder: Path, tasks: int = 20, held_out: int = 8, seed: int = 0) -> None:
    """Every task has two turns of four candidates with two futures; a held-out one two conversations
    an arm. The first candidate's second future and one held-out conversation have failed; the first
    task of each kind says NASTY things."""
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(_RECIPE)
    weights = Reward(weights={"goal_coverage": 1.0, "interactivity": 1.0})
    rows = [weigh(row, weights) for number in range(tasks) for row in _turns(rng, number)]
    write_jsonl(folder / "rollouts.jsonl", rows)
    write_jsonl(folder / "pairs.jsonl", [pair.as_row() for pair in build_pairs(rows, Pairs(min_gap=0.05))])
    played = [p for number in range(held_out) for p in _played(rng, number)]
    evaluation = compare(played, 0, 200)
    (folder / "eval.json").write_text(json.dumps(evaluation | {"verdict": verdict(evaluation)}))
    write_jsonl(folder / "eval_conversations.jsonl", [p.row() for p in played])
    stages = {name: _stage({}) for name in ("simulate", "train", "export", "eval")}
    stages["train"] = _stage(_training(rng))
    (folder / "run.json").write_text(json.dumps({"stages": stages, "versions": {"python": "3.11.1"}}))


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")


def _stage(result: dict[str, Any]) -> dict[str, Any]:
    return {**_COST, "inputs": "1f", "unchanged": False, "computed": _COST, "result": result}


def _training(rng: random.Random) -> dict[str, Any]:
    steps = range(1, 121)
    return {
        "steps": 120,
        "pairs": 240,
        "loss": [[n, 0.7 * 0.99**n + rng.random() / 5] for n in steps],
        "reward_margin": [[n, n / 100 + rng.random()] for n in steps],
        "reward_accuracy": [[n, min(1.0, rng.random() + n / 120)] for n in steps],
    }


def _words(rng: random.Random, number: int) -> str:
    """Words that never were: a page of them is no smaller when compressed than real text is."""
    letters = "eeeeaaiioutnshrdlcmwfgypbvk"
    return " ".join("".join(rng.choices(letters, k=rng.randint(2, 9))) for _ in range(number))


def _measured(rng: random.Random, shift: float, replies: int) -> tuple[dict[str, float], dict[str, Any]]:
    asks = [min(1.0, max(0.0, rng.gauss(0.4 + shift, 0.2))) for _ in range(replies)]
    coverage = [rng.random() for _ in range(2)]
    tokens = {"tokens_read": rng.randint(40, 200), "tokens_typed": rng.randint(8, 60), "turns": 4.0}
    metrics = {"goal_coverage": sum(coverage) / 2, "interactivity": sum(asks) / replies, **tokens}
    return metrics, {"goal_coverage": coverage, "asks": asks}


def _turns(rng: random.Random, number: int) -> list[dict[str, Any]]:
    rows, context = [], [{"role": "user", "content": f"Write me poem {number}."}]
    for turn in range(2):
        for index in range(4):
            style = "proactive" if index > 1 else "plain"
            text = f"{NASTY if not number else ''}{_words(rng, 70)}{'?' if index == 3 else '.'}"
            failed = (number, turn, index) == (0, 0, 0)
            rows.append({
                "task_id": f"train-{number}", "turn": turn, "context": list(context), "candidate": text,
                "index": index, "style": style, "stop_reason": "stop", "asks": index == 3, "cut": {},
                "futures": [_future(rng, sample, 0.1 * index) for sample in range(1 if failed else 2)],
                "failures": ["no user message: 'x'"] if failed else [],
            })  # fmt: skip
        said = {"role": "user", "content": _words(rng, 12)}
        context += [{"role": "assistant", "content": rows[-1]["candidate"]}, said]
    return rows


def _future(rng: random.Random, sample: int, shift: float) -> dict[str, Any]:
    metrics, judgements = _measured(rng, shift, 2)
    return {
        "sample": sample, "stop_reason": "window", "metrics": metrics, "judgements": judgements, "cut": {},
        "messages": [
            {"role": "user", "content": _words(rng, 12)},
            {"role": "assistant", "content": _words(rng, 70)},
        ],
        "extracted": {},
    }  # fmt: skip


def _played(rng: random.Random, number: int) -> list[Played]:
    played = []
    task = Task(f"held-{number}", "Write me a poem.", ("it is for a wedding", f"{number} lines"))
    for sample in range(2):
        for arm in ARMS:
            if (number, sample, arm) == (3, 0, "proactive"):
                played.append(Played(arm, task, sample, failure="no verdict"))
                continue
            reply = (
                f"Who is it for? {NASTY if not number else ''}"
                if arm == "trained"
                else "Here it is.\n\nRoses."
            )
            talk = Conversation((Message("user", task.opening), Message("assistant", reply)))
            metrics, judgements = _measured(rng, 0.3 * (arm == "trained"), 1)
            mr = metrics["goal_coverage"] + metrics["interactivity"] - 5e-4 * metrics["tokens_read"]
            extracted = {"goal_coverage": f"roses & <violets> {number}"}
            score = Score(metrics, judgements, mr, extracted=extracted)
            played.append(Played(arm, task, sample, Rollout(talk, 1, sample, "window"), score))
    return played


if __name__ == "__main__":
    from minicollab.report import write_report

    write_run(Path(sys.argv[1]), tasks=250, held_out=60)
    write_report(Path(sys.argv[1]), Path(sys.argv[1]) / "report.html")
