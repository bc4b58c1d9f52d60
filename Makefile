# The two commands of the README, `make reproduce` and `make test`, and some small ones. Everything they make stays
# in .venv/, .venv-book/, build/, data/ and results/.

# Interpreters, tried in this order. Choose another one with: make PYTHON=/path/to/python3.12 reproduce
# With HASHES=1 every package must have a hash of requirements.hashes: make HASHES=1 reproduce
PYTHON ?= python3.11 python3.12 python3.13 python3
PY := .venv/bin/python
MAKEFLAGS += --no-print-directory
# The models are small: a second thread slows them down, and one thread adds numbers in the same order on every machine.
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help reproduce test lint corpus docs book book-check audit hashes sbom clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' Makefile

reproduce: .venv/installed corpus ## install, fetch the speech and run every notebook that is out of date (results/)
	@echo "== notebooks, profile default, two at a time: each line gives the expected time; if interrupted, run it again"
	@$(PY) -m fedexit run --jobs 2

test: .venv/installed lint ## run what CI runs: lint, every notebook with small parameters, tests
	@if $(MAKE) corpus; then \
	  echo "== notebooks, profile smoke, two at a time: each line gives the expected time" && \
	  $(PY) -m fedexit run --profile smoke --jobs 2 && \
	  echo "== spot checks: each commit trains other published models again for two rounds" && \
	  $(PY) -m fedexit cells check --cells 2 --turn $$(git rev-list --count HEAD 2>/dev/null || echo 0); \
	elif test -n "$$CI"; then exit 1; \
	else \
	  echo "== no corpus: the notebooks do NOT run, and the tests that need the corpus are skipped"; \
	fi
	@echo "== tests, two at a time: a few minutes"
	@$(PY) -m pytest -n 2 --dist worksteal

lint: .venv/installed ## check style, format, imports between folders, and types
	@echo "== lint: seconds; half a minute the first time"
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(dir $(PY))lint-imports --no-logo
	@$(PY) -m mypy

corpus: .venv/installed ## fetch the speech (queen) if it is missing
	@test -f "$${FEDEXIT_DATA:-data}/cache/queen/manifest.csv" || { \
	  echo "== speech: downloading and decoding 35 MB, about a minute" && $(PY) -m fedexit data fetch queen; \
	} || { \
	  echo "make: the speech is missing; download it (data/README.md), run .venv/bin/fedexit data fetch queen --from FILE," \
	    "then make again"; \
	  exit 1; \
	} >&2

docs: .venv/installed ## write docs/api.md from the docstrings
	@$(PY) docs/make_api.py

book: .venv-book/installed ## build a website of the results: build/book/html/index.html
	@echo "== book: half a minute; nothing is run, and PyTorch is not needed"
	@.venv-book/bin/python docs/book/build.py build/book

book-check: book ## open every page of the website in an installed Chromium, without a network
	@echo "== book-check: about a minute"
	@$(call extra,browser) || $(call failed,1)
	@.venv-book/bin/python docs/book/check.py build/book/html

audit: .venv/installed ## compare the installed packages with requirements.hashes, and that file with the package index
	@$(PY) .ci/supply.py audit
	@mkdir -p build && cp requirements.hashes build/requirements.hashes
	@if { $(call compiled,build/requirements.hashes); } 2> build/uv.txt; then \
	  $(PY) .ci/supply.py index build/requirements.hashes; \
	else \
	  echo "audit: the package index was not compared:" && head -n 3 build/uv.txt && ! grep -q "No solution" build/uv.txt; \
	fi

hashes: ## write requirements.hashes again after a change of requirements.lock
	@$(call compiled,requirements.hashes)

sbom: .venv/installed ## list the installed packages with licences, as CycloneDX: build/sbom.json
	@mkdir -p build
	@$(PY) .ci/supply.py sbom build/sbom.json

clean: ## remove checkpoints (not those of the profile full), smoke and interactive results and tool caches
	rm -rf results/.state/default results/.state/smoke results/.state/interactive results/smoke results/interactive
	rm -rf .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis
	find fedexit tests notebooks -name __pycache__ -prune -exec rm -rf {} +

# Make the environment $(1), which needs $(2) GB of disk
define environment
test -x $(1)/bin/python || { \
  for name in $(PYTHON); do \
    if $$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found=$$name; break; fi; \
  done; \
  test -n "$$found" || { \
    echo "make: found no Python 3.11 or newer ($(PYTHON)); install one, or name it: make PYTHON=..."; exit 1; }; \
  df -Pk . | awk 'NR == 2 {exit $$4 < $(2)000000}' || { \
    echo "make: less than $(2) GB of disk space are free; free some, then run make again"; exit 1; }; \
  $$found -m venv $(1) || { rm -rf $(1); echo "make: $$found cannot make a venv; install its venv module"; exit 1; }; \
} >&2
endef
# Install the packages of the extra $(1) into .venv-book, without the package itself
define extra
.venv-book/bin/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["$(1)"], sep="\n")' \
  > .venv-book/$(1).txt && \
.venv-book/bin/python -m pip install -q --disable-pip-version-check -c requirements.lock -r .venv-book/$(1).txt
endef
# Write the pins of requirements.lock with the hashes of all their files, for every system, to $(1)
define compiled
{ test -x .venv-lock/bin/uv || { \
  $(call environment,.venv-lock,1) && \
  .venv-lock/bin/python -m pip install -q --disable-pip-version-check -c requirements.lock uv; }; } && \
.venv-lock/bin/uv pip compile -q --universal --python-version 3.11.5 --no-header --no-annotate --generate-hashes \
  --extra all --extra dev -c requirements.lock -o $(1) pyproject.toml > /dev/null
endef
# Say what to do after a failed installation that needs $(1) GB of disk
define failed
{ \
  echo "make: the installation failed; check the network and the disk space ($(1) GB), then run the same command again"; \
  exit 1; \
} >&2
endef

.venv/installed: pyproject.toml requirements.lock
	@echo "== environment: installing the pinned packages into .venv, several GB; 3 to 15 minutes the first time"
	@$(call environment,.venv,8)
	@if test -n "$(HASHES)"; then \
	  $(PY) -m pip install --disable-pip-version-check --require-hashes -r requirements.hashes && \
	  $(PY) -m pip install --disable-pip-version-check --no-deps --no-build-isolation -e .; \
	else \
	  $(PY) -m pip install --disable-pip-version-check -c requirements.lock -e ".[all,dev]"; \
	fi || $(call failed,8)
	@touch $@

.venv-book/installed: pyproject.toml requirements.lock
	@echo "== environment: installing Sphinx into .venv-book, 0.3 GB; about a minute the first time"
	@$(call environment,.venv-book,1)
	@$(call extra,book) || $(call failed,1)
	@touch $@
