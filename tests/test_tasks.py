from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from minicollab.errors import TaskError
from minicollab.tasks import load_tasks, split

GOOD = {"id": "a", "opening": "help me", "details": ["it is for Ada"]}


def write(folder: Path, *rows: object) -> Path:
    path = folder / "tasks.jsonl"
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), "utf-8")
    return path


def test_the_quickstart_tasks_are_48_of_12_categories(repo: Path) -> None:
    tasks = load_tasks(repo / "recipes/quickstart/tasks.jsonl")
    train, held_out = split(tasks, 36, 12, seed=7)
    assert len(tasks) == 48 and train + held_out == tasks
    assert len({t.category for t in train}) == len({t.category for t in held_out}) == 12
    assert len({t.opening for t in tasks}) == 48
    for task in tasks:
        assert 6 <= len(task.opening.split()) <= 14
        assert 3 <= len(task.details) <= 5
        assert all(len(detail.split()) <= 12 for detail in task.details)


def test_optional_fields_and_empty_lines(tmp_path: Path) -> None:
    row = {"opening": " hi\u2028there ", "details": ["x"], "metadata": {"source": ["me", 1]}}
    first, second = load_tasks(write(tmp_path, GOOD, "", row))
    assert (first.id, first.category, first.metadata) == ("a", "", {})
    assert (second.id, second.opening) == ("task-3", "hi\u2028there")
    assert second.metadata == {"source": ["me", 1]}


def test_gzip_bom_and_crlf(tmp_path: Path) -> None:
    path = tmp_path / "tasks.jsonl.gz"
    path.write_bytes(gzip.compress(b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\r\n"))
    assert load_tasks(path)[0].details == ("it is for Ada",)


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ('{"opening": "x", ', "line 2: not JSON"),
        ('["x"]', "line 2: input should be an object"),
        ({"opening": "x"}, "line 2: details is missing"),
        ({"details": ["x"]}, "line 2: opening is missing"),
        ({"opening": "  ", "details": ["x"]}, "line 2: opening is empty"),
        ({"opening": "x", "details": []}, "line 2: details is empty"),
        ({"opening": "x", "details": ["x", ""]}, "line 2: details.1 is empty"),
        ({"opening": 3, "details": ["x"]}, "line 2: opening: input should be a valid string"),
        ({"opening": "x", "details": "x"}, "line 2: details: input should be a valid array"),
        ({"opening": "x", "detials": ["x"], "details": ["x"]}, "line 2: there is no field detials"),
        (GOOD, "line 2: the id a is taken"),
    ],
)
def test_a_fault_names_file_line_and_field(tmp_path: Path, line: object, fault: str) -> None:
    with pytest.raises(TaskError) as caught:
        load_tasks(write(tmp_path, GOOD, line))
    assert caught.value.what.startswith(f"tasks.jsonl {fault}")
    assert caught.value.remedy


def test_files_that_are_no_task_files(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="there is no task file"):
        load_tasks(tmp_path / "none.jsonl")
    with pytest.raises(TaskError, match="cannot be read"):
        load_tasks(tmp_path)
    with pytest.raises(TaskError, match="holds no tasks"):
        load_tasks(write(tmp_path, "", " "))
    (tmp_path / "latin.jsonl").write_bytes(json.dumps(GOOD).encode() + b"\n\xe9\n")
    with pytest.raises(TaskError, match=r"latin\.jsonl line 2: not UTF-8"):
        load_tasks(tmp_path / "latin.jsonl")
    whole = gzip.compress(b"{}" * 100)
    for name, raw in (("plain", b"{}"), ("cut", whole[:-9]), ("bad", whole[:12] + b"\xff" * 9)):
        (tmp_path / f"{name}.jsonl.gz").write_bytes(raw)
        with pytest.raises(TaskError, match="cannot be read"):
            load_tasks(tmp_path / f"{name}.jsonl.gz")


def test_split_takes_from_both_ends_and_says_when_there_are_too_few(tmp_path: Path) -> None:
    tasks = load_tasks(write(tmp_path, *({**GOOD, "id": str(i)} for i in range(5))))
    train, held_out = split(tasks, 2, 2, seed=0)
    assert [t.id for t in train] == ["0", "1"] and [t.id for t in held_out] == ["3", "4"]
    with pytest.raises(TaskError, match=r"tasks\.train = 4 and tasks\.eval = 2 are more than the 5 tasks"):
        split(tasks, 4, 2, seed=0)
