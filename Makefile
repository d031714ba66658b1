# Every target does its own set-up. A second run costs a fraction of a second: see scripts/set_up.py.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.NOTPARALLEL:
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
RUN := .venv/bin

.PHONY: help setup model demo chain-tools ipfs-tools vllm-tools media-tools test-tools test test-all lint bench artifacts slither docs lock clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

setup: ## virtual environment, locked dependencies, system packages
	@test -n "$(PYTHON)" || { echo "octo-node needs Python 3.11 or newer; name one: make PYTHON=/path/to/python3.11 ..."; exit 1; }
	@$(PYTHON) scripts/set_up.py

model: setup ## the default model, downloaded and requantised into .cache/models
	@$(RUN)/python scripts/prepare_model.py

demo: model ## a small real market on this machine: prompt, negotiation, answer, receipt, payment
	@$(RUN)/octo-node demo

chain-tools: setup ## the contracts' compiler, libraries and test chain, into contracts/node_modules
	@$(RUN)/python scripts/chain_tools.py

ipfs-tools: setup ## two real IPFS implementations for the interop tests, into tests/flow/ipfs/node_modules
	@$(RUN)/python scripts/ipfs_tools.py

vllm-tools: setup ## vLLM in an environment of its own, for its tests and its figures
	@$(RUN)/python scripts/vllm_tools.py

media-tools: setup ## what speech and images need, for the tests with real models
	@$(RUN)/python scripts/media_tools.py

test-tools: setup ## programs that some tests run for real, where they may be installed
	@$(RUN)/python scripts/test_tools.py

test: model chain-tools test-tools ## the tests (no heavy ones)
	@$(RUN)/python -m pytest -m "not heavy" -n 2 --dist loadfile --durations=10

test-all: model chain-tools test-tools ipfs-tools vllm-tools media-tools ## all tests, the heavy ones too
	@$(RUN)/python -m pytest -m "not heavy" -n 2 --dist loadfile --durations=10
	@$(RUN)/python -m pytest -m heavy -n 2 --dist loadfile --durations=20

lint: setup ## ruff, format, mypy --strict
	@$(RUN)/ruff check .
	@$(RUN)/ruff format --check .
	@$(RUN)/mypy

bench: model chain-tools ## each figure beside its rival's, from the same run
	@$(RUN)/python -m bench && $(RUN)/python -m bench.figures

artifacts: chain-tools ## the contracts' artefacts and gas figures, made anew from contracts/src
	@PATH="$(CURDIR)/.cache/node/bin:$$PATH" node contracts/build.mjs
	@$(RUN)/python scripts/forge.py

slither: chain-tools ## static analysis of the contracts
	@$(RUN)/python scripts/slither.py

docs: setup ## links, and make targets named in the docs
	@$(RUN)/python scripts/check_docs.py

lock: setup ## resolve pyproject.toml anew into requirements/
	@$(PYTHON) scripts/lock.py

clean: ## remove what the set-up made
	rm -rf .venv .cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info contracts/node_modules contracts/build \
		tests/flow/ipfs/node_modules
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
