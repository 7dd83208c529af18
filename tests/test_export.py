"""The export on tiny random models: files, metadata, figures; with `-m slow` checked by torch, too."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from minicollab.errors import ModelError, RunError, StageError
from minicollab.gguf import apps, chats, export, verify
from minicollab.gguf.adapter import adapter_to_gguf
from minicollab.gguf.export import Order
from minicollab.gguf.files import read_gguf, value
from minicollab.gguf.logits import Talk, llama_logits, mean_kl, perplexity
from minicollab.gguf.merge import merge
from minicollab.gguf.origin import Origin
from minicollab.quantization import KINDS, model_name, room
from minicollab.recipe import Export
from tests.tiny_gguf import FAMILIES, FFN, HEADS, LAYERS, WIDTH, write_tiny

pytest.importorskip("gguf")
pytest.importorskip("llama_cpp")

from llama_cpp.llama_chat_format import Jinja2ChatFormatter

RANK = 4
SHAPES = {
    "self_attn.q_proj": (WIDTH, WIDTH),
    "self_attn.k_proj": (WIDTH // 2, WIDTH),
    "self_attn.v_proj": (WIDTH // 2, WIDTH),
    "self_attn.o_proj": (WIDTH, WIDTH),
    "mlp.up_proj": (FFN, WIDTH),
    "mlp.down_proj": (WIDTH, FFN),
}
CHATS = [
    [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
    for asked, said in (
        ("plan a trip", "Where to, and for how long?"),
        ("What is 12 + 345?", "It is 357."),
        ("hi", "Hello! What can I do for you today?"),
        ("write a toast\n\nfor Ada", "  To Ada, who never counted wrong."),
    )
]
ORIGIN = Origin("quick", "abc123", "36 tasks of tasks.jsonl (details)", 71, "a-judge.gguf")
GOOD: dict[str, Any] = {
    "ok": True,
    "failures": [],
    "prompts": 4,
    "scale": 1.0,
    "kl_torch_base": 0.5,
    "kl_torch_adapter_on_base": 1e-4,
    "models": {"q8_0": {"kl": 1e-3, "perplexity": 12.0, "bytes": 1000}},
}


def peft_folder(folder: Path, seed: int = 1, **settings: object) -> Path:
    """A random adapter for a tiny model, in PEFT's format."""
    from safetensors.numpy import save_file

    rng, tensors = np.random.default_rng(seed), {}
    for layer in range(LAYERS):
        for module, (out, inner) in SHAPES.items():
            key = f"base_model.model.model.layers.{layer}.{module}"
            tensors[f"{key}.lora_A.weight"] = rng.normal(0, 0.2, (RANK, inner)).astype(np.float32)
            tensors[f"{key}.lora_B.weight"] = rng.normal(0, 0.1, (out, RANK)).astype(np.float32)
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    modules = [name.rpartition(".")[2] for name in SHAPES]
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": 8, "target_modules": modules,
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config | settings))
    return folder


def write_ending(path: Path, family: str) -> Path:
    """A tiny model that ends its turns. Random weights may go round in a loop instead, and whether
    they do hangs on how the processor at hand rounds."""
    from gguf import GGUFReader

    reader = GGUFReader(write_tiny(path, family), "r+")
    output = next(tensor for tensor in reader.tensors if tensor.name == "output.weight")
    output.data[reader.fields["tokenizer.ggml.eot_token_id"].contents()] *= 4
    output.data.flush()
    return path


@pytest.fixture
def order(tmp_path: Path) -> Order:
    base = write_ending(tmp_path / "base.gguf", "llama3")
    return Order(peft_folder(tmp_path / "peft"), base, ORIGIN, ("q8_0",))


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The files alone are looked at: the check finds them right."""
    monkeypatch.setattr(export, "verify", lambda *_: GOOD)


def not_asked() -> Path:
    raise AssertionError("torch was asked")


# What is asked for


def test_a_quantization_or_several() -> None:
    assert Export().kinds == ("q4_k_m",) and Export(quantization="Q8_0").kinds == ("q8_0",)
    assert Export(quantization=["q4_k_m", "F16", "Q4_K_M"]).kinds == ("q4_k_m", "f16")
    for wrong in ({"quantization": []}, {"scale": 0}, {"only": "both"}):
        with pytest.raises(ValueError):
            Export(**wrong)


def test_room_is_for_the_f16_merge_and_for_every_kind() -> None:
    assert room(1000, ()) == 0
    assert room(1000, ("f16",)) == 2000 and room(1000, ("bf16",)) == 4000
    assert room(1000, ("q8_0",)) == 2000 + 1062
    assert all(room(1000, (kind,)) > 2000 for kind in KINDS if kind != "f16")
    assert room(8_000_000_000, ("q4_k_m", "q5_k_m")) == 16e9 + 6.5e9 + 7.5e9


def test_space_kinds_and_the_adapter_are_looked_at_first(
    order: Order, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with pytest.raises(ModelError, match="q4_k_xl"):
        export.export(replace(order, kinds=("f16", "q4_k_xl")), not_asked, out, CHATS)
    other = write_tiny(tmp_path / "other.gguf", "llama3")
    other.write_bytes(other.read_bytes()[:-1000])
    with pytest.raises(ModelError, match=r"other\.gguf"):
        export.export(replace(order, base=other), not_asked, out, CHATS)
    (order.adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(StageError, match="adapter_model"):
        export.export(order, not_asked, out, CHATS)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(RunError, match="free"):
        export.export(order, not_asked, out, CHATS)
    assert list(out.iterdir()) == []


# What comes of it


@pytest.mark.usefixtures("checked")
def test_everything_an_app_needs(order: Order, tmp_path: Path) -> None:
    out = tmp_path / "out"
    made = export.export(replace(order, kinds=("q8_0", "f16")), lambda: tmp_path, out, CHATS)
    assert made["model"] == "model-q8_0.gguf" and made["adapter"] == "adapter.gguf"
    assert {p.name for p in out.iterdir()} == {
        "adapter.gguf", "model-q8_0.gguf", "model-f16.gguf", "Modelfile", "lm-studio", "HOWTO.md",
        "MODEL_CARD.md", "verification.json",
    }  # fmt: skip
    assert json.loads((out / "verification.json").read_text())["files"] == made["files"]
    assert (out / "Modelfile").read_text() == (
        'FROM ./model-q8_0.gguf\nPARAMETER stop "<|end_of_text|>"\nPARAMETER stop "<|eot_id|>"\n'
    )
    linked = out / "lm-studio/minicollab/tiny-llama-3-quick/tiny-llama-3-quick-q8_0.gguf"
    assert linked.samefile(out / "model-q8_0.gguf")
    howto = (out / "HOWTO.md").read_text()
    for app in ("llama.cpp", "Ollama", "LM Studio", "Jan", "KoboldCpp", "llama-cpp-python"):
        assert f"## {app}\n" in howto
    assert "ollama create tiny-llama-3-quick -f Modelfile" in howto
    assert "--lora-scaled adapter.gguf:0.5" in howto and "None" not in howto


@pytest.mark.usefixtures("checked")
def test_the_merged_file_says_where_it_comes_from(order: Order, tmp_path: Path) -> None:
    export.export(replace(order, scale=0.5), lambda: tmp_path, tmp_path / "out", CHATS)
    base, made = read_gguf(order.base), read_gguf(tmp_path / "out/model-q8_0.gguf")
    for key in base.fields:
        if key.startswith("tokenizer."):
            assert value(made, key) == value(base, key)
    assert value(made, "general.name") == "Tiny Llama 3 quick"
    assert value(made, "general.base_model.count") == 1
    assert value(made, "general.base_model.0.name") == "Tiny Llama 3"
    assert value(made, "general.dataset.0.name") == ORIGIN.tasks
    assert value(made, "minicollab.recipe_sha256") == "abc123" and value(made, "minicollab.pairs") == 71
    assert value(made, "minicollab.adapter_scale") == "0.5"
    assert "71 preference pairs from 36 tasks of" in value(made, "general.description")
    assert value(read_gguf(tmp_path / "out/adapter.gguf"), "adapter.lora.alpha") == 4


@pytest.mark.usefixtures("checked")
def test_a_model_trained_not_to_think_is_told_so_by_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = "assistant\n' }}"
    thinks = "{%- if not enable_thinking | default(true) %}{{- '<think>' }}{% endif %}"
    thinking = FAMILIES["chatml"].template.replace(opened, opened + thinks)
    assert thinks in thinking
    monkeypatch.setitem(FAMILIES, "thinking", replace(FAMILIES["chatml"], template=thinking))
    base = write_tiny(tmp_path / "base.gguf", "thinking")
    order = Order(peft_folder(tmp_path / "peft"), base, ORIGIN, ("q8_0",))
    elsewhere = replace(order, origin=Origin("theirs"))
    for name, asked, told in (
        ("ours", order, "{%- set enable_thinking = false %}"),
        ("theirs", elsewhere, ""),
    ):
        export.export(asked, lambda: tmp_path, tmp_path / name, CHATS)
        made = tmp_path / name / "model-q8_0.gguf"
        assert value(read_gguf(made), "tokenizer.chat_template") == told + thinking
        assert verify.differing_keys(base, made) == {}
        formatter = Jinja2ChatFormatter(told + thinking, eos_token="", bos_token="")
        assert formatter(messages=CHATS[0][:1]).prompt.endswith("<think>") == (name == "ours")


@pytest.mark.usefixtures("checked")
def test_a_stopped_export_leaves_no_file_unnamed(
    order: Order, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, moved = tmp_path / "out", []
    export.export(replace(order, kinds=("q8_0", "f16")), lambda: tmp_path, out, CHATS)

    def stop(source: Path, target: Path) -> None:
        if target.parent == out and target.suffix == ".gguf":
            moved.append(target)
            raise KeyboardInterrupt
        os.rename(source, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", stop)
        export.export(order, lambda: tmp_path, out, CHATS)
    report = json.loads((out / "verification.json").read_text())
    assert moved and not report["ok"] and "export again" in report["failures"][0]
    export.export(order, lambda: tmp_path, out, CHATS)
    assert {path.name for path in out.glob("*.gguf")} == {"adapter.gguf", "model-q8_0.gguf"}


@pytest.mark.usefixtures("checked")
def test_the_card_is_hugging_faces_and_takes_the_evaluation_in(order: Order, tmp_path: Path) -> None:
    export.export(order, lambda: tmp_path, tmp_path / "out", CHATS)
    card = (tmp_path / "out/MODEL_CARD.md").read_text()
    _, front, text = card.split("---\n", 2)
    told = yaml.safe_load(front)
    assert told["base_model"] == "Tiny Llama 3" and "minicollab" in told["tags"] and "license" not in told
    assert "licence not stated" in text and "71 preference pairs" in text and "a-judge.gguf" in text
    assert "Not evaluated yet" in text and "| q8_0 | 0.001 | 12.00 |" in text
    arms = {
        arm: {"mr": n / 10, "tokens_read_k": 1.5} for n, arm in enumerate(("base", "proactive", "trained"))
    }
    apart = {"mean": 0.2, "low": 0.1, "high": 0.3}
    evaluation = {
        "arms": arms,
        "differences": {"trained-base": {"mr": apart, "tokens_read_k": apart}},
        "verdict": "On 12 held-out tasks the trained model is better than base.",
    }
    once = apps.evaluated(card, evaluation)
    assert "Not evaluated yet" not in once and evaluation["verdict"] in once
    assert "| mr | 0.000 | 0.100 | 0.200 | +0.200 [+0.100, +0.300] |" in once
    assert apps.evaluated(once, evaluation) == once
    assert once.startswith(card.partition("## Compared")[0])


@pytest.mark.usefixtures("checked")
def test_of_an_adapter_trained_elsewhere_nothing_is_invented(order: Order, tmp_path: Path) -> None:
    export.export(replace(order, origin=Origin("mine")), lambda: tmp_path, tmp_path / "out", CHATS)
    made = read_gguf(tmp_path / "out/model-q8_0.gguf")
    assert (
        value(made, "general.description") == "Tiny Llama 3 with the LoRA adapter mine, merged by minicollab"
    )
    assert not {k for k in made.fields if k.startswith(("general.dataset.", "minicollab.recipe"))}
    card = (tmp_path / "out/MODEL_CARD.md").read_text()
    assert "collabllm" not in card and "Compared with" not in card and "sha256" not in card


@pytest.mark.usefixtures("checked")
@pytest.mark.parametrize(
    ("only", "expected"),
    [
        ("adapter", {"adapter.gguf", "HOWTO.md", "MODEL_CARD.md"}),
        ("merged", {"model-q8_0.gguf", "Modelfile", "lm-studio", "HOWTO.md", "MODEL_CARD.md"}),
    ],
)
def test_one_of_the_two(
    only: Any, expected: set[str], order: Order, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []
    monkeypatch.setattr(export, "verify", lambda *what: given.append(what) or GOOD)
    made = export.export(replace(order, only=only), lambda: tmp_path, tmp_path / "out", CHATS)
    assert set(made["files"]) == expected
    assert list(given[0][2]) == ([] if only == "adapter" else ["q8_0", "f16"])
    howto = (tmp_path / "out/HOWTO.md").read_text()
    assert ("--lora" in howto) == (only == "adapter") and ("Ollama\n" in howto) == (only == "merged")


@pytest.mark.usefixtures("checked")
def test_an_export_takes_an_earlier_ones_place_and_touches_nothing_else(order: Order, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export.export(replace(order, kinds=("q8_0", "q4_0")), lambda: tmp_path, out, CHATS)
    (out / "model-mine.gguf").write_text("not ours")
    export.export(replace(order, kinds=("q5_0",)), lambda: tmp_path, out, CHATS)
    assert sorted(p.name for p in out.glob("*.gguf")) == [
        "adapter.gguf",
        "model-mine.gguf",
        "model-q5_0.gguf",
    ]
    assert not list(out.glob(".*"))


@pytest.mark.usefixtures("checked")
def test_a_failed_check_leaves_the_earlier_export(
    order: Order, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    export.export(order, lambda: tmp_path, out, CHATS)
    before = {p.name: p.stat().st_ino for p in out.iterdir()}
    monkeypatch.setattr(export, "verify", lambda *_: GOOD | {"ok": False, "failures": ["it lies"]})
    with pytest.raises(StageError, match="it lies"):
        export.export(replace(order, kinds=("q4_0",)), lambda: tmp_path, out, CHATS)
    assert {p.name: p.stat().st_ino for p in out.iterdir() if p.name != export.FAILED} == before
    assert json.loads((out / export.FAILED).read_text())["failures"] == ["it lies"]
    monkeypatch.setattr(export, "verify", lambda *_: GOOD)
    export.export(order, lambda: tmp_path, out, CHATS)
    assert {p.name for p in out.iterdir()} == set(before)


# What is measured


def test_kl_and_perplexity() -> None:
    logits = np.log(np.array([[0.5, 0.25, 0.25], [0.25, 0.5, 0.25]], np.float32))
    flat = np.zeros((2, 4), np.float32)  # one row of the vocabulary that is only padding
    assert mean_kl(logits, logits) == pytest.approx(0, abs=1e-7)
    assert mean_kl(logits, flat) == pytest.approx(0.5 * math.log(1.5) + 0.5 * math.log(0.75), abs=1e-6)
    talks = [Talk([0], [0]), Talk([0, 1], [2])]
    assert perplexity(logits, talks) == pytest.approx(math.sqrt(2 * 4), rel=1e-6)
    assert perplexity(flat, talks) == pytest.approx(4)


def test_a_reply_is_compared_token_by_token(tmp_path: Path) -> None:
    base = write_tiny(tmp_path / "base.gguf", "chatml")
    talks = [Talk([5, 9, 70, 33], [8, 11, 12]), Talk([100, 2], [7])]
    rows = llama_logits(base, talks)
    assert rows.shape[0] == 4
    first = llama_logits(base, [Talk([5, 9, 70, 33], [8])])[0]
    last = llama_logits(base, [Talk([5, 9, 70, 33, 8, 11], [12])])[0]
    np.testing.assert_allclose(rows[0], first, atol=1e-3)
    np.testing.assert_allclose(rows[2], last, atol=1e-3)
    assert np.abs(first - last).max() > 0.1


def test_who_ends_its_turn_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chats, "MOST", 6)
    base = write_tiny(tmp_path / "base.gguf", "chatml")
    prompts = [[5, 9, 70, 33], [100, 2], [40]]
    answers = []
    for prompt in prompts:
        said: list[int] = []
        for _ in range(6):
            said.append(int(llama_logits(base, [Talk(prompt + said, [0])])[0].argmax()))
        answers.append(said)
    assert chats.stopped(base, prompts) == 0
    # The same weights, and a token that some answer has as the one that ends a turn.
    tokens = read_gguf(base).get_field("tokenizer.ggml.tokens").contents()
    for end in {answers[0][3], answers[1][0]}:
        family = replace(FAMILIES["chatml"], eos=tokens[end], end=tokens[end])
        monkeypatch.setitem(FAMILIES, "ending", family)
        ending = write_tiny(tmp_path / f"{end}.gguf", "ending")
        assert chats.stopped(ending, prompts) == sum(end in said for said in answers)


def figures(**changed: Any) -> dict[str, Any]:
    good = {
        "adapter_max_logit_change": 1.0,
        "kl_torch_base": 0.5,
        "kl_base_torch_llama": 1e-4,
        "kl_torch_merged_f16": 1e-5,
        "kl_torch_adapter_on_base": 1e-4,
        "kl_adapter_on_base_merged": 1e-4,
        "stopped": {"base": 10, "trained": 9, "tokens": 200},
        "prompts": 10,
    }
    return good | changed


def test_what_the_figures_say() -> None:
    assert verify.failures(figures()) == []
    wrong = {
        "adapter_max_logit_change": 0.0,
        "kl_torch_merged_f16": float("nan"),
        "kl_torch_adapter_on_base": 0.02,
        "kl_adapter_on_base_merged": 0.02,
        "stopped": {"base": 9, "trained": 4, "tokens": 200},
    }
    for key, bad in wrong.items():
        assert len(verify.failures(figures(**{key: bad}))) == 1, key
    slight = figures(kl_torch_base=0.015, kl_torch_merged_f16=0.003)  # q and k not interleaved
    assert "KL" in verify.failures(slight)[0]
    assert verify.failures(figures(stopped={"base": 0, "trained": 0, "tokens": 200})) == []


def test_torch_may_have_the_weights_that_the_gguf_was_quantized_from_but_no_others() -> None:
    distance = dict.fromkeys(("kl_torch_merged_f16", "kl_torch_adapter_on_base"), 0.05)
    assert len(verify.failures(figures(**distance))) == 2
    assert verify.failures(figures(**distance, kl_base_torch_llama=0.04)) == []
    assert "another model" in verify.failures(figures(**distance, kl_base_torch_llama=2.0))[0]


def test_keys_and_tensors_at_fault_are_named(order: Order, tmp_path: Path) -> None:
    adapter = adapter_to_gguf(order.adapter, order.base, tmp_path / "adapter.gguf")
    merged = merge(order.base, adapter, tmp_path / "merged.gguf")
    assert verify.unlike(order.base, adapter, merged) == []
    assert verify.differing_keys(order.base, merged) == {}
    half = adapter_to_gguf(order.adapter, order.base, tmp_path / "half.gguf", 0.5)
    wrong = verify.unlike(order.base, half, merged)
    assert "blk.1.attn_q.weight" in wrong and "token_embd.weight" not in wrong
    text = merged.read_bytes()
    merged.write_bytes(text.replace(b"<|start_header_id|>assistant", b"<|start_header_id|>assistent"))
    assert list(verify.differing_keys(order.base, merged)) == ["tokenizer.chat_template"]


# With torch


def made_with_torch(order: Order, tmp_path: Path) -> dict[str, Any]:
    from minicollab.gguf.dequantize import dequantize_to_hf

    made = export.export(
        order, lambda: dequantize_to_hf(order.base, tmp_path / "hf"), tmp_path / "out", CHATS
    )
    return dict(made["verification"])


@pytest.mark.slow
@pytest.mark.parametrize("family", ["chatml", "llama3", "mistral"])
def test_torch_and_llama_cpp_agree(family: str, tmp_path: Path) -> None:
    base = write_ending(tmp_path / "base.gguf", family)
    order = Order(peft_folder(tmp_path / "peft"), base, ORIGIN, ("q8_0", "q4_0"))
    full = made_with_torch(order, tmp_path)
    assert full["ok"] and full["template"] and full["kl_torch_base"] > 0.01
    for key in ("kl_torch_merged_f16", "kl_torch_adapter_on_base", "kl_adapter_on_base_merged"):
        assert full[key] < 1e-4, key
    assert list(full["models"]) == ["q8_0", "q4_0", "f16"]
    assert full["models"]["f16"]["kl"] < full["models"]["q8_0"]["kl"] < full["models"]["q4_0"]["kl"]
    assert full["models"]["f16"]["perplexity"] == pytest.approx(full["perplexity_torch"], rel=0.01)


@pytest.mark.slow
def test_torch_is_scaled_too_and_an_adapter_may_go_alone(order: Order, tmp_path: Path) -> None:
    half = made_with_torch(replace(order, scale=0.5), tmp_path)
    assert half["ok"] and half["kl_torch_merged_f16"] < 1e-4
    alone = made_with_torch(replace(order, only="adapter"), tmp_path)
    assert alone["ok"] and alone["models"] == {} and alone["kl_torch_adapter_on_base"] < 1e-4
    assert half["kl_torch_base"] < alone["kl_torch_base"]


@pytest.mark.slow
def test_a_wrong_export_is_found_out(order: Order, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrongly(change: Callable[[Path], None]) -> Callable[..., Path]:
        def made(*what: Any, **named: Any) -> Path:
            path = merge(*what, **named)
            change(path)
            return path

        return made

    def other_template(path: Path) -> None:
        path.write_bytes(path.read_bytes().replace(b"<|end_header_id|>\n\n' }}", b"<|end_header_id|> \n' }}"))

    def other_weights(path: Path) -> None:
        tensor = next(t for t in read_gguf(path).tensors if t.name == "blk.0.attn_k.weight")
        at, size = int(tensor.data_offset), int(tensor.n_bytes)
        with open(path, "r+b") as file:
            file.seek(at)
            rows = np.frombuffer(file.read(size), np.float16).reshape(WIDTH // 2, WIDTH)
            file.seek(at)
            file.write(rows.reshape(HEADS // 2, 2, -1, WIDTH).swapaxes(1, 2).tobytes())

    for change, named in (
        (other_template, "tokenizer.chat_template"),
        (other_weights, "blk.0.attn_k.weight"),
    ):
        monkeypatch.setattr(export, "merge", wrongly(change))
        with pytest.raises(StageError, match=named):
            made_with_torch(order, tmp_path)
        assert [p.name for p in (tmp_path / "out").iterdir()] == [export.FAILED]


@pytest.mark.slow
def test_an_adapter_that_does_nothing_is_refused(order: Order, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="changes no logit"):
        made_with_torch(replace(order, scale=1e-9), tmp_path)
    assert not (tmp_path / "out" / model_name("q8_0")).exists()
