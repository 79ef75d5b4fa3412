# make demo   a fleet is joined, attacked and updated on this machine (DEVICES=n for another number)
# make test   lint, types, the whole suite on the native and the pure backend, and what a pure-Python install is for
# make bench  every benchmark; results go to benchmarks/results/
# make fuzz-verify  100,000 cases about which every way to verify must agree (CASES=n, SEED=n)
# make simulate     fleets under faults and attacks in simulated time (RUNS=n seeds, the first one SEED=n)
# make sanitize     the vectors and verify_many with AddressSanitizer and UndefinedBehaviorSanitizer
# make faults       servers, brokers and Redis are killed, stopped, cut off and restored under load (REPEAT=n times each)
# Each makes the environment it needs; PYTHON names another interpreter (3.11 or newer).

PYTHON ?= python3
VENV := .venv
PURE := .venv-pure
SANITIZED := .venv-sanitized
SOURCES := pyproject.toml CMakeLists.txt $(shell find src -type f -not -name '*.pyc')
RESULTS := benchmarks/results
MODULES := receive durable added_delay scale store fleet
PIP_INSTALL := install --quiet --disable-pip-version-check

export DEVICES

.PHONY: help demo test lint docs test-native test-python test-pure simulate faults fuzz-verify sanitize bench \
	bench-short clean

help:
	@sed -n 's/^# //p' $(firstword $(MAKEFILE_LIST))

# The demo takes the extension if this machine can compile it and goes on without it if not.
$(VENV)/demo.stamp: $(SOURCES)
	@echo "Setting up $(VENV): this takes a minute"
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/python -m pip $(PIP_INSTALL) --upgrade pip
	@$(VENV)/bin/python -m pip $(PIP_INSTALL) --no-cache-dir '.[demo]'
	@touch $@

demo: $(VENV)/demo.stamp
	@$(VENV)/bin/srup demo

$(VENV)/test.stamp: $(SOURCES)
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip $(PIP_INSTALL) --upgrade pip
	SRUP_REQUIRE_NATIVE=1 $(VENV)/bin/python -m pip $(PIP_INSTALL) --no-cache-dir '.[all]' --group test --group lint
	touch $@ $(VENV)/demo.stamp

# A machine without a compiler, as far as the build can tell; a cached wheel must not step in.
$(PURE)/test.stamp: $(SOURCES)
	test -x $(PURE)/bin/python || $(PYTHON) -m venv $(PURE)
	$(PURE)/bin/python -m pip $(PIP_INSTALL) --upgrade pip
	CC=/bin/false $(PURE)/bin/python -m pip $(PIP_INSTALL) --no-cache-dir '.[all]' --group test
	touch $@

lint: $(VENV)/test.stamp
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy

test-native: $(VENV)/test.stamp
	SRUP_REQUIRE_NATIVE=1 SRUP_BACKEND=native $(VENV)/bin/pytest

test-python: $(VENV)/test.stamp
	SRUP_BACKEND=python $(VENV)/bin/pytest -m "not slow and not faults"

# What runs here runs on the pure backend above, too; here it is what was installed without a compiler.
PURE_TESTS := $(addprefix tests/test_,$(addsuffix .py,vectors codec verify_many wycheproof keys seal messages exports \
	attacks_codec agent agent_durable store_contract store_sqlite cli end_to_end readme))

test-pure: $(PURE)/test.stamp
	$(PURE)/bin/pytest -m "not slow and not faults" $(PURE_TESTS)
	DEVICES=4 $(PURE)/bin/srup demo

CASES ?= 100000
fuzz-verify: $(VENV)/test.stamp
	SRUP_BACKEND=native $(VENV)/bin/python tests/fuzz_verify.py --cases $(CASES) $(if $(SEED),--seed $(SEED))

RUNS ?= 1000
simulate: $(VENV)/test.stamp
	$(VENV)/bin/srup simulate --runs $(RUNS) $(if $(SEED),--seed $(SEED))

# As root the full disk is a file system of its own; without, that test is skipped.
REPEAT ?= 5
faults: $(VENV)/test.stamp
	REPEAT=$(REPEAT) $(VENV)/bin/pytest tests/test_faults.py -m "" -s -p no:logging

$(SANITIZED)/test.stamp: $(SOURCES)
	test -x $(SANITIZED)/bin/python || $(PYTHON) -m venv $(SANITIZED)
	$(SANITIZED)/bin/python -m pip $(PIP_INSTALL) --upgrade pip
	SRUP_REQUIRE_NATIVE=1 $(SANITIZED)/bin/python -m pip $(PIP_INSTALL) --no-cache-dir '.[mqtt]' --group test \
		--config-settings=cmake.define.SRUP_SANITIZE=ON
	touch $@

# Python is not instrumented, so the runtimes are loaded before it, and what it keeps until its end is no leak. Left out:
# tests of memory and time, which would measure the sanitizer.
sanitize: $(SANITIZED)/test.stamp
	LD_PRELOAD="$$($(CC) -print-file-name=libasan.so) $$($(CC) -print-file-name=libubsan.so)" \
	ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 SRUP_BACKEND=native \
	$(SANITIZED)/bin/pytest -p no:cacheprovider --timeout=600 -k "not leave_nothing and not great_many and not ctrl_c" \
		tests/test_vectors.py tests/test_wycheproof.py tests/test_verify_many.py

test: lint test-native test-python test-pure

# Only what the benchmarks add to the tests; a change of the sources alone does not install it again.
$(VENV)/bench.stamp: $(VENV)/test.stamp pyproject.toml
	$(VENV)/bin/python -m pip $(PIP_INSTALL) --group bench
	touch $@

bench: $(VENV)/bench.stamp
	$(VENV)/bin/python -m pytest benchmarks -q --timeout=0 --benchmark-only --results=$(RESULTS)
	for name in $(MODULES); do $(VENV)/bin/python -m benchmarks.$$name --json $(RESULTS)/$$name.json || exit 1; done
	$(VENV)/bin/python -m benchmarks.plot $(RESULTS)

bench-short: $(VENV)/bench.stamp
	$(VENV)/bin/python -m pytest benchmarks -q --benchmark-only --short --benchmark-max-time=0.1 \
		--benchmark-min-rounds=3
	for name in $(MODULES); do $(VENV)/bin/python -m benchmarks.$$name --short || exit 1; done

docs: $(VENV)/test.stamp
	$(VENV)/bin/python docs/states.py
	$(VENV)/bin/python docs/metrics.py

clean:
	rm -rf $(VENV) $(PURE) $(SANITIZED) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
