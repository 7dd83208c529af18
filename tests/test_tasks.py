"""Rows from files and from the hub: what is read, and what is said of a row that cannot be."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from minicollab.errors import TaskError
from minicollab.models import user_cache
from minicollab.recipe import Tasks
from minicollab.schema import Task
from minicollab.tasks import check_tasks, hub, load_tasks, split, tasks_file

GOOD = {"id": "a", "opening": "help me", "details": ["it is for Ada"]}


def load(path: Path | str, **options: Any) -> list[Task]:
    return load_tasks(Tasks(path=str(path), **options))


def write(folder: Path, *rows: object) -> Path:
    path = folder / "tasks.jsonl"
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), "utf-8")
    return path


def table(folder: Path, text: str) -> Path:
    path = folder / "tasks.csv"
    path.write_bytes(text.encode())
    return path


def parquet(path: Path, *rows: dict[str, object]) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    write_table(pyarrow.Table.from_pylist(list(rows)), path)
    return path


def test_the_quickstart_tasks_are_50_48_of_them_of_12_categories(repo: Path) -> None:
    """Two between the trained and the held-out ones are for the checks alone, which look at 50."""
    tasks = load(repo / "recipes/quickstart/tasks.jsonl")
    train, held_out = split(tasks, 36, 12)
    assert len(tasks) == 50 and train + tasks[36:38] + held_out == tasks
    assert len({t.category for t in train}) == len({t.category for t in held_out}) == 12
    assert len({t.opening for t in tasks}) == 50
    for task in tasks:
        assert 6 <= len(task.opening.split()) <= 14
        assert 3 <= len(task.details) <= 5
        assert all(len(detail.split()) <= 12 for detail in task.details)


# JSON Lines


def test_optional_fields_and_empty_lines(tmp_path: Path) -> None:
    row = {
        "opening": " hi\u2028there ",
        "details": ["x"],
        "reference": "y",
        "metadata": {"source": ["me", 1]},
    }
    first, second = load(write(tmp_path, GOOD, "", row))
    assert (first.id, first.category, first.reference, first.metadata) == ("a", "", "", {})
    assert (second.id, second.opening, second.reference) == ("task-3", "hi\u2028there", "y")
    assert second.metadata == {"source": ["me", 1]}


def test_gzip_bom_and_crlf(tmp_path: Path) -> None:
    path = tmp_path / "tasks.jsonl.gz"
    path.write_bytes(gzip.compress(b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\r\n"))
    assert load(path)[0].details == ("it is for Ada",)


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ('{"opening": "x", ', "line 2: not JSON (EOF while parsing a value at column 16)"),
        ('["x"]', "line 2: not a JSON object"),
        ('{"opening": "\\ud800", "details": ["x"]}', "line 2: not JSON"),
        ({"opening": "x"}, "line 2: details is missing"),
        ({"details": ["x"]}, "line 2: opening is missing"),
        ({"opening": None, "details": ["x"]}, "line 2: opening is missing"),
        ({"opening": "  ", "details": ["x"]}, "line 2: opening is empty"),
        ({"opening": "x", "details": []}, "line 2: details is empty"),
        ({"opening": "x", "details": " ; "}, "line 2: details is empty"),
        ({"opening": "x", "details": ["x", ""]}, "line 2: details.1 is empty"),
        ({"opening": 3, "details": ["x"]}, "line 2: opening: input should be a valid string"),
        ({"opening": "x", "details": {"y": 1}}, "line 2: details: input should be a valid list"),
        ({"opening": "x", "detials": ["x"], "details": ["x"]}, "line 2: there is no field detials"),
        (GOOD, "line 2: the id a is taken"),
        ({**GOOD, "opening": "x" * (2 << 20)}, "line 2: longer than 1 MiB"),
    ],
)
def test_a_fault_names_file_line_and_field(tmp_path: Path, line: object, fault: str) -> None:
    with pytest.raises(TaskError) as caught:
        load(write(tmp_path, GOOD, line))
    assert caught.value.what.startswith(f"tasks.jsonl {fault}")
    assert caught.value.remedy


def test_every_planted_fault_is_found_and_what_is_good_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "tasks.jsonl"
    good = [json.dumps({**GOOD, "id": name}).encode() for name in "abc"]
    bad = [b'{"opening": ', b'{"opening": "x"}', b'{"opening": "", "details": ["x"]}', b'{"id": "\xe9"}']
    long = json.dumps({**GOOD, "opening": "x" * 2_000_000}).encode()
    path.write_bytes(b"\n".join([good[0], *bad, good[1], long, b"", good[2]]))
    checked = check_tasks(Tasks(path=str(path)))
    assert [task.id for task in checked.tasks] == ["a", "b", "c"]
    assert checked.bad == [
        ("line 2", "not JSON (EOF while parsing a value at column 11)"),
        ("line 3", "details is missing"),
        ("line 4", "opening is empty"),
        ("line 5", "not UTF-8"),
        ("line 7", "longer than 1 MiB"),
    ]


# CSV


def test_a_table_with_details_in_one_cell(tmp_path: Path) -> None:
    text = 'opening,details,note\n"a, b",x; y ;,1\n\n"two\nlines","p\nq",2\nlast,z,3\n'
    first, second, third = load(table(tmp_path, "\ufeff" + text))
    assert (first.id, first.opening, first.details) == ("task-2", "a, b", ("x", "y"))
    assert (second.id, second.opening, second.details) == ("task-4", "two\nlines", ("p", "q"))
    assert third.id == "task-7"


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_what_separates_the_columns_is_seen_from_the_first_line(tmp_path: Path, mark: str) -> None:
    (task,) = load(table(tmp_path, f"opening{mark}details{mark}category\r\nhelp{mark}it is red{mark}c\r\n"))
    assert (task.opening, task.details, task.category) == ("help", ("it is red",), "c")


def test_a_fault_in_a_table_is_named_by_the_line_its_row_begins_on(tmp_path: Path) -> None:
    path = tmp_path / "tasks.csv.gz"
    rows = [
        b"opening,details",
        b'"a\nb",x',  # lines 2 and 3
        b"only one",
        b",x",
        b'"\xe9\nb",x',  # lines 6 and 7
        b'"a"b,x',
        b"c," + b"y" * (2 << 20),
        b"last,z",
        b'"never closed,x',
        b"still in it",
    ]
    path.write_bytes(gzip.compress(b"\n".join(rows)))
    checked = check_tasks(Tasks(path=str(path)))
    assert [task.id for task in checked.tasks] == ["task-2", "task-10"]
    assert [where for where, _ in checked.bad] == [
        "line 4",
        "line 5",
        "line 6",
        "line 8",
        "line 9",
        "line 11",
    ]
    assert [fault.partition(" (")[0] for _, fault in checked.bad] == [
        "1 fields where the first line has 2", "opening is empty", "not UTF-8", "not CSV",
        "longer than 1 MiB", "not CSV",
    ]  # fmt: skip


def test_a_column_that_is_missing_or_there_twice(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"tasks\.csv line 2: details is missing"):
        load(table(tmp_path, "opening,goal\nhelp,x\n"))
    with pytest.raises(TaskError, match=r"tasks\.csv line 1: two columns are called opening"):
        load(table(tmp_path, "opening,details,opening\nhelp,x,y\n"))


# Parquet, columns, slices


def test_parquet_rows_are_counted(tmp_path: Path) -> None:
    rows = [
        {**GOOD, "id": 7, "more": 1.5},
        {**GOOD, "id": 8, "more": None},
        {**GOOD, "id": 9, "opening": None},
    ]
    path = parquet(tmp_path / "tasks.parquet", *rows)
    checked = check_tasks(Tasks(path=str(path)))
    assert [(task.id, task.details) for task in checked.tasks] == [(i, ("it is for Ada",)) for i in "78"]
    assert checked.bad == [("row 3", "opening is missing")]
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(TaskError, match=r"tasks\.parquet cannot be read"):
        load(path)


def test_columns_say_what_a_field_is_called(tmp_path: Path) -> None:
    path = write(tmp_path, {"id": "x", "q": "help", "details": "no", "wants": ["y"], "extra": 1})
    (task,) = load(path, columns={"opening": "q", "details": "wants"})
    assert (task.id, task.opening, task.details) == ("x", "help", ("y",))
    with pytest.raises(TaskError, match=r"line 1: opening \(column question\) is missing"):
        load(path, columns={"opening": "question"})
    with pytest.raises(TaskError, match=r"tasks\.columns\.openning is no field of the family details"):
        load(path, columns={"openning": "q"})


def test_a_slice_counts_rows_good_or_bad(tmp_path: Path) -> None:
    path = write(tmp_path, *({**GOOD, "id": str(i)} for i in range(3)), "{", {**GOOD, "id": "4"})
    assert [task.id for task in load(path, slice="1:3")] == ["1", "2"]
    assert [task.id for task in load(path, slice=":2")] == ["0", "1"]
    assert [task.id for task in load(path, slice="4:")] == ["4"]
    assert check_tasks(Tasks(path=str(path), slice="3:4")).bad[0][0] == "line 4"


def test_files_that_are_no_task_files(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="there is no task file"):
        load(tmp_path / "none.jsonl")
    for name in ("tasks.json", "tasks.parquet.gz", "tasks.gz"):
        (tmp_path / name).write_text("[]")
        with pytest.raises(TaskError, match=r"is no task file\. Its name must end in"):
            load(tmp_path / name)
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(TaskError, match="cannot be read"):
        load(tmp_path / "folder.jsonl")
    with pytest.raises(TaskError, match="holds no tasks"):
        load(write(tmp_path, "", " "))
    whole = gzip.compress(b"{}" * 100)
    for name, raw in (("plain", b"{}"), ("cut", whole[:-9]), ("bad", whole[:12] + b"\xff" * 9)):
        (tmp_path / f"{name}.jsonl.gz").write_bytes(raw)
        with pytest.raises(TaskError, match="cannot be read"):
            load(tmp_path / f"{name}.jsonl.gz")


# The hub


def test_offline_and_nothing_kept_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # as the variable sets it, which is read once
    with pytest.raises(
        TaskError, match=r"hf:a/b is not on this machine and the Hugging Face hub cannot"
    ) as at:
        load("hf:a/b")
    assert "\n" not in str(at.value) and "HF_HUB_OFFLINE" in at.value.remedy
    with pytest.raises(TaskError, match=r"Write it as hf:owner/name"):
        load("hf:a/b/c")


def test_what_is_kept_is_read_and_nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(name: str) -> str:
        raise AssertionError(name)

    monkeypatch.setattr(hub, "_newest", asked)
    folder = user_cache() / "datasets"
    folder.mkdir()
    kept = parquet(folder / "a--b--default--train@0123456789ab.parquet", {**GOOD, "more": 1})
    assert tasks_file(Tasks(path="hf:a/b")) == kept
    assert load("hf:a/b")[0].id == "a"
    with pytest.raises(AssertionError, match="a/b"):
        load("hf:a/b", split="test")
    with pytest.raises(AssertionError, match="a/b"):
        load("hf:a/b", config="other")


@pytest.mark.slow
def test_a_data_set_is_kept_as_datasets_reads_it(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "train.jsonl").write_text(json.dumps(GOOD) + "\n" + json.dumps({**GOOD, "id": "b"}) + "\n")
    (folder / "test.jsonl").write_text(json.dumps({**GOOD, "id": "c"}) + "\n")
    for part, ids in (("train", ["a", "b"]), ("test", ["c"])):
        hub.fetch(str(folder), None, part, None, tmp_path / f"{part}.parquet")
        assert [task.id for task in load(tmp_path / f"{part}.parquet")] == ids
    for config, part in (("none", "train"), (None, "none")):
        with pytest.raises(
            TaskError, match=r"cannot be fetched: .*Check its name, tasks\.config and tasks\.split"
        ):
            hub.fetch(str(folder), config, part, None, tmp_path / "x.parquet")
    assert not (tmp_path / "x.parquet").exists()


# Which are held out


def test_split_takes_from_both_ends_and_says_when_there_are_too_few(tmp_path: Path) -> None:
    tasks = load(write(tmp_path, *({**GOOD, "id": str(i)} for i in range(5))))
    train, held_out = split(tasks, 2, 2)
    assert [t.id for t in train] == ["0", "1"] and [t.id for t in held_out] == ["3", "4"]
    with pytest.raises(TaskError, match=r"tasks\.train = 4 and tasks\.eval = 2 are more than the 5 tasks"):
        split(tasks, 4, 2)
