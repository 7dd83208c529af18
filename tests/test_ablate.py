"""Ablations, over runs that are finished: what the stages leave is written here by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from test_cli import refused, small
from test_evaluate import ARMS, played

from minicollab.ablate import Variant, compared, table, variants
from minicollab.cli import main
from minicollab.errors import RecipeError, RunError
from minicollab.evaluate import compare, verdict
from minicollab.progress import silent
from minicollab.run import Run, finish
from minicollab.stages import STAGES

__all__ = ["small"]

COST = dict.fromkeys(
    ("seconds", "generated_tokens", "prompt_tokens_computed", "cache_hits", "cache_misses", "peak_memory_mb"),
    1.0,
)
EXPORTED = {
    "verification": {"prompts": 1, "kl_torch_merged_f16": 0.0},
    "model": "m.gguf",
    "adapter": "a.gguf",
}


def finished(variant: Variant, gain: float) -> None:
    """A run all of whose stages have nothing to do. On its two tasks the trained model is better than
    base by `gain` and by half of that."""
    values = {"base": (0.0, 0.0), "proactive": (0.1, 0.1), "trained": (gain, gain / 2)}
    evaluation = compare([played(t, arm, values[arm][t == "b"]) for t in "ab" for arm in ARMS], 0, 500)
    results: dict[str, dict[str, Any]] = {
        "simulate": dict.fromkeys(("pairs", "candidates", "candidates_left_out"), 7)
        | dict.fromkeys(("weighed_anew", "share_asking", "share_asking_chosen", "share_asking_rejected")),
        "train": {"steps": 1, "pairs": 7, "dropped_too_long": 0},
        "export": EXPORTED,
        "eval": evaluation | {"verdict": verdict(evaluation)},
        "report": {"report": "report.html"},
    }
    with Run.open(variant.recipe, "test", variant.folder, variant.overrides) as run:
        for stage, (outputs, inputs, _) in STAGES.items():
            for name in outputs(run):
                (run / name).parent.mkdir(exist_ok=True)
                (run / name).write_text("", "utf-8")
            if stage == "eval":
                run.write_json("eval.json", results["eval"])
            with run.asking(stage):
                finish(run, stage, inputs(run, silent), outputs(run), results[stage], COST)


def test_every_combination_is_a_run_of_its_own(small: Path) -> None:
    found = variants(small, ["simulate.window=0,1,2", "pairs.min_gap=0.1"], ["seed=3"], None)
    assert [v.folder for v in found] == [
        Path(f"runs/small-ablate/simulate.window={w},pairs.min_gap=0.1") for w in (0, 1, 2)
    ]
    assert found[1].overrides == ("seed=3", "simulate.window=1", "pairs.min_gap=0.1")
    assert found[1].values == {"simulate.window": "1", "pairs.min_gap": "0.1"}
    assert found[1].command == (
        f"minicollab run {small} --set seed=3 --set simulate.window=1 --set pairs.min_gap=0.1 "
        "--out runs/small-ablate/simulate.window=1,pairs.min_gap=0.1"
    )
    both = variants(small, ["simulate.window=0,1", "seed=1,2"], [], Path("here"))
    assert [v.folder.name for v in both] == [
        f"simulate.window={w},seed={s}" for w, s in ((0, 1), (0, 2), (1, 1), (1, 2))
    ]
    paths = variants(small, ["models.policy=a/b.gguf"], ["name=other"], None)
    assert [v.folder for v in paths] == [Path("runs/other-ablate/models.policy=a_b.gguf")]


@pytest.mark.parametrize("vary", ["simulate.window", "simulate.window=", "=1,2", "simulate.window=0,,2"])
def test_what_names_no_values(small: Path, vary: str) -> None:
    with pytest.raises(RecipeError, match=r"has no values\. Write it as --vary key\.path=value,value\."):
        variants(small, [vary], [], None)


def test_all_values_are_checked_before_the_first_run(small: Path) -> None:
    assert "simulate.windw" in refused("ablate", small, "--vary", "simulate.windw=0,1")
    assert "simulate.window" in refused("ablate", small, "--vary", "simulate.window=0,1,-1")
    assert not (small.parent / "runs").exists()


def test_a_row_for_each_run_and_baseline(small: Path) -> None:
    found = variants(small, ["simulate.window=0,1"], [], small.parent / "out")
    for variant, gain in zip(found, (0.2, 0.8), strict=True):
        finished(variant, gain)
    result = compared(found, small.parent / "out")
    assert result["metrics"] == ["mr", "goal_coverage", "interactivity", "tokens_read_k"]
    assert [row["values"] for row in result["rows"]] == [{"simulate.window": w} for w in "01"]
    last = result["rows"][1]
    assert (last["pairs"], last["tasks"], last["command"]) == (7, 2, found[1].command)
    means = {name: row["mr"]["mean"] for name, row in last["differences"].items()}
    assert means == pytest.approx({"trained-base": 0.6, "trained-proactive": 0.5})  # of 0.8 and 0.4
    assert list(last["differences"]["trained-base"]) == result["metrics"]
    written = {n: (small.parent / "out" / n).read_text("utf-8") for n in ("ablation.json", "ablation.md")}
    assert json.loads(written["ablation.json"]) == result and written["ablation.md"] == table(result)
    lines = written["ablation.md"].splitlines()
    assert [line.count("|") for line in lines[:6]] == [lines[0].count("|")] * 6
    assert lines[4].split("|")[1].strip() == "1" and "+0.600 [+0.400, +0.800]" in lines[4]
    assert lines[-2:] == [f"    {variant.command}" for variant in found]


def test_a_metric_that_one_run_did_not_measure(small: Path) -> None:
    found = variants(small, ["reward.weights.turns=1"], [], small.parent / "out")
    finished(found[0], 0.2)
    result = compared(found, small.parent / "out")
    assert "turns" in result["metrics"] and "turns" not in result["rows"][0]["differences"]["trained-base"]
    assert "|       |" in table(result)


def test_finished_runs_are_not_run_again(small: Path) -> None:
    out = small.parent / "out"
    asked = ["ablate", str(small), "--vary", "simulate.window=0,1", "--out", str(out)]
    for variant in variants(small, [asked[3]], [], out):
        finished(variant, 0.4)
    result = CliRunner().invoke(main, asked, catch_exceptions=False)
    assert result.exit_code == 0 and "simulate.window=1 (2 of 2)\n" in result.stdout
    assert (out / "ablation.md").read_text("utf-8") in result.stdout
    journal = json.loads((out / "simulate.window=0/run.json").read_text("utf-8"))
    assert all(stage["unchanged"] for stage in journal["stages"].values())
    told = CliRunner().invoke(main, [*asked, "--json"], catch_exceptions=False)
    assert json.loads(told.stdout) == json.loads((out / "ablation.json").read_text("utf-8"))
    assert "eval (unchanged): " in told.stderr
    (out / "ablation.md").unlink()
    early = CliRunner().invoke(main, [*asked, "--until", "train"], catch_exceptions=False)
    assert early.exit_code == 0 and not (out / "ablation.md").exists()


@pytest.mark.parametrize("vary", ["models.policy=model.gguf,typo", "tasks.train=1,999"])
def test_models_and_tasks_are_looked_at_before_the_first_run(vary: str, small: Path) -> None:
    result = CliRunner().invoke(main, ["ablate", str(small), "--vary", vary])
    assert result.exit_code in (3, 4) and "(1 of 2)" not in result.output
    assert not (small.parent / "runs").exists()


def test_a_run_folder_s_recipe_is_varied_elsewhere(small: Path) -> None:
    with Run.open(small, "test", small.parent / "run", ["seed=5"]):
        pass
    found = variants(small.parent / "run/recipe.yaml", ["simulate.window=0"], [], small.parent / "out")
    finished(found[0], 0.4)
    asked = [
        "ablate",
        str(small.parent / "run"),
        "--vary",
        "simulate.window=0",
        "--out",
        str(small.parent / "out"),
    ]
    assert CliRunner().invoke(main, asked, catch_exceptions=False).exit_code == 0


def test_a_run_that_was_not_evaluated(small: Path) -> None:
    found = variants(small, ["simulate.window=0"], [], small.parent / "out")
    finished(found[0], 0.4)
    (found[0].folder / "eval.json").unlink()
    with pytest.raises(RunError, match=r"has no eval\.json yet\. Run: minicollab eval "):
        compared(found, small.parent / "out")
