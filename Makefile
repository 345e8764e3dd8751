# `make help` says what there is. Everything runs offline, with no key.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
SCRIPTS := $(sort $(wildcard examples/0*.py))
READY := $(VENV)/installed
BENCH := .venv-bench
BENCH_BIN := $(BENCH)/$(notdir $(BIN))

.DEFAULT_GOAL := help
.PHONY: help run-all run-failures check test soak bench clean

help:
	@echo "make run-all      run the six examples, one after the other"
	@echo "make run-01       run one of them (to run-06);  ARGS='--faults 503' gives it other weather"
	@echo "make run-failures    run the examples in bad weather (half a minute)"
	@echo "make check N=1    check your work on exercise 1 (to 4), rule by rule"
	@echo "make test         run the tests"
	@echo "make soak         16 threads, thousands of calls, every fault there is (half a minute)"
	@echo "make bench        time the helpers beside what you might pick instead (two minutes)"
	@echo "make clean        remove the virtual environments and caches"

run-all: $(READY)
	@for script in $(SCRIPTS); do \
	  $(BIN)/python "$$script" $(ARGS) || \
	    { code=$$?; [ $$code = 141 ] || echo "make run-all: $$script failed" >&2; exit $$code; }; \
	done

run-failures: $(READY)
	@$(BIN)/python examples/failure_scenarios.py $(ARGS)

run-%: $(READY)
	@test -e examples/$*_*.py || { echo "There is no example $*: run-01 to run-06." >&2; exit 1; }
	@$(BIN)/python examples/$*_*.py $(ARGS)

check: $(READY)
	@$(BIN)/python examples/exercises/check.py "$(N)" $(ARGS)

test: $(READY)
	@$(BIN)/python -m pytest $(ARGS)

soak: $(READY)
	@SOAK_CALLS=5000 $(BIN)/python -m pytest -v tests/test_soak.py

bench: $(BENCH)/installed
	@PYTHONPATH=. $(BENCH_BIN)/python tests/benchmarks/bench.py

clean:
	rm -rf $(VENV) $(BENCH) .pytest_cache .mypy_cache .ruff_cache
	find lib examples tests -name __pycache__ -prune -exec rm -rf {} +

# Made last, so that an installation that was cut off is begun again.
$(READY): requirements.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("Python 3.10 or newer is needed; name yours: make PYTHON=python3.12 ...")'
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(BENCH)/installed: tests/benchmarks/requirements.txt
	@$(PYTHON) -m venv $(BENCH)
	@$(BENCH_BIN)/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@
