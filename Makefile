# `make demo` and `make test` need nothing but Python 3.11 or newer. Each makes .venv if it is not there; a second call reuses it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test check lint types imports weights test-real bench oracles wheel clean help

demo: $(VENV)/.installed  ## run the weight analyses on the sample checkpoints and say where the report is
	$(BIN)/mscope demo --out demo

test: $(VENV)/.installed-test  ## run the test suite
	$(BIN)/python -m pytest -n auto --dist loadfile -m "not alone"
	$(BIN)/python -m pytest -m alone

check: test lint types imports  ## what CI runs

lint: $(VENV)/.installed-test  ## style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-test  ## types; strict in modelscope_app.api
	$(BIN)/mypy

imports: $(VENV)/.installed-test  ## who may import whom
	$(BIN)/lint-imports

weights: $(VENV)/.installed-test  ## fetch the real pretrained weights that tests/real uses, once
	$(BIN)/python tests/real/weights.py

test-real: weights  ## only the tests on real pretrained weights
	$(BIN)/python -m pytest -m real

bench: weights  ## every benchmark; one JSON line per figure
	$(BIN)/python bench/inspect.py
	$(BIN)/python bench/load.py
	$(BIN)/python bench/jobs.py
	$(BIN)/python bench/tui.py
	$(BIN)/python bench/table.py
	$(BIN)/python bench/probe_statistics.py
	$(BIN)/python bench/probes.py
	$(BIN)/python bench/influence_scale.py

oracles:  ## ask the independent oracles again, in an environment of their own, and rewrite their answers
	$(PYTHON) -m venv .venv-oracles
	.venv-oracles/bin/python -m pip install --quiet torch==2.13.0
	.venv-oracles/bin/python -m pip install --quiet numpy scipy safetensors scikit-learn concept-erasure
	.venv-oracles/bin/python -m pip install --quiet --constraint constraints.txt transformers accelerate einops opt_einsum
	.venv-oracles/bin/python -m pip install --quiet --no-deps kronfluence==1.0.1 einconv  # which asks for torchvision and never imports it
	.venv-oracles/bin/python tests/oracles/ask_scipy.py
	.venv-oracles/bin/python tests/oracles/ask_scikit_learn.py
	.venv-oracles/bin/python tests/oracles/ask_scikit_learn_metrics.py
	.venv-oracles/bin/python tests/oracles/ask_kronfluence.py

wheel: $(VENV)/.installed-test  ## build the wheel and try it in an empty environment
	$(BIN)/python tests/packaging/try_wheel.py

clean:  ## remove what make made
	rm -rf $(VENV) .venv-oracles demo dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	$(BIN)/python -m compileall -q modelscope_app plugins  # as pip does for a package that is not editable
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group test
	@touch $@
