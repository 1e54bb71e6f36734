# Every target works alone from a fresh clone: it first makes .venv, which needs only Python 3.11 or newer.
# `make test JOBS=4`, `make demo ARGS="--seed 3"` and `make PYTHON=/path/to/python3.12 test` work too.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

BIN := .venv/bin
READY := .venv/.ready
ARGS ?=
JOBS ?= 2
PYTHON ?=
# One thread a process: the tests compare bits, and JOBS processes share the cores.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1

.PHONY: help demo test nightly kernel lint types bench docs picture clean

help: ## show this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):[^#]*## /\1\t/' | expand -t 12

$(READY): pyproject.toml constraints.txt
	@python="$(PYTHON)"; \
	if [ -z "$$python" ]; then \
	  for name in python3 python3.13 python3.12 python3.11; do \
	    if "$$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python=$$name; break; fi; \
	  done; \
	fi; \
	if [ -z "$$python" ]; then \
	  echo "foreshock needs Python 3.11 or newer and found none; name yours: make PYTHON=/path/to/python3.11 ..." >&2; \
	  exit 1; \
	fi; \
	if [ ! -x $(BIN)/pip ]; then \
	  echo "making .venv with $$($$python --version)"; \
	  "$$python" -m venv .venv || { echo "no venv module there; on Debian: apt-get install python3-venv" >&2; exit 1; }; \
	fi
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(READY) ## train three small networks, watch them, find their spikes, write demo-report.html
	$(BIN)/foreshock demo $(ARGS)

test: $(READY) ## the fast tests, in JOBS processes
	$(ONE_THREAD) $(BIN)/python -m pytest -n $(JOBS) $(ARGS)

nightly: $(READY) ## the long reproductions
	$(ONE_THREAD) $(BIN)/python -m pytest -n $(JOBS) -m slow $(ARGS)

kernel: $(READY) ## the Triton kernels' tests, in its interpreter (installs Triton: 290 MB to fetch, 1 GB on disk)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[kernel]'
	$(ONE_THREAD) $(BIN)/python -m pytest tests/numerics/test_kernel.py tests/optim/test_compiled.py $(ARGS)

lint: $(READY) ## ruff
	$(BIN)/python -m ruff check .

types: $(READY) ## mypy, strict
	$(BIN)/python -m mypy

bench: $(READY) ## the measured promises: overhead of watching, detection quality
	for file in $$(grep -lE '^if __name__' benchmarks/*.py); do \
	  echo "== $$file"; PYTHONPATH=benchmarks $(ONE_THREAD) $(BIN)/python "$$file" $(ARGS); done

picture: demo ## photograph the demo's page for the README (needs Chromium)
	chromium --headless --no-sandbox --disable-gpu --hide-scrollbars --window-size=1280,1220 \
	  --virtual-time-budget=8000 --screenshot=docs/images/report.png "file://$(CURDIR)/demo-report.html#run-3" 2>/dev/null

docs: $(READY) ## write the generated pages of docs/ again
	$(BIN)/python docs/generate.py

clean: ## remove .venv and everything built
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis demo-report.html
