"""Are the judge's figures in simulator-check worth anything? Its answers about labelled turns of the user.

    python -m benchmarks.simulator_judge [RECIPE]     # default: the quickstart's judge

tests/data/user_turns.jsonl: turns that Qwen2.5-Coder-1.5B and SmolLM2 wrote as users of the quickstart's
tasks, half of them fallen out of the part. user_facts.jsonl: whether a turn tells something, and whether
that is a detail of the goal. Labelled by reading.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from minicollab import agreement, roles
from minicollab.progress import silent
from minicollab.run import Run
from minicollab.running import run_together
from minicollab.schema import Conversation, Message
from minicollab.simulator_check import check_answer, check_turn
from minicollab.tasks import load_tasks

REPO = Path(__file__).resolve().parents[1]


def main() -> None:
    recipe = Path(sys.argv[1] if len(sys.argv) > 1 else REPO / "recipes/quickstart/smollm2.yaml")
    with Run.open(recipe, "simulator-judge") as run, run.asking("simulator-judge"):
        cast = roles.cast(run, [], silent)
        tasks = {task.id: task for task in load_tasks(run.recipe.tasks)}

        async def judged(row: dict[str, Any]) -> dict[str, float]:
            task = tasks[row["task_id"]]
            before = Conversation((Message("user", task.opening), Message("assistant", row["reply"])))
            if "drifted" in row:
                return {"drifted": (await check_turn(cast, task, before, row["text"])).judge}
            answer = await check_answer(cast, task, before, row["text"])
            return {
                "tells": answer.tells,
                "agrees": answer.agrees or 0.0,
                "agrees, by words": float(answer.words),
            }

        async def check(file: str) -> tuple[list[dict[str, bool]], list[dict[str, float]]]:
            rows = [json.loads(line) for line in (REPO / "tests/data" / file).read_text("utf-8").splitlines()]
            return rows, await asyncio.gather(*(judged(row) for row in rows))

        for file, asked in (
            ("user_turns.jsonl", {"drifted": "drifted"}),
            ("user_facts.jsonl", {"tells": "tells", "agrees": "agrees", "agrees, by words": "agrees"}),
        ):
            rows, said = run_together(check(file))
            for name, label in asked.items():
                y = np.array([row[label] for row in rows])
                p = np.array([each[name] for each in said])
                found, wrong = (p[y] > 0.5).sum(), (p[~y] > 0.5).sum()
                print(f"{name}: AUC {agreement.auc(p, y):.2f}, {found} of {y.sum()}, ", end="")
                print(f"and {wrong} of the {(~y).sum()} others", flush=True)


if __name__ == "__main__":
    main()
