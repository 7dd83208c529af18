"""`minicollab tasks` and `minicollab init`, as a person meets them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from minicollab.cli import main
from minicollab.loading import load_recipe
from minicollab.tasks import load_tasks
from minicollab.tasks.new import guessed

REPO = Path(__file__).resolve().parents[1]
QUICKSTART = str(REPO / "recipes/quickstart/smollm2.yaml")
THINGS = str(REPO / "recipes/twenty-questions/smollm2.yaml")
DATA = REPO.parent / "shared" / "data"


def minicollab(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


# tasks check


def test_check_counts_and_measures() -> None:
    result = minicollab("tasks", "check", QUICKSTART)
    assert result.exit_code == 0
    assert "50 tasks of the family details, no bad rows" in result.output
    found = json.loads(minicollab("tasks", "check", QUICKSTART, "--json").stdout)
    assert (found["family"], found["tasks"], found["bad"], found["skipped"]) == ("details", 50, [], 0)
    lengths = [len(task.opening) for task in load_tasks(load_recipe(Path(QUICKSTART)).tasks)]
    assert found["characters"]["opening"]["longest"] == max(lengths)
    assert found["details"]["most"] == 5 and "reference" not in found["characters"]


def test_check_lists_every_bad_row_and_ends_with_3(tmp_path: Path) -> None:
    good = json.dumps({"opening": "help", "details": ["x"]})
    (tmp_path / "tasks.jsonl").write_text("\n".join([good, *["{"] * 24, good]))
    arguments = ("tasks", "check", QUICKSTART, "--set", f"tasks.path={tmp_path / 'tasks.jsonl'}")
    result = minicollab(*arguments)
    assert result.exit_code == 3
    assert [line for line in result.stdout.split("\n") if line.startswith("line ")] == [
        f"line {n}: not JSON (EOF while parsing an object at column 1)" for n in range(2, 22)
    ]
    assert "… and 4 more: --json gives all of them" in result.stdout
    assert "2 tasks of the family details, 24 bad rows" in result.stdout
    assert "tasks.jsonl has 24 bad rows" in result.stderr
    everything = minicollab(*arguments, "--json")
    assert everything.exit_code == 3
    assert [row["where"] for row in json.loads(everything.stdout)["bad"]] == [
        f"line {n}" for n in range(2, 26)
    ]


def test_check_says_when_there_are_too_few() -> None:
    result = minicollab("tasks", "check", QUICKSTART, "--set", "tasks.slice=':10'")
    assert result.exit_code == 3 and "10 tasks of the family" in result.stdout
    assert "tasks.train = 36 and tasks.eval = 12 are more than the 10 tasks there are" in result.stderr


def test_check_of_real_data_by_set() -> None:
    path = DATA / "in3_train.jsonl.gz"
    if not path.is_file():
        pytest.skip("the real data is not beside the repository")
    result = minicollab("tasks", "check", REPO / "recipes/in3/smollm2.yaml", "--set", f"tasks.path={path}")
    assert result.exit_code == 0
    assert "1,012 tasks of the family in3, 249 rows skipped, no bad rows" in result.output


# tasks preview


def test_preview_shows_what_the_simulated_user_sees() -> None:
    result = minicollab("tasks", "preview", QUICKSTART)
    tasks = load_tasks(load_recipe(Path(QUICKSTART)).tasks)
    assert result.exit_code == 0
    assert result.output.count("opening: ") == 5
    for task in tasks[:5]:
        assert f"── {task.id}\nopening: {task.opening}\ndetails:\n  - {task.details[0]}\n" in result.output
        assert f"  │ Details in mind: {'; '.join(task.details)}\n  │ Human: {task.opening}\n" in result.output
    assert result.output.count("Conversations between a human and an AI.") == 1  # shown once for all
    shown = json.loads(minicollab("tasks", "preview", QUICKSTART, "-n", 2, "--json").stdout)
    assert [task["id"] for task in shown] == [task.id for task in tasks[:2]]
    assert all(task["prompt"].startswith("Conversations between") for task in shown)


@pytest.mark.parametrize("style", ["transcript", "chat"])
def test_preview_shows_either_style(style: str) -> None:
    options = ("--set", f"simulator.style={style}", "-n", 1, "--json")
    (shown,) = json.loads(minicollab("tasks", "preview", QUICKSTART, *options).stdout)
    assert shown["details"][0] in shown["prompt"] and shown["opening"] in shown["prompt"]
    assert ("You play a person" in shown["prompt"]) == (style == "chat")


def test_preview_of_twenty_questions_shows_the_thing_and_reference() -> None:
    (shown,) = json.loads(minicollab("tasks", "preview", THINGS, "-n", 1, "--json").stdout)
    assert f"The secret thing: {shown['reference']}" in shown["prompt"]
    assert f"reference: {shown['reference']}\n" in minicollab("tasks", "preview", THINGS, "-n", 1).output


# init


def test_init_makes_a_folder_that_checks(tmp_path: Path) -> None:
    folder = tmp_path / "2026"
    result = minicollab("init", folder)
    assert result.exit_code == 0
    for command in ("tasks check", "tasks preview", "run"):
        assert f"  minicollab {command} {folder / 'recipe.yaml'}\n" in result.output
    assert sorted(path.name for path in folder.iterdir()) == ["metrics.py", "recipe.yaml", "tasks.jsonl"]
    recipe = load_recipe(folder / "recipe.yaml")
    assert recipe.name == "2026" and recipe.reward.weights[f"{folder}/metrics.py:brevity"] == 0.0
    assert len(load_tasks(recipe.tasks)) == recipe.tasks.train + recipe.tasks.eval == 10
    assert minicollab("tasks", "check", folder / "recipe.yaml").exit_code == 0


def test_the_example_metric_falls_with_the_words(tmp_path: Path) -> None:
    minicollab("init", tmp_path / "my-task")
    code: dict[str, object] = {}
    exec((tmp_path / "my-task/metrics.py").read_text(), code)
    asked = {"role": "user", "content": "word " * 500}

    def brevity(*words: int) -> object:
        talk = [asked, *({"role": "assistant", "content": "word " * n} for n in words)]
        return code["brevity"](talk, None)  # type: ignore[operator]

    assert (brevity(10), brevity(90), brevity(20, 160), brevity(300)) == (1.0, 0.5, 0.5, 0.0)


def test_init_takes_a_table_and_writes_its_columns(tmp_path: Path) -> None:
    data = tmp_path / "wishes.csv"
    rows = "".join(f"{i};need {i};a {i} ; b {i}\n" for i in range(10)).replace(" ; ", "|")
    data.write_text('Id,"Was möchten Sie?",Note\n' + rows.replace(";", ",").replace("|", " ; "), "utf-8")
    result = minicollab("init", tmp_path / "my-task", "--data", data)
    assert result.exit_code == 0, result.output
    assert "opening: the column Was möchten Sie?" in result.output
    assert "details: the column Note" in result.output
    recipe = load_recipe(tmp_path / "my-task/recipe.yaml")
    assert sorted(p.name for p in (tmp_path / "my-task").iterdir()) == [
        "metrics.py",
        "recipe.yaml",
        "wishes.csv",
    ]
    tasks = load_tasks(recipe.tasks)
    assert (tasks[3].opening, tasks[3].details) == ("need 3", ("a 3", "b 3"))
    assert (recipe.tasks.train, recipe.tasks.eval) == (7, 3)
    assert "# how long a conversation is" in (tmp_path / "my-task/recipe.yaml").read_text("utf-8")


@pytest.mark.parametrize(
    ("names", "opening", "details"),
    [
        (["details", "opening"], "opening", "details"),
        (["x", "Goal", "Prompt"], "Prompt", "Goal"),
        (["id", "y", "x"], "y", "x"),
        (["needs", "y"], "y", "needs"),
    ],
)
def test_columns_are_guessed_by_name_then_by_order(names: list[str], opening: str, details: str) -> None:
    assert guessed(names, Path("x.csv")) == {"opening": opening, "details": details}


def test_init_refuses_in_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    one = tmp_path / "one.csv"
    one.write_text("opening\na\nb\n")
    short = tmp_path / "short.csv"
    short.write_text("opening,details\na,b\n")
    before = sorted(tmp_path.iterdir())
    for arguments, code, said in (
        (("there",), 5, "is there already. Give another name; nothing is overwritten."),
        (("my task",), 5, "my task cannot be a task's name"),
        (("new", "--data", tmp_path / "none.csv"), 3, "there is no file"),
        (("new", "--data", tmp_path / "there"), 3, "there is no file"),
        (("new", "--data", one), 3, "has no column that could be the details (it has: opening)"),
        (("new", "--data", short), 3, "short.csv has fewer than two rows"),
    ):
        result = minicollab("init", tmp_path / arguments[0], *arguments[1:])
        assert (result.exit_code, result.stderr.count("\n")) == (code, 1)
        assert said in result.stderr
    assert sorted(tmp_path.iterdir()) == before
