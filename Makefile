# Everything runs in an environment of its own, .venv, made on first use from constraints.txt.
# Without make: see docs/install.md.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
RUN := HF_HUB_DISABLE_TELEMETRY=1 TOKENIZERS_PARALLELISM=false $(VENV)/bin/python
# One thread a test process and a process a core: tiny models gain nothing from a second thread
TEST := OMP_NUM_THREADS=1 $(RUN) -m pytest -n auto --dist loadfile
VERSIONS ?= 5.19.0 5.20.2 5.23.0 5.24.0
VERSION_TESTS ?= tests

.PHONY: install demo card miniature test test-slow test-gpu test-versions docs lint format wheel clean

install: $(VENV)/installed

# The stamps are newer than what they were made from, so a changed dependency reinstalls
$(VENV)/dependencies: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --upgrade --constraint constraints.txt setuptools wheel
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable ".[test,docs]"
	touch $@

# Strict: a tree of links that mypy, editors and mkdocstrings can follow. It is made anew when a folder has another file
$(VENV)/installed: $(VENV)/dependencies $(shell find modeling_aligngpt processing serving training -type d -not -name __pycache__)
	$(VENV)/bin/python -m pip install --quiet --no-deps --no-build-isolation --config-settings editable_mode=strict \
		--editable .
	touch $@

demo: install  ## train a tiny AlignGPT through both stages and let it answer (about 7 minutes on two cores)
	$(RUN) examples/demo/demo.py

card: install  ## the demo, and the card of its model in the root
	$(RUN) examples/demo/demo.py --model_card model_card.md

miniature: install  ## the method's claims, rerun: what has no results yet (hours for all), then the report
	OMP_NUM_THREADS=1 $(RUN) examples/miniature/miniature.py

test: install  ## the fast tests
	$(TEST) -m "not slow and not gpu"

test-slow: install  ## the slow tests: the wheel, the demo, the manual's snippets, other people's environments
	$(RUN) -m pytest -m "slow and not gpu"

test-gpu: install  ## the tests that need a CUDA GPU
	$(RUN) -m pytest -m gpu

# make test-versions VERSIONS="5.19.0" VERSION_TESTS=tests/processing
test-versions:  ## the fast tests with other versions of transformers, each in an environment of its own
	sed '/^transformers==/d' constraints.txt > .venv-constraints
	for version in $(VERSIONS); do \
		$(MAKE) --no-print-directory VENV=.venv-$$version .venv-$$version/transformers && \
		echo "transformers $$version" && OMP_NUM_THREADS=1 .venv-$$version/bin/python -m pytest -q -n auto --dist loadfile \
			-m "not slow and not gpu" $(VERSION_TESTS) || exit 1; \
	done

.venv-%/transformers: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -m pip install --quiet --constraint .venv-constraints setuptools wheel
	.venv-$*/bin/python -m pip install --quiet --constraint .venv-constraints --no-build-isolation \
		--editable ".[test]" "transformers==$*"
	touch $@

docs: install  ## the manual, into site/; a broken link or an unknown name is an error
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --quiet

lint: install
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

format: install
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

wheel: install
	$(VENV)/bin/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .

clean:
	rm -rf $(VENV) .venv-* build dist site demo_output miniature_output *.egg-info
