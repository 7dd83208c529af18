"""`minicollab export` as it is typed: what does not go is one line, and leaves nothing behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from minicollab import exporting
from minicollab.cache.keys import file_fingerprint
from minicollab.cli import main
from minicollab.errors import RunError
from minicollab.exporting import add_known_evaluation, inputs, model_file, origin, outputs, trained
from minicollab.loading import load_recipe
from minicollab.run import STAGES, Run
from minicollab.summaries import exported
from tests import tiny_gguf
from tests.test_cli import refused, small  # noqa: F401
from tests.test_export import CHATS, peft_folder
from tests.tiny_gguf import write_tiny

pytest.importorskip("gguf")
pytest.importorskip("llama_cpp")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a base GGUF and an adapter for it."""
    monkeypatch.chdir(tmp_path)
    write_tiny(tmp_path / "base.gguf", "chatml")
    peft_folder(tmp_path / "mine")
    return tmp_path


def left(here: Path) -> set[str]:
    return {str(p.relative_to(here)) for p in here.rglob("*") if p.is_file() and "cache" not in p.parts}


def test_options_that_do_not_go_together(here: Path, small: Path) -> None:  # noqa: F811
    assert "--base is missing" in refused("export", "mine")
    assert "minicollab export mine --base MODEL.gguf" in refused("export", "mine")
    assert "--merged-only" in refused(
        "export", "mine", "--base", "base.gguf", "--adapter-only", "--merged-only"
    )
    assert "--quant" in refused("export", "mine", "--base", "base.gguf", "--adapter-only", "--quant", "f16")
    assert "--quant" in refused("export", "mine", "--base", "base.gguf", "--quant", ",")
    assert "--set" in refused("export", "mine", "--base", "base.gguf", "--set", "seed=1")
    assert "Leave --base" in refused("export", small, "--base", "base.gguf")
    assert "Leave --base" in refused("export", small, "--hf-base", "mine")
    assert CliRunner().invoke(main, ["export", "mine", "--base", "base.gguf", "--scale", "0"]).exit_code == 2


def test_what_is_no_adapter_and_no_run(here: Path) -> None:
    (here / "empty").mkdir()
    for source in ("empty", "nowhere"):
        line = refused("export", source, "--base", "base.gguf")
        assert f"{source} is neither a run folder" in line
    assert "empty is neither" in refused("export", "empty")
    assert "there is no recipe nowhere" in refused("export", "nowhere")


def test_bases_that_cannot_be_used(here: Path) -> None:
    before = left(here)
    assert "there is no file" in refused("export", "mine", "--base", "none.gguf")
    assert "'q9'" in refused("export", "mine", "--base", "base.gguf", "--quant", "f16,q9")
    assert "config.json" in refused("export", "mine", "--base", "base.gguf", "--hf-base", "mine")
    assert left(here) == before
    write_tiny(here / "phi.gguf", "chatml", arch="starcoder2")
    assert "starcoder2" in refused("export", "mine", "--base", "phi.gguf", "--out", "out")
    whole = (here / "base.gguf").read_bytes()
    for length in (100, len(whole) // 2, len(whole) - 1):
        (here / "cut.gguf").write_bytes(whole[:length])
        assert "cut.gguf" in refused("export", "mine", "--base", "cut.gguf", "--out", "out")
    assert left(here) == before | {"phi.gguf", "cut.gguf"}


def test_adapters_of_other_bases_and_broken_ones(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = left(here)
    with monkeypatch.context() as patch:
        patch.setattr(tiny_gguf, "WIDTH", 128)
        other = write_tiny(here / "other.gguf", "chatml")
    assert "does not fit" in refused("export", "mine", "--base", "other.gguf", "--out", "out")
    other.unlink()
    peft_folder(here / "mine", use_dora=True)
    assert "use_dora" in refused("export", "mine", "--base", "base.gguf", "--out", "out")
    (here / "mine/adapter_model.safetensors").write_bytes(b"\x08\x00\x00")
    peft = json.loads((here / "mine/adapter_config.json").read_text()) | {"use_dora": False}
    (here / "mine/adapter_config.json").write_text(json.dumps(peft))
    assert "adapter_model.safetensors" in refused("export", "mine", "--base", "base.gguf", "--out", "out")
    assert left(here) == before


def test_a_disk_without_room(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    line = refused("export", "mine", "--base", "base.gguf", "--out", "out")
    assert "GB are free" in line and "The export needs" in line
    assert list((here / "out").iterdir()) == []


def test_of_a_run_the_options_are_keys_of_its_recipe(small: Path) -> None:  # noqa: F811
    given = ["--quant", "Q8_0, f16", "--scale", "0.5", "--merged-only", "--set", "seed=5"]
    refused("export", small, *given)
    kept = yaml.safe_load((small.parent / "runs/small/recipe.yaml").read_text("utf-8"))
    assert kept["export"] == {"quantization": ["Q8_0", "f16"], "scale": 0.5, "only": "merged"}
    assert kept["seed"] == 5
    other = small.parent / "other"  # --quant is an order of its own: both kinds of files again
    refused("export", small.parent / "runs/small", "--quant", "q8_0", "--out", other)
    assert "only" not in yaml.safe_load((other / "recipe.yaml").read_text("utf-8"))["export"]
    kept = (other / "recipe.yaml").read_text("utf-8")
    assert "'q9'" in refused("export", other, "--quant", "q9")
    assert (other / "recipe.yaml").read_text("utf-8") == kept


def test_what_a_run_promises_and_depends_on(small: Path) -> None:  # noqa: F811
    def run(*overrides: str) -> Run:
        return Run(small.parent / "run", load_recipe(small, overrides))

    assert outputs(run()) == [
        f"export/{name}"
        for name in ("MODEL_CARD.md", "HOWTO.md", "adapter.gguf", "Modelfile", "model-q4_k_m.gguf")
    ]
    both = run("export.quantization=[Q8_0, f16]")
    assert model_file(both) == small.parent / "run/export/model-q8_0.gguf"
    assert {"export/model-q8_0.gguf", "export/model-f16.gguf"} < set(outputs(both))
    alone = run("export.only=adapter")
    assert outputs(alone) == ["export/MODEL_CARD.md", "export/HOWTO.md", "export/adapter.gguf"]
    with pytest.raises(Exception, match=r"adapter alone.*export\.only=null"):
        trained(alone)
    with pytest.raises(RunError, match=r"merged alone, and this needs the adapter.*export\.only=null"):
        exporting.adapter(run("export.only=merged"))
    (small.parent / "run/adapter").mkdir(parents=True)
    (small.parent / "run/adapter/adapter_model.safetensors").write_bytes(b"x")
    asked = [inputs(run(*o), lambda *_: None) for o in ((), ("export.scale=0.5",), ("train.epochs=1",))]
    assert asked[0] == inputs(run("eval.samples=9", "name=other"), lambda *_: None) | {
        "from": asked[0]["from"]
    }
    assert len({json.dumps(a) for a in asked}) == 3


def test_a_model_of_an_earlier_training_is_not_taken_for_the_run_s(small: Path) -> None:  # noqa: F811
    run = Run(small.parent / "run", load_recipe(small))
    for name, content in (("export/model-q4_k_m.gguf", b"m"), ("adapter/adapter_model.safetensors", b"one")):
        (run / name).parent.mkdir(parents=True)
        (run / name).write_bytes(content)
    result = {"adapter_sha256": file_fingerprint(run / "adapter/adapter_model.safetensors")}
    run.record("export", {"inputs": "", "computed": {}, "result": result})
    assert trained(run) == run / "export/model-q4_k_m.gguf"
    (run / "adapter/adapter_model.safetensors").write_bytes(b"two")
    with pytest.raises(RunError, match=r"trained anew since .* Run: minicollab export"):
        trained(run)


def test_another_quantization_keeps_the_evaluation_of_the_first(small: Path) -> None:  # noqa: F811
    run = Run(small.parent / "run", load_recipe(small))
    (run / "export").mkdir(parents=True)
    model, card = run / "export/model-q4_k_m.gguf", run / "export/MODEL_CARD.md"
    model.write_bytes(b"model")
    row = {"mr": 0.5}
    known = {"arms": {"base": row, "trained": row}, "differences": {}, "verdict": "As good."}
    for of, kept in ((file_fingerprint(model), True), ("another", False), (None, False)):
        run.write_json("eval.json", known | ({"model_sha256": of} if of else {}))
        card.write_text("# A model\n\n## Compared with the base\n\nNot evaluated yet\n")
        add_known_evaluation(run)
        assert ("As good." in card.read_text()) == kept


def test_the_recipes_hash_is_the_same_in_another_folder(small: Path) -> None:  # noqa: F811
    elsewhere = small.parent / "elsewhere"
    elsewhere.mkdir()
    for name in ("recipe.yaml", "model.gguf", "tasks.jsonl"):
        (elsewhere / name).write_bytes((small.parent / name).read_bytes())
    here, there = (
        origin(Run(path.parent, load_recipe(path)), 3) for path in (small, elsewhere / "recipe.yaml")
    )
    assert here == there and here.tasks == "1 task of tasks.jsonl (details)" and here.pairs == 3
    assert str(small.parent) not in json.dumps(vars(here))
    changed = origin(Run(small.parent, load_recipe(small, ["simulate.window=2"])))
    same = origin(Run(small.parent, load_recipe(small, ["eval.samples=9"])))
    assert changed.recipe != here.recipe == same.recipe


def test_a_quantization_that_undoes_the_training_is_told_of() -> None:
    def told(kl: float) -> str:
        models = {
            kind: {"kl": k, "perplexity": 2.0, "bytes": 1} for kind, k in (("q4_k_m", kl), ("f16", 1e-6))
        }
        check = {"prompts": 10, "kl_torch_base": 0.8, "kl_torch_adapter_on_base": 1e-4, "models": models}
        return exported({"verification": check, "peak_memory_mb": 1.0}, Path())

    assert "loses" not in told(0.19)
    assert "q4_k_m loses 53% of what training changed (KL): take a finer quantization" in told(0.424)


@pytest.mark.slow
def test_an_adapter_trained_elsewhere(here: Path) -> None:
    def done(*more: str) -> Result:
        return CliRunner().invoke(main, ["export", "mine", "--base", "base.gguf", *more])

    told = done("--quant", "q8_0,q4_0", "--scale", "0.5")
    assert told.exit_code == 0, told.output
    for part in (
        "checked on 10 conversations",
        "peak memory",
        "merged, q4_0",
        "ended by itself",
        "mine-gguf/model",
    ):
        assert part in told.stdout, part
    assert (here / "mine-gguf/model-q4_0.gguf").is_file()
    result = json.loads(done("--adapter-only", "--json", "--out", "alone").stdout)
    assert result["adapter"] == "adapter.gguf" and "model" not in result and result["peak_memory_mb"] > 0
    assert not list((here / "alone").glob("model*"))
    other = write_tiny(here / "other.gguf", "chatml", seed=5)
    assert done("--base", str(other)).exit_code == 0  # it fits, and no one can tell whose it was


@pytest.mark.slow
def test_the_export_of_a_run(small: Path) -> None:  # noqa: F811
    run = small.parent / "runs/small"
    write_tiny(small.parent / "model.gguf", "llama3")
    run.mkdir(parents=True)
    peft_folder(run / "adapter")
    rows = ({"prompt": chat[:-1], "chosen": chat[-1:], "rejected": chat[-1:]} for chat in CHATS)
    (run / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = CliRunner().invoke(main, ["export", str(small), "--quant", "q8_0,q4_0"])
    assert told.exit_code == 0, told.output
    assert f"{run / 'export/model-q8_0.gguf'}\n  {run / 'export/adapter.gguf'}" in told.stdout
    peak = json.loads((run / "run.json").read_text())["stages"]["export"]["peak_memory_mb"]
    assert f"peak memory {peak:,.0f} MB" in told.stdout
    card = (run / "export/MODEL_CARD.md").read_text()
    assert "4 preference pairs from 1 task of tasks.jsonl (details)" in card and str(small.parent) not in card
    again = CliRunner().invoke(main, ["export", str(run)])
    assert again.stdout.startswith("export (unchanged)")
    before = {p.name: p.stat().st_ino for p in (run / "export").iterdir()}
    failed = CliRunner().invoke(main, ["export", str(run), "--scale", "1e-9"])
    line = failed.stderr.splitlines()[-1]  # what stands before it is progress
    assert failed.exit_code == 6 and "changes no logit" in line and "verification-failed.json" in line
    assert before.items() < {p.name: p.stat().st_ino for p in (run / "export").iterdir()}.items()


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_takes_what_a_run_hands_on(stage: str, tmp_path: Path) -> None:
    """`minicollab run --events FILE` calls each stage with --events, export too."""
    said = CliRunner().invoke(main, [stage, str(tmp_path / "none.yaml"), "--events", str(tmp_path / "e")])
    assert "there is no recipe" in said.output and "No such option" not in said.output
