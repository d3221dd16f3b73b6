# Orbital's commands. `make help` lists them; each prepares what it needs in .venv first.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

TYPED := orbital_relay protocol/orbital_protocol clients/python/orbital_client bench examples deploy/monitoring/dashboard.py
# Tests run in this many processes; each has a PostgreSQL of its own. They wait often: three keep two cores busy.
TEST_PROCESSES ?= 3
# `make test ARGS="tests/protocol -k codec"` narrows the run; run, demo and bench hand ARGS on too.
ARGS ?=
ROUNDS ?= 200
SEED ?= 1
MINUTES ?= 60

.DEFAULT_GOAL := help
.PHONY: help install run test coverage chaos soak demo check lint types format bench bench-plot docs migrations requirements clean

help: ## this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "make %-13s %s\n", $$1, $$2 }'

install: $(VENV)/.installed ## the virtual environment, with everything in it

run: $(VENV)/.installed ## start the relay on its embedded PostgreSQL; data is kept in .data/
	@$(BIN)/orbital-relay serve $(ARGS)

test: $(VENV)/.installed ## every test
	$(BIN)/pytest -n $(TEST_PROCESSES) $(ARGS)

coverage: $(VENV)/.installed ## every test, and which lines they reach; takes half as long again
	$(BIN)/pytest -n $(TEST_PROCESSES) $(ARGS) --cov

chaos: $(VENV)/.installed ## kill relays and database ROUNDS times under load (SEED), and judge what clients saw
	@$(BIN)/python -m tests.system.chaos $(ROUNDS) $(SEED)

soak: $(VENV)/.installed ## post for MINUTES, and see that nothing grows
	@$(BIN)/python -m tests.system.soak $(MINUTES)

demo: $(VENV)/.installed ## three people and a bot in an encrypted group, one of them cut off and resuming
	@$(BIN)/python -m examples.demo

check: lint types test ## all that must pass before a commit

lint: $(VENV)/.installed ## ruff, and which way imports point
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(VENV)/.installed ## mypy --strict
	$(BIN)/mypy $(TYPED)
	$(BIN)/mypy tests

format: $(VENV)/.installed ## rewrite the code as `make lint` wants it
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.installed ## every benchmark, a JSON line each
	@$(BIN)/python -m bench $(ARGS)

bench-plot: $(VENV)/.plot ## measure against load, groups, members and stored posts, and draw docs/pictures/performance.svg
	@$(BIN)/python -m bench.plot

docs: $(VENV)/.installed ## write the generated documents again
	$(BIN)/python protocol/generate.py
	$(BIN)/python docs/generate.py
	$(BIN)/python deploy/monitoring/dashboard.py

migrations: $(VENV)/.installed ## which migrations the database has
	@$(BIN)/orbital-relay migrate status

requirements: ## pin the newest allowed versions, with hashes (needs uv)
	@for name in runtime build dev plot; do \
	    (cd requirements && uv pip compile --quiet --upgrade --universal --no-strip-extras --python-version 3.11 --generate-hashes \
	        --no-emit-index-url --no-emit-find-links --custom-compile-command "make requirements" \
	        $$name.in --output-file $$name.txt) || exit 1; \
	done

clean: ## remove what can be made again: .venv and caches, never .data/
	rm -rf $(VENV) .coverage .coverage.* htmlcov dist build .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './.data/*' -prune -exec rm -rf {} +

# The environment, in three steps that are each done again only when what they read has changed.
$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	    echo "Orbital needs Python 3.11 or newer, which '$(PYTHON)' is not; name another: make PYTHON=python3.12 …" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	    echo "Orbital needs Python's venv module; on Debian: apt-get install python3-venv" >&2; exit 1; }
	@echo "Making $(VENV) …"
	@$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/.dependencies: $(VENV)/.made requirements/dev.txt
	@echo "Installing dependencies …"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	@touch $@

$(VENV)/.installed: $(VENV)/.dependencies pyproject.toml protocol/pyproject.toml clients/python/pyproject.toml
	@echo "Installing orbital-protocol, orbital-client and orbital-relay from this checkout …"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation \
	    -e protocol -e clients/python -e .
	@touch $@

$(VENV)/.plot: $(VENV)/.installed requirements/plot.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/plot.txt
	@touch $@
