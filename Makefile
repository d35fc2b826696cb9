# Each target installs what it needs into .venv, once: again when constraints.txt or pyproject.toml changes.
PYTHON ?= python3
# What `make run` and `make serve` draw with: micro wherever you are, or MODEL=klein-9b on a card.
MODEL ?= micro
PORT ?= 7000

export PIP_CONSTRAINT := $(CURDIR)/constraints.txt

VENV := .venv
BIN := $(VENV)/bin
# micro is drawn with its own weights, whatever .env says.
MODEL_ENV := IMAGEGEN_MODEL=$(MODEL) $(if $(filter micro,$(MODEL)),IMAGEGEN_MODEL_PATH=models/micro)
PINS := constraints.txt pyproject.toml
AUDIT := $(VENV)/audit
VAST := $(VENV)/vast
# Whose packages are listed.
AUDITED ?= $(BIN)/python

.DEFAULT_GOAL := help
.PHONY: help run test slow check serve micro eval bench audit sbom licences clean

help: ## this list
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 16

run: $(VENV)/.run ## draw what test_input.json asks for into outputs/ (MODEL=klein-9b: the real model)
	$(MODEL_ENV) $(BIN)/python handler.py --test_input

test: $(VENV)/.dev ## run the tests
	$(BIN)/pytest -m "not slow"

slow: $(VENV)/.slow ## the tests that need a browser and curl (apt, as root), other platforms' packages, or minutes
	$(BIN)/pytest -m slow

check: $(VENV)/.dev ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

serve: $(VENV)/.run ## the HTTP server and its page, on PORT (7000)
	$(MODEL_ENV) PORT=$(PORT) IMAGEGEN_SERVE=http $(BIN)/python -m imagegen

micro: $(VENV)/.run ## make the miniature model from nothing (about an hour and a half on two cores)
	$(BIN)/python -m builder.micro
	$(BIN)/python -m scripts.eval_micro --card

eval: $(VENV)/.run ## measure the miniature model
	$(BIN)/python -m scripts.eval_micro

bench: $(VENV)/.dev ## measure cold start, warm jobs and the HTTP server against the plain handler
	$(BIN)/python -m scripts.benchmark_start
	$(BIN)/python -m scripts.benchmark_worker --simulate 0.6
	$(BIN)/python -m scripts.benchmark_worker --simulate 0.3
	$(BIN)/python -m scripts.benchmark_worker --slow 0.1
	$(BIN)/python -m scripts.benchmark_worker --memory
	$(BIN)/python -m scripts.benchmark_server

audit: $(AUDIT)/.done ## known vulnerabilities of the pinned versions (asks PyPI; a package that it does not know is a failure)
	$(AUDIT)/bin/pip-audit -r constraints.txt --no-deps --disable-pip --strict --progress-spinner off

sbom: $(VENV)/.run $(AUDIT)/.done ## build/sbom.json: what is installed, as CycloneDX
	@mkdir -p build
	$(AUDIT)/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible -o build/sbom.json $(AUDITED)

licences: $(VENV)/.run $(AUDIT)/.done ## licences of what is installed; one that pyproject.toml does not allow is a failure
	$(AUDIT)/bin/pip-licenses --python=$(AUDITED)

$(VENV)/.slow: $(VENV)/.dev $(VAST)/.done
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev,modal,ray]'
	{ command -v chromium && command -v curl; } >/dev/null || { apt-get update -qq && apt-get install -y -qq chromium curl >/dev/null; }
	@touch $@

clean: ## remove .venv, outputs and caches (not build/micro, which takes hours to make)
	rm -rf $(VENV) outputs .pytest_cache .mypy_cache .ruff_cache *.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# On its own: a tool's dependencies are not the worker's. PIP_CONSTRAINT would mix them.
$(AUDIT)/.done: constraints-audit.txt | $(BIN)/python
	$(PYTHON) -m venv $(AUDIT)
	PIP_CONSTRAINT= $(AUDIT)/bin/pip install --quiet --disable-pip-version-check --no-deps -r constraints-audit.txt
	@touch $@

# Vast's package wants other versions than the worker does, as it has on Vast.
$(VAST)/.done: deploy/vast/requirements.txt | $(BIN)/python
	$(PYTHON) -m venv $(VAST)
	PIP_CONSTRAINT= $(VAST)/bin/pip install --quiet --disable-pip-version-check --no-deps -r $<
	@touch $@

$(VENV)/.run: $(PINS) | $(BIN)/python
	$(BIN)/pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(VENV)/.dev: $(PINS) | $(BIN)/python
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@ $(VENV)/.run
