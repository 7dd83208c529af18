"""report.html: what a run found, on one page that needs nothing but itself."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from minicollab.files import aside
from minicollab.report import charts, explorer, figures
from minicollab.report.reading import KEPT, Found, Row, read

_CURVES = {"loss": "loss", "reward_margin": "reward margin, nats", "reward_accuracy": "reward accuracy"}
_LABELS = {"mr": "MR", "tokens_read_k": "tokens read, thousands"}
_FEW = 10  # tasks below which a bootstrap interval is said to be too narrow


def write_report(folder: Path, out: Path) -> Path:
    """Write the report of the run in `folder` to `out`, and return `out`.

    It needs the simulate stage; what later stages have not written yet is said to be missing. The
    same files give the same bytes. Raises RunError, with the stage to run, if a file is broken.
    """
    found = read(folder)
    data, left_out = explorer.packed(found)
    script = _asset("explorer.js")
    page = _template().render(
        recipe=found.recipe,
        models={role: Path(name).name for role, name in found.recipe.models if name},
        versions=found.versions,
        undone=found.undone,
        **_evaluated(found),
        costs=figures.costs(found.stages),
        candidates=figures.candidates(found),
        rewards=_rewards(found),
        pairs=_pairs(found),
        training=found.stages.get("train", {}).get("result", {}),
        curves=_curves(found),
        data=data,
        left_out=left_out,
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        style=_asset("style.css"),
    )
    with aside(out) as partial:
        partial.write_text(page, "utf-8")
    return out


def _evaluated(found: Found) -> dict[str, Any]:
    """What the first screen says."""
    evaluation = found.evaluation
    if not evaluation:
        return {"evaluation": None}
    return {
        "evaluation": evaluation,
        "headlines": [figures.headline(evaluation, baseline) for baseline in figures.BASELINES],
        "few": evaluation["tasks"] < _FEW,
        "arms": figures.by_arm(found.played, evaluation["arms"]["base"]),
        "failed": [row["failure"] for row in found.played if row["failure"]],
        "cut_played": sum(bool(row["cut"]) for row in found.played),
    }


def _rewards(found: Found) -> list[Any]:
    """MR and every component by turn and by arm, and the questions that are asked of each reply."""
    turns = figures.by_turn(found.rollouts)
    arms = figures.by_arm(found.played, found.evaluation["arms"]["base"]) if found.evaluation else {}
    names = dict.fromkeys((*turns, *arms))
    drawn = [
        (_label(name), charts.metric(_label(name), turns.get(name, {}), arms.get(name, {}))) for name in names
    ]
    asked = {f"P(yes) by reply: {name}": series for name, series in figures.by_reply(found).items() if series}
    return drawn + [(title, charts.replies(title, series)) for title, series in asked.items()]


def _pairs(found: Found) -> list[Any]:
    """The MR of the candidates by style, and the gaps of the turns."""
    mrs = {
        s: [r["mr"] for r in found.rollouts if r["style"] == s and r["mr"] is not None]
        for s in figures.STYLES
    }
    gaps = [(turn.outcome == KEPT, turn.gap) for turn in found.turns if turn.gap is not None]
    drawn = []
    if any(mrs.values()):
        drawn.append(("MR of every candidate; the dashed line is the mean.", charts.histograms("MR", mrs)))
    if gaps:
        kept, others = ([gap for is_kept, gap in gaps if is_kept is side] for side in (True, False))
        caption = "Gap of best and worst MR of every turn; the dashed line is pairs.min_gap."
        drawn.append((caption, charts.gaps(kept, others, found.recipe.pairs.min_gap)))
    return drawn


def _curves(found: Found) -> list[Any]:
    trained: Row = found.stages.get("train", {}).get("result", {})
    return [charts.curve(title, trained[name]) for name, title in _CURVES.items() if trained.get(name)]


def _template() -> Any:
    """The page. Every text in it comes from people or models, so all of it is escaped."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page.filters |= {
        "signed": figures.signed,
        "fixed": lambda x: f"{x:.3f}",
        "duration": _duration,
        "label": _label,
        "asset": Markup,
        "percent": lambda share: f"{share:.0%}",
        "listed": _listed,
    }
    return page.from_string(_asset("page.html"))


def _asset(name: str) -> str:
    return files("minicollab.report").joinpath(name).read_text("utf-8")


def _label(metric: str) -> str:
    return _LABELS.get(metric, metric.replace("_", " "))


def _listed(words: Sequence[str]) -> str:
    return ", ".join(words[:-1]) + " and " * (len(words) > 1) + "".join(words[-1:])


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    minutes, rest = divmod(rest, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{seconds:.1f} s"
