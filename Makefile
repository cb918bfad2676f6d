# Set-up, tests and the quickstart. `make help` lists what there is; docs/INSTALL.md has the plain
# commands behind it.

# The Python that creates the environment (3.10 or newer).
PYTHON ?= python3
# The environment's folder, shared by all targets.
VENV ?= .venv
# 1: use the Python environment that is active now, with its Detectron2; nothing is installed.
USE_ACTIVE_ENV ?=
# Folder of another Detectron2 (one that holds the package `detectron2`) to use instead.
DETECTRON2 ?=
# Arguments for pytest, e.g. make test PYTEST_ARGS="tests/data -x".
PYTEST_ARGS ?=

QUICKSTART_CONFIG := configs/quickstart.yaml
QUICKSTART_OUTPUT := output/quickstart
QUICKSTART_RECORDED := docs/recorded/quickstart_mask_rcnn.json \
  docs/recorded/quickstart_no_box_supervision.json

ifeq ($(filter 1 yes true,$(USE_ACTIVE_ENV)),)
ENV_PYTHON := $(VENV)/bin/python
BOOTSTRAP_ARGS := --venv "$(VENV)"
else
ENV_PYTHON := $(PYTHON)
BOOTSTRAP_ARGS := --active
endif

ifneq ($(DETECTRON2),)
BOOTSTRAP_ARGS += --detectron2 "$(DETECTRON2)"
export PYTHONPATH := $(abspath $(DETECTRON2))$(if $(PYTHONPATH),:$(PYTHONPATH))
endif

.DEFAULT_GOAL := help
.PHONY: help environment test quickstart lint uninstall

help:
	@echo "make quickstart   install, prepare the built-in data, train, evaluate, draw"
	@echo "make test         install what is missing and run the tests"
	@echo "make environment  install only"
	@echo "make lint         check the style of the code"
	@echo "make uninstall    remove the environment ($(VENV))"
	@echo "Settings: PYTHON=python3.12  VENV=folder  USE_ACTIVE_ENV=1  DETECTRON2=folder"

environment:
	@command -v "$(PYTHON)" >/dev/null || { \
	  echo "error: there is no '$(PYTHON)' here. Install Python 3.10 or newer, or name one:" \
	       "make $(or $(MAKECMDGOALS),test) PYTHON=/path/to/python3" >&2; exit 1; }
	@"$(PYTHON)" tools/install/bootstrap.py $(BOOTSTRAP_ARGS)

test: environment
	"$(ENV_PYTHON)" -m pytest $(PYTEST_ARGS)

# The data is written once; training starts anew each time.
quickstart: environment
	"$(ENV_PYTHON)" tools/prepare_shapes.py
	"$(ENV_PYTHON)" train_net.py --config-file $(QUICKSTART_CONFIG)
	"$(ENV_PYTHON)" tools/draw_predictions.py --config-file $(QUICKSTART_CONFIG) \
	  --weights $(QUICKSTART_OUTPUT)/model_final.pth --output $(QUICKSTART_OUTPUT)/predictions.png
	@"$(ENV_PYTHON)" tools/show_results.py $(QUICKSTART_OUTPUT)/results.json \
	  --recorded $(QUICKSTART_RECORDED)
	@echo "Pictures: $(QUICKSTART_OUTPUT)/predictions.png  Report: $(QUICKSTART_OUTPUT)/report.html"

lint: environment
	"$(ENV_PYTHON)" -m ruff check .
	"$(ENV_PYTHON)" -m ruff format --check .

uninstall:
	@test -f "$(VENV)/contrastmask-install.json" || { \
	  echo "error: $(VENV) was not made by this Makefile; nothing removed." >&2; exit 1; }
	rm -r "$(VENV)"
