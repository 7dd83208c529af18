"""The model families that are trained and exported, and what sets their GGUFs apart from Hugging Face's
folders. Read from llama.cpp's converters and checked against its logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from minicollab.errors import ModelError
from minicollab.gguf.files import value


@dataclass(frozen=True)
class Architecture:
    """`model_type` is Hugging Face's name for it. `interleaved`: llama.cpp stores the two rotary
    halves of q and k row by row in turn. `norm_offset`: what it adds to the weights of norms."""

    model_type: str
    families: str
    interleaved: bool = False
    norm_offset: int = 0


ARCHITECTURES = {
    "llama": Architecture("llama", "Llama, Mistral, SmolLM2", interleaved=True),
    "qwen2": Architecture("qwen2", "Qwen2, Qwen2.5"),
    "qwen3": Architecture("qwen3", "Qwen3"),
    "gemma2": Architecture("gemma2", "Gemma 2", norm_offset=1),
    "gemma3": Architecture("gemma3_text", "Gemma 3", norm_offset=1),
    "phi3": Architecture("phi3", "Phi 3, Phi 4"),
}
"""`general.architecture` of a GGUF → what to know about it."""


def architecture(reader: Any) -> Architecture:
    """Raises ModelError, which names the known ones."""
    name = value(reader, "general.architecture")
    if name not in ARCHITECTURES:
        known = ", ".join(f"{key} ({known.families})" for key, known in ARCHITECTURES.items())
        raise ModelError(
            f"models of the architecture {name!r} cannot be trained and exported", f"Use one of {known}."
        )
    return ARCHITECTURES[name]


def setting(reader: Any, key: str, default: Any = None) -> Any:
    """A hyperparameter of the model, such as "attention.head_count"."""
    return value(reader, f"{value(reader, 'general.architecture')}.{key}", default)


def tensor_names(reader: Any) -> Any:
    """`get_name`: a Hugging Face module, such as "model.layers.0.mlp.up_proj" → llama.cpp's name
    for it, or None."""
    import gguf

    archs = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}
    arch = archs[value(reader, "general.architecture")]
    return gguf.get_tensor_name_map(arch, setting(reader, "block_count"))


def to_llama_cpp(name: str, rows: Any, reader: Any) -> Any:
    """The rows of `name` (a weight, a bias, or B of an adapter) in llama.cpp's order."""
    heads = _interleaved_heads(name, reader)
    return interleave(rows, heads) if heads else rows


def to_hugging_face(name: str, rows: Any, reader: Any) -> Any:
    """The values of `name`, in Hugging Face's order and with its norms."""
    heads = _interleaved_heads(name, reader)
    if heads:
        return interleave(rows, heads, back=True)
    return rows - architecture(reader).norm_offset if name.endswith("norm.weight") else rows


def interleave(rows: Any, heads: int, back: bool = False) -> Any:
    """Rows of q or k, (out, ...), from Hugging Face's rotary order (first halves, then second
    halves of each head) to llama.cpp's (pairs), or `back`."""
    import numpy as np

    half = len(rows) // heads // 2
    split = (heads, half, 2) if back else (heads, 2, half)
    turned = rows.reshape(*split, *rows.shape[1:]).swapaxes(1, 2)
    return np.ascontiguousarray(turned.reshape(rows.shape))


def _interleaved_heads(name: str, reader: Any) -> int:
    """How many heads' rows `name` holds, if they are interleaved; else 0."""
    part = name.split(".")[-2]
    if part not in ("attn_q", "attn_k") or not architecture(reader).interleaved:
        return 0
    heads: int = setting(reader, "attention.head_count")
    return heads if part == "attn_q" else setting(reader, "attention.head_count_kv", heads)
