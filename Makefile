# make setup   environment with everything pinned, in .venv
# make demo    made-up films → tune → leaderboard → registered model → one prediction
# make test    set-up and the fast tests        make test-slow, make test-real   the rest of what CI runs
# make check   ruff and mypy --strict           make tune, make ui, make clean, make lock
.PHONY: setup demo test test-slow test-real check tune ui clean lock
.DEFAULT_GOAL := help

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
# uv itself comes from PyPI: an uv on the path, else one of our own in .tools (no virtualenv package needed).
UV = $(shell command -v uv 2>/dev/null || echo $(CURDIR)/.tools/bin/uv)
# Two test processes, a thread each: more only fight for the cores.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -rsfE
TRIALS ?= 20
STUDY ?= reference

help:
	@sed -n '1,4p' Makefile

setup: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	@command -v uv >/dev/null 2>&1 || test -x .tools/bin/uv || sh scripts/get-uv.sh $(PYTHON) .tools
	@test -x $(BIN)/python || $(UV) venv --quiet --python $(PYTHON) .venv
	$(UV) pip install --quiet --python $(BIN)/python --require-hashes -r requirements.lock
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $(STAMP)

demo: setup
	@sh scripts/demo.sh

test: setup
	$(PYTEST) -n 2 --dist loadgroup -m "not slow and not real_data" tests

test-slow: setup
	$(PYTEST) -n 2 --dist loadgroup -m "slow and not real_data" tests

test-real: setup
	$(PYTEST) -m real_data tests

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

tune: setup
	$(BIN)/xray-opt tune --study $(STUDY) --trials $(TRIALS)

ui: setup
	$(BIN)/xray-opt ui

lock:
	$(UV) pip compile pyproject.toml --group dev --extra dicom --extra download --extra postgres --universal --python-version 3.11 \
	  --generate-hashes --no-emit-index-url --no-header --quiet -o requirements.lock

clean:
	rm -rf .venv .tools .pytest_cache .mypy_cache .ruff_cache build dist
