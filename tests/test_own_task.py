"""The tutorial, followed to the letter: from a person's own table of ten rows to a chat with the result."""

from __future__ import annotations

import csv
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from docs_blocks import REPO, TUTORIAL, blocks, files

pytestmark = pytest.mark.slow

# Small enough for a test: one model for all three roles, and one step of training.
SMALL = (
    "models.judge=smollm2-135m-instruct", "policy.max_tokens=16", "simulate.exchanges=1",
    "simulate.max_failures=1", "pairs.min_gap=0", "train.epochs=0.2", "eval.exchanges=1",
    "export.quantization=q8_0",
)  # fmt: skip
RUN = "minicollab run garden/recipe.yaml"


def shell(commands: str, folder: Path) -> str:
    """What they print, with `minicollab` on the path as `. .venv/bin/activate` puts it there."""
    program = folder / "bin/minicollab"
    program.parent.mkdir(exist_ok=True)
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m minicollab "$@"\n')
    program.chmod(0o755)
    ours = {"PYTHONPATH": str(REPO), "MINICOLLAB_CACHE": str(folder / "cache")}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands],
        cwd=folder,
        env=os.environ | ours | {"PATH": f"{program.parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{commands}{done.stderr}"
    return done.stdout


def test_the_tutorial_from_a_table_to_a_chat(tmp_path: Path) -> None:
    for name, text in files(TUTORIAL).items():
        (tmp_path / name).write_text(text, "utf-8")
    steps = [b.text for b in blocks(TUTORIAL) if b.language == "bash" and not b.title.startswith("needs ")]
    assert sum(RUN in step for step in steps) == 1
    small = shlex.join(part for option in SMALL for part in ("--set", option))
    printed = [shell(step.replace(RUN, f"{RUN} {small}"), tmp_path) for step in steps]
    assert "minicollab chat" in steps[-1] and printed[-1].strip()

    run = tmp_path / "runs/garden"
    assert (run / "report.html").is_file() and (run / "export/Modelfile").is_file()
    assert {path.name for path in (run / "export").glob("model-*.gguf")} == {
        "model-q4_k_m.gguf",
        "model-q8_0.gguf",
    }
    evaluation = json.loads((run / "eval.json").read_text("utf-8"))
    assert evaluation["tasks"] + evaluation["tasks_left_out"] == 3
    assert 0 <= evaluation["arms"]["base"]["brevity"] <= 1
    opened = {
        json.loads(line)["context"][0]["content"]
        for line in (run / "rollouts.jsonl").read_text("utf-8").splitlines()
    }
    with (tmp_path / "garden.csv").open(encoding="utf-8", newline="") as table:
        asked = [row["request"] for row in csv.DictReader(table)]
    assert opened == set(asked[:7])
