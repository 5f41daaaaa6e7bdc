# Two commands do all the set-up on a fresh machine: `make demo` and `make test`.
# The newest supported Python that runs and can make virtual environments; `make PYTHON=/path/to/python test` names another.
FITS := import ensurepip, sys, venv; raise SystemExit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do $$p -c "$(FITS)" >/dev/null 2>&1 && echo $$p && break; done)
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow test-cost test-floor fuzz lint format bench bench-cold bench-scaling bench-large peer-tests clean

help:
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

# torch first and alone: a bare `torch` requirement would fetch gigabytes of CUDA.
$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "No Python 3.11, 3.12 or 3.13 with the venv module is on the PATH. Install one, or name it: make PYTHON=/path/to/python3.11 test"; exit 1; }
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

test-cost: $(STAMP) ## limits of CPU seconds, on a machine that does nothing else
	$(BIN)/python -m pytest -m cost

fuzz: $(STAMP) ## random inputs, new ones at every run, until one fails or 1,000 a test have passed
	$(BIN)/python -m pytest --hypothesis-profile fuzz --timeout 3600 $$(grep -rl "from hypothesis" tests/*/)

FLOOR := .venv-floor
$(FLOOR)/.installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "No Python 3.11, 3.12 or 3.13 with the venv module is on the PATH."; exit 1; }
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

bench-cold: $(STAMP) ## the same with the sources dropped from the page cache before every run
	$(BIN)/python -m examples.bench.merge --cold

bench-scaling: $(STAMP) ## cost against size and number of sources, with a picture
	$(BIN)/python -m examples.bench.scaling

bench-large: $(STAMP) ## planning 7B to 70B, and a 30B-class merge from samples
	$(BIN)/python -m examples.bench.large

peer-tests: $(STAMP) ## mergekit's own numerics tests, fetched and run against our functions
	$(BIN)/python -m examples.peer_tests

clean: ## everything that a command made
	rm -rf build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache
