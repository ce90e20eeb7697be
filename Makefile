# Each command works on a fresh machine with Python 3.10 to 3.13; what it needs is installed into $(VENV) first.
# Another Python than the default one: `make test PYTHON=python3.12`.
PYTHON ?= python3
VENV := .venv
PYTHON_OLDEST ?= python3.10
OLDEST := .venv-oldest
RUN := $(VENV)/bin/python
PIP := -m pip install --quiet --disable-pip-version-check
WORKDIR ?= workdir
TESTS := -n 2 --dist worksteal  # two processes; the one that has nothing left takes over tests of the other
COVERED := 90  # per cent of the lines of lib/ that `make test` must run
CODE := lib tests $(wildcard 0*.py)
STAGES := 01_prepare_folds.py 02_train_loc.py 03_train_cls.py 04_predict_tta.py 05_ensemble.py 06_make_submission.py

.PHONY: demo test test-quick test-oldest lint format docs install install-dev clean

demo: install
	@for stage in $(STAGES); do echo "== $$stage"; $(RUN) $$stage --workdir $(WORKDIR) || exit $$?; done

# Python 3.12 and later count lines at almost no cost; 3.10 and 3.11 need a tracer.
test: install-dev
	COVERAGE_CORE=$$($(RUN) -c 'import sys; print("sysmon" if sys.version_info >= (3, 12) else "ctrace")') \
		$(RUN) -m pytest -q $(TESTS) --cov=lib --cov-report=term:skip-covered --cov-fail-under=$(COVERED)

test-quick: install-dev
	$(RUN) -m pytest -q $(TESTS) -m "not slow"

# The same suite with the oldest versions that requirements.txt states, in an environment of its own.
test-oldest: $(OLDEST)/.installed
	$(OLDEST)/bin/python -m pytest -q $(TESTS)

lint: install-dev
	$(RUN) -m ruff check $(CODE)
	$(RUN) -m ruff format --check $(CODE)
	$(RUN) -m mypy

format: install-dev
	$(RUN) -m ruff check --fix $(CODE)
	$(RUN) -m ruff format $(CODE)

# The documentation as a site, site/index.html; a link that leads nowhere is an error.
docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --quiet

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' || \
		{ echo "Python 3.10 to 3.13 is needed; name one: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: requirements.txt | $(VENV)/bin/python
	$(RUN) $(PIP) -r requirements.txt
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed $(wildcard requirements-*.txt)
	$(RUN) $(PIP) -r requirements.txt -r requirements-dev.txt
	@touch $@

$(VENV)/.installed-docs: requirements-docs.txt | $(VENV)/bin/python
	$(RUN) $(PIP) -r requirements-docs.txt
	@touch $@

$(OLDEST)/.installed: requirements.txt requirements-dev.txt requirements-oldest.txt
	$(PYTHON_OLDEST) -m venv $(OLDEST)
	$(OLDEST)/bin/python $(PIP) -r requirements.txt -r requirements-dev.txt -c requirements-oldest.txt
	@touch $@

clean:
	rm -rf $(VENV) $(OLDEST) $(WORKDIR) demo_data site .coverage .pytest_cache .ruff_cache .mypy_cache
