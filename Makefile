# Agent Factory. `make` alone lists the targets. Everything outside the checkout goes to AF_CACHE_DIR.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules --no-print-directory
.DELETE_ON_ERROR:

# A CPython built without its optimisations, as version managers do, runs this at two thirds of the speed: then the
# system's own is taken, if it can make environments. Asked only where one is made.
PYTHON ?= $(shell { python3 -c 'import sysconfig; exit("--enable-optimizations" not in sysconfig.get_config_var("CONFIG_ARGS"))' \
	&& echo python3; } 2> /dev/null \
	|| { /usr/bin/python3 -c 'import ensurepip, sys; exit(sys.version_info < (3, 11))' && echo /usr/bin/python3; } 2> /dev/null \
	|| echo python3)
UV_VERSION := 0.13.9
BUF_VERSION := 1.75.0
OPA_VERSION := 1.22.2
# It has no releases.
OMNIWITNESS_VERSION := 20260720115447-2e1c6971d19e
HELM_VERSION := 4.3.1
export AF_CACHE_DIR ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/agentfactory
# rustup puts cargo where a plain shell of root does not look.
export PATH := $(PATH):$(HOME)/.cargo/bin
export UV_PROJECT_ENVIRONMENT := .venv
export UV_PYTHON_DOWNLOADS := never
export UV_LINK_MODE := copy
export ZIG_GLOBAL_CACHE_DIR := $(AF_CACHE_DIR)/zig

BIN := .venv/bin
UV := $(AF_CACHE_DIR)/uv-$(UV_VERSION)/bin/uv
BUF := $(AF_CACHE_DIR)/buf-$(BUF_VERSION)/node_modules/.bin/buf
OPA := $(AF_CACHE_DIR)/opa-$(OPA_VERSION)/bin/opa
PROMTOOL := $(AF_CACHE_DIR)/prometheus/promtool
OMNIWITNESS := $(AF_CACHE_DIR)/omniwitness-$(OMNIWITNESS_VERSION)/bin/omniwitness
HELM := $(AF_CACHE_DIR)/helm-$(HELM_VERSION)/bin/helm
# What is in it: tests/platform/kubernetes/go.mod.
KUBERNETES := $(AF_CACHE_DIR)/kubernetes-1.37.2/bin
READY := .venv/.ready
# What a new engine depends on; its tests do not count.
ENGINE_SOURCES := $(shell find data_plane/engine -type f \( -path '*/src/*.rs' -o -name 'Cargo.*' -o -name pyproject.toml \
	-o -name build_engine.py -o -path '*/agentfactory_engine/*.py*' \) -not -name '*.pyc' 2>/dev/null)

.PHONY: help
help: ## list the targets
	@sed -nE 's/^([a-z][a-z-]*):.*## (.*)/  make \1\t\2/p' Makefile | expand -t 20

.PHONY: demo
demo: $(READY) ## run one signed agent end to end on this machine, then stop everything
	@$(BIN)/python -m cli.demo

.PHONY: up
up: $(READY) ## start Postgres, control plane and one node in the foreground; Ctrl-C stops them
	@$(BIN)/agentfactory up

.PHONY: test
test: $(READY) $(BUF) $(OPA) $(OMNIWITNESS) ## all checks and all tests; installs the servers that they need
	@$(BIN)/python -m tests.tools.stages

.PHONY: test-platform
test-platform: $(READY) $(HELM) $(PROMTOOL) $(OPA) ## what operators install, on a real Docker engine and Kubernetes API server; as root on Debian it installs that engine
	@UV=$(UV) HELM=$(HELM) PROMTOOL=$(PROMTOOL) OPA=$(OPA) KUBERNETES=$(KUBERNETES) \
		$(BIN)/python -m tests.tools.stages --only platform

.PHONY: check
check: $(READY) $(BUF) $(OPA) $(OMNIWITNESS) ## formatting, lint, types, import rules, drift, dependencies, secrets, documentation, Rust lint
	@$(BIN)/python -m tests.tools.stages --only check

.PHONY: bench
bench: $(READY) ## measure against the bars; writes build/bench/*.json, exits 1 when a bar is missed
	@$(BIN)/python -m tests.bench

.PHONY: bench-sandbox
bench-sandbox: $(READY) ## measure the sandbox beside native code, about 5 minutes; ARGS="workers agents" for some parts
	@$(BIN)/python -m tests.bench.sandbox $(ARGS)

.PHONY: fuzz
fuzz: $(READY) ## guests, peers and workers that say anything, for 10 minutes (MINUTES=N for others, 0 for ever); build/fuzz/
	@$(BIN)/python -m tests.fuzz --seconds $$(( $(or $(MINUTES),10) * 60 ))

.PHONY: chaos
chaos: $(READY) ## every fault, one after the other, under load (about 20 minutes); writes build/chaos.json
	@$(BIN)/python -m tests.chaos

.PHONY: soak
soak: $(READY) ## 30 minutes of load (MINUTES=N for others): no process grows; writes build/soak.json
	@$(BIN)/python -m tests.chaos.soak --minutes $(or $(MINUTES),30)

.PHONY: bench-peers
bench-peers: .venv-peers/.ready ## measure Agent Factory beside job queues, about 20 minutes; ARGS="--quick celery" for less
	@.venv-peers/bin/python -m tests.bench.peers $(ARGS)

.PHONY: bench-scale
bench-scale: $(READY) ## how cost grows with nodes, replicas and history, about 20 minutes; ARGS=--quick for less
	@$(BIN)/python -m tests.bench.scale $(ARGS)

.PHONY: bench-pressure
bench-pressure: $(READY) ## what happens past saturation: a flood, four times the capacity; about 6 minutes; ARGS=--quick for less
	@$(BIN)/python -m tests.bench.pressure $(ARGS)

.PHONY: proto
proto: $(READY) $(BUF) ## generate protos/gen from protos/agentfactory and lint the contract
	@$(BIN)/python protos/generate.py
	@$(BIN)/python protos/generate.py --lint $(BUF)

.PHONY: docs
docs: $(READY) ## build the site of docs/ into build/site; a broken link or a page out of date is an error
	@$(BIN)/python -m tests.tools.docs_site

.PHONY: reference
reference: $(READY) ## write docs/reference anew: commands, contract, routes
	@$(BIN)/python -m tests.tools.reference

.PHONY: sbom
sbom: $(READY) ## write build/sbom.json: every package and crate of what is shipped (CycloneDX)
	@$(BIN)/python -m tests.tools.sbom $(UV)

.PHONY: guests
guests: $(READY) ## build the runtime of JavaScript agents and install it here; ARGS="javascript python" also CPython, which takes long
	@mkdir -p build/guests
	@$(BIN)/python guests/build.py --wheel build/guests $(or $(ARGS),javascript)
	@$(UV) pip install --quiet --no-deps --reinstall --python $(BIN)/python build/guests/*.whl

.PHONY: images
images: $(READY) ## build the container images for docker compose and Helm (BASE=IMAGE for another base)
	@$(BIN)/python docker/images.py --uv $(UV) $(if $(BASE),--base $(BASE))

.PHONY: audit
audit: $(READY) ## look every locked package and crate up; fails also when that is not possible (needs internet and cargo-audit)
	@$(BIN)/python -m tests.tools.vulnerabilities

.PHONY: ready
ready: $(READY) ## only the environment: .venv, locked dependencies, the engine wheel

$(UV):
	@echo "· installing uv $(UV_VERSION) into $(AF_CACHE_DIR)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "agentfactory needs Python 3.11 or later; set PYTHON=<path of one>" >&2; exit 4; }
	@rm -rf $(AF_CACHE_DIR)/uv-$(UV_VERSION) && mkdir -p $(AF_CACHE_DIR)
	@$(PYTHON) -m venv $(AF_CACHE_DIR)/uv-$(UV_VERSION) \
		|| { echo "python cannot make a virtual environment; on Debian: apt-get install python3-venv" >&2; exit 4; }
	@$(AF_CACHE_DIR)/uv-$(UV_VERSION)/bin/python -m pip install --quiet --disable-pip-version-check \
		--root-user-action ignore uv==$(UV_VERSION)

$(READY): $(UV) pyproject.toml uv.lock $(ENGINE_SOURCES)
	@echo "· engine: built once for these sources, then taken from $(AF_CACHE_DIR)"
	@$(PYTHON) data_plane/engine/build_engine.py
	@echo "· environment: .venv from uv.lock"
	@# Byte code at once: where Python may write none, every process would compile all libraries anew, half a second each.
	@$(UV) sync --frozen --quiet --compile-bytecode --python $(PYTHON)
	@touch $@

.venv-peers/.ready: $(READY)
	@echo "· environment of the peers: .venv-peers from uv.lock"
	@UV_PROJECT_ENVIRONMENT=.venv-peers $(UV) sync --frozen --quiet --group peers --python $(PYTHON)
	@touch $@

$(BUF):
	@echo "· installing buf $(BUF_VERSION) into $(AF_CACHE_DIR)"
	@command -v npm >/dev/null || { echo "buf comes from npm; on Debian: apt-get install npm" >&2; exit 4; }
	@mkdir -p $(AF_CACHE_DIR)/buf-$(BUF_VERSION)
	@npm install --silent --no-audit --no-fund --prefix $(AF_CACHE_DIR)/buf-$(BUF_VERSION) @bufbuild/buf@$(BUF_VERSION)

$(OPA):
	@echo "· building opa $(OPA_VERSION) into $(AF_CACHE_DIR)"
	@command -v go >/dev/null || { echo "opa is built with Go 1.24 or later: https://go.dev/dl" >&2; exit 4; }
	@GOBIN=$(AF_CACHE_DIR)/opa-$(OPA_VERSION)/bin CGO_ENABLED=0 go install -trimpath -ldflags "-s -w" \
		github.com/open-policy-agent/opa@v$(OPA_VERSION)

$(OMNIWITNESS):
	@echo "· building omniwitness $(OMNIWITNESS_VERSION) into $(AF_CACHE_DIR)"
	@command -v go >/dev/null || { echo "omniwitness is built with Go 1.25 or later: https://go.dev/dl" >&2; exit 4; }
	@GOBIN=$(AF_CACHE_DIR)/omniwitness-$(OMNIWITNESS_VERSION)/bin CGO_ENABLED=0 go install -trimpath -ldflags "-s -w" \
		github.com/transparency-dev/witness/cmd/omniwitness@v0.0.0-$(OMNIWITNESS_VERSION)

$(HELM):
	@echo "· building helm $(HELM_VERSION) into $(AF_CACHE_DIR)"
	@command -v go >/dev/null || { echo "helm is built with Go 1.26 or later: https://go.dev/dl" >&2; exit 4; }
	@GOBIN=$(AF_CACHE_DIR)/helm-$(HELM_VERSION)/bin CGO_ENABLED=0 go install -trimpath -ldflags "-s -w" \
		helm.sh/helm/v4/cmd/helm@v$(HELM_VERSION)

$(PROMTOOL):
	@echo "· unpacking Prometheus into $(AF_CACHE_DIR)"
	@tests/platform/install_prometheus.sh $(AF_CACHE_DIR)/prometheus
