"""How large a context and a batch: what the recipe says, else what free memory allows."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from typing import Any

from minicollab import recipe
from minicollab.engine.weights import Weights
from minicollab.errors import ModelError

MIB, GIB = 2**20, 2**30  # bytes
_GPU, _INTEGRATED_GPU = 1, 2  # enum ggml_backend_dev_type
# On a CPU flash attention goes through the cells of a row one by one, and skips those of others;
# without it attention is a dense product, ten times faster a cell, over the whole pool. Measured with
# SmolLM2: 8 sequences of 200 to 260 tokens that share 198, in a pool of 2,048 cells, take 2.3 s with
# it and 1.4 s without; one turn of the method in a pool of 8,192 cells takes 18 s with it and 22 s
# without.
_DENSE_CELLS = 2048
# Steps that an idle prefix is kept on a CPU: every cell in use costs each step some time a head and
# layer, and computing it again costs time a parameter. SmolLM2 does best with about 25 steps.
_PATIENCE = 25 * 30 * 9 / 135e6
# Least and most. A CPU pays for a large pool in every step, and gains nothing from large batches.
_GPU_CELLS, _CPU_CELLS = (4096, 65536), (2048, 8192)
_GPU_BATCH, _CPU_BATCH = (512, 2048), (512, 512)


@dataclass(frozen=True)
class Plan:
    """`context`: KV cells, shared by all sequences. `batch`: most tokens of a step. `longest`: most
    tokens of one request, its answer included. `flash`: whether to use flash attention. `patience`:
    steps after which a prefix that nobody asked for again is forgotten; None: when its room is
    needed. `line` says in a sentence what was chosen, and on what."""

    context: int
    batch: int
    longest: int
    flash: bool
    patience: int | None
    line: str


@dataclass(frozen=True)
class Shape:
    """What a model needs memory for: `kv_bytes`, one cell of all its layers at F16; `size`, its
    weights in bytes. `trained`: tokens of context that it was trained on."""

    name: str
    parameters: int
    layers: int
    heads: int
    kv_bytes: int
    vocabulary: int
    trained: int
    size: int


@dataclass(frozen=True)
class Memory:
    """Where a model computes: `gpus` by name, none if it stays on the CPU; bytes left and in all."""

    free: int
    total: int
    gpus: tuple[str, ...] = ()


def plan(weights: Weights, options: recipe.Engine) -> Plan:
    """Context and batch for a model that is loaded: what is free is asked now."""
    layers = options.gpu_layers
    memory = (gpu_memory() if layers else None) or cpu_memory()
    model = shape(weights)
    found = size(model, options, memory)
    check_context(model, found.context, memory)
    return found


def check_context(model: Shape, context: int, memory: Memory) -> None:
    """ModelError if the cells of so many tokens are more than what is free: llama.cpp would take them."""
    needed, free = context * model.kv_bytes, memory.free
    if needed > free:
        raise ModelError(
            f"a context of {context:,} tokens of {model.name} needs {needed / GIB:,.1f} GiB, "
            f"{free / GIB:.1f} GiB are free",
            "Lower engine.context in the recipe, or --context.",
        )


def size(model: Shape, options: recipe.Engine, memory: Memory) -> Plan:
    """The arithmetic of `plan`. At most half of what is free goes to the cells, since a second
    model may share the memory, and some is left for the compute buffers: one row of logits
    (float32) for every token of a batch, and an eighth of the rest, at least 1 GiB."""
    least, most = _GPU_BATCH if memory.gpus else _CPU_BATCH
    row = 4 * model.vocabulary
    batch = most
    while batch > least and batch * row > memory.free / 8:
        batch //= 2
    batch = options.batch or batch
    free = memory.free if memory.gpus else memory.free - model.size  # its pages count as free until read
    budget = min(free / 2, free - batch * row - max(free / 8, GIB))
    sequences = 1 if options.deterministic else options.sequences
    least, most = _GPU_CELLS if memory.gpus else _CPU_CELLS
    context = most
    while context > least and (context * model.kv_bytes > budget or context > model.trained * sequences):
        context //= 2
    context = options.context or context
    batch = min(batch, context)
    return Plan(
        context,
        batch,
        longest=min(context, model.trained),
        flash=bool(memory.gpus) or context > _DENSE_CELLS,
        patience=None if memory.gpus else round(_PATIENCE * model.parameters / model.layers / model.heads),
        line=_line(model, options, memory, context, batch),
    )


def _line(model: Shape, options: recipe.Engine, memory: Memory, context: int, batch: int) -> str:
    if memory.gpus:
        layers = model.layers if options.gpu_layers < 0 else min(options.gpu_layers, model.layers)
        share = f"all {layers}" if layers == model.layers else f"{layers} of {model.layers}"
        free = f"{memory.free / GIB:.1f} of {memory.total / GIB:.1f} GiB free"
        where = f"{share} layers on {' and '.join(memory.gpus)} ({free})"
    else:
        threads = options.threads or cores()
        where = f"on {threads} CPU core{'s' * (threads > 1)} ({memory.free / GIB:.1f} GiB free)"
    bytes_ = context * model.kv_bytes
    amount = f"{bytes_ / GIB:.1f} GiB" if bytes_ >= GIB else f"{bytes_ / MIB:.0f} MiB"
    return f"{model.name}: {where}, context {context:,} tokens ({amount}), batch {batch:,}"


# What the machine and the model say


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def shape(weights: Weights) -> Shape:
    import llama_cpp as lc

    model = weights.model
    architecture = _metadata(model, "general.architecture")
    heads, layers = lc.llama_model_n_head(model), lc.llama_model_n_layer(model)
    usual = lc.llama_model_n_embd(model) // max(heads, 1)
    widths = (_metadata(model, f"{architecture}.attention.{part}_length") for part in ("key", "value"))
    width = sum(int(w) if w else usual for w in widths)
    return Shape(
        name=weights.path.stem,
        parameters=lc.llama_model_n_params(model),
        layers=layers,
        heads=heads,
        kv_bytes=2 * layers * lc.llama_model_n_head_kv(model) * width,
        vocabulary=weights.n_vocab,
        trained=lc.llama_model_n_ctx_train(model),
        size=lc.llama_model_size(model),
    )


def _metadata(model: Any, key: str) -> str:
    """A value of the GGUF's header as text; "" if there is none."""
    import llama_cpp as lc

    room = ctypes.create_string_buffer(256)
    found = lc.llama_model_meta_val_str(model, key.encode(), room, len(room))
    return room.value.decode("utf-8", "replace") if found >= 0 else ""


def cpu_memory() -> Memory:
    import psutil  # type: ignore[import-untyped]

    memory = psutil.virtual_memory()
    return Memory(memory.available, memory.total)


def gpu_memory() -> Memory | None:
    """What llama.cpp's GPUs have together; integrated ones count where there is no other. None if
    it was built without GPU support or sees none."""
    import llama_cpp as lc

    if not lc.llama_supports_gpu_offload():
        return None
    return together(_devices())


def together(devices: list[tuple[int, str, int, int]]) -> Memory | None:
    """One `Memory` of (kind, name, free, total) devices, whose layers llama.cpp spreads out."""
    for kind in (_GPU, _INTEGRATED_GPU):
        found = [device for device in devices if device[0] == kind]
        if found:
            _, names, free, total = zip(*found, strict=True)
            return Memory(sum(free), sum(total), names)
    return None


def _devices() -> list[tuple[int, str, int, int]]:
    """ggml's devices as (kind, name, bytes free, bytes in all). llama-cpp-python wraps none of this,
    but its module holds the library."""
    from llama_cpp._ggml import libggml as ggml

    pointer, number = ctypes.c_void_p, ctypes.c_size_t
    ggml.ggml_backend_dev_count.restype = number
    ggml.ggml_backend_dev_get.argtypes, ggml.ggml_backend_dev_get.restype = [number], pointer
    ggml.ggml_backend_dev_type.argtypes = ggml.ggml_backend_dev_description.argtypes = [pointer]
    ggml.ggml_backend_dev_description.restype = ctypes.c_char_p
    ggml.ggml_backend_dev_memory.argtypes = [pointer, ctypes.POINTER(number), ctypes.POINTER(number)]
    ggml.ggml_backend_dev_memory.restype = None
    found = []
    for index in range(ggml.ggml_backend_dev_count()):
        device = ggml.ggml_backend_dev_get(index)
        free, total = number(), number()
        ggml.ggml_backend_dev_memory(device, ctypes.byref(free), ctypes.byref(total))
        name = ggml.ggml_backend_dev_description(device).decode("utf-8", "replace")
        found.append((ggml.ggml_backend_dev_type(device), name, free.value, total.value))
    return found
