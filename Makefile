# Every command of the project; `make` alone lists them. Everything lives in .venv and build/.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
PY := .venv/bin/python
export NL_WERROR ?= 1
# With ccache a second build of the unchanged amalgamation takes a second, also in another clone.
ifneq ($(shell command -v ccache 2>/dev/null),)
ifeq ($(origin CC),default)
export CC := ccache cc
endif
endif
# Two at least: crash tests wait for processes more than they compute.
JOBS ?= $(shell n=$$(nproc 2>/dev/null || echo 2); [ $$n -lt 2 ] && echo 2 || echo $$n)
TESTS ?= tests
LASTING = HYPOTHESIS_PROFILE=nightly $(PY) -m pytest -m soak -n $(JOBS) --dist load --maxschedchunk 1 \
  -p no:cacheprovider -o faulthandler_timeout=0
BENCH ?=

.PHONY: help build demo test lint types asserts cpython sanitize races fuzz soak bench wheel format clean distclean
help: ## Show this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

# ---- set-up: what is missing is installed, or named (see .ci/packages)

.venv/ready: pyproject.toml build_ffi.py
	@PYTHON=$(PYTHON) sh .ci/packages build
	@test -x $(PY) || $(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --upgrade 'pip>=25.1' 'setuptools>=77,<86' 'cffi>=2.0'
	$(PY) -m pip install --quiet --group test --group lint
	@# npm, of which Debian makes hundreds of packages, only where nothing else has the amalgamation
	@$(PY) build_ffi.py --sources || { sh .ci/packages npm && $(PY) build_ffi.py --sources; }
	NL_VARIANTS=release,test $(PY) -m pip install --quiet --no-build-isolation --editable '.[all]'
	@touch $@

build: .venv/ready ## Build the shared object in place, and its test variant beside it
	@$(PY) build_ffi.py release test

# ---- what a user tries first

demo: build ## A primary, a replica and a reader on real data, with what it measured
	@.venv/bin/nearlite demo

test: build ## Run all tests, fault and crash tests included (under 10 minutes on two cores)
	@PYTHON=$(PYTHON) sh .ci/packages test
	$(PY) -m pytest -n $(JOBS) --dist loadgroup $(TESTS)

# ---- what a change has to pass

lint: .venv/ready ## Check style (ruff)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

format: .venv/ready ## Apply what ruff can mend by itself
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

types: build ## Check types (mypy --strict; pyright, strictly, of what programs see)
	.venv/bin/mypy
	@PYTHON=$(PYTHON) sh .ci/packages npm
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 .venv/bin/pyright

asserts: build ## The C core's tests once more, with SQLite's own asserts and our fault points
	@# What test_relay and test_tables call in the core, the other files do as well, in less time.
	NEARLITE_FFI=test $(PY) -m pytest -n $(JOBS) --dist loadgroup --core --ignore tests/test_relay.py \
	  --ignore tests/test_tables.py tests

cpython: build ## CPython's own tests of sqlite3, with every Python from 3.10 to 3.13 that is here
	@PYTHON=$(PYTHON) sh .ci/packages test
	NL_EVERY_PYTHON=1 $(PY) -m pytest -n $(JOBS) --dist load tests/test_cpython_suite.py

sanitize: .venv/ready ## The C core's tests under address and undefined-behaviour sanitizers
	$(PY) build_ffi.py sanitize
	@# Leaks are not looked for: the interpreter itself leaves plenty at exit.
	NEARLITE_FFI=sanitize ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1 \
	  LD_PRELOAD="$$(cc -print-file-name=libasan.so) $$(cc -print-file-name=libubsan.so)" PYTHONMALLOC=malloc \
	  $(PY) -m pytest -n $(JOBS) --dist loadgroup --core

races: .venv/ready ## Threads in everything that they may share, under ThreadSanitizer
	$(PY) build_ffi.py races
	NEARLITE_FFI=races LD_PRELOAD="$$(cc -print-file-name=libtsan.so)" \
	  TSAN_OPTIONS="exitcode=66 suppressions=$(CURDIR)/.ci/races.supp" $(PY) tests/races.py

fuzz: .venv/ready ## Fuzz the C decoders with libFuzzer, SECONDS each (default 60)
	@sh .ci/packages build fuzz
	@$(PY) build_ffi.py --sources
	$(MAKE) -C csrc/fuzz SECONDS=$(or $(SECONDS),60)

soak: build ## Readers, crashes and random histories for an hour, SECONDS of it; a line for each at the end
	@PYTHON=$(PYTHON) sh .ci/packages test
	@# The last sixth with SQLite's asserts, for those who read while page sets are applied.
	NL_SOAK=1 NL_SOAK_SECONDS=$$(( $(or $(SECONDS),3600) * 5 / 6 )) $(LASTING) $(TESTS)
	NL_SOAK=1 NL_SOAK_SECONDS=$$(( $(or $(SECONDS),3600) / 6 )) NEARLITE_FFI=test $(LASTING) --core $(TESTS)

bench: build ## Measure against peers in one run; BENCH="-k name" for some
	@sh .ci/packages build bench
	$(PY) -m pip install --quiet --group bench
	@mkdir -p bench/out
	@# What fails to run is named in the table; the report is worth having all the same.
	-$(PY) -m pytest -c bench/pytest.ini bench --benchmark-json=bench/out/benchmarks.json $(BENCH)
	$(PY) bench/report.py

# ---- what is shipped

wheel: .venv/ready ## Build sdist and, from it, a wheel with OpenSSL inside, into dist/
	$(PY) -m pip install --quiet --group package
	NL_STATIC_CRYPTO=1 NL_WERROR=0 $(PY) -m build --outdir dist .

clean: ## Remove what was built; keep .venv
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis python/*.egg-info
	find python -name '*.so' -delete
	find . -path ./.venv -prune -o -name __pycache__ -type d -exec rm -rf {} +

distclean: clean ## Remove .venv and the third-party sources, too
	rm -rf .venv csrc/vendor
