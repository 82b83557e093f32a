# What to do with a checkout. Needs Python 3.11 to 3.13 with venv; everything else is fetched.
# Python's part goes to .venv, pinned by constraints.txt; each step leaves a stamp there, so that
# it is done once. The servers are real: see scripts/install-servers.

PYTHON ?= python3
# Two at a time; each process has servers of its own.
PYTEST_ARGS ?= -n 2
BENCH_ARGS ?=
HOSTILE_ARGS ?=
SOAK_ARGS ?=
SECONDS ?= 90
SEED ?= 0
TOPOLOGY ?= single
BROKER ?= 3.10
PARTITIONS ?= 1

BIN := .venv/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
STAMPS := .venv/.stamps

.DEFAULT_GOAL := help
.PHONY: help demo run test check bench chaos planted cluster hostile soak wheel-test servers clean

help: ## list what there is to make
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: servers $(STAMPS)/testing ## five commands and what becomes of them, in about a minute
	@$(BIN)/outplan demo

run: servers $(STAMPS)/testing ## servers and a worker to try out, until Ctrl-C
	@$(BIN)/outplan sandbox

test: servers $(STAMPS)/test ## all tests, on real servers (PYTEST_ARGS=-x ...)
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

check: $(STAMPS)/check ## formatting, lint, types, import layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: servers $(STAMPS)/bench ## the rate, against a handler per message (BENCH_ARGS=...)
	@$(BIN)/python -m tests.bench $(BENCH_ARGS)

chaos: servers $(STAMPS)/test ## faults by the second, and whether a promise was broken
	@$(BIN)/python -m tests.faults.chaos run --seconds $(SECONDS) --seed $(SEED) \
		--topology $(TOPOLOGY) --broker $(BROKER) --partitions $(PARTITIONS)

planted: servers $(STAMPS)/test ## faults in the code, one by one, each of which must be found
	@$(BIN)/python -m pytest -m planted tests/faults/chaos/test_chaos.py

cluster: servers $(STAMPS)/test ## clusters of three: what a node's death costs, on RabbitMQ 3.10 and 4
	@$(BIN)/python -m pytest -s tests/faults/clusters

hostile: servers $(STAMPS)/test ## a million hostile messages, and 50,000 through the broker
	@$(BIN)/python -m tests.faults.fuzz.in_process $(HOSTILE_ARGS)
	@$(BIN)/python -m tests.faults.fuzz.through_broker

soak: servers $(STAMPS)/soak ## half the maximum load for thirty minutes (SOAK_ARGS=...)
	@$(BIN)/python -m tests.faults.soak $(SOAK_ARGS)

wheel-test: servers $(STAMPS)/build ## build wheel and sdist, and try the wheel in an empty place
	@scripts/wheel-test $(BIN)/python

clean: ## remove all that was made here
	rm -rf .venv dist build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

servers:
	@scripts/install-servers

$(STAMPS)/venv: constraints.txt
	@echo "making .venv"
	@$(PYTHON) -m venv .venv
	@$(PIP) install --constraint constraints.txt pip hatchling
	@mkdir -p $(STAMPS) && touch $@

# The build backend stands in the environment, pinned like the rest, instead of being fetched.
$(STAMPS)/testing: $(STAMPS)/venv pyproject.toml
	@echo "installing the service and what its tests' servers need"
	@$(PIP) install --constraint constraints.txt --no-build-isolation --editable '.[testing]'
	@touch $@

$(addprefix $(STAMPS)/,test check bench soak build): $(STAMPS)/testing
	@echo "installing the dependency group $(@F)"
	@$(PIP) install --constraint constraints.txt --group $(@F)
	@touch $@
