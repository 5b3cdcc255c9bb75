# The list of commands. `make help` prints it.
SHELL := /bin/bash
.DEFAULT_GOAL := help
export HOLDFAST_CACHE ?= $(HOME)/.cache/holdfast
# Builds are kept outside the checkout, so that a fresh clone starts warm.
export CARGO_TARGET_DIR ?= $(HOLDFAST_CACHE)/target

.PHONY: help
help: ## Print this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: run
run: ## Install what is missing, build, and serve examples/ on localhost: no cluster, no Redis
	@hack/packages.sh build
	@hack/release.sh build --release --locked -p holdfast-cli
	@PATH="$(CARGO_TARGET_DIR)/release:$$PATH" holdfast dev -f examples/

.PHONY: install
install: ## Put the holdfast command on your PATH (into ~/.cargo/bin)
	@hack/packages.sh build
	@hack/release.sh install --quiet --locked --path crates/cli

.PHONY: test
test: ## Install what is missing and run everything: format, lints, rules, unit, conformance, chart, cluster
	@hack/test.sh

.PHONY: test-fast
test-fast: ## The part of `make test` that needs no cluster
	@hack/test.sh fast

.PHONY: fmt
fmt: ## Format the code
	@cargo fmt --all

.PHONY: lint
lint: ## Format check, clippy, and the rules of deny.toml
	@hack/test.sh lint

.PHONY: gen
gen: ## Write the generated files: crds/ and the chart's copy of them
	@hack/gen.sh

.PHONY: bench
bench: ## Measure against the floors, print a table, write docs/performance.md
	@hack/bench.sh

.PHONY: layout
layout: ## Write hack/layout.txt anew: which functions lie together in a release program
	@hack/layout.sh

.PHONY: cluster-up
cluster-up: ## Start a real Kubernetes on this machine, and print how to use it
	@e2e/cluster/cluster.sh up

.PHONY: cluster-down
cluster-down: ## Stop it
	@e2e/cluster/cluster.sh down

.PHONY: clean
clean: ## Remove the builds (tools and images stay cached)
	@cargo clean
