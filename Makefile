# The commands of people and CI. Each target takes VENV=path to reuse an environment.
VENV ?= .venv
# The first that runs and has a supported version: a name alone may be a launcher of a version that is not installed.
FITS := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(shell for name in python3 python3.13 python3.12 python3.11; do \
  $$name -c '$(FITS)' 2>/dev/null && echo $$name && break; done)
READY := $(VENV)/.locked

export PATH := $(abspath $(VENV))/bin:$(PATH)
export PYTHONPATH := $(CURDIR)/src
export ORT_DISABLE_TELEMETRY := 1
export MLFLOW_DISABLE_TELEMETRY := true
export DO_NOT_TRACK := true
export DVC_NO_ANALYTICS := true

# Packages and what they build see no credentials: `env -u NAME …` for every variable that looks like one.
NO_SECRETS = env $$(env | grep -oE '^[A-Za-z0-9_]*(TOKEN|SECRET|PASSWORD|CREDENTIAL|CONNECTION_STRING|KEY|AWS_|MLFLOW_TRACKING_|GIT_CONFIG_)[A-Za-z0-9_]*=' | tr -d = | sed 's/^/-u /')

# Two tests at once on two cores: OpenMP threads that wait for a core spin instead of working.
ONE_THREAD := OMP_NUM_THREADS=1

.DEFAULT_GOAL := help
.PHONY: help environment repro experiments retrain test test-long check packages ui bench lock serve

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-11s %s\n", $$1, $$2}'

environment: $(READY) ## install the locked packages into .venv; other targets do so when they need it

repro: $(READY) ## run the pipeline (dvc repro) and print the results
	@python pipelines/repro.py

retrain: $(READY) ## train on new data, compare with the champion, promote a better model; PUSH=1 pushes
	@python pipelines/retrain.py

test: $(READY) ## all tests except the slow ones; what CI runs (15 to 25 minutes on two cores)
	@$(ONE_THREAD) python -m pytest -n 2 --dist load --maxschedchunk 1 -m "not slow"

test-long: $(READY) ## the slow tests: CIFAR-10, the classic networks, the uv environment
	@python -m pytest -m slow

check: $(READY) ## lint, types and the fast tests
	@ruff check . && ruff format --check . && mypy
	@$(ONE_THREAD) python -m pytest -n 2 --dist loadscope -q -m "not slow and not pipeline"

packages: ## install the Chromium, npm and PostgreSQL that tests need (apt or brew)
	@.ci/packages

# Hashes of folders, energy and timings would make the table several screens wide.
OTHER_COLUMNS := .*/|data$$|.*loss|best|energy|deploy|test\.(accuracy_|macro|ece)|labels|train\.(acc|epochs_|sec)

experiments: $(READY) ## compare DVC experiments: accuracy, and the params that differ
	@dvc exp show --only-changed --drop '$(OTHER_COLUMNS)'

ui: $(READY) ## serve the MLflow UI on the runs and print its address
	@convoy ui --port $(or $(PORT),5000)

serve: $(READY) ## answer images over HTTP with the champion, or MODEL=file; PORT=8000
	@convoy serve $(if $(MODEL),--model $(MODEL)) --port $(or $(PORT),8000)

bench: $(READY) ## time the pipeline and write benchmarks/RESULTS.md
	@python benchmarks/run.py

COMPILE := uv pip compile --universal --python-version 3.11 --upgrade --generate-hashes --no-emit-index-url --no-header --no-annotate
# The locks of the images have the versions of Convoy's own.
IMAGE_LOCKS := requirements-serve requirements-registry docker/mlflow/requirements

lock: $(READY) ## resolve pyproject.toml into requirements.txt and the images' locks, with hashes
	@echo "torch==2.14.1 torchvision==0.29.1" | tr " " "\n" | $(COMPILE) pyproject.toml --constraint - --extra dev -o requirements.txt
	@for name in $(IMAGE_LOCKS); do $(COMPILE) $$name.in --constraint requirements.txt -o $$name.txt || exit; done

ifeq ($(origin VENV),file)
$(READY): requirements.txt pyproject.toml
	@"$(PYTHON)" -c '$(FITS)' 2>/dev/null || { echo "No Python 3.11 to 3.13 found (tried: $(or $(PYTHON),python3 and python3.11 to 3.13)). Install one, or type: make PYTHON=/path/to/python3.12 …"; exit 2; }
	@echo "Installing the locked packages into $(VENV) (5 GB with CUDA; about two minutes) …"
	@$(PYTHON) -m venv $(VENV)
	@$(NO_SECRETS) $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.txt
	@$(NO_SECRETS) $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@
else
# An environment given by VENV= is used as it is.
$(READY):
	@test -x $(VENV)/bin/dvc || { echo "$(VENV) has no environment with Convoy's packages. Type: make repro (which creates .venv), or VENV=path of such an environment."; exit 2; }
endif
