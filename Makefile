# Every target makes the environment it needs first: tools/setup.py.
PY ?= python3
WORKERS ?= 2
SETUP = @command -v $(PY) > /dev/null || { echo "no $(PY) here: install Python 3.11 or newer, or say which: make PY=/path/to/python"; exit 2; }; $(PY) tools/setup.py
BIN = $(shell $(PY) tools/setup.py bin)
PYTHON = "$(BIN)/python"
LAB = "$(BIN)/jupyter" lab --LabApp.news_url=None --LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate $(if $(filter 0,$(shell id -u)),--allow-root)
NBVAL = $(PYTHON) -m pytest -q --nbval-lax --nbval-current-env --nbval-cell-timeout=600 --nbval-sanitize-with tests/sanitize.cfg
ONE_THREAD = OMP_NUM_THREADS=1 NANOCHAT_HOME="$$home"
AS_TEST = home=$$(mktemp -d); trap 'rm -rf "$$home"' EXIT; trap 'exit 130' INT TERM; set -e;
SMOKE = --lesson-env NANOCHAT_TIER=smoke --lesson-env NANOCHAT_COMPILE=0

.DEFAULT_GOAL := help
.PHONY: help install tour lab author start ex test test-fast check sync execute pins clean

help:              ## this list
	@echo "make tour          trains the whole ChatGPT here, then chats with it"
	@echo "make lab           opens the course"
	@echo
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' Makefile | awk -F '\t' '{ printf "%-18s %s\n", $$1, $$2 }'

install:           ## everything a learner needs, and nothing else happens
	$(SETUP) course

tour:              ## all stages on this machine, then a chat (ARGS="--minutes 5" passes flags on)
	$(SETUP) tour
	@$(PYTHON) -m nanochat run laptop --chat $(ARGS)

lab:               ## opens your copies of the lessons in JupyterLab (work/lessons; makes what is missing)
	$(SETUP) course
	@$(PYTHON) tools/lab.py
	@$(LAB) --notebook-dir=work --LabApp.default_url=/lab/tree/lessons/00_start_here.ipynb

author:            ## opens the sources themselves, to write lessons
	$(SETUP) course
	@$(LAB) --notebook-dir=. --LabApp.default_url=/lab/tree/lessons

start:             ## NN=01 copies an exercise to work/; never overwrites
	$(SETUP) course
	@$(PYTHON) tools/start.py "$(NN)"

ex:                ## NN=01 checks your copy in work/
	$(SETUP) course
	@$(PYTHON) tools/ex.py "$(NN)"

test:              ## everything, on two cores
	$(SETUP) test
	@$(PYTHON) tools/check.py
	@if command -v cargo > /dev/null; then cargo test -q --locked --manifest-path rustbpe/core/Cargo.toml; \
	 else echo "no cargo: the tests of the Rust crate are skipped"; fi
	@$(AS_TEST) $(ONE_THREAD) $(NBVAL) $(SMOKE) -n $(WORKERS) --dist loadfile --durations=10 tests lessons solutions

test-fast:         ## the quick tests of the package, no notebooks
	$(SETUP) test
	@$(AS_TEST) $(ONE_THREAD) $(PYTHON) -m pytest -q -m "not slow" -n $(WORKERS) --dist loadfile tests

check:             ## notebooks, package, twins, exercises and configuration agree (writes nothing)
	$(SETUP) course
	@$(PYTHON) tools/check.py

sync:              ## brings twins, package and exercises into step after an edit
	$(SETUP) course
	@$(PYTHON) tools/sync.py

execute:           ## runs notebooks and stores their outputs (NB="01_tokenizer ..."; all without it)
	$(SETUP) course
	@$(PYTHON) tools/execute.py $(NB)

pins:              ## for maintainers: adds what is new in pyproject.toml to constraints.txt
	$(SETUP) test
	@"$(BIN)/uv" pip compile -q --universal --python-version 3.11 --all-extras --no-header --no-annotate pyproject.toml -o constraints.txt

clean:             ## removes what builds and tests leave; never .venv, work or trained models
	@rm -rf build dist *.egg-info rustbpe/target rustbpe/core/target .pytest_cache
	@find . -name .venv -prune -o -name 'work*' -prune -o \( -name __pycache__ -o -name .ipynb_checkpoints \) -type d -prune -exec rm -rf {} +
