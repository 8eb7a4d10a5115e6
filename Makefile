# make setup   environment with everything pinned, in .venv
# make demo    made-up films → tune → leaderboard → registered model → one prediction
# make test    set-up and the fast tests        make test-slow, -real, -long, -bench   the rest of what CI runs
# make fuzz    mutated films, names, tables, settings, bundles and commands; FUZZ_SECONDS=3600 FUZZ_SEED=7 for longer
# make chaos   a study whose workers and stores are killed at random; CHAOS="--seed 7 --minutes 60 --trials 2000"
# make check   ruff and mypy --strict           make tune, make ui, make clean, make lock
# make up      the tracking service in Docker   make down, make status; make test-compose tests it on a Docker engine
# make bench   side by side with other tools    make bench-long, bench-gpu, bench-quality   see benchmarks/README.md
.PHONY: setup demo test test-slow test-real test-long test-bench fuzz chaos test-compose check tune ui up down status clean lock bench bench-long \
  bench-gpu bench-quality
.DEFAULT_GOAL := help

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
# uv itself comes from PyPI: an uv on the path, else one of our own in .tools (no virtualenv package needed).
UV = $(shell command -v uv 2>/dev/null || echo $(CURDIR)/.tools/bin/uv)
# Two test processes, a thread each: more only fight for the cores.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -rsfE
PYTEST_ARGS ?=
# Of tune in the demo.
DEMO_ARGS ?=
# Of the whole fuzzing in two processes, and the seed that decides every case.
FUZZ_SECONDS ?= 200
FUZZ_SEED ?= 0
CHAOS ?=
TRIALS ?= 20
STUDY ?= reference
# Benchmarks: an environment of their own, as the product does without the peers. Raw samples go beside the docs.
BENCH := .venv-bench/bin/python
RESULTS ?= docs/performance
# Folder of real films, for bench-quality and bench-long; phantoms without it.
DATA ?=
FILMS = $(if $(DATA),--data '$(DATA)')
# What runs `make bench-gpu`: a Python with torch, torchvision, peft, numpy, pillow and scikit-learn is enough.
GPU_PYTHON ?= $(PYTHON)

help:
	@sed -n '1,8p' Makefile

setup: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	@command -v uv >/dev/null 2>&1 || test -x .tools/bin/uv || sh scripts/get-uv.sh $(PYTHON) .tools
	@test -x $(BIN)/python || $(UV) venv --quiet --python $(PYTHON) .venv
	$(UV) pip install --quiet --compile-bytecode --python $(BIN)/python --require-hashes -r requirements.lock
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $(STAMP)

demo: setup
	@sh scripts/demo.sh $(DEMO_ARGS)

test: setup
	$(PYTEST) -n 2 --dist loadfile -m "not (slow or long or real_data or compose or bench)" $(PYTEST_ARGS) tests

test-slow: setup
	$(PYTEST) -n 2 --dist loadfile -m "slow and not (real_data or compose)" $(PYTEST_ARGS) tests

test-long test-bench: setup
	$(PYTEST) -n 2 --dist worksteal -m $(@:test-%=%) $(PYTEST_ARGS) tests

test-real: setup
	$(PYTEST) -m real_data tests

test-compose: setup
	$(PYTEST) --timeout 900 -o cache_dir=.pytest_cache/compose $(PYTEST_ARGS) tests/test_compose_*.py

fuzz: setup
	FUZZ_SECONDS=$(FUZZ_SECONDS) FUZZ_SEED=$(FUZZ_SEED) $(PYTEST) -n 2 --timeout $$(($(FUZZ_SECONDS) + 900)) \
	  $(PYTEST_ARGS) tests/fuzz

chaos: setup
	PYTHONPATH=tests $(BIN)/python -m chaos.run $(CHAOS)

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

tune: setup
	$(BIN)/xray-opt tune --study $(STUDY) --trials $(TRIALS)

ui: setup
	$(BIN)/xray-opt ui

up: setup
	$(BIN)/xray-opt up

down: setup
	$(BIN)/xray-opt down

status: setup
	$(BIN)/xray-opt status

bench: .venv-bench/.installed
	$(BENCH) benchmarks/startup.py --out $(RESULTS)/startup.json
	$(BENCH) benchmarks/overhead.py --out $(RESULTS)/overhead.json
	$(BENCH) benchmarks/ceiling.py --out $(RESULTS)/ceiling.json
	$(BENCH) benchmarks/peers.py --batch-norm train --out $(RESULTS)/peers-train.json
	$(BENCH) benchmarks/peers.py --batch-norm frozen --scheduler-trials 0 --out $(RESULTS)/peers-frozen.json

bench-long: .venv-bench/.installed
	$(BENCH) benchmarks/study.py --rounds 3 --out $(RESULTS)/study.json
	$(BENCH) benchmarks/search.py $(FILMS) --record $(RESULTS)/search-table.json --out $(RESULTS)/search.json

bench-quality: setup
	$(BIN)/python benchmarks/quality.py $(FILMS) --out $(RESULTS)/quality.json

bench-gpu:
	@mkdir -p $(RESULTS)
	$(GPU_PYTHON) benchmarks/step.py --sizes 384/16 384/64 --precision bf16 --rounds 20 --ways eager graphs compile both \
	  --json $(RESULTS)/step-gpu.json
	$(GPU_PYTHON) benchmarks/ceiling.py --device cuda --sizes 384/16 384/64 --films 1024 --batch-norm frozen \
	  --plain-workers 16 --out $(RESULTS)/ceiling-gpu.json
	$(GPU_PYTHON) benchmarks/memory.py --device cuda --out $(RESULTS)/memory-gpu.json
	$(GPU_PYTHON) benchmarks/profile_step.py --device cuda --rounds 10 --ways eager graphs --out $(RESULTS)/profile-gpu.json
	$(GPU_PYTHON) benchmarks/per_gpu.py --device cuda --batch-norm frozen --graphs --rounds 1 --out $(RESULTS)/per-gpu.json
	$(GPU_PYTHON) benchmarks/goals.py --results $(RESULTS)

.venv-bench/.installed: requirements.lock benchmarks/requirements.txt pyproject.toml
	@command -v uv >/dev/null 2>&1 || test -x .tools/bin/uv || sh scripts/get-uv.sh $(PYTHON) .tools
	@test -x $(BENCH) || $(UV) venv --quiet --python $(PYTHON) .venv-bench
	$(UV) pip install --quiet --compile-bytecode --python $(BENCH) --require-hashes -r requirements.lock
	$(UV) pip install --quiet --python $(BENCH) -r benchmarks/requirements.txt
	$(UV) pip install --quiet --python $(BENCH) --no-deps --editable .
	@touch $@

lock:
	$(UV) pip compile pyproject.toml --group dev --extra dicom --extra download --extra onnx --extra postgres --universal --python-version 3.11 \
	  --generate-hashes --no-emit-index-url --no-header --quiet -o requirements.lock
	$(UV) pip compile pyproject.toml --extra dicom --extra download --extra grpc --extra postgres -c requirements.lock --universal --python-version 3.11 \
	  --generate-hashes --no-emit-index-url --no-header --quiet -o docker/worker/requirements.lock
	$(UV) pip compile docker/service/requirements.in -c requirements.lock --universal --python-version 3.11 \
	  --generate-hashes --no-emit-index-url --no-header --quiet -o docker/service/requirements.lock
	$(UV) pip compile docker/installer.in --universal --python-version 3.11 \
	  --generate-hashes --no-emit-index-url --no-header --quiet -o docker/installer.lock
	$(UV) pip compile docker/s3/requirements.in --universal --python-version 3.11 \
	  --generate-hashes --no-emit-index-url --no-header --quiet -o docker/s3/requirements.lock

clean:
	rm -rf .venv .venv-bench .tools .pytest_cache .mypy_cache .ruff_cache build dist
