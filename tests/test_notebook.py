"""quickstart.ipynb: what is kept in it is its own, of no machine, and what it gives when it is executed."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.notebook import NOTEBOOK, execute, sources

# A path with two parts or more; not a part of HTML, of a URL or of "and/or".
_ABSOLUTE = re.compile(r"(?<![\w./<~-])(?:file://|[A-Z]:\\|~/|/[\w.-]+/[\w.-]+)")


@pytest.fixture(scope="module")
def kept() -> dict[str, Any]:
    return dict(json.loads(NOTEBOOK.read_text("utf-8")))


def code(notebook: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def texts(notebook: Mapping[str, Any]) -> dict[str, str]:
    """What each code cell printed or shows as text, by its id."""
    found = {}
    for cell in code(notebook):
        parts = [output.get("text", "") for output in cell["outputs"]]
        for output in cell["outputs"]:
            parts += [value for kind, value in output.get("data", {}).items() if kind.startswith("text/")]
        found[cell["id"]] = "\n".join("".join(part) for part in parts)
    return found


def faults(notebook: Mapping[str, Any]) -> list[str]:
    """What must not be kept: errors, warnings, and paths of the machine."""
    outputs = [(cell["id"], output) for cell in code(notebook) for output in cell["outputs"]]
    wrong = [f"{name}: an error" for name, output in outputs if output["output_type"] == "error"]
    wrong += [f"{name}: {output['text']}" for name, output in outputs if output.get("name") == "stderr"]
    for name, text in texts(notebook).items():
        wrong += [f"{name}: {path[0]}" for path in _ABSOLUTE.finditer(text)]
    return wrong


@pytest.mark.parametrize("text", ["in /home/a/x.py", "'/tmp/r'", "=/srv/a/runs", "~/x", "C:\\x", "file://x"])
def test_paths_are_found(text: str) -> None:
    assert _ABSOLUTE.search(text)


@pytest.mark.parametrize("text", ["runs/notebook/pairs.jsonl", "<td>1</td></tr>", "and/or", "8/12", "1 / 2"])
def test_what_is_no_path_is_let_through(text: str) -> None:
    assert not _ABSOLUTE.search(text)


def test_the_outputs_are_of_these_cells_in_order(kept: dict[str, Any]) -> None:
    assert kept["metadata"].get("minicollab") == {"sources": sources(kept)}, "run: make notebook"
    assert [cell["execution_count"] for cell in code(kept)] == list(range(1, len(code(kept)) + 1))
    assert any("image/png" in output.get("data", {}) for cell in code(kept) for output in cell["outputs"])


def test_the_outputs_are_of_no_machine(kept: dict[str, Any]) -> None:
    assert faults(kept) == []
    assert kept["metadata"]["kernelspec"]["name"] == "python3"
    assert all(cell["metadata"] == {} for cell in kept["cells"])


def test_it_is_light_and_its_links_lead_somewhere(kept: dict[str, Any]) -> None:
    assert NOTEBOOK.stat().st_size < 500_000
    prose = "".join(line for cell in kept["cells"] for line in cell["source"])
    links = re.findall(r"\]\(([^)]+)\)", prose) + re.findall(r"(?:recipes|cache)/[\w./-]+\.\w+", prose)
    assert len(links) > 3 and [link for link in links if not (NOTEBOOK.parent / link).is_file()] == []


@pytest.mark.slow
def test_it_runs_from_a_clean_slate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begin = time.monotonic()
    notebook = execute(tmp_path)
    with capsys.disabled():
        print(f"\nquickstart.ipynb: {time.monotonic() - begin:.0f} s")
    assert faults(notebook) == []

    run = tmp_path / "runs/notebook"
    stages = json.loads((run / "run.json").read_text("utf-8"))["stages"]
    assert list(stages) == ["simulate", "train", "export", "eval", "report"]
    simulate = stages["simulate"]
    assert simulate["cache_misses"] == simulate["generated_tokens"] == 0 < simulate["cache_hits"]
    trained = stages["train"]["result"]
    assert trained["steps"] == len(trained["loss"]) >= 8 and trained["pairs"] == simulate["result"]["pairs"]
    assert stages["export"]["result"]["verification"]["ok"]
    evaluation = stages["eval"]["result"]
    assert list(evaluation["arms"]) == ["base", "proactive", "trained"]
    assert (run / "report.html").is_file()

    shown = texts(notebook)
    assert f"{simulate['cache_hits']} answers from the cache, 0 computed" in shown["simulate"]
    assert f"{trained['steps']} steps on {trained['pairs']} pairs" in shown["train"]
    assert evaluation["verdict"] in shown["eval"]
    assert len(re.findall(r"^(?:base|trained): \S", shown["compare"], re.MULTILINE)) == 2
    assert len(re.findall(r"^model: \S", shown["talk"], re.MULTILINE)) == 3
    pictures = [cell["id"] for cell in code(notebook) if "image/png" in str(cell["outputs"])]
    assert pictures == ["turn", "all", "curves", "arms"]
