"""Slips of the hand on the command line: numbers, names, paths and files of a run that are not what they
should be. Each is one line, and nothing that a person wrote is lost."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from minicollab.cache.care import stats
from minicollab.cli import main
from minicollab.engine.sizing import GIB, Memory, Shape, check_context
from minicollab.errors import ModelError, RecipeError, RunError, StageError
from minicollab.exporting import outputs
from minicollab.failures import tolerate
from minicollab.files import expanded
from minicollab.loading import load_recipe
from minicollab.needs.supplies import needed
from minicollab.run import Run, finish, unchanged
from minicollab.tasks.source import entries
from tests.test_cache_care import fill, rows
from tests.test_cli import REPO, refused, small  # noqa: F401
from tests.tiny_gguf import tiny

COST = {"seconds": 1.0, "cache_hits": 0, "cache_misses": 1}

# Recipes


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("reward.weights={goal_coverage: .nan}", "goal_coverage: input should be a finite number"),
        ("reward.weights={goal_coverage: 1e308}", "less than or equal to 1000000"),
        ("train.learning_rate=.inf", "finite"),
        ("pairs.min_gap=.inf", "finite"),
        ("seed=-1", "greater than or equal to 0"),
        ("seed=4294967296", "less than 4294967296"),
        ("eval.bootstrap=100000000000", "less than or equal to 100000"),
        ("simulate.futures=999999999999", "less than or equal to 100000"),
        ("tasks.slice='0:99999999999999999999'", "tasks.slice"),
        ("name=..", "name"),
    ],
)
def test_numbers_and_names_that_lead_nowhere(override: str, says: str, small: Path) -> None:  # noqa: F811
    assert says in refused("simulate", small, "--set", override)


def test_a_key_that_is_there_twice(small: Path) -> None:  # noqa: F811
    small.write_text(small.read_text() + "seed: 1\nseed: 2\n")
    assert "seed is there twice" in refused("simulate", small)
    small.write_text("a: &a {x: 1}\nb: {<<: *a, x: 2}\n")  # what is merged in may be said otherwise
    assert "name: field required" in refused("simulate", small)


def test_nothing_to_train_on_is_said_before_anything_is_played(small: Path) -> None:  # noqa: F811
    assert "tasks.train is 0" in refused("simulate", small, "--set", "tasks.train=0")


@pytest.mark.parametrize("name", ["~nobody-of-this-name/x", "a\0b", "a\ud800"])
def test_paths_that_are_none(name: str, small: Path) -> None:  # noqa: F811
    with pytest.raises(RunError, match="is no path here"):
        expanded(name)
    raw = yaml.safe_load(small.read_text())
    small.write_text(yaml.safe_dump(raw | {"cache": name}))
    assert "\n" not in refused("simulate", small)


# A person's own files


def test_a_recipe_that_was_written_by_hand_stays(small: Path) -> None:  # noqa: F811
    folder = small.parent / "mine"
    folder.mkdir()
    text = f"# my words\n{small.read_text()}"
    for name in ("model.gguf", "tasks.jsonl"):
        shutil.copy(small.parent / name, folder / name)
    (folder / "recipe.yaml").write_text(text)
    refused("report", folder)
    refused("report", folder, "--set", "seed=5")
    refused("report", folder / "recipe.yaml", "--out", folder, "--set", "seed=6")
    run = Run(folder.resolve(), load_recipe(folder / "recipe.yaml"))
    run.save_recipe()  # it says the same
    with pytest.raises(RunError, match="written by hand"):
        Run(folder, load_recipe(folder / "recipe.yaml", ["seed=5"])).save_recipe()
    assert (folder / "recipe.yaml").read_text() == text
    (folder / "recipe.yaml").write_text("apple pie: 3 apples")
    with pytest.raises(RunError, match="written by hand"):
        run.save_recipe()


def test_a_recipe_is_kept_once_its_stage_can_begin(small: Path) -> None:  # noqa: F811
    refused("report", small)
    kept = small.parent / "runs/small/recipe.yaml"
    before = kept.read_text()
    assert "there is no model" in refused("simulate", kept.parent, "--set", "models.judge=typo")
    assert kept.read_text() == before


def test_the_store_is_no_place_for_its_pack(tmp_path: Path) -> None:
    fill(tmp_path / "c", rows(5)).close()
    for file in (tmp_path / "c/cache.db", ""):
        assert "no place for a pack" in refused("cache", "export", file, "--cache", tmp_path / "c")
    assert stats(tmp_path / "c")["entries"] == 5


# Models


def test_a_model_that_is_mistyped_is_not_one_to_be_fetched(small: Path) -> None:  # noqa: F811
    for override, says in (("policy=smollm2", "Did you mean"), ("adapter=none.gguf", "no adapter")):
        with pytest.raises(ModelError, match=says):
            needed(load_recipe(small, [f"models.{override}"]))


def test_a_context_larger_than_memory_is_refused_before_it_is_taken() -> None:
    shape = Shape("m", 1, 1, 1, kv_bytes=1 << 20, vocabulary=1, trained=1, size=1)
    check_context(shape, 1024, Memory(GIB, GIB))
    with pytest.raises(ModelError, match=r"needs 1,024\.0 GiB, 1\.0 GiB are free"):
        check_context(shape, 1 << 20, Memory(GIB, GIB))
    huge = "1" + "0" * 20
    assert "GiB are free" in refused("serve", tiny("chatml"), "--port", "0", "--context", huge)


# Files of a run


def test_a_file_that_was_cut_is_made_again(small: Path) -> None:  # noqa: F811
    run = Run(small.parent / "run", load_recipe(small))
    (run / "export").mkdir(parents=True)
    for name in outputs(run):
        (run / name).write_text("whole")
    finish(run, "export", {"of": 1}, outputs(run), {}, COST)
    assert unchanged(run, "export", {"of": 1}, outputs(run))
    (run / "export/MODEL_CARD.md").write_text("whole, and evaluated")
    assert unchanged(run, "export", {"of": 1}, outputs(run))
    (run / "export/adapter.gguf").write_text("who")
    assert not unchanged(run, "export", {"of": 1}, outputs(run))


def test_rows_may_be_left_out_by_hand_and_not_cut(small: Path) -> None:  # noqa: F811
    run = Run(small.parent / "run", load_recipe(small))
    run.folder.mkdir()
    (run / "pairs.jsonl").write_text("{}\n{}\n")
    finish(run, "simulate", 1, ["pairs.jsonl"], {}, COST)
    for text, same in (("{}\n", True), ("", True), ("{}\n{", False)):
        (run / "pairs.jsonl").write_text(text)
        assert unchanged(run, "simulate", 1, ["pairs.jsonl"]) == same


@pytest.mark.parametrize(
    "entry", [{"x": 1}, {"inputs": "a", "result": None}, {"inputs": "a", "result": {}, "computed": 5}]
)
def test_a_journal_that_lacks_something_is_none(entry: object, small: Path) -> None:  # noqa: F811
    run = Run(small.parent, load_recipe(small))
    run.write_json("run.json", {"stages": {"simulate": entry}})
    assert run.journal() == {"stages": {}}
    assert not unchanged(run, "simulate", {}, [])


@pytest.mark.parametrize("line", ["{}", '{"prompt": [', "\xff"])
def test_pairs_that_are_broken_are_named_by_export(line: str, small: Path) -> None:  # noqa: F811
    from minicollab.stages import export

    run = Run(small.parent, load_recipe(small))
    (run / "pairs.jsonl").write_bytes(line.encode("latin-1"))
    with pytest.raises(RunError, match=r"pairs\.jsonl"):
        export(run, [])


def test_rows_without_their_fields_are_no_report(small: Path) -> None:  # noqa: F811
    refused("report", small)
    run = small.parent / "runs/small"
    (run / "rollouts.jsonl").write_text("{}\n")
    (run / "pairs.jsonl").write_text("{}\n")
    assert "rollouts.jsonl is broken" in refused("report", run)


# Data


@pytest.mark.parametrize("broken", ["text", "time"])
def test_parquet_with_values_that_python_has_not(broken: str, tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    if broken == "text":
        column = arrow.array([b"\xff\xfe"], arrow.binary()).view(arrow.string())
    else:
        column = arrow.array([2**60], arrow.timestamp("us"))
    parquet.write_table(arrow.table({"opening": column}), tmp_path / "t.parquet")
    with pytest.raises(Exception, match="cannot be read"):
        list(entries(tmp_path / "t.parquet"))


def test_data_that_is_not_there(tmp_path: Path) -> None:
    line = refused("init", tmp_path / "mine", "--data", tmp_path / "none.csv")
    assert "there is no file" in line and "tasks.path" not in line


def test_a_cell_that_is_longer_than_a_line_ends_the_file(tmp_path: Path) -> None:
    whole, long = tmp_path / "whole.csv", tmp_path / "long.csv"
    whole.write_text(f"title,text\na,{'b' * 200_000}\nc,d\n")
    assert [entry.fault for entry in entries(whole)] == ["", ""]
    cell = "word, word\n" * 120_000
    long.write_text(f'title,text\na,"{cell}"\nc,d\n')
    (only,) = entries(long)
    assert "not CSV" in only.fault


def test_what_data_says_to_a_terminal(small: Path) -> None:  # noqa: F811
    evil = "\x1b]52;c;aGk=\x07hello \u202eolleh"
    (small.parent / "tasks.jsonl").write_text(json.dumps({"opening": evil, "details": ["b"]}) + "\n")
    for option in ([], ["--json"]):
        told = CliRunner().invoke(main, ["tasks", "preview", str(small), *option])
        assert told.exit_code == 0 and "hello" in told.stdout
        assert not {"\x1b", "\x07", "\u202e"} & set(told.stdout)


# Metrics of one's own


@pytest.mark.parametrize(
    ("body", "says"),
    [("raise ValueError('no: this')", r"ValueError \(no"), ("return 10 ** 400", "OverflowError"),
     ("import sys; sys.exit(4)", "SystemExit")],
)  # fmt: skip
def test_a_metric_that_fails_is_to_be_mended(body: str, says: str, tmp_path: Path) -> None:
    import asyncio
    from typing import Any

    from minicollab.failures import Failure
    from minicollab.metrics.function import load, measure
    from minicollab.schema import Conversation, Message, Rollout, Task

    file = tmp_path / "m.py"
    file.write_text(f"def boom(messages, task):\n    {body}\n")
    rollout = Rollout(Conversation((Message("user", "a"),)), 0, 0, "window")
    cast: Any = None
    with pytest.raises(Failure, match=says) as caught:
        asyncio.run(measure(rollout, Task("t", "a", ("b",)), cast, f"{file}:boom"))
    with pytest.raises(StageError, match="Mend the metric"):
        tolerate([str(caught.value)], 1, 0.1, last=True)
    file.write_text("import sys\nsys.exit(4)\n")
    with pytest.raises(RecipeError, match="SystemExit"):
        load(f"{file}:boom")


# Terminals


def test_a_locale_without_arrows_and_a_reader_that_has_heard_enough(small: Path) -> None:  # noqa: F811
    where = os.environ | {"PYTHONPATH": str(REPO), "PYTHONIOENCODING": "latin-1"}
    command = [sys.executable, "-m", "minicollab", "tasks", "preview", str(small), "-n", "1"]
    (small.parent / "tasks.jsonl").write_text(json.dumps({"opening": "a → b", "details": ["→"]}) + "\n")
    small.write_text(yaml.safe_dump(yaml.safe_load(small.read_text()) | {"seed": 1}))
    done = subprocess.run(command, env=where, capture_output=True, timeout=60)
    assert done.returncode == 0 and b"a ? b" in done.stdout, done.stderr
    piped = subprocess.run(
        f"{' '.join(command)} -n 20 | true", shell=True, env=where, capture_output=True, timeout=60
    )
    assert b"permissions" not in piped.stderr


@pytest.mark.parametrize("width", ["", "abc", "-5"])
def test_a_width_that_is_none(width: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.table import Table

    from minicollab.summaries import _drawn

    monkeypatch.setenv("COLUMNS", width)
    assert "head" in _drawn(Table("head"))


def test_days_and_sizes_that_are_no_numbers(tmp_path: Path) -> None:
    for option in (("--older-than", "nan"), ("--to", "9" * 400)):
        result = CliRunner().invoke(main, ["cache", "prune", *option, "--cache", str(tmp_path)])
        assert result.exit_code == 2 and "Traceback" not in result.output
