"""How much memory and disk each stage of a recipe needs at its peak: arithmetic, nothing is loaded.

What it is compared with, and how far it is off, is in docs/hardware.md (`benchmarks/memory.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from minicollab.engine.sizing import GIB, MIB, Memory, size
from minicollab.needs.lengths import Lengths
from minicollab.needs.machine import Machine
from minicollab.needs.models import Model
from minicollab.quantization import most_bits, room
from minicollab.recipe import Recipe

# Resident in a process before it has any weights, measured here: Python with llama.cpp and numpy; with
# torch and transformers; with TRL and Unsloth on top (fitted with the two below).
_ENGINE, _TORCH, _TRAINER = 110 * MIB, 480 * MIB, 600 * MIB
# What CUDA's libraries take in RAM and on the card, and each llama.cpp context there; estimated.
_CUDA_RAM, _CUDA, _CUDA_ENGINE = 2 * GIB, 800 * MIB, 400 * MIB
_NF4 = 0.516  # bytes a parameter: 4 bit, and the doubly quantized scales of its blocks of 64
_ADAPTER = 16  # bytes a parameter: weight, gradient and Adam's two moments, float32
# Of the bytes that a step must keep, glibc's heap takes this share and, since batches differ in length,
# the second times the square root of how many batches there were. Fitted to eleven trainings of SmolLM2 of
# up to 102 batches; beyond them it is held where it was. Blocks larger than the last do not lie in it.
_HEAP, _HEAP_GROWS, _HEAP_KNOWN, _HEAP_BLOCK = 0.8, 0.28, 100, 32 * MIB
_SLACK = 1.1  # of what torch takes on a card: blocks of its allocator that are partly used
_FILE = 2 * 10**9  # bytes of one file of dequantized weights
_COMPARED = 320  # tokens of replies that an export is compared on
_VOCABULARY_PIECE = 32_768  # columns of logits that TRL computes at a time
# llama.cpp rearranges weights of these kinds for the CPU's matrix units, and the file stays mapped.
_REARRANGED = ("q4_0", "q4_k", "q8_0", "iq4_nl", "q2_k")

_BITS = {
    "q8_0": 8.5, "q6_k": 6.6, "q5_k_m": 5.7, "q5_k_s": 5.6, "q5_0": 5.6, "q5_1": 6.0, "q4_k_m": 4.9,
    "q4_k_s": 4.6, "q4_0": 4.6, "q4_1": 5.0, "iq4_nl": 4.6, "iq4_xs": 4.3, "q3_k_l": 4.3, "q3_k_m": 3.9,
    "q3_k_s": 3.6, "q2_k": 3.2,
}  # fmt: skip


@dataclass(frozen=True)
class Need:
    """What a stage needs at its peak, in bytes by what it is for. `ram` counts mapped files, too, as
    the system's "resident" does; `vram` is empty where the stage runs on the CPU. `disk`: what it
    writes, while it works."""

    stage: str
    ram: Mapping[str, int]
    vram: Mapping[str, int] = field(default_factory=dict)
    disk: Mapping[str, int] = field(default_factory=dict)

    def total(self, kind: str) -> int:
        return sum(getattr(self, kind).values())


def needs(
    recipe: Recipe,
    policy: Model | None,
    judge: Model | None,
    machine: Machine,
    lengths: Lengths,
    dequantized: bool = False,
) -> list[Need]:
    """Of the stages simulate, train, export and eval, in that order. `policy` and `judge` are None on
    a server; the same model twice is loaded once. Without a local policy nothing is trained."""
    players = list(dict.fromkeys(model for model in (policy, judge) if model))
    found = [_playing("simulate", players, recipe, machine)]
    if policy:
        trained = _quantized(policy, recipe.export.kinds[0])
        found.append(_training(policy, recipe, machine, lengths, dequantized))
        found.append(_exporting(policy, recipe))
        found.append(_playing("eval", [*players, trained], recipe, machine))
    return found


def _quantized(model: Model, kind: str) -> Model:
    bytes_ = int(model.shape.parameters * _BITS.get(kind, most_bits(kind)) / 8)
    return replace(model, shape=replace(model.shape, name="trained", size=bytes_), kind=kind)


# simulate and eval


def _playing(stage: str, models: list[Model], recipe: Recipe, machine: Machine) -> Need:
    """Weights, cells and compute buffers of every model; on a card the weights' file is still mapped."""
    vram = machine.vram if recipe.engine.gpu_layers else None
    ram, card = {"program": _ENGINE}, dict[str, int]()
    for number, model in enumerate(models):
        taken = sum(card.values()) if vram else sum(ram.values()) - _ENGINE
        plan = size(model.shape, recipe.engine, _less(vram or machine.ram, taken))
        name = f"{model.shape.name} {number + 1}"
        cells = plan.context * model.shape.kv_bytes
        if vram:
            share = 1.0
            if recipe.engine.gpu_layers > 0:
                share = min(1.0, recipe.engine.gpu_layers / model.shape.layers)
            ram[f"{name}: file"] = model.shape.size
            card[f"{name}: weights"] = int(share * _computed(model))
            card[f"{name}: cells"] = int(share * cells)
            # llama.cpp reserves a row of logits and one of hidden states for every token of a batch.
            card[f"{name}: computing"] = plan.batch * 4 * (model.shape.vocabulary + model.width)
            card[f"{name}: context"] = _CUDA_ENGINE
        else:
            ram[f"{name}: file"] = model.shape.size
            ram[f"{name}: rearranged"] = _computed(model) if _rearranges(model, machine) else 0
            ram[f"{name}: cells"] = cells
            # Reserved as above, but touched only where it is used: few rows of logits are.
            ram[f"{name}: computing"] = plan.batch * 4 * (4 * model.width + 2 * model.inner)
    if vram:
        ram["CUDA"] = _CUDA_RAM
    return Need(stage, ram, card)


def _less(memory: Memory, taken: int) -> Memory:
    """What is left when the models that came first have taken theirs."""
    return replace(memory, free=max(0, memory.free - taken))


def _computed(model: Model) -> int:
    """Bytes of the weights that are multiplied with: all but a table that is only looked up in."""
    looked_up = max(0, model.rest - model.table)
    return int(model.shape.size * (1 - looked_up / model.shape.parameters))


def _rearranges(model: Model, machine: Machine) -> bool:
    if "AMX_INT8" in machine.llama:
        return model.kind not in ("f16", "bf16")
    return "REPACK" in machine.llama and model.kind.startswith(_REARRANGED)


# train


def _training(policy: Model, recipe: Recipe, machine: Machine, lengths: Lengths, dequantized: bool) -> Need:
    """QLoRA DPO: the base in 4 bit with its embeddings, the adapter with its optimizer, and what one
    batch of chosen and rejected replies, filled up to the longest, leaves behind for the way back."""
    options = recipe.train
    rows = 2 * options.batch_size * lengths.longest
    adapter = policy.adapter(options.lora_r)
    whole = 4 * policy.shape.parameters
    base = _NF4 * policy.linear if options.load_in_4bit else 2 * policy.linear
    dequantize = not (recipe.models.train_base or dequantized)
    disk = {"checkpoints": 2 * 3 * 4 * adapter} | ({"float32 folder": whole} if dequantize else {})
    if machine.training:
        completions = 2 * options.batch_size * min(recipe.policy.max_tokens, lengths.longest)
        card = {
            "CUDA": _CUDA,
            "base": int(base + 2 * policy.rest),
            "adapter": _ADAPTER * adapter,
            "one layer": int(_SLACK * 4 * rows * sum(_kept(policy).values())),  # the others are computed anew
            "logits": int(_SLACK * 3 * 4 * completions * min(_VOCABULARY_PIECE, policy.shape.vocabulary)),
        }
        # Unsloth parks every layer's hidden states (2 bytes) in RAM until the way back.
        ram = {
            "program": _TRAINER + _CUDA_RAM,
            "hidden states": 2 * rows * policy.width * policy.shape.layers,
        }
        return Need("train", _at_most(ram, _dequantizing(policy) if dequantize else {}), card, disk)
    batches = min(_HEAP_KNOWN, math.ceil(lengths.pairs / options.batch_size) * options.epochs)
    ram = {
        "program": _TRAINER,
        "base": int(base * (1 if options.load_in_4bit else 2) + 4 * policy.rest),
        "adapter": _ADAPTER * adapter,
        "activations": policy.shape.layers * _in_heap(policy, rows, batches),
    }
    loading = {"program": _TRAINER, "float32 file": whole, "base": ram["base"]}
    return Need("train", _at_most(ram, loading, _dequantizing(policy) if dequantize else {}), {}, disk)


def _kept(model: Model) -> dict[int, float]:
    """How many numbers one layer keeps of a token for the way back, by the width of their tensors:
    inputs of two norms (three copies each); what the dropout of seven adapters let through, with its
    mask (a byte); queries, keys and values as they are attended to, all heads wide, and what came of
    it; four of the feed-forward."""
    kept = {model.width: (6 + 5 * 1.25) * model.width}
    for width in (model.queries, model.inner):
        kept[width] = kept.get(width, 0) + (4 + 1.25) * width
    return kept


def _in_heap(model: Model, rows: int, batches: float) -> int:
    """Bytes of one layer."""
    grown = _HEAP_GROWS * math.sqrt(batches)
    shares = {width: _HEAP + (grown if 4 * rows * width <= _HEAP_BLOCK else 0) for width in _kept(model)}
    return int(sum(shares[width] * 4 * rows * kept for width, kept in _kept(model).items()))


def _dequantizing(model: Model) -> dict[str, int]:
    """The policy's GGUF becomes a float32 folder, one file of it at a time."""
    file = min(4 * model.shape.parameters, _FILE) + 4 * model.table
    return {"program": _TRAINER, "float32 file": file, "GGUF": model.shape.size}


def _at_most(*moments: dict[str, int]) -> dict[str, int]:
    """The moment that needs most."""
    return max(moments, key=lambda parts: sum(parts.values()))


# export


def _exporting(policy: Model, recipe: Recipe) -> Need:
    """On the CPU, also where there is a card: merging holds one tensor, the check against torch all
    of them in float32, and the logits of both sides and of two files."""
    parameters, adapter = policy.shape.parameters, policy.adapter(recipe.train.lora_r)
    ram = {
        "program": _TORCH,
        "float32 weights": 4 * parameters,
        "adapter": 8 * adapter,
        "logits": 4 * 4 * _COMPARED * policy.shape.vocabulary,
    }
    kinds = () if recipe.export.only == "adapter" else recipe.export.kinds
    return Need("export", ram, disk={"merged models": room(parameters, kinds)})
