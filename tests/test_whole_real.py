"""The whole way on real parts, small: SmolLM2 in all three roles, two tasks, one step of training."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.slow

_PLAIN_LLAMA = """
import sys
from llama_cpp import Llama
model, lora = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None
llm = Llama(model, lora_path=lora, n_ctx=512, n_threads=2, seed=1, verbose=False)
answer = llm.create_chat_completion([{"role": "user", "content": "help me write a toast"}], max_tokens=24)
print(answer["choices"][0]["message"]["content"])
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    repo = Path(__file__).resolve().parents[1]
    raw = yaml.safe_load((repo / "recipes/quickstart/smollm2.yaml").read_text("utf-8"))
    raw |= {
        "name": "small",
        "models": {"policy": "smollm2-135m-instruct"},
        "tasks": {"path": str(repo / "recipes/quickstart/tasks.jsonl"), "train": 2, "eval": 2},
        "policy": {"max_tokens": 24},
        "pairs": {"min_gap": 0.0},
        "train": {"epochs": 1, "learning_rate": 1e-3, "sft_weight": 1.0, "lora_r": 8, "lora_dropout": 0.0},
        "export": {"quantization": "q8_0"},
        "eval": {"samples": 1, "exchanges": 2},
    }
    path = tmp_path_factory.mktemp("recipe") / "small.yaml"
    path.write_text(yaml.safe_dump(raw), "utf-8")
    return path


@pytest.fixture(scope="module")
def finished(recipe: Path) -> Path:
    """A run of all stages."""
    minicollab(recipe.parent / "cache", "run", recipe, "--out", recipe.parent / "run")
    return recipe.parent / "run"


def minicollab(cache: Path, *arguments: Any) -> str:
    """Run the command line in a process of its own; returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "minicollab", *map(str, arguments)],
        env=os.environ | {"MINICOLLAB_CACHE": str(cache)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def stages(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "run.json").read_text("utf-8"))["stages"])


def test_a_run_leaves_everything_it_promises(finished: Path) -> None:
    names = [
        "recipe.yaml", "run.json", "rollouts.jsonl", "pairs.jsonl", "adapter/adapter_model.safetensors",
        "export/adapter.gguf", "export/model-q8_0.gguf", "export/Modelfile", "eval.json", "report.html",
    ]  # fmt: skip
    assert [name for name in names if not (finished / name).is_file()] == []
    for stage in ("simulate", "eval"):
        assert stages(finished)[stage]["generated_tokens"] > 0
        assert stages(finished)[stage]["cache_misses"] > 0
    evaluation = json.loads((finished / "eval.json").read_text("utf-8"))
    assert list(evaluation["arms"]) == ["base", "proactive", "trained"]
    assert evaluation["differences"]["trained-base"]["mr"].keys() == {"mean", "low", "high"}


def test_a_second_run_generates_nothing_and_says_the_same(finished: Path, recipe: Path) -> None:
    before = json.loads((finished / "eval.json").read_text("utf-8"))
    minicollab(recipe.parent / "cache", "run", recipe, "--out", finished)
    assert all(s["unchanged"] and s["generated_tokens"] == 0 for s in stages(finished).values())
    assert all(s["computed"]["seconds"] > 0 for s in stages(finished).values())
    assert json.loads((finished / "eval.json").read_text("utf-8")) == before


def test_a_cold_cache_gives_the_same_bytes(finished: Path, recipe: Path, tmp_path: Path) -> None:
    minicollab(tmp_path / "cache", "simulate", recipe, "--out", tmp_path / "run")
    for name in ("pairs.jsonl", "rollouts.jsonl"):
        assert (tmp_path / "run" / name).read_bytes() == (finished / name).read_bytes()


def test_new_weights_ask_nothing_about_text_that_is_there(
    finished: Path, recipe: Path, tmp_path: Path
) -> None:
    one_turn = ["--set", "simulate.exchanges=1", "--out", tmp_path / "run"]
    changed = ["--set", "reward.weights.interactivity=0.5"]
    minicollab(recipe.parent / "cache", "simulate", recipe, *one_turn, *changed)
    assert stages(tmp_path / "run")["simulate"]["generated_tokens"] == 0
    assert stages(tmp_path / "run")["simulate"]["cache_misses"] == 0


@pytest.mark.parametrize("merged", [True, False], ids=["merged", "base and adapter"])
def test_a_llama_cpp_without_us_answers(finished: Path, merged: bool) -> None:
    from minicollab.models import resolve

    base = resolve("smollm2-135m-instruct", Path())
    files = [finished / "export/model-q8_0.gguf"] if merged else [base, finished / "export/adapter.gguf"]
    done = subprocess.run(
        [sys.executable, "-c", _PLAIN_LLAMA, *map(str, files)], capture_output=True, text=True, check=True
    )
    assert len(done.stdout.strip()) > 10


def test_the_papers_styles_run(recipe: Path, tmp_path: Path) -> None:
    styles = ["judge.style=json", "simulator.style=chat", "propose.style=system"]
    small = ["tasks.train=1", "simulate.exchanges=1", "simulate.futures=1"]
    settings = [part for s in (*styles, *small) for part in ("--set", s)]
    minicollab(tmp_path / "cache", "simulate", recipe, "--out", tmp_path / "run", *settings)
    rows = [
        json.loads(line) for line in (tmp_path / "run/rollouts.jsonl").read_text("utf-8").split("\n") if line
    ]
    assert rows and all(row["futures"] or row["failures"] for row in rows)
    answers = [a for row in rows for f in row["futures"] for a in f["judgements"]["asks"]]
    assert answers and set(answers) <= {0, 0.25, 0.5, 0.75, 1}
