"""A run: one directory with everything that a recipe produced, and what it cost."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from minicollab import __version__
from minicollab.cache.keys import content_hash
from minicollab.cache.store import Store
from minicollab.errors import MinicollabError, RunError
from minicollab.files import aside, expanded
from minicollab.hold import held
from minicollab.loading import load_recipe, recipe_at
from minicollab.models import user_cache
from minicollab.needs.machine import energy, installed
from minicollab.progress import Watcher, counted, metered
from minicollab.recipe import Recipe

Result = dict[str, Any]
_OURS = "# What minicollab has read: changed by --set.\n"
STAGES = ("simulate", "train", "export", "eval", "report")
_PACKAGES = (
    "torch", "transformers", "trl", "peft", "bitsandbytes", "unsloth", "datasets", "llama-cpp-python", "gguf"
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    folder: Path
    recipe: Recipe

    @classmethod
    def at(cls, folder: Path) -> Run:
        """The run that lies in `folder`, to read from. Raises RecipeError if there is none."""
        return cls(folder.resolve(), load_recipe(folder / "recipe.yaml"))

    @classmethod
    @contextmanager
    def open(
        cls,
        path: Path,
        doing: str,
        out: Path | None = None,
        overrides: Sequence[str] = (),
        trial: bool = False,
    ) -> Iterator[Run]:
        """The run of a recipe, or the run that lies in the folder `path`, for this process alone
        while it is `doing` something. With `out` it is a run in that folder. The folder is made, and
        the recipe saved in it; a run's own, and for a `trial` any, only where there is none yet."""
        recipe = recipe_at(path, overrides)
        run = cls((out or (path if path.is_dir() else Path("runs") / recipe.name)).resolve(), recipe)
        with ExitStack() as stack:
            try:
                run.folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(held(run.folder, doing))
                if not (run / "recipe.yaml").exists() or not (trial or path.is_dir()):
                    run.save_recipe()
            except OSError as error:
                raise RunError(
                    f"the run folder {run.folder} cannot be written: {error.strerror}",
                    "Give another one with --out DIR.",
                ) from None
            yield run

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    def save_recipe(self) -> None:
        """The resolved recipe → recipe.yaml, for whoever goes on with the run. One that says the same
        stays as it is. RunError if there is one that was written by hand and says something else."""
        path = self / "recipe.yaml"
        if path.exists():
            known = None
            with suppress(MinicollabError):
                known = load_recipe(path)
            if known == self.recipe:
                return
            if not path.read_bytes().startswith(_OURS.encode()):
                raise RunError(
                    f"{path} was written by hand and says something else",
                    "Change it there, or give another run folder with --out DIR.",
                )
        with aside(path) as partial:
            partial.write_text(_OURS + self.recipe.dump(), "utf-8")

    @cached_property
    def store(self) -> Store:
        return Store(store_folder(self.recipe.cache))

    @contextmanager
    def asking(self, stage: str) -> Iterator[None]:
        """What is stored meanwhile is stored for this stage, and written whatever happens."""
        self.store.recipe, self.store.stage = self.recipe.name, stage
        try:
            yield
        finally:
            self.store.close()

    def journal(self) -> dict[str, Any]:
        """run.json, or an empty one."""
        with suppress(OSError, ValueError, RecursionError):
            journal = json.loads((self / "run.json").read_text("utf-8"))
            stages = journal.get("stages") if isinstance(journal, dict) else None
            if isinstance(stages, dict) and all(map(_is_entry, stages.values())):
                return dict(journal)
        return {"stages": {}}

    def record(self, stage: str, entry: Mapping[str, Any]) -> None:
        journal = self.journal()
        journal |= {"minicollab": __version__, "recipe": self.recipe.name, "seed": self.recipe.seed}
        journal["versions"] = {"python": sys.version.split()[0]} | installed(_PACKAGES)
        journal["stages"] = {**journal["stages"], stage: dict(entry)}
        self.write_json("run.json", journal)

    def write_json(self, name: str, value: Any) -> None:
        with aside(self / name) as partial:
            partial.write_text(json.dumps(value, indent=1, ensure_ascii=False), "utf-8")

    def write_jsonl(self, name: str, rows: Iterable[Result]) -> None:
        with aside(self / name) as partial, open(partial, "w", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def read_json(self, name: str, stage: str) -> Any:
        return json.loads(self.need(name, stage).read_text("utf-8"))

    def need(self, name: str, stage: str) -> Path:
        """A file that an earlier stage must have written. RunError if it is not there."""
        if not (self / name).exists():
            raise RunError(f"{self.folder.name} has no {name} yet", f"Run: minicollab {stage} {self.folder}")
        return self / name


def _is_entry(entry: Any) -> bool:
    """Of run.json, as `finish` writes them."""
    kinds = {"inputs": str, "result": dict, "computed": dict}
    return isinstance(entry, dict) and all(isinstance(entry.get(key), kind) for key, kind in kinds.items())


def store_folder(cache: str | None = None) -> Path:
    """Where the cache is: $MINICOLLAB_CACHE, else `cache` (a recipe's), else cache/ of a checkout,
    else the person's own."""
    checkout = Path(__file__).parent.parent
    if chosen := os.environ.get("MINICOLLAB_CACHE") or cache:
        return expanded(chosen)
    if (checkout / "pyproject.toml").is_file() and os.access(checkout, os.W_OK):
        return checkout / "cache" / "store"
    return user_cache() / "store"


_NOTHING = {
    "seconds": 0.0, "generated_tokens": 0, "prompt_tokens_computed": 0, "cache_hits": 0, "cache_misses": 0,
    "peak_memory_mb": 0.0,
}  # fmt: skip


def measured(
    run: Run, progress: Watcher, work: Callable[[list[Any], Watcher], Result]
) -> tuple[Result, Result]:
    """What `work` returns, and what it cost: time, the engines' tokens, cache use, this process's peak
    memory and, if a card tells, watt-hours. It is handed the list that engines put their usage into,
    and a `progress` that hears of it."""
    usages: list[Any] = []
    start, used = time.monotonic(), energy()
    result = work(usages, metered(progress, usages, run.store))
    run.store.flush()
    cost = {
        "seconds": round(time.monotonic() - start, 2),
        **counted(usages, run.store),
        "peak_memory_mb": peak_memory(),
    }
    if used is not None and (now := energy()) is not None:
        cost["energy_wh"] = round(now - used, 3)
    return result, cost


def peak_memory() -> float:
    """Of this process so far, in MB. Linux's getrusage would count what the parent held at the exec, too."""
    with suppress(OSError):
        fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return round(int(fields["VmHWM"].removesuffix("kB")) / 1024, 1)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 1)  # macOS counts bytes


def run_check(
    run: Run, command: str, progress: Watcher, work: Callable[[list[Any], Watcher], Result]
) -> Result:
    """What `work` returns and its `cost` (`measured`), also written to the run's file of that name:
    judge_check.json for "judge-check"."""
    with run.asking(command):
        result, cost = measured(run, progress, work)
    result["cost"] = cost
    run.write_json(f"{command.replace('-', '_')}.json", result)
    return result


def unchanged(run: Run, stage: str, inputs: Any, outputs: Sequence[str]) -> bool:
    """Whether this stage already ran on these inputs and what it wrote is still there, whole."""
    entry = run.journal()["stages"].get(stage)
    if not entry or entry["inputs"] != content_hash(inputs):
        return False
    return _sizes(run, outputs) == entry.get("outputs", _sizes(run, outputs)) and all(
        (run / name).is_file() for name in outputs
    )


def _sizes(run: Run, outputs: Sequence[str]) -> dict[str, int]:
    """In bytes. Not of texts, to which later stages add; of rows, which a person may leave out, whether
    the last one is whole."""
    found = {}
    for name in outputs:
        path = run / name
        if path.is_file() and not name.endswith(".md"):
            rows = name.endswith(".jsonl")
            found[name] = int(path.read_bytes()[-1:] in (b"", b"\n")) if rows else path.stat().st_size
    return found


def keep(run: Run, stage: str) -> dict[str, Any]:
    """Note that a stage had nothing to do. Returns what it found when it last ran."""
    entry = run.journal()["stages"][stage]
    spent = {key: what for key, what in entry.items() if key != "energy_wh"}
    run.record(stage, spent | _NOTHING | {"unchanged": True})
    return dict(entry["result"])


def begin(run: Run, stage: str) -> None:
    """What a stage wrote is about to change: until it has finished, its entry is for no inputs."""
    if entry := run.journal()["stages"].get(stage):
        run.record(stage, entry | {"inputs": ""})


def finish(
    run: Run,
    stage: str,
    inputs: Any,
    outputs: Sequence[str],
    result: Mapping[str, Any],
    cost: Mapping[str, Any],
) -> None:
    """Note what a stage wrote, found and cost; `computed` stays when later calls find nothing to do."""
    entry = {"inputs": content_hash(inputs), "outputs": _sizes(run, outputs), "unchanged": False}
    entry |= {**cost, "computed": cost, "result": result}
    run.record(stage, entry)
