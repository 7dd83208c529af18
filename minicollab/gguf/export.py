"""From an adapter and its base to everything a chat app needs, in one folder, or to nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from minicollab.errors import StageError
from minicollab.files import aside, need_space, remove, scratch, sync
from minicollab.gguf import apps
from minicollab.gguf.adapter import adapter_to_gguf
from minicollab.gguf.files import parameters, read_gguf, value
from minicollab.gguf.merge import merge, quantize
from minicollab.gguf.origin import Base, Origin, metadata
from minicollab.gguf.verify import TEMPLATE_KEY, Chat, verify
from minicollab.progress import Progress, silent
from minicollab.prompts import as_trained
from minicollab.quantization import check_kinds, model_name, room

REPORT, FAILED = "verification.json", "verification-failed.json"
_STOPPED = "the export was stopped while it put its files in place: export again"


@dataclass(frozen=True)
class Order:
    """What to export: the PEFT folder `adapter`, times `scale`, for the GGUF `base`, merged as each
    of `kinds`; `only` leaves the merged files or the adapter's out."""

    adapter: Path
    base: Path
    origin: Origin
    kinds: tuple[str, ...]
    scale: float = 1.0
    only: Literal["adapter", "merged"] | None = None

    @property
    def merged(self) -> tuple[str, ...]:
        """The quantizations that will be written."""
        return () if self.only == "adapter" else self.kinds


def export(
    order: Order, hf_base: Callable[[], Path], out: Path, chats: Sequence[Chat], progress: Progress = silent
) -> dict[str, Any]:
    """Write the files of `order` to the folder `out`, once `verify` has found them right on `chats`.

    `hf_base` gives the Hugging Face folder for torch; it is called when the files are there to be
    compared. Returns `{"adapter", "model" (the first one): names in `out`, "files": all names,
    "verification": what `verify` found}`. The files of an earlier export go when these come; if
    the check fails it is they that stay, StageError says why, and verification-failed.json all.
    """
    kinds = check_kinds(order.merged)
    reader = read_gguf(order.base)
    need_space(out, room(parameters(reader), kinds), "The export")
    with scratch(out / ".unverified") as work:
        kept = work / "kept"
        kept.mkdir(parents=True)
        adapter = (work if order.only == "merged" else kept) / "adapter.gguf"
        adapter_to_gguf(order.adapter, order.base, adapter, order.scale)
        base = Base.read(reader, order.base.stem)
        models = _merged(order, kinds, base, adapter, work, progress)
        check = verify(order.base, adapter, models, hf_base(), order.adapter, chats, order.scale, progress)
        if not check["ok"]:
            _write(out / FAILED, check)
            raise StageError(
                f"the exported model failed its check: {'; '.join(check['failures'])}",
                f"See {out / FAILED}. If no logit changed, train for longer; if the KL is high, the adapter"
                " was trained on other weights than this GGUF's.",
            )
        _add_texts(kept, order, base, reader, [models[kind] for kind in kinds], check)
        files = sorted(path.name for path in kept.iterdir())
        _replace(out, kept, files)
    _write(out / REPORT, check | {"files": files})
    made: dict[str, Any] = {"files": files, "verification": check}
    if "adapter.gguf" in files:
        made["adapter"] = "adapter.gguf"
    if kinds:
        made["model"] = model_name(kinds[0])
    return made


def _merged(
    order: Order, kinds: Sequence[str], base: Base, adapter: Path, work: Path, progress: Progress
) -> dict[str, Path]:
    """The merged files by quantization. The F16 one is always there, since all others come from it."""
    if not kinds:
        return {}
    f16 = (work / "kept" if "f16" in kinds else work) / model_name("f16")
    told = metadata(order.origin, base, order.scale)
    if order.origin.recipe and (template := value(read_gguf(order.base), TEMPLATE_KEY)):
        told[TEMPLATE_KEY] = as_trained(template)
    merge(order.base, adapter, f16, progress, metadata=told)
    models = {"f16": f16}
    for kind in kinds:
        if kind != "f16":
            models[kind] = quantize(f16, work / "kept" / model_name(kind), kind, progress)
    return {kind: models[kind] for kind in dict.fromkeys([*kinds, "f16"])}


def _add_texts(
    kept: Path, order: Order, base: Base, reader: Any, models: Sequence[Path], check: Mapping[str, Any]
) -> None:
    name = apps.slug(order.origin, base)
    adapter = None if order.only == "merged" else "adapter.gguf"
    names = [path.name for path in models]
    if models:
        (kept / "Modelfile").write_text(apps.modelfile(names[0], reader), "utf-8")
        with suppress(OSError):  # not every file system has hard links; HOWTO.md has another way
            apps.lm_studio(kept / apps.LM_STUDIO, name, models)
    (kept / "HOWTO.md").write_text(apps.howto(name, names, adapter, order.base.name), "utf-8")
    files = [*names, *([adapter] if adapter else [])]
    (kept / "MODEL_CARD.md").write_text(apps.card(order.origin, base, check, files), "utf-8")


def _replace(out: Path, kept: Path, files: Sequence[str]) -> None:
    """Put the files in `out`, in place of what the report of an earlier export names. Whoever comes
    after a kill finds both named."""
    earlier: list[str] = []
    with suppress(OSError, ValueError, AttributeError):
        earlier = json.loads((out / REPORT).read_text("utf-8")).get("files", [])
    surplus = [name for name in earlier if name not in files and Path(name).name == name]
    sync(kept)  # this may take a while, and be stopped: all is still there
    _write(out / REPORT, {"ok": False, "failures": [_STOPPED], "files": [*files, *surplus]})
    remove(out / FAILED)
    for name in files:
        if (kept / name).is_dir():
            remove(out / name)
        os.replace(kept / name, out / name)
    for name in surplus:
        remove(out / name)


def _write(path: Path, report: Mapping[str, Any]) -> None:
    with aside(path) as partial:
        partial.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
