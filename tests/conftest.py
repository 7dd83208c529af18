"""What every test may use. Nothing heavy is imported here."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

BUDGET = "MINICOLLAB_TEST_SECONDS"  # tests that would begin later than that are skipped; unset: none is
_BEGIN = time.monotonic()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What `make torture` does at greater length comes last, where a budget may end."""
    items.sort(key=lambda item: item.path.stem == "test_torture")


@pytest.hookimpl(tryfirst=True)  # before the fixtures, which are what takes long
def pytest_runtest_setup() -> None:
    budget = os.environ.get(BUDGET)
    if budget and time.monotonic() - _BEGIN > float(budget):
        pytest.skip(f"{budget} s are over: this machine is too slow for the rest ({BUDGET})")


@pytest.fixture(scope="session")
def repo() -> Path:
    """The root of the checkout."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _own_cache(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fast tests never see, fill or need the person's own cache."""
    if "slow" not in request.keywords:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
