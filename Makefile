# make up: install and start the cloud.   make test: install what the tests need and run them all.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
ARGS ?=

.PHONY: up install test tools lint lock clean

up: install
	@exec $(BIN)/atoll up $(ARGS)

install: $(VENV)/.installed

$(VENV)/.installed: requirements/base.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Atoll needs Python 3.11 or newer: make PYTHON=python3.12 up"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --require-hashes -r requirements/base.lock
	$(PIP) install --quiet --no-deps --editable .
	@touch $@

$(VENV)/.tested: requirements/test.lock $(VENV)/.installed
	$(PIP) install --quiet --require-hashes -r requirements/test.lock
	@touch $@

tools:
	@tests/tools.sh

lint: $(VENV)/.tested
	$(BIN)/ruff check .

test: tools lint
	$(BIN)/python -m pytest -n 2 --dist loadgroup $(ARGS)

lock:
	uv pip compile --universal --python-version 3.11 --generate-hashes pyproject.toml -o requirements/base.lock
	uv pip compile --universal --python-version 3.11 --generate-hashes pyproject.toml --all-extras -o requirements/test.lock

clean:
	rm -rf $(VENV) .venvs build dist *.egg-info
