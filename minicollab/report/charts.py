"""Small charts as inline SVG.

matplotlib draws them: it is here anyway, the same numbers give the same bytes, and one is some
10 kB that needs no script, where plotly's library alone would be 3 MB on every page. Their colours
are CSS variables, so that the page's light and dark are theirs too.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from minicollab.report.figures import ARMS, STYLES, Estimate, Series

# Stand-ins that matplotlib can draw with; the page's own colours take their place.
_STAND_INS = {
    "ink": "#010101", "quiet": "#020202", "base": "#030303", "proactive": "#040404", "trained": "#050505",
}  # fmt: skip
_COLOURS = _STAND_INS | {"plain": _STAND_INS["base"]}
_WINDOW = 20  # a curve's running mean is over at most a twentieth of its points


def metric(title: str, turns: Series, arms: Mapping[str, Estimate]) -> Any:
    """A metric with its intervals: of the candidates by turn and style, on held-out tasks by arm.
    Either may be empty."""
    sides = [side for side, there in ((_by_turn(turns), turns), (_by_arm(arms), arms)) if there]
    return _svg((4.4, 1.9), 1, len(sides), sides, title)


def replies(title: str, series: Series) -> Any:
    """P(yes) by arm and reply."""
    return _svg((4.4, 1.9), 1, 1, [_by_turn(series, "reply")], title)


def histograms(title: str, found: Mapping[str, Sequence[float]]) -> Any:
    """One panel a name, on the same bins and axes."""
    from numpy import histogram_bin_edges

    panels = {name: values for name, values in found.items() if values}
    bins = histogram_bin_edges([v for values in panels.values() for v in values], bins=24)

    def panel(name: str, values: Sequence[float]) -> Callable[[Any], None]:
        def draw(axis: Any) -> None:
            axis.hist(values, bins=bins, color=_COLOURS[name], rwidth=0.92)
            axis.axvline(fmean(values), color=_COLOURS["ink"], linewidth=1, linestyle="--")
            axis.set_title(f"{name}: {len(values)}, mean {fmean(values):.3f}", loc="left")
            axis.yaxis.get_major_locator().set_params(integer=True, nbins=4)

        return draw

    drawings = [panel(name, values) for name, values in panels.items()]
    return _svg((4.4, 0.4 + 1.15 * len(panels)), len(panels), 1, drawings, title)


def gaps(kept: Sequence[float], others: Sequence[float], least: float) -> Any:
    """The gap of every turn, of those that gave a pair and of the others; `least` is min_gap."""

    def draw(axis: Any) -> None:
        colours = [_COLOURS["proactive"], _COLOURS["base"]]
        axis.hist([kept, others], bins=24, stacked=True, color=colours, rwidth=0.92)
        axis.axvline(least, color=_COLOURS["ink"], linewidth=1, linestyle="--")
        axis.set_xlabel("gap in MR, best less worst")
        axis.set_title("turns", loc="left")
        axis.yaxis.get_major_locator().set_params(integer=True, nbins=4)

    return _svg((4.4, 2.1), 1, 1, [draw], "gap in MR of every turn")


def curve(title: str, points: Sequence[Sequence[float]]) -> Any:
    """[[optimizer step, value], ...], and its running mean."""
    steps, values = zip(*points, strict=True)
    width = max(1, len(values) // _WINDOW)
    smooth = [fmean(values[max(0, i - width + 1) : i + 1]) for i in range(len(values))]

    def draw(axis: Any) -> None:
        axis.plot(steps, values, color=_COLOURS["base"], linewidth=0.8)
        axis.plot(steps, smooth, color=_COLOURS["trained"], linewidth=1.6)
        axis.set_title(title, loc="left")
        axis.set_xlabel("optimizer step")
        axis.xaxis.get_major_locator().set_params(integer=True)

    return _svg((4.4, 1.9), 1, 1, [draw], f"{title} by optimizer step")


def _by_turn(series: Series, unit: str = "turn") -> Callable[[Any], None]:
    names = [name for name in dict.fromkeys((*STYLES, *ARMS)) if name in series]

    def draw(axis: Any) -> None:
        for place, name in enumerate(names):
            shift = 0.12 * (place - (len(names) - 1) / 2)
            _points(axis, name, [turn + shift for turn in series[name]], list(series[name].values()))
        numbers = sorted({turn for row in series.values() for turn in row})
        axis.set_xticks(numbers, [f"{unit} {n}" if len(numbers) < 4 else str(n) for n in numbers])
        axis.set_xlim(numbers[0] - 0.5, numbers[-1] + 0.5)

    return draw


def _by_arm(arms: Mapping[str, Estimate]) -> Callable[[Any], None]:
    def draw(axis: Any) -> None:
        for place, (arm, found) in enumerate(arms.items()):
            _points(axis, arm, [place], [found])
        axis.set_xticks(range(len(arms)), list(arms))
        axis.set_xlim(-0.5, len(arms) - 0.5)

    return draw


def _points(axis: Any, name: str, places: Sequence[float], found: Sequence[Estimate]) -> None:
    spread = [[max(0.0, f.mean - f.low) for f in found], [max(0.0, f.high - f.mean) for f in found]]
    means, colour = [f.mean for f in found], _COLOURS[name]
    axis.errorbar(places, means, spread, color=colour, marker="o", markersize=4, linewidth=1.2, capsize=2)


def _svg(
    size: tuple[float, float], rows: int, columns: int, drawings: Sequence[Callable[[Any], None]], title: str
) -> Any:
    """One axis a drawing, on common y axes; of `size` in inches."""
    import matplotlib
    from markupsafe import Markup, escape
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a matplotlibrc of this machine changes nothing
        ink, quiet = _COLOURS["ink"], _COLOURS["quiet"]
        matplotlib.rcParams.update({
            "svg.hashsalt": title, "svg.fonttype": "none", "font.size": 9, "axes.titlesize": 9,
            "axes.titlecolor": ink, "axes.labelcolor": quiet, "axes.edgecolor": quiet, "xtick.color": quiet,
            "ytick.color": quiet, "axes.spines.top": False, "axes.spines.right": False,
        })  # fmt: skip
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(rows, columns, sharex=rows > 1, sharey=True, squeeze=False).flat
        for axis, draw in zip(axes, drawings, strict=True):
            draw(axis)
        drawn = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(drawn, format="svg", transparent=True, metadata=nothing)
    svg = drawn.getvalue()
    svg = svg[svg.index("<svg") :]
    for name, stand_in in _STAND_INS.items():
        svg = svg.replace(stand_in, f"var(--{name})")
    svg = re.sub(r' id="[a-z]+_\d+"', "", svg)  # every chart has a figure_1
    named = f'role="img" aria-label="{escape(title)}"'
    return Markup(
        re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', lambda m: f"<svg {m[1]} {named}>", svg, count=1)
    )
