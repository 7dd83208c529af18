"""A PEFT LoRA adapter as a llama.cpp LoRA GGUF."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from minicollab.errors import StageError
from minicollab.files import aside
from minicollab.gguf.files import read_gguf, value

# llama.cpp interleaves the two rotary halves of q and k in files of architecture "llama"
# (Llama, Mistral, SmolLM), and keeps Hugging Face's order in the others.
_INTERLEAVED = {"llama": True, "qwen2": False, "qwen3": False}

# Settings of adapter_config.json that a LoRA GGUF has no words for, and what to say instead.
_UNSUPPORTED = {
    "use_dora": "Train without DoRA.",
    "modules_to_save": "Train LoRA only, without modules_to_save.",
    "trainable_token_indices": "Train LoRA only, without trained tokens.",
    "rank_pattern": "Train all modules with one rank.",
    "alpha_pattern": "Train all modules with one alpha.",
    "lora_bias": "Train without lora_bias.",
    "fan_in_fan_out": "Train a model with plain linear layers.",
}


def adapter_to_gguf(adapter_dir: Path, base_gguf: Path, out: Path) -> Path:
    """Convert `adapter_dir` (adapter_config.json, adapter_model.safetensors) for `base_gguf`.

    Every adapted tensor becomes `<name>.lora_a`, (rank, in), and `<name>.lora_b`, (out, rank);
    llama.cpp adds alpha / rank * B @ A. float32, because the entries of B after a few DPO steps
    are about as small as float16's smallest.
    Raises StageError where the adapter is not plain LoRA, or was made for another model.
    """
    import gguf

    config = _config(adapter_dir)
    base = read_gguf(base_gguf)
    arch = value(base, "general.architecture")
    if arch not in _INTERLEAVED:
        raise StageError(
            f"adapters for the architecture {arch!r} cannot be converted",
            f"Use one of {', '.join(_INTERLEAVED)}.",
        )
    pairs = _pairs(adapter_dir, base, arch)
    rank = config["r"]
    alpha = config["lora_alpha"] * (math.sqrt(rank) if config.get("use_rslora") else 1)
    with aside(out) as partial:
        writer = gguf.GGUFWriter(partial, arch)
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_name(f"{value(base, 'general.name', base_gguf.stem)} minicollab adapter")
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", alpha)
        for name, (a, b) in pairs.items():
            writer.add_tensor(f"{name}.lora_a", a)
            writer.add_tensor(f"{name}.lora_b", b)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return out


def _config(adapter_dir: Path) -> dict[str, Any]:
    try:
        config = json.loads((adapter_dir / "adapter_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StageError(f"no PEFT adapter in {adapter_dir}: {error}", "Run the train stage first.") from None
    if config.get("peft_type") != "LORA":
        raise StageError(f"{adapter_dir} holds a {config.get('peft_type')} adapter", "Train a LoRA adapter.")
    for setting, remedy in _UNSUPPORTED.items():
        if config.get(setting):
            raise StageError(f"the adapter sets {setting}, which GGUF adapters do not have", remedy)
    return config


def _pairs(adapter_dir: Path, base: Any, arch: str) -> dict[str, tuple[Any, Any]]:
    """GGUF tensor name → (A, B) as float32 arrays, checked against the base's shapes."""
    shapes = {t.name: tuple(int(n) for n in reversed(t.shape)) for t in base.tensors}
    pairs = {}
    for module, (a, b) in _modules(adapter_dir).items():
        name = _tensor_name(module, base, arch)
        if shapes.get(name) != (b.shape[0], a.shape[1]):
            raise StageError(
                f"the adapter's {module} ({b.shape[0]}x{a.shape[1]}) does not fit the base's"
                f" {name} ({'x'.join(map(str, shapes.get(name, ()))) or 'not there'})",
                "Export against the GGUF that the adapter was trained on.",
            )
        if _INTERLEAVED[arch] and name.endswith(("attn_q.weight", "attn_k.weight")):
            key = "head_count" if name.endswith("attn_q.weight") else "head_count_kv"
            b = interleave(b, value(base, f"{arch}.attention.{key}"))
        pairs[name] = (a, b)
    return pairs


def interleave(rows: Any, heads: int) -> Any:
    """Rows of q or k, (out, n), from Hugging Face's rotary order (first halves, then second
    halves of each head) to llama.cpp's (pairs)."""
    import numpy as np

    out, n = rows.shape
    return np.ascontiguousarray(rows.reshape(heads, 2, out // heads // 2, n).swapaxes(1, 2).reshape(out, n))


def _modules(adapter_dir: Path) -> dict[str, tuple[Any, Any]]:
    """Module name → (A, B) of every LoRA layer in the adapter."""
    from safetensors.torch import load_file

    file = adapter_dir / "adapter_model.safetensors"
    if not file.is_file():
        raise StageError(f"there is no {file.name} in {adapter_dir}", "Run the train stage first.")
    halves: dict[str, dict[str, Any]] = {}
    for key, tensor in load_file(file).items():
        module, _, half = key.removeprefix("base_model.model.").removesuffix(".weight").rpartition(".")
        if half not in ("lora_A", "lora_B"):
            raise StageError(
                f"the adapter holds {key}, which is not LoRA on a linear layer",
                "Train LoRA on linear layers only, without embeddings.",
            )
        halves.setdefault(module, {})[half] = tensor.float().numpy()
    broken = [module for module, pair in halves.items() if len(pair) != 2]
    if broken or not halves:
        raise StageError(
            f"the adapter in {adapter_dir} is incomplete {broken[:1]}", "Run the train stage again."
        )
    return {module: (pair["lora_A"], pair["lora_B"]) for module, pair in halves.items()}


def _tensor_name(module: str, base: Any, arch: str) -> str:
    import gguf

    archs = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(archs[arch], value(base, f"{arch}.block_count"))
    name = names.get_name(module)
    if name is None:
        raise StageError(
            f"the adapter trains {module}, which {arch} models have no tensor for",
            "Train the attention and feed-forward projections only.",
        )
    return f"{name}.weight"
