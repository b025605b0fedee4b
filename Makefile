# make demo       digits from every bundled model, in demo/
# make test       every test (TESTS=tests/test_site.py: those of one file)
# make site       the site, in _docs/ (with Quarto where it is installed, else with smalldocs)
# make speedrun   ten minutes of training, then 10,000 digits and what they are worth, in
#                 runs/speedrun/ (MINUTES=60: an hour)
# make results    build every stored result again from the weights: days on a CPU, goes on where it
#                 was stopped (ARGS=--list: print the steps, run nothing; ARGS="--only rf-fast")
# make notebooks  run every notebook again and save its outputs, export the library, write README.md
# make clean      remove what can be made again
#
# Needs make and Python 3.10 or newer. Another interpreter: make demo PYTHON=python3.12

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: demo test site speedrun results notebooks clean
.DELETE_ON_ERROR:
.NOTPARALLEL:

# The two stamps say what is installed, so that the second time installs nothing.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("mnistgen needs Python 3.10 \
	or newer, and $(PYTHON) is %d.%d: name another one with PYTHON=..." % sys.version_info[:2])'
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "$(PYTHON) cannot make a virtual environment: on Debian and Ubuntu, install python3-venv" >&2; \
	  exit 1; }

$(VENV)/.installed: settings.ini setup.py pyproject.toml | $(BIN)/python
	$(PIP) install -e .
	@touch $@

$(VENV)/.installed-dev: settings.ini setup.py pyproject.toml | $(BIN)/python
	$(PIP) install -e '.[dev]'
	@touch $@ $(VENV)/.installed

# A picture is drawn again only when something in the package is newer than it.
demo: $(VENV)/.installed
	@mkdir -p demo; names=$$($(BIN)/mnistgen list --names) || exit 1; \
	for m in $$names; do \
	  if [ -e demo/$$m.png ] && \
	    [ -z "$$(find mnistgen -type f -not -name '*.pyc' -newer demo/$$m.png)" ]; \
	  then echo "demo/$$m.png is up to date"; \
	  else $(BIN)/mnistgen sample $$m --n 64 --out demo/$$m.png || exit 1; echo "demo/$$m.png"; fi; \
	done
	@$(BIN)/mnistgen list

test: TESTS ?= tests
test: $(VENV)/.installed-dev
	@$(BIN)/python -m pytest -q -p no:logging --durations=10 $(TESTS)

site: $(VENV)/.installed-dev
	@$(BIN)/python tools/site.py

speedrun: MINUTES ?= 10
speedrun: $(VENV)/.installed
	@$(BIN)/python benchmarks/speedrun.py --minutes $(MINUTES)

results: $(VENV)/.installed-dev
	@$(BIN)/python tools/results.py $(ARGS)

notebooks: $(VENV)/.installed-dev
	$(BIN)/nbdev_export
	$(BIN)/python tools/refresh.py $(sort $(wildcard nbs/*.ipynb nbs/*/*.ipynb))
	$(BIN)/nbdev_clean
	$(BIN)/python tools/readme.py

clean:
	rm -rf demo build dist _proc _docs *.egg-info .pytest_cache
	find mnistgen tools tests -name __pycache__ -prune -exec rm -rf {} +
