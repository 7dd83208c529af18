"""QLoRA DPO: pairs.jsonl → a PEFT adapter. Reads files, never touches an engine."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from minicollab.cache.keys import content_hash
from minicollab.checkpoints import claim, seal, step, weights_state
from minicollab.errors import MinicollabError, ModelError, RunError, StageError
from minicollab.files import aside, need_space, remove
from minicollab.models import user_cache
from minicollab.progress import Watcher, silent
from minicollab.prompts import TEMPLATE
from minicollab.recipe import Train
from minicollab.silence import no_logs, no_output

Row = Mapping[str, Any]

TARGET_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_COLUMNS = ("prompt", "chosen", "rejected")
_NO_PAIRS = "Lower pairs.min_gap or raise propose.candidates in the recipe, then simulate again."


def train(
    pairs: Path, base: str, out: Path, options: Train, seed: int, progress: Watcher = silent
) -> dict[str, Any]:
    """Direct preference optimization (Rafailov et al. 2023) of a LoRA adapter on `pairs`.

    `base` is a Hugging Face folder or hub name. Writes `out/adapter/`; while it runs, checkpoints
    in `out/checkpoints/`, from which a second call with the same inputs goes on. Returns curves
    ([[optimizer step, value], ...], margins in nats) and how many pairs were dropped or truncated.
    Raises RunError for a broken pairs file and a full disk, ModelError for an unfit base,
    StageError when there is nothing to train on or memory runs out.
    """
    start = time.monotonic()
    rows = read_pairs(pairs)
    checkpoints = out / "checkpoints"
    fingerprint = content_hash([rows, base, weights_state(Path(base)), options.model_dump(), seed])
    resumed = claim(checkpoints, fingerprint)
    with no_logs(), _explained(checkpoints):
        progress("load the model", 0, 1)
        with no_output():
            model, tokenizer = _load(base, options, seed)
            lengths = [_lengths(row, tokenizer, base) for row in rows]
            usable = [rows[i] for i, (prompt, _) in enumerate(lengths) if prompt < options.max_length]
            if not usable:
                raise StageError(
                    f"no preference pairs are short enough: every prompt has {options.max_length} tokens",
                    "Raise train.max_length in the recipe.",
                )
            # The adapter and Adam's two moments in float32, twice: the old one goes after the new one.
            need_space(checkpoints, 2 * 3 * 4 * model.num_parameters(only_trainable=True), "The training")
            trainer = _trainer(model, tokenizer, usable, dpo_arguments(options, seed, checkpoints), progress)
        progress("load the model", 1, 1)
        trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
        with no_output():
            _save(trainer.model, base, out / "adapter")
    remove(checkpoints)
    return {
        "steps": trainer.state.global_step,
        "seconds": round(time.monotonic() - start, 2),
        "pairs": len(usable),
        "dropped_too_long": len(rows) - len(usable),
        "truncated": sum(prompt < options.max_length < longest for prompt, longest in lengths),
        "base": base,
        "resumed_from": step(resumed) if resumed else None,
        **curves(trainer.state.log_history),
    }


def read_pairs(path: Path) -> list[dict[str, Any]]:
    """The rows of a pairs.jsonl, at least one. RunError names the first broken line."""
    try:
        # Not splitlines(): a reply may hold U+2028 and its like, which JSON does not escape.
        lines = path.read_text("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{path} cannot be read: {error}", "Run the simulate stage first.") from None
    rows = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            row = _parse(line)
            if row is None:
                raise RunError(
                    f"{path.name} line {number} is not a pair (prompt, chosen and rejected messages)",
                    "Delete the file and run the simulate stage again.",
                )
            rows.append(row)
    if not rows:
        raise StageError(f"no preference pairs in {path}", _NO_PAIRS)
    return rows


def _parse(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
        messages = [message for column in _COLUMNS for message in row[column]]
        whole = all(isinstance(m[key], str) for m in messages for key in ("role", "content"))
        return row if whole and all(row[column] for column in _COLUMNS) else None
    except (ValueError, KeyError, TypeError):
        return None


def dpo_arguments(options: Train, seed: int, checkpoints: Path) -> dict[str, Any]:
    """The recipe's options in the words of trl.DPOConfig, without what the device decides."""
    loss: dict[str, Any] = {"loss_type": ["sigmoid"]}
    if options.sft_weight:
        loss = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, options.sft_weight]}
    return loss | {
        "output_dir": str(checkpoints),
        "beta": options.beta,
        "max_length": options.max_length,
        "num_train_epochs": options.epochs,
        "per_device_train_batch_size": options.batch_size,
        "gradient_accumulation_steps": options.gradient_accumulation,
        "learning_rate": options.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": options.warmup_steps,
        "disable_dropout": not options.lora_dropout,  # TRL would set the adapter's dropout to zero
        # Once per pair instead of once per pair and epoch, and no second adapter in memory.
        "precompute_ref_log_probs": True,
        "save_strategy": "steps",
        "save_steps": options.save_steps,
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "seed": seed,
    }


def curves(history: Sequence[Row]) -> dict[str, Any]:
    """Loss, reward margin and reward accuracy by optimizer step, from the trainer's log."""
    steps = [entry for entry in history if "loss" in entry]

    def curve(key: str) -> list[list[float]]:
        return [[entry["step"], float(entry[key])] for entry in steps if key in entry]

    loss = curve("loss")
    return {
        "loss": loss,
        "reward_margin": curve("rewards/margins"),
        "reward_accuracy": curve("rewards/accuracies"),
        "final_loss": loss[-1][1] if loss else None,
    }


def _lengths(row: Row, tokenizer: Any, base: str) -> tuple[int, int]:
    """Tokens of the prompt, and of the prompt with the longer reply."""

    def count(messages: list[Any], **how: bool) -> int:
        return len(
            tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, **how, **TEMPLATE)
        )

    try:
        prompt = count(row["prompt"], add_generation_prompt=True)
        return prompt, max(count(row["prompt"] + row[side]) for side in ("chosen", "rejected"))
    except Exception as error:  # templates are programs, and raise what they like
        raise ModelError(
            f"the chat template of {base} does not take these conversations: {error}",
            "Set models.train_base to a chat (instruct) model.",
        ) from error


def _load(base: str, options: Train, seed: int) -> tuple[Any, Any]:
    """The base in 4 bit with a fresh LoRA adapter on its seven linear modules, and its tokenizer."""
    _environment(base)
    from unsloth import FastLanguageModel  # isort: skip  (patches trl, transformers and peft)
    import torch

    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        # bfloat16 products, but float32 sums: in pure bfloat16 the margins of the first steps
        # were a fifth of these, perhaps because a young adapter's small share is rounded off.
        torch.set_float32_matmul_precision("medium")
    try:
        model, tokenizer = FastLanguageModel.from_pretrained(
            base,
            max_seq_length=options.max_length,
            load_in_4bit=options.load_in_4bit,
            dtype=None if on_gpu else torch.float32,
        )
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{base} cannot be loaded for training: {error}",
            "Set models.train_base to a Hugging Face folder that is on this machine.",
        ) from error
    if not on_gpu:
        for parameter in filter(torch.is_floating_point, model.parameters()):
            parameter.data = parameter.data.clone()  # else embeddings and norms keep the whole file mapped
    adapted = FastLanguageModel.get_peft_model(
        model,
        r=options.lora_r,
        lora_alpha=options.lora_alpha,
        lora_dropout=options.lora_dropout,
        target_modules=list(TARGET_MODULES),
        bias="none",
        # Memory is what a GPU lacks, time is what a CPU lacks.
        use_gradient_checkpointing="unsloth" if on_gpu else False,
        random_state=seed,
    )
    return adapted, tokenizer


def _environment(base: str) -> None:
    """Settings that the libraries read once, when they are imported."""
    if Path(base).is_dir():
        os.environ["HF_HUB_OFFLINE"] = "1"
    # OpenMP threads that wait by spinning take the cores from whatever else runs.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # On a GPU Unsloth writes generated code to the working directory otherwise.
    os.environ.setdefault("UNSLOTH_COMPILE_LOCATION", str(user_cache() / "unsloth"))


def _columns(row: Row) -> Row:
    return {column: row[column] for column in _COLUMNS} | {"chat_template_kwargs": TEMPLATE}


def _trainer(model: Any, tokenizer: Any, rows: Sequence[Row], arguments: Row, progress: Watcher) -> Any:
    import torch
    from datasets import Dataset
    from transformers import PrinterCallback, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    class Report(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.begun = time.monotonic()

        def on_log(self, args: Any, state: Any, control: Any, logs: Row, **_: Any) -> None:
            if "loss" in logs:  # the last log is of the whole training
                figures = {"loss": logs["loss"], "seconds_per_step": time.monotonic() - self.begun}
                progress("training", state.global_step, state.max_steps, **figures)

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            seal(Path(args.output_dir) / f"checkpoint-{state.global_step}")

    on_gpu = torch.cuda.is_available()
    bf16 = on_gpu and torch.cuda.is_bf16_supported()
    device = {"bf16": bf16, "fp16": on_gpu and not bf16, "gradient_checkpointing": on_gpu}
    trainer = DPOTrainer(
        model=model,
        args=DPOConfig(**arguments, **device),
        train_dataset=Dataset.from_list([_columns(row) for row in rows]),
        processing_class=tokenizer,
        callbacks=[Report()],
    )
    trainer.remove_callback(PrinterCallback)
    # TRL's copy of the fresh adapter; its log-probabilities are known by now.
    if "ref" in trainer.model.peft_config:
        trainer.model.delete_adapter("ref")
    # TRL rounds the adapter of a 4-bit model to bfloat16, where Unsloth has not replaced it (on a
    # CPU), and PEFT gives a resumed one back in float32: two trainings that would not be the same.
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return trainer


def _save(model: Any, base: str, folder: Path) -> None:
    config = model.peft_config["default"]
    # Unsloth may have loaded a pre-quantized twin: the adapter belongs to what the recipe names.
    config.base_model_name_or_path = base
    config.target_modules = sorted(config.target_modules)  # a set has another order in each process
    with aside(folder) as partial:
        model.save_pretrained(partial, save_embedding_layers=False)


@contextlib.contextmanager
def _explained(checkpoints: Path) -> Iterator[None]:
    """torch and safetensors raise the same kind of error for everything: the text tells."""

    def says(error: Exception, *signs: str) -> bool:
        return any(sign in str(error) for sign in signs)

    try:
        yield
    except MinicollabError:
        raise
    except Exception as error:
        if isinstance(error, MemoryError) or says(error, "out of memory", "allocate memory"):
            raise StageError(
                "the model and its training do not fit into memory",
                "Halve train.batch_size (and double train.gradient_accumulation), or lower train.max_length.",
            ) from error
        if says(error, "No space left", "inline_container"):  # the second is torch.save's
            raise RunError(
                f"the disk that holds {checkpoints} is full",
                "Free some space and run the same command again: it goes on from the last checkpoint.",
            ) from error
        if isinstance(error, pickle.UnpicklingError):  # torch loads tensors and refuses all else
            raise RunError(
                f"{checkpoints} holds a checkpoint that no training wrote", "Delete it, and run again."
            ) from error
        raise
