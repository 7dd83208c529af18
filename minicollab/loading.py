"""Reads a recipe: strict at this edge, a fault is one line that names the nearest known key.

Paths in a recipe are relative to the recipe's own folder and absolute once loaded.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from minicollab.errors import RecipeError
from minicollab.files import expanded
from minicollab.recipe import HUB, METRICS, Models, Question, Recipe, is_function, is_remote, label

_NO_YAML = (yaml.YAMLError, ValueError, RecursionError)  # the last two: a number too long, text too deep
_SERVER = re.compile(r"https?://([\w.-]+|\[[\da-fA-F:]+\])(:(?P<port>\d{1,5}))?(/[\w./~%-]*)?#\S+")


class _Loader(yaml.SafeLoader):
    """In which no key is there twice: YAML would take the last one without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := [name for name, count in Counter(names).items() if count > 1 and name != "<<"]:
            raise yaml.constructor.ConstructorError(None, None, f"{twice[0]} is there twice", node.start_mark)
        return super().construct_mapping(node, deep)


# What a metric would stand beside, in results.
_TAKEN = (
    "mr", "tokens_read_k", "arm", "task_id", "sample", "details", "messages", "stop_reason", "cut",
    "judgements", "extracted", "failure",
)  # fmt: skip


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe. `overrides` are `key.path=value` strings, their values YAML.

    Raises RecipeError with the place of the first fault and the nearest key that exists.
    """
    try:
        raw = yaml.load(path.read_text("utf-8"), _Loader)
    except FileNotFoundError:
        raise RecipeError(
            f"there is no recipe {path}", "Give the path of a recipe or of a run folder."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} cannot be read: {error}", "Give the path of a recipe (YAML).") from None
    except _NO_YAML as error:
        raise RecipeError(f"{path} is not YAML: {error}", "Mend that line.") from None
    if not isinstance(raw, dict):
        raise RecipeError(f"{path} is not a recipe", "It must be YAML with name, models and tasks.")
    for override in overrides:
        _override(raw, override)
    try:
        recipe = Recipe.model_validate(raw)
    except ValidationError as error:
        raise _explain(path, error) from None
    _check_servers(path, recipe.models)
    _check_metrics(path, recipe)
    _check_gap(path, recipe)
    return _with_absolute_paths(recipe, path.parent)


def recipe_at(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe `path`, or that of the run folder `path`. Raises RecipeError as `load_recipe` does."""
    return load_recipe(path / "recipe.yaml" if path.is_dir() else path, overrides)


def _with_absolute_paths(recipe: Recipe, folder: Path) -> Recipe:
    models = {
        role: _absolute(name, folder) if name and _is_path(role, name, folder) else name
        for role, name in recipe.models.model_dump().items()
    }
    weights = {
        _absolute(name, folder) if is_function(name) else name: weight
        for name, weight in recipe.reward.weights.items()
    }
    tasks, python = recipe.tasks, recipe.sandbox.python
    if not tasks.path.startswith(HUB):
        tasks = tasks.model_copy(update={"path": _absolute(tasks.path, folder)})
    if python:
        python = str(folder / expanded(python))  # not resolved: a venv is known by its link
    return recipe.model_copy(
        update={
            "models": Models(**models),
            "tasks": tasks,
            "reward": recipe.reward.model_copy(update={"weights": weights}),
            "sandbox": recipe.sandbox.model_copy(update={"python": python}),
            "cache": recipe.cache and _absolute(recipe.cache, folder),
        }
    )


def _check_servers(path: Path, models: Models) -> None:
    for role, name in (("policy", models.policy), ("judge", models.judge)):
        server = _SERVER.fullmatch(name) if name and is_remote(name) else None
        if name and is_remote(name) and not (server and int(server["port"] or 0) < 1 << 16):
            raise RecipeError(
                f"{path.name}: models.{role}: {name} is not a model on a server",
                "Write it as http://host:port/v1#model-name.",
            )
    if models.adapter and is_remote(models.policy):
        raise RecipeError(
            f"{path.name}: models.adapter cannot be put on a policy that is on a server",
            "Load it there and remove the key, or name a GGUF as models.policy.",
        )


def _check_metrics(path: Path, recipe: Recipe) -> None:
    asked = {question.metric for question in recipe.judge.questions.values()}
    known = [*METRICS, *sorted(asked - set(METRICS))]
    own = [*asked, *(name for name in recipe.reward.weights if is_function(name))]
    weighed = Counter(label(name) for name in recipe.reward.weights)
    for name in own:
        if label(name) in {*METRICS, *_TAKEN} or weighed[label(name)] > 1:
            raise RecipeError(
                f"{path.name}: {name}: {label(name)} is the name of something else",
                "Give this one another name.",
            )
    for name in recipe.reward.weights:
        if name not in known and not is_function(name):
            near = difflib.get_close_matches(name, known, 1)
            if name == "interactivity":
                hint = "Ask for it in judge.questions."
            else:
                hint = f"Did you mean {near[0]}?" if near else f"Known ones: {', '.join(known)}."
            raise RecipeError(f"{path.name}: reward.weights.{name} is no metric", hint)


def _check_gap(path: Path, recipe: Recipe) -> None:
    fixed = recipe.simulate.allocation == "fixed"
    least = recipe.simulate.futures if fixed else recipe.simulate.futures // 2
    if recipe.pairs.min_gap_se and least < 2:
        raise RecipeError(
            f"{path.name}: pairs.min_gap_se needs two futures of every candidate",
            f"Set simulate.futures to {2 if fixed else 4} or more, or leave the key out.",
        )


def _is_path(role: str, model: str, folder: Path) -> bool:
    """A `train_base` is a folder if there is one, else a name on the hub."""
    if role == "train_base":
        return Path(_absolute(model, folder)).is_dir()
    return role == "adapter" or (
        model.endswith(".gguf") and not model.startswith("hf:") and not is_remote(model)
    )


def _absolute(name: str, folder: Path) -> str:
    return str((folder / expanded(name)).resolve())


def _override(raw: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise RecipeError(f"--set {override} has no value", "Write it as --set key.path=value.")
    *parents, last = key.split(".")
    for parent in parents:
        if not isinstance(raw.setdefault(parent, {}), dict):
            raise RecipeError(f"--set {key}: {parent} has no keys in it", "Check the key against the recipe.")
        raw = raw[parent]
    try:
        raw[last] = yaml.safe_load(value)
    except _NO_YAML:
        raise RecipeError(
            f"--set {override} has a value that is not YAML", "Quote or mend the value."
        ) from None


def _explain(path: Path, error: ValidationError) -> RecipeError:
    fault = error.errors()[0]
    where = ".".join(str(part) for part in fault["loc"])
    if fault["type"] != "extra_forbidden":
        return RecipeError(
            f"{path.name}: {where}: {fault['msg'][:1].lower()}{fault['msg'][1:]}",
            "Change that value in the recipe.",
        )
    *parents, key = [str(part) for part in fault["loc"]]
    known = _keys_at(parents)
    near = difflib.get_close_matches(key, known, 1)
    hint = f"Did you mean {near[0]}?" if near else f"Known keys there: {', '.join(known)}."
    return RecipeError(f"{path.name}: there is no key {where}", hint)


def _keys_at(parents: list[str]) -> list[str]:
    model: Any = Recipe
    for parent in parents:
        field = getattr(model, "model_fields", {}).get(parent)
        model = field.annotation if field else Question
    return list(getattr(model, "model_fields", {}))
