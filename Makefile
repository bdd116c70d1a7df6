# Everything starts with `make`; the environment .venv is built when it is missing or out of date.
PYTHON ?= python3
BIN := .venv/bin
UV := .venv-tools/bin/uv
SYNC := $(UV) --quiet pip sync --python $(BIN)/python --require-hashes --build-constraints lock/build-constraints.txt

.DELETE_ON_ERROR:
.PHONY: help report test zoo site docs faults lint audit lock clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile

report: .venv/.ready ## evaluate the digits zoo and write out/index.html
	$(BIN)/robustgen report --data digits --protocol quick --out out

test: .venv/.ready ## run the tests
	$(BIN)/pytest

zoo: .venv/.ready ## check the claims of every model card
	$(BIN)/python benchmarks/zoo.py

site: .venv/.ready ## rebuild reports/ from stored rows
	$(BIN)/python benchmarks/site.py

docs: .venv/.ready ## build the documentation as a site in out/site
	$(BIN)/mkdocs build --strict

faults: .venv/.ready ## run the fault harness
	$(BIN)/python -m benchmarks.faults

lint: .venv/.ready ## formatting, lint, types, import directions
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

audit: .venv/.ready ## look the locked packages up among known vulnerabilities
	$(BIN)/python .ci/audit.py

lock: $(UV) ## resolve lock/requirements.lock again from lock/requirements.in
	cd lock && ../$(UV) --quiet pip compile requirements.in --universal --python-version 3.11 --override overrides.txt \
	  --build-constraints build-constraints.txt --generate-hashes --no-header --no-annotate \
	  --upgrade -o requirements.lock > /dev/null

clean: ## remove the environment and everything that is rebuilt
	rm -rf .venv .venv-tools out dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find robustgen tests -name __pycache__ -type d -prune -exec rm -rf {} +

# pip's --target needs neither ensurepip nor a system that allows `pip install`.
$(UV): ; $(call need_python)
	@echo "Installing the installer (uv) into .venv-tools"
	@$(PYTHON) -m pip install -qq --root-user-action=ignore --upgrade --target .venv-tools uv==0.13.8

# Two steps need an explanation. `pip sync`, not `pip install -r`: the latter refuses the lock, whose versions override
# pins of robustbench. And robustbench a second time: torchattacks' wheel carries a stale copy of it, and which of
# the two stays after a parallel install is a race.
.venv/.ready: lock/requirements.lock lock/build-constraints.txt pyproject.toml | $(UV)
	$(call need_python)
	@echo "Building .venv from lock/requirements.lock (about 7 GB, most of it torch)"
	@test -x $(BIN)/python || $(UV) --quiet venv --clear --no-python-downloads --python "$$($(PYTHON) -c 'import sys; print(sys.executable)')" .venv
	@$(SYNC) lock/requirements.lock
	@$(SYNC) --reinstall-package robustbench lock/requirements.lock
	@$(UV) --quiet pip install --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $@

# Expanded when a recipe that installs something is about to run, before its first line: one message, no step taken.
define need_python
$(if $(shell $(PYTHON) -c 'import sys; print((3, 11) <= sys.version_info < (3, 14) or "")' 2>/dev/null),,$(error \
robustgen needs Python 3.11, 3.12 or 3.13, and `$(PYTHON)` is $(or $(shell $(PYTHON) -c 'import platform; print("Python " + platform.python_version())' 2>/dev/null),not there). \
Name another one: make PYTHON=python3.12 $(MAKECMDGOALS)))
endef
