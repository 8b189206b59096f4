# make serve | test | test-fast | check | chaos | fuzz | screenshots | licences
# PYTHON: the interpreter, 3.11 to 3.14. PORT: the port of the service.
PYTHON ?= python3
PORT ?= 8000
BIN := .venv/bin

.PHONY: setup serve test test-fast check chaos screenshots fuzz licences
setup: .venv/ready

.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 14) else \
		"Python 3.11 to 3.14 is needed, this is %d.%d: make PYTHON=python3.12" % v)'
	@echo "installing into .venv; this takes minutes"
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[all,dev]"
	@touch $@

serve: setup
	@$(BIN)/clipsynth serve --port $(PORT)

# Each process starts its own service and Redis.
test: setup
	$(BIN)/pytest --numprocesses auto --maxprocesses 4

test-fast: setup
	$(BIN)/pytest --numprocesses auto --maxprocesses 4 -m "not redis and not service and not browser and not slow"

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

chaos: setup
	$(BIN)/python -m benchmarks.chaos $(CHAOS)

screenshots: setup
	$(BIN)/python -m tests.support.screenshots docs

fuzz: setup
	$(BIN)/python -m benchmarks.fuzz $(FUZZ)

licences: setup
	(sed '/^|/,$$d' docs/licences.md; $(BIN)/pip-licenses --format=markdown --from=mixed --order=license \
		--packages $$(sed 's/==.*//' constraints.txt)) > docs/licences.new
	mv docs/licences.new docs/licences.md
