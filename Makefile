# make demo and make test are the two commands; both set up $(VENV) first. The linters and test tools
# are installed for make test, lint, format and docs only.
VENV ?= .venv
PY := $(VENV)/bin/python

.PHONY: install install-dev demo docs test lint format clean

install:
	dev/install.sh $(VENV)

install-dev:
	dev/install.sh --dev $(VENV)

demo: install
	$(PY) -m d2_plugins demo

lint: install-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-cache
	$(PY) dev/check_words.py

test: lint
	$(PY) -m pytest -n 2 --dist worksteal

docs: install-dev
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict

format: install-dev
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean:
	rm -rf build dist site *.egg-info output .pytest_cache .mypy_cache .ruff_cache .hypothesis
