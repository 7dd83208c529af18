"""Checkpoints of a training: only a whole one of the same training is gone on from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from minicollab.cache.keys import file_fingerprint
from minicollab.files import aside, remove, sync

_SEAL = "checksums.json"


def claim(folder: Path, fingerprint: str) -> Path | None:
    """The last whole checkpoint in `folder` of the training with this fingerprint; those of any
    other and those that are damaged are deleted."""
    note = folder / "fingerprint.json"
    if _json(note) != fingerprint:
        remove(folder)
        folder.mkdir(parents=True)
        with aside(note) as partial:
            partial.write_text(json.dumps(fingerprint), "utf-8")
    for checkpoint in sorted(folder.glob("checkpoint-*"), key=step, reverse=True):
        if _json(checkpoint / _SEAL) == _checksums(checkpoint):
            return checkpoint
        remove(checkpoint)
    return None


def seal(checkpoint: Path) -> None:
    """Note the checksums of a checkpoint that is complete; the ones before it are deleted then."""
    sync(checkpoint.parent)
    with aside(checkpoint / _SEAL) as partial:
        partial.write_text(json.dumps(_checksums(checkpoint)), "utf-8")
    for other in checkpoint.parent.glob("checkpoint-*"):
        if other != checkpoint:
            remove(other)


def weights_state(base: Path) -> list[list[Any]]:
    """Of the files of weights in a folder: whether they are the ones of before. Nothing of a hub's name."""
    found = ((path, path.stat()) for path in sorted(base.glob("*.safetensors")))
    return [[path.name, state.st_size, state.st_mtime_ns] for path, state in found]


def step(checkpoint: Path) -> int:
    """After how many optimizer steps it was written."""
    return int(checkpoint.name.rpartition("-")[2])


def _checksums(checkpoint: Path) -> dict[str, str]:
    files = [path for path in checkpoint.rglob("*") if path.is_file() and path.name != _SEAL]
    return {str(path.relative_to(checkpoint)): file_fingerprint(path) for path in files}


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
