# `make demo`: set-up, then the main job on the bundled model. `make test`: set-up, lint, types, tests.
# `make wheel`: dist/vtcompress-VERSION-py3-none-any.whl, to install the tool where there is no clone.
# Everything is installed into .venv with the versions of constraints.txt; torch's CPU build comes first.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := build/digits-auto
DIST := dist
# No restart: where a dead worker is replaced, xdist (3.8.0) waits for ever at the end.
WORKERS := --numprocesses 2 --max-worker-restart 0 --dist loadscope --no-loadscope-reorder
MODEL := examples/digits-llava
NODE := .node
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: setup demo node test slow wheel coverage matrix clean

setup: $(VENV)/.installed

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit("vtcompress needs Python 3.11 or newer: make PYTHON=python3.11 ..." if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.installed: $(VENV)/.python Makefile pyproject.toml constraints.txt
	$(PIP) torch
	$(PIP) --editable '.[compress,cpu]'
	@touch $@

$(VENV)/.tested: $(VENV)/.installed
	$(PIP) --editable '.[clients,compress,cpu,openvino,rtx,serve,test]'
	@touch $@

# Clients of tests that come from npm. Scripts of packages are not run: one would fetch CUDA from elsewhere.
node: $(NODE)/.installed

$(NODE)/.installed: tests/node/package.json tests/node/package-lock.json
	@mkdir -p $(NODE) && cp $^ $(NODE)
	@if command -v npm >/dev/null; then \
		npm ci --prefix $(NODE) --ignore-scripts --no-audit --no-fund --loglevel=error && touch $@ \
		|| echo 'npm could not install transformers.js: its tests are skipped'; \
	else echo 'npm is not installed: the tests of transformers.js are skipped'; fi

demo: $(VENV)/.installed
	$(BIN)/vtcompress export --recipe auto --budget 2m --model $(MODEL)/model \
		--data $(MODEL)/calibration.jsonl --validate-data $(MODEL)/heldout.jsonl --output $(DEMO) --overwrite
	@echo
	@echo 'A question about examples/digits-llava/heldout/0001.png:'
	$(BIN)/vtcompress generate $(DEMO) --image $(MODEL)/heldout/0001.png --prompt 'read row 1 .'

test: $(VENV)/.tested node
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest $(WORKERS)

wheel: $(VENV)/.python
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir $(DIST) .
	@echo "install it with an extra, for example: pip install '$$(ls -t $(DIST)/vtcompress-*.whl | head -1)[cpu]'"

# Not in `make test`: what costs most and shows least that other tests do not (SLOW in tests/slow.py).
# Then all damaged files, of which `make test` reads a part.
slow: $(VENV)/.tested node
	$(BIN)/python -m pytest $(WORKERS) -m slow
	$(BIN)/python -m tests.fuzz

# Not in `make test`: the cases of all families, and as many again that fill the tables of docs/families.md.
matrix: $(VENV)/.tested
	$(BIN)/python -m tests.family_matrix

# Not in `make test`: on Python 3.11 tracing doubles the time of every export.
coverage: $(VENV)/.tested node
	$(BIN)/python -m pytest $(WORKERS) --cov --cov-report=term-missing:skip-covered --cov-fail-under=90

clean:
	rm -rf build dist $(VENV) $(NODE)
