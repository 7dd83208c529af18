"""What a person sees: help at once, and one line for everything that they can mend."""

from __future__ import annotations

import json
import logging
import os
import re
import resource
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from minicollab.cli import main
from minicollab.run import STAGES

TASK = {"opening": "help me", "details": ["it is for Ada"]}
RECIPE = {
    "name": "small",
    "models": {"policy": "model.gguf"},
    "tasks": {"path": "tasks.jsonl", "train": 1, "eval": 1},
    "judge": {"questions": {"asks": {"ask": "Does it ask?"}}},
}


REPO = Path(__file__).resolve().parents[1]


def python(*args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A process of its own, in which this checkout's minicollab is imported."""
    where = os.environ | {"PYTHONPATH": str(REPO)}
    return subprocess.run(
        [sys.executable, *args], capture_output=True, text=True, check=False, cwd=cwd, env=where
    )


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def gguf(chat_template: str | None, claims_tensor: bool = True) -> bytes:
    """A GGUF by hand: metadata, and one tensor of 8 float32."""
    pairs = {"general.architecture": "llama"}
    if chat_template is not None:
        pairs["tokenizer.chat_template"] = chat_template
    head = b"GGUF" + struct.pack("<IQQ", 3, int(claims_tensor), len(pairs))
    head += b"".join(string(k) + struct.pack("<I", 8) + string(v) for k, v in pairs.items())
    if claims_tensor:
        head += string("x.weight") + struct.pack("<IQIQ", 1, 8, 0, 0)
    return head + bytes(-len(head) % 32) + bytes(32)


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe in which nothing is wrong but that its model is a toy."""
    monkeypatch.setenv("MINICOLLAB_CACHE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.gguf").write_bytes(gguf("{{ messages }}"))
    (tmp_path / "tasks.jsonl").write_text("".join(json.dumps(TASK) + "\n" for _ in range(20)))
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return path


def refused(*args: object) -> str:
    """The one line that this command line answers with; it must not succeed."""
    result = CliRunner().invoke(main, [str(a) for a in args])
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code not in (0, None) and result.stdout == ""
    assert "Traceback" not in result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith("minicollab: ")
    return line


def test_help_lists_every_command() -> None:
    result = CliRunner().invoke(main, ["--help"])
    assert result.exit_code == 0
    for command in ("run", "bench", *STAGES):
        assert f"\n  {command} " in result.stdout
        help_page = CliRunner().invoke(main, [command, "--help"])
        assert help_page.exit_code == 0 and "--set" in help_page.stdout


def test_help_is_quick_and_loads_nothing_heavy(tmp_path: Path) -> None:
    names = "torch llama_cpp transformers trl peft unsloth datasets bitsandbytes gguf numpy rich"
    code = f"import sys, minicollab.cli; print(*[n for n in {names.split()} if n in sys.modules])"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = python("-c", code, cwd=tmp_path)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, [], "")
    # Processor time: the clock would also measure what else the machine is doing.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0


def test_a_module_run_is_the_same_command(tmp_path: Path) -> None:
    done = python("-m", "minicollab", "simulate", "none.yaml", cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    assert re.fullmatch(r"minicollab: there is no recipe none\.yaml\. .*\n", done.stderr)


@pytest.mark.parametrize("command", ["run", "simulate"])
def test_a_typo_in_the_recipe(small: Path, command: str) -> None:
    small.write_text(yaml.safe_dump(RECIPE | {"simulate": {"exchange": 2}}))
    line = refused(command, small)
    assert "simulate.exchange" in line and "exchanges" in line
    assert "polcy" in refused(command, small, "--set", "models.polcy=x")


@pytest.mark.parametrize("command", ["run", "simulate"])
def test_models_that_cannot_be_used(small: Path, command: str) -> None:
    assert "none.gguf" in refused(command, small, "--set", "models.policy=none.gguf")
    assert "smollm2-135m-instruct" in refused(command, small, "--set", "models.policy=smollm2-135m-instrct")
    whole = gguf("{{ messages }}")
    for length in (3, 20, len(whole) - 40, len(whole) - 1):
        (small.parent / "model.gguf").write_bytes(whole[:length])
        assert "model.gguf" in refused(command, small)
    (small.parent / "model.gguf").write_bytes(gguf(None))
    assert "model.gguf has no chat template" in refused(command, small)
    (small.parent / "model.gguf").write_bytes(b"<html>not found</html>")
    assert "model.gguf is not a GGUF" in refused(command, small)


def test_the_judge_is_checked_like_the_policy(small: Path) -> None:
    (small.parent / "judge.gguf").write_bytes(gguf(None))
    assert "judge.gguf" in refused("simulate", small, "--set", "models.judge=judge.gguf")


def test_a_policy_on_a_server_cannot_be_trained_and_says_so_first(small: Path) -> None:
    line = refused("run", small, "--set", "models.policy=http://127.0.0.1:1/v1#big")
    assert "http://127.0.0.1:1/v1#big is a model on a server" in line


@pytest.mark.parametrize(
    "broken", ['{"opening": "x", ', '{"opening": "x"}', '{"opening": "x", "detials": ["y"]}', "\xe9"]
)
def test_a_broken_line_of_the_task_file(small: Path, broken: str) -> None:
    lines = [json.dumps(TASK)] * 20
    lines[16] = broken
    (small.parent / "tasks.jsonl").write_bytes("\n".join(lines).encode("latin-1"))
    assert "tasks.jsonl line 17" in refused("simulate", small)


def test_too_few_tasks(small: Path) -> None:
    assert "tasks.train" in refused("simulate", small, "--set", "tasks.train=30")


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_folder_that_cannot_be_written(small: Path, stage: str) -> None:
    for out in (small / "under" / "a file", Path("/proc/x")):
        line = refused(stage, small, "--out", out)
        assert str(out) in line and "--out" in line


@pytest.mark.parametrize(
    ("stage", "missing", "needed"),
    [
        ("train", "pairs.jsonl", "simulate"),
        ("export", "adapter", "train"),
        ("eval", "export", "export"),
        ("report", "rollouts.jsonl", "simulate"),
    ],
)
def test_a_stage_asked_before_its_input_exists(small: Path, stage: str, missing: str, needed: str) -> None:
    line = refused(stage, small, "--out", small.parent / "out")
    assert missing in line and f"minicollab {needed} " in line
    # The same of a run folder, as the message says to type it.
    assert refused(stage, small.parent / "out") == line


def test_a_bench_of_what_is_not_there(small: Path) -> None:
    assert "none.yaml" in refused("bench", "none.yaml")
    assert "--set" in refused("bench", "--set", "seed=1")
    assert "recipe.yaml: seed" in refused("bench", small, "--set", "seed=x")
    assert "none.gguf" in refused("bench", small, "--set", "models.policy=none.gguf")
    assert not (small.parent / "runs").exists()


def test_what_modules_log_is_shown_on_stderr_while_they_work(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(*_: object) -> dict[str, list[object]]:
        logging.getLogger("minicollab.engine.llama").info("a model: %s", "on [2] cores, " * 20)
        logging.getLogger("minicollab").debug("not this")
        return {"models": []}

    monkeypatch.setattr("minicollab.bench.bench", work)
    result = CliRunner().invoke(main, ["bench", str(small), "--json"])
    assert json.loads(result.stdout) == {"models": []}
    assert result.stderr == f"bench: a model: {'on [2] cores, ' * 20}\n"  # in one line
    assert not logging.getLogger("minicollab").handlers


def test_folders_that_are_no_run_and_files_that_are_no_recipe(small: Path) -> None:
    (small.parent / "empty").mkdir()
    assert "empty" in refused("simulate", small.parent / "empty")
    small.write_bytes(b"\x00\xff\x00")
    assert "recipe.yaml" in refused("simulate", small)
    small.write_text("a: b: c")
    assert "recipe.yaml" in refused("simulate", small)


def test_an_override_that_is_no_yaml(small: Path) -> None:
    assert "seed" in refused("simulate", small, "--set", "seed=[1")


def test_a_cache_that_cannot_be_used(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINICOLLAB_CACHE", str(small / "store"))
    assert "MINICOLLAB_CACHE" in refused("simulate", small)


def test_a_damaged_cache(small: Path) -> None:
    (small.parent / "store").mkdir()
    (small.parent / "store/cache.db").write_bytes(b"not a database" * 100)
    assert "store" in refused("simulate", small)


def test_a_damaged_journal_is_an_empty_one(small: Path) -> None:
    out = small.parent / "out"
    for content in ('{"stages": ', "{}", "[1]"):
        out.mkdir(exist_ok=True)
        (out / "run.json").write_text(content)
        assert "model.gguf" in refused("simulate", small, "--out", out)


def test_the_run_folder_holds_the_resolved_recipe(small: Path) -> None:
    refused("report", small, "--set", "seed=5")
    kept = yaml.safe_load((small.parent / "runs/small/recipe.yaml").read_text("utf-8"))
    assert kept["seed"] == 5 and os.path.isabs(kept["tasks"]["path"])
    assert not list((small.parent / "runs/small").glob(".partial-*"))


def test_a_run_goes_on_elsewhere_with_out_and_stays_as_it_was(small: Path) -> None:
    refused("report", small)
    run, other = small.parent / "runs/small", small.parent / "other"
    before = (run / "recipe.yaml").read_text("utf-8")
    refused("report", run, "--set", "seed=5", "--out", other)
    assert (run / "recipe.yaml").read_text("utf-8") == before
    assert yaml.safe_load((other / "recipe.yaml").read_text("utf-8"))["seed"] == 5


@pytest.mark.parametrize("check", ["judge-check", "simulator-check", "ambiguity"])
def test_a_check_leaves_the_recipe_of_a_run_as_it_is(small: Path, check: str) -> None:
    refused("report", small)
    kept = small.parent / "runs/small/recipe.yaml"
    before = kept.read_text("utf-8")
    for which in (small, kept.parent):
        refused(check, which, "--set", "judge.questions={kind: {ask: 'Is it kind?'}}")
    assert kept.read_text("utf-8") == before


def test_a_policy_on_a_server_may_be_trained_on_its_original(small: Path) -> None:
    options = ("policy=http://127.0.0.1:1/v1#big", "train_base=owner/base", "judge=none.gguf")
    sets = [word for option in options for word in ("--set", f"models.{option}")]
    assert "none.gguf" in refused("run", small, *sets, "--until", "train")  # simulate has begun
    assert "is a model on a server" in refused("run", small, *sets)
