# Everything a developer or a CI job types. `make` alone lists the targets.
# ARGS passes options on: make train ARGS="rows.csv --model payments".

VENV := .venv
BIN := $(VENV)/bin
UV ?= $(BIN)/uv
IMAGE ?= autoencoder-service
ARGS ?=
# Interpreters to try, best first; `make setup PYTHON=/path/to/python3.12` names one.
PYTHON ?=
PYTHONS = $(or $(PYTHON),python3.13 python3.12 python3.11 python3 python)
SUPPORTED := import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
COMPILE = $(UV) --no-config pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	--no-annotate -c requirements/constraints.in --custom-compile-command "make lock" $(if $(UPGRADE),--upgrade)
# What Beam takes from .venv as it is there.
BEAM_HAS = $(foreach package,numpy grpcio pillow packaging typing-extensions python-dateutil pytz requests pyyaml certifi \
	charset-normalizer idna urllib3 six cffi pycparser cryptography,--no-emit-package $(package))
# pip must not stop to ask: CI has no terminal.
PIP = $(BIN)/python -m pip --disable-pip-version-check --no-input --quiet install

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup clients demo train serve bench fuzz test check lint docs fmt lock vendor outputs screenshots pictures docker clean

help: ## List the targets.
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' Makefile

setup: $(VENV)/.installed ## Install this project with its developers' tools into .venv (again only when the locks change).
	@:

demo: $(VENV)/.service ## Train on real digits, serve, print scores and the page to open; Ctrl-C ends it.
	@$(BIN)/autoencoder demo $(ARGS)

train: $(VENV)/.service ## Train and publish a version: make train ARGS="rows.csv --model payments".
	@$(BIN)/autoencoder train $(ARGS)

serve: $(VENV)/.service ## Serve the models in ./model_store.
	@$(BIN)/autoencoder serve $(ARGS)

clients: $(VENV)/.clients $(VENV)/.beam $(VENV)/.export ## Install what some tests drive: clients of other servers, Beam, converters.
	@:

fuzz: setup ## Send mutated requests in every encoding and protocol: make fuzz MINUTES=60.
	@$(BIN)/python -m tests.attack.fuzz --minutes $(or $(MINUTES),1)

bench: setup ## Measure a running service: make bench ARGS="--help".
	@$(BIN)/python -m benchmarks $(ARGS)

test: setup clients ## Install what the tests need and run them all (minutes; ARGS goes to pytest).
	@$(BIN)/python -m pytest --all -n 3 --dist worksteal $(ARGS)

check: lint ## Static checks and the quick tests, which need no TensorFlow: make check ARGS=tests/codecs runs those of one room.
	@$(BIN)/python -m pytest -q -m "not tf" -n 2 --dist worksteal $(ARGS)

lint: setup ## Static checks alone: ruff, mypy, import rules.
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/python -m mypy
	@$(BIN)/lint-imports

docs: setup ## Build the documentation into site/; a broken link fails.
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs --quiet build --strict

fmt: setup ## Format and fix what can be fixed.
	@$(BIN)/ruff check --fix-only .
	@$(BIN)/ruff format .

lock: $(BIN)/python ## Lock the dependencies again; UPGRADE=1 also moves pinned ones.
	@$(COMPILE) -o requirements/service.txt pyproject.toml
	@$(COMPILE) -o requirements/dev.txt -c requirements/service.txt pyproject.toml --group dev
	@$(COMPILE) -o requirements/stores.txt -c requirements/service.txt requirements/stores.in
	@$(COMPILE) -o requirements/build.txt -c requirements/dev.txt requirements/build.in
	@$(COMPILE) -o requirements/client.txt -c requirements/service.txt requirements/client.in
	@$(COMPILE) -o requirements/beam.txt $(BEAM_HAS) requirements/beam.in
	@$(COMPILE) -o requirements/export.txt -c requirements/dev.txt --no-deps requirements/export.in
	@$(COMPILE) -o requirements/compat.txt -c requirements/dev.txt --no-deps requirements/compat.in

vendor: ## Copy the console's locked libraries, ReDoc and the site's shim from npm again.
	@tools/console/vendor.sh
	@tools/redoc/vendor.sh
	@tools/docs/vendor.sh

outputs: setup ## Run the README and the tutorial, and write what is printed into them (minutes).
	@$(BIN)/python -m tests.examples.outputs

screenshots: setup ## Draw the pictures of docs/console.md again.
	@$(BIN)/python -m tests.ui.screenshots docs/images

pictures: setup ## Draw the pictures of docs/explanation again (a minute or two).
	@$(BIN)/python -m tools.docs.pictures docs/images

docker: ## Build the container image.
	@docker build --tag $(IMAGE) .

clean: ## Remove caches and build products; .venv and the models stay.
	@rm -rf build dist site .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	@find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# A candidate may be a shim that only prints an error, or a Debian Python without venv: each is tried before it is used.
$(BIN)/python:
	@for python in $(PYTHONS); do \
		if "$$python" -c '$(SUPPORTED)' >/dev/null 2>&1; then exec "$$python" -m venv --clear $(VENV); fi; \
	done; \
	echo "Python 3.11, 3.12 or 3.13 with its venv module is needed and was not found:" \
		"install one, or name it with make setup PYTHON=/path/to/python3.12" >&2; exit 1

# What training and serving need, and nothing of the developers' tools.
$(VENV)/.service: requirements/service.txt requirements/build.txt pyproject.toml | $(BIN)/python
	@echo "Installing the locked dependencies into $(VENV); the first time this takes some minutes."
	@$(PIP) --require-hashes --requirement requirements/service.txt --requirement requirements/build.txt
	@$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.installed: requirements/dev.txt $(VENV)/.service
	@echo "Installing the developers' tools into $(VENV)."
	@$(PIP) --require-hashes --requirement requirements/dev.txt
	@touch $@

$(VENV)/.clients: requirements/compat.txt $(VENV)/.installed
	@$(PIP) --no-deps --require-hashes --requirement requirements/compat.txt
	@touch $@

$(VENV)/.beam: requirements/beam.txt | $(VENV)/.installed
	@$(PIP) --no-deps --require-hashes --upgrade --target $(VENV)/beam --requirement requirements/beam.txt
	@touch $@

$(VENV)/.export: requirements/export.txt | $(VENV)/.installed
	@$(PIP) --no-deps --require-hashes --upgrade --target $(VENV)/export --requirement requirements/export.txt
	@touch $@
