"""What a command says of what it found."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minicollab.progress import duration
from minicollab.run import Run

if TYPE_CHECKING:
    from rich.table import Table


def summary(run: Run, stage: str, result: dict[str, Any]) -> str:
    """Of a stage: what it cost, what came of it, and where that lies."""
    entry = run.journal()["stages"][stage]
    cost = "unchanged" if entry["unchanged"] else f"{entry['seconds']:.0f} s"
    return f"{stage} ({cost}): {_SUMMARIES[stage](run, result)}"


def _simulated(run: Run, result: dict[str, Any]) -> str:
    everyone, chosen, rejected = (
        _percent(result[f"share_asking{which}"]) for which in ("", "_chosen", "_rejected")
    )
    return (
        f"{result['pairs']} pairs from {result['candidates']} candidates{_left_out(result)}; asking: "
        f"{everyone} of all, {chosen} of the chosen, {rejected} of the rejected{_cut(result)}\n"
        f"  {run / 'pairs.jsonl'}"
    )


def _left_out(result: dict[str, Any]) -> str:
    out = f", {result['candidates_left_out']} left out as failed" if result["candidates_left_out"] else ""
    return out + (", weighed anew" if result["weighed_anew"] else "")


def _trained(run: Run, result: dict[str, Any]) -> str:
    dropped = f"{result['dropped_too_long']} rows dropped as too long"
    return f"{result['steps']} steps on {result['pairs']} pairs, {dropped}\n  {run / 'adapter'}"


def _exported(run: Run, result: dict[str, Any]) -> str:
    peak = run.journal()["stages"]["export"]["computed"]["peak_memory_mb"]
    return exported(result | {"peak_memory_mb": peak}, run.folder)


def exported(result: dict[str, Any], folder: Path) -> str:
    """Of an export: what of each file was measured, and where the files lie."""
    check = result["verification"]
    lines = [f"checked on {check['prompts']} conversations, peak memory {result['peak_memory_mb']:,.0f} MB"]
    lines += [_checked(check)] if "models" in check else []
    lines += [
        f"{kind} loses {min(1, found['kl'] / check['kl_torch_base']):.0%} of what training changed (KL): "
        "take a finer quantization (--quant q8_0), or the adapter on the base"
        for kind, found in check.get("models", {}).items()
        if found["kl"] > _LOSS * check["kl_torch_base"]
    ]
    if "stopped" in check:
        ended, all_of = check["stopped"], check["prompts"]
        lines.append(
            f"ended by itself within {ended['tokens']} tokens: {ended['trained']} of {all_of}, "
            f"the base {ended['base']} of {all_of}"
        )
    return "\n".join(lines + [f"  {folder / result[key]}" for key in ("model", "adapter") if key in result])


_LOSS = 0.25  # of the way from the base to the trained model; more is worth a word


def _checked(check: dict[str, Any]) -> str:
    """KL to torch and perplexity, file by file; what a quantization costs against the F16 merge."""
    from rich.table import Table

    table = Table("", "MB", "KL to torch", "perplexity", "cost")
    table.add_row("base, without adapter", "", f"{check['kl_torch_base']:.2g}", "", "")
    table.add_row("base and adapter", "", f"{check['kl_torch_adapter_on_base']:.2g}", "", "")
    whole = check["models"].get("f16")
    for kind, found in check["models"].items():
        cost = f"{found['perplexity'] / whole['perplexity'] - 1:+.1%}" if kind != "f16" else ""
        table.add_row(
            f"merged, {kind}", f"{found['bytes'] / 1e6:,.0f}", f"{found['kl']:.2g}",
            f"{found['perplexity']:.2f}", cost,
        )  # fmt: skip
    return _drawn(table)


def _evaluated(run: Run, result: dict[str, Any]) -> str:
    return f"\n{_table(result)}\n{result['verdict']}{_cut(result)}\n  {run / 'eval.json'}"


def _cut(result: dict[str, Any]) -> str:
    cut = result.get("cut_futures")
    return f"; {cut} conversations cut to fit the context" if cut else ""


def _reported(run: Run, result: dict[str, Any]) -> str:
    return str(run / result["report"])


_SUMMARIES = {
    "simulate": _simulated,
    "train": _trained,
    "export": _exported,
    "eval": _evaluated,
    "report": _reported,
}


_NAMES = {"mr": "MR", "tokens_read_k": "tokens read (k)"}


def _percent(share: float | None) -> str:
    return "none" if share is None else f"{share:.0%}"


def _table(result: dict[str, Any]) -> str:
    from rich.table import Table

    arms, differences = result["arms"], result["differences"]
    table = Table("", *arms, *(name.replace("-", " - ") for name in differences))
    for metric in arms["base"]:
        means = (f"{row[metric]:.3f}" for row in arms.values())
        apart = (row[metric] for row in differences.values())
        intervals = (f"{d['mean']:+.3f} [{d['low']:+.3f}, {d['high']:+.3f}]" for d in apart)
        table.add_row(_NAMES.get(metric, metric.replace("_", " ")), *means, *intervals)
    return _drawn(table)


def benched(result: dict[str, Any]) -> str:
    """Of `bench`: speeds, and how long the recipe will take if there was one."""
    from rich.table import Table

    from minicollab.bench import LEVELS

    table = Table("tokens per second", "prompt", *(f"{n} sequence{'s' * (n > 1)}" for n in LEVELS))
    for model in result["models"]:
        speeds = (model["prompt"], *model["generated"].values())
        table.add_row(", ".join(model["roles"]), *(f"{speed:,.0f}" for speed in speeds))
    drawn = [_drawn(table)] if result["models"] else []  # a server's speeds are not measured
    return "\n".join(drawn + ([_estimated(result["recipe"])] if "recipe" in result else []))


def _estimated(played: dict[str, Any]) -> str:
    answers, seconds = sum(played["answers"].values()), played["played_seconds"]
    if played["simulate"] is None:
        return f"{played['name']}: too few answers within {seconds:.0f} s; give it more with --seconds"
    simulate, evaluate = (duration(played[stage]) for stage in ("simulate", "eval"))
    return (
        f"{played['name']}: simulate about {simulate}, eval about {evaluate}, from {answers} answers in "
        f"{seconds:.0f} s of play. Train and export take their own time on top."
    )


def _drawn(table: Table) -> str:
    from rich.console import Console

    # As text, whatever it is shown on: in a notebook rich would show it there at once.
    wished = os.environ.get("COLUMNS", "")
    width = max(110, int(wished) if wished.isdecimal() else 0)
    console = Console(width=width, no_color=True, force_jupyter=False, force_terminal=False)
    with console.capture() as capture:
        console.print(table, markup=False)
    return capture.get().rstrip()
