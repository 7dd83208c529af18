"""Imports point one way: a module uses only what stands above it in this list."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import minicollab

ROOT = Path(minicollab.__file__).parent
ORDER = """
minicollab
errors schema progress seeds silence markdown terminal
failures running quantization
recipe
files prompts
loading
extraction equivalence
hold
engine.base engine.quiet engine.turns
engine.grammar engine.template
engine.weights
engine.sizing
engine.context engine.prefixes engine.sampler
engine.batching
engine.llama engine.scripted engine.server
engine.remote
cache
cache.keys
cache.rows
cache.store
cache.engine cache.pages cache.walk
cache.care cache.pack
sandbox.harness sandbox.interpreter sandbox.jail sandbox.seccomp sandbox.watch
sandbox
fetch
models
needs
needs.machine needs.models
tasks.source tasks.hub tasks.family tasks.pieces
tasks.abg_coqa tasks.code tasks.details tasks.document tasks.in3 tasks.math tasks.new tasks.twenty_questions
tasks
needs.supplies
fit
drift
personas
simulator judge
cast
metrics.copying
metrics.accuracy metrics.bleu metrics.effort metrics.follow_up metrics.found metrics.function
metrics.goal_coverage metrics.pass_rate metrics.rubric
metrics
labelled agreement
probes
reward
rollout
simulate_progress
pairs
estimate
bench
checkpoints
train
needs.lengths
needs.memory needs.times
gguf
gguf.files
gguf.architectures
gguf.hf_config
gguf.tokenizer
gguf.dequantize gguf.adapter gguf.merge
gguf.logits gguf.origin
gguf.apps gguf.chats
gguf.verify
gguf.export
evaluate
run
roles
exporting
judge_check
report.reading
report.figures
report.charts report.explorer
report
stages
ambiguity
simulator_figures
simulator_check
ablate
display
summaries
chat serve doctor
chat_commands
cli_common
cli_cache cli_ambiguity cli_tasks
cli_simulator_check cli_chat cli_serve
cli_doctor cli_fetch
cli_ablate cli_export
cli_judge_check
cli
__main__
"""
LEVEL = {name: level for level, line in enumerate(ORDER.split("\n")) for name in line.split()}
HEAVY = {
    "torch",
    "transformers",
    "trl",
    "peft",
    "unsloth",
    "llama_cpp",
    "gguf",
    "bitsandbytes",
    "datasets",
    "numpy",
    "math_verify",
    "pyarrow",
    "sacrebleu",
}
FILES = sorted(ROOT.rglob("*.py"))


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(p for p in parts if p != "__init__") or "minicollab"


def level_of(module: str) -> int:
    """A package's modules that are not listed stand where the package does."""
    while module not in LEVEL and "." in module:
        module = module.rpartition(".")[0]
    assert module in LEVEL, f"{module} has no place in the order yet"
    return LEVEL[module]


def imported(tree: ast.AST) -> set[str]:
    """minicollab modules that are imported anywhere in it, functions included."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports are not used here"
            for alias in node.names:
                target = f"{node.module}.{alias.name}"
                path = ROOT.parent / target.replace(".", "/")
                is_module = path.is_dir() or path.with_suffix(".py").is_file()
                names.add(target if is_module else str(node.module))
    ours = {n for n in names if n.split(".")[0] == "minicollab"}
    return {n.removeprefix("minicollab.") for n in ours}


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_point_one_way(path: Path) -> None:
    module = module_of(path)
    for name in imported(ast.parse(path.read_text("utf-8"))):
        inside = name.startswith(f"{module}.") and path.name == "__init__.py"
        assert inside or level_of(name) < level_of(module), f"{module} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_heavy_libraries_are_imported_inside_functions(path: Path) -> None:
    tree = ast.parse(path.read_text("utf-8"))
    tops = {
        alias.name if isinstance(node, ast.Import) else str(node.module)
        for node in tree.body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    batching = {f"engine.{name}" for name in ("context", "prefixes", "sampler", "batching", "llama")}
    allowed = {"numpy"} if module_of(path) in batching else set()
    assert not {top.split(".")[0] for top in tops} & (HEAVY - allowed)


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_only_the_command_line_prints_and_exits(path: Path) -> None:
    if module_of(path) in ("sandbox.jail", "sandbox.harness"):  # programs of their own
        return
    if module_of(path) == "cli":
        return
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in {"print", "exit", "quit", "sys.exit", "os._exit"}
