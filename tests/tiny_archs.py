"""A tiny random GGUF of each architecture, with what makes it that architecture: head sizes, norms,
rotary factors, windows, soft caps; and random PEFT adapters for them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tiny_gguf import FAMILIES, _add_bpe, _add_spm

HIDDEN, FFN, HEADS, KV_HEADS, CONTEXT = 64, 96, 4, 2, 1024
SEVEN = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
FUSED = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")


@dataclass(frozen=True)
class Case:
    """What is particular about a model. `extra`: metadata under its architecture's name."""

    arch: str
    family: str
    head: int = HIDDEN // HEADS
    layers: int = 2
    tied: bool = False
    bias: bool = False
    head_norms: bool = False
    post_norms: bool = False
    fused: bool = False
    extra: dict[str, Any] = field(default_factory=dict)
    rope: dict[str, Any] = field(default_factory=dict)

    @property
    def modules(self) -> dict[str, tuple[str, int, int]]:
        """Hugging Face's name → (GGUF name, out, in) of every linear layer of a block."""
        q, kv = HEADS * self.head, KV_HEADS * self.head
        names = {
            "self_attn.q_proj": ("attn_q", q, HIDDEN),
            "self_attn.k_proj": ("attn_k", kv, HIDDEN),
            "self_attn.v_proj": ("attn_v", kv, HIDDEN),
            "mlp.gate_proj": ("ffn_gate", FFN, HIDDEN),
            "mlp.up_proj": ("ffn_up", FFN, HIDDEN),
        }
        if self.fused:
            names = {
                "self_attn.qkv_proj": ("attn_qkv", q + 2 * kv, HIDDEN),
                "mlp.gate_up_proj": ("ffn_up", 2 * FFN, HIDDEN),
            }
        last = {"self_attn.o_proj": ("attn_output", HIDDEN, q), "mlp.down_proj": ("ffn_down", HIDDEN, FFN)}
        return names | last


def llama3_factors(factor: float, head: int, base: float) -> np.ndarray:
    """Llama 3.1's rule: slow frequencies are divided by `factor`, fast ones not, in between some."""
    out = []
    for i in range(0, head, 2):
        wavelength = 2 * np.pi * base ** (i / head)
        smooth = (8192 / wavelength - 1) / (4 - 1)
        out.append(1 / ((1 - smooth) / factor + smooth) if 0 < smooth < 1 else (1 if smooth >= 1 else factor))
    return np.array(out, np.float32)


_PHI = {"attention.sliding_window": 8, "rope.dimension_count": 12, "rope.scaling.attn_factor": 1.1}
_FACTORS = {
    "factors_long": np.linspace(1.5, 4, 6, dtype=np.float32),
    "factors_short": np.linspace(1, 1.4, 6, dtype=np.float32),
}
_GEMMA2 = {"attention.sliding_window": 8, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0}
_GEMMA3 = {
    "attention.sliding_window": 8,
    "rope.freq_base": 1e6,
    "rope.scaling.type": "linear",
    "rope.scaling.factor": 8.0,
}

CASES = {
    "llama": Case("llama", "chatml"),
    "llama-tied": Case("llama", "chatml", tied=True),
    "llama3": Case(
        "llama", "llama3", head=32,
        extra={"rope.freq_base": 5e5}, rope={"freqs": llama3_factors(32, 32, 5e5)},
    ),
    "mistral": Case("llama", "mistral"),
    "qwen2": Case("qwen2", "chatml", bias=True),
    "qwen3": Case("qwen3", "chatml", head=32, tied=True, head_norms=True),
    "gemma2": Case("gemma2", "gemma", head=32, tied=True, post_norms=True, extra=_GEMMA2),
    "gemma3": Case(
        "gemma3", "gemma", head=32, layers=6, tied=True, head_norms=True, post_norms=True, extra=_GEMMA3
    ),
    "phi3": Case("phi3", "phi3", fused=True),
    "phi3-short": Case(
        "phi3", "phi3", fused=True,
        extra=_PHI | {"rope.scaling.original_context_length": 512},
        rope=_FACTORS,
    ),
    "phi3-long": Case(
        "phi3", "phi3", fused=True,
        extra=_PHI | {"rope.scaling.original_context_length": 16},
        rope=_FACTORS,
    ),
}  # fmt: skip


def write_case(path: Path, name: str, seed: int = 0) -> Path:
    """A random float32 model of the case at `path`."""
    import gguf

    case = CASES[name]
    family = FAMILIES[case.family]
    writer = gguf.GGUFWriter(path, case.arch)
    writer.add_name(family.name)
    writer.add_block_count(case.layers)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    extra = {"rope.dimension_count": case.head, "rope.freq_base": 1e4} | case.extra
    if case.head != HIDDEN // HEADS:
        extra |= {"attention.key_length": case.head, "attention.value_length": case.head}
    for key, content in extra.items():
        add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}[type(content)]
        add(f"{case.arch}.{key}", content)
    tokens = _add_bpe(writer, family) if family.pre else _add_spm(writer, family)
    writer.add_vocab_size(len(tokens))
    writer.add_bos_token_id(tokens.index(family.bos))
    writer.add_eos_token_id(tokens.index(family.end))
    writer.add_add_bos_token(family.add_bos)
    writer.add_chat_template(family.template)
    for tensor, array in _tensors(case, len(tokens), seed).items():
        writer.add_tensor(tensor, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _tensors(case: Case, n_vocab: int, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)

    def random(*shape: int, mean: float = 0, std: float = 0.15) -> np.ndarray:
        return rng.normal(mean, std, shape).astype(np.float32)

    out = {"token_embd.weight": random(n_vocab, HIDDEN, std=0.3)}
    if not case.tied:
        out["output.weight"] = random(n_vocab, HIDDEN, std=0.3)
    out["output_norm.weight"] = random(HIDDEN, mean=1)
    out |= {f"rope_{name}.weight": factors for name, factors in case.rope.items()}
    norms = ["attn_norm", "ffn_norm"] + ["post_attention_norm", "post_ffw_norm"] * case.post_norms
    for layer in range(case.layers):
        for norm in norms:
            out[f"blk.{layer}.{norm}.weight"] = random(HIDDEN, mean=1)
        for norm in ["attn_q_norm", "attn_k_norm"] * case.head_norms:
            out[f"blk.{layer}.{norm}.weight"] = random(case.head, mean=1)
        for name, rows, columns in case.modules.values():
            out[f"blk.{layer}.{name}.weight"] = random(rows, columns)
            if case.bias and name in ("attn_q", "attn_k", "attn_v"):
                out[f"blk.{layer}.{name}.bias"] = random(rows)
    return out


RANK, ALPHA = 4, 8
PATTERNS = {
    "use_rslora": True,
    "rank_pattern": {"o_proj": 2, "model.layers.1.mlp.down_proj": 6},
    "alpha_pattern": {"down_proj": 3, r"layers\.0\.self_attn\.\w+": 20},
}


def write_adapter(
    folder: Path, name: str, seed: int = 1, before: str = "model.", after: str = "", **settings: object
) -> Path:
    """A random adapter on all linear layers of the case, in PEFT's format. `before` stands before
    "layers" in the module's name, `after` between "lora_A" and "weight"."""
    from safetensors.numpy import save_file

    rng = np.random.default_rng(seed)
    case, tensors = CASES[name], {}
    ranks: dict[str, int] = settings.get("rank_pattern", {})  # type: ignore[assignment]
    for layer in range(case.layers):
        for module, (_, rows, columns) in case.modules.items():
            key = f"{before}layers.{layer}.{module}"
            rank = next((r for end, r in ranks.items() if key.endswith(end)), RANK)
            for half, shape in {"A": (rank, columns), "B": (rows, rank)}.items():
                numbers = rng.normal(0, 0.15, shape).astype(np.float32)
                tensors[f"base_model.model.{key}.lora_{half}{after}.weight"] = numbers
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    targets = FUSED if case.fused else SEVEN
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": ALPHA}
    config |= {"target_modules": list(targets)} | settings
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def logits(path: Path, ids: list[int], adapter: Path | None = None) -> np.ndarray:
    """llama.cpp's logits after every one of `ids`, (tokens, vocabulary), all in float32."""
    import llama_cpp as lc

    from minicollab.engine.context import set_adapter
    from minicollab.engine.quiet import last_error, quiet

    quiet()
    model_params, params = lc.llama_model_default_params(), lc.llama_context_default_params()
    model_params.n_gpu_layers = 0
    model_params.use_mmap = False
    model = lc.llama_model_load_from_file(str(path).encode(), model_params)
    assert model, last_error()
    params.n_ctx = params.n_batch = params.n_ubatch = len(ids)
    params.n_threads = params.n_threads_batch = 1
    params.type_k = params.type_v = lc.GGML_TYPE_F32
    params.flash_attn_type = lc.LLAMA_FLASH_ATTN_TYPE_DISABLED
    context = lc.llama_init_from_model(model, params)
    assert context, last_error()
    batch = lc.llama_batch_init(len(ids), 0, 1)
    try:
        if adapter:
            set_adapter(model, context, adapter)
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, i, 1, True
            batch.seq_id[i][0] = 0
        assert lc.llama_decode(context, batch) == 0, last_error()
        n_vocab = lc.llama_vocab_n_tokens(lc.llama_model_get_vocab(model))
        rows = np.ctypeslib.as_array(lc.llama_get_logits(context), (len(ids), n_vocab))
        return rows.copy()
    finally:
        lc.llama_batch_free(batch)
        lc.llama_free(context)
        lc.llama_model_free(model)
