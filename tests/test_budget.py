"""Slow processors: tests that would begin after the budget are skipped, and `make torture` is first to go."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import BUDGET


@pytest.mark.parametrize(("budget", "ended"), [("", "2 passed"), ("1000", "2 passed"), ("0", "2 skipped")])
def test_what_begins_late_is_skipped_and_torture_comes_last(
    budget: str, ended: str, repo: Path, tmp_path: Path
) -> None:
    (tmp_path / "conftest.py").write_text((repo / "tests/conftest.py").read_text("utf-8"))
    for name in ("torture", "whole"):
        (tmp_path / f"test_{name}.py").write_text(f"def test_{name}(): pass")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-v", "-rs", "-p", "no:cacheprovider", str(tmp_path)],
        env=os.environ | {BUDGET: budget},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert ended in done.stdout.splitlines()[-1], done.stdout
    assert done.stdout.index("::test_whole") < done.stdout.index("::test_torture")
    assert ("this machine is too slow" in done.stdout) == (budget == "0")
