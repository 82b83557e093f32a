# The targets need Python 3.11 to 3.13 with venv and install everything else: Python packages into
# .venv, pinned by constraints.txt, and RabbitMQ by scripts/install-servers where there is no Docker.
# Each installation leaves a stamp in .venv/.stamps, so that it runs once.

PYTHON ?= python3
# Two processes, each with its own servers.
PYTEST_ARGS ?= -n 2
BENCH_ARGS ?=
HOSTILE_ARGS ?=
SOAK_ARGS ?=
SECONDS ?= 90
SEED ?= 0
TOPOLOGY ?= single
BROKER ?= 3.10
PARTITIONS ?= 1
CHANGES ?= 0
VERSIONS ?= 3.11 3.12 3.13

BIN := .venv/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
STAMPS := .venv/.stamps

.DEFAULT_GOAL := help
.PHONY: help demo run test slow check wheel-test extras-test bench chaos planted cluster hostile soak \
	servers clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: servers $(STAMPS)/testing ## publish five commands to a worker and show their outcomes (one minute)
	@$(BIN)/outplan demo

run: servers $(STAMPS)/testing ## start RabbitMQ, MongoDB and a worker to try out; Ctrl-C stops them
	@$(BIN)/outplan sandbox

test: servers $(STAMPS)/test ## run the tests on real servers (PYTEST_ARGS="-x tests/unit")
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

check: $(STAMPS)/check ## check formatting, lint, types and import layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

wheel-test: servers $(STAMPS)/build ## build sdist and wheel; check the wheel with each extra alone
	@scripts/wheel-test $(BIN)/python

extras-test: servers $(STAMPS)/build ## do the same on every installed Python (VERSIONS="3.11 3.12 3.13")
	@scripts/wheel-test $(BIN)/python $(VERSIONS)

bench: servers $(STAMPS)/bench ## measure the rate against one handler per message (BENCH_ARGS=...)
	@$(BIN)/python -m tests.bench $(BENCH_ARGS)

chaos: servers $(STAMPS)/test ## inject faults under load and check every promise (SECONDS=90 SEED=0)
	@$(BIN)/python -m tests.faults.chaos run --seconds $(SECONDS) --seed $(SEED) \
		--topology $(TOPOLOGY) --broker $(BROKER) --partitions $(PARTITIONS) --changes $(CHANGES)

slow: servers $(STAMPS)/test ## run the tests that take minutes: layouts, balance, random cuts, memory (20 minutes)
	@$(BIN)/python -m pytest -m slow $(PYTEST_ARGS)

planted: servers $(STAMPS)/test ## plant ten bugs, one at a time; chaos must find each
	@$(BIN)/python -m pytest -m planted tests/faults/chaos/test_chaos.py

cluster: servers $(STAMPS)/test ## kill nodes of three-node clusters, RabbitMQ 3.10 and 4.3
	@$(BIN)/python -m pytest -s tests/faults/clusters

hostile: servers $(STAMPS)/test ## send a million malformed messages, 50,000 of them through RabbitMQ
	@$(BIN)/python -m tests.faults.fuzz.in_process $(HOSTILE_ARGS)
	@$(BIN)/python -m tests.faults.fuzz.through_broker

soak: servers $(STAMPS)/soak ## run half the maximum load for thirty minutes (SOAK_ARGS=...)
	@$(BIN)/python -m tests.faults.soak $(SOAK_ARGS)

clean: ## remove .venv, builds and caches
	rm -rf .venv dist build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

servers:
	@scripts/install-servers

$(STAMPS)/venv: constraints.txt
	@echo "making .venv"
	@$(PYTHON) -m venv .venv
	@$(PIP) install --constraint constraints.txt pip hatchling
	@mkdir -p $(STAMPS) && touch $@

# Without build isolation, so that the build backend is pinned too.
$(STAMPS)/testing: $(STAMPS)/venv pyproject.toml
	@echo "installing outplan-service[testing]"
	@$(PIP) install --constraint constraints.txt --no-build-isolation --editable '.[testing]'
	@touch $@

$(addprefix $(STAMPS)/,test check bench soak build): $(STAMPS)/testing
	@echo "installing the dependency group $(@F)"
	@$(PIP) install --constraint constraints.txt --group $(@F)
	@touch $@
