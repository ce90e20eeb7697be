# Two commands for a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
WORKDIR ?= workdir
TESTS := -n 2 --dist loadfile  # two processes, a file stays in one: files share their finished experiments
STAGES := 01_prepare_folds.py 02_train_loc.py 03_train_cls.py 04_predict_tta.py 05_ensemble.py 06_make_submission.py

.PHONY: demo test test-quick install clean

demo: install
	@for stage in $(STAGES); do echo "== $$stage"; $(RUN) $$stage --workdir $(WORKDIR) || exit $$?; done

test: install
	$(RUN) -m pytest -q $(TESTS)

test-quick: install
	$(RUN) -m pytest -q $(TESTS) -m "not slow"

install: $(VENV)/.installed

$(VENV)/.installed: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

clean:
	rm -rf $(VENV) $(WORKDIR) demo_data
