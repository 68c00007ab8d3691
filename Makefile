# Python 3.11 or newer and make are all that is needed. `make help` lists the targets.
PYTHON ?= python3
VENV := .venv
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help venv test lint services services-stop demo bench chaos clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: ## make .venv with the package and the tools of development
	@$(PYTHON) scripts/make_venv.py dev

test: venv ## style, types and all tests, on real services; ARGS="-k foo" goes to pytest, SERVICES=required|compose|none
	@$(VENV)/bin/python scripts/run_tests.py $(ARGS)

lint: venv ## style and types only
	@$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check . && $(VENV)/bin/mypy

services: ## start Kafka, registry, PostgreSQL and MariaDB in the background, and print their addresses
	@$(PYTHON) scripts/services.py start

services-stop: ## stop what `make services` started
	@$(PYTHON) scripts/services.py stop

demo: ## the shop example; FOREVER=1 keeps it running
	@$(PYTHON) scripts/make_venv.py package
	@$(VENV)/bin/python examples/shop/demo.py $(if $(FOREVER),--forever)

bench: venv ## the benchmarks, on real services, and of other frameworks in .venv-peers; ARGS="--area consume --rounds 1"
	@$(PYTHON) scripts/make_venv.py peers
	@$(VENV)/bin/python scripts/services.py exec -- $(VENV)/bin/python benchmarks/run.py $(ARGS)

chaos: venv ## the fault trials in their long form, and benchmarks/chaos.md; ARGS="-k killed" goes to pytest
	@$(VENV)/bin/python scripts/services.py exec -- $(VENV)/bin/python scripts/chaos.py $(ARGS)

clean: ## delete what was built and cached in the checkout; .venv and running services stay
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache *.egg-info
	find . -name __pycache__ -type d -not -path './.venv*' -prune -exec rm -rf {} +
