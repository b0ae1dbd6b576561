# make demo    the main job, end to end, on this machine
# make test    lint, every notebook and every test
# make lint    ruff on modules, tests, benches, tools and notebooks; mypy on the modules
# make kaggle-check   Kaggle at length: pushed notebooks run for real, against a stub
# make serve-check    chapter 4 at length: the server under load, hostile files, image and Space installed
# make docs    the documentation site: _docs/html/index.html
# make dist    wheel and source archive: dist/
# make dist-check   both in clean environments of DIST_PYTHONS (python3.11 python3.13), where a clip is asked about
# make setup   only the environment; the others call it by themselves

PYTHON ?= python3
VENV ?= .venv
OUT ?= outputs/demo
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
NOTEBOOKS := $(sort $(wildcard nbs/*.ipynb))

# threads that wait should sleep: where something else runs, they are in its way
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: setup demo lint test kaggle-check serve-check export notebooks readme bench docs dist dist-check
setup: $(STAMP)

$(STAMP): settings.ini setup.py
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "vlmtemporal needs Python 3.11 or newer, this is " + sys.version.split()[0] + ": say make PYTHON=/path/to/python3 $(MAKECMDGOALS)")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $(STAMP)

demo: setup
	$(BIN)/vlmtemporal demo $(OUT)

lint: setup
	$(BIN)/ruff check
	$(BIN)/mypy

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python tools/pages.py
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -rs -n 2 --dist worksteal tests

# a Python with the versions of Kaggle's image, and a folder of newer packages that come before them; both can be
# given: make kaggle-check KAGGLE_PYTHON=/path/to/python KAGGLE_NEWEST=/path/to/folder
PYTHON_3_12 ?= python3.12
KAGGLE_PYTHON ?= .kaggle/bin/python
KAGGLE_NEWEST ?= .kaggle/newest

# what `make test` does of Kaggle, and what takes minutes
kaggle-check: setup $(KAGGLE_PYTHON) $(KAGGLE_NEWEST)
	KAGGLE_PYTHON=$(abspath $(KAGGLE_PYTHON)) KAGGLE_NEWEST=$(abspath $(KAGGLE_NEWEST)) VLMTEMPORAL_KAGGLE_CHECK=1 \
	  OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -s $$(grep -l VLMTEMPORAL_KAGGLE_CHECK tests/test_*.py)

# what `make test` does of the server, and what takes minutes
serve-check: setup
	VLMTEMPORAL_SERVE_CHECK=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -s $$(grep -l VLMTEMPORAL_SERVE_CHECK tests/test_*.py)

.kaggle/bin/python:
	$(PYTHON_3_12) -m venv .kaggle
	sed 's/ *#.*//;/==/!d' kaggle/image-2026-06.txt > .kaggle/there.txt
	$@ -m pip install --quiet -c kaggle/image-2026-06.txt -r .kaggle/there.txt papermill scikit-learn jinja2 pyyaml pydantic

.kaggle/newest: $(KAGGLE_PYTHON)
	$(KAGGLE_PYTHON) -m pip install --quiet --target $@ --no-deps transformers peft accelerate \
	  huggingface_hub tokenizers safetensors httpx2 httpcore2 truststore hf-xet

export: setup
	$(BIN)/nbdev_clean
	$(BIN)/nbdev_export
	$(BIN)/python tools/kaggle_notebooks.py

notebooks: setup                 # run every notebook top to bottom and keep what it shows
	$(BIN)/python -m nbconvert --to notebook --execute --inplace --ExecutePreprocessor.timeout=1200 $(NOTEBOOKS)
	$(MAKE) export readme

readme: setup                    # README.md is nbs/index.ipynb as Markdown
	$(BIN)/python tools/readme.py > README.md

# the pages as they stand, with search and API; a warning, a dead link or a fetch from elsewhere is an error
docs: $(VENV)/.docs
	$(BIN)/python docs/build.py

$(VENV)/.docs: $(STAMP)
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	touch $@

dist: $(VENV)/.docs
	rm -rf build dist
	$(BIN)/python -m build --quiet --outdir dist .

dist-check: setup
	VLMTEMPORAL_DIST_CHECK=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -s tests/test_wheel.py -k 'clean'

bench: setup
	$(BIN)/python bench/sampling.py
	$(BIN)/python bench/dataset.py
