"""What each family's rows become: opening, details, reference; and that the real files are whole."""

from __future__ import annotations

import gzip
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from minicollab.loading import load_recipe
from minicollab.schema import Task
from minicollab.tasks import FAMILIES, Checked, check_tasks, split
from minicollab.tasks.code import gist
from minicollab.tasks.math import gold, told
from minicollab.tasks.pieces import at_most, clauses, sentences

REPO = Path(__file__).resolve().parents[1]
DATA = REPO.parent / "shared" / "data"
RECIPES = sorted((REPO / "recipes").rglob("*.yaml"))
# By family: a recipe that reads it, the real file, its tasks and its rows that are none.
REAL = {
    "math": ("math", "math_train_2000", 2000, 0),
    "code": ("code", "bigcodebench_700", 700, 0),
    "document": ("document", "documents_120", 120, 0),
    "in3": ("in3", "in3_train", 1012, 249),
    "abg-coqa": ("abg-coqa", "abg_coqa_val", 1092, 0),
}


@cache
def real(family: str, *overrides: str) -> Checked:
    recipe, name, _, _ = REAL[family]
    path = DATA / f"{name}.jsonl.gz"
    if not path.is_file():
        pytest.skip("the real data is not beside the repository")
    options = load_recipe(REPO / "recipes" / recipe / "smollm2.yaml", [f"tasks.path={path}", *overrides])
    return check_tasks(options.tasks)


def task(family: str, row: dict[str, Any]) -> Task | None:
    return FAMILIES[family].model_validate(row).as_task("task-1")


# The real files


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: str(p.relative_to(REPO)))
def test_the_tasks_of_every_bundled_recipe_are_whole(path: Path) -> None:
    options = load_recipe(path).tasks
    checked = real(options.family) if options.family in REAL else check_tasks(options)
    assert checked.bad == []
    train, held_out = split(checked.tasks, options.train, options.eval)
    assert len(train) == options.train and len(held_out) == options.eval
    if options.family in REAL:
        assert (len(checked.tasks), checked.skipped) == REAL[options.family][2:]


@pytest.mark.parametrize(
    ("name", "columns", "count"),
    [
        ("math_test_level5_200", "{}", 200),
        ("gsm8k_train_1000", "{problem: question, solution: answer}", 1000),
    ],
)
def test_the_other_files_of_problems_are_whole(name: str, columns: str, count: int) -> None:
    checked = real("math", f"tasks.path={DATA / name}.jsonl.gz", f"tasks.columns={columns}")
    assert (len(checked.tasks), checked.bad, checked.skipped) == (count, [], 0)
    assert all(t.reference for t in checked.tasks)


# math


def test_a_problem_is_told_whole_and_its_formulas_are_never_cut() -> None:
    rows = real("math").tasks
    problems = {t.id: t for t in rows}
    with gzip.open(DATA / "math_train_2000.jsonl.gz", "rt", encoding="utf-8") as file:
        for row in map(json.loads, file):
            details = problems[row["id"]].details
            assert 1 <= len(details) <= 6
            assert "".join("".join(details).split()) == "".join(row["problem"].split())
            for detail in details:
                assert detail.count("[asy]") == detail.count("[/asy]")
                assert detail.count("\\[") == detail.count("\\]")
                assert detail.count("\\begin{") == detail.count("\\end{")
                if row["problem"].replace("\\$", "").count("$") % 2 == 0 and "[asy]" not in row["problem"]:
                    assert detail.replace("\\$", "").count("$") % 2 == 0


def test_an_opening_gives_nothing_of_the_problem_away() -> None:
    tasks = real("math").tasks
    assert not any(re.search(r"\d|\$", t.opening) for t in tasks)
    assert len({t.opening.replace(t.category.lower(), "…") for t in tasks}) > 6
    assert all(t.category.lower() in t.opening for t in tasks)


def test_how_a_problem_is_cut() -> None:
    problem = "Mr. Smith has $x = 3.$ Let $y.$ be\n\\[a. B\\]where it is. Find $3.5 x$. [asy] draw. A [/asy]"
    assert told(problem) == (
        "Mr. Smith has $x = 3.$",
        "Let $y.$ be\n\\[a. B\\]where it is.",
        "Find $3.5 x$.",
        "[asy] draw. A [/asy]",
    )
    assert told("If $a, b$ are two primes, what is the least sum?") == (
        "If $a, b$ are two primes,",
        "what is the least sum?",
    )
    assert told("Compute $1, 2$.") == ("Compute $1, 2$.",)
    assert told("A robe costs $5. A shirt costs $3. What do both?") == (
        "A robe costs $5.",
        "A shirt costs $3.",
        "What do both?",
    )


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        ("so \\boxed{\\frac{1}{2}} and \\boxed{ \\text{a {b}} }.", "\\text{a {b}}"),
        ("a \\fbox{7}", "7"),
        ("12/3 = <<12/3=4>>4\n#### 1,234", "1,234"),
        ("it is 7", ""),
        ("\\boxed{7", ""),
    ],
)
def test_the_gold_answer(solution: str, answer: str) -> None:
    assert gold(solution) == answer


def test_a_problem_without_an_answer_is_a_bad_row(tmp_path: Path) -> None:
    path = tmp_path / "problems.jsonl"
    path.write_text('{"problem": "x?", "solution": "none"}\n')
    recipe = load_recipe(REPO / "recipes/math/smollm2.yaml", [f"tasks.path={path}"])
    ((where, fault),) = check_tasks(recipe.tasks).bad
    assert where == "line 1" and fault == "solution has no answer, neither in \\boxed{} nor after ####"


def test_a_problem_without_a_type_is_a_math_problem(tmp_path: Path) -> None:
    path = tmp_path / "problems.jsonl"
    path.write_text('{"problem": "x?", "solution": "#### 1", "type": " "}\n')
    recipe = load_recipe(REPO / "recipes/math/smollm2.yaml", [f"tasks.path={path}"])
    (task,) = check_tasks(recipe.tasks).tasks
    assert "math" in task.opening and task.category == "math"


# code


def test_everything_that_the_prompt_says_is_told() -> None:
    tasks = {t.id: t for t in real("code").tasks}
    with gzip.open(DATA / "bigcodebench_700.jsonl.gz", "rt", encoding="utf-8") as file:
        for row in map(json.loads, file):
            made = tasks[row["task_id"]]
            assert 2 <= len(made.details) <= 8
            told = "".join("".join(made.details).split())
            asked = re.sub(
                r"You should write self-contained code starting with:\n```",
                "it must begin with:",
                row["instruct_prompt"],
            )
            assert told == "".join(asked.removesuffix("```").split())
            assert made.details[-1].startswith("it must begin with:\n")
            assert f"def {row['entry_point']}(" in made.details[-1]
            assert len(made.opening) < 200 and "```" not in made.opening
            assert made.metadata["test"] == row["test"].strip()
            assert made.metadata["entry_point"] == row["entry_point"]


@pytest.mark.parametrize(
    ("sentence", "short"),
    [
        ("Retrieves JSON data from a specified API endpoint and writes it.", "that retrieves JSON data"),
        ("Generate a DataFrame of employees with their details.", "to generate a DataFrame of employees"),
        ("Process files, then stop.", "to process files"),
        ("This function converts an input.", "for something: This function converts an input"),
        ("Given a dictionary of words, count.", "for something: Given a dictionary of words"),
    ],
)  # fmt: skip
def test_the_gist_of_a_description(sentence: str, short: str) -> None:
    assert gist(sentence) == short


# document


def test_the_key_sentences_are_spread_over_the_text() -> None:
    text = " ".join(f"This is sentence {i} of it." for i in range(12))
    made = task("document", {"title": "numbers", "text": text})
    assert made and made.reference == text and "numbers" in made.opening
    assert made.details == tuple(f"This is sentence {i} of it." for i in (0, 2, 4, 6, 8, 10))
    two = task("document", {"title": "x", "text": "One is here. Two is there."})
    assert two and two.details == ("One is here.", "Two is there.")
    assert task("document", {"title": "x", "text": "word " * 501}) is None


# in3, twenty questions, abg-coqa


def test_an_option_is_drawn_for_each_missing_detail() -> None:
    row = {
        "task": "Plan a trip.",
        "vague": True,
        "missing_details": [{"description": f"D{i}", "options": ["a", "b", "c"]} for i in range(30)],
    }
    made, again = task("in3", row), task("in3", row)
    assert made == again and made and made.opening == "Plan a trip."
    assert [d[:-1] for d in made.details] == [f"D{i}: " for i in range(30)]
    assert {d[-1] for d in made.details} == set("abc")
    assert task("in3", row | {"vague": False}) is None


def test_a_thing_is_hidden_and_its_kind_is_told() -> None:
    made = task("twenty-questions", {"thing": "an owl", "kind": "animal", "aliases": ["night bird"]})
    assert made and made.opening.startswith("I am thinking of an animal. Ask me yes-or-no questions")
    assert (made.details, made.reference, made.metadata) == (
        ("an owl",),
        "an owl",
        {"aliases": ["night bird"]},
    )


def test_the_things_are_many_and_different() -> None:
    things = check_tasks(load_recipe(REPO / "recipes/twenty-questions/smollm2.yaml").tasks).tasks
    assert len(things) >= 60 and len({t.reference for t in things}) == len(things)
    assert len({t.category for t in things[-20:]}) > 4


def test_a_question_comes_with_story_and_history() -> None:
    row = {
        "id": "x",
        "story": "Tom and Sam walk.",
        "history_turns": [
            {"turn_id": 2, "question": "Who else?", "answer": "Sam"},
            {"turn_id": 1, "question": "Who walks?", "answer": "Tom"},
        ],
        "target_turn": {"turn_id": 3, "question": "Is he tall?", "answer": "yes"},
        "ambiguity": "ambiguous",
        "clarification_turn": {
            "question": "Tom or Sam?",
            "answers": [{"clr_ans": "Tom"}, {"clr_ans": "Sam", "org_ans": "no"}],
        },
    }
    made = task("abg-coqa", row)
    lines = ["Tom and Sam walk.", "I: Who walks?", "You: Tom", "I: Who else?", "You: Sam"]
    assert made and [line for line in made.opening.split("\n") if line in lines] == lines
    assert made.opening.endswith("Is he tall?")
    assert (made.details, made.reference, made.metadata["ambiguous"]) == (("Tom",), "yes", True)
    assert made.metadata["history"] == [["Who walks?", "Tom"], ["Who else?", "Sam"]]
    assert made.metadata["clarification"] == {"question": "Tom or Sam?", "answers": ["Tom", "Sam"]}
    clear = task("abg-coqa", row | {"ambiguity": "non_ambiguous", "clarification_turn": {}})
    assert clear and (clear.details, clear.metadata["ambiguous"]) == (("yes",), False)
    assert clear.metadata["clarification"] is None


def test_the_real_questions_are_as_ambiguous_as_its_readme_says() -> None:
    tasks = real("abg-coqa").tasks
    assert sum(t.metadata["ambiguous"] for t in tasks) == 130
    assert all((t.metadata["clarification"] is not None) == t.metadata["ambiguous"] for t in tasks)


# Pieces


def test_sentences_and_clauses() -> None:
    text = 'He said "No." Then, e.g. here, Dr. Who left! (Why?) In 3.5 days.\n\nnew paragraph'
    assert sentences(text) == [
        'He said "No."',
        "Then, e.g. here, Dr. Who left!",
        "(Why?)",
        "In 3.5 days.",
        "new paragraph",
    ]
    assert clauses("a, b; c: 1,000") == ["a,", "b;", "c:", "1,000"]
    whole = re.compile(r"\$.*?\$")
    assert sentences("Let $a. B$ be. Find it.", whole) == ["Let $a. B$ be.", "Find it."]


def test_pieces_join_the_shorter_neighbour() -> None:
    assert at_most(["one two three", "four", "five six seven eight"], 5) == [
        "one two three four",
        "five six seven eight",
    ]
    assert at_most([f"piece number {i} is long" for i in range(4)], 2) == [
        "piece number 0 is long piece number 1 is long",
        "piece number 2 is long piece number 3 is long",
    ]
    assert at_most(["a"], 3) == ["a"]
