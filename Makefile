# make setup   create .venv here and install the project with its development tools
# make demo    clips -> shards -> trained encoder -> outputs/demo, no data needed
# make test    the tests without those marked slow; make test-all runs everything
# make check   formatting, lint, types, shell scripts
# make bench   regenerate the benchmark tables and plots (CPU)
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SHELL_SCRIPTS := $(wildcard slurm/*.sh slurm/*.sbatch tests/slurm/*.sh) .ci/run

.PHONY: setup demo test test-all check check-format check-lint check-types check-shell format bench

setup: $(STAMP)

$(STAMP): setup.cfg pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

demo: $(STAMP)
	$(BIN)/python -m cltt.demo --out outputs/demo

test: $(STAMP)
	$(BIN)/python -m pytest -m "not slow"

test-all: $(STAMP)
	$(BIN)/python -m pytest

check: check-format check-lint check-types check-shell

check-format: $(STAMP)
	$(BIN)/ruff format --check .

check-lint: $(STAMP)
	$(BIN)/ruff check .

check-types: $(STAMP)
	$(BIN)/mypy

check-shell: $(STAMP)
	$(BIN)/shellcheck $(SHELL_SCRIPTS)

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP)
	$(BIN)/python -m benchmarks.run
