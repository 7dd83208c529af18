"""Lines of the result: medians, ratios, targets."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from minicollab.files import aside


@dataclass(frozen=True)
class Line:
    """One line of the table. `value` is compared with `target` (None: only told, not judged);
    `figures` holds every single measurement behind it."""

    row: str
    work: str
    against: str
    value: float
    target: float | None = None
    at_least: bool = True
    unit: str = "x"
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def met(self) -> bool | None:
        """None if there is no target. NaN meets none."""
        if self.target is None:
            return None
        return self.value >= self.target if self.at_least else self.value <= self.target

    def as_dict(self) -> dict[str, Any]:
        value = None if math.isnan(self.value) else self.value  # JSON has no NaN
        return asdict(self) | {"value": value, "met": self.met, "measured": _now()}


def faster(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """How many times faster ours is: the ratio of the medians, in seconds. NaN without figures."""
    return median(theirs) / median(ours) if ours and theirs else math.nan


def race(
    row: str, work: str, against: str, turns: dict[str, list[dict[str, Any]]], target: float | None
) -> Line:
    """The line of a race: `turns` has what "ours" and "theirs" answered, each with its `seconds`."""
    seconds = {who: [t["seconds"] for t in each if "failed" not in t] for who, each in turns.items()}
    medians = {who: median(each) if each else None for who, each in seconds.items()}
    figures = {"median_seconds": medians, "turns": turns}
    return Line(row, work, against, faster(seconds["ours"], seconds["theirs"]), target, figures=figures)


def machine() -> dict[str, Any]:
    """What the figures depend on: processor, cores, versions, and how busy the machine was."""
    names = [row.split(":", 1)[1].strip() for row in _lines("/proc/cpuinfo") if row.startswith("model name")]
    packages = ("llama-cpp-python", "numpy")
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
        "load_1_minute": round(os.getloadavg()[0], 2),
    }


def save(path: Path, about: dict[str, Any], lines: Sequence[Line]) -> None:
    """Write the lines; rows that were measured before, and not now, stay as they are."""
    old = json.loads(path.read_text("utf-8"))["lines"] if path.exists() else []
    new = [line.as_dict() | {"load_1_minute": about["load_1_minute"]} for line in lines]
    measured = {line["row"] for line in new}
    kept = [line for line in old if line["row"] not in measured]
    with aside(path) as part:
        part.write_text(json.dumps({"machine": about, "lines": kept + new}, indent=1) + "\n", "utf-8")


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text("utf-8").splitlines()
    except OSError:
        return []


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
