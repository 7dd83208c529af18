"""A metric of your own: a Python function that a recipe names, `metrics.py:my_metric`."""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable
from functools import lru_cache
from numbers import Real
from pathlib import Path
from types import ModuleType
from typing import Any

from minicollab.cache.keys import content_hash
from minicollab.cast import Cast, Measured
from minicollab.errors import RecipeError
from minicollab.failures import Failure
from minicollab.recipe import label
from minicollab.schema import Rollout, Task

_REMEDY = "Name it in reward.weights as path/to/metrics.py:my_metric."


async def measure(rollout: Rollout, task: Task, cast: Cast, name: str) -> Measured:
    """What `my_metric(messages, task)` returns, or what it returned awaits: a finite number.

    `messages` is the finished conversation, a list of {"role", "content"}. Failure if it raises
    or gives something else; RecipeError if it cannot be loaded.
    """
    metric, what = load(name), f"metric {label(name)}"
    try:
        value = metric(rollout.conversation.as_dicts(), task)
        if inspect.isawaitable(value):
            value = await value
        number = float(value) if isinstance(value, Real) else math.nan
    except (Exception, SystemExit) as error:
        raise Failure(f"{what} failed with {type(error).__name__} ({error})") from error
    if not math.isfinite(number):
        raise Failure(f"{what} gave no number: {str(value)[:80]!r}")
    return Measured(number)


def load(name: str) -> Callable[..., Any]:
    """The function that `path/to/metrics.py:my_metric` names. Its file is run once, and again if
    it was changed. RecipeError if there is no such file or function, or the file does not run."""
    path, _, function = name.rpartition(":")
    found = getattr(_module(path, _source(path)), function, None)
    if not callable(found):
        raise RecipeError(f"there is no function {function} in {path}", _REMEDY)
    return found


def fingerprint(name: str) -> str:
    """The hash of the file's content. RecipeError if the function cannot be loaded."""
    load(name)
    return content_hash(_source(name.rpartition(":")[0]))


def _source(path: str) -> str:
    try:
        return Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"the metric's file {path} cannot be read: {error}", _REMEDY) from None


@lru_cache
def _module(path: str, source: str) -> ModuleType:
    module = ModuleType(f"minicollab_metric_{content_hash([path, source])[:12]}")
    module.__file__ = path
    sys.modules[module.__name__] = module  # dataclasses look their module up there
    try:
        exec(compile(source, path, "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        raise RecipeError(
            f"{path} cannot be loaded: {type(error).__name__}: {error}",
            "Mend it: Python must be able to run it.",
        ) from None
    return module
