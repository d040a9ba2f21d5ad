# Everything runs in an environment of its own, .venv, made on first use from constraints.txt.
# Without make: see "Without make" in README.md.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
RUN := HF_HUB_DISABLE_TELEMETRY=1 TOKENIZERS_PARALLELISM=false $(VENV)/bin/python

.PHONY: install demo miniature test test-slow test-gpu lint format wheel clean

install: $(VENV)/installed

# The stamp is newer than what it was made from, so a changed dependency reinstalls
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --upgrade --constraint constraints.txt setuptools wheel
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable ".[test]"
	touch $@

demo: install  ## train a tiny AlignGPT through both stages and let it answer (about 6 minutes on two cores)
	$(RUN) examples/demo/demo.py --model_card model_card.md

miniature: install  ## the method's claims, rerun: what has no results yet (hours for all), then the report
	OMP_NUM_THREADS=1 $(RUN) examples/miniature/miniature.py

test: install  ## the fast tests
	$(RUN) -m pytest -m "not slow and not gpu"

test-slow: install  ## the slow tests: the wheel, the demo
	$(RUN) -m pytest -m "slow and not gpu"

test-gpu: install  ## the tests that need a CUDA GPU
	$(RUN) -m pytest -m gpu

lint: install
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

format: install
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

wheel: install
	$(VENV)/bin/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .

clean:
	rm -rf $(VENV) build dist demo_output miniature_output *.egg-info
