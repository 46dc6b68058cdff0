# Everything a developer runs. Needs Python 3.11 to 3.13, make and a package index; makes its own .venv.

.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules
SHELL := /bin/sh

VENV := .venv
PYTHON := $(VENV)/bin/python
PIP := $(PYTHON) -m pip --disable-pip-version-check install --quiet
PYTEST_ARGS ?=
# As many processes as cores, four at most; the tests of a file stay together.
PYTEST_SPREAD ?= -n auto --maxprocesses 4 --dist loadfile
BENCH_ARGS ?=

# Each stamp says that .venv holds what pyproject.toml asked for when it was made.
RUN_STAMP := $(VENV)/.stamp-run
DEV_STAMP := $(VENV)/.stamp-dev

.PHONY: help setup demo test test-grpcio check format proto models frameworks bench clean
.PHONY: lint lint-format lint-style lint-types lint-imports lint-generated

help:
	@echo 'make demo     try the mesh: install it into .venv, start it, run the demo models'
	@echo 'make setup    install it with everything that development needs into .venv'
	@echo 'make test     run the tests (PYTEST_ARGS="tests/core -x" for some of them)'
	@echo 'make test-grpcio   the end-to-end tests with --wire grpcio'
	@echo 'make check    what a change must pass: lint, generated files up to date, tests'
	@echo 'make lint     formatting, ruff, mypy and generated files only'
	@echo 'make format   rewrite the formatting'
	@echo 'make proto    regenerate mesh/api/gen from protos/'
	@echo 'make models   rebuild the ONNX models and data files below models/'
	@echo 'make frameworks   one pipeline over scikit-learn, ONNX Runtime and MLServer (installs MLServer beside .venv)'
	@echo 'make bench    measure on this machine (BENCH_ARGS for mesh bench)'
	@echo 'make clean    remove .venv and what tools left'

setup: $(DEV_STAMP)

# A python3.x on the PATH may be a shim that cannot start, so each candidate is run.
$(PYTHON):
	@for python in python3.13 python3.12 python3.11 python3 python; do \
	  if "$$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null; then \
	    echo "setup: making $(VENV) with $$("$$python" --version)"; \
	    "$$python" -m venv --clear $(VENV) && exit 0; \
	    echo 'setup: this Python cannot make a virtual environment; on Debian, install python3-venv' >&2; exit 1; \
	  fi; \
	done; \
	echo 'setup: expected Python 3.11, 3.12 or 3.13 as python3.x or python3 on the PATH, found none; install one' >&2; \
	exit 1

$(RUN_STAMP): pyproject.toml $(PYTHON)
	@echo 'setup: installing the mesh (a minute or two the first time)'
	@$(PIP) --editable .
	@touch $@

$(DEV_STAMP): pyproject.toml $(PYTHON)
	@echo 'setup: installing the mesh and the development tools (a few minutes the first time)'
	@$(PIP) --editable '.[dev]'
	@touch $(RUN_STAMP) $@

demo: $(RUN_STAMP)
	@$(VENV)/bin/mesh demo

test: $(DEV_STAMP)
	@$(PYTHON) -m pytest $(PYTEST_SPREAD) $(PYTEST_ARGS)

# The same end-to-end tests with every process on the other engine.
test-grpcio: $(DEV_STAMP)
	@MESH_TEST_WIRE=grpcio $(PYTHON) -m pytest tests/e2e tests/conformance $(PYTEST_ARGS)

# Apart from each other, so that `make --keep-going lint` shows all that is wrong.
lint: lint-format lint-style lint-types lint-imports lint-generated

lint-format: $(DEV_STAMP)
	@$(PYTHON) -m ruff format --check

lint-style: $(DEV_STAMP)
	@$(PYTHON) -m ruff check

lint-types: $(DEV_STAMP)
	@$(PYTHON) -m mypy

lint-imports: $(DEV_STAMP)
	@$(PYTHON) -m pytest -q tests/test_architecture.py

lint-generated: $(DEV_STAMP)
	@$(PYTHON) scripts/gen_protos.py --check
	@$(PYTHON) scripts/gen_sync_client.py --check
	@$(PYTHON) scripts/build_models.py --check

check: lint test

format: $(DEV_STAMP)
	@$(PYTHON) -m ruff format
	@$(PYTHON) -m ruff check --fix

proto: $(DEV_STAMP)
	@$(PYTHON) scripts/gen_protos.py
	@$(PYTHON) scripts/gen_sync_client.py

models: $(DEV_STAMP)
	@$(PYTHON) scripts/build_models.py

frameworks: $(DEV_STAMP)
	@$(PYTHON) models/frameworks/run.py

bench: $(DEV_STAMP)
	@$(VENV)/bin/mesh bench $(BENCH_ARGS)

clean:
	rm -rf $(VENV) .bench-venv .frameworks-venv .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
	find mesh clients tests scripts benchmarks examples models -name __pycache__ -type d -exec rm -rf {} +
