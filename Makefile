# make setup   create .venv here and install the project with its development tools; on drivers older than 580, which
#              speak CUDA 12 (nvidia-smi says), make setup CUDA=12: the same with torch for CUDA 12
# make demo    clips -> shards -> trained encoder -> outputs/demo, no data needed
# make test    the tests without those marked slow; make test-all runs everything
# make check   formatting, lint, types, shell scripts
# make docs    the site, into outputs/site; a broken link or a missing docstring fails
# make bench   regenerate the benchmark tables and plots (CPU)
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The set installed last stays the one until another is asked for.
CUDA ?= $(or $(patsubst $(VENV)/.installed-cuda%,%,$(wildcard $(VENV)/.installed-cuda*)),13)
STAMP := $(VENV)/.installed-cuda$(CUDA)
CONSTRAINTS := $(if $(filter 12,$(CUDA)),constraints-cuda12.txt,constraints.txt)
SHELL_SCRIPTS := $(wildcard slurm/*.sh slurm/*.sbatch tests/slurm/*.sh) .ci/run

.PHONY: setup demo test test-all check check-format check-lint check-types check-shell format bench docs

setup: $(STAMP)

$(STAMP): setup.cfg pyproject.toml $(CONSTRAINTS)
	@$(or $(wildcard $(BIN)/python),$(PYTHON)) -m cltt.start
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c $(CONSTRAINTS) -e '.[dev]'
	rm -f $(VENV)/.installed*
	touch $@

demo: $(STAMP)
	$(BIN)/python -m cltt.demo --out outputs/demo

# Tests that only compute are shared out over the cores, a thread of torch each. Others start processes, wait, and hold
# limits of time.
COMPUTING := $(addprefix tests/,evaluation frames loss models packing sampling shards source visualize test_fuzz.py \
	test_site.py)
define run-tests
	status=0; \
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(1) -n auto $(COMPUTING) || status=1; \
	$(BIN)/python -m pytest $(1) $(addprefix --ignore=,$(COMPUTING)) || status=1; \
	exit $$status
endef

test: $(STAMP)
	$(call run-tests,-m "not slow")

test-all: $(STAMP)
	$(call run-tests)

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

docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build
