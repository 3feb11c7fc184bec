# Everything a fresh machine needs: Python 3.11 or newer, nothing else.
# Test processes of one thread each, as tiny models gain nothing from more; two, for two cores: with a
# third, 335 tests took a fifth longer there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST := HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder
STAMP := $(VENV)/.installed
# Modules that are not kept compiled are compiled anew by every process: 10 s of torch alone.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: run test test-all check setup report

run: $(STAMP)
	$(BIN)/bench run --method bps --task sketch

test: $(STAMP)
	$(PYTEST) -m "not slow"

# Every test, those of minutes too, and 20,000 damaged files over all loaders instead of a few each.
test-all: $(STAMP)
	BENCH_FUZZ=20000 $(PYTEST)

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(PYTEST)

report: $(STAMP)
	$(BIN)/bench report --results results/emoji --readme results/README.md
	$(BIN)/bench report --results results/emoji-equal-time

setup: $(STAMP)

# Modules are compiled when first imported: 1.7 minutes instead of 3.5.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --no-compile --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $(STAMP)
