# `make demo` and `make test` are all that a new clone needs; the first call sets up .venv.
# The plain commands for Windows and for machines without make are in README.md.
PYTHON ?= python3
# Another build of torch, e.g. for a CUDA version: make test TORCH="torch==2.13.0 --index-url URL"
TORCH ?= torch==2.13.0
BIN := .venv/bin
READY := .venv/.ready

# The oldest that is supported beside the newest: transformers 4, and the newest diffusers that works with it.
OLDEST := transformers==4.57.6 diffusers==0.39.0 huggingface_hub==0.36.2 tokenizers==0.22.2 httpx httpcore h11 anyio sniffio
OLDEST_TESTS := tests/test_every_family.py tests/test_keysteps*.py tests/test_kolors.py tests/test_edit*.py \
	tests/test_clip*.py tests/test_lora*.py tests/test_residence.py tests/test_sampling.py tests/test_mllm*.py

.PHONY: demo test test-oldest lint bench

demo: $(READY)
	$(BIN)/ksgen demo --out out/demo

test: $(READY)
	$(BIN)/python -m pytest

test-oldest: $(READY)
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target .venv/oldest $(OLDEST)
	PYTHONPATH=.venv/oldest $(BIN)/python -m pytest $(OLDEST_TESTS)

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
