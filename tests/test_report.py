"""The report of a small made-up run."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from minicollab.errors import RunError
from minicollab.recipe import Pairs
from minicollab.report import explorer, figures, write_report
from minicollab.report.reading import KEPT, read, turns
from tests.synthetic_run import ARMS, NASTY, write_jsonl, write_run

_VOID = {"meta", "link", "br", "input", "path", "use"}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("page") / "run"
    write_run(folder)
    return _page(folder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_run(tmp_path / "run")
    return tmp_path / "run"


def _page(folder: Path) -> str:
    return write_report(folder, folder / "report.html").read_text("utf-8")


def _data(packed: str) -> Any:
    return json.loads(gzip.decompress(base64.b64decode(packed)))


def _edit(path: Path, edit: Any) -> None:
    rows = [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]
    write_jsonl(path, [edit(number, row) for number, row in enumerate(rows)])


def test_holds_the_figures(folder: Path, page: str) -> None:
    page = re.sub(r"\s+", " ", page)
    evaluation = json.loads((folder / "eval.json").read_text())
    assert figures.headline(evaluation, "base") in page
    for metric, mean in evaluation["arms"]["trained"].items():
        assert f"> {mean:.3f}<small>" in page or f">{mean:.3f}<small>" in page, metric
    low = evaluation["differences"]["trained-base"]["mr"]["low"]
    assert f"<small>{figures.signed(low)} to " in page
    for text in ("2 min 41 s", "10 min 45 s", "49,380", "20 of 400", "812 MB", "1 of 160 candidates"):
        assert text in page, text
    assert "0% of the plain candidates, 50% of the proactive candidates" in page
    pairs = (folder / "pairs.jsonl").read_text().count("\n")
    assert f"{pairs} pairs were kept from 40 turns" in page
    assert "Conversations without a score: 1, the first because no verdict" in page
    assert page.count("An interval from so few tasks is too narrow.") == 1


def _evaluation(low: float, high: float) -> dict[str, Any]:
    mr = {"mean": (low + high) / 2, "low": low, "high": high}
    return {"tasks": 12, "differences": {"trained-base": {"mr": mr}}}


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (0.1, 0.3, "Training raised MR by 0.200 against base on 12 held-out tasks (95% interval +0.100 to"),
        (-0.3, -0.1, "Training lowered MR by 0.200 against base"),
        (-0.1, 0.3, "No effect seen against base: MR +0.100 on 12 held-out tasks"),
        (0.0, 0.2, "No effect seen"),
    ],
)
def test_the_verdict(low: float, high: float, said: str) -> None:
    assert figures.headline(_evaluation(low, high), "base").startswith(said)


def test_arms_are_averaged_as_in_the_evaluation(folder: Path) -> None:
    found = read(folder)
    assert found.evaluation
    means = found.evaluation["arms"]
    arms = figures.by_arm(found.played, means["base"])
    for metric, row in arms.items():
        for arm, estimate in row.items():
            assert estimate.mean == pytest.approx(means[arm][metric])
            assert estimate.low <= estimate.mean <= estimate.high


def test_estimates_average_a_task_before_the_tasks() -> None:
    found = figures.estimate([("a", 0.0), ("b", 1.0), ("b", 1.0), ("b", 1.0)])
    assert (found.mean, found.low, found.high) == (0.5, 0.0, 1.0)


def test_metrics_by_style_and_turn(folder: Path) -> None:
    found = figures.by_turn(read(folder).rollouts)
    assert list(found) == ["mr", "goal_coverage", "interactivity", "tokens_typed", "turns", "tokens_read_k"]
    assert {style: list(row) for style, row in found["mr"].items()} == {"plain": [1, 2], "proactive": [1, 2]}
    assert found["turns"]["plain"][1] == figures.Estimate(4.0, 4.0, 4.0)


def _row(mr: float | None, task: str = "t") -> dict[str, Any]:
    return {"task_id": task, "turn": 0, "mr": mr}


def test_why_a_turn_has_no_pair() -> None:
    def outcome(options: Pairs, *mrs: float | None) -> str:
        return turns([_row(mr) for mr in mrs], [], options)[0].outcome

    assert outcome(Pairs(min_gap=0.05), 0.5, None) == "fewer than two scored candidates"
    assert outcome(Pairs(min_gap=0.05), 0.5, 0.52) == "a gap below 0.05"
    assert outcome(Pairs(min_gap=0), 0.5, 0.5) == "equal scores"
    assert outcome(Pairs(min_gap_se=2), 0.5, 0.9) == "a gap below 2 of its standard errors"
    pair = {"task_id": "t", "turn": 0}
    assert turns([_row(0.1), _row(0.2)], [pair], Pairs())[0].outcome == KEPT


def test_texts_are_data_and_nothing_is_fetched(folder: Path) -> None:
    def fail(_: int, row: Any) -> Any:
        return row | {"failure": row["failure"] and NASTY}

    _edit(folder / "eval_conversations.jsonl", fail)
    page = _page(folder)
    assert len(re.findall(r"<script", page)) == 2 and "<img" not in page
    assert "{{ recipe }}" in page, "a failure is not a template"
    assert not re.search(r"""<[a-z][^>]*\s(?:src|href)\s*=\s*["']?(?!["']?(?:#|data:,))""", page)
    assert "url(http" not in page and "@import" not in page


def test_only_its_own_script_may_run(page: str) -> None:
    *_, script = re.findall(r"<script>(.*?)</script>", page, re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy and f"script-src 'sha256-{digest}'" in policy[1] and "default-src 'none'" in policy[1]
    assert "innerHTML" not in script and "document.write" not in script


def test_is_well_formed(page: str) -> None:
    class Nesting(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.open: list[str] = []

        def handle_starttag(self, tag: str, attrs: Any) -> None:
            if tag not in _VOID:
                self.open.append(tag)

        def handle_endtag(self, tag: str) -> None:
            if tag not in _VOID:
                assert self.open.pop() == tag

    parser = Nesting()
    parser.feed(page)
    assert parser.open == []


@pytest.mark.slow
def test_same_files_same_bytes(folder: Path, page: str) -> None:
    assert _page(folder) == page
    assert not list(folder.glob(".partial-*"))


def test_both_colour_schemes_reach_the_charts(page: str) -> None:
    svgs = re.findall(r"<svg.*?</svg>", page, re.S)
    assert len(svgs) == 6 + 1 + 2 + 3, "metrics, a question by reply, pairs, training"
    for svg in svgs:
        assert "var(--quiet)" in svg
        assert not re.search(r"(?:fill|stroke): (?:#0|black)", svg), "black would be lost on dark paper"


def test_the_explorer_has_everything_once(folder: Path) -> None:
    text, left_out = explorer.packed(read(folder))
    data = _data(text)
    assert left_out == 0 and len(set(data["texts"])) == len(data["texts"])
    assert any(NASTY in text for text in data["texts"])
    first, second = data["training"][0]["turns"][0]["candidates"][:2]
    assert first["mr"] is None and first["failures"] and len(first["futures"]) == 1
    rows = [json.loads(line) for line in (folder / "rollouts.jsonl").read_text().split("\n") if line]
    assert data["texts"][second["text"]] == rows[1]["candidate"]
    assert second["mr"] == round(rows[1]["mr"], 4) and second["se"] == round(rows[1]["se"], 4)
    judged = [round(answer, 4) for answer in rows[1]["futures"][1]["judgements"]["asks"]]
    assert second["futures"][1]["judgements"]["asks"] == judged
    sides = [c["side"] for c in data["training"][5]["turns"][1]["candidates"]]
    assert sorted(sides) == ["", "", "chosen", "rejected"]
    assert [sorted(sample) for sample in data["heldout"][3]["samples"]] == [sorted(ARMS)] * 2
    assert "failure" in data["heldout"][3]["samples"][0]["proactive"]


def test_training_tasks_are_left_out_of_a_page_that_would_be_too_big(folder: Path) -> None:
    found = read(folder)
    whole, _ = explorer.packed(found)
    text, left_out = explorer.packed(found, limit=len(whole) * 2 // 3)
    assert len(text) <= len(whole) * 2 // 3 and left_out == 10
    assert len(_data(text)["training"]) == 10 and len(_data(text)["heldout"]) == 8


@pytest.mark.slow
def test_no_scored_candidate_and_no_pair(folder: Path) -> None:
    _edit(folder / "rollouts.jsonl", lambda _, row: row | {"mr": None, "se": None})
    (folder / "pairs.jsonl").write_text("")
    page = _page(folder)
    assert "0 pairs were kept" in page and "40 with fewer than two scored candidates" in page


def test_a_run_that_was_only_simulated(folder: Path) -> None:
    journal = json.loads((folder / "run.json").read_text())
    journal["stages"] = {"simulate": journal["stages"]["simulate"]}
    (folder / "run.json").write_text(json.dumps(journal))
    page = _page(folder)
    assert "Not evaluated yet" in page and "Not finished yet: train, export and eval." in page
    assert "No training curves yet." in page and page.count("<svg") == 6 + 2


def test_a_stage_that_was_interrupted_is_not_finished(folder: Path) -> None:
    journal = json.loads((folder / "run.json").read_text())
    journal["stages"]["export"]["inputs"] = ""  # run.begin
    (folder / "run.json").write_text(json.dumps(journal))
    assert read(folder).undone == ["export"]


@pytest.mark.slow
def test_rows_of_older_versions(folder: Path) -> None:
    new = ("se", "cut", "judgements", "extracted")

    def older(_: int, row: Any) -> Any:
        futures = [{k: v for k, v in f.items() if k not in new} for f in row.get("futures", ())]
        return {k: v for k, v in row.items() if k not in new} | ({"futures": futures} if futures else {})

    _edit(folder / "rollouts.jsonl", older)
    _edit(folder / "eval_conversations.jsonl", older)
    assert "pairs were kept from 40 turns" in _page(folder)


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("eval.json", "eval"),
        ("eval_conversations.jsonl", "eval"),
        ("rollouts.jsonl", "simulate"),
        ("pairs.jsonl", "simulate"),
        ("run.json", "simulate"),
        ("recipe.yaml", "run"),
    ],
)
def test_a_missing_file_names_the_stage(folder: Path, name: str, stage: str) -> None:
    (folder / name).unlink()
    with pytest.raises(RunError) as error:
        write_report(folder, folder / "report.html")
    assert name in error.value.what and f"minicollab {stage} " in error.value.remedy
    assert not (folder / "report.html").exists()


def test_a_broken_file_is_named(folder: Path) -> None:
    with open(folder / "rollouts.jsonl", "a") as file:
        file.write('{"task_id": ')
    with pytest.raises(RunError, match=r"rollouts\.jsonl is broken.*minicollab simulate"):
        write_report(folder, folder / "report.html")


@pytest.mark.slow
def test_cut_conversations_are_counted_where_there_are_any(folder: Path, page: str) -> None:
    assert "without the oldest exchanges" not in page

    def cut(number: int, row: Any) -> Any:
        futures = [future | {"cut": {"judge": 2}} for future in row.get("futures", ())]
        return row | {"futures": futures, "cut": {"policy": 4}} if number == 1 else row

    _edit(folder / "rollouts.jsonl", cut)
    _edit(folder / "eval_conversations.jsonl", cut)
    notes = re.findall(r"without the oldest exchanges: (\d+)\.", _page(folder))
    assert notes == ["1", "2"]


def test_costs_leave_the_report_itself_out() -> None:
    cost = {"seconds": 1.0, "peak_memory_mb": 5.0}
    stages = {"report": {"computed": cost}, "eval": {"computed": cost}, "simulate": {"computed": cost}}
    stages["train"] = {"computed": cost | {"energy_wh": 2.5}}
    rows = figures.costs(stages)
    assert [row["stage"] for row in rows] == ["simulate", "train", "eval", "all"]
    assert rows[-1] == {"stage": "all", "seconds": 3.0, "peak_memory_mb": 5.0, "energy_wh": 2.5}
