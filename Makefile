# Two commands for a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
PYTHON_OLDEST ?= python3.10
OLDEST := .venv-oldest
RUN := $(VENV)/bin/python
WORKDIR ?= workdir
TESTS := -n 2 --dist loadfile  # two processes, a file stays in one: files share their finished experiments
STAGES := 01_prepare_folds.py 02_train_loc.py 03_train_cls.py 04_predict_tta.py 05_ensemble.py 06_make_submission.py

.PHONY: demo test test-quick test-oldest install clean

demo: install
	@for stage in $(STAGES); do echo "== $$stage"; $(RUN) $$stage --workdir $(WORKDIR) || exit $$?; done

test: install
	$(RUN) -m pytest -q $(TESTS)

test-quick: install
	$(RUN) -m pytest -q $(TESTS) -m "not slow"

# The same suite with the oldest versions that requirements.txt states, in an environment of its own.
test-oldest: $(OLDEST)/.installed
	$(OLDEST)/bin/python -m pytest -q $(TESTS)

install: $(VENV)/.installed

$(VENV)/.installed: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(OLDEST)/.installed: requirements.txt requirements-oldest.txt
	$(PYTHON_OLDEST) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt \
		-c requirements-oldest.txt
	@touch $@

clean:
	rm -rf $(VENV) $(OLDEST) $(WORKDIR) demo_data
