# `make demo`: a virtual environment, the install, the main job. `make test`: the same environment, lint, types, tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# 2.13.0 named exactly, because an open range can take a build with several GB of CUDA packages.
TORCH ?= torch==2.13.0

.PHONY: demo test lint install install-dev benchmark clean

demo: install
	$(BIN)/sigexp experiment=bayer model=deep

test: lint
	$(BIN)/python -m pytest -n auto

lint: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

install: $(VENV)/installed
install-dev: $(VENV)/installed-dev

$(VENV)/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q $(TORCH)
	$(BIN)/python -m pip install -q -c constraints.txt -e .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	touch $@

benchmark: install-dev
	$(BIN)/python -m benchmarks.synthesis

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .mypy_cache
