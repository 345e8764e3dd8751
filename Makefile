# `make help` lists the commands. Everything runs offline, with no key.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
SCRIPTS := $(sort $(wildcard examples/0*.py))
LESSONS := run-01 to run-06, run-streaming, run-token-limits, run-asyncio-client, run-answers, run-failover, run-batch-job, run-many-processes
READY := $(VENV)/installed
BENCH := .venv-bench
BENCH_BIN := $(BENCH)/$(notdir $(BIN))
SDKS := .venv-sdks
SDKS_BIN := $(SDKS)/$(notdir $(BIN))
MANY := .venv-many-processes
MANY_BIN := $(MANY)/$(notdir $(BIN))
CLIENTS := .venv-frameworks
CLIENT_REQUIREMENTS := $(wildcard tests/frameworks/requirements-*.txt)
CLIENTS_READY := $(CLIENT_REQUIREMENTS:tests/frameworks/requirements-%.txt=$(CLIENTS)/%/installed) \
  $(CLIENTS)/javascript/installed

.DEFAULT_GOAL := help
.PHONY: help run-all run-failures run-many-processes simulate check check-program reset workshop test test-shared soak bench bench-sdks check-frameworks clean

help:
	@echo "make run-all        run the six lessons, in order"
	@echo "make run-02         run one lesson (run-01 to run-06, run-streaming, run-token-limits, ...)"
	@echo "                    FAULTS=503,503 injects failures; ARGS=--trace draws a timeline"
	@echo "make run-failures   run the lessons with the most instructive faults (half a minute)"
	@echo "make run-many-processes  run four processes that share their limits over Redis (half a minute)"
	@echo "make simulate       draw what retries, jitter, budgets and limits do to a service"
	@echo "make check          show your progress in the exercises; N=1 checks one, rule by rule"
	@echo "make reset N=1      start an exercise again; your attempt is kept beside it"
	@echo "make check-program CMD='python app.py'  check how your own program handles failures"
	@echo "make workshop N=2   walk through lesson 2 in the terminal: predict, then see"
	@echo "make test           run the tests"
	@echo "make test-shared    test the shared limiters with real processes and a real server"
	@echo "make soak           run thousands of calls with every fault, and all clients of the check (seven minutes)"
	@echo "make bench          compare the speed of the helpers with other libraries (five minutes)"
	@echo "make bench-sdks     check the recipes and the errors of eleven libraries, against the mock server"
	@echo "make check-frameworks  check other clients and frameworks, and write lib/frameworks.md (half an hour)"
	@echo "make clean          remove the virtual environments and caches"

run-all: $(READY)
	@for script in $(SCRIPTS); do \
	  $(BIN)/python "$$script" $(ARGS) || \
	    { code=$$?; [ $$code != 141 ] || exit 0; echo "make run-all: $$script failed" >&2; exit $$code; }; \
	  export MISTRAL_NO_NOTICE=1; \
	done

run-failures: $(READY)
	@MISTRAL_NO_NOTICE=1 $(BIN)/python examples/failure_scenarios.py $(ARGS)

run-many-processes: $(MANY)/installed
	@$(MANY_BIN)/python examples/many_processes/fleet.py $(ARGS)

# Matches run-2, run-02, run-streaming, run-token-limits and so on.
run-%: $(READY)
	@$(if $(FAULT)$(ARG),echo "FAULT and ARG are not known here: write FAULTS=503 and ARGS=--trace." >&2; exit 2)
	@name=$$(echo "$*" | tr - _); \
	script=$$(ls examples/$${name}_*.py examples/0$${name}_*.py examples/$$name.py 2>/dev/null | head -n 1); \
	[ -n "$$script" ] || { echo "There is no lesson $*: $(LESSONS)." >&2; exit 1; }; \
	$(BIN)/python "$$script" $(if $(FAULTS),--faults '$(FAULTS)') $(ARGS)

# check.py exits with 1 if a rule does not hold. The target succeeds all the same: an exercise that
# is not finished is no reason for make to add an error line of its own.
check: $(READY)
	@$(BIN)/python examples/exercises/check.py $(N) $(ARGS) || { code=$$?; [ $$code = 1 ] || exit $$code; }

reset: $(READY)
	@$(BIN)/python examples/exercises/reset.py $(N)

# A rule that fails is an error here, so that a build can depend on it.
check-program: $(READY)
	@$(if $(CMD),,echo "Name your program: make check-program CMD='python app.py'" >&2; exit 2)
	@$(BIN)/python -m lib.resilience_check $(ARGS) -- $(CMD)

workshop: $(READY)
	@$(BIN)/python examples/support/workshop.py $(N)

test: $(READY)
	@$(BIN)/python -m pytest $(ARGS)

test-shared: $(MANY)/installed
	@$(MANY_BIN)/python -m pytest tests/shared $(ARGS)

simulate: $(READY)
	@$(BIN)/python examples/simulations $(ARGS)

soak: $(READY) $(MANY)/installed
	@SOAK_CALLS=5000 $(BIN)/python -m pytest -v tests/test_soak.py tests/test_exercises.py tests/test_resilience_check.py tests/test_simulations.py tests/test_transport.py -k "Soak or Fuzz or breaks_no_other or solution_is_accepted or ResilienceRules or draws_all"
	@SOAK_CALLS=5000 $(MANY_BIN)/python -m pytest -v tests/shared -k soak

bench: $(BENCH)/installed
	@PYTHONPATH=. $(BENCH_BIN)/python tests/benchmarks/bench.py

bench-sdks: $(SDKS)/installed
	@PYTHONPATH=. $(SDKS_BIN)/python -m pytest -c tests/benchmarks/sdks/pytest.ini tests/benchmarks/sdks $(ARGS)

# NAMES="'openai' 'litellm Router'" checks these and keeps the verdicts on the others.
check-frameworks: $(READY) $(CLIENTS_READY)
	@$(BIN)/python tests/frameworks $(NAMES)

clean:
	rm -rf $(VENV) $(BENCH) $(SDKS) $(MANY) $(CLIENTS) .pytest_cache .mypy_cache .ruff_cache
	find lib examples tests -name __pycache__ -prune -exec rm -rf {} +

# This file is written last, so that an interrupted installation is started again.
$(READY): requirements.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("Python 3.10 or newer is needed; name yours: make PYTHON=python3.12 ...")'
	@echo "First run: creating $(VENV) and installing four packages..." >&2
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(BENCH)/installed: tests/benchmarks/requirements.txt
	@$(PYTHON) -m venv $(BENCH)
	@$(BENCH_BIN)/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

$(SDKS)/installed: tests/benchmarks/sdks/requirements.txt
	@echo "First run: creating $(SDKS) and installing the SDKs (a few minutes)..." >&2
	@$(PYTHON) -m venv $(SDKS)
	@$(SDKS_BIN)/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

$(MANY)/installed: examples/many_processes/requirements.txt requirements.txt
	@echo "First run: creating $(MANY) and installing a Redis client and server..." >&2
	@$(PYTHON) -m venv $(MANY)
	@$(MANY_BIN)/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

$(CLIENTS)/javascript/installed: tests/frameworks/package.json tests/frameworks/adapters/javascript.mjs
	@mkdir -p $(@D)
	@cp $^ $(@D)
	@npm install --prefix $(@D) --no-package-lock --no-audit --no-fund --silent
	@touch $@

$(CLIENTS)/%/installed: tests/frameworks/requirements-%.txt
	@$(PYTHON) -m venv $(@D)
	@$(@D)/$(notdir $(BIN))/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@
