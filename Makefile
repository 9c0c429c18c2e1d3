# `make` alone lists the targets.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt


.PHONY: help
help: ## List the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# ---------------------------------------------------------------- environments, one stamp each

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.serve: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[serve]'
	@touch $@

# Torch by its exact version: a range takes gigabytes of CUDA on a machine without a GPU.
$(VENV)/.train: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) $$(grep '^torch==' constraints.txt)
	$(PIP) --editable '.[serve,train]'
	@touch $@

$(VENV)/.dev: $(VENV)/.train
	$(PIP) --editable '.[dev]'
	@touch $@

.PHONY: setup
setup: $(VENV)/.dev ## Make the environment for development, in .venv
	@[ "$${CI:-}" ] || [ ! -e .git ] || $(BIN)/pre-commit install >/dev/null

# ---------------------------------------------------------------- what the project does

.PHONY: demo
demo: $(VENV)/.serve ## Serve the shipped model, stream to it, look inside: under two minutes, no torch
	$(BIN)/python examples/demo.py

.PHONY: train-demo
train-demo: $(VENV)/.train ## Train, export, prove, serve, generate: about three minutes
	$(BIN)/python examples/demo.py --train

.PHONY: up
up: ## Server, Prometheus and Grafana by docker-compose
	@if docker compose version >/dev/null 2>&1; then compose="docker compose"; else compose=docker-compose; fi; \
	$$compose up --build --detach --wait && echo "Server at 127.0.0.1:50051, Grafana at http://127.0.0.1:3000"

.PHONY: bench
bench: $(VENV)/.dev ## Measure every row, and how cost grows: under ten minutes; needs libnghttp2-dev
	$(BIN)/python -m bench
	$(BIN)/python -m bench sweep

# ---------------------------------------------------------------- what keeps it right

.PHONY: peers
peers: $(VENV)/.dev ## Real clients and proxies against both transports: three minutes; needs root and Debian
	PYTHON=$(PYTHON) trials/peers/install.sh .make/peers
	$(BIN)/python -m trials peers --transport native
	$(BIN)/python -m trials peers --transport grpcio

.PHONY: attack
attack: $(VENV)/.dev ## Floods beside honest sessions, and what they cost those: ten minutes
	$(BIN)/python -m trials attack

# Not in the environment for development: atheris has wheels for Linux only.
$(VENV)/.fuzz: $(VENV)/.dev
	$(PIP) atheris==3.0.0
	@touch $@

.PHONY: fuzz
fuzz: $(VENV)/.fuzz ## Random and mutated conversations, guided by coverage: ten minutes; Linux
	$(BIN)/python -m trials fuzz

.PHONY: soak
soak: $(VENV)/.dev ## Random use for twenty minutes; memory and file descriptors, plotted into docs/
	$(BIN)/python -m trials soak

.PHONY: figures
figures: $(VENV)/.dev ## Make the guide's figures and numbers anew from the shipped models
	$(BIN)/python -m docs.figures

.PHONY: docs
docs: $(VENV)/.dev ## Build the documentation into site/; broken links and anchors fail
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

.PHONY: check
check: $(VENV)/.dev ## Lint, format, types, layers, protos, freshness of generated code
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/buf lint
	@# v1 stays what it is: on a branch, against main.
	if git rev-parse --quiet --verify main >/dev/null 2>&1; then $(BIN)/buf breaking --against '.git#branch=main'; fi
	$(BIN)/python protos/generate.py --check

.PHONY: test
test: check ## Everything that CI runs: check, then the tests
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

.PHONY: compose-test
compose-test: $(VENV)/.dev ## The real compose file on a real Docker engine; needs root and Debian
	$(BIN)/python deploy/compose_test.py

.PHONY: protos
protos: $(VENV)/.dev ## Rebuild what is generated from the protos: stubs and docs/protocol.md
	$(BIN)/python protos/generate.py
