# make demo    the main job, end to end, on this machine
# make test    lint, every notebook and every test
# make lint    ruff on modules, tests, benches, tools and notebooks; mypy on the modules
# make setup   only the environment; the others call it by themselves

PYTHON ?= python3
VENV ?= .venv
OUT ?= outputs/demo
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
NOTEBOOKS := $(sort $(wildcard nbs/*.ipynb))

# threads that wait should sleep: where something else runs, they are in its way
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: setup demo lint test export notebooks readme bench
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
	OMP_NUM_THREADS=1 $(BIN)/nbdev_test --n_workers 2 --timing
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal tests

export: setup
	$(BIN)/nbdev_clean
	$(BIN)/nbdev_export

notebooks: setup                 # run every notebook top to bottom and keep what it shows
	$(BIN)/python -m nbconvert --to notebook --execute --inplace --ExecutePreprocessor.timeout=1200 $(NOTEBOOKS)
	$(MAKE) export readme

readme: setup                    # README.md is nbs/index.ipynb as Markdown
	$(BIN)/python tools/readme.py > README.md

bench: setup
	$(BIN)/python bench/sampling.py
	$(BIN)/python bench/dataset.py
