# make test   sets everything up and runs the whole check      make demo   sets everything up and runs the main job
# Both need git, make and Python 3.11 or later; everything else goes into .venv (remove it to start anew).

PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= requirements/constraints.txt
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO ?= demo

.PHONY: setup test test-all demo bench dist clean
.DEFAULT_GOAL := test

setup: $(READY)

$(READY): pyproject.toml $(CONSTRAINTS) $(wildcard hatch_build.py src/jieyue/attention/csrc/*)
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "jieyue needs Python 3.11 or later; name one with: make PYTHON=python3.12")'
	@echo "Setting up $(VENV) (a minute or two, once)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint $(CONSTRAINTS) --editable '.[dev]'
	@touch $@

test: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=2 $(BIN)/python -m pytest

test-all: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --all

dist: setup
	rm -rf dist
	$(BIN)/python -m build --no-isolation

clean:
	rm -rf dist build .mypy_cache .ruff_cache .hypothesis
