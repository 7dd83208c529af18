"""A PEFT LoRA adapter as a llama.cpp LoRA GGUF."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from minicollab.errors import StageError
from minicollab.files import aside
from minicollab.gguf.architectures import architecture, tensor_names, to_llama_cpp
from minicollab.gguf.files import read_gguf, shape, value

# Settings of adapter_config.json that a LoRA GGUF has no words for, and what to say instead.
_UNSUPPORTED = {
    "use_dora": "Train without DoRA.",
    "modules_to_save": "Train LoRA only, without modules_to_save.",
    "trainable_token_indices": "Train LoRA only, without trained tokens.",
    "target_parameters": "Train LoRA on linear layers only, without target_parameters.",
    "layer_replication": "Train without layer_replication.",
    "alora_invocation_tokens": "Train without alora_invocation_tokens.",
    "use_qalora": "Train without QALoRA.",
    "lora_bias": "Train without lora_bias.",
    "fan_in_fan_out": "Train a model with plain linear layers.",
}
# With these starts PEFT takes something out of the base's weights, which the GGUF still has.
_CHANGES_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_MOST = 3e38  # of float32
_KEY = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_([AB])(?:\.default)?\.weight")
# Around the text model, where there is a multimodal one (Gemma 3).
_WRAPPED = re.compile(r"^(model\.)?(language_model\.)?(model\.)?")


def adapter_to_gguf(adapter_dir: Path, base_gguf: Path, out: Path, scale: float = 1.0) -> Path:
    """Convert `adapter_dir` (adapter_config.json, adapter_model.safetensors) for `base_gguf`.

    Every adapted tensor becomes `<name>.lora_a`, (rank, in), and `<name>.lora_b`, (out, rank);
    llama.cpp adds alpha / rank * B @ A, with one alpha for all. PEFT may have an alpha per module
    and may divide by sqrt(rank) (rsLoRA, Kalajdzievski 2023): what differs between modules goes
    into B. `scale` multiplies alpha. float32, because the entries of B after a few DPO steps are
    about as small as float16's smallest.
    Raises ModelError for an unknown architecture, StageError where the adapter is not plain LoRA
    or was made for another model.
    """
    import gguf

    config = _config(adapter_dir)
    if not scale:
        raise StageError("an adapter at scale 0 changes nothing", "Give a scale such as 0.5.")
    base = read_gguf(base_gguf)
    architecture(base)
    pairs = _pairs(adapter_dir, config, base, base_gguf.name)
    rank = config["r"]
    alpha = scale * config["lora_alpha"] * (math.sqrt(rank) if config.get("use_rslora") else 1)
    with aside(out) as partial:
        writer = gguf.GGUFWriter(partial, value(base, "general.architecture"))
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
        config: Any = json.loads((adapter_dir / "adapter_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise StageError(
            f"no PEFT adapter in {adapter_dir}: {error}", "Give the folder that the trainer saved."
        ) from None
    kind = config.get("peft_type") if isinstance(config, dict) else None
    if kind != "LORA":
        raise StageError(f"{adapter_dir} holds a {kind} adapter", "Train a LoRA adapter.")
    for setting, remedy in _UNSUPPORTED.items():
        if config.get(setting):
            raise StageError(f"the adapter sets {setting}, which GGUF adapters do not have", remedy)
    if config.get("bias", "none") != "none":
        raise StageError("the adapter has trained biases, which GGUF adapters do not have", "Set bias: none.")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.startswith(_CHANGES_THE_BASE):
        raise StageError(
            f"the adapter was started with {start}, which changes the base's own weights",
            "Convert it to plain LoRA with PEFT's path_initial_model_for_weight_conversion first.",
        )
    if not (_is_number(config.get("r"), int) and _is_number(config.get("lora_alpha"))):
        raise StageError(f"the adapter in {adapter_dir} has no r or no lora_alpha above 0", "Train it again.")
    for setting, kind in (("rank_pattern", int), ("alpha_pattern", (int, float))):
        _check_pattern(setting, config.get(setting) or {}, kind)
    return config


def _is_number(what: Any, kind: Any = (int, float)) -> bool:
    """Whether it is above 0 and a float32 holds it."""
    return isinstance(what, kind) and not isinstance(what, bool) and 0 < what < _MOST


def _check_pattern(setting: str, pattern: Any, kind: Any) -> None:
    try:
        right = all(re.compile(key) and _is_number(number, kind) for key, number in pattern.items())
    except (AttributeError, re.error):
        right = False
    if not right:
        raise StageError(f"the adapter's {setting} is none of names and numbers", "Train it again.")


def _pairs(adapter_dir: Path, config: dict[str, Any], base: Any, base_name: str) -> dict[str, Any]:
    """GGUF tensor name → (A, B) as float32 arrays, checked against the base's shapes."""
    shapes, names, pairs = {t.name: shape(t) for t in base.tensors}, tensor_names(base), {}
    for module, (a, b) in _modules(adapter_dir).items():
        plain = _WRAPPED.sub("", module)
        if plain == "lm_head" and "output.weight" not in shapes:
            raise StageError(
                f"the adapter trains lm_head, which {base_name} shares with its embeddings",
                "Train without lm_head.",
            )
        known = names.get_name(plain if plain == "lm_head" else f"model.{plain}")
        if known is None:
            raise StageError(
                f"the adapter trains {module}, which {base_name} has no tensor for",
                "Train attention and feed-forward projections only, and export for the GGUF trained on.",
            )
        name = f"{known}.weight"
        if shapes.get(name) != (b.shape[0], a.shape[1]):
            raise StageError(
                f"the adapter's {module} ({b.shape[0]}x{a.shape[1]}) does not fit the base's"
                f" {name} ({'x'.join(map(str, shapes.get(name, ()))) or 'not there'})",
                "Export against the GGUF that the adapter was trained on.",
            )
        _check_rank(module, len(a), config)
        pairs[name] = (a, to_llama_cpp(name, b * b.dtype.type(_share(module, len(a), config)), base))
    return pairs


def _share(module: str, rank: int, config: dict[str, Any]) -> float:
    """The module's own alpha / rank (or sqrt(rank)), over what llama.cpp makes of the common alpha."""
    alpha = _own(module, config.get("alpha_pattern"), config["lora_alpha"])
    ranks = rank / config["r"] if config.get("use_rslora") else 1
    return alpha / config["lora_alpha"] * math.sqrt(ranks)


def _check_rank(module: str, rank: int, config: dict[str, Any]) -> None:
    said = _own(module, config.get("rank_pattern"), config["r"])
    if rank != said:
        raise StageError(
            f"the adapter's {module} has rank {rank}, and its adapter_config.json says {said}",
            "Give the folder as the trainer saved it.",
        )


def _own(module: str, pattern: dict[str, float] | None, common: float) -> float:
    """The number that a pattern has for the module, by PEFT's rule: a whole name, or the end of one
    after a dot; the first that fits."""
    fitting = (n for key, n in (pattern or {}).items() if re.match(rf"(.*\.)?({key})$", module))
    return next(fitting, common)


def _modules(adapter_dir: Path) -> dict[str, tuple[Any, Any]]:
    """Module name → (A, B) of every LoRA layer in the adapter."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = adapter_dir / "adapter_model.safetensors"
    if not file.is_file():
        raise StageError(
            f"there is no {file.name} in {adapter_dir}", "Give the folder that the trainer saved."
        )
    try:
        tensors = load_file(file)
    except SafetensorError as error:
        raise StageError(f"{file} cannot be read: {error}", "Run the train stage again.") from None
    halves: dict[str, dict[str, Any]] = {}
    for key, tensor in tensors.items():
        found = _KEY.fullmatch(key)
        if not found:
            raise StageError(
                f"the adapter holds {key}, which is not LoRA on a linear layer",
                "Train LoRA on linear layers only, without embeddings.",
            )
        module, half = found.groups()
        if not tensor.isfinite().all():
            raise StageError(
                f"the adapter's {module} is not finite (NaN or infinity)", "Train it again, at a lower rate."
            )
        halves.setdefault(module, {})[half] = tensor.float().numpy()
    broken = [module for module, pair in halves.items() if len(pair) != 2]
    broken += [m for m, pair in halves.items() if m not in broken and not _match(**pair)]
    if broken or not halves:
        raise StageError(
            f"the adapter in {adapter_dir} is incomplete {broken[:1]}", "Run the train stage again."
        )
    return {module: (pair["A"], pair["B"]) for module, pair in halves.items()}


def _match(A: Any, B: Any) -> bool:
    return A.ndim == B.ndim == 2 and len(A) == B.shape[1]
