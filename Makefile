# Everything runs in .venv, which is made here. `make help` lists the targets.
# The interpreter that .venv is made with: the first of these that is new enough.
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
  $$p -c '$(NEW_ENOUGH)' 2>/dev/null && echo $$p && break; done)
# Test processes; 1 for none beside pytest's own.
WORKERS ?= 2

BIN := .venv/bin
READY := .venv/ready

.DEFAULT_GOAL := help
.PHONY: help setup train test test-slow check format clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s%s\n", $$1, $$2 }' \
	  Makefile

setup: $(READY)  ## make .venv with the package and its tools (CPU build of JAX)

$(READY): pyproject.toml
	@test -n "$(PYTHON)" && $(PYTHON) -c '$(NEW_ENOUGH)' || \
	  { echo "no Python 3.11 or newer found ($(PYTHON)); give one with" \
	    "make setup PYTHON=/path/to/python3.11"; exit 1; }
	@start=$$(date +%s); \
	test -x $(BIN)/python || $(PYTHON) -m venv .venv || exit 1; \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  -e ".[dev]" || exit 1; \
	echo "setup: $$(($$(date +%s) - start)) s, $$(du -sh .venv | cut -f1)" \
	  "in .venv"; \
	touch $(READY)

train: $(READY)  ## train an agent with StepPO on household games
	$(BIN)/python -m steppo_jax train experiments/household_steppo.py

test: check  ## format, lint, layers, then every test that is not slow
	$(BIN)/python -m pytest -q -n $(WORKERS)

test-slow: $(READY)  ## the tests that train or run for minutes
	$(BIN)/python -m pytest -q -m slow

check: $(READY)  ## format, lint and layers, no tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports

format: $(READY)  ## rewrite the files in the project's form
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## remove .venv and every cache; keeps runs/
	rm -rf .venv .cache .pytest_cache .ruff_cache .hypothesis \
	  .import_linter_cache build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
