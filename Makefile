# Everything runs in .venv, which the first target that needs it makes. `make demo` is the place to start.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test bench lint docs setup clean

demo: setup  ## train a safeguarded lane-keeping policy, prove it, evaluate it
	$(BIN)/holdfast train lane-keeping

test: setup  ## the whole test suite
	$(BIN)/python -m pytest -n 2

bench: .venv/.bench-installed  ## every benchmark, one after the other
	$(BIN)/python -m benchmarks

lint: .venv/.lint-installed  ## style, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright --pythonpath $(BIN)/python

docs: setup  ## the documentation, as pages in .cache/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

setup: .venv/.installed  ## .venv with holdfast in it, editable

clean:
	rm -rf .venv .cache .pytest_cache .ruff_cache

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "holdfast needs Python 3.11 or newer: make PYTHON=python3.12 ..."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) -e '.[test,video,docs]'
	touch $@

.venv/.bench-installed: .venv/.installed
	$(PIP) -e '.[bench]'
	touch $@

# pyright[nodejs] brings the Node.js that pyright runs on, so that the machine needs none.
.venv/.lint-installed: .venv/.installed
	$(PIP) -e '.[lint]'
	touch $@
