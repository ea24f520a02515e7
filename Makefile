# Two commands are enough on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO_N ?= 64
DEMO_OUT ?= demo
JOBS ?= $(shell nproc 2>/dev/null || echo 2)

.PHONY: demo test slow check notebooks clean help

help:
	@echo "make demo       install into .venv, sample $(DEMO_N) molecules with a wanted gap, score, report"
	@echo "make test       install into .venv, run the tests"
	@echo "make slow       the tests that take minutes"
	@echo "make check      ruff and mypy"
	@echo "make notebooks  run the notebooks in their small mode"

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[dev,molecules,proteins]"
	@touch $@

# Exit code 1 says that some samples were dropped, which the report counts; it is no failure here.
demo: $(READY)
	$(BIN)/sciflow sample molecules -n $(DEMO_N) --target gap=5 --best-of 3 --relax --seed 0 --out $(DEMO_OUT) || [ $$? -eq 1 ]

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) -m "not slow"

slow: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

notebooks: $(READY)
	SCIFLOW_SMALL=1 $(BIN)/python -m notebooks.run

clean:
	rm -rf $(VENV) $(DEMO_OUT) .pytest_cache .mypy_cache .ruff_cache
