"""Doctor's estimates against what the stages really took.

    python -m benchmarks.memory recipes/quickstart/smollm2.yaml --out /tmp/run   # runs every stage
    python -m benchmarks.memory /tmp/run                                         # a run that is finished
    python -m benchmarks.memory --cards                                          # rewrites recipes/cards

Peak memory is what the system has seen resident in the stage's own process, mapped files included. A
stage runs in a process of its own, and its estimate is made just before, when the pairs to train on
are known. Prints a Markdown table, or JSON with --json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minicollab import doctor
from minicollab.engine.sizing import GIB, MIB, Memory
from minicollab.loading import load_recipe
from minicollab.needs.machine import Card, Machine, look
from minicollab.needs.supplies import needed
from minicollab.progress import duration

CARDS = doctor.CHECKOUT / "recipes" / "cards"
_STAGES = ("simulate", "train", "export", "eval")
_PLACE, _MARK = "# EXPECTED\n", "# Expected (estimated"
_RESERVED = GIB // 2  # of a card: the desktop's


def estimated(folder: Path, machine: Machine) -> dict[str, int]:
    """MiB by stage, of a run as it is now."""
    recipe = load_recipe(folder / "recipe.yaml")
    patient = doctor.examine(recipe, needed(recipe), folder)
    if not patient:
        sys.exit(f"{folder} names a model that is not here: minicollab fetch {folder}")
    return {need.stage: round(need.total("ram") / MIB) for need in patient.needs(machine)}


def run(recipe: Path, folder: Path, overrides: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Every stage of a recipe, its estimate made just before it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(load_recipe(recipe, overrides).dump(), "utf-8")
    rows = []
    for stage in _STAGES:
        expected = estimated(folder, look())[stage]
        command = [sys.executable, "-m", "minicollab", stage, str(folder)]
        if subprocess.run(command, stdout=subprocess.DEVNULL).returncode:
            sys.exit(f"the {stage} stage of {folder} failed")
        rows.append(_row(folder, stage, expected, _journal(folder)[stage]))
    return rows


def finished(folder: Path) -> list[dict[str, Any]]:
    """A run that is done, by its journal."""
    peaks, expected = _journal(folder), estimated(folder, look())
    return [_row(folder, stage, expected[stage], peaks[stage]) for stage in _STAGES if stage in peaks]


def _journal(folder: Path) -> dict[str, float]:
    """Measured peaks in MiB by stage."""
    stages = json.loads((folder / "run.json").read_text("utf-8"))["stages"]
    return {name: row["computed"]["peak_memory_mb"] for name, row in stages.items()}


def _row(folder: Path, stage: str, expected: int, peak: float) -> dict[str, Any]:
    return {
        "run": folder.name,
        "stage": stage,
        "estimated_mib": expected,
        "measured_mib": round(peak),
        "off": round(expected / peak - 1, 3),
    }


# What is expected of the recipes for cards


def expected(path: Path) -> str:
    """The comment that a recipe in recipes/cards has: on a machine with the card of its name."""
    size = int(path.stem.partition("gb")[0])
    patient = doctor.bundled(path)
    assert patient and patient.policy
    machine = reference(size)
    spans = patient.times(machine)
    lines = [f"{_MARK}, nobody has measured it; RTX 3090-like speed, 8 cores):"]
    for need in patient.needs(machine):
        vram = f"{need.total('vram') / GIB:.1f} GiB of VRAM" if need.vram else "no VRAM"
        took = duration(spans[need.stage].seconds)
        lines.append(f"#   {need.stage:<9}{vram:>16}, {need.total('ram') / GIB:>4.1f} GiB of RAM, {took}")
    return "\n".join(lines) + "\n"


def reference(gigabytes: int) -> Machine:
    """A machine with a card of that size, and RAM that is no limit."""
    total = gigabytes * GIB
    card = Card(f"{gigabytes} GB", "", total, total - _RESERVED)
    ram = Memory(128 * GIB, 128 * GIB)
    return Machine("8 cores", 8, ram, (card,), frozenset({"GPU", "AVX2", "REPACK"}), training=True)


def rewrite(path: Path) -> None:
    text = path.read_text("utf-8").replace(_PLACE, expected(path))
    if _MARK in text:
        before, _, after = text.partition(_MARK)
        text = before + expected(path) + after[after.index("name:") :]
    path.write_text(text, "utf-8")


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| run | stage | estimated | measured | off |", "| --- | --- | --- | --- | --- |"]
    for row in rows:
        figures = f"{row['estimated_mib']:,} MiB | {row['measured_mib']:,} MiB | {row['off']:+.0%}"
        lines.append(f"| {row['run']} | {row['stage']} | {figures} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Doctor's estimates against what the stages really took.")
    parser.add_argument("paths", nargs="*", type=Path, help="Recipes, which are run, or run folders.")
    parser.add_argument("--out", type=Path, help="Where a recipe runs; default runs/memory-NAME.")
    parser.add_argument("--cards", action="store_true", help="Rewrite what recipes/cards expect.")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.cards:
        for path in sorted(CARDS.glob("*.yaml")):
            rewrite(path)
    rows: list[dict[str, Any]] = []
    for path in options.paths:
        rows += (
            finished(path)
            if path.is_dir()
            else run(path, options.out or Path("runs") / f"memory-{path.stem}")
        )
    if rows:
        print(json.dumps(rows, indent=1) if options.json else table(rows))


if __name__ == "__main__":
    main()
