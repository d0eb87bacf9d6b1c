# make demo   sets everything up and trains on real video on this machine
# make demo-full   the whole story: autoencoder, captions, training, sampling (less than an hour on two cores)
# make test   sets everything up and runs every check and test that fits 25 minutes on two cores
# make test-long   the rest: hours
VENV ?= .venv
PYTHON ?= python3
export PYTHON MAKECMDGOALS
BIN := $(abspath $(VENV))/bin
export PATH := $(BIN):$(PATH)

.PHONY: setup demo demo-full test test-long lint bench clean
.DEFAULT_GOAL := setup

# Tests that keep all cores busy by themselves: one after the other.
ALONE := tests/e2e tests/faults tests/layouts
# Nodes, mostly waiting; these two share the names of their networks' parts.
NODES := tests/cluster tests/testbed

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml tools/python-environment
	tools/python-environment $(VENV)
	touch $@

demo: setup
	tools/system-packages
	ostrain submit jobs/quickstart.yaml --follow --report demo

demo-full: setup
	tools/system-packages
	python -m demos.shapes.story demo-full

lint: setup
	ruff check .
	ruff format --check .
	mypy

test: setup
	tools/system-packages test
	$(MAKE) --no-print-directory lint
	tools/side-by-side "tests $(patsubst %,--ignore %,tests/models $(NODES) $(ALONE))" "$(NODES)" tests/models/test_*.py
	python -m pytest $(ALONE)

# What make test leaves out for its 25 minutes: long tests, every layout, every fault.
test-long: setup
	tools/system-packages test
	python -m pytest -m long tests/cluster $(ALONE)
	python -m tests.layouts
	python -m tests.faults --seeds 3
	python -m tests.fuzz --examples 2000

bench: setup
	python -m bench

clean:
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache demo demo-full
