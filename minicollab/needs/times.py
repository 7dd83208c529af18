"""How long the stages of a recipe will take: as long as they took here, or a rough reckoning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from minicollab.estimate import requests
from minicollab.needs.lengths import Lengths
from minicollab.needs.machine import Machine
from minicollab.needs.models import Model
from minicollab.recipe import Recipe
from minicollab.schema import Task

STAGES = ("simulate", "train", "export", "eval")
# Useful arithmetic a second, in operations: reading a prompt, and training. Of a CPU core with AMX as
# measured here; of a card an RTX 3090's, estimated. A core without AMX does a quarter.
_READS, _TRAINS = {"core": 0.12e12, "card": 25e12}, {"core": 0.06e12, "card": 15e12}
_SLOWER = {"core": 3.0, "card": 20.0}  # a token generated in company, against a token read
_PLAIN_CORE = 0.25
_READ, _READ_OF_REPLY = 15, 0.2  # tokens that are new in a prompt, and of the longest reply
_SAID = 0.6  # of the most that an answer may have
_LOADING = {"simulate": 3.0, "train": 25.0, "export": 20.0, "eval": 3.0}  # seconds
_REPLAYED = 50  # look-ups that hit for one that misses: most of the stage was done before
_EXPORTED = 40e6  # parameters a second: merged, quantized, and checked against torch


@dataclass(frozen=True)
class Time:
    """`seconds` of a stage, and whether that is what it took `here` when it was last computed."""

    seconds: float
    here: bool


def times(
    recipe: Recipe,
    policy: Model | None,
    judge: Model | None,
    machine: Machine,
    lengths: Lengths,
    tasks: tuple[list[Task], list[Task]],
    journal: Mapping[str, Any],
) -> dict[str, Time]:
    """By stage. `tasks`: those to train on and those held out. `journal`: the run's, if there is one.
    What a server does takes no time here: it is not known."""
    found = {}
    if policy:
        found["train"] = _training(policy, recipe, machine, lengths)
        found["export"] = _LOADING["export"] + policy.shape.parameters / _EXPORTED
    sizes = {"policy": policy, "simulator": judge, "judge": judge}
    for stage, asked in requests(recipe, *tasks).items():
        found[stage] = _LOADING[stage] + sum(
            number * _answer(sizes[role], role, recipe, machine) for role, number in asked.items()
        )
    took = journal.get("stages", {})
    return {
        stage: Time(took[stage]["computed"]["seconds"], here=True)
        if _computed(took.get(stage))
        else Time(found[stage], here=False)
        for stage in STAGES
        if stage in found
    }


def _computed(entry: Any) -> bool:
    """Not what was only replayed from the cache, or went on from a checkpoint: that says nothing about
    the next time."""
    if not entry or entry["result"].get("resumed_from") or entry["result"].get("weighed_anew"):
        return False
    hits, misses = entry["computed"]["cache_hits"], entry["computed"]["cache_misses"]
    return bool(hits <= _REPLAYED * misses or not hits)


def _answer(model: Model | None, role: str, recipe: Recipe, machine: Machine) -> float:
    """Seconds that one answer of a role takes, among others."""
    if not model:
        return 0.0
    longest = {"policy": recipe.policy.max_tokens, "simulator": recipe.simulator.generation.max_tokens}
    where = "card" if machine.vram and recipe.engine.gpu_layers else "core"
    read = _READ + _READ_OF_REPLY * recipe.policy.max_tokens
    work = read + _SLOWER[where] * _SAID * longest.get(role, 0)
    return 2 * model.shape.parameters * work / _speed(_READS, where, machine)


def _training(policy: Model, recipe: Recipe, machine: Machine, lengths: Lengths) -> float:
    """Both sides of every pair: forward, back through the activations, and forward again where layers
    are computed anew (2 operations a parameter each); and the reference once."""
    where = "card" if machine.training else "core"
    passes = 3 if where == "card" else 2
    tokens = 2 * lengths.pairs * lengths.mean
    work = 2 * policy.shape.parameters * tokens * (passes * recipe.train.epochs + 1)
    return _LOADING["train"] + work / _speed(_TRAINS, where, machine)


def _speed(table: Mapping[str, float], where: str, machine: Machine) -> float:
    if where == "card":
        return table[where]
    return table[where] * machine.cores * (1 if "AMX_INT8" in machine.llama else _PLAIN_CORE)
