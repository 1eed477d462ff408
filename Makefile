# make book, make test: each does its own set-up. `make help` lists the rest.
# empty: the environment's own Python, or python3 where there is no environment yet
PYTHON ?=
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help setup book pdf lab lint check test slow mutants notebooks bench card clean

# two workers, a file to each, and one thread of arithmetic to a worker: more threads than cores only wait for each other
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile
# XLA compiles anew for every shape, which is most of what a test of JAX takes, and several times as fast without its
# fused loops and LLVM's optimisations. `make slow` runs the tests of JAX once more as they are compiled for users.
# What was compiled is kept, so that the next run need not.
QUICK_XLA = XLA_FLAGS="--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false" \
	JAX_COMPILATION_CACHE_DIR="$(CURDIR)/.pytest_cache/xla" JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile
	@echo "PYTHON=python3.12 names the interpreter the environment is made with."

setup: ## the environment in .venv; redone only when requirements.txt or pyproject.toml changed
	@PYTHON="$(PYTHON)" tools/setup.sh

book: setup ## execute every notebook and render the book; any warning is an error
	@echo "book: executing the notebooks and rendering the pages"
	@$(BIN)/jupyter-book build -W --keep-going --all .
	@echo "book: $(CURDIR)/_build/html/index.html"

# a package that only one target needs, installed when it is first asked for: $(call need,module,requirement)
need = $(BIN)/python -c "import $(1)" 2>/dev/null || $(BIN)/python -m pip --disable-pip-version-check --quiet install $(2)
PYPDF = pypdf==7.1.1

pdf: setup ## the whole book as one PDF, from the stored outputs, printed by Chromium
	@tools/browser.sh
	@$(call need,pypdf,$(PYPDF))
	@$(BIN)/python tools/pdf.py

lab: setup ## the chapters in JupyterLab, with exercises and equations as on the pages; ARGS="--no-browser"
	@$(call need,jupyterlab_myst,jupyterlab==4.6.6 jupyterlab-myst==2.7.0)
	@$(BIN)/python -m svdgrad.check_env
	@$(BIN)/jupyter lab --notebook-dir=book $(ARGS)

lint: setup ## the formatter, the linter and the type checker; `.venv/bin/ruff format` mends what the first finds
	@$(BIN)/ruff format --check --quiet . || { echo "lint: run .venv/bin/ruff format"; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/python -m mypy --no-error-summary

check: lint ## a first answer within a minute, for people at work; ARGS="-k name"
	@$(PYTEST) tests -m "not slow" -k "not (notebooks or site or explorer or exercises or open_and_run or which_call or compare or benchmarks or jax or planted or oracles or parity or block or compile or certificate or devices)" -q $(ARGS)

test: lint ## unit tests, doctests, notebooks against their stored outputs, the pages in a browser; ARGS="-k name"
	@tools/browser.sh
	@echo "test: pytest --nbval, without what is marked slow (make slow) $(ARGS)"
	@$(QUICK_XLA) $(PYTEST) --nbval -m "not slow" $(ARGS)

slow: setup ## the tests marked slow, which make test leaves out, and all of JAX compiled as for users; ARGS="-k name"
	@tools/browser.sh
	@$(call need,check_jsonschema,check-jsonschema==0.39.0) || echo "slow: no check-jsonschema, so nobody looks at the workflow"
	@$(call need,importlib.metadata as m; m.version('zizmor'),zizmor==1.32.0) || echo "slow: no zizmor, so nobody looks for holes in the workflow"
	@$(call need,pypdf,$(PYPDF)) || echo "slow: no pypdf, so nobody looks at the PDF"
	@echo "slow: pytest --nbval -m slow $(ARGS)"
	@$(QUICK_XLA) $(PYTEST) --nbval -m slow $(ARGS)
ifeq ($(ARGS),)
	@echo "slow: the tests of JAX that make test runs, with all optimisations of XLA"
	@$(PYTEST) -m "not slow" tests/test_jax*.py
endif

mutants: setup ## plant small faults in the package, list those that no test notices; ARGS="adjoint/schur.py --sample 30"
	@$(call need,cosmic_ray,cosmic-ray==8.7.0)
	@$(BIN)/python tools/mutants.py $(ARGS)

notebooks: setup ## execute the notebooks and store their outputs; NB="book/border.ipynb ..." for some of them
	@$(BIN)/python tools/execute.py $(NB)

bench: setup ## svdgrad beside its peers, ten to fifteen minutes; ARGS="--quick" for a first look, ARGS="--record FOLDER" keeps it
	@echo "bench: installing the peers, which are optional"
	@$(BIN)/python -m pip --disable-pip-version-check --quiet install --no-deps -r benchmarks/requirements.txt || \
		echo "bench: not all could be installed; those that are missing will be named"
	@$(BIN)/python -m benchmarks.run $(ARGS)

card: ## nine minutes on a machine with an NVIDIA GPU, results into OUT=FOLDER; DEVICE=cpu QUICK=1 rehearses it
	@PYTHON="$(PYTHON)" OUT="$(OUT)" DEVICE="$(DEVICE)" QUICK="$(QUICK)" tools/card.sh

clean: ## remove what was built, but not the environment
	@rm -rf _build .pytest_cache .hypothesis svdgrad.egg-info build dist
	@find svdgrad tests benchmarks book tools -name __pycache__ -prune -exec rm -rf {} +
