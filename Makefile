# make demo: everything from nothing to a retrieval table.  make lint, make test: what the CI runs.
# make test-gpu: what needs a CUDA GPU.
# make test-long: what takes minutes: twenty kills, a thousand epochs.
# make mutants: plants mistakes in a copy of the code, one by one, and names those that no test
# sees.
# make ablation: every part of the method changed or left out, on the demo data; resumes where it
# was stopped.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: demo lint test test-gpu test-long mutants ablation clean

demo: $(VENV)/.installed
	$(RUN) train.py --dataset demo --overwrite 1
	$(RUN) eval.py --dataset demo

lint: $(VENV)/.installed-for-tests
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

test: $(VENV)/.installed-for-tests
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n auto --dist loadfile --no-loadscope-reorder \
		--max-worker-restart 0

test-gpu: $(VENV)/.installed-for-tests
	HREM_TEST_GPU=1 $(RUN) -m pytest -m gpu

test-long: $(VENV)/.installed-for-tests
	$(RUN) -m pytest -m long -s

mutants: $(VENV)/.installed-for-tests
	$(RUN) tests/mutants.py

ablation: $(VENV)/.installed
	$(RUN) -m benchmarks.ablation

$(VENV)/.installed: requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if (3, 10) <= sys.version_info < (3, 14) else \
	"Python 3.10 to 3.13 needed, found " + sys.version + "; try: make PYTHON=python3.12 demo")'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/.installed-for-tests: $(VENV)/.installed tests/requirements.txt
	$(RUN) -m pip install --quiet --disable-pip-version-check -r tests/requirements.txt
	touch $@

clean:
	rm -rf $(VENV)
