# make up: install and start the cloud.   make test: install what the tests need and run them all.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
LOCK := uv pip compile --universal --python-version 3.11 --generate-hashes pyproject.toml
ARGS ?=
TORCH ?=

.PHONY: up install physical test tools lint lock clean

up: install
	@exec $(BIN)/atoll up $(ARGS)

install: $(VENV)/.installed

$(VENV)/.installed: requirements/base.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Atoll needs Python 3.11 or newer: make PYTHON=python3.12 up"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --require-hashes -r requirements/base.lock
	$(PIP) install --quiet --no-deps --editable .
	@touch $@

physical: $(VENV)/.physical

# torch has no digest here: machines without a GPU may have a build of their own of it (make physical TORCH="--index-url ...").
$(VENV)/.physical: requirements/physical.lock requirements/torch.txt $(VENV)/.installed
	$(PIP) install --require-hashes -r requirements/physical.lock
	$(PIP) install $(TORCH) -r requirements/torch.txt
	@touch $@

$(VENV)/.tested: requirements/test.lock $(VENV)/.physical
	$(PIP) install --quiet --require-hashes -r requirements/test.lock
	@touch $@

tools:
	@tests/tools.sh

lint: $(VENV)/.tested
	$(BIN)/ruff check .

test: tools lint
	$(BIN)/python -m pytest -n 2 --dist loadgroup $(ARGS)

lock:
	$(LOCK) -o requirements/base.lock
	$(LOCK) --extra physical -o requirements/physical.lock
	$(LOCK) --extra physical --extra postgres --extra codecs --extra otel --extra formats --extra adapters --extra usd --extra test -o requirements/test.lock

clean:
	rm -rf $(VENV) .venvs build dist *.egg-info
