"""Reading GGUF files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minicollab.errors import ModelError

_BLOCK = 2**23  # numbers at a time: some 100 MB with what dequantizing needs besides


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


def shape(tensor: Any) -> tuple[int, ...]:
    """(rows, columns) of a GGUF's tensor, as numpy and torch have them."""
    return tuple(int(n) for n in reversed(tensor.shape))


def blocks(tensor: Any) -> Iterator[tuple[int, Any]]:
    """The tensor as float32, some rows at a time: (index of the first row, rows).

    At most `_BLOCK` numbers each (but at least one row): an embedding can be gigabytes.
    """
    import gguf

    rows = shape(tensor)[0]
    step = max(1, _BLOCK * rows // int(tensor.n_elements))
    for start in range(0, rows, step):
        yield start, gguf.quants.dequantize(tensor.data[start : start + step], tensor.tensor_type)


def dequantized(tensor: Any) -> Any:
    """The whole tensor as a float32 array."""
    import numpy as np

    out = np.empty(shape(tensor), np.float32)
    for start, rows in blocks(tensor):
        out[start : start + len(rows)] = rows
    return out
