"""Whether this machine is fit for minicollab, and a recipe for this machine. Nothing is loaded or
fetched for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from minicollab.engine.sizing import GIB
from minicollab.errors import MinicollabError
from minicollab.exporting import dequantized_folders
from minicollab.loading import load_recipe, recipe_at
from minicollab.models import SMOLLM2, describe, resolve, user_cache
from minicollab.needs.lengths import Lengths, lengths
from minicollab.needs.machine import Machine, conflicts, disk_free, installed, pins
from minicollab.needs.memory import Need, needs
from minicollab.needs.models import Model, known, read
from minicollab.needs.supplies import Supply, needed
from minicollab.needs.times import Time, times
from minicollab.progress import duration
from minicollab.recipe import Recipe, is_remote
from minicollab.run import Run, store_folder
from minicollab.schema import Task
from minicollab.tasks import load_tasks, split

CHECKOUT = Path(__file__).parent.parent
_SETUP = "make setup GPU=1"
_TIGHT = 0.85  # of what is free
_SHORT, _NONE = 10 * GIB, GIB  # of disk
_DETAILS = 3  # that a task has, as long as they cannot be counted
_SHOWN = 4  # recipes that would fit


@dataclass(frozen=True)
class Line:
    """One finding; `fix` is what to type or change."""

    status: Literal["ok", "warn", "fail"]
    what: str
    says: str
    fix: str = ""


@dataclass(frozen=True)
class Patient:
    """A recipe with all that is known about it before it runs. `policy` and `judge` are None on a
    server. `run`: its folder, if this very recipe has one; its journal counts."""

    recipe: Recipe
    policy: Model | None
    judge: Model | None
    lengths: Lengths
    tasks: tuple[list[Task], list[Task]]
    run: Run | None = None

    def needs(self, machine: Machine) -> list[Need]:
        done = self.policy and any(dequantized_folders().glob(f"{self.policy.shape.name}-*"))
        return needs(self.recipe, self.policy, self.judge, machine, self.lengths, bool(done))

    def times(self, machine: Machine) -> dict[str, Time]:
        journal: dict[str, Any] = self.run.journal() if self.run else {}
        return times(self.recipe, self.policy, self.judge, machine, self.lengths, self.tasks, journal)


# The machine


def check_machine(machine: Machine) -> list[Line]:
    """Cards, llama.cpp, torch, processor, memory, disks and versions."""
    return [*_cards(machine), _llama(machine), _processor(machine), _memory(machine), *_disks(), *_versions()]


def _cards(machine: Machine) -> Iterator[Line]:
    for card in machine.cards:
        says = f"{card.name}, {_gib(card.free)} of {_gib(card.total)} free, driver {card.driver}"
        if machine.training:
            yield Line("ok", "GPU", says)
        else:
            yield Line("warn", "GPU", f"{says}; torch cannot use it", _SETUP)
    if not machine.cards:
        says = "nvidia-smi finds none: the CPU does all the work"
        yield Line("warn", "GPU", says, f"With an NVIDIA card, install its driver and run: {_SETUP}")


def _llama(machine: Machine) -> Line:
    if not machine.llama:
        return Line("fail", "llama.cpp", "llama-cpp-python is not installed, or does not load", "make setup")
    if "GPU" in machine.llama:
        return Line("ok", "llama.cpp", "built with GPU support")
    status: Literal["ok", "warn"] = "warn" if machine.cards else "ok"
    return Line(status, "llama.cpp", "built without GPU support", _SETUP if machine.cards else "")


def _processor(machine: Machine) -> Line:
    fast = [name for name in ("AVX2", "AVX512", "AMX_INT8", "NEON") if name in machine.llama]
    says = f"{machine.cpu}, {machine.cores} cores, {' '.join(fast) or 'no vector units in use'}"
    return Line("ok", "CPU", says) if fast else Line("warn", "CPU", says, "Build llama.cpp here: make setup")


def _memory(machine: Machine) -> Line:
    return Line("ok", "RAM", f"{_gib(machine.ram.free)} of {_gib(machine.ram.total)} free")


def _disks() -> Iterator[Line]:
    for what, folder in (
        ("cache", store_folder()),
        ("models", user_cache()),
        ("runs", Path("runs").resolve()),
    ):
        free = disk_free(folder)
        says = f"{_gib(free)} free for {folder}"
        status: Literal["ok", "warn", "fail"] = "fail" if free < _NONE else "warn" if free < _SHORT else "ok"
        yield Line(status, f"disk: {what}", says, "" if status == "ok" else "Free some space.")


def _versions() -> Iterator[Line]:
    have = installed()
    for conflict in conflicts(have):
        yield Line("fail", "versions", conflict, "make setup")
    wanted = pins(CHECKOUT / "requirements")
    other = [
        f"{name} {number} ({wanted[name]})"
        for name, number in have.items()
        if name in wanted and number.partition("+")[0] != wanted[name]
    ]
    if other:
        yield Line("warn", "versions", f"not those tested together: {', '.join(other)}", "make setup")
    missing = [name for name in ("torch", "trl", "unsloth", "gguf") if name not in have]
    if missing:
        yield Line("fail", "versions", f"not installed: {', '.join(missing)}", "make setup")
    elif not other:
        yield Line("ok", "versions", f"torch {have['torch']}, trl {have['trl']}, unsloth {have['unsloth']}")


# A recipe


def check_recipe(path: Path, machine: Machine, overrides: Sequence[str] = ()) -> list[Line]:
    """Of a recipe or a run folder: whether its models and tasks are here, and whether every stage fits
    into memory and disk and how long it takes. Raises RecipeError if it cannot be read."""
    recipe = recipe_at(path, overrides)
    try:
        supplies = needed(recipe)
        lines = [_supplied(supply, path) for supply in supplies]
        patient = examine(recipe, supplies, path if path.is_dir() else Path("runs") / recipe.name)
    except MinicollabError as error:
        return [Line("fail", "recipe", error.what, error.remedy)]
    if not patient:
        says = "a model that is not here yet is none that its figures are known of"
        return [*lines, Line("fail", "fit", says, f"minicollab fetch {path}")]
    fit = list(_fit(patient, machine))
    if any(line.status == "fail" for line in fit):
        fit.append(_instead(recipe, machine))
    return [*lines, *fit, _time(patient, machine, path)]


def examine(recipe: Recipe, supplies: Sequence[Supply], folder: Path) -> Patient | None:
    """None if a model is neither here nor known. `folder`: of a run, whose pairs and journal count if
    it is of this very recipe. Raises TaskError if there are too few tasks."""
    paths = {supply.name: supply.path for supply in supplies}
    names = (recipe.models.policy, recipe.models.judge or recipe.models.policy)
    policy, judge = (None if is_remote(name) else figures(name, paths.get(name)) for name in names)
    if any(not (model or is_remote(name)) for name, model in zip(names, (policy, judge), strict=True)):
        return None
    run = _run(folder, recipe)
    tasks = _tasks(recipe, paths.get(recipe.tasks.path))
    pairs = run / "pairs.jsonl" if run else None
    found = lengths(recipe, tasks[0], pairs, paths.get(names[0]))
    return Patient(recipe, policy, judge, found, tasks, run)


@cache
def figures(name: str, path: Path | None) -> Model | None:
    """Of a model that is here, or known by its name, built-in or of a file."""
    return read(path) if path else known(name if name.endswith(".gguf") else f"{name}-q4_k_m.gguf")


def _run(folder: Path, recipe: Recipe) -> Run | None:
    try:
        same = load_recipe(folder / "recipe.yaml") == recipe
    except MinicollabError:
        return None
    return Run(folder.resolve(), recipe) if same else None


def _tasks(recipe: Recipe, path: Path | None) -> tuple[list[Task], list[Task]]:
    options = recipe.tasks
    if path:
        return split(load_tasks(options), options.train, options.eval)
    some = Task("some", "", ("…",) * _DETAILS)
    return [some] * options.train, [some] * options.eval


def _supplied(supply: Supply, recipe: Path) -> Line:
    if not supply.path:
        return Line("warn", supply.role, f"{supply.name} is not here yet", f"minicollab fetch {recipe}")
    says = str(supply.path)
    if supply.path.suffix == ".gguf" and supply.role != "adapter":
        about = describe(supply.path)
        size = f"{about['size'] / 1e9:.2f} GB"
        says = f"{says}, {size}, {about['architecture']} {about['quantization']}, with chat template"
    return Line("ok", supply.role, says)


def _fit(patient: Patient, machine: Machine) -> Iterator[Line]:
    cards = [card.free for card in machine.cards]
    for need in patient.needs(machine):
        ram = machine.ram.free
        yield _compared(need.stage, "RAM", need.total("ram"), ram, need.stage == "train" and patient)
        if need.vram:  # llama.cpp spreads a model over all cards, Unsloth trains on one
            vram = max(cards) if need.stage == "train" else sum(cards)
            yield _compared(need.stage, "VRAM", need.total("vram"), vram)
        written = sum(need.disk.values())
        left = min(disk_free(user_cache()), disk_free(Path("runs").resolve()))
        if written > left:
            says = f"writes {_gib(written)}, and {_gib(left)} are free"
            yield Line("fail", f"{need.stage}: disk", says, "Free some space.")


def _compared(
    stage: str, kind: str, needed: int, free: int, patient: Patient | Literal[False] = False
) -> Line:
    most = "at most " if patient and not patient.lengths.counted else ""
    says = f"{most}{_gib(needed)} of {_gib(free)} free"
    what = f"{stage}: {kind}"
    if needed <= _TIGHT * free:
        return Line("ok", what, says)
    fix = _REMEDIES[stage if kind == "RAM" or stage == "train" else "playing"]
    return Line("warn" if needed <= free else "fail", what, says, fix)


_REMEDIES = {
    "simulate": "Take a smaller GGUF, or one model for all roles; or put the judge on a server.",
    "playing": "Lower engine.context or engine.batch, or take a smaller GGUF.",
    "train": "Lower train.max_length or train.batch_size, or take a smaller policy.",
    "export": "It needs the policy in float32 once: close other programs, or take a smaller policy.",
    "eval": "Take a smaller GGUF, or one model for all roles; or put the judge on a server.",
}


def _time(patient: Patient, machine: Machine, path: Path) -> Line:
    parts = []
    for stage, time in patient.times(machine).items():
        how = "as measured here" if time.here else "estimated"
        parts.append(f"{stage} {duration(time.seconds)} ({how})")
    return Line("ok", "time", ", ".join(parts), f"Closer: minicollab bench {path}")


def _instead(recipe: Recipe, machine: Machine) -> Line:
    fitting = would_fit(machine)
    same = [path for path, other in fitting if other.tasks.family == recipe.tasks.family]
    rest = [path for path, other in fitting if other.tasks.family != recipe.tasks.family]
    names = [str(path.relative_to(CHECKOUT)) for path in [*same, *rest][:_SHOWN]]
    says = f"would fit: {', '.join(names)}" if names else "none of the bundled recipes fits either"
    return Line("warn", "instead", says, f"minicollab doctor {names[0]}" if names else "")


def would_fit(machine: Machine) -> list[tuple[Path, Recipe]]:
    """The checkout's own recipes that train and fit this machine, larger policies first."""
    found = []
    for path in sorted((CHECKOUT / "recipes").rglob("*.yaml")):
        patient = bundled(path)
        if not (patient and patient.policy and patient.recipe.tasks.train):
            continue
        if all(line.status != "fail" for line in _fit(patient, machine)):
            found.append((patient.policy.shape.parameters, path, patient.recipe))
    return [(path, recipe) for _, path, recipe in sorted(found, key=lambda row: -row[0])]


def bundled(path: Path) -> Patient | None:
    """A recipe by its figures alone, its data and runs not looked at. None if its models are unknown."""
    recipe = load_recipe(path)
    names = (recipe.models.policy, recipe.models.judge or recipe.models.policy)
    paths = (resolve(name, Path()) if name == SMOLLM2 else None for name in names)
    policy, judge = map(figures, names, paths)
    if not (policy and judge):
        return None
    return Patient(recipe, policy, judge, lengths(recipe, [], None, None), _tasks(recipe, None))


def _gib(amount: int) -> str:
    return f"{amount / GIB:.1f} GiB"
