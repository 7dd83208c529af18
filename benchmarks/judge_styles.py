"""Seconds a judgement: a question read off the logits (rubric) against the paper's written verdict (json).

    python -m benchmarks.judge_styles [RECIPE] [--cases N]     # default: the quickstart's judge, 16 cases

The cases are of judge-check's tune half, in turns of eight: what is compared is asked in the same minutes.
"together" gives the engine a turn's cases at once, as a run does; "alone" one after the other. Each way has
a store of its own, and nothing else should be running.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from statistics import median

from minicollab import roles
from minicollab.judge_check import STYLES
from minicollab.labelled import conversations
from minicollab.probes import Case, Probe, cases, probes
from minicollab.progress import silent
from minicollab.run import Run
from minicollab.running import run_together

REPO = Path(__file__).resolve().parents[1]
_TURN = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("recipe", nargs="?", default=REPO / "recipes/quickstart/smollm2.yaml", type=Path)
    parser.add_argument("--cases", default=16, type=int)
    options = parser.parse_args()
    print("| question | way | rubric, s | json, s | json / rubric |\n| --- | --- | --- | --- | --- |")
    for way in ("together", "alone"):
        with tempfile.TemporaryDirectory() as folder:
            measure(options.recipe, way, options.cases, Path(folder))


def measure(recipe: Path, way: str, count: int, folder: Path) -> None:
    """A row for each question, after `count` cases and those of the turn that warms up."""
    os.environ["MINICOLLAB_CACHE"] = str(folder / "store")
    with Run.open(recipe, "judge-styles", folder / "run") as run, run.asking("judge-styles"):
        for probe in probes(roles.cast(run, [], silent)):
            given = cases(probe.metric, conversations("tune"))[: count + _TURN]
            took = run_together(_in_turns(probe, given, way))
            rubric, json = (median(took[style]) for style in STYLES)
            row = f"{probe.name} | {way} | {rubric:.2f} | {json:.2f} | {json / rubric:.1f}"
            print(f"| {row} |", flush=True)


async def _in_turns(probe: Probe, given: list[Case], way: str) -> dict[str, list[float]]:
    """Seconds a judgement of each turn, by style. The first turn loads and warms, and does not count."""
    took: dict[str, list[float]] = {style: [] for style in STYLES}
    for first in range(0, len(given), _TURN):
        turn = given[first : first + _TURN]
        for style in STYLES:
            start = time.monotonic()
            for batch in [turn] if way == "together" else [[case] for case in turn]:
                await probe.styled(style).scores(batch)
            took[style].append((time.monotonic() - start) / len(turn))
    return {style: seconds[1:] for style, seconds in took.items()}


if __name__ == "__main__":
    main()
