# `make demo` and `make test` are all that a new clone needs; the first call sets up .venv.
# The plain commands for Windows and for machines without make are in README.md.
PYTHON ?= python3
# Another build of torch, e.g. for a CUDA version: make test TORCH="torch==2.13.0 --index-url URL"
TORCH ?= torch==2.13.0
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test lint bench

demo: $(READY)
	$(BIN)/ksgen demo --out out/demo

test: $(READY)
	$(BIN)/python -m pytest

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

bench: $(READY)
	$(BIN)/ksgen bench tabletop

# torch first and by itself: nothing of ours names it, so that no host's build is ever replaced.
$(READY): pyproject.toml requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@
