# make demo      join, attack and update a fleet on this machine (DEVICES=n for another number)
# make test      lint, types and every test that needs no process of its own: a few minutes
# make test-all  everything: commands, brokers, Redis, faults, both backends, lowest versions, benchmarks in short form
# make bench     every benchmark; results go to benchmarks/results/, the table of figures into README.md (WITH_LANES=1:
#                with the extra multibuffer)
# make lint      lint, formatting, types and spelling
# make docs      build the documentation's site in build/site, after make pages; a warning is an error
# make pages     write the generated pages of docs/ again: states, metrics, commands, errors
# make faults    kill, stop, cut off and restore servers, brokers and Redis under load (REPEAT=n faults in each test)
# make simulate  fleets and syndications under faults and attacks in simulated time (RUNS=n seeds of each, the first SEED=n)
# make fuzz-verify  100,000 signatures that every way to verify must agree about (CASES=n, SEED=n); ALGORITHM=ecdsa or
#                ed25519 instead of mostly RSA; WITH_LANES=1 with the extra multibuffer
# make sanitize  the native code's tests with AddressSanitizer and UndefinedBehaviorSanitizer; WITH_LANES=1 the same
# make test-lanes  the lanes' tests with the extra multibuffer, 200 MB; test-all does it where the CPU has AVX512-IFMA
# make wheels    the wheels of a release, built for each of PYTHONS, repaired, reproduced and tried; go to dist/
# make emulated  the codec's, keys' and vectors' tests on emulated machines (ARCHITECTURES; as root, on Debian)
# make release-check  whether this commit can be released: version, tag, changelog, then docs, all tests and the wheels
# make clean     remove everything that the above have made
# Each sets up what it needs; PYTHON names another interpreter (3.11 or newer).

PYTHON ?= python3
VENV := .venv
PURE := .venv-pure
LOWEST := .venv-lowest
SANITIZED := .venv-sanitized
LANES := .venv-lanes
SOURCES := pyproject.toml CMakeLists.txt $(shell find src -type f -not -name '*.pyc')
COMMA := ,
PIP_INSTALL := install --quiet --disable-pip-version-check
PARALLEL := -n 2 --dist worksteal
BY_FILE := -n 2 --dist loadfile

# Where the extension can be compiled it must be. Elsewhere the tests run on the pure-Python backend alone.
HEADERS := $(shell $(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("include"))' 2>/dev/null)
CAN_COMPILE := $(shell printf '\043%s\n' 'include <Python.h>' 'include <openssl/evp.h>' \
	'if OPENSSL_VERSION_MAJOR < 3' 'error OpenSSL 3 is needed' 'endif' | $(CC) -E -I$(HEADERS) - >/dev/null 2>&1 && echo 1)
REQUIRE_NATIVE := $(or $(SRUP_REQUIRE_NATIVE),$(CAN_COMPILE))
# An environment is made again for another version of Python.
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')

export DEVICES

# All install into the same environments, and tests use both cores by themselves; so only test-setup does two things at once.
ifndef TOGETHER
.NOTPARALLEL:
endif

.PHONY: help demo test test-all test-rest lint docs pages test-setup test-quick test-contract test-processes test-faults test-backends test-pure \
	test-lanes test-lanes-here test-lowest faults simulate fuzz-verify sanitize wheels emulated bench bench-short release-check \
	clean

help:
	@sed -n '/^$$/q; s/^# //p' $(firstword $(MAKEFILE_LIST))

%/bin/python$(VERSION):
	@$(PYTHON) -m venv --clear $*

$(VENV)/demo.stamp: $(SOURCES) $(VENV)/bin/python$(VERSION)
	@echo "Setting up $(VENV): this takes a minute"
	@$(VENV)/bin/python -m pip $(PIP_INSTALL) --upgrade pip
	@$(VENV)/bin/python -m pip $(PIP_INSTALL) --no-cache-dir '.[demo]'
	@touch $@

demo: $(VENV)/demo.stamp
	@$(VENV)/bin/srup demo

$(VENV)/test.stamp: $(SOURCES) $(VENV)/bin/python$(VERSION)
	@$(if $(REQUIRE_NATIVE),,echo "No C compiler, or no headers of Python or OpenSSL 3: testing the pure-Python backend alone")
	@echo "Setting up $(VENV): this takes a minute"
	@$(VENV)/bin/python -m pip $(PIP_INSTALL) --upgrade pip
	@SRUP_REQUIRE_NATIVE=$(REQUIRE_NATIVE) $(VENV)/bin/python -m pip $(PIP_INSTALL) --no-cache-dir '.[all]' \
		--group test --group lint
	@touch $@ $(VENV)/demo.stamp

# A machine without a compiler, as far as the build can tell; a cached wheel must not step in.
$(PURE)/test.stamp: $(SOURCES) $(PURE)/bin/python$(VERSION)
	@echo "Setting up $(PURE), as without a compiler"
	@$(PURE)/bin/python -m pip $(PIP_INSTALL) --upgrade pip
	@CC=/bin/false SRUP_REQUIRE_NATIVE= $(PURE)/bin/python -m pip $(PIP_INSTALL) --no-cache-dir '.[all]' --group test
	@touch $@

lint: $(VENV)/test.stamp
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy
	$(VENV)/bin/codespell

# What needs no process of its own.
QUICK := not process and not slow
NATIVE_TEST = SRUP_REQUIRE_NATIVE=$(REQUIRE_NATIVE) $(if $(REQUIRE_NATIVE),SRUP_BACKEND=native) $(VENV)/bin/pytest

test: test-setup lint test-quick test-contract

test-setup:
	@$(MAKE) --no-print-directory -j2 TOGETHER=1 $(VENV)/test.stamp $(PURE)/test.stamp

test-quick: $(VENV)/test.stamp
	$(NATIVE_TEST) $(PARALLEL) -m "$(QUICK)"

# On an installation that was made without a compiler: the contract of the twins, and that a fleet lives on it.
CONTRACT := $(addprefix tests/test_,$(addsuffix .py,attacks attacks_codec codec cut differential interop keys messages \
	seal sign_many vectors verify_many wycheproof))
test-contract: $(PURE)/test.stamp
	SRUP_REQUIRE_NATIVE= $(PURE)/bin/pytest $(PARALLEL) -m "backend and $(QUICK)" $(CONTRACT)

# All that depends on the backend.
test-pure: $(PURE)/test.stamp
	SRUP_REQUIRE_NATIVE= $(PURE)/bin/pytest $(BY_FILE) -m "backend and not faults"

test-all: lint test-quick test-rest

# What make test leaves out.
test-rest: test-processes test-faults test-backends test-pure test-lowest test-lanes-here bench-short

test-processes: $(VENV)/test.stamp
	$(NATIVE_TEST) $(BY_FILE) -m "not ($(QUICK)) and not faults"

# One at a time: they load the machine.
test-faults: $(VENV)/test.stamp
	$(NATIVE_TEST) -m "faults and not soak"

# Whatever runs over the codec, from the agents to the commands, on the pure backend as well.
test-backends: $(VENV)/test.stamp
	SRUP_BACKEND=python $(VENV)/bin/pytest $(PARALLEL) -m "not backend and $(QUICK)"

# Lanes of crypto_mb, in an environment of their own: everywhere else the tests run without it.
$(LANES)/test.stamp: $(SOURCES) $(LANES)/bin/python$(VERSION)
	@echo "Setting up $(LANES), with crypto_mb"
	@$(LANES)/bin/python -m pip $(PIP_INSTALL) --upgrade pip
	@SRUP_REQUIRE_NATIVE=1 $(LANES)/bin/python -m pip $(PIP_INSTALL) --no-cache-dir '.[all,multibuffer]' --group test
	@touch $@

test-lanes: $(LANES)/test.stamp
	SRUP_BACKEND=native SRUP_REQUIRE_LANES=1 $(LANES)/bin/pytest $(BY_FILE) \
		$(addprefix tests/test_,$(addsuffix .py,lanes sign_many verify_many wycheproof vectors keys codec))

# Where they can run and the wheels can be had.
test-lanes-here: $(VENV)/test.stamp
	@if ! grep -qsw avx512ifma /proc/cpuinfo; then echo "test-lanes: left out, this CPU has no AVX512-IFMA"; \
	elif ! $(VENV)/bin/python -m pip $(PIP_INSTALL) --dry-run ipp-crypto intel-cmplr-lib-rt >/dev/null 2>&1; then \
		echo "test-lanes: left out, ipp-crypto cannot be had"; \
	else $(MAKE) test-lanes; fi

# The lowest versions that pyproject.toml allows, of what is needed to build and to run.
LOWEST_TESTS := $(addprefix tests/test_,$(addsuffix .py,extras cli cli_join cli_logs cli_metrics cli_order keyex_authority \
	keyex_cli keyex_client keyex_service keyex_store transport_mqtt transport_stream broker fetch joinvalue \
	monitor_endpoint monitor_metrics store_redis store_mailbox store_lease keys seal vectors verify_many agent_worker \
	end_to_end demo))

$(LOWEST)/test.stamp: $(SOURCES) tests/lowest.py $(LOWEST)/bin/python$(VERSION)
	@echo "Setting up $(LOWEST), with the lowest versions"
	@$(LOWEST)/bin/python -m pip $(PIP_INSTALL) --upgrade pip
	@$(PYTHON) tests/lowest.py > $(LOWEST)/lowest.txt
	@SRUP_REQUIRE_NATIVE=$(REQUIRE_NATIVE) $(LOWEST)/bin/python -m pip $(PIP_INSTALL) --no-cache-dir \
		--constraint $(LOWEST)/lowest.txt --build-constraint $(LOWEST)/lowest.txt '.[all]' --group test
	@touch $@

test-lowest: $(LOWEST)/test.stamp
	$(LOWEST)/bin/pytest $(BY_FILE) $(LOWEST_TESTS)

CASES ?= 100000
# Where crypto_mb is there or not, as wanted.
CHOSEN := $(if $(WITH_LANES),$(LANES),$(VENV))

fuzz-verify: $(CHOSEN)/test.stamp
	SRUP_BACKEND=native $(CHOSEN)/bin/python tests/fuzz_verify.py --cases $(CASES) $(if $(SEED),--seed $(SEED)) \
		$(if $(ALGORITHM),--algorithm $(ALGORITHM))

RUNS ?= 1000
simulate: $(VENV)/test.stamp
	$(VENV)/bin/srup simulate --runs $(RUNS) $(if $(SEED),--seed $(SEED))
	$(VENV)/bin/srup simulate --syndication --runs $(RUNS) $(if $(SEED),--seed $(SEED))

# As root the full disk is a file system of its own; without, that test is skipped.
REPEAT ?= 5
faults: $(VENV)/test.stamp
	REPEAT=$(REPEAT) $(VENV)/bin/pytest tests/test_faults.py -m "" -s -p no:logging

$(SANITIZED)/test.stamp: $(SOURCES) $(SANITIZED)/bin/python$(VERSION)
	$(SANITIZED)/bin/python -m pip $(PIP_INSTALL) --upgrade pip
	SRUP_REQUIRE_NATIVE=1 $(SANITIZED)/bin/python -m pip $(PIP_INSTALL) --no-cache-dir \
		'.[mqtt$(if $(WITH_LANES),$(COMMA)multibuffer)]' --group test \
		--config-settings=cmake.define.SRUP_SANITIZE=ON
	touch $@

# Python is not instrumented, so the runtimes are loaded before it, and what it keeps until its end is no leak. Left out:
# tests of memory and time, which would measure the sanitizer, and one fork right after threads of Python, whose ending
# may hold the lock of the sanitizer's allocator.
sanitize: $(SANITIZED)/test.stamp
	LD_PRELOAD="$$($(CC) -print-file-name=libasan.so) $$($(CC) -print-file-name=libubsan.so)" \
	ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 SRUP_BACKEND=native \
	$(SANITIZED)/bin/pytest -p no:cacheprovider --timeout=600 -k "not leave_nothing and not great_many and not ctrl_c" \
		--deselect tests/test_sign_many.py::test_after_a_fork --deselect \
		tests/test_sign_many.py::test_the_numbers_of_the_key_do_not_stay_in_memory \
		tests/test_vectors.py tests/test_codec.py tests/test_cut.py tests/test_wycheproof.py tests/test_verify_many.py \
		tests/test_lanes.py tests/test_sign_many.py

# Interpreters to build for; each is found by its name or path.
PYTHONS ?= $(PYTHON)
wheels: $(VENV)/test.stamp
	$(VENV)/bin/python -m pip $(PIP_INSTALL) --group wheels
	$(VENV)/bin/python tests/build_wheels.py --into dist $(PYTHONS)

ARCHITECTURES ?= arm64 armhf s390x
emulated: $(VENV)/test.stamp
	$(VENV)/bin/python -m pip $(PIP_INSTALL) --group emulated
	for architecture in $(ARCHITECTURES); do \
		CYTHON=$(CURDIR)/$(VENV)/bin/python tests/emulated.sh .emulated $$architecture || exit 1; \
	done

# Only what the benchmarks add to the tests; a change of the sources alone does not install it again.
%/bench.stamp: %/test.stamp pyproject.toml
	$*/bin/python -m pip $(PIP_INSTALL) --group bench
	touch $@

bench: $(CHOSEN)/bench.stamp
	$(CHOSEN)/bin/python -m benchmarks

bench-short: $(CHOSEN)/bench.stamp
	$(CHOSEN)/bin/python -m benchmarks --short

pages: $(VENV)/test.stamp
	$(VENV)/bin/python docs/states.py
	$(VENV)/bin/python docs/metrics.py
	$(VENV)/bin/python docs/commands.py
	$(VENV)/bin/python docs/errors.py

# Without the network: nothing is fetched, and what is built asks for nothing.
SITE := build/site
docs: pages
	rm -rf $(SITE) build/doctrees
	$(VENV)/bin/python -m sphinx --fail-on-warning --keep-going --quiet -d build/doctrees docs $(SITE)
	$(VENV)/bin/python docs/check_site.py $(SITE)
	@echo "The site is in $(SITE): open $(SITE)/index.html"

# What agrees with what is found at once; what takes long comes after it, and must leave nothing behind.
release-check:
	$(PYTHON) tests/release_check.py
	$(MAKE) docs test-all wheels
	$(PYTHON) tests/release_check.py
	@echo "Ready: publish what is in dist/"

clean:
	rm -rf $(VENV) $(PURE) $(LOWEST) $(LANES) $(SANITIZED) .emulated build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
