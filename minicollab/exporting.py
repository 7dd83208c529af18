"""What the export stage is given: a run's adapter, or one that was trained elsewhere."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minicollab import roles
from minicollab.cache.keys import Memory, content_hash, file_fingerprint
from minicollab.errors import ModelError, RunError
from minicollab.files import aside
from minicollab.labelled import conversations
from minicollab.models import resolve, user_cache
from minicollab.progress import Progress, silent
from minicollab.quantization import model_name
from minicollab.recipe import Export
from minicollab.run import Result, Run, peak_memory

if TYPE_CHECKING:
    from minicollab.gguf.origin import Origin

_CHATS = 10  # conversations on which an export is compared with torch
_CONFIG = "adapter_config.json"
_WEIGHTS = "adapter/adapter_model.safetensors"
# Of a recipe, what has no part in what the model becomes.
_NOT_THE_MODEL = {"name", "export", "eval", "engine", "remote", "sandbox", "cache"}


def export_run(run: Run, pairs: Sequence[Result], hf_base: Callable[[], Path], progress: Progress) -> Result:
    """adapter/ of a run → export/. What `gguf.export.export` returns, its names relative to the run."""
    from minicollab.gguf.export import Order, export

    options = run.recipe.export
    trained = run.journal()["stages"].get("train", {}).get("result", {})  # some may have been too long
    order = Order(
        run.need("adapter", "train"),
        roles.gguf(run, "policy", progress),
        origin(run, trained.get("pairs", len(pairs))),
        options.kinds,
        options.scale,
        options.only,
    )
    chats = [[*row["prompt"], *row["chosen"]] for row in pairs]
    made = export(order, hf_base, run / "export", _enough(chats), progress)
    if "model" in made:
        add_known_evaluation(run)
    made["adapter_sha256"] = file_fingerprint(run / _WEIGHTS, run.store)
    return made | {key: f"export/{made[key]}" for key in ("adapter", "model") if key in made}


def export_adapter(
    adapter: Path,
    base: str,
    hf_base: Path | None = None,
    out: Path | None = None,
    options: Export | None = None,
    progress: Progress = silent,
) -> Result:
    """A PEFT folder that was trained elsewhere → `out` (default: beside it, its name with "-gguf").

    `base` names the GGUF to put it on, as a recipe would. Compared with torch on `hf_base`, or on
    that GGUF dequantized. Returns what `gguf.export.export` does, the folder `out` and the peak
    memory in MB. Raises ModelError if `adapter` is no PEFT adapter.
    """
    from minicollab.gguf.export import Order, export
    from minicollab.gguf.origin import Origin

    options = options or Export()
    adapter = adapter.resolve()
    if not (adapter / _CONFIG).is_file():
        raise ModelError(
            f"{adapter} is no PEFT adapter: it has no {_CONFIG}",
            "Give the folder that the trainer saved its adapter to.",
        )
    if hf_base and not (hf_base / "config.json").is_file():
        raise ModelError(
            f"{hf_base} is no Hugging Face model: it has no config.json",
            "Give its folder with --hf-base, or leave that out.",
        )
    gguf = resolve(base, Path(), progress)
    order = Order(adapter, gguf, Origin(adapter.name), options.kinds, options.scale, options.only)
    folder = (out or adapter.with_name(f"{adapter.name}-gguf")).resolve()
    made = export(order, lambda: hf_base or dequantized(gguf, None, progress), folder, _enough([]), progress)
    return made | {"folder": str(folder), "peak_memory_mb": peak_memory()}


def dequantized(gguf: Path, memory: Memory | None, progress: Progress) -> Path:
    """The GGUF as a Hugging Face folder in the person's cache, made when it is not there, by one
    process at a time."""
    from filelock import FileLock

    from minicollab.gguf.dequantize import dequantize_to_hf

    folder = dequantized_folders() / f"{gguf.stem}-{file_fingerprint(gguf, memory)[:12]}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        return dequantize_to_hf(gguf, folder, progress)


def dequantized_folders() -> Path:
    """Where these lie, each named after its GGUF and what is in that."""
    return user_cache() / "dequantized"


def inputs(run: Run, progress: Progress) -> Result:
    """What the export of a run depends on."""
    options = run.recipe.export
    base = file_fingerprint(roles.gguf(run, "policy", progress), run.store)
    run.need(_WEIGHTS, "train")
    names = (_WEIGHTS, f"adapter/{_CONFIG}")
    adapter = {name: file_fingerprint(run / name, run.store) for name in names if (run / name).is_file()}
    return {"base": base, "options": options.model_dump(), "adapter": adapter, "from": asdict(origin(run))}


def outputs(run: Run) -> list[str]:
    only = run.recipe.export.only
    files = ["MODEL_CARD.md", "HOWTO.md"]
    files += [] if only == "merged" else ["adapter.gguf"]
    files += [] if only == "adapter" else ["Modelfile", *map(model_name, run.recipe.export.kinds)]
    return [f"export/{name}" for name in files]


def model_file(run: Run) -> Path:
    """Where the merged model lies; of several, the first."""
    return run / "export" / model_name(run.recipe.export.kinds[0])


def trained(run: Run) -> Path:
    """The merged model. RunError if the run has none, or has been trained anew since, with what to
    type."""
    return _exported(run, model_file(run).name, "adapter", "merged model")


def adapter(run: Run) -> Path:
    """The adapter's GGUF; the same."""
    return _exported(run, "adapter.gguf", "merged", "adapter")


def _exported(run: Run, name: str, other: str, what: str) -> Path:
    if run.recipe.export.only == other:
        raise RunError(
            f"{run.folder.name} has exported its {other} alone, and this needs the {what}",
            f"Run: minicollab export {run.folder} --set export.only=null",
        )
    file = run.need(f"export/{name}", "export")
    exported = run.journal()["stages"].get("export", {}).get("result", {}).get("adapter_sha256")
    if exported and (run / _WEIGHTS).is_file() and exported != file_fingerprint(run / _WEIGHTS, run.store):
        raise RunError(
            f"{run.folder.name} has been trained anew since {name} was exported",
            f"Run: minicollab export {run.folder}",
        )
    return file


def add_known_evaluation(run: Run) -> None:
    """The last one, if it was of this very model: a quantization has been added."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads((run / "eval.json").read_text("utf-8"))
        if known["model_sha256"] == file_fingerprint(model_file(run), run.store):
            add_evaluation(run, known)


def add_evaluation(run: Run, evaluation: Mapping[str, Any]) -> None:
    """Put the three arms into the exported model's card, if it has one."""
    from minicollab.gguf.apps import evaluated

    path = run / "export" / "MODEL_CARD.md"
    if path.is_file():
        text = evaluated(path.read_text("utf-8"), evaluation)
        with aside(path) as partial:
            partial.write_text(text, "utf-8")


def origin(run: Run, pairs: int = 0) -> Origin:
    """Where a run's model comes from. Paths are named by their last part: the same recipe has the
    same hash on another machine."""
    from minicollab.gguf.origin import Origin

    recipe = run.recipe
    told = content_hash(_without_folders(recipe.model_dump(exclude=_NOT_THE_MODEL)))
    number, source = recipe.tasks.train, _without_folders(recipe.tasks.path)
    tasks = f"{number} task{'s' * (number != 1)} of {source} ({recipe.tasks.family})"
    return Origin(
        recipe.name, told, tasks, pairs, _without_folders(recipe.models.judge or recipe.models.policy)
    )


def _without_folders(told: Any) -> Any:
    if isinstance(told, dict):
        return {_without_folders(key): _without_folders(inside) for key, inside in told.items()}
    return Path(told).name if isinstance(told, str) and os.path.isabs(told) else told


def _enough(chats: Sequence[list[dict[str, str]]]) -> list[list[dict[str, str]]]:
    """The first of them; where they are few, with some that come with minicollab."""
    spare = [row.talk.as_dicts() for row in conversations("held_out")]
    return [*chats, *spare][:_CHATS]
