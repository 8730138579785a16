# `make` alone lists the commands. `make serve` and `make test` need nothing but Python.

PYTHON ?= python3
PORT ?=
CONFIG ?= deploy/local.yaml
# Where the links in alerts and dashboards begin; a URL, such as https://…/docs/runbooks.
RUNBOOKS ?= docs/runbooks

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt
# One stamp for each set of packages, so that nothing is installed twice.
RUNTIME := $(VENV)/.installed
DEV := $(VENV)/.installed-dev

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules --no-print-directory

# A file's tests share a server, so a file stays in one process.
PARALLEL := --numprocesses logical --dist loadfile --no-loadscope-reorder

# Of `make loadtest` and `make chaos`; without HOST a load test starts a service of its own.
SCENARIO ?=
SECONDS ?=
HOST ?=
LOAD := $(if $(SCENARIO),--scenario '$(SCENARIO)') $(if $(SECONDS),--seconds '$(SECONDS)')

.PHONY: help setup serve test test-fast check fix k8s bench loadtest chaos zoo zoo-pack

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@printf '\nVariables: PORT=%s CONFIG=%s PYTHON=%s ARGS="arguments for pytest"\n' \
	  '$(PORT)' '$(CONFIG)' '$(PYTHON)'

setup: $(DEV) ## make .venv with all that development needs
	@echo '$(VENV) is ready'

serve: $(RUNTIME) ## serve the shipped bundle on 127.0.0.1:8000 (PORT= changes it)
	@exec $(BIN)/winnow serve $(CONFIG) $(if $(PORT),--port $(PORT))

test: $(DEV) ## run all tests (ARGS='tests/service/store -x': pytest with these arguments instead)
	@exec $(BIN)/$(if $(ARGS),pytest $(ARGS),python -m tests)

test-fast: $(DEV) ## run the tests that need no Ray cluster, browser or PostgreSQL, and are not slow
	@exec $(BIN)/pytest -m 'not (cluster or browser or postgres or slow)' $(PARALLEL) $(ARGS)

check: $(DEV) ## lint, format, types, direction of imports, configuration, manifests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/winnow config check --remote $(CONFIG)
	$(BIN)/python -m deploy.observability --check --runbooks '$(RUNBOOKS)'
	$(BIN)/python -m deploy.k8s.check

bench: $(DEV) ## every promised figure beside its goal, and two peers: ten minutes
	$(BIN)/python -m loadtest.bench

loadtest: $(DEV) ## a minute of load, held against loadtest/slo.toml (SCENARIO= SECONDS= HOST=)
	@exec $(BIN)/python -m loadtest $(LOAD) $(if $(HOST),--host '$(HOST)')

chaos: $(DEV) ## kill, flood, hold up, stop and soak a service: forty minutes (SCENARIO= SECONDS=)
	@exec $(BIN)/python -m loadtest.chaos $(LOAD)

fix: $(DEV) ## mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

k8s: $(DEV) ## make rules and dashboards (RUNBOOKS=https://… for the links in them)
	$(BIN)/python -m deploy.observability --runbooks '$(RUNBOOKS)'

zoo: $(DEV) ## remake the shipped bundle's parts (hours), up to sheets to look at: MNIST=folder
	$(BIN)/winnow train backbone
	$(BIN)/winnow train export
	$(BIN)/winnow train referees --digits '$(MNIST)'
	$(BIN)/winnow train rewards
	$(BIN)/winnow train viewed

zoo-pack: $(DEV) ## pack and calibrate the bundle, once you have looked at the sheets: VIEWED=file
	$(BIN)/winnow train viewed --labels '$(VIEWED)'
	$(BIN)/winnow train pack
	$(BIN)/winnow calibrate no-crossbar --target 0.0025 --n 3600
	$(BIN)/winnow calibrate no-crossbar-guided only-crossbar --target 0.01
	$(BIN)/winnow evaluate --record

$(RUNTIME): pyproject.toml constraints.txt | $(BIN)/pip
	@echo 'Installing Winnow into $(VENV): two to three minutes the first time ...'
	@$(PIP) --editable .
	@touch $@

$(DEV): pyproject.toml constraints.txt | $(BIN)/pip
	@echo 'Installing Winnow and the tools into $(VENV): two to three minutes the first time ...'
	@$(PIP) --editable '.[dev]'
	@touch $(RUNTIME) $@

# pip is what venv writes last: without it, an earlier try broke off.
$(BIN)/pip:
	@command -v $(PYTHON) >/dev/null || { \
	  echo '$(PYTHON) was not found: install Python 3.11 or 3.12, or name one with PYTHON=' >&2; \
	  exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' || { \
	  echo "Winnow needs Python 3.11 or 3.12, and $(PYTHON) is $$($(PYTHON) --version 2>&1):" \
	    'name another, as in make PYTHON=python3.11' >&2; \
	  exit 1; }
	@$(PYTHON) -m venv $(VENV)
