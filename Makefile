# `make demo` trains and audits two models; `make test` runs lint, types and tests; `make bench` measures speed and
# memory beside peers, those in JAX too once `make bench-jax` was run. All of them set themselves up.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BENCH := .venv-bench
JAX := .venv-jax
READY := $(VENV)/.ready
DEV_READY := $(VENV)/.ready-dev

.PHONY: demo test bench bench-jax clean

demo: $(READY)
	$(BIN)/homeostat demo

test: $(DEV_READY)
	$(BIN)/ruff check src tests benchmarks examples
	$(BIN)/ruff format --check src tests benchmarks examples
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -n auto --doctest-modules src/homeostat tests

# The constraints pin every version; without them torch alone can bring gigabytes of GPU packages.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "homeostat needs Python 3.11 or newer; choose one with make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(DEV_READY): $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

bench: $(BENCH)/.ready
	$(BENCH)/bin/python -m benchmarks

bench-jax: $(JAX)/.ready

# Peers stay out of the main environment.
$(BENCH)/.ready: pyproject.toml constraints.txt benchmarks/requirements.txt
	$(PYTHON) -m venv $(BENCH)
	$(BENCH)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	$(BENCH)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r benchmarks/requirements.txt
	touch $@

$(JAX)/.ready: benchmarks/jax_peers/requirements.txt
	$(PYTHON) -m venv $(JAX)
	$(JAX)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r benchmarks/jax_peers/requirements.txt
	touch $@

clean:
	rm -rf $(VENV) $(BENCH) $(JAX)
