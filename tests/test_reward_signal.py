"""The judge that the quickstart uses tells replies that ask from replies that don't."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_interactivity_agrees_with_labels(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(repo / "benchmarks"))
    sys.modules.pop("reward_signal", None)
    from reward_signal import reward_signal

    assert reward_signal()["auc"] >= 0.9
