"""Context and batch from free memory: the arithmetic by hand, and the machine asked for real."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from minicollab.engine.sizing import GIB, Memory, Shape, cores, cpu_memory, size, together
from minicollab.recipe import Engine

# Qwen2.5-Coder-1.5B: 28 layers x 2 KV heads x (128 + 128) x 2 bytes = 28 KiB a cell.
QWEN = Shape(
    "qwen",
    parameters=1_544_000_000,
    layers=28,
    heads=12,
    kv_bytes=28 * 1024,
    vocabulary=151_936,
    trained=32_768,
    size=GIB,
)


def card(free: float, total: float = 24) -> Memory:
    return Memory(int(free * GIB), int(total * GIB), ("NVIDIA RTX 4090",))


def test_a_large_card_takes_the_largest_context_and_says_so() -> None:
    plan = size(QWEN, Engine(), card(20.1))
    assert (plan.context, plan.batch, plan.longest) == (65_536, 2048, 32_768)
    assert plan.line == (
        "qwen: all 28 layers on NVIDIA RTX 4090 (20.1 of 24.0 GiB free), "
        "context 65,536 tokens (1.8 GiB), batch 2,048"
    )


@pytest.mark.parametrize(
    ("free", "batch", "cells"),
    # logits: 0.58 MiB a token; 2,048 of them 1.16 GiB, 1,024 0.58, 512 0.29.
    # 65,536 cells are 1.75 GiB, 32,768 0.875, 16,384 0.44; 1 GiB stays free.
    [(6, 1024, 65_536), (3, 512, 65_536 // 2), (1.8, 512, 16_384), (0.5, 512, 4096)],
)
def test_a_small_card_gets_what_fits(free: float, batch: int, cells: int) -> None:
    plan = size(QWEN, Engine(), card(free))
    assert (plan.batch, plan.context) == (batch, cells)


def test_half_of_what_is_free_is_left_for_a_second_model() -> None:
    fat = dataclasses.replace(QWEN, kv_bytes=2**20)  # 16 GiB of cells would just fit into 20
    assert size(fat, Engine(), card(20)).context == 8192


def test_a_cpu_stays_small_and_smaller_where_memory_is_short() -> None:
    plan = size(QWEN, Engine(threads=2), Memory(16 * GIB, 32 * GIB))
    assert (plan.context, plan.batch, plan.longest) == (8192, 512, 8192)
    assert plan.line == "qwen: on 2 CPU cores (16.0 GiB free), context 8,192 tokens (224 MiB), batch 512"
    # The weights (1 GiB) are read from now on: of 2.4 GiB 1.4 are left, less 1 GiB and 0.29 of logits.
    assert size(QWEN, Engine(), Memory(int(2.4 * GIB), 4 * GIB)).context == 4096
    assert size(QWEN, Engine(), Memory(0, 4 * GIB)).context == 2048


def test_a_cpu_has_no_patience_and_flash_attention_for_large_pools_only() -> None:
    ram = Memory(16 * GIB, 32 * GIB)
    assert [size(QWEN, Engine(context=c), ram).flash for c in (512, 2048, 2049)] == [False, False, True]
    assert size(QWEN, Engine(), ram).patience == 230  # about, in steps
    assert size(QWEN, Engine(context=512), card(20)).flash
    assert size(QWEN, Engine(), card(20)).patience is None


def test_what_the_recipe_says_wins() -> None:
    options = Engine(context=100_000, batch=64, gpu_layers=10)
    plan = size(QWEN, options, card(2))
    assert (plan.context, plan.batch, plan.longest) == (100_000, 64, 32_768)
    assert "10 of 28 layers" in plan.line and "context 100,000 tokens (2.7 GiB), batch 64" in plan.line
    assert size(QWEN, Engine(context=512), card(20)).batch == 512  # never more than the cells


def test_the_pool_is_no_larger_than_its_sequences_can_use() -> None:
    short = dataclasses.replace(QWEN, trained=2048)
    assert size(short, Engine(sequences=4), card(20)).context == 8192
    assert size(short, Engine(deterministic=True), card(20)).context == 4096


def test_cards_count_together_and_integrated_ones_only_alone() -> None:
    cpu, chip = (0, "CPU", 9, 9), (2, "chip", 5, 6)
    one, two = (1, "RTX 3060", 10, 12), (1, "RTX 3070", 7, 8)
    assert together([one, cpu, two, chip]) == Memory(17, 20, ("RTX 3060", "RTX 3070"))
    assert together([cpu, chip]) == Memory(5, 6, ("chip",))
    assert together([cpu]) is None


def test_this_machine_has_cores_and_memory() -> None:
    memory = cpu_memory()
    assert cores() >= 1 and 0 < memory.free <= memory.total and not memory.gpus


@pytest.mark.slow
def test_a_real_model_and_ggmls_own_devices() -> None:
    from minicollab.engine import sizing
    from minicollab.engine.weights import load_weights
    from minicollab.models import SMOLLM2, resolve

    weights = load_weights(resolve(SMOLLM2, Path()), -1)
    shape = sizing.shape(weights)
    # 30 layers x 3 KV heads x (64 + 64) x 2 bytes
    assert (shape.layers, shape.kv_bytes, shape.vocabulary, shape.trained) == (30, 23_040, 49_152, 8192)
    assert sizing._devices()[-1][0] == 0 and all(0 < free <= total for _, _, free, total in sizing._devices())
    plan = sizing.plan(weights, Engine(gpu_layers=0))
    assert plan.context <= 8192 and plan.line.startswith("SmolLM2-135M-Instruct.Q4_1: on ")
