# facemill: `make` lists the targets.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO := build/demo
PHOTOS := $(if $(DATA),$(DATA),$(DEMO)/photos)
RANKS ?= 2
# one thread a process: two ranks that fight over two cores are slower than either alone
export OMP_NUM_THREADS ?= 1
# whole runs need the cores for themselves; other tests run side by side, those of a file on one process
WHOLE_RUNS := tests/integration
RUN_TESTS = failed=0; \
  $(BIN)/python -m pytest -q $(CHOICE) -n logical --maxprocesses 8 --dist loadfile --ignore $(WHOLE_RUNS) tests || failed=1; \
  $(BIN)/python -m pytest -q $(CHOICE) --durations 12 $(WHOLE_RUNS) || failed=1; exit $$failed

help: ## List the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "missing: $(PYTHON) (install Python 3.11 or newer, or say make PYTHON=…)"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "missing: Python 3.11 or newer ($(PYTHON) is $$($(PYTHON) -V 2>&1)); say make PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "missing: the venv module (Debian: apt install python3-venv)"; exit 1; }
	@command -v c++ >/dev/null || { echo "missing: a C++ compiler (Debian: apt install g++)"; exit 1; }
	@echo "== set-up: installing into $(VENV) (about 4 minutes, 8 GB)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]' 2> >(grep -v '^WARNING: Location' >&2)
	@touch $@

setup: $(STAMP) ## Make .venv with everything in it

demo: $(STAMP) ## Photos to a verified model in 5 minutes; DATA=DIR takes your own folder of people
	@mkdir -p $(DEMO); if [ "$$(cat $(DEMO)/source 2>/dev/null)" != '$(PHOTOS)' ]; then \
	  if [ -e $(DEMO)/source ]; then echo "$(DEMO) was made from other photos: starting afresh"; fi; \
	  rm -rf $(DEMO)/data $(DEMO)/run $(DEMO)/evaluation; echo '$(PHOTOS)' > $(DEMO)/source; fi
	@if [ -z '$(DATA)' ]; then echo "== 1/4 render photos of synthetic people"; \
	  $(BIN)/preprocess synth $(DEMO)/photos --identities 200 --photos 20; fi
	@echo "== 2/4 detect, align and shard"
	@$(BIN)/preprocess shard '$(PHOTOS)' $(DEMO)/data --size 64 --samples-per-shard 1024 --val-identities 0.2
	@echo "== 3/4 train on $(RANKS) processes"
	@$(BIN)/python -m pipeline.supervise -- $(BIN)/torchrun --standalone --nproc-per-node $(RANKS) \
	  launch/train.py --config configs/demo_cpu.yaml
	@echo "== 4/4 evaluate on people the model has not seen"
	@$(BIN)/python launch/evaluate.py --model $(DEMO)/run --data $(DEMO)/data --output $(DEMO)/evaluation

test: CHOICE := -m "not slow"
test: $(STAMP) ## The test suite (20 to 40 minutes on 2 cores)
	@$(RUN_TESTS)

test-all: $(STAMP) ## The test suite with the long fault and search runs
	@$(RUN_TESTS)

lint: $(STAMP) ## Format check, lint, types
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

format: $(STAMP) ## Format and mend what the linter can
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: $(STAMP) ## Every claim about speed and memory, on the processors (20 minutes on 2 quiet cores); AGAIN=1 keeps nothing
	@$(BIN)/python benchmarks/bench.py $(if $(AGAIN),--again)

bench-gpu: $(STAMP) ## The same on a GPU
	@$(BIN)/python benchmarks/bench.py --gpu $(if $(AGAIN),--again)

k8s-render: ## Manifests to standard output: OVERLAY=gpu-8 IMAGE=registry/facemill:0.1.0 (or …@sha256:…)
	@command -v kubectl >/dev/null || { echo "missing: kubectl 1.31 or newer" >&2; exit 1; }
	@[ -n '$(OVERLAY)' ] && [ -f 'k8s/overlays/$(OVERLAY)/kustomization.yaml' ] || { \
	  echo "OVERLAY='$(OVERLAY)': expected one of $(notdir $(wildcard k8s/overlays/*))" >&2; exit 2; }
	@name='$(IMAGE)'; last="$${name##*/}"; case "$$last" in \
	  *@sha256:*) pin="digest: $${name#*@}"; name="$${name%%@*}";; \
	  *:latest|*:|*@*) pin=;; \
	  *:*) pin="newTag: \"$${last#*:}\""; name="$${name%:*}";; \
	  *) pin=;; esac; \
	  [ -n "$$pin" ] || { echo "IMAGE='$(IMAGE)': expected NAME:TAG, not latest, or NAME@sha256:…" >&2; exit 2; }; \
	  mkdir -p build/k8s/$(OVERLAY); printf '%s\n' 'resources: [../../../k8s/overlays/$(OVERLAY)]' 'images:' \
	  '  - name: facemill' "    newName: $$name" "    $$pin" > build/k8s/$(OVERLAY)/kustomization.yaml; \
	  kubectl kustomize build/k8s/$(OVERLAY)

clean: ## Remove build outputs, keep .venv
	@rm -rf build .pytest_cache .mypy_cache .ruff_cache .hypothesis

.PHONY: help setup demo test test-all lint format bench bench-gpu k8s-render clean
