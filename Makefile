# Every target sets itself up in .venv: it needs only Python 3.10+, make and a package index.
PYTHON ?= python3
BIN := .venv/bin
GPU_PYTHON ?= $(BIN)/python
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: demo test test-gpu check bench clean
.DELETE_ON_ERROR:

demo: .venv/demo  ## export the embedded model for this CPU, generate with and without drafting
	$(BIN)/ppd-export --model tinypy --gpu cpu --out build/tinypy-cpu --force
	$(BIN)/ppd generate build/tinypy-cpu "def fibonacci(n):" --plain --stats
	$(BIN)/ppd generate build/tinypy-cpu "def fibonacci(n):" --draft --stats

test: .venv/dev  ## run the test suite
	$(BIN)/python -m pytest -n auto

test-gpu:  ## run what needs a GPU, with the Python of GPU_PYTHON (docs/gpu.md)
	$(GPU_PYTHON) -m pytest -m gpu -n 0 -rs tests/gpu

check: .venv/dev  ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/dev  ## host time per step, and plain against PPD
	$(BIN)/python benchmarks/overhead.py

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/demo: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) install --constraint constraints.txt --editable ".[cpu,export]"
	touch $@

.venv/dev: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) install --constraint constraints.txt --editable ".[dev]"
	touch $@ .venv/demo

clean:
	rm -rf .venv build dist *.egg-info
