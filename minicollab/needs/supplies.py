"""What a recipe needs from elsewhere: models and data sets, and which of them are here already."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from minicollab import fetch
from minicollab.errors import MinicollabError, ModelError, TaskError
from minicollab.models import QWEN, resolve, user_cache
from minicollab.progress import Progress, silent
from minicollab.recipe import HUB, Recipe, is_remote
from minicollab.tasks import tasks_file


@dataclass(frozen=True)
class Supply:
    """`role`: "policy", "judge", "adapter", "train_base" or "tasks"; `name` as the recipe has it; `path`
    where it lies, None if it is not here."""

    role: str
    name: str
    path: Path | None


def needed(recipe: Recipe) -> list[Supply]:
    """Everything that a run of the recipe reads, looked up without fetching anything. Of two roles
    with one model the first counts. Raises ModelError or TaskError for a file that is missing or unfit."""
    return [Supply(role, name, _here(role, name, get)) for role, name, get in _sources(recipe)]


def fetch_all(recipe: Recipe, progress: Progress = silent) -> list[Supply]:
    """The same, and what is not here is fetched; a fetch that broke off goes on where it stopped.
    Under HF_HUB_OFFLINE nothing is fetched. Raises ModelError or TaskError."""
    if fetch.is_offline():
        found = needed(recipe)
        if missing := [supply.name for supply in found if not supply.path]:
            raise ModelError(
                f"not on this machine: {', '.join(missing)} (looked in {' and '.join(map(str, _folders()))})",
                "HF_HUB_OFFLINE forbids to fetch them: unset it and run the same command.",
            )
        return found
    return [Supply(role, name, get(progress)) for role, name, get in _sources(recipe)]


def _sources(recipe: Recipe) -> list[tuple[str, str, Callable[[Progress], Path]]]:
    models = recipe.models
    names = {"policy": models.policy, "judge": models.judge or models.policy}
    found: dict[str, tuple[str, str, Callable[[Progress], Path]]] = {}
    for role, name in names.items():
        if not is_remote(name):
            found.setdefault(name, (role, name, partial(resolve, name, Path())))
    if models.adapter:
        found[models.adapter] = ("adapter", models.adapter, lambda _: _adapter(str(models.adapter)))
    base = models.train_base
    if base and not Path(base).is_dir():
        found[base] = ("train_base", base, lambda progress: fetch.base(base, progress))
    return [*found.values(), ("tasks", recipe.tasks.path, lambda _: _tasks(recipe))]


def _tasks(recipe: Recipe) -> Path:
    path = tasks_file(recipe.tasks)
    if not path.exists():
        raise TaskError(f"there is no task file {path}", "Set tasks.path in the recipe to one.")
    return path


def _adapter(path: str) -> Path:
    if not Path(path).is_file():
        raise ModelError(f"there is no adapter {path}", "Set models.adapter to a LoRA GGUF, or leave it out.")
    return Path(path)


def _here(role: str, name: str, get: Callable[[Progress], Path]) -> Path | None:
    if name == QWEN and not fetch.qwen_path(user_cache() / "models").is_file():
        return None
    with fetch.offline():
        if not (name.startswith(HUB) or role == "train_base"):
            return get(silent)
        with suppress(MinicollabError):
            return get(silent)
    return None


def _folders() -> tuple[Path, Path]:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE), user_cache()
