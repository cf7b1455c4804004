# make demo and make test work from a fresh clone with Python 3.11 or newer and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
OPERATORS := convnext/ops/lib/cpu.so

.PHONY: demo test test-all lint format docs clean help

help:  ## show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(OPERATORS)  ## train a small ConvNeXt on embedded data and write a report (about a minute)
	@echo "== convnext demo: train, evaluate, predict, report"
	@$(BIN)/convnext demo

test: $(OPERATORS)  ## run the tests
	@echo "== tests"
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

test-all: $(OPERATORS)  ## run the tests, slow ones too
	@echo "== all tests, slow ones too"
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m ""

lint: $(STAMP)  ## check style, spelling, types, the order of the rooms, and the links of the documentation
	@echo "== ruff, codespell, mypy, import-linter, mkdocs"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/codespell
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@mkdir -p build  # with --quiet, mkdocs counts no warning
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict >build/docs.log 2>&1 || { cat build/docs.log; exit 1; }

format: $(STAMP)  ## put the code into the project's format
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

docs: $(STAMP)  ## build the documentation in build/site
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:  ## remove the environment, the compiled operators and caches
	rm -rf $(VENV) convnext/ops/lib .pytest_cache .mypy_cache .ruff_cache .import_linter_cache

# Rebuilt only when the dependencies change: a second `make demo` starts at once.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "convnext needs Python 3.11 or newer; name one with: make PYTHON=/path/to/python3 $(MAKECMDGOALS)"; exit 1; }
	@echo "== creating the environment in $(VENV) and installing convnext into it (once; downloads several GB, which takes minutes)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check torch torchvision
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test,docs]'
	@touch $(STAMP)

# The installation above compiles the operators; a change of their sources compiles them again. Without a C++ compiler a line says so.
$(OPERATORS): convnext/ops/compile.py $(wildcard convnext/ops/csrc/*) | $(STAMP)
	@$(BIN)/python convnext/ops/compile.py
