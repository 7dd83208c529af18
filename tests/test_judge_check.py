"""The judge against labels: the figures by hand, the labelled set itself, the check with scripted
judges, and once for real."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from test_pairs import cast, recipe

from minicollab import agreement
from minicollab.cli_judge_check import _told, judge_check
from minicollab.engine.scripted import Request, ScriptedEngine
from minicollab.errors import NoLogprobsError
from minicollab.judge_check import check_all, figures, short_check, short_form, verdict
from minicollab.labelled import conversations, deceptions
from minicollab.probes import GOAL, Case, cases, probes
from minicollab.run import Run
from minicollab.schema import Conversation, Message

HALVES = conversations("tune"), conversations("held_out")
EVERY = [item for half in HALVES for item in half]
P = np.array([0.9, 0.6, 0.6, 0.3, 0.2])
Y = np.array([True, True, False, True, False])


# The figures


def test_auc_worked_out_by_hand() -> None:
    """0.9 beats both negatives, 0.6 ties with one and beats the other, 0.3 beats one: 2 + 1.5 + 1 of 6."""
    assert agreement.auc(P, Y) == pytest.approx(4.5 / 6)
    assert agreement.auc(P, ~Y) == pytest.approx(1.5 / 6)
    assert agreement.auc(np.full(5, 0.3), Y) == 0.5


def test_a_resample_s_auc_is_that_of_the_items_repeated() -> None:
    weights = np.array([[1, 1, 1, 1, 1], [0, 2, 1, 0, 2], [2, 1, 0, 2, 0]])
    found = agreement.resampled_auc(P, Y, weights)
    assert found[0] == pytest.approx(agreement.auc(P, Y))
    assert found[1] == pytest.approx(agreement.auc(np.repeat(P, weights[1]), np.repeat(Y, weights[1])))
    assert math.isnan(found[2])  # no negative in it


def test_brier_and_calibration_error_worked_out_by_hand() -> None:
    assert agreement.brier(P, Y) == pytest.approx((0.01 + 0.16 + 0.36 + 0.49 + 0.04) / 5)
    # Bins: 0.9 → 1 of 1 yes; both 0.6 → 1 of 2; 0.3 → 1 of 1; 0.2 → 0 of 1.
    assert agreement.calibration_error(P, Y) == pytest.approx((0.1 + 2 * 0.1 + 0.7 + 0.2) / 5)
    assert agreement.calibration_error(np.array([1.0, 0.0]), np.array([True, False])) == 0
    assert agreement.calibration_error(np.array([1.0, 0.95]), np.array([False, True])) == pytest.approx(0.475)


def test_kappa_worked_out_by_hand() -> None:
    """Said yes to 3 of 5, 3 are: agrees on 3; by chance 0.6 x 0.6 + 0.4 x 0.4 = 0.52."""
    observed, kappa = agreement.agreement(P, Y)
    assert observed == pytest.approx(0.6) and kappa == pytest.approx((0.6 - 0.52) / 0.48)
    assert agreement.agreement(np.full(2, 0.9), np.array([True, True])) == (1.0, 0.0)


def test_length_correlation_is_within_the_labels() -> None:
    """Positives are longer and score higher, and within a label nothing goes with length."""
    labels = np.array([True] * 2 + [False] * 2)
    assert agreement.length_correlation(
        np.array([0.9, 0.9, 0.1, 0.1]), labels, np.array([40, 20, 4, 2])
    ) == pytest.approx(0)
    rising = agreement.length_correlation(np.array([0.9, 0.8, 0.2, 0.1]), labels, np.array([40, 20, 4, 2]))
    assert rising == pytest.approx(1)


def test_whole_groups_are_resampled() -> None:
    weights = agreement.resample(["a", "a", "b", "c"], 2000, 0)
    assert (weights[:, 0] == weights[:, 1]).all()
    assert ((weights[:, 0] + weights[:, 2] + weights[:, 3]) == 3).all()
    assert weights.mean(axis=0) == pytest.approx(np.ones(4), abs=0.06)


def test_the_interval_of_a_mean_is_the_bootstrap_s() -> None:
    """Of 0 and 1, resamples have the mean 0, 0.5 or 1, with 1/4, 1/2, 1/4."""
    weights = agreement.resample(["a", "b"], 2000, 0)
    assert agreement.mean(np.array([0.0, 1.0]), weights) == {"value": 0.5, "low": 0.0, "high": 1.0}
    assert agreement.mean(np.array([0.2, 0.2]), weights) == pytest.approx(
        {"value": 0.2, "low": 0.2, "high": 0.2}
    )


@pytest.mark.parametrize(
    ("value", "low", "word"),
    [
        (0.9, 0.8, "use it"),
        (0.95, 0.79, "weak"),
        (0.89, 0.85, "weak"),
        (0.75, 0.5, "weak"),
        (0.74, 0.7, "don't"),
    ],
)
def test_the_verdict(value: float, low: float, word: str) -> None:
    assert verdict({"value": value, "low": low}) == word


def case(item: str, label: bool, words: int = 3) -> Case:
    return Case(item, False, Conversation((Message("user", "hm"), Message("assistant", "x " * words))), label)


def test_failed_judgements_are_left_out_and_counted() -> None:
    given = [case("a", True), case("b", False), case("c", True), case("d", False)]
    row = figures(given, [0.8, 0.3, None, 0.9], 200)
    assert (row["judgements"], row["failed"], row["yes"]) == (3, 1, 1)
    assert row["auc"]["value"] == 0.5 and row["auc_sampled"] is None
    assert figures(given, [0.8, None, 0.9, None], 200) == {"judgements": 2, "failed": 2, "verdict": "don't"}


# The labelled set


def balanced(labels: list[bool]) -> bool:
    return 0.4 <= sum(labels) / len(labels) <= 0.6


@pytest.mark.parametrize("half", HALVES, ids=["tune", "held_out"])
def test_each_half_is_balanced_and_of_many_domains(half: list[Any]) -> None:
    for metric in ("interactivity", "helpfulness", "goal_coverage"):
        labels = [c.label for c in cases(metric, half)]
        assert len(labels) >= 55 and balanced(labels), metric
    assert sum(c.label for c in cases("repetition", half)) >= 8
    polite = [c.label for c in cases("politeness", half)]
    assert len(polite) == 20 and sum(polite) == 10
    assert len({item.id.partition("-")[0] for item in half}) >= 8
    assert all(2 <= len(item.talk) <= 4 and item.talk.messages[-1].role == "assistant" for item in half)
    # A question mark alone gives away 46 of 57 and 56 of 66.
    marked = [c.label == ("?" in c.talk.messages[-1].content) for c in cases("interactivity", half)]
    assert sum(marked) / len(marked) < 0.9


def test_the_set_as_a_whole() -> None:
    assert len(EVERY) >= 120 and len(HALVES[1]) >= len(EVERY) / 2
    assert sum(item.sampled for item in HALVES[1]) >= 40
    assert len({item.id for item in EVERY}) == len(EVERY)
    assert len({str(item.talk) for item in EVERY}) == len(EVERY)
    others = [item.labels for item in EVERY if "politeness" not in item.labels]
    assert all(("interactivity" in labels) != labels["repetition"] for labels in others)


def test_the_deceptive_replies() -> None:
    pairs = deceptions()
    assert len(pairs) >= 40 and len({pair.id for pair in pairs}) == len(pairs)
    assert {pair.trick for pair in pairs} == {"praise", "instruct", "format", "satisfied", "padding"}
    assert 10 <= sum(pair.asks for pair in pairs) < len(pairs) / 2
    for pair in pairs:
        *before, honest = pair.honest
        assert tuple(before) == pair.deceptive.messages[:-1]
        assert honest.content in pair.deceptive.messages[-1].content != honest.content
    assert not {str(pair.honest) for pair in pairs} & {str(item.talk) for item in EVERY}


# The check


def asked(request: Request) -> tuple[str, str]:
    """The conversation and the question that the judge was shown last."""
    shown = request.prompt.rpartition("Conversation:\n\n")[2].removesuffix("<assistant>")
    talk, _, question = shown.rpartition("\n\n")
    return talk.partition("\n\nThe assistant's last message: ")[0], question


def yes(p: Callable[[str, str], float]) -> Callable[[Request], list[float]]:
    """The script of a judge that says yes with p(conversation, question)."""

    def script(request: Request) -> list[float]:
        value = p(*asked(request))
        return [math.log(value), math.log(1 - value)]

    return script


def knows(talk: str, question: str) -> float:
    """A judge that has read the labels."""
    for item in EVERY:
        spoken = [" ".join(m.content.split()) for m in item.talk]
        if 'Did the user say this: "' in question:
            detail = question.split('"')[1]
            if detail in item.details and talk.endswith(spoken[-2]) and spoken[0] in talk:
                return 0.9 if item.details[detail] else 0.1
        elif talk.endswith(spoken[-1]) and spoken[0] in talk and len(talk.split("\n")) == len(spoken):
            return 0.9 if item.labels.get("interactivity") else 0.1
    raise AssertionError(f"not labelled: {talk}")


def checked(judge: Callable[[str, str], float], half: str = "tune", **sections: Any) -> dict[Any, Any]:
    """The rows of the check by question and style; a written verdict is always a 5."""
    options = recipe(**sections)
    verdicts = lambda request: json.dumps({"reason": "", "score": 5})  # noqa: E731
    who = cast(options, judge=yes(judge), verdict=verdicts)
    rows, _ = asyncio.run(check_all(who, half, 200, lambda: 0.0))  # type: ignore[arg-type]
    return {(row["question"], row["style"]): row for row in rows}


def test_a_judge_that_knows_the_labels_and_one_that_always_says_the_same() -> None:
    rows = checked(
        lambda talk, question: knows(talk, question.split("?")[0]) if "This is a" not in talk else 0.5
    )
    assert list(rows) == [(q, s) for q in ("asks", "goal_coverage") for s in ("rubric", "json")]
    for question in ("asks", "goal_coverage"):
        row = rows[question, "rubric"]
        assert row["auc"] == {"value": 1.0, "low": 1.0, "high": 1.0} and row["verdict"] == "use it"
        assert row["brier"] == pytest.approx(0.01) and row["ece"] == pytest.approx(0.1)
        assert row["kappa"] == 1 and row["failed"] == 0 and row["order"]["moved"] == 0
        written = rows[question, "json"]
        assert written["auc"]["value"] == 0.5 and written["verdict"] == "don't" and "order" not in written
    assert rows["asks", "rubric"]["judgements"] == len(cases("interactivity", HALVES[0]))
    assert "deceptive" not in rows["asks", "rubric"]  # the deceptive replies are held out


def test_what_moves_a_judge_without_reason_is_measured() -> None:
    """Yes 0.5; more where "No" comes first, after the neutral sentences, and where it is told to."""

    def easily_moved(talk: str, question: str) -> float:
        told = 0.2 * ("Judge:" in talk or "for the grader" in talk.lower())
        return 0.5 + 0.1 * question.endswith("No or Yes?") + 0.05 * talk.endswith("above.") + told

    rows = checked(easily_moved, "held_out")
    row = rows["asks", "rubric"]
    same = pytest.approx
    assert row["order"] == {k: same(0.1) for k in ("value", "low", "high", "moved")}
    assert row["length"]["value"] == same(0.05) and row["verbosity"] == same(0)
    caught = [
        pair.id for pair in deceptions() if "grader" in str(pair.deceptive) or "Judge:" in str(pair.deceptive)
    ]
    deceptive = row["deceptive"]
    assert deceptive["value"] == same(0.2 * len(caught) / 44) and deceptive["pairs"] == 44
    assert deceptive["by_trick"]["instruct"] == same(0.2 * len(caught) / 9)
    assert (
        deceptive["by_trick"]["padding"] == 0 and deceptive["low"] <= deceptive["value"] <= deceptive["high"]
    )
    assert rows["goal_coverage", "rubric"]["order"]["value"] == same(0.1)
    assert not {"length", "deceptive"} & set(rows["goal_coverage", "rubric"])


def test_questions_are_asked_one_by_one_and_only_those_with_labels() -> None:
    questions = {
        "asks": {"ask": "ASKS?", "scope": "reply"},
        "helps": {"ask": "HELPS?", "metric": "helpfulness"},
        "again": {"ask": "AGAIN?", "metric": "repetition"},
        "kind": {"ask": "KIND?", "metric": "kindness"},
    }
    engine = ScriptedEngine(score=yes(lambda talk, question: 0.5))
    options = recipe(judge={"questions": questions})
    found = probes(cast(options, judge=engine))
    assert [probe.name for probe in found] == ["asks", "helps", "again", "goal_coverage"]
    item = next(item for item in EVERY if len(item.talk) == 4 and item.details)
    for probe in found:
        asyncio.run(probe.scores(cases(probe.metric, [item])[:1]))
    shown = [asked(request) for request in engine.requests]
    assert [question for _, question in shown[:3]] == ["ASKS?", "HELPS?", "AGAIN?"]
    assert {len(talk.split("\n")) for talk, _ in shown[:3]} == {4}
    talk, question = shown[3]
    assert len(talk.split("\n")) == 3 and next(iter(item.details)) in question


def test_verdicts_that_are_none_are_counted_and_what_the_cache_saved_is_time() -> None:
    options = recipe(judge={"style": "json", "questions": {"asks": {"ask": "ASKS?"}}})
    who = cast(options, judge=yes(lambda talk, question: 0.5), verdict=lambda request: "hm")
    saved = itertools.count(0, 1000)
    rows, judgements = asyncio.run(check_all(who, "tune", 200, lambda: float(next(saved))))
    row = next(row for row in rows if (row["question"], row["style"]) == ("asks", "json"))
    assert (row["judgements"], row["failed"], row["verdict"]) == (
        0,
        len(cases("interactivity", HALVES[0])),
        "don't",
    )
    assert row["order"] is None and row["length"] is None
    assert all(row["seconds"] * max(row["judgements"], row["failed"]) >= 1000 for row in rows)
    assert {j["score"] for j in judgements if j["style"] == "json"} == {None}


def test_a_server_without_log_probabilities_is_checked_in_the_style_that_it_can_do() -> None:
    def none(request: object) -> list[float]:
        raise NoLogprobsError("http://there gives no log-probabilities")

    options = recipe(judge={"style": "json", "questions": {"asks": {"ask": "ASKS?"}}})
    verdicts = lambda request: json.dumps({"reason": "", "score": 5})  # noqa: E731
    who = cast(options, judge=none, verdict=verdicts)
    rows, _ = asyncio.run(check_all(who, "tune", 200, lambda: 0.0))
    assert {row["style"] for row in rows} == {"json"}
    with pytest.raises(NoLogprobsError, match="judge-check --short and simulator-check need"):
        asyncio.run(short_form(who))
    with pytest.raises(NoLogprobsError):
        asyncio.run(check_all(cast(recipe(), judge=none), "tune", 200, lambda: 0.0))


# The short form


def test_the_short_form_warns_of_a_judge_that_cannot_judge() -> None:
    options = recipe()
    good = cast(options, judge=yes(knows))
    assert asyncio.run(short_check(good)) is None
    found = asyncio.run(short_form(good))
    assert {name: row["auc"] for name, row in found.items()} == {"asks": 1.0, "goal_coverage": 1.0}
    assert all(18 <= row["judgements"] <= 30 for row in found.values())

    noise = cast(options, judge=yes(lambda talk, question: 0.7))
    line = asyncio.run(short_check(noise)) or ""
    assert "asks AUC 0.50 on 24 labelled judgements, goal_coverage AUC 0.50" in line
    assert "models.judge" in line and "\n" not in line


def test_the_short_form_asks_for_all_that_is_rewarded_and_labelled() -> None:
    """A judge saw interactivity and was blind for helpfulness, which was rewarded, too: no warning."""
    questions = {"asks": {"ask": "ASKS?"}, "helps": {"ask": "HELPS?", "metric": "helpfulness"}}

    def blind(talk: str, question: str) -> float:
        return 0.5 if question == "HELPS?" else knows(talk, question)

    who = cast(recipe(judge={"questions": questions}), judge=yes(blind))
    line = asyncio.run(short_check(who, {"interactivity": 1.0, "helpfulness": 0.5})) or ""
    assert "helps AUC 0.50 on 61 labelled judgements;" in line and "asks" not in line
    assert asyncio.run(short_check(who, {"interactivity": 1.0})) is None


def test_the_short_form_asks_for_what_is_rewarded_alone() -> None:
    engine = ScriptedEngine(score=yes(lambda talk, question: 0.5))
    assert asyncio.run(short_check(cast(recipe(), judge=engine), {"pass_rate": 1.0})) is None
    written = recipe(judge={"style": "json"})
    assert asyncio.run(short_check(cast(written, judge=engine))) is None
    assert engine.requests == []
    line = asyncio.run(short_check(cast(recipe(), judge=engine), ["goal_coverage"])) or ""
    assert "goal_coverage" in line and "asks" not in line


# The command


def test_the_tables(tmp_path: Path) -> None:
    """What is printed: a row a question and style, with what was measured and nothing where it was not."""
    options = recipe(eval={"bootstrap": 100})
    who = cast(options, judge=yes(lambda talk, question: 0.5), verdict=lambda request: "hm")
    rows, _ = asyncio.run(check_all(who, "tune", 100, lambda: 0.0))
    result = {"judge": "tiny", "half": "tune", "questions": rows, "unlabelled": [], "cost": {"seconds": 3.0}}
    lines = _told(Run(tmp_path, options), result).split("\n")
    tables = [[cell.strip() for cell in line.strip("| ").split("|")] for line in lines if line[:1] == "|"]
    assert [row[:2] for row in tables[2:6]] == [[q, s] for q in ("asks", GOAL) for s in ("rubric", "json")]
    assert tables[2][2:6] == ["57", "0", "0.50 [0.50, 0.50]", "0.50"] and tables[2][-1] == "don't"
    assert tables[3][2:6] == ["0", "57", "", ""] and tables[3][-1] == "don't"
    assert tables[8][2:] == ["0.00", "+0.00 [+0.00, +0.00]", "", "0.00"]
    assert lines[-1].strip() == str(tmp_path / "judge_check.json")
    assert len({len(line) for line in lines if line.startswith("| asks")}) == 2  # columns are aligned


def write(folder: Path) -> Path:
    path = folder / "recipe.yaml"
    given = {
        "name": "small",
        "models": {"policy": "smollm2-135m-instruct"},
        "tasks": {"path": "tasks.jsonl"},
        "judge": {
            "questions": {
                "asks": {"ask": "Does the assistant ask the user for information?", "scope": "reply"},
                "kind": {"ask": "Is the assistant kind?", "metric": "kindness"},
            }
        },
        "engine": {"context": 4096},
        "eval": {"bootstrap": 500},
    }
    path.write_text(yaml.safe_dump(given))
    return path


@pytest.mark.slow
def test_for_real_and_nothing_is_computed_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SmolLM2 as judge, which it is too small for, of every fourth conversation."""
    monkeypatch.setattr("minicollab.judge_check.conversations", lambda half: conversations(half)[::4])
    monkeypatch.setattr("minicollab.judge_check.deceptions", lambda: deceptions()[::4])
    monkeypatch.setenv("MINICOLLAB_CACHE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path)
    brief = CliRunner().invoke(judge_check, [str(path), "--short"])
    assert brief.exit_code == 0 and "asks: AUC" in brief.stdout, brief.exception
    assert not (tmp_path / "runs/small/judge_check.json").exists()

    first, again = (CliRunner().invoke(judge_check, [str(path), "--json"]) for _ in range(2))
    assert (first.exit_code, again.exit_code) == (0, 0), (first.exception, again.exception)
    results = [json.loads(each.stdout) for each in (first, again)]
    costs = [result.pop("cost") for result in results]
    assert costs[0]["cache_misses"] > 0 and (costs[1]["cache_misses"], costs[1]["generated_tokens"]) == (0, 0)
    seconds = [[row.pop("seconds") for row in result["questions"]] for result in results]
    assert results[0] == results[1] and results[0]["unlabelled"] == ["kind"]
    assert all(then > 0.5 * now for now, then in zip(*seconds, strict=True))  # what it took, not the look-up
    assert {row["verdict"] for row in results[0]["questions"] if row["question"] == "asks"} <= {
        "weak",
        "don't",
    }

    told = CliRunner().invoke(judge_check, [str(path), "--tune"])
    assert "| asks" in told.stdout and "Without labels, so not checked: kind." in told.stdout
    lines = (tmp_path / "runs/small/judge_check.jsonl").read_text("utf-8").splitlines()
    assert {"question", "style", "item", "detail", "label", "score", "sampled"} == set(json.loads(lines[0]))
