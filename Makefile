# Two commands do all the set-up on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow test-floor lint format bench peer-tests clean

help:
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

# torch first and alone: a bare `torch` requirement would fetch gigabytes of CUDA.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -c constraints.txt torch
	$(BIN)/pip install --quiet -c constraints.txt -e ".[dev]"
	@touch $@

install: $(STAMP) ## a virtual environment with everything

demo: $(STAMP) ## the main job on real input: four sources, one model, one table
	$(BIN)/python -m examples.demo

test: $(STAMP) ## lint, walls, types and the fast tests
	$(MAKE) lint
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: $(STAMP) ## training runs, real weights, large files (an hour or two)
	$(BIN)/python -m pytest -m slow --timeout 7200

FLOOR := .venv-floor
$(FLOOR)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(FLOOR)
	$(FLOOR)/bin/pip install --quiet --upgrade pip
	$(FLOOR)/bin/pip install --quiet -c constraints.txt torch
	sed '/^transformers==/d' constraints.txt > $(FLOOR)/constraints.txt
	$(FLOOR)/bin/pip install --quiet -c $(FLOOR)/constraints.txt "transformers==5.19.0" -e ".[dev]"
	@touch $@

test-floor: $(FLOOR)/.installed ## what touches transformers, on the oldest supported version
	$(FLOOR)/bin/python -m pytest tests/anatomy tests/modeling tests/compose -n 2 --dist loadfile

lint: $(STAMP) ## ruff, pyright, import walls
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(STAMP) ## rewrite the files in the house format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP) ## the merge beside mergekit and cp
	$(BIN)/python -m examples.bench.merge

peer-tests: $(STAMP) ## mergekit's own numerics tests, fetched and run against our functions
	$(BIN)/python -m examples.peer_tests

clean: ## everything that a command made
	rm -rf build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache
