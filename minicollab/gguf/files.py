"""Reading GGUF files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from minicollab.errors import ModelError


def read_gguf(path: Path) -> Any:
    """A memory-mapped `gguf.GGUFReader`: metadata now, tensors when touched.

    Raises ModelError if the file is missing, broken, or one part of several.
    """
    import gguf

    if not path.is_file():
        raise ModelError(f"there is no GGUF at {path}", "Check the path in the recipe.")
    try:
        reader = gguf.GGUFReader(path)
    except (ValueError, IndexError, KeyError) as error:
        raise ModelError(f"{path} is not a readable GGUF: {error}", "Download or convert it again.") from None
    if value(reader, "split.count", 1) > 1:
        raise ModelError(
            f"{path.name} is one part of a split GGUF",
            "Join the parts with `llama-gguf-split --merge` first.",
        )
    return reader


def value(reader: Any, key: str, default: Any = None) -> Any:
    """One metadata value of a GGUF."""
    field = reader.get_field(key)
    return default if field is None else field.contents()


def parameters(reader: Any) -> int:
    """How many numbers the tensors of a GGUF hold."""
    return sum(int(t.n_elements) for t in reader.tensors)
