# PYTHON: the interpreter that .venv is made of. DEMO_FLAGS: more flags for both runs of the demo.
PYTHON ?= python3
VENV ?= .venv
RUNS ?= runs/demo
DEMO_FLAGS ?=
TEST_FLAGS ?=

BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed

.PHONY: help install demo test lint

help:
	@echo "make install  make $(VENV) and install the package with what its tests need"
	@echo "make demo     train without and with CoRM on the embedded data, compare both (minutes)"
	@echo "make test     run the test suite"
	@echo "make lint     check style and format"

install: $(INSTALLED)

$(INSTALLED): setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: \
	$(PYTHON) is missing or older than Python 3.11; name another: make PYTHON=python3.12 install" \
	>&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV): about 1 GB, some minutes"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: install
	$(BIN)/python -m corm_jax.main --config=configs/vit_erm.py --workdir=$(RUNS)/vit_erm $(DEMO_FLAGS)
	$(BIN)/python -m corm_jax.main --config=configs/vit_corm.py --workdir=$(RUNS)/vit_corm $(DEMO_FLAGS)
	$(BIN)/python -m corm_jax.report $(RUNS)/vit_erm $(RUNS)/vit_corm --summary=$(RUNS)/summary.json

test: install
	$(BIN)/python -m pytest -n auto --dist loadfile $(TEST_FLAGS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
