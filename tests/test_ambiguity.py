"""Asking where a question is ambiguous: the figures by hand, the replies with scripted engines, and
once for real on the real file."""

from __future__ import annotations

import asyncio
import gzip
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from test_pairs import cast, recipe

from minicollab.ambiguity import Reply, compare, figures, reply_all
from minicollab.cast import Cast, Policy
from minicollab.cli_ambiguity import ambiguity
from minicollab.engine.scripted import Request, ScriptedEngine
from minicollab.errors import MinicollabError, ModelError, RecipeError, RunError, StageError
from minicollab.recipe import Recipe
from minicollab.schema import Task
from minicollab.tasks.abg_coqa import Row

STORY = "Ada had a kite. Bo had one too. It flew away."


def row(name: str, ambiguous: bool, asked: str = "whose was it?") -> dict[str, Any]:
    """As the data set's files have it."""
    clarified = {"question": "Whose?", "answers": [{"clr_ans": "Bo's.", "org_ans": "Bo"}]}
    return {
        "id": name,
        "story": STORY,
        "target_turn": {"turn_id": 2, "question": asked, "answer": "Bo's"},
        "history_turns": [{"turn_id": 1, "question": "what did Ada have?", "answer": "a kite"}],
        "ambiguity": "ambiguous" if ambiguous else "non_ambiguous",
        "clarification_turn": clarified if ambiguous else {},
    }


def question(*given: Any, **others: Any) -> Task:
    return Row.model_validate(row(*given) | others).as_task("")


def replies(arm: str, asked: int, ambiguous: int, asked_clear: int, clear: int) -> list[Reply]:
    """`asked` of the `ambiguous` questions asked back, `asked_clear` of the `clear` ones."""
    kinds = {True: (asked, ambiguous), False: (asked_clear, clear)}
    return [
        Reply(arm, question(f"{kind}-{i}", kind), "x", 0.9 if i < asks else 0.2)
        for kind, (asks, total) in kinds.items()
        for i in range(total)
    ]


# The figures


def test_the_figures_worked_out_by_hand() -> None:
    """1 of 4 ambiguous and 1 of 6 clear questions asked back: TP 1, FN 3, FP 1, TN 5."""
    assert figures(1, 4, 1, 6) == pytest.approx(
        {
            "accuracy_ambiguous": 1 / 4,
            "accuracy_clear": 5 / 6,
            "macro_accuracy": 13 / 24,
            "macro_f1": (1 / 3 + 5 / 7) / 2,  # 2 / (2 + 1 + 3) and 10 / (10 + 1 + 3)
        }
    )
    assert figures(0, 4, 0, 6)["macro_f1"] == pytest.approx(12 / 16 / 2)  # who never asks: F1(asks) is 0
    assert figures(4, 4, 6, 6)["macro_f1"] == pytest.approx(8 / 14 / 2)
    assert set(figures(4, 4, 0, 6).values()) == {1.0}


def f1(true: list[bool], said: list[bool], label: bool) -> float:
    """scikit-learn's f1_score of one label: the harmonic mean of precision and recall, 0 where one
    of them has nothing to divide by (zero_division=0)."""
    right = sum(t == s == label for t, s in zip(true, said, strict=True))
    precision = right / said.count(label) if label in said else 0
    recall = right / true.count(label) if label in true else 0
    return 2 * precision * recall / (precision + recall) if right else 0


@pytest.mark.parametrize("asked", range(5))
@pytest.mark.parametrize("asked_clear", range(7))
def test_macro_f1_is_that_of_scikit_learn(asked: int, asked_clear: int) -> None:
    true = [True] * 4 + [False] * 6
    said = [i < asked for i in range(4)] + [i < asked_clear for i in range(6)]
    assert figures(asked, 4, asked_clear, 6)["macro_f1"] == pytest.approx(
        (f1(true, said, True) + f1(true, said, False)) / 2
    )


@pytest.mark.parametrize(
    ("asks", "answers", "macro_accuracy", "macro_f1"),
    [(15.44, 95.60, 55.52, 56.62), (52.84, 72.32, 62.58, 55.08)],
    ids=["GPT-4o", "CollabLLM"],
)
def test_the_paper_s_table_2(asks: float, answers: float, macro_accuracy: float, macro_f1: float) -> None:
    """It does not say how many questions were ambiguous: 11.66% is what CollabLLM's row comes to."""
    ambiguous, clear = 11.66, 88.34
    found = figures(asks / 100 * ambiguous, ambiguous, (1 - answers / 100) * clear, clear)
    assert 100 * found["macro_accuracy"] == pytest.approx(macro_accuracy, abs=0.01)
    assert 100 * found["macro_f1"] == pytest.approx(macro_f1, abs=0.01)


# Intervals


def test_arms_and_paired_differences() -> None:
    result = compare([*replies("base", 1, 4, 1, 6), *replies("proactive", 3, 4, 2, 6)], 0, 500)
    by_hand = {"base": figures(1, 4, 1, 6), "proactive": figures(3, 4, 2, 6)}
    for arm, row in by_hand.items():
        for name, value in row.items():
            got = result["arms"][arm][name]
            assert got["value"] == pytest.approx(value) and 0 <= got["low"] <= value <= got["high"] <= 1
    difference = result["differences"]["proactive-base"]["macro_f1"]["value"]
    assert difference == pytest.approx(by_hand["proactive"]["macro_f1"] - by_hand["base"]["macro_f1"])
    assert (result["ambiguous"], result["clear"], result["tasks_left_out"]) == (4, 6, 0)
    assert list(result["differences"]) == ["proactive-base"]


def test_the_interval_is_the_95_percent_bootstrap_within_each_kind() -> None:
    """Of two ambiguous questions one is asked back about: resampled, the share is 0, 0.5 or 1, with
    1/4, 1/2, 1/4. All clear ones are answered, in every resample."""
    result = compare(replies("base", 1, 2, 0, 3), 0, 2000)
    row = result["arms"]["base"]
    assert row["accuracy_ambiguous"] == {"value": 0.5, "low": 0.0, "high": 1.0}
    assert row["accuracy_clear"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert row["macro_accuracy"] == {"value": 0.75, "low": 0.5, "high": 1.0}
    assert compare(replies("base", 1, 2, 0, 3), 0, 2000) == result


def test_arms_are_drawn_together() -> None:
    """Arms that do the same on every question differ in no resample."""
    same = compare([*replies("base", 2, 4, 3, 6), *replies("trained", 2, 4, 3, 6)], 0, 500)
    none = {"value": 0.0, "low": 0.0, "high": 0.0}
    assert all(difference == none for difference in same["differences"]["trained-base"].values())


def test_a_question_without_a_verdict_is_left_out_of_all_arms() -> None:
    base, trained = replies("base", 1, 2, 0, 3), replies("trained", 2, 2, 0, 3)
    base[0] = replace(base[0], asks=None, failure="no verdict")  # the one that was asked back about
    result = compare([*base, *trained], 0, 100)
    assert (result["ambiguous"], result["clear"], result["tasks_left_out"]) == (1, 3, 1)
    assert result["arms"]["base"]["accuracy_ambiguous"]["value"] == 0
    assert result["arms"]["trained"]["accuracy_ambiguous"]["value"] == 1
    with pytest.raises(StageError, match="0 of 3 questions are ambiguous"):
        compare([reply for reply in base if not reply.task.metadata["ambiguous"]], 0, 100)


# The replies


def says(request: Request) -> str:
    """Asks about "it", and whatever is asked when it is told to be proactive."""
    asked = request.prompt.rpartition("question: ")[2]
    return " Whose do you mean? " if "it?" in asked or request.prompt.startswith("<system>") else "Bo's. "


def judges(request: Request) -> list[float]:
    yes = 0.8 if "Assistant: Whose do you mean?" in request.prompt else 0.1
    return [math.log(yes), math.log(1 - yes)]


def ask_all(options: Recipe, who: Cast, tasks: list[Task]) -> list[Reply]:
    policies = {"base": who.policy, "proactive": Policy(who.policy.engine, options.policy, True)}
    return asyncio.run(reply_all(options, policies, who.judge, tasks))


TASKS = [question("a", True), question("b", False, "what did Bo have?")]


def test_every_arm_replies_to_every_question() -> None:
    options = recipe()
    policy, judge = ScriptedEngine(says), ScriptedEngine(score=judges)
    found = ask_all(options, cast(options, policy=policy, judge=judge), TASKS)
    assert [(r.arm, r.task.id, r.action) for r in found] == [
        ("base", "a", "asks"),
        ("proactive", "a", "asks"),
        ("base", "b", "answers"),
        ("proactive", "b", "asks"),
    ]
    assert found[0].row() == {
        "arm": "base",
        "task_id": "a",
        "question": "whose was it?",
        "ambiguous": True,
        "reply": "Whose do you mean?",
        "asks": pytest.approx(0.8),
        "action": "asks",
        "failure": None,
    }
    # Each question has one seed, whichever the arm.
    seeds = [request.sampling.seed for request in policy.requests if request.sampling]
    assert seeds[0] == seeds[1] != seeds[2] == seeds[3]


def test_what_the_assistant_and_what_the_judge_are_shown() -> None:
    options = recipe()
    policy, judge = ScriptedEngine(says), ScriptedEngine(score=judges)
    ask_all(options, cast(options, policy=policy, judge=judge), [TASKS[0]])
    plain, proactive = (request.prompt for request in policy.requests)
    assert proactive.endswith(plain) and proactive.startswith("<system>")
    assert plain.count("<user>") == 1 and "<assistant>" not in plain[: -len("<assistant>")]
    shown = [plain.index(part) for part in (STORY, "I: what did Ada have?", "You: a kite", "whose was it?")]
    assert shown == sorted(shown)
    asked = judge.requests[0].prompt
    assert "User: whose was it?\nAssistant: Whose do you mean?\n" in asked
    assert STORY not in asked and "what did Ada have?" not in asked


def test_a_first_question_has_nothing_before_it() -> None:
    options = recipe()
    policy = ScriptedEngine(says)
    first = question("a", True, history_turns=[])
    ask_all(options, cast(options, policy=policy, judge=ScriptedEngine(score=judges)), [first])
    assert "so far:\nNothing.\n" in policy.requests[0].prompt


def test_who_writes_no_question_mark_asks_nothing_and_no_judge_is_bothered() -> None:
    options = recipe()
    judge = ScriptedEngine(score=judges)
    found = ask_all(options, cast(options, policy=says, judge=judge), TASKS)
    assert [(r.text, r.asks) for r in found if not r.asks] == [("Bo's.", 0.0)]
    assert len(judge.requests) == 3

    foreign = ask_all(
        options, cast(options, policy=lambda _: "誰的\uff1f", judge=ScriptedEngine(score=judges)), TASKS
    )
    assert all(r.asks == pytest.approx(0.1) for r in foreign)


def test_a_story_that_does_not_fit_is_said_and_never_cut() -> None:
    options = recipe(policy={"max_tokens": 8})
    policy = ScriptedEngine(says, context=30)
    with pytest.raises(ModelError, match=r"the policy needs \d+ tokens"):
        ask_all(options, cast(options, policy=policy, judge=ScriptedEngine(score=judges)), TASKS)


def test_failures_are_kept_and_too_many_stop_the_run() -> None:
    def silent_once(request: Request) -> str:
        return " " if "what did Bo have?" in request.prompt else says(request)

    def at_most(share: float) -> list[Reply]:
        options = recipe(simulate={"max_failures": share})
        return ask_all(options, cast(options, policy=silent_once, judge=ScriptedEngine(score=judges)), TASKS)

    with pytest.raises(StageError, match="2 of 4 futures failed: the assistant said nothing"):
        at_most(0.4)
    found = at_most(0.5)
    assert [r.failure for r in found] == [None, None, *["the assistant said nothing"] * 2]
    assert found[2].row()["action"] is None

    broken = recipe(judge={"style": "json"}, simulate={"max_failures": 1})
    found = ask_all(broken, cast(broken, policy=says, verdict=lambda _: "hm"), TASKS)
    assert all(r.text and "no verdict" in (r.failure or "") for r in found if "?" in r.text)


# The command


def write(folder: Path, rows: list[dict[str, Any]], **tasks: Any) -> Path:
    with gzip.open(folder / "tasks.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    path = folder / "recipe.yaml"
    given = {
        "name": "small",
        "models": {"policy": "smollm2-135m-instruct"},
        "tasks": {"family": "abg-coqa", "path": "tasks.jsonl.gz", "train": 0} | tasks,
        "policy": {"max_tokens": 24},
        "reward": {"weights": {"turns": 1}},  # not used here
        "engine": {"context": 4096},
        "eval": {"bootstrap": 200},
    }
    path.write_text(yaml.safe_dump(given))
    return path


def refused(kind: type[MinicollabError], *args: object) -> str:
    """The one line that the command answers with."""
    result = CliRunner().invoke(ambiguity, [str(a) for a in args])
    assert isinstance(result.exception, kind), result.exception
    assert result.stdout == "" and "\n" not in str(result.exception)
    return str(result.exception)


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINICOLLAB_CACHE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    return write(tmp_path, [row(str(i), i < 2) for i in range(4)], eval=4)


def test_tasks_of_another_family_are_refused(small: Path) -> None:
    line = refused(RecipeError, small, "--set", "tasks.family=details")
    assert "family details" in line and "minicollab eval" in line


def test_questions_of_one_kind_are_refused(small: Path) -> None:
    line = refused(StageError, small, "--set", "tasks.eval=2")
    assert "0 of 2 questions are ambiguous" in line and "tasks.eval" in line


def test_a_trained_model_that_is_not_there(small: Path) -> None:
    other = small.parent / "other"
    other.mkdir()
    (other / "recipe.yaml").write_text(small.read_text())
    line = refused(RunError, small, "--trained", other)
    assert "other has no export/model-q4_k_m.gguf" in line and "minicollab export" in line
    assert "is not a GGUF" in refused(ModelError, small, "--trained", small)
    assert "nowhere is not a file" in refused(ModelError, small, "--trained", "nowhere")


@pytest.mark.slow
def test_for_real_and_nothing_is_computed_twice(
    repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last questions of the real file, of which one or two are ambiguous."""
    data = repo.parent / "shared/data/abg_coqa_val.jsonl.gz"
    if not data.exists():
        pytest.skip("the Abg-CoQA file is not beside this checkout")
    monkeypatch.setenv("MINICOLLAB_CACHE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path, [], path=str(data), eval=10)
    first, again = (CliRunner().invoke(ambiguity, [str(path), "--json"]) for _ in range(2))
    assert (first.exit_code, again.exit_code) == (0, 0), (first.exception, again.exception)
    results = [json.loads(each.stdout) for each in (first, again)]
    costs = [result.pop("cost") for result in results]
    assert results[0] == results[1] and list(results[0]["arms"]) == ["base", "proactive"]
    assert costs[0]["generated_tokens"] > 0 and costs[0]["cache_misses"] > 10
    assert (costs[1]["generated_tokens"], costs[1]["prompt_tokens_computed"]) == (0, 0)

    with open("runs/small/ambiguity_replies.jsonl", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    judged = sum("?" in row["reply"] for row in rows)
    assert (costs[1]["cache_hits"], costs[1]["cache_misses"]) == (20 + judged, 0)
    assert len(rows) == 20 and all(r["reply"] and r["action"] for r in rows)
    base = [r for r in rows if r["arm"] == "base" and not r["ambiguous"]]
    answered = sum(r["action"] == "answers" for r in base) / len(base)
    assert results[0]["arms"]["base"]["accuracy_clear"]["value"] == pytest.approx(answered)

    told = CliRunner().invoke(ambiguity, [str(path)])
    assert "macro F1" in told.stdout and str(tmp_path / "runs/small/ambiguity.json") in told.stdout
