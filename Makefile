# The targets are the README's words. `make demo` and `make test` set up what they need.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SHELL := /bin/bash

.PHONY: help setup setup-dev demo train-smoke notebooks test test-light test-vllm lint format typecheck docs bench bench-vllm bench-peers clean
.DEFAULT_GOAL := help

help: ## show this help
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "cp-agents needs Python 3.11 or newer (set PYTHON=...)"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "could not make a virtual environment; on Debian: apt-get install python3-venv"; exit 1; }

$(VENV)/.core: pyproject.toml | $(BIN)/python
	@echo "setting up $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "setting up $(VENV) for development, with torch: some minutes ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(VENV)/.core $@

setup: $(VENV)/.core ## install cp-agents into .venv

setup-dev: $(VENV)/.dev ## install cp-agents with what development needs, torch included

demo: $(VENV)/.core ## profile the shipped sample users, no key needed
	@$(BIN)/cp-agents demo

test: $(VENV)/.dev ## run all tests
	@$(BIN)/pytest -n 2

test-light: ## run the tests that do without torch, in .venv-light
	@test -x .venv-light/bin/python || $(PYTHON) -m venv .venv-light
	@.venv-light/bin/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
	@.venv-light/bin/pytest -n 2

# vLLM brings its own torch, 3.5 GB in all, so it has an environment of its own. The three packages that go do not fit
# the CPU's torch. The thread settings are for two cores that other programs use as well.
VLLM_VENV ?= .venv-vllm
VLLM_ENV = VLLM_CPU_KVCACHE_SPACE=1 VLLM_CPU_OMP_THREADS_BIND=0-1 KMP_BLOCKTIME=0 VLLM_HOST_IP=127.0.0.1 \
	LD_PRELOAD=$(abspath $(VLLM_VENV))/lib/libiomp5.so

# What was installed is noted by content and not by date, so that a fresh checkout can use an environment that is there.
$(VLLM_VENV)/.ready: tests/vllm/requirements.txt
	@cmp -s $< $@ || { echo "setting up $(VLLM_VENV), 3.5 GB ..." && $(PYTHON) -m venv $(VLLM_VENV) && \
		$(VLLM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r $< -e . && \
		$(VLLM_VENV)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec; }
	@cp $< $@

test-vllm: $(VLLM_VENV)/.ready ## run the tests that need vLLM, on the CPU
	@$(VLLM_ENV) CP_AGENTS_TEST_VLLM=1 $(VLLM_VENV)/bin/python -m pytest --durations=5 -k vllm \
		tests/vllm tests/test_backend_contract.py

bench-vllm: $(VLLM_VENV)/.ready ## measure what the graph costs on top of vLLM
	@$(VLLM_VENV)/bin/python tests/vllm/make_model.py $(VLLM_VENV)/models
	@$(VLLM_ENV) $(VLLM_VENV)/bin/python benchmarks/vllm_throughput.py $(VLLM_VENV)/models/smollm2

lint: $(VENV)/.dev ## check style and layers
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports --no-cache

format: $(VENV)/.dev ## format the code
	@$(BIN)/ruff check --fix --quiet . || true
	@$(BIN)/ruff format .

docs: $(VENV)/.dev ## write the generated pages, and the documentation as a site into site/
	@$(BIN)/python docs/generate.py
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

typecheck: $(VENV)/.dev ## check types
	@$(BIN)/mypy

bench: $(VENV)/.dev ## measure throughput against a loopback server
	@$(BIN)/python benchmarks/throughput.py

train-smoke: $(VENV)/.dev ## a tiny model goes from a teacher's run to a student that serves
	@rm -rf smoke
	@$(BIN)/python cookbook/train_smoke.py smoke

notebooks: $(VENV)/.dev ## run the cookbook's notebooks and keep their outputs
	@$(BIN)/python cookbook/notebooks/run.py

PEERS_VENV ?= .venv-peers

$(PEERS_VENV)/.ready: benchmarks/peers.txt
	@echo "setting up $(PEERS_VENV) ..."
	@$(PYTHON) -m venv $(PEERS_VENV)
	@$(PEERS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r benchmarks/peers.txt
	@touch $@

bench-peers: $(VENV)/.dev $(PEERS_VENV)/.ready ## measure throughput beside other libraries
	@$(BIN)/python benchmarks/peers.py $(PEERS_VENV)/bin/python

clean: ## remove the virtual environment, caches and demo output
	@rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis demo
