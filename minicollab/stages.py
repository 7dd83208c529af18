"""The stages of a run, each one function: it reads what the stage before it wrote and writes its own."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from minicollab import exporting, fetch, prompts, roles
from minicollab.cache.keys import content_hash, file_fingerprint
from minicollab.cast import Policy
from minicollab.errors import RecipeError, StageError
from minicollab.evaluate import compare, play_all, verdict
from minicollab.failures import tolerate
from minicollab.judge_check import short_check
from minicollab.metrics import measures
from minicollab.pairs import build_pairs, converse_all, weigh
from minicollab.progress import Progress, Watcher, silent
from minicollab.recipe import Recipe
from minicollab.run import Result, Run, begin, finish, keep, measured, unchanged
from minicollab.running import run_together
from minicollab.tasks import load_tasks, split, tasks_file

_LOG = logging.getLogger(__name__)
EVALUATION_ONLY = "abg-coqa"


def run_stage(run: Run, stage: str, progress: Watcher = silent) -> Result:
    """Run one stage, unless it already ran on the same inputs. Returns what it found."""
    outputs, inputs, work = STAGES[stage]
    with run.asking(stage):
        asked = inputs(run, progress)
        run.save_recipe()
        if unchanged(run, stage, asked, outputs(run)):
            return keep(run, stage)
        begin(run, stage)
        result, cost = measured(run, progress, lambda usages, told: work(run, usages, told))
        finish(run, stage, asked, outputs(run), result, cost)
        return result


def is_unchanged(run: Run, stage: str, progress: Progress = silent) -> bool:
    """Whether `run_stage` would find nothing to do."""
    outputs, inputs, _ = STAGES[stage]
    with run.asking(stage):
        return unchanged(run, stage, inputs(run, progress), outputs(run))


# simulate


def simulate(run: Run, usages: list[Any], progress: Watcher = silent) -> Result:
    """tasks → rollouts.jsonl and pairs.jsonl (TRL's conversational preference format).

    Where nothing but the gap has changed since the conversations were played, they are kept; weights and
    token cost weigh them anew, where they do not say how a conversation goes on.
    """
    played = content_hash([_play_inputs(run, progress), _steers(run.recipe)])
    kept = _kept_rollouts(run, played)
    rows = _read_jsonl(run / "rollouts.jsonl") if kept else run_together(_play(run, usages, progress))
    rows = [weigh(row, run.recipe.reward) for row in rows]
    pairs = build_pairs(rows, run.recipe.pairs)
    run.write_jsonl("rollouts.jsonl", rows)
    run.write_jsonl("pairs.jsonl", (pair.as_row() for pair in pairs))
    futures = [future for row in rows for future in row["futures"]]
    scored = [row["mr"] for row in rows if row["mr"] is not None]
    return {
        "played": played,
        "rollouts": file_fingerprint(run / "rollouts.jsonl"),
        "weighed_anew": kept,
        "tasks": len({row["task_id"] for row in rows}),
        "turns": len({(row["task_id"], row["turn"]) for row in rows}),
        "candidates": len(rows),
        "candidates_left_out": len(rows) - len(scored),
        "futures": len(futures),
        "cut_futures": sum(bool(future["cut"]) for future in futures),
        "failed_futures": sum(len(row["failures"]) for row in rows),
        "pairs": len(pairs),
        "mean_mr": fmean(scored) if scored else None,
        "share_asking": _share(rows, lambda r: r["asks"]),
        "share_asking_plain": _share([r for r in rows if r["style"] == "plain"], lambda r: r["asks"]),
        "share_asking_proactive": _share([r for r in rows if r["style"] == "proactive"], lambda r: r["asks"]),
        "share_asking_chosen": _share(pairs, lambda p: "?" in p.chosen.content),
        "share_asking_rejected": _share(pairs, lambda p: "?" in p.rejected.content),
    }


async def _play(run: Run, usages: list[Any], progress: Watcher) -> list[Result]:
    """The rows of all training conversations, after a word about a judge that cannot judge."""
    recipe = run.recipe
    tasks, _ = split(load_tasks(recipe.tasks), recipe.tasks.train, recipe.tasks.eval)
    cast = roles.cast(run, usages, progress)
    if warning := await short_check(cast, recipe.reward.weights):
        _LOG.warning(warning)
    rows: list[Result] = []
    done = 0
    async for turns in converse_all(recipe, cast, tasks, progress):
        rows += [row for turn in turns for row in turn.rows()]
        done += 1
        failures = [failure for row in rows for failure in row["failures"]]
        futures = len(failures) + sum(len(row["futures"]) for row in rows)
        tolerate(failures, futures, recipe.simulate.max_failures, last=done == len(tasks))
    return rows


def _steers(recipe: Recipe) -> Any:
    """What of the reward the conversations themselves depend on: they go on with the best candidate, and
    `adaptive` spends futures by it."""
    steered = recipe.simulate.exchanges > 1 or recipe.simulate.allocation == "adaptive"
    return recipe.reward.model_dump() if steered else None


def _kept_rollouts(run: Run, played: str) -> bool:
    """Whether rollouts.jsonl is what the last simulate stage wrote, and would be played the same."""
    found = run.journal()["stages"].get("simulate", {}).get("result", {})
    path = run / "rollouts.jsonl"
    return found.get("played") == played and path.exists() and found.get("rollouts") == file_fingerprint(path)


def _share(items: list[Any], test: Callable[[Any], bool]) -> float | None:
    return round(sum(map(test, items)) / len(items), 3) if items else None


# train


def train(run: Run, usages: list[Any], progress: Watcher = silent) -> Result:
    """pairs.jsonl → adapter/ (PEFT), by QLoRA DPO on the policy's own weights."""
    from minicollab import train as training

    pairs = run.need("pairs.jsonl", "simulate")
    return training.train(
        pairs, _train_base(run, progress), run.folder, run.recipe.train, run.recipe.seed, progress
    )


def _train_base(run: Run, progress: Progress) -> str:
    """What to train on: the recipe's `train_base`, or the policy's GGUF as a Hugging Face folder."""
    if base := run.recipe.models.train_base:
        return base if Path(base).is_dir() else str(fetch.base(base, progress))
    return str(exporting.dequantized(roles.gguf(run, "policy", progress), run.store, progress))


# export


def export(run: Run, usages: list[Any], progress: Progress = silent) -> Result:
    """adapter/ → export/: the adapter and the merged model as GGUF, checked against torch."""
    from minicollab.train import read_pairs

    pairs = read_pairs(run.need("pairs.jsonl", "simulate"))
    return exporting.export_run(run, pairs, lambda: Path(_train_base(run, progress)), progress)


# eval


def evaluate(run: Run, usages: list[Any], progress: Watcher = silent) -> Result:
    """export/ → eval.json: base, proactive base and trained on the held-out tasks."""
    recipe = run.recipe
    _, tasks = split(load_tasks(recipe.tasks), recipe.tasks.train, recipe.tasks.eval)
    trained = exporting.trained(run)
    cast = roles.cast(run, usages, progress)
    policies = {
        "base": cast.policy,
        "proactive": Policy(cast.policy.engine, recipe.policy, proactive_system=True),
        "trained": Policy(
            roles.local_engine(run, trained, file_fingerprint(trained, run.store), usages), recipe.policy
        ),
    }
    played = run_together(play_all(recipe, cast, policies, tasks, progress))
    run.write_jsonl("eval_conversations.jsonl", (p.row() for p in played))
    result = compare(played, recipe.seed, recipe.eval.bootstrap)
    if not result["arms"]:
        reasons = sorted({p.failure for p in played if p.failure})
        raise StageError(
            f"no held-out task could be scored: {'; '.join(reasons[:3])}", "Use a larger judge model."
        )
    result |= {"verdict": verdict(result), "model_sha256": file_fingerprint(trained, run.store)}
    run.write_json("eval.json", result)
    exporting.add_evaluation(run, result)
    return result


# report


def report(run: Run, usages: list[Any], progress: Progress = silent) -> Result:
    """Everything so far → report.html."""
    from minicollab.report import write_report

    run.need("rollouts.jsonl", "simulate")
    return {"report": str(write_report(run.folder, run / "report.html").relative_to(run.folder))}


# What the stages stand on


def _read_jsonl(path: Path) -> list[Result]:
    # Not splitlines(): text may hold U+2028 and its like, which JSON does not escape.
    return [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]


# What each stage's result depends on. Equal inputs and the files still there: nothing to do.


def _play_inputs(run: Run, progress: Progress) -> Result:
    if run.recipe.tasks.family == EVALUATION_ONLY:
        raise RecipeError(
            f"the tasks of {run.recipe.name} are for evaluation only", "Type: minicollab ambiguity RECIPE."
        )
    parts = ("seed", "policy", "simulate", "simulator", "judge", "tasks", "propose")
    chosen = run.recipe.model_dump(include=set(parts))
    tasks = load_tasks(run.recipe.tasks)  # what is wrong with one of them is said first
    chosen["tasks"]["path"] = file_fingerprint(tasks_file(run.recipe.tasks), run.store)
    chosen["metrics"] = measures(run.recipe, tasks)
    # What did not fit was cut, and arithmetic has two kinds.
    chosen["engine"] = run.recipe.engine.model_dump(include={"context", "deterministic"})
    chosen["remote"] = run.recipe.remote.model_dump(include={"context"})
    models = {role: roles.fingerprint(run, role, progress) for role in ("policy", "judge")}
    return {"recipe": chosen, "models": models, "prompts": prompts.everything()}


def _simulate_inputs(run: Run, progress: Progress) -> Result:
    if not run.recipe.tasks.train:
        raise RecipeError(
            "tasks.train is 0: there is nothing to train on", "Set it to how many tasks to take."
        )
    return _play_inputs(run, progress) | run.recipe.model_dump(include={"reward", "pairs"})


def _files(run: Run, *names: str) -> dict[str, str]:
    return {name: file_fingerprint(run / name, run.store) for name in names if (run / name).is_file()}


def _train_inputs(run: Run, progress: Progress) -> Result:
    run.need("pairs.jsonl", "simulate")
    models = run.recipe.models
    if models.train_base and (folder := Path(models.train_base)).is_dir():
        files = (path for path in sorted(folder.iterdir()) if path.suffix in (".json", ".safetensors"))
        base: Any = {path.name: file_fingerprint(path, run.store) for path in files}
    else:
        base = models.train_base or file_fingerprint(roles.gguf(run, "policy", progress), run.store)
    options = run.recipe.train.model_dump()
    return {"base": base, "options": options, "seed": run.recipe.seed} | _files(run, "pairs.jsonl")


def _eval_inputs(run: Run, progress: Progress) -> Result:
    roles.gguf(run, "policy", progress)  # without it there is nothing to compare with
    trained = file_fingerprint(exporting.trained(run), run.store)
    return (
        _play_inputs(run, progress) | run.recipe.model_dump(include={"reward", "eval"}) | {"trained": trained}
    )


def _report_inputs(run: Run, progress: Progress) -> Result:
    run.need("rollouts.jsonl", "simulate")
    journal = run.journal()["stages"].items()
    stages = {name: [entry["inputs"], entry["computed"]] for name, entry in journal if name != "report"}
    shown = ("eval.json", "eval_conversations.jsonl", "rollouts.jsonl", "pairs.jsonl", "recipe.yaml")
    return {"stages": stages} | _files(run, *shown)


STAGES: Mapping[
    str, tuple[Callable[[Run], list[str]], Callable[[Run, Progress], Result], Callable[..., Result]]
] = {
    "simulate": (lambda run: ["rollouts.jsonl", "pairs.jsonl"], _simulate_inputs, simulate),
    "train": (lambda run: ["adapter/adapter_model.safetensors"], _train_inputs, train),
    "export": (exporting.outputs, exporting.inputs, export),
    "eval": (lambda run: ["eval.json", "eval_conversations.jsonl"], _eval_inputs, evaluate),
    "report": (lambda run: ["report.html"], _report_inputs, report),
}
