# Everything a newcomer needs: `make dashboard` to look, `make test` to check. `make help` lists the rest.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
DOCS := $(VENV)/docs
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# Tests run in as many processes as there are cores; each keeps to one torch thread (tests/conftest.py).
WORKERS ?= $(shell nproc)

.DEFAULT_GOAL := help
.PHONY: help setup dashboard test test-fast test-slow docs check lint bench chromium clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

setup: $(VENV)/.runtime ## make .venv and install requirements.txt

dashboard: $(VENV)/.runtime ## open the dashboard on localhost
	$(BIN)/streamlit run app

test: $(VENV)/.dev chromium ## run every test (sets up .venv and Chromium where missing)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup

test-fast: $(VENV)/.dev ## the tests that take moments: neither slow ones nor Chromium nor other libraries' models
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup -m "not slow and not slower and not browser" --ignore tests/parity

test-slow: $(VENV)/.dev ## the tests that take minutes, which `make test` leaves out: kill loops, large tables
	$(BIN)/python -m pytest -m slower --timeout 3600

lint: $(VENV)/.dev ## ruff and the type checker
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.dev chromium ## time Moescope against its peers (python main.py bench)
	$(BIN)/python main.py bench

docs: $(DOCS)/.ready ## build the site of docs/ and docstrings into out/site; a warning is an error
	$(DOCS)/bin/zensical build --strict

check: lint test ## lint, types and tests

clean: ## remove .venv and caches (runs in checkpoints/ stay)
	rm -rf $(VENV) .cache .pytest_cache .ruff_cache .mypy_cache .hypothesis

# A bare Debian has Python without ensurepip; its package manager brings it.
$(BIN)/python:
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); apt-get update -qq && apt-get install -y -qq $(PYTHON)-venv && $(PYTHON) -m venv $(VENV); }

$(VENV)/.runtime: requirements.txt | $(BIN)/python
	@echo "Installing the pinned requirements into $(VENV) (some minutes the first time) ..."
	@$(PIP) -r requirements.txt
	@touch $@

$(VENV)/.dev: requirements-dev.txt requirements-huggingface.txt requirements-serve.txt requirements-low-precision.txt requirements-data.txt requirements-code.txt $(VENV)/.runtime
	@echo "Installing the test tools into $(VENV) ..."
	@$(PIP) -r requirements-dev.txt
	@touch $@

# The site's generator reads the docstrings and imports nothing of ours, so it has an environment of its own.
$(DOCS)/.ready: requirements-docs.txt | $(BIN)/python
	@echo "Installing the site's generator into $(DOCS) ..."
	@$(BIN)/python -m venv $(DOCS)
	@$(DOCS)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-docs.txt
	@touch $@

# The browser tests drive Debian's Chromium; without root they are skipped with a reason.
chromium:
	@command -v chromium >/dev/null || { [ "$$(id -u)" = 0 ] && apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core >/dev/null; } || echo "Chromium is missing: browser tests will be skipped"
