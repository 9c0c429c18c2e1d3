# `make` alone lists the targets.
.DEFAULT_GOAL := help

VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
PROTOS := protos/cellstream/v1

.PHONY: help
help: ## List the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: protos
protos: ## Rebuild the generated stubs
	$(BIN)/python -m grpc_tools.protoc -I protos \
	  --python_out=service --grpc_python_out=service --mypy_out=quiet:service --mypy_grpc_out=quiet:service \
	  --plugin=protoc-gen-mypy=$(BIN)/protoc-gen-mypy --plugin=protoc-gen-mypy_grpc=$(BIN)/protoc-gen-mypy_grpc \
	  $(PROTOS)/prediction.proto $(PROTOS)/session.proto $(PROTOS)/model.proto
