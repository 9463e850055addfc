# Every target sets up what it needs. `make` alone prints this list.

PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
STAMP  := $(VENV)/.installed
BENCH  := $(VENV)/.installed-bench
FUZZ   := $(VENV)/.installed-fuzz
ORACLE := .venv-mergekit/.installed

# -qq: pip prints nothing but errors. Every install is held to constraints.txt, and so is the
# environment that pip makes for the build (by the first variable before pip 25.3, by the second
# from then on).
PIP_INSTALL := PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt \
               $(PY) -m pip install -qq --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test test-all check bench bench-methods fuzz format clean

help: ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' Makefile

demo: $(STAMP) ## merge two real models, compare the result with both
	@$(PY) -m demo

test: $(STAMP) $(ORACLE) ## the tests, but for the slow ones
	@$(PY) -m pytest -q --durations=5 -m "not slow" $(TEST_ARGS)

test-all: $(STAMP) $(ORACLE) ## all tests
	@$(PY) -m pytest -q --durations=10 $(TEST_ARGS)

check: $(STAMP) ## ruff (lint, format) and mypy --strict
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy --strict

bench: $(BENCH) ## the benchmarks; options in BENCH_ARGS="…"
	@$(PY) -m benchmarks.bench $(BENCH_ARGS)

bench-methods: $(BENCH) ## likewise, of the merge methods; options in BENCH_ARGS="…"
	@$(PY) -m benchmarks.methods $(BENCH_ARGS)

fuzz: $(FUZZ) ## the coverage-guided fuzzer, a minute a target; options in FUZZ_ARGS="…"
	@$(PY) -m tests.fuzzing $(or $(FUZZ_ARGS),all -max_total_time=60)

format: $(STAMP) ## let ruff rewrite what `make check` would refuse
	@$(PY) -m ruff check --fix .
	@$(PY) -m ruff format .

clean: ## remove what make made: environments, models, caches; not benchmark results
	rm -rf $(VENV) .venv-mergekit build dist demo/data demo/output .hypothesis .mypy_cache .pytest_cache .ruff_cache
	rm -f streammerge/native/kernels.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps are younger than what they were installed from, or the install is repeated: into the
# same venv where its interpreter still runs, else into a new one.
# torch stands here as well as in constraints.txt, so that no edit to that file can unpin it.
$(STAMP): pyproject.toml constraints.txt hatch_build.py streammerge/native/kernels.c
	@echo "setting up $(VENV), as it is missing or stale" >&2
	@$(PY) -c "" 2>/dev/null || $(PYTHON) -m venv --clear $(VENV)
	@$(PIP_INSTALL) torch==2.13.0 -e '.[dev,demo]'
	@touch $@

$(BENCH): $(STAMP)
	@$(PIP_INSTALL) torch==2.13.0 -e '.[bench]'
	@touch $@

$(FUZZ): $(STAMP)
	@$(PIP_INSTALL) torch==2.13.0 -e '.[dev,fuzz]'
	@touch $@

# mergekit, which tests/test_oracle_mergekit.py compares with; where it cannot be had, that is skipped.
$(ORACLE): benchmarks/peers.py | $(STAMP)
	-@$(PY) -m benchmarks.peers install-mergekit
