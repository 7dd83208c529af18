"""Measure the engine against its competitors and print the table: `make bench-engine`."""

from __future__ import annotations

import argparse

from rich.console import Console
from rich.table import Table

from benchmarks.engine.contest import ROOT
from benchmarks.engine.measure import Line, machine, save
from benchmarks.engine.rows import QUICK, ROWS, Size

RESULT = ROOT / "benchmarks/engine.json"


def shown(line: Line) -> tuple[str, ...]:
    """The cells of one line."""
    sign = "≥" if line.at_least else "≤"
    target = "" if line.target is None else f"{sign} {line.target:g}"
    met = {True: "met", False: "missed", None: ""}[line.met]
    return line.row, line.work, line.against, f"{line.value:.3g}{line.unit}", target, met


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.engine", description=__doc__)
    rows = list(ROWS)
    parser.add_argument("--only", nargs="+", choices=rows, default=rows, metavar="ROW", help=" ".join(rows))
    parser.add_argument("--repeat", type=int, default=Size.repeat)
    parser.add_argument("--repeat-official", type=int, default=Size.repeat_official)
    parser.add_argument("--quick", action="store_true", help="does everything run? writes no figures")
    options = parser.parse_args()
    size = QUICK if options.quick else Size(options.repeat, options.repeat_official)
    console = Console()
    table = Table("row", "work", "against", "figure", "target", "")
    for name in options.only:
        about = machine()
        with console.status(f"{name}: {ROWS[name].__doc__}"):
            lines = ROWS[name](size)
        for line in lines:
            table.add_row(*shown(line))
        if not options.quick:
            save(RESULT, about, lines)
    console.print(table)
    if not options.quick:
        console.print(f"Every single figure: {RESULT.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
