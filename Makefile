# Every target installs what it needs. `make help` lists them.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
export SEMIPD_CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/semipd

.PHONY: help venv model deps tools images demo demo-down test test-long lint fmt e2e gpu-wheels gpu-check gpu-mutations gpu-predictions bench-auto bench-scale bench-split bench-kernels bench-token bench-mixed bench-cpu bench-estimate bench-goodput bench-study bench-capacity bench-replicas bench-slo crd docs clean

help: ## this list
	@grep -hE '^[a-z][a-z-]*:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 18

venv: ## the Python environment in .venv (TORCH_INDEX=URL takes torch from elsewhere)
	@PYTHON=$(PYTHON) TORCH_INDEX=$(TORCH_INDEX) ./hack/venv $(VENV)

model: venv ## the folder of the examples' small model, models/smollm2-135m-instruct (98 MB, once)
	@$(PY) e2e/lib/models.py smollm2 --out models/smollm2-135m-instruct

deps: ## install the Debian packages that the local cluster needs (root)
	@$(PYTHON) hack/cluster/cluster deps

tools: ## build the Kubernetes programs, CoreDNS and helm (cached outside the clone)
	@$(PYTHON) hack/cluster/tools build

images: deps ## build the container images; REGISTRY=host/path pushes them
	@REGISTRY=$(REGISTRY) TORCH_INDEX=$(TORCH_INDEX) $(PYTHON) images/build

demo: ## a cluster, the operator, a model answering, a moving split (CLUSTER=local|existing|none)
	@CLUSTER=$(CLUSTER) REGISTRY=$(REGISTRY) PYTHON=$(PYTHON) ./e2e/demo/run

demo-down: ## remove what `make demo` left running
	@$(PYTHON) hack/cluster/cluster down

test: venv ## every test tier, then a table; fails if a tier but gpu runs nothing or skips
	@$(PY) tests/tiers.py $(TIERS)

test-long: venv ## what `make test` has no time for: many schemas, requests, and a million steps of the scheduler
	@$(PY) tests/tiers.py long

e2e: venv ## the node tier only: a real cluster
	@$(PY) tests/tiers.py node

lint: venv ## ruff, mypy --strict, import rules
	@$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy
	@$(VENV)/bin/lint-imports --no-cache

fmt: venv ## format the code
	@$(VENV)/bin/ruff check --fix . && $(VENV)/bin/ruff format .

gpu-wheels: venv ## the packages that a CUDA image lacks, as wheels in out/gpu-wheels (PYTHON_THERE=3.12)
	@$(PY) -m tests.gpu.wheels --python $(or $(PYTHON_THERE),3.12)

gpu-check: ## what only a GPU can show, in ten minutes: out/gpu; needs Python and torch (docs/gpu/README.md)
	@$(if $(wildcard $(PY)),$(PY),$(PYTHON)) -B -m tests.gpu.check $(if $(WHEELS),--wheels "$(WHEELS)") $(if $(PROBE),--probe "$(PROBE)") $(ARGS)

gpu-mutations: venv ## the seeded defects, and which of them the tests without a GPU find: docs/gpu/mutations.md
	@$(PY) -m bench.gpu.mutations $(ARGS)

gpu-predictions: venv ## what a step should take on a GPU, from the engine as it is: docs/gpu/predictions.json
	@$(PY) -m bench.gpu.predictions

bench-auto: venv tools images ## Auto under recorded traffic on the local cluster, 25 minutes: out/auto_split.json, .png
	@PYTHONPATH=.:hack/cluster $(PY) -m bench.auto_split $(ARGS)

bench-scale: venv tools images ## replicas under a rising, constant and ended load, 15 minutes: out/autoscale.json, .png
	@PYTHONPATH=.:hack/cluster $(PY) -m bench.autoscale $(ARGS)

bench-kernels: venv ## the compiled kernels beside torch and the machine's limits (JSON and plot in out/bench)
	@$(PY) -m bench.kernels $(ARGS)

bench-split: venv ## what a split does to prefill's service time (JSON and plot in out/bench)
	@$(PY) -m bench.split_rate $(ARGS)

bench-token: venv ## where a token's time goes, and the machine's limits
	@$(PY) -m bench.token_time $(ARGS)

bench-mixed: venv ## a step with a part of a prompt and decode rows, beside the best that it could (JSON and plot in out/bench)
	@$(PY) -m bench.mixed_time $(ARGS)

bench-estimate: venv ## the estimator of docs/gpu/predictions.json, predicted beside measured on this CPU
	@$(PY) -m bench.gpu.cpu_check $(ARGS)

bench-study: venv ## the controller against constants and other rules, simulated: out/study; some 20 minutes, goes on where it was
	@PYTHONPATH=. $(PY) -m bench.study $(ARGS)

bench-capacity: venv ## the agents' ratio beside the brute-force knee, simulated: out/capacity; some hours of one core, goes on where it was
	@PYTHONPATH=. $(PY) -m bench.capacity $(ARGS)

bench-replicas: venv ## pods over a public trace with a ramp, by our ratio and its rivals, simulated: out/replicas; goes on where it was
	@PYTHONPATH=. $(PY) -m bench.replicas $(ARGS)

bench-cpu: venv ## the engine beside other CPU servers, which it installs: out/bench/cpu; ARGS="--quick": ten minutes
	@$(PY) -m bench.cpu $(ARGS)

bench-goodput: venv ## the greatest rate that meets the targets, ours and the best peer's, bisected: out/bench/goodput; hours
	@$(PY) -m bench.cpu.goodput_run $(ARGS)

bench-slo: venv ## Auto and the profile's predictions on the real engine, a registered run: out/bench/slo; ARGS="--quick": seven minutes
	@PYTHONPATH=. $(PY) -m bench.slo $(ARGS)

crd: venv ## regenerate the CRD, its chart copy and its reference from the types
	@$(PY) -m hack.generate

clean: ## remove everything this project built, caches outside the clone included
	-@$(PYTHON) hack/cluster/cluster down
	-@$(PYTHON) images/build --clean
	@rm -rf $(VENV) out build dist demo-report.html .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	@rm -rf "$(SEMIPD_CACHE)"
