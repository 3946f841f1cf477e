# `make help` lists the targets. Everything runs in a virtual environment of its own; nothing else is needed but Python 3.11.
PYTHON ?= python3
VENV ?= .venv
BUILD ?= build
DEMO := $(BUILD)/demo
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# Processes that run tests side by side: more than there are cores, as many tests wait for a clock or a process.
WORKERS ?= $(shell expr $$(nproc 2>/dev/null || echo 2) + 2)

.DEFAULT_GOAL := help
.PHONY: help install lock demo docs serve soak bench bench-overload bench-gpu check-gpu prometheus postgres robustness-drill test test-quick test-slow fuzz lint types protos dashboards image image-test sbom audit release-check clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 27

install: $(INSTALLED)  ## create the virtual environment and install everything in it

PIP := $(BIN)/python -m pip --disable-pip-version-check
TORCH := $(shell sed -n '/^torch==/p' requirements/constraints.txt)

# torch comes from whatever index pip is set up with: its builds for CPUs and for CUDA have the same version.
$(INSTALLED): pyproject.toml requirements/dev.txt requirements/constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --progress-bar on --no-deps --require-hashes -r requirements/dev.txt
	$(PIP) install --progress-bar on $(TORCH)
	$(PIP) install --quiet --no-deps --no-build-isolation -e .
	$(PIP) check
	@touch $@

# The packages below come with torch's build for CUDA. No index is named in a lock: pip uses the one it is set up with.
COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	--custom-compile-command 'make lock' --constraints requirements/constraints.txt $(if $(UPGRADE),--upgrade)
WITH_TORCH := $(addprefix --no-emit-package ,torch triton cuda-bindings cuda-pathfinder cuda-toolkit nvidia-cublas \
	nvidia-cuda-cupti nvidia-cuda-nvrtc nvidia-cuda-runtime nvidia-cudnn-cu13 nvidia-cufft nvidia-cufile nvidia-curand \
	nvidia-cusolver nvidia-cusparse nvidia-cusparselt-cu13 nvidia-nccl-cu13 nvidia-nvjitlink nvidia-nvshmem-cu13 nvidia-nvtx)
# grad-cam asks for these, and LayerCAM uses none of them; torchvision would bring another torch.
UNUSED := $(addprefix --no-emit-package ,torchvision opencv-python opencv-python-headless scikit-learn joblib threadpoolctl narwhals)

$(BIN)/uv:
	$(MAKE) install

lock: | $(BIN)/uv  ## pin every dependency with its hashes, in requirements/ (UPGRADE=1: take newer versions)
	$(COMPILE) requirements/build.in --output-file requirements/build.txt
	$(COMPILE) pyproject.toml --extra cpu --extra postgres --extra http --output-file requirements/serve-cpu.txt
	$(COMPILE) pyproject.toml --extra gpu --extra postgres --extra http --output-file requirements/serve-gpu.txt
	$(COMPILE) pyproject.toml --extra gpu-cuda12 --extra postgres --extra http --output-file requirements/serve-gpu-cuda12.txt
	$(COMPILE) pyproject.toml requirements/build.in $(foreach extra,cpu client formats archive http postgres otel train demo docs dev,--extra $(extra)) $(WITH_TORCH) \
		--output-file requirements/dev.txt
	$(COMPILE) pyproject.toml --extra bench --extra train --constraints requirements/dev.txt $(WITH_TORCH) $(UNUSED) \
		--output-file requirements/bench.txt

demo: $(INSTALLED)  ## train, evaluate, export, serve and ask, on synthetic speech (FRESH=1: from the start)
ifeq ($(FRESH),1)
	rm -rf $(DEMO)
endif
	@deploy/demo.sh $(BIN)/python $(DEMO)

serve: $(INSTALLED)  ## serve the demo's bundles until Ctrl-C
	@test -d $(DEMO)/bundles || { echo 'No bundles yet: run `make demo` first.' >&2; exit 1; }
	@exec $(BIN)/python -m serving --bundles $(DEMO)/bundles

soak: $(INSTALLED)  ## 20 minutes of mixed traffic against a real server: its answers and its memory (MINUTES=5: shorter)
	$(BIN)/python -m benchmarks.soak --minutes $(or $(MINUTES),20)

# What the lock of everything else has is installed already; the peers' other dependencies are not used.
bench: $(INSTALLED)  ## compare with PyTorch, Triton and others: explaining, serving, growth, training, archives (ONLY=PREFIX)
	@test -d $(DEMO)/bundles || { echo 'No bundles yet: run `make demo` first.' >&2; exit 1; }
	$(PIP) install --quiet --no-deps --require-hashes -r requirements/bench.txt
	$(BIN)/python -m benchmarks.peers --bundles $(DEMO)/bundles --build $(BUILD)/peers $(if $(ONLY),--only $(ONLY)) $(if $(FRESH),--fresh)

bench-overload: $(INSTALLED)  ## overload the demo's bundles 3 and 10 times, 20 minutes: goodput, deadlines kept, refusals, recovery
	@test -d $(DEMO)/bundles || { echo 'No bundles yet: run `make demo` first.' >&2; exit 1; }
	$(BIN)/python -m benchmarks.overload $(DEMO)/bundles --variant act-da --out $(BUILD)/overload

check-gpu: $(INSTALLED)  ## check this machine's GPU with the demo's bundles, or BUNDLES; says what it skips without one
	$(BIN)/python -m benchmarks.gpu $(or $(BUNDLES),$(DEMO)/bundles) --out $(BUILD)/gpu.json

bench-gpu: $(INSTALLED)  ## the speed of a bundle on this machine's GPU, under 8 minutes (BUNDLE=DIR/variant/1)
	$(BIN)/python -m benchmarks.gpu_speed $(or $(BUNDLE),$(DEMO)/bundles/act-da/1) --out $(BUILD)/gpu_speed.json

prometheus: $(INSTALLED)  ## fetch prometheus and promtool into the virtual environment (Debian; elsewhere, install them)
	@deploy/prometheus/fetch.sh $(abspath $(BIN))

postgres: $(INSTALLED)  ## fetch PostgreSQL's programs, for the tests, into the virtual environment (Debian; elsewhere, install them)
	@deploy/postgres/fetch.sh $(abspath $(VENV))/postgres

robustness-drill: $(INSTALLED)  ## play noise and babble to the demo's bundles, and check that the alerts fire and clear (MINUTES=2: shorter)
	@deploy/prometheus/fetch.sh $(abspath $(BIN))
	$(BIN)/python -m deploy.drill --minutes $(or $(MINUTES),5)

# Compiled files save a third of a second in each of the processes that the tests start, whatever the environment says.
TESTS = OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest

# Without Prometheus' or PostgreSQL's programs the tests that need them are skipped, and named at the end; .ci/run has
# none of that.
test: $(INSTALLED)  ## run all tests but the slow ones
	@deploy/prometheus/fetch.sh $(abspath $(BIN)) || echo 'Tests that need prometheus or promtool will be skipped.' >&2
	@deploy/postgres/fetch.sh $(abspath $(VENV))/postgres || echo 'Tests that need PostgreSQL will be skipped.' >&2
	$(TESTS) -m "not slow" -n $(WORKERS) --dist loadfile --no-loadscope-reorder
	@echo 'Not run: what is marked slow; `make test-slow` runs it.'

test-quick: $(INSTALLED)  ## run the unit tests: those that start no process, for the loop of a developer
	$(TESTS) -q -m "unit and not slow" -n $(WORKERS) --dist loadfile

fuzz: $(INSTALLED)  ## try EXAMPLES (5000) new bad inputs of each kind, and print what came of them
	FUZZ_EXAMPLES=$(or $(EXAMPLES),5000) $(BIN)/python -m pytest tests/serving/fuzz

test-slow: $(INSTALLED)  ## run the slow tests; they fetch the tools they need and say which are not available
	$(BIN)/python -m pytest -m slow

lint: $(INSTALLED)  ## check style, and the Dockerfile
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/hadolint Dockerfile

types: $(INSTALLED)  ## check types
	$(BIN)/mypy

protos: $(INSTALLED)  ## regenerate the code of the wire contract
	PATH="$(abspath $(BIN)):$$PATH" protos/generate.sh

dashboards: $(INSTALLED)  ## write Grafana's JSON from deploy/grafana
	$(BIN)/python -m deploy.grafana

docs: $(INSTALLED)  ## write the pages of docs/ as a site into build/site
	$(BIN)/mkdocs build --strict --quiet --site-dir $(abspath $(BUILD))/site

image:  ## build the serving image for CPUs, with docker where it runs, else buildah (TARGET=gpu: with CUDA)
	$(PYTHON) -m deploy.image $(or $(TARGET),cpu)

image-test: $(INSTALLED)  ## build the image twice, run it without rights, and compare its answers (GPU=1: build that one, too)
	$(BIN)/python -m deploy.image.check $(if $(BUNDLES),--bundles $(BUNDLES)) $(if $(GPU),--gpu) --out $(BUILD)/image.json

sbom: $(INSTALLED)  ## write the images' bills of materials, CycloneDX, from the locks
	$(foreach lock,serve-cpu serve-gpu serve-gpu-cuda12,$(BIN)/python deploy/image/sbom.py requirements/$(lock).txt --out $(BUILD)/sbom/$(lock).cdx.json &&) true

audit: $(INSTALLED)  ## look up the locks' packages in PyPI's advisories, with pip-audit in an environment of its own
	test -x $(BUILD)/audit/bin/pip-audit || { $(PYTHON) -m venv $(BUILD)/audit && $(BUILD)/audit/bin/python -m pip install --quiet 'pip-audit>=2.9'; }
	$(BUILD)/audit/bin/pip-audit --disable-pip --no-deps $(foreach lock,serve-cpu serve-gpu dev,--requirement requirements/$(lock).txt)

release-check: $(INSTALLED)  ## check version, contracts and packages, and install them into empty environments
	$(BIN)/python -m deploy.release

clean:  ## remove everything made here but the virtual environment
	rm -rf $(BUILD)
