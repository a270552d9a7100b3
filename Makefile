# Every command of the project. `make help` lists them.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
PY := .venv/bin/python
export NL_WERROR ?= 1
# A second build of the unchanged amalgamation is then a second, also after `make clean`.
ifneq ($(shell command -v ccache),)
export CC := ccache $(if $(filter default undefined,$(origin CC)),cc,$(CC))
endif

.PHONY: help venv build test
help: ## Show this help
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

.venv/ready: pyproject.toml
	@test -x $(PY) || python3 -m venv .venv
	$(PY) -m pip install --quiet --upgrade 'pip>=25.1'
	$(PY) -m pip install --quiet 'setuptools>=77,<86' 'cffi>=2.0' 'msgspec>=0.18' 'urllib3>=2' 'zstandard>=0.22' \
	  'uvicorn[standard]>=0.34' 'starlette>=0.40' 'click>=8.1' 'rich>=13'
	$(PY) -m pip install --quiet --group dev
	@echo '$(CURDIR)/python' > "$$($(PY) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/nearlite.pth"
	@touch $@

venv: .venv/ready ## Create .venv with everything tests need

build: .venv/ready ## Build the shared objects in place: normal and test variant
	$(PY) build_ffi.py release test

test: build ## Run all tests (under 10 minutes on two cores)
	$(PY) -m pytest -n 2 --dist loadgroup

lint: .venv/ready ## ruff
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

types: build ## mypy --strict
	.venv/bin/mypy
