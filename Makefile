# The two commands of the README, `make reproduce` and `make test`, and three small ones. Everything they make stays
# in .venv/, data/ and results/.

# tried in this order; another one: make PYTHON=python3.12 reproduce
PYTHON ?= python3.11 python3
PY := .venv/bin/python
MAKEFLAGS += --no-print-directory
# the models are small: a second thread costs more than it gives, and one thread adds in the same order everywhere
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help reproduce test lint corpus clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' Makefile

reproduce: .venv/installed corpus ## install, fetch the speech, run every notebook that is out of date: results/default
	@echo "== notebooks, profile default: each line says how long it takes; stopped halfway, the same command resumes"
	@$(PY) -m fedexit run --profile default
	@$(PY) -m fedexit.runner.readme

test: .venv/installed lint ## what CI runs: lint, every notebook with the small parameters, tests
	@if $(MAKE) corpus; then \
	  echo "== notebooks, profile smoke: each line says how long it takes" && $(PY) -m fedexit run --profile smoke; \
	elif test -n "$$CI"; then exit 1; \
	else \
	  echo "== no corpus: the notebooks are NOT run and the tests that need it skip"; \
	fi
	@echo "== tests, two at a time: about 5 minutes"
	@$(PY) -m pytest -n 2 --dist worksteal

lint: .venv/installed ## check style and formatting of modules, tests and notebooks
	@echo "== lint: some seconds"
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .

corpus: .venv/installed ## fetch the speech (queen) unless it is there
	@test -f "$${FEDEXIT_DATA:-data}/cache/queen/manifest.csv" || { \
	  echo "== speech: fetching 35 MB and decoding them, about a minute" && $(PY) -m fedexit data fetch queen; \
	} || { \
	  echo "make: no speech; by hand: .venv/bin/fedexit data fetch queen --from FILE (data/README.md), then make again"; \
	  exit 1; \
	} >&2

clean: ## remove checkpoints, smoke and interactive results, tool caches (reproduce then runs all); never audio
	rm -rf results/.state results/smoke results/interactive .pytest_cache .ruff_cache .hypothesis
	find fedexit tests notebooks -name __pycache__ -prune -exec rm -rf {} +

.venv/installed: pyproject.toml requirements.lock
	@echo "== environment: installing the pinned packages into .venv, several GB; 3 to 15 minutes the first time"
	@test -x $(PY) || { \
	  for name in $(PYTHON); do \
	    if $$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found=$$name; break; fi; \
	  done; \
	  test -n "$$found" || { echo "make: no Python 3.11 or newer ($(PYTHON)); install it, or name it: make PYTHON=..."; exit 1; }; \
	  df -Pk . | awk 'NR == 2 {exit $$4 < 8000000}' || { echo "make: less than 8 GB of disk free; make room first"; exit 1; }; \
	  $$found -m venv .venv || { rm -rf .venv; echo "make: $$found cannot make a venv; install its venv module"; exit 1; }; \
	} >&2
	@$(PY) -m pip install --disable-pip-version-check -c requirements.lock -e ".[dev,lora]" || { \
	  echo "make: installation failed; check the network, and the disk (8 GB), then run the same command again"; \
	  exit 1; \
	} >&2
	@touch $@
