# make demo   a fleet is joined, attacked and updated on this machine (DEVICES=n for another number)
# make test   lint, types and the whole suite: native backend, pure backend, pure-Python install
# make bench  every benchmark; results go to benchmarks/results/
# Each makes the environment it needs; PYTHON names another interpreter (3.11 or newer).

PYTHON ?= python3
VENV := .venv
PURE := .venv-pure
SOURCES := pyproject.toml CMakeLists.txt $(shell find src -type f -not -name '*.pyc')
PIP_INSTALL := install --quiet --disable-pip-version-check

export DEVICES

.PHONY: help demo test lint test-native test-python test-pure bench bench-short clean

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
	SRUP_BACKEND=python $(VENV)/bin/pytest

test-pure: $(PURE)/test.stamp
	$(PURE)/bin/pytest
	DEVICES=4 $(PURE)/bin/srup demo

test: lint test-native test-python test-pure

bench: $(VENV)/test.stamp
	mkdir -p benchmarks/results
	$(VENV)/bin/pytest benchmarks --benchmark-only --benchmark-json=benchmarks/results/latest.json

bench-short: $(VENV)/test.stamp
	$(VENV)/bin/pytest benchmarks --benchmark-only --benchmark-max-time=0.1 --benchmark-min-rounds=3

clean:
	rm -rf $(VENV) $(PURE) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
