# Two commands matter: `make run` starts a demo, `make test` runs every test. Both set up what they need.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.ONESHELL:
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

PYTHON ?= $(shell command -v python3.11 || command -v python3)
PORT ?= 8080
DATA ?= .data
# Tests wait for disks and servers more than they compute.
JOBS ?= 4
VENV := .venv
BIN := $(VENV)/bin
RELEASE := .release

.PHONY: run test clients check format bench profile failover growth soak fuzz release advisories demo-chains screenshots lock clean help

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

run: $(VENV)/.runtime  ## Start a demo gateway on 127.0.0.1:8080 (PORT=, DATA=; ANTHROPIC_API_KEY= for the real API)
	@exec $(BIN)/farebox demo --port $(PORT) --data $(DATA)

test: $(VENV)/.dev $(RELEASE)/.tools  ## Run every test, real clients included
	@bash tests/install.sh
	bash tests/web/install.sh
	bash tests/clients/install.sh
	bash tests/deploy/install.sh
	bash tests/chains/install.sh
	$(BIN)/pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

clients: $(VENV)/.dev  ## Run every client that docs/clients.md names, and write its table there (CLIENTS="langchain llm" for some; a few minutes)
	@bash tests/clients/install.sh $(if $(CLIENTS),$(CLIENTS),all)
	$(BIN)/python -m tests.clients $(CLIENTS)

check: $(VENV)/.dev  ## Lint, formatting, types, layers
	@$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev  ## Format the code
	@$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

bench: $(VENV)/.dev  ## Measure against nginx, LiteLLM and Portkey (about half an hour; QUICK=1 for a minute)
	@$(BIN)/python -m bench $(if $(QUICK),--quick) $(BENCH)

profile: $(VENV)/.dev  ## Show where the CPU time of a call goes, function by function (half a minute; PROFILE="--streams" for events, "--lines")
	@$(BIN)/python -m bench.profiling $(PROFILE)

failover: $(VENV)/.dev  ## Three upstreams, one of which fails in every way, at 200 calls a second: prints a table (3 minutes; FAILOVER="--rate 50 401 HTML" for some)
	@$(BIN)/python -m tests.failover $(FAILOVER)

growth: $(VENV)/.dev  ## 20 million calls in the books of each store: what pages and calls cost then (an hour, 15 GB; GROWTH="--calls 1000000 --store sqlite" for less)
	@$(BIN)/python -m tests.growth $(GROWTH)

soak: $(VENV)/.dev  ## The long versions of the random tests: books, decisions, races, kill, kill-nodes, pauses, power, syscalls, restarts, api, slow, evm, bitcoin (SOAK="races --rounds 5000" for one)
	@bash tests/install.sh
	bash tests/chains/install.sh
	$(BIN)/python -m tests.soak $(SOAK)

fuzz: $(VENV)/.dev  ## Fuzz meter, server, upstream client and request decoder, guided by coverage (10 minutes; FUZZ="meter --minutes 60")
	@$(BIN)/python -m tests.fuzz $(FUZZ)

demo-chains: $(VENV)/.dev  ## Start a demo that takes real payments on test chains: regtest and anvil, with a button that pays
	@bash tests/chains/install.sh
	exec $(BIN)/python -m tests.chains.demo --data $(DATA)-chains --port $(PORT)

screenshots: $(VENV)/.dev  ## Take every page with demo data, at two widths, light and dark, into .screenshots
	@bash tests/web/install.sh
	$(BIN)/python -m tests.web.screenshots

release: $(RELEASE)/.tools  ## Make dist/ of what is committed: wheel, bill of materials, checksums (SIGN=KEY signs; docs/releasing.md)
	@deploy/release.sh $(RELEASE)/bin dist $(SIGN)

advisories: $(RELEASE)/.tools  ## Ask the advisory database about every locked dependency (needs the internet)
	@for lock in requirements.lock requirements-dev.lock requirements-release.lock; do
	  $(RELEASE)/bin/pip-audit --strict --require-hashes --disable-pip --progress-spinner off --requirement $$lock
	done

lock: $(VENV)/.dev  ## Renew the lock files (hashes, no addresses)
	@compile="$(BIN)/pip-compile --quiet --generate-hashes --allow-unsafe --strip-extras --no-emit-index-url --no-emit-find-links --no-emit-trusted-host --no-header --upgrade"
	$$compile --output-file requirements.lock pyproject.toml build.in
	$$compile --output-file requirements-dev.lock pyproject.toml build.in dev.in
	$$compile --output-file requirements-release.lock build.in release.in

clean:  ## Remove what was built; data stays
	@rm -rf $(VENV) $(RELEASE) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .clients .peers .screenshots .chains .fuzz .soak

$(VENV)/bin/pip:
	@if ! $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
	  echo "Python 3.11 or newer is needed; on Debian: apt-get install python3 python3-venv" >&2; exit 1
	fi
	if ! $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null; then
	  echo "Installing python3-venv ..."
	  sudo=$$([ "$$(id -u)" = 0 ] || echo sudo)
	  $$sudo apt-get update -qq && $$sudo apt-get install -y -qq python3-venv >/dev/null
	fi
	$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: requirements.lock pyproject.toml | $(VENV)/bin/pip
	@echo "Installing what farebox needs into $(VENV) ..."
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

$(VENV)/.dev: requirements-dev.lock pyproject.toml $(VENV)/.runtime | $(VENV)/bin/pip
	@echo "Installing what the tests need into $(VENV) ..."
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	touch $@

$(RELEASE)/.tools: requirements-release.lock
	@echo "Installing what makes a release into $(RELEASE) ..."
	$(PYTHON) -m venv $(RELEASE)
	$(RELEASE)/bin/pip install --quiet --disable-pip-version-check --require-hashes -r requirements-release.lock
	touch $@
