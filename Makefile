# Two commands do everything on a fresh machine:
#   make demo    makes .venv, installs, and inverts, reconstructs and edits clips into demo/
#   make test    makes .venv, installs, and runs the tests with coverage
# uv does the installation where it is present, pip where it is not.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
UV := $(shell uv --version >/dev/null 2>&1 && echo uv)

# Two test processes of one thread each: a tiny model gains nothing from threads, and two processes with two threads
# each would fight over two cores.
TEST := OMP_NUM_THREADS=1 $(BIN)/pytest
WORKERS ?= 2

.PHONY: install demo test lint types layers mutations clean help

help:
	@sed -n '1,4s/^# \{0,1\}//p' Makefile
	@echo "and: make install | lint | types | layers | mutations | clean"

install: $(INSTALLED)

$(BIN)/python:
ifdef UV
	uv venv --python '>=3.11' $(VENV)
else
	$(PYTHON) -m venv $(VENV)
endif

# The stamp is older than setup.cfg when the dependencies may have changed: then, and only then, install again.
$(INSTALLED): setup.cfg pyproject.toml | $(BIN)/python
ifdef UV
	uv pip install --python $(BIN)/python --editable '.[dev]'
else
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip
	$(BIN)/python -m pip install --editable '.[dev]'
endif
	@touch $@

demo: install
	$(BIN)/ddim-lightning demo --output demo

test: install
	@echo "left out of the coverage, CUDA branches only: $$(grep -rn 'pragma: no cover - cuda' --include='*.py' ddim_lightning | wc -l) places"
	$(TEST) -n $(WORKERS) --cov --cov-report=term

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell

types: install
	$(BIN)/mypy

layers: install
	$(BIN)/lint-imports

mutations: install
	OMP_NUM_THREADS=1 $(BIN)/python tests/mutations.py

clean:
	rm -rf $(VENV) build dist demo *.egg-info .coverage .coverage.* .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
