# make demo   sets everything up and trains on real video on this machine
# make test   sets everything up and runs every check and test
VENV ?= .venv
PYTHON ?= python3
export PYTHON MAKECMDGOALS
BIN := $(abspath $(VENV))/bin
export PATH := $(BIN):$(PATH)

.PHONY: setup demo test lint bench clean
.DEFAULT_GOAL := setup

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml tools/python-environment
	tools/python-environment $(VENV)
	touch $@

demo: setup
	tools/system-packages
	ostrain submit jobs/quickstart.yaml --follow --report demo

lint: setup
	ruff check .
	ruff format --check .
	mypy

test: setup
	tools/system-packages test
	$(MAKE) --no-print-directory lint
	python -m pytest

bench: setup
	python -m bench

clean:
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache demo
