# `make demo` and `make test` set up a fresh machine by themselves. PYTHON chooses the interpreter.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q

.PHONY: demo test test-slow lint docs docs-check notebooks format clean

demo: $(VENV)/.demo
	@$(BIN)/vit-jax demo

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

# The site, at http://127.0.0.1:8000; a link that leads nowhere ends it.
docs: docs-check
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs serve

docs-check: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build -q

# Runs every notebook from top to bottom; the outputs that are committed must be those of its cells.
notebooks: $(VENV)/.dev
	$(BIN)/python tools/notebooks.py

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) build dist *.egg-info

# The stamps say what the environment holds, and make it anew when pyproject.toml changes.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "vit_jax needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V 2>&1). Try: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml | $(BIN)/python
	@echo "installing vit_jax into $(VENV) …"
	@$(PIP) install -e '.[demo]'
	@touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	@echo "installing vit_jax with torch, timm and transformers into $(VENV) (about 6 GB) …"
	@$(PIP) install -e '.[dev]'
	@touch $@ $(VENV)/.demo $(VENV)/.docs

$(VENV)/.docs: pyproject.toml | $(BIN)/python
	@echo "installing vit_jax with what builds its site into $(VENV) …"
	@$(PIP) install -e '.[docs]'
	@touch $@
