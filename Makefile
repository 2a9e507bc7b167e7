# Everything works in a fresh clone on Debian 12, as root or with sudo: `make demo` and `make test` set up what is missing.

SHELL := /bin/bash
export PATH := $(PATH):/usr/sbin:/sbin

PYTHON := .venv/bin/python
AS_ROOT := $(if $(filter 0,$(shell id -u)),,sudo -E) env PATH="$$PATH" PYTHONDONTWRITEBYTECODE=1
WORKERS ?= 3
SECONDS = 600
INPUTS ?= 100000
SEED ?= 1
ARGS ?=

.PHONY: help setup demo test soak fuzz bench lint clean

help: ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

.venv/ready: pyproject.toml .ci/setup
	@.ci/setup

setup: .venv/ready ## install missing Debian packages and make .venv

demo: .venv/ready ## show felixpy working on real packets; make demo ARGS="--backend legacy --keep"
	@$(AS_ROOT) .venv/bin/felixpy demo $(ARGS)

PYTEST := $(AS_ROOT) FELIXPY_TEST_COMPLETE=1 $(PYTHON) -m pytest -q

test: .venv/ready ## all tests, on the real kernel in private namespaces; make test ARGS="-k nat"
	@$(PYTEST) -n $(WORKERS) $(ARGS)

soak: .venv/ready ## random operations under live traffic; make soak SECONDS=600 ARGS="--backend legacy --seed 1"
	@$(AS_ROOT) $(PYTHON) -m tests.soak.run $(SECONDS) $(ARGS)

fuzz: .venv/ready ## the parsers of the stream against random input; make fuzz INPUTS=100000 SEED=1
	@$(PYTHON) -m tests.model.fuzz_parse $(INPUTS) $(SEED)

.venv/bench-ready: .venv/ready
	@$(PYTHON) -m pip install --quiet --disable-pip-version-check --editable '.[bench]'
	@touch $@

bench: .venv/bench-ready ## measure latency beside other techniques, write docs/performance.md; BENCH=quick make bench
	@$(AS_ROOT) $(PYTHON) -m bench $(if $(filter quick,$(BENCH)),--quick) $(ARGS)

lint: .venv/ready ## formatting, lint, types and import directions
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@$(PYTHON) -m mypy
	@.venv/bin/lint-imports

clean: ## remove .venv and every cache
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
