"""The Hugging Face config of the model in a GGUF.

transformers has a reader of its own, but it passes over what changes the logits: Llama 3's and
Phi 3's rotary factors, Gemma's attention scale, soft caps and local layers, Qwen3's head size.
Where a key is missing, the default is llama.cpp's.
"""

from __future__ import annotations

import math
from typing import Any

from minicollab.errors import ModelError
from minicollab.gguf.architectures import setting
from minicollab.gguf.files import dequantized, shape, value

REMEDY = "Set models.train_base in the recipe to the Hugging Face folder that this GGUF was made from."

# Llama 3's scaling has four numbers; only the factor differs between its releases.
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def hf_config(reader: Any) -> dict[str, Any]:
    """Arguments for the config class of the architecture; raises ModelError for a rotary scaling
    that has no words in it."""
    tensors = {t.name: t for t in reader.tensors}
    heads, width = setting(reader, "attention.head_count"), setting(reader, "embedding_length")
    config = {
        "vocab_size": shape(tensors["token_embd.weight"])[0],
        "hidden_size": width,
        "intermediate_size": setting(reader, "feed_forward_length"),
        "num_hidden_layers": setting(reader, "block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": setting(reader, "attention.head_count_kv", heads),
        "head_dim": setting(reader, "attention.key_length", width // heads),
        "max_position_embeddings": setting(reader, "context_length"),
        "rms_norm_eps": setting(reader, "attention.layer_norm_rms_epsilon"),
        "attention_bias": "blk.0.attn_q.bias" in tensors,
        "tie_word_embeddings": "output.weight" not in tensors,
        "rope_parameters": _rope(reader, tensors),
    }
    for key, token in {"bos": "bos", "eos": "eos", "pad": "padding"}.items():
        config[f"{key}_token_id"] = value(reader, f"tokenizer.ggml.{token}_token_id")
    own = {"gemma2": _gemma2, "gemma3": _gemma3, "phi3": _phi3}.get(value(reader, "general.architecture"))
    return config | (own(reader, config) if own else {})


def _rope(reader: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": setting(reader, "rope.freq_base", 10_000.0)}
    kind, factor = (setting(reader, f"rope.scaling.{key}") for key in ("type", "factor"))
    if "rope_freqs.weight" in tensors:
        return _llama3(rope, dequantized(tensors["rope_freqs.weight"]))
    if "rope_factors_long.weight" in tensors:
        factors = {x: dequantized(tensors[f"rope_factors_{x}.weight"]).tolist() for x in ("long", "short")}
        return rope | {
            "rope_type": "longrope",
            "long_factor": factors["long"],
            "short_factor": factors["short"],
            "attention_factor": setting(reader, "rope.scaling.attn_factor", 1.0),
            "original_max_position_embeddings": _trained_context(reader),
        }
    if kind not in (None, "none", "linear"):
        raise ModelError(f"the GGUF scales positions by {kind}, which is not known here", REMEDY)
    if factor and kind != "none":
        return rope | {"rope_type": "linear", "factor": factor}
    return rope


def _llama3(rope: dict[str, Any], found: Any) -> dict[str, Any]:
    """The GGUF has the scaling's result, one divisor a frequency; the config has its formula
    (Llama 3.1): find the factor and check it."""
    import numpy as np

    low, high, context = _LLAMA3.values()
    factor = float(found.max())
    turns = context * rope["rope_theta"] ** -(np.arange(len(found)) / len(found)) / (2 * math.pi)
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    if not np.allclose(found, 1 / ((1 - smooth) / factor + smooth), rtol=1e-4):
        raise ModelError("the GGUF scales positions in a way that is not Llama 3's", REMEDY)
    return rope | {"rope_type": "llama3", "factor": factor, **_LLAMA3}


def _gemma2(reader: Any, config: dict[str, Any]) -> dict[str, Any]:
    return {
        "query_pre_attn_scalar": _attention_scale(config, 46),
        "attn_logit_softcapping": setting(reader, "attn_logit_softcapping", 50.0),
        "final_logit_softcapping": setting(reader, "final_logit_softcapping", 30.0),
        "sliding_window": setting(reader, "attention.sliding_window", 4096),
        "layer_types": _layer_types(reader, config, 2),
    }


def _gemma3(reader: Any, config: dict[str, Any]) -> dict[str, Any]:
    window = setting(reader, "attention.sliding_window")
    local = {"rope_type": "default", "rope_theta": setting(reader, "rope.freq_base_swa", 10_000.0)}
    return {
        "query_pre_attn_scalar": _attention_scale(config, 62),
        "final_logit_softcapping": setting(reader, "final_logit_softcapping"),
        "sliding_window": window,
        "layer_types": _layer_types(reader, config, 6 if window else 1),
        "rope_parameters": {"full_attention": config["rope_parameters"], "sliding_attention": local},
    }


def _phi3(reader: Any, config: dict[str, Any]) -> dict[str, Any]:
    turned = setting(reader, "rope.dimension_count", config["head_dim"]) / config["head_dim"]
    return {
        "original_max_position_embeddings": _trained_context(reader),
        "rope_parameters": config["rope_parameters"] | {"partial_rotary_factor": turned},
        "sliding_window": None,  # llama.cpp computes Phi without one, whatever the file says
    }


def _trained_context(reader: Any) -> int:
    """Tokens, before any scaling of positions."""
    context = setting(reader, "context_length")
    return int(setting(reader, "rope.scaling.original_context_length", context))


def _attention_scale(config: dict[str, Any], layers_of_27b: int) -> int:
    """Gemma divides by the root of this: the head's size, but in the 27B models."""
    if config["num_hidden_layers"] == layers_of_27b:
        return int(config["hidden_size"] // config["num_attention_heads"])
    return int(config["head_dim"])


def _layer_types(reader: Any, config: dict[str, Any], period: int) -> list[str]:
    """The last layer of every `period` sees everything, the others a window."""
    pattern = setting(reader, "attention.sliding_window_pattern", period)
    layers = range(config["num_hidden_layers"])
    local = pattern if isinstance(pattern, list) else [i % pattern < pattern - 1 for i in layers]
    return ["sliding_attention" if local[i] else "full_attention" for i in layers]
