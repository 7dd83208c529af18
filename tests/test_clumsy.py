"""What a clumsy or a hostile hand gives the commands around a run: broken adapters, templates, numbers,
names and recipes. Every one is answered in a line."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from rich.console import Console

from minicollab.cli import main
from minicollab.display import Display
from minicollab.errors import ModelError, RecipeError, RunError, StageError
from minicollab.gguf import export
from minicollab.gguf.adapter import adapter_to_gguf
from minicollab.gguf.dequantize import dequantize_to_hf
from minicollab.gguf.logits import load_tokenizer, tokenized, torch_logits
from minicollab.loading import load_recipe
from minicollab.serve import listen, loaded
from tests.test_cli import REPO, python, refused, small  # noqa: F401
from tests.test_export import CHATS, peft_folder
from tests.test_serve import installed
from tests.tiny_gguf import FAMILIES, tiny, write_tiny

pytest.importorskip("gguf")
pytest.importorskip("llama_cpp")

Tensors = dict[str, Any]


def changed(folder: Path, change: Callable[[Tensors], Tensors]) -> Path:
    """An adapter whose tensors went through `change`."""
    from safetensors.numpy import load_file, save_file

    file = peft_folder(folder) / "adapter_model.safetensors"
    save_file(change(load_file(file)), file)
    return folder


def with_template(path: Path, template: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    odd = dataclasses.replace(FAMILIES["chatml"], template=template)
    monkeypatch.setitem(FAMILIES, "odd", odd)
    return write_tiny(path, "odd")


# Adapters


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"r": None}, "no r"),
        ({"r": "four"}, "no r"),
        ({"r": -4}, "no r"),
        ({"r": True}, "no r"),
        ({"r": [4]}, "no r"),
        ({"lora_alpha": "x"}, "no lora_alpha"),
        ({"lora_alpha": float("nan")}, "no lora_alpha"),
        ({"lora_alpha": 1e39}, "no lora_alpha"),
        ({"alpha_pattern": ["x"]}, "alpha_pattern"),
        ({"alpha_pattern": {"(": 3}}, "alpha_pattern"),
        ({"alpha_pattern": {"q_proj": "x"}}, "alpha_pattern"),
        ({"r": 7}, "rank"),
    ],
)
def test_an_adapters_settings_are_looked_at(settings: dict[str, Any], says: str, tmp_path: Path) -> None:
    adapter = peft_folder(tmp_path / "mine", **settings)
    with pytest.raises(StageError, match=says):
        adapter_to_gguf(adapter, tiny("chatml"), tmp_path / "out.gguf")
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


def test_json_that_is_too_deep(tmp_path: Path) -> None:
    adapter = peft_folder(tmp_path / "mine")
    (adapter / "adapter_config.json").write_text("[" * 100_000)
    with pytest.raises(StageError, match="no PEFT adapter"):
        adapter_to_gguf(adapter, tiny("chatml"), tmp_path / "out.gguf")


def _one(number: float) -> Callable[[Tensors], Tensors]:
    def change(tensors: Tensors) -> Tensors:
        next(iter(tensors.values()))[0, 0] = number
        return tensors

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_one(np.nan), "not finite"),
        (_one(np.inf), "not finite"),
        (lambda t: {k: v.reshape(-1) for k, v in t.items()}, "incomplete"),
        (lambda t: {k: np.array(1, np.float32) for k in t}, "incomplete"),
        (lambda t: {k: (v[:0] if "_A" in k else v[:, :0]).copy() for k, v in t.items()}, "rank"),
    ],
    ids=["nan", "infinite", "one dimension", "none", "rank 0"],
)
def test_an_adapters_numbers_are_looked_at(
    change: Callable[[Tensors], Tensors], says: str, tmp_path: Path
) -> None:
    adapter = changed(tmp_path / "mine", change)
    with pytest.raises(StageError, match=says):
        adapter_to_gguf(adapter, tiny("chatml"), tmp_path / "out.gguf")


def test_ranks_may_differ_as_the_pattern_says(tmp_path: Path) -> None:
    def wider(tensors: Tensors) -> Tensors:
        return {
            k: np.repeat(v, 2, axis=0 if "_A" in k else 1) if "layers.1.mlp.up_proj" in k else v
            for k, v in tensors.items()
        }

    adapter = changed(tmp_path / "mine", wider)
    with pytest.raises(StageError, match=r"model\.layers\.1\.mlp\.up_proj has rank 8, .* says 4"):
        adapter_to_gguf(adapter, tiny("chatml"), tmp_path / "out.gguf")
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["rank_pattern"] = {"layers.1.mlp.up_proj": 8}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    assert adapter_to_gguf(adapter, tiny("chatml"), tmp_path / "out.gguf").is_file()


@pytest.mark.slow
def test_torchs_side_of_the_check_has_broken_files_too(tmp_path: Path) -> None:
    base = dequantize_to_hf(tiny("chatml"), tmp_path / "hf", lambda *_: None)
    adapter = peft_folder(tmp_path / "mine")
    talks = [tokenized(load_tokenizer(base), CHATS[0])]
    weights = next(base.glob("*.safetensors"))
    whole = weights.read_bytes()
    for content in (whole[:1000], None):
        weights.write_bytes(content) if content else weights.unlink()
        with pytest.raises(ModelError, match="hf cannot be read"):
            torch_logits(base, adapter, talks, 1.0)
    weights.write_bytes(whole)
    peft_folder(adapter, target_modules=["no_such"])
    with pytest.raises(StageError, match="PEFT cannot put"):
        torch_logits(base, adapter, talks, 1.0)


@pytest.mark.parametrize("config", ["{}", "["])
def test_a_hugging_face_folder_that_is_none(config: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ModelError, match="cannot be read"):
        load_tokenizer(tmp_path)


# Templates


@pytest.mark.parametrize("template", ["{{ raise_exception('I refuse\nit') }}", "{% for m in messages %}{{ m"])
def test_a_template_that_fails_where_it_is_to_be_trained_on(
    template: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = with_template(tmp_path / "odd.gguf", template, monkeypatch)
    with pytest.raises(ModelError, match=r"chat template of odd\.gguf"):
        dequantize_to_hf(odd, tmp_path / "hf", lambda *_: None)
    assert [p.name for p in tmp_path.iterdir()] == ["odd.gguf"]


@installed
def test_a_template_that_cannot_be_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = with_template(tmp_path / "odd.gguf", "{% for m in messages %}{{ m", monkeypatch)
    with pytest.raises(ModelError, match=r"odd\.gguf"), loaded(odd, "odd", 512):
        pass


# Numbers and names on the command line


@pytest.mark.parametrize("number", ["nan", "inf", "1e39"])
def test_numbers_that_are_none(number: str, tmp_path: Path, small: Path) -> None:  # noqa: F811
    base, adapter = str(tiny("chatml")), str(peft_folder(tmp_path / "mine"))
    for arguments in (
        ["export", adapter, "--base", base, "--scale", number],
        ["export", str(small), "--scale", number],
        ["bench", "--seconds", number],
        ["chat", base, "--temperature", number],
        ["chat", base, "--top-p", number],
    ):
        if number == "1e39" and arguments[-2] in ("--seconds", "--temperature"):
            continue
        result = CliRunner().invoke(main, arguments, input="")
        assert result.exit_code == 2 and result.stderr.splitlines()[-1].startswith("Error: Invalid value")
    with pytest.raises(RecipeError, match=r"export\.scale"):
        load_recipe(small, [f"export.scale={'.' * (number != '1e39')}{number.replace('e', 'e+')}"])


@pytest.mark.parametrize("host", ["x" * 300, "ü" * 70, ".."])
def test_a_host_that_is_no_name(host: str) -> None:
    with pytest.raises(RunError, match="cannot listen"):
        listen(host, 0)


def test_an_output_that_is_no_folder(tmp_path: Path) -> None:
    adapter = peft_folder(tmp_path / "mine")
    file = tmp_path / "file"
    file.write_text("precious")
    for out in (file, file / "x"):
        line = refused("export", adapter, "--base", tiny("chatml"), "--out", out)
        assert f"{out} cannot be written" in line and "another folder" in line
    assert file.read_text() == "precious"


def test_stopped_while_the_new_files_go_to_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(path: Path) -> None:
        raise KeyboardInterrupt

    out, kept = tmp_path / "out", tmp_path / "out/.unverified/kept"
    kept.mkdir(parents=True)
    (out / "model.gguf").write_text("earlier")
    (out / "verification.json").write_text('{"files": ["model.gguf"]}')
    (kept / "model.gguf").write_text("new")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(export, "sync", stop)
        export._replace(out, kept, ["model.gguf"])
    assert (out / "model.gguf").read_text() == "earlier" and (out / "verification.json").is_file()
    export._replace(out, kept, ["model.gguf"])
    assert (out / "model.gguf").read_text() == "new"


def test_a_disk_that_fills_up_is_called_so(tmp_path: Path) -> None:
    """numpy's own writing says "8192 requested and 224 written"."""
    adapter = adapter_to_gguf(peft_folder(tmp_path / "mine"), tiny("chatml"), tmp_path / "a.gguf")
    script = (
        "import resource, signal, sys; from pathlib import Path; from minicollab.gguf.merge import merge\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10**5, 10**5))\n"
        "try: merge(*map(Path, sys.argv[1:]))\n"
        "except OSError as error: print(error.strerror)\n"
    )
    told = python("-c", script, str(tiny("chatml")), str(adapter), str(tmp_path / "out.gguf"), cwd=tmp_path)
    assert told.stdout == "File too large\n" and not list(tmp_path.glob("*out.gguf")), told.stderr


# Chats


def lines(typed: str, *more: object) -> Any:
    command = ["chat", tiny("chatml"), "--context", 512, "--max-tokens", 4, "--seed", 1, *more]
    return CliRunner().invoke(main, [str(a) for a in command], input=typed)


@pytest.mark.parametrize("path", ["~nobody-of-this-name/x", "\0x", "x" * 300, "deep.json"])
@pytest.mark.parametrize("command", ["save", "load"])
def test_files_that_cannot_be(
    command: str, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("deep.json").write_text("[" * 100_000)
    result = lines(f"/{command} {path}\n")
    line = result.stderr.splitlines()[-1]
    assert result.exit_code == 1 and line.startswith("minicollab: ") and "Name another file." in line
    assert Path("deep.json").stat().st_size == 100_000


def test_a_device_is_not_read() -> None:
    """It would be until the memory is full."""
    for command in ("save", "load"):
        assert "/dev/full: " in lines(f"/{command} /dev/full\n").stderr.splitlines()[-1]


def test_a_strength_beyond_all_numbers(tmp_path: Path) -> None:
    adapter = adapter_to_gguf(peft_folder(tmp_path / "mine"), tiny("chatml"), tmp_path / "a.gguf")
    result = lines("/adapter 1e39\n", "--adapter", adapter)
    assert result.exit_code == 1 and "1e39 is no strength" in result.stderr


@pytest.mark.parametrize("temperature", [0, 0.8])
def test_a_model_that_computes_no_numbers_is_named(temperature: float, tmp_path: Path) -> None:
    """llama.cpp's samplers end the whole process."""
    huge = changed(tmp_path / "huge", lambda t: {k: v * 1e18 for k, v in t.items()})
    adapter = adapter_to_gguf(huge, tiny("chatml"), tmp_path / "a.gguf")
    result = lines("hello\n", "--adapter", adapter, "--temperature", temperature)
    assert result.exit_code == 6 and "no numbers" in result.stderr.splitlines()[-1]


@pytest.mark.parametrize("moment", [0, 0.003, 0.006])
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_stopped_in_the_midst_of_a_reply(how: signal.Signals, moment: float) -> None:
    """At some moments asyncio lost a task, and waited for it for ever; and at most of them the lines
    that were left were begun, too, one by one. Ctrl-C ended the reply alone, and the exit code was 0."""
    command = [sys.executable, "-m", "minicollab", "chat", str(tiny("chatml")), "--max-tokens", "2000"]
    where = os.environ | {"PYTHONPATH": str(REPO)}
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=where,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as child:
        assert child.stdin and child.stdout
        child.stdin.write(b"the rain\n" * 100)
        child.stdin.flush()
        child.stdout.read(1)
        time.sleep(moment)
        child.send_signal(how)
        try:
            _, told = child.communicate(timeout=60)
        finally:
            child.kill()
    assert child.returncode == 128 + how
    assert told.count(b"(stopped") <= 1 and b"Traceback" not in told and b"Warning" not in told


def test_nothing_to_read_from() -> None:
    """Python has no sys.stdin where it was closed."""
    script = "import sys; sys.stdin = None; from minicollab.cli import main; main()"
    told = python("-c", script, "chat", str(tiny("chatml")), "--context", "512", cwd=REPO)
    assert told.returncode == 0 and "Traceback" not in told.stderr


# Recipes


@pytest.mark.parametrize("text", ["a: " + "[" * 5000, "seed: " + "9" * 5000])
def test_yaml_that_python_will_not_read(text: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match="not YAML"):
        load_recipe(path)
    path.write_text("name: x")
    with pytest.raises(RecipeError, match="not YAML"):
        load_recipe(path, [f"a={text.partition(' ')[2]}"])


def test_a_sentence_ends_once() -> None:
    assert str(RunError("it failed.", "Try again.")) == "it failed. Try again."


def test_a_pattern_is_told_as_it_is(small: Path) -> None:  # noqa: F811
    with pytest.raises(RecipeError, match="A-Z"):
        load_recipe(small, ["name=a b"])


def test_a_quantization_that_is_none_is_told_before_the_hours(small: Path) -> None:  # noqa: F811
    shutil.copy(tiny("chatml"), small.parent / "model.gguf")
    line = refused("run", small, "--set", "export.quantization=q9")
    assert "there is no quantization 'q9'" in line
    assert not (small.parent / "runs/small/rollouts.jsonl").exists()
    result = CliRunner().invoke(main, ["doctor", str(small), "--set", "export.quantization=q9"])
    assert result.exit_code == 4 and "'q9'" in result.stderr


# Files of a run, of tasks, of events


@pytest.mark.parametrize("name", ["rollouts.jsonl", "pairs.jsonl", "run.json"])
@pytest.mark.parametrize("content", [b"\xff\xfe\xff", b"1\n", b'{"stages": {"simulate": 3}}', b"[" * 100_000])
def test_a_run_whose_files_are_broken(name: str, content: bytes, small: Path) -> None:  # noqa: F811
    run = small.parent / "runs/small"
    run.mkdir(parents=True)
    shutil.copy(small, run / "recipe.yaml")
    for other in ("rollouts.jsonl", "pairs.jsonl"):
        (run / other).write_text("")
    (run / name).write_bytes(content)
    line = refused("report", run)
    assert "run.json" in line or name in line
    assert "Run: minicollab simulate" in line or "run: minicollab simulate" in line


def test_tasks_that_cannot_be_read_say_why(small: Path) -> None:  # noqa: F811
    Path("mine.csv").write_bytes(b"question,details\n\xff\xfe,x\n")
    assert "not UTF-8" in refused("init", "new", "--data", "mine.csv")
    assert not Path("new").exists()


@pytest.mark.parametrize("file", [".", "no/such/folder/x", "/dev/full"])
def test_events_that_cannot_be_written(file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError, match=r"events cannot be written.*\. Name another file\."):  # noqa: SIM117
        with Display("simulate", Console(stderr=True), Path(file)) as display:
            display("work", 1, 1)
