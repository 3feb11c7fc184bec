# Everything a fresh machine needs: Python 3.11 or newer, nothing else.
# Test processes of one thread each, as tiny models gain nothing from more; two, for two cores: with a
# third, 335 tests took a fifth longer there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST := HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder
PIP := $(BIN)/python -m pip install --no-compile --quiet --disable-pip-version-check --constraint constraints.txt
INSTALLED := $(VENV)/.installed
FOR_DEVELOPERS := $(VENV)/.installed-for-developers
# TORCH=cpu asks for builds of torch without GPU libraries, from an index that has them (PIP_EXTRA_INDEX_URL).
BUILDS := $(if $(TORCH),$(shell sed -nE 's/^(torch|torchvision)==.*/&+$(TORCH)/p' constraints.txt))
# Modules that are not kept compiled are compiled anew by every process: 10 s of torch alone.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: run test test-all check setup report

run: $(INSTALLED)
	$(BIN)/bench run --method bps --task sketch

test: $(FOR_DEVELOPERS)
	$(PYTEST) -m "not slow"

# Every test, those of minutes too, and 20,000 damaged files over all loaders instead of a few each.
test-all: $(FOR_DEVELOPERS)
	BENCH_FUZZ=20000 $(PYTEST)

check: $(FOR_DEVELOPERS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mkdocs build --strict --quiet --site-dir $(VENV)/site
	$(PYTEST)

report: $(INSTALLED)
	$(BIN)/bench report --results results/emoji --readme results/README.md
	$(BIN)/bench report --results results/emoji-equal-time

setup: $(FOR_DEVELOPERS)

# Modules are compiled when first imported: 1.7 minutes instead of 3.5.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable . $(BUILDS)
	touch $@

$(FOR_DEVELOPERS): $(INSTALLED)
	$(PIP) --editable ".[dev]" $(BUILDS)
	touch $@
