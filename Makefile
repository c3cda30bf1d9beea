# make quickstart   a corpus, its weights and a mixture, in minutes
# make test         everything that is checked before a change goes in
# make help         the rest

PYTHON ?= python3
VENV ?= .venv
TEST_WORKERS ?= auto

BIN := $(VENV)/bin
MIXC := $(BIN)/mixc
PIP := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
BASE := $(VENV)/.installed
DEV := $(VENV)/.installed-dev
READERS_VENV ?= .venv-readers
READERS := $(READERS_VENV)/.installed
RECIPE := recipes/quickstart.yaml
CORPUS := build/quickstart-corpus
OUT := build/quickstart

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help quickstart test test-readers lint format schema clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' Makefile
	@echo 'PYTHON=python3.12 picks the Python, VENV=DIR where it is installed.'

# Works in silence first; the last line, with nothing left to do, prints the results.
quickstart: $(CORPUS)/.made ## make a corpus, solve its weights, build and verify a mixture
	$(MIXC) run $(RECIPE) >/dev/null
	$(MIXC) verify $(OUT)/store
	$(MIXC) verify $(OUT)/mixture
	@$(MIXC) run $(RECIPE)

# Made once: what is installed later does not change it. `make clean` lets it be made anew.
$(CORPUS)/.made: tools/make_quickstart_corpus.py | $(BASE)
	$(BIN)/python tools/make_quickstart_corpus.py $(CORPUS)
	@touch $@

test: lint ## lint, types and all tests
	$(BIN)/python -m pytest -n $(TEST_WORKERS)

test-readers: $(READERS) ## what the writers wrote, read by the trainers' own readers
	$(READERS_VENV)/bin/python -m pytest -m readers tests/writers

lint: $(DEV) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(DEV) ## format the code, and mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

schema: $(BASE) ## write recipes/recipe.schema.json again
	$(MIXC) schema >recipes/recipe.schema.json

clean: ## remove build/ and the caches; the installation stays
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(BIN)/python $(READERS_VENV)/bin/python:
	@command -v $(PYTHON) >/dev/null || { \
	  echo 'mixc needs Python 3.11 or newer, and there is no $(PYTHON): make PYTHON=...' >&2; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; v >= (3, 11) or sys.exit( \
	  "mixc needs Python 3.11 or newer, $(PYTHON) is %d.%d: make PYTHON=..." % v)'
	$(PYTHON) -m venv $(@D:/bin=)

# torch is the large one; alone first, so that an interrupted installation has it behind it.
$(BASE): pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) torch
	$(PIP) --quiet -e .
	@touch $@

$(DEV): $(BASE)
	$(PIP) --quiet -e '.[dev]'
	@touch $@

$(READERS): PIP := $(READERS_VENV)/bin/python -m pip install --disable-pip-version-check \
  -c constraints-readers.txt
$(READERS): pyproject.toml constraints-readers.txt | $(READERS_VENV)/bin/python
	$(PIP) torch
	$(PIP) --quiet -e '.[readers]'
	@touch $@
