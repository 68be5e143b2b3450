# The one front: CI calls the same targets as people do. `make help` lists them.

SHELL := /bin/bash
PROFILE ?= release
BIN = target/$(PROFILE)
SEED ?=
IMAGE ?=

.PHONY: help deps build-deps build image package run test verify fix sim e2e soak faults fuzz bench install clean

help: ## list the targets
	@grep -hE '^[a-z0-9]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

deps: ## install all that the tests need and that is missing, saying what
	@tests/scripts/deps.sh

build-deps:
	@tests/scripts/deps.sh build

build: build-deps ## build sbc-node and sbcctl (PROFILE=dist: as they are shipped)
	cargo build --profile $(PROFILE) -p sbc-node --bins

image: PROFILE = dist
image: build ## the container image IMAGE (sbc:VERSION), by buildah or docker
	@tests/scripts/deps.sh image
	deploy/image/build.sh $(BIN) $(IMAGE)

package: PROFILE = dist
package: build ## the Debian package, in target/debian
	@tests/scripts/deps.sh package
	deploy/debian/build.sh $(BIN)

run: build ## carry real calls through a real SBC, visibly
	@tests/scripts/deps.sh run
	@tests/scripts/demo.sh $(BIN)

test: deps ## run every test: unit, property, simulation, end to end
	@tests/scripts/test.sh

verify: build-deps ## read-only checks: format, clippy, tidy
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	@if command -v cargo-deny >/dev/null; then cargo deny check; else echo "verify: cargo-deny is not installed: licences and advisories were not checked"; fi

fix: ## format, and apply what clippy can
	cargo fmt --all
	cargo clippy --workspace --all-targets --fix --allow-dirty --allow-staged

sim: build-deps ## many seeds of the cluster simulation (SEED=n replays one)
	SEED=$(SEED) SEEDS=$(or $(SEEDS),2000) cargo test --release -p sbc-cluster --lib sim::invariants -- --nocapture

e2e: deps ## only the end-to-end tests
	@tests/scripts/test.sh e2e

soak: deps ## 100,000 calls with losses, abandoned calls and malformed requests; 90 s floods of each method
	cargo build --release -p sbc-node --bins
	SBC_BIN=$(CURDIR)/target/release SOAK_CALLS=100000 SOAK_RATE=170 cargo test -p sbc-tests --test e2e soak -- --nocapture
	SBC_BIN=$(CURDIR)/target/release FLOOD_SECONDS=90 cargo test -p sbc-tests --test e2e floods -- --nocapture --test-threads=1

faults: deps ## the fault matrix of the cluster as a table (FAULTS_CALLS, FAULTS_SIZES, FAULTS)
	cargo build --release -p sbc-node --bins
	SBC_BIN=$(CURDIR)/target/release cargo bench -p sbc-tests --bench faults

fuzz: build-deps ## a minute of each fuzz target (needs cargo-fuzz and a nightly toolchain)
	@tests/scripts/fuzz.sh

bench: PROFILE = dist
bench: build ## every benchmark, side by side with the peers that are installed
	@tests/scripts/bench.sh $(BIN)

clean: ## remove what was built
	cargo clean
