# Needs python3 (3.10 or newer) and make; everything else is installed into .venv on the first call.
#   make compare ARGS="--methods sam,rst --seeds 5"
#   make test ARGS="-k look_sam"
PYTHON ?= python3
# Another Python than that of the .venv that is there has one of its own: make test PYTHON=python3.13
OWN := $(PYTHON) -c 'import os, sys; version = "%d.%d" % sys.version_info[:2]; \
	print(".venv" + ("-" + version) * (os.path.isdir(".venv") and not os.path.isdir(".venv/lib/python" + version)))'
VENV := $(or $(if $(filter file,$(origin PYTHON)),,$(shell $(OWN))),.venv)
BIN := $(VENV)/bin
# Stamps say which extras are installed; they grow old when pyproject.toml or constraints.txt change.
STUDY := $(VENV)/.installed-study
FINETUNE := $(VENV)/.installed-finetune
DEV := $(VENV)/.installed-dev
SITE := $(VENV)/.installed-docs
REQUIREMENTS := pyproject.toml constraints.txt

# One set-up at a time; the lock goes with the process that holds it, however that one ends.
LOCKED := $(PYTHON) -c 'import fcntl, subprocess, sys; lock = open("$(VENV).lock", "w"); \
	fcntl.flock(lock, fcntl.LOCK_EX); sys.exit(subprocess.call(sys.argv[1:]))'
CHECK_PYTHON := $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "steppe needs Python 3.10 or \
	newer, and $(PYTHON) is " + sys.version.split()[0] + ": call make PYTHON=<a newer python>")'

# $(call install,extras,stamps): skipped where another make has just done it; a venv without pip was left half-made.
define install
	@$(CHECK_PYTHON)
	@$(LOCKED) sh -ec ' \
		if [ "$@" -nt pyproject.toml ] && [ "$@" -nt constraints.txt ]; then exit 0; fi; \
		echo "Setting up $(VENV) with steppe[$(subst $() ,$(comma),$(1))] (a minute or more the first time)"; \
		$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV); \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
			-e ".[$(subst $() ,$(comma),$(1))]"; \
		touch $(2)'
endef
comma := ,

.PHONY: help compare finetune test gpu lint types docs loops studies suite kills machines mutants costs claims site clean

help: ## say what there is
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' Makefile

compare: $(STUDY) ## compare the methods on real data; options in ARGS="..."
	@$(BIN)/steppe compare $(ARGS)

finetune: $(FINETUNE) ## fine-tune with any method, without options an example on the digits; options in ARGS="..."
	@$(BIN)/steppe finetune $(ARGS)

# Types beside the tests: what mypy says is shown after them, and make fails where either does. What is compiled is kept
# (by an empty PYTHONDONTWRITEBYTECODE), or every process compiles tests and source anew: seconds of each.
test: $(DEV) ## lint, types and all tests; options of pytest in ARGS="..."
	$(BIN)/ruff check
	@$(BIN)/mypy > $(VENV)/types.txt 2>&1 & types=$$!; trap "kill $$types" INT TERM; \
		PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(ARGS); tests=$$?; \
		wait $$types; types=$$?; cat $(VENV)/types.txt; exit $$((tests ? tests : types))

gpu: $(DEV) ## the tests that need a CUDA device, which `make test` hides; options of pytest in ARGS="..."
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m gpu $(ARGS)

lint: $(DEV) ## style and docstrings
	$(BIN)/ruff check

types: $(DEV) ## types
	$(BIN)/mypy

loops: $(DEV) ## run the loops' tests and note which method ran in which, for docs/loops
	OMP_NUM_THREADS=1 STEPPE_LOOPS=docs/loops.json $(BIN)/python -m pytest tests/loops tests/integrations tests/situations/test_several_optimizers.py
	$(BIN)/python docs/generate.py

studies: $(DEV) ## the study in three hosts behind docs/script.md, about six minutes
	$(BIN)/python benchmarks/studies.py $(ARGS)

suite: $(STUDY) ## tasks on which it can be told what a method wins, hours; ARGS="--data FOLDER"; writes docs/suite.md
	$(BIN)/python benchmarks/suite.py $(ARGS)
	$(BIN)/python docs/suite_page.py

kills: $(DEV) ## kill a comparison ten times and training loops 200 times, and compare with undisturbed ones
	$(BIN)/python benchmarks/kill_compare.py
	$(BIN)/python benchmarks/kill_training.py

machines: $(DEV) ## one study on a Dask cluster, through submitit and in two shards, with kills: equal to this machine's
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/many_machines.py $(ARGS)

mutants: $(DEV) ## plant bugs in a copy of the source and see the tests notice each; words of their names in ARGS="..."
	$(BIN)/python benchmarks/mutants.py $(ARGS)

costs: $(DEV) ## measure step time and memory beside other libraries, and write docs/cost.md; cases in ARGS="..."
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/step_time.py $(ARGS)
	$(BIN)/python docs/cost.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/host_overhead.py
	$(BIN)/python docs/overhead.py

claims: $(DEV) ## measure what papers claim and write docs/claims.md; FASHION=FOLDER for Fashion-MNIST too
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/suite.py schedules look_sam look_sam_sgd adasam adasam_amsgrad newer
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/rho_finder.py $(if $(FASHION),--fashion $(FASHION))
	$(if $(FASHION),OMP_NUM_THREADS=1 $(BIN)/python benchmarks/large_batch.py --fashion $(FASHION))
	$(BIN)/python docs/claims.py

docs: $(DEV) ## write docs/methods.md, docs/claims.md and the table of docs/loops from the registry and the results
	$(BIN)/python docs/generate.py
	$(BIN)/python docs/claims.py

site: $(SITE) ## build the documentation as a site, strictly: every link, nothing from other hosts; build/site/html
	@$(BIN)/python docs/web.py

clean: ## remove .venv, caches and builds (results stay)
	rm -rf $(VENV) $(VENV).lock build dist .pytest_cache .hypothesis .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STUDY): $(REQUIREMENTS)
	$(call install,study,$(STUDY))

$(FINETUNE): $(REQUIREMENTS)
	$(call install,study finetune,$(STUDY) $(FINETUNE))

$(SITE): $(REQUIREMENTS)
	$(call install,study docs,$(STUDY) $(SITE))

$(DEV): $(REQUIREMENTS)
	$(call install,study finetune hosts evaluate curvature oracles dev,$(STUDY) $(FINETUNE) $(DEV))
