# `make` lists the targets. Everything runs in .venv, made from requirements.txt on the first call.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3.11
NOTEBOOKS ?= $(sort $(wildcard notebooks/*.ipynb))
WORKERS ?= $(shell nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
PORT ?= 8000
THREADS ?= 1
TORCH_VERSION := 2.13.0

BIN := .venv/bin
READY := .venv/ready
LINTED := src tests book notebooks experiments benchmarks

# Sets and dictionaries in the same order everywhere: outputs are compared as text.
FIXED := PYTHONHASHSEED=0
# Each worker is one process on one core; torch's own threads would fight over it.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
# At most 8: each worker imports torch, and there are few notebooks to share out.
PARALLEL := -n $(WORKERS) --maxprocesses 8
NBVAL := --nbval --nbval-current-env --nbval-sanitize-with tests/nbval_sanitize.cfg
PYTEST := $(FIXED) $(ONE_THREAD) $(BIN)/python -m pytest

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 22

# A changed lock makes the environment afresh, so that nothing removed from it lingers.
.venv/locked: requirements.txt
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -r requirements.txt
	@touch $@

# Without build isolation and dependencies: no network.
$(READY): .venv/locked pyproject.toml
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation -e .
	@touch $@

# A failed build forgets what it read: an incremental one would not repeat the warnings, and pass.
.PHONY: book
book: $(READY) ## build the book into _build/html, every warning an error
	@$(BIN)/jupyter-book build . -W -n --keep-going --quiet || { rm -rf _build/.doctrees; exit 1; }
	@echo "The book: open _build/html/index.html in a browser, or run 'make serve'."

# Both run, whichever fails, so that one call names everything that is broken.
.PHONY: test
test: $(READY) ## check style and types, run the tests, and re-run every notebook against its outputs
	@failed=; \
	$(BIN)/ruff check $(LINTED) && $(BIN)/ruff format --check $(LINTED) || failed+=" ruff"; \
	$(BIN)/mypy || failed+=" mypy"; \
	$(PYTEST) $(PARALLEL) --dist loadscope $(NBVAL) tests notebooks || failed+=" pytest"; \
	if [ -n "$$failed" ]; then echo "make test failed:$$failed"; exit 1; fi

# The types are checked while the tests run: both cores have something to do.
.PHONY: quick
quick: $(READY) ## check style, types, the losses, and what imports a module that is not committed yet
	@failed=; \
	$(BIN)/ruff check --quiet $(LINTED) && $(BIN)/ruff format --check --quiet $(LINTED) || failed+=" ruff"; \
	$(BIN)/mypy --no-error-summary & types=$$!; \
	$(PYTEST) --changed -q --no-header $(PARALLEL) tests || failed+=" pytest"; \
	wait $$types || failed+=" mypy"; \
	if [ -n "$$failed" ]; then echo "make quick failed:$$failed"; exit 1; fi

.PHONY: format
format: $(READY) ## lay out the code, and mend what can be mended without thought
	$(BIN)/ruff check --fix --quiet $(LINTED) || true
	$(BIN)/ruff format $(LINTED)

.PHONY: chapter
chapter: $(READY) ## begin a chapter that builds and passes its tests: make chapter NAME=a-slug [TITLE="..."]
	@if [ -z '$(NAME)' ]; then echo "Which chapter? For example: make chapter NAME=names-with-a-wish"; exit 2; fi
	$(FIXED) $(BIN)/python book/scaffold.py '$(NAME)' $(if $(TITLE),--title '$(TITLE)')
	@$(MAKE) --no-print-directory ledger

.PHONY: claim
claim: $(READY) ## run the checks of one claim alone: make claim ID=E2
	@if [ -z '$(ID)' ]; then echo "Which claim? For example: make claim ID=E2"; exit 2; fi
	$(PYTEST) --claim '$(ID)' -v $(PARALLEL) --dist loadscope $(NBVAL) tests notebooks

.PHONY: mutants
mutants: $(READY) ## apply each deliberate error in turn; fail if one survives
	@survived=0; $(FIXED) $(BIN)/python -m tests.mutation.deliberate || survived=1; \
	$(MAKE) --no-print-directory ledger; exit $$survived

.venv/mutation: tests/mutation/requirements.txt $(READY)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --target $@ --upgrade -r $<
	@touch $@

# They run for an hour or so; a hunt that is stopped goes on where it was.
.PHONY: mutants-generated
mutants-generated: .venv/mutation ## generate errors by the hundred; fail if the tests notice too few of them
	$(FIXED) $(ONE_THREAD) $(BIN)/python -m tests.mutation.generated --workers $(WORKERS)
	@$(MAKE) --no-print-directory ledger

.PHONY: mutants-algebra
mutants-algebra: $(READY) ## edit the algebra of every chapter, one edit at a time; fail if a check misses one
	@missed=0; $(FIXED) $(ONE_THREAD) $(BIN)/python -m tests.mutation.algebra --workers $(WORKERS) || missed=1; \
	$(MAKE) --no-print-directory ledger; exit $$missed

.PHONY: ledger
ledger: $(READY) ## write the ledger page from the registry of claims
	$(FIXED) $(BIN)/python -m book.ledger

.PHONY: execute
execute: $(READY) ## re-run the notebooks in place, then the ledger: make execute [NOTEBOOKS=...]
	$(FIXED) $(BIN)/python book/execute.py $(NOTEBOOKS)
	@$(MAKE) --no-print-directory ledger

.PHONY: serve
serve: $(READY) ## serve the built book on this machine only: make serve [PORT=8000]
	$(BIN)/python -m http.server --bind 127.0.0.1 --directory _build/html $(PORT)

# torch first and spelt so: it then brings no CUDA where a CPU build is offered, and its local
# version (+cpu) is left out of the lock, so that the lock holds wherever it is installed.
.PHONY: lock
lock: ## re-lock requirements.txt from pyproject.toml, in a fresh environment (needs the network)
	@fresh=$$(mktemp -d); trap 'rm -rf "$$fresh"' EXIT; \
	$(PYTHON) -m venv "$$fresh/venv"; pip="$$fresh/venv/bin/python -m pip --disable-pip-version-check"; \
	$$pip install --quiet torch==$(TORCH_VERSION); \
	$$pip install --quiet -e '.[book,test,experiments,cluster]'; \
	echo "# Everything that is installed, pinned for Python 3.11. Written by 'make lock'; do not edit." > "$$fresh/lock"; \
	$$pip freeze --all --exclude pip --exclude-editable | sed -E 's/\+[A-Za-z0-9.]+$$//' >> "$$fresh/lock"; \
	cp "$$fresh/lock" requirements.txt

.PHONY: test-peers
test-peers: $(READY) ## record the peers' losses afresh, in environments of their own, and compare
	PYTHON='$(PYTHON)' bash tests/peers/run

# A stopped run goes on from its checkpoint.
.PHONY: experiments
experiments: $(READY) ## run every study whose results are not there: make experiments [WORKERS=...]
	$(ONE_THREAD) $(BIN)/python -m experiments --workers $(WORKERS)

.PHONY: live
live: $(READY) ## run a chapter's longer check, and show it beside what is stored: make live NAME=names-with-a-wish
	@if [ -z '$(NAME)' ]; then echo "Which chapter? For example: make live NAME=names-with-a-wish"; exit 2; fi
	$(ONE_THREAD) $(BIN)/python -m experiments.live '$(NAME)'

# The peer has an environment of its own; everything else runs in ours.
.PHONY: bench
bench: $(READY) ## time a training step beside torchgfn's, and write the page on speed: make bench [THREADS=2]
	PYTHON='$(PYTHON)' bash benchmarks/environment
	$(BIN)/python -m benchmarks.run --threads $(THREADS)
	@$(MAKE) --no-print-directory bench-page

.PHONY: bench-page
bench-page: $(READY) ## write the page on speed from the record, without measuring
	$(FIXED) $(BIN)/python -m benchmarks.page

.PHONY: clean
clean: ## remove what was built; keep .venv
	rm -rf _build build src/*.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
