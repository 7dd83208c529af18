"""`make torture` in short: a kill in each stage, and every disaster that takes seconds. And that the
harness would notice what it looks for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.torture.__main__ import DISASTERS, PAGE, tried
from tests.torture.findings import BEGIN, END, Finding, table, tidied, write, wrong
from tests.torture.kills import Kill, kills, store_faults
from tests.torture.world import Outcome, World

# What `make torture` runs, with a tenth of the answers: slow processors run this, too.
SMALLER = {
    "propose": {"candidates": 2},
    "simulate": {"exchanges": 1, "futures": 1},
    "judge": {"questions": {"asks": {"ask": "Does the assistant ask a question?", "scope": "reply"}}},
    "eval": {"samples": 1, "exchanges": 1},
}
SHORT = sorted(DISASTERS.keys() - {"many-rows", "overhead", "warm"})  # those are measurements


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with closing(World(tmp_path_factory.mktemp("torture"), **SMALLER)) as world:
        yield world


@pytest.mark.slow
def test_a_kill_in_each_stage(world: World) -> None:
    assert kills(world, 4).faults == []


@pytest.mark.slow
@pytest.mark.parametrize("name", SHORT)
def test_a_disaster(world: World, name: str) -> None:
    finding = tried(world, name)
    if not finding.tried:
        pytest.skip(finding.happened)
    assert finding.faults == [], finding.happened


def test_answers_lost_or_computed_again_are_noticed() -> None:
    kill = Kill("train", False, {"a": 1.0, "b": 2.0})
    whole = {"a": 1.0, "b": 2.0, "c": 3.0}
    assert store_faults([kill], whole, whole) == []
    assert store_faults([kill], whole | {"b": 2.5}, whole) == [
        "killed in train: 0 answers lost, 1 computed again"
    ]
    lost, other = store_faults([kill], {"a": 1.0, "c": 3.0}, whole)
    assert lost == "killed in train: 1 answers lost, 0 computed again" and "undisturbed" in other
    assert len(store_faults([], whole | {"d": 4.0}, whole)) == 1


def test_what_counts_as_a_refusal() -> None:
    assert Outcome(5, "", "a warning\nminicollab: no. Do this.\n").refused
    assert not Outcome(0, "", "minicollab: no. Do this.\n").refused
    assert not Outcome(1, "", "Traceback (most recent call last):\n").refused
    assert not Outcome(5, "", "minicollab: no.\nminicollab: and again no.\n").refused
    assert not Outcome(-9, "", "").refused
    assert wrong(one_thing=False, other=True) == ["one thing"]


def test_the_table_is_put_between_the_markers(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n", "utf-8")
    findings = [
        Finding("a | b", "said:\nthis"), Finding("c", "d", faults=["torn"]), Finding("e", "f", tried=False)
    ]  # fmt: skip
    write(page, table(findings, "make it"))
    first, *_, last = page.read_text("utf-8").splitlines()
    assert (first, last) == ("before", "after")
    written = page.read_text("utf-8")
    assert "old" not in written and "`make it`" in written
    assert "| a \\| b | said: this | nothing | as promised |" in written
    assert "| c | d | nothing | torn |" in written and "| e | f | nothing | not tried |" in written


def test_what_differs_between_machines_is_left_out(tmp_path: Path) -> None:
    assert tidied(f"{tmp_path}/run has no row {'ab' * 32}", tmp_path) == "run has no row abababab…"


def test_the_page_has_its_markers() -> None:
    page = PAGE.read_text("utf-8")
    assert page.count(BEGIN) == page.count(END) == 1 and page.index(BEGIN) < page.index(END)
