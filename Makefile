# make run    a first look, three minutes (makes the environment on first use)
# make test   all tests, slow ones too
# make test-deployment   two real nodes over TLS
# make wheel-test   what is installed runs without the checkout
# make docs   the documentation, into docs/_build; a warning is an error

PYTHON ?= python3
BIN := .venv/bin

.PHONY: run test test-deployment wheel-test check docs clean

run: .venv/ready
	$(BIN)/fl-split compare configs/showcase.toml

test: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist worksteal

test-deployment: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m deployment tests/test_deployment.py

wheel-test: .venv/ready
	.ci/smoke $(BIN)/python

check: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/ready
	$(BIN)/python -m sphinx -W --keep-going -q docs docs/_build
	@echo "Written: docs/_build/index.html"

.venv/ready: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "fl-split needs Python 3.11 or newer; try: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv || { echo "On Debian: apt install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv docs/_build
