# Two commands do everything on a fresh machine:
#   make demo    makes .venv, installs what runs, and inverts, reconstructs and edits clips into demo/
#   make test    makes .venv, installs the development extras too, and runs the tests; with coverage by COVERAGE=1
# uv does the installation where it is present, pip where it is not.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DEVELOPS := $(VENV)/.develops
UV := $(shell uv --version >/dev/null 2>&1 && echo uv)
PIP := $(if $(UV),uv pip install --python $(BIN)/python,$(BIN)/python -m pip install)

# Two test processes of one thread each: a tiny model gains nothing from threads, and two processes with two threads
# each would fight over two cores.
TEST := OMP_NUM_THREADS=1 $(BIN)/pytest
WORKERS ?= 2
# Tracing every line takes nearly half as long again, so that it is asked for where it is judged.
COVERED := $(if $(COVERAGE),--cov --cov-report=term)

.PHONY: install develop demo test test-benchmarks test-browser test-examples fuzz lint types layers mutations docs clean help

help:
	@sed -n '1,4s/^# \{0,1\}//p' Makefile
	@echo "and: make install | develop | test-benchmarks | test-browser | test-examples | fuzz | lint | types | layers | mutations | docs | clean"

install: $(INSTALLED)

develop: $(DEVELOPS)

$(BIN)/python:
ifdef UV
	uv venv --python '>=3.11' $(VENV)
else
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip
endif

# A stamp is older than setup.cfg when the dependencies may have changed: then, and only then, install again.
$(INSTALLED): setup.cfg pyproject.toml | $(BIN)/python
	$(PIP) --editable .
	@touch $@

$(DEVELOPS): setup.cfg pyproject.toml | $(BIN)/python
	$(PIP) --editable '.[dev,docs]'
	@touch $(INSTALLED) $@

demo: install
	$(BIN)/ddim-lightning demo --output demo

test: develop
	@echo "left out of any coverage, CUDA branches only: $$(grep -rn 'pragma: no cover - cuda' --include='*.py' ddim_lightning | wc -l) places"
	$(TEST) -n $(WORKERS) $(COVERED)

# Benchmarks at work, in few steps on small models; the others stand among the tests.
test-benchmarks: develop
	$(TEST) -n $(WORKERS) -m "benchmark and not slow" tests/benchmarks

# Reports of runs in a real browser: Debian's packages chromium and chromium-driver. Their screenshots lie in out/.
test-browser: develop
	$(TEST) -m slow tests/test_*_in_browser.py

# What lies in examples/: a training, and the notebook in a real kernel.
test-examples: develop
	$(TEST) -m slow tests/test_examples.py

# New manifests, configs and command lines, a thousand of each; the default tests try a few that stay the same.
fuzz: develop
	FUZZ_EXAMPLES=1000 $(TEST) tests/test_fuzz.py

lint: develop
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell

types: develop
	$(BIN)/mypy

layers: develop
	$(BIN)/lint-imports

# Changes to the mathematics that a test has to notice, one by one.
mutations: develop
	OMP_NUM_THREADS=1 $(BIN)/python tests/mutations.py

docs: develop
	$(BIN)/python docs/generate.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) build dist demo site *.egg-info .coverage .coverage.* .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
