# Each target is one line of what the README says; every one does its own set-up.
SHELL := /bin/bash
.DELETE_ON_ERROR:
.PHONY: demo up test check check-gpu check-native check-wheel fuzz lint types imports native minio unit-test \
	models bench bench-quick bench-loader bench-loader-quick bench-checkpoints bench-checkpoints-quick \
	clean help

PYTHON ?= python3
BIN := .venv/bin
# Optional: a folder with wheels that are preferred over the index, such as a CPU build of torch.
WHEELS ?= ../shared/wheels
MODELS ?= $(CURDIR)/.cache/models
# Executions of each fuzz target.
FUZZ_RUNS ?= 100000
LOADER_SOURCES := $(shell find loader_ext -path loader_ext/target -prune -o -type f \
	\( -name '*.rs' -o -name 'Cargo.*' -o -name 'pyproject.toml' \) -print)
UV := $(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --compile-bytecode

ifneq ($(wildcard $(WHEELS)),)
export UV_FIND_LINKS := $(abspath $(WHEELS))
endif
export STOKER_MODELS := $(MODELS)
export HF_HUB_OFFLINE := 1
# Tests run several processes with compute threads on few cores: a spinning one starves the others.
export OMP_WAIT_POLICY := passive

help:  ## what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

demo: .venv/ready models  ## deploy a language model, start it from nothing twice, compare
	$(BIN)/python scripts/demo.py

up: .venv/ready models  ## run the platform until Ctrl-C
	$(BIN)/stoker up

test: check models minio  ## linters, types and every test
	cd loader_ext && cargo test --quiet --workspace
	$(BIN)/python -m pytest -q

check: lint types imports native  ## linters and types only

check-gpu: .venv/ready  ## what only a GPU can show (there: WHEELS= for a CUDA build of torch); without one it says so and passes
	@test ! -e /dev/nvidiactl || $(BIN)/python -c "import torch; torch.cuda.is_available() or \
		exit(f'this machine has a GPU that torch {torch.__version__} cannot use: remove .venv and call make with WHEELS=')"
	cd loader_ext && cargo test --quiet -p stoker-loader-core device
	$(BIN)/python -m pytest -q -m gpu loader_ext/tests/gpu

check-wheel: .venv/ready  ## the loader's wheel, installed with numpy alone, without torch
	rm -rf build/wheel && mkdir -p build/wheel/data
	cd loader_ext && ../$(BIN)/maturin build --release --quiet --interpreter ../$(BIN)/python --out ../build/wheel
	$(PYTHON) -m venv --without-pip build/wheel/venv
	$(BIN)/uv pip install --quiet --python build/wheel/venv/bin/python --constraint constraints.txt numpy build/wheel/*.whl
	build/wheel/venv/bin/python -I loader_ext/tests/without_torch.py build/wheel/data

check-native:  ## the native core under AddressSanitizer and Miri, as far as a nightly toolchain is there
	$(PYTHON) scripts/check_native.py

fuzz:  ## search inputs of the loader's parsers for one that breaks a promise, FUZZ_RUNS of each
	$(PYTHON) scripts/fuzz.py --runs $(FUZZ_RUNS)

lint: .venv/ready
	$(BIN)/ruff format --quiet --check .
	$(BIN)/ruff check --quiet .

types: .venv/ready
	$(BIN)/mypy

imports: .venv/ready
	$(BIN)/lint-imports --no-logo

native: .venv/ready
	cd loader_ext && cargo fmt --check && cargo clippy --quiet --workspace --all-targets -- -D warnings

bench: .venv/ready models  ## every figure of docs/benchmarks.md, measured here into build/bench (about 15 minutes)
	$(BIN)/python scripts/bench.py

bench-quick: .venv/ready models  ## the same with few samples
	$(BIN)/python scripts/bench.py --quick

bench-loader: .cache/bench-peers/ready $(MODELS)/smollm2-135m-instruct/config.json  ## every figure of docs/loader-benchmarks.md, measured here into build/bench-loader (about 105 minutes, 25 GB of disk)
	$(BIN)/python scripts/bench_loader.py

bench-loader-quick: .cache/bench-peers/ready  ## the same, once, on small checkpoints
	$(BIN)/python scripts/bench_loader.py --quick

bench-checkpoints: .venv/ready models minio  ## every figure of docs/checkpoint-benchmarks.md, measured here into build/bench-checkpoints (about 30 minutes, 15 GB of disk)
	$(BIN)/python scripts/bench_checkpoints.py

bench-checkpoints-quick: .venv/ready models minio  ## the same, once, on the small model
	$(BIN)/python scripts/bench_checkpoints.py --quick

# Peers never share an environment with the product: each wants its own versions.
.cache/bench-peers/ready: tests/bench/loader/peers-constraints.txt tests/bench/loader/contenders.py | .venv/ready
	$(BIN)/python -m tests.bench.loader.install $(@D) $(BIN)/uv $<
	@touch $@

# The community edition comes as source: whoever has it on PATH need not build it.
minio: $(or $(shell command -v minio),$(if $(shell command -v go),.cache/bin/minio))  ## the object store of the tests, built with Go unless it is on PATH
	@test -n "$<" || echo "neither minio nor Go is on PATH: tests that need the object store are skipped"

.cache/bin/minio: infra/minio/VERSION
	@echo "building MinIO, once (2 to 5 minutes)"
	GOBIN=$(CURDIR)/$(@D) go install -ldflags "-s -w" github.com/minio/minio@$$(cat $<)
	@touch $@

models: $(MODELS)/smollm2-135m-instruct/config.json $(MODELS)/all-minilm-l6-v2/config.json

$(MODELS)/smollm2-135m-instruct/config.json: | .venv/ready
	$(BIN)/python scripts/fetch_smollm2.py $(@D)

$(MODELS)/all-minilm-l6-v2/config.json: | .venv/ready
	$(BIN)/python scripts/fetch_minilm.py $(@D)

.venv/ready: .venv/dependencies .venv/loader
	@touch $@

# The loader first: the other two distributions depend on it and no index has it.
.venv/loader: $(LOADER_SOURCES) | .venv/bin/maturin
	cd loader_ext && VIRTUAL_ENV=$(CURDIR)/.venv ../$(BIN)/maturin develop --release --uv --quiet
	@touch $@

.venv/dependencies: pyproject.toml runtime_image/pyproject.toml constraints.txt | .venv/loader
	$(UV) --editable '.[dev,models]' --editable 'runtime_image[serve,transformers]'
	@touch $@

.venv/bin/maturin: | .venv/bin/uv
	$(UV) maturin

.venv/bin/uv:
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt uv

clean:  ## remove what was built here; models stay
	rm -rf .venv build loader_ext/target loader_ext/fuzz/target .cache/fuzz .cache/bench-loader \
		.cache/bench-peers .cache/bench-checkpoints
