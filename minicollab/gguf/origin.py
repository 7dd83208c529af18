"""Where a trained model comes from: what its file and its card say of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from minicollab import __version__
from minicollab.gguf.files import value


@dataclass(frozen=True)
class Origin:
    """`name` is the recipe's, or the folder's of an adapter that was trained elsewhere, of which no
    more is known. `recipe`: sha256 of what the recipe says of the training; `tasks`: which they
    were; `pairs`: how many preference pairs; `judge`: who played the user and judged."""

    name: str
    recipe: str = ""
    tasks: str = ""
    pairs: int = 0
    judge: str = ""


@dataclass(frozen=True)
class Base:
    """What the base's file says of the base; "" where it doesn't."""

    name: str
    license: str
    organization: str
    version: str
    repo_url: str

    @classmethod
    def read(cls, reader: Any, fallback: str) -> Base:
        """`fallback` is the name of a base that has none."""

        def said(key: str, default: str = "") -> str:
            return str(value(reader, f"general.{key}", default))

        return cls(
            said("name", fallback),
            said("license"),
            said("organization"),
            said("version"),
            said("repo_url") or said("source.repo_url"),
        )


def metadata(origin: Origin, base: Base, scale: float) -> dict[str, Any]:
    """The keys of the merged file that are not the base's. `general.*` as in GGUF's specification,
    and a few of our own."""
    told: dict[str, Any] = {
        "general.name": f"{base.name} {origin.name}",
        "general.finetune": origin.name,
        "general.description": described(origin, base),
        "general.tags": ["text-generation", "minicollab", *(["collabllm"] if origin.recipe else [])],
        "general.base_model.count": 1,
        "general.base_model.0.name": base.name,
        "general.base_model.0.organization": base.organization,
        "general.base_model.0.version": base.version,
        "general.base_model.0.repo_url": base.repo_url,
        "minicollab.version": __version__,
        "minicollab.recipe_sha256": origin.recipe,
        "minicollab.tasks": origin.tasks,
        "minicollab.pairs": origin.pairs,
        "minicollab.adapter_scale": f"{scale:g}",
    }
    if origin.tasks:
        told |= {"general.dataset.count": 1, "general.dataset.0.name": origin.tasks}
    return {key: what for key, what in told.items() if what not in ("", 0)}


def described(origin: Origin, base: Base) -> str:
    """In one sentence."""
    if not origin.recipe:
        return f"{base.name} with the LoRA adapter {origin.name}, merged by minicollab"
    return (
        f"{base.name}, trained by minicollab (CollabLLM's multiturn-aware rewards and DPO) on "
        f"{origin.pairs} preference pairs from {origin.tasks}"
    )
