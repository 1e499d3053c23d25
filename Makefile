# The targets are the README's words. `make demo` and `make test` set up what they need.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SHELL := /bin/bash

.PHONY: help setup setup-dev demo test lint format typecheck docs bench clean
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

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	@echo "setting up $(VENV) for development ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $(VENV)/.core $@

setup: $(VENV)/.core ## install cp-agents into .venv

setup-dev: $(VENV)/.dev ## install cp-agents with what development needs

demo: $(VENV)/.core ## profile the shipped sample users, no key needed
	@$(BIN)/cp-agents demo

test: $(VENV)/.dev ## run all tests
	@$(BIN)/pytest -n 2

lint: $(VENV)/.dev ## check style and layers
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports --no-cache

format: $(VENV)/.dev ## format the code
	@$(BIN)/ruff check --fix --quiet . || true
	@$(BIN)/ruff format .

docs: $(VENV)/.dev ## write the command reference
	@$(BIN)/python docs/generate.py

typecheck: $(VENV)/.dev ## check types
	@$(BIN)/mypy

bench: $(VENV)/.dev ## measure throughput against a loopback server
	@$(BIN)/python benchmarks/throughput.py

clean: ## remove the virtual environment, caches and demo output
	@rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis demo
