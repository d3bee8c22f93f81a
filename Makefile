# The front door. Needs Python 3.11+ and make; everything else is set up in .venv.
PYTHON ?= python3
BIN := .venv/bin

# The tests start hundreds of processes: where this is set, each would compile all its modules anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test check mutate bench faults kafka clean

demo: .venv/installed  ## 30 days of a made-up vendor through the whole stack on this machine
	@$(BIN)/seatmark demo

test: .venv/installed  ## all tests; those that need a real Kafka need Java 17 and mvn, and are skipped without
	@$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder $(ARGS)

check: .venv/installed  ## formatting, lint, types, import rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

mutate: .venv/mutate  ## changes the fold in every small way and says which changes no test notices (docs/testing.md): an hour
	@$(BIN)/mutmut run $(ARGS)
	@$(BIN)/mutmut results

bench: .venv/installed  ## events per second beside a bare client loop and an idiomatic Faust agent; prints JSON
	@$(BIN)/python -m benchmarks.throughput

faults: .venv/installed  ## kills, freezes and cuts off all parts on a real Kafka; SCENARIO=name SEED=1 COUNT=10 choose; minutes
	@$(BIN)/python -m tests.faults $(if $(SCENARIO),--scenario $(SCENARIO)) $(if $(SEED),--seed $(SEED)) $(if $(COUNT),--count $(COUNT)) $(ARGS)

kafka: .venv/installed  ## a real Apache Kafka in the foreground
	@deploy/kafka/start

clean:
	rm -rf .venv .cache mutants

# constraints.txt pins every version, so that an install next year is this one.
.venv/installed: pyproject.toml constraints.txt
	@echo "setting up .venv ..." >&2
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Seatmark needs Python 3.11 or newer; set PYTHON to one")'
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[embedded,dev]'
	@touch $@

.venv/mutate: .venv/installed
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[embedded,dev,mutate]'
	@touch $@
