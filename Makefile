# What a developer types. `make help` lists it.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PREFIX ?= /usr
DESTDIR ?=
SOURCE ?= local
CARGO ?= cargo
# The directory that cargo builds in; asked of cargo only where it is needed.
TARGET = $(or $(CARGO_TARGET_DIR),target)

.PHONY: help deps build dist demo check test test-drivers quick soak bench fuzz audit install clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

deps: ## install what building, running and testing need (asks for sudo)
	@packaging/install-deps

build: ## build the release binary
	$(CARGO) build --release --locked

demo: deps build ## watch the main job, from a signed stream to a guest and back (SOURCE=ubuntu: from the real mirror)
	@examples/demo.sh "$(TARGET)/release/virga" "$(SOURCE)"

check: ## formatting, lints, architecture, documentation
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets --locked -- -D warnings
	$(CARGO) test --locked --test architecture --quiet
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --no-deps --locked --quiet

# By cargo-nextest where it is there (.config/nextest.toml says what is heavy), else by cargo itself. Three tests keep two
# processors busy, for each waits at times; each may need 2 GiB of memory.
ifneq (,$(shell command -v cargo-nextest))
THREADS = $(shell awk -v cpus="$$(nproc)" '/MemAvailable/ { n = int($$2 / 2097152); most = int(cpus * 3 / 2); n = n < most ? n : most; print n < 1 ? 1 : n }' /proc/meminfo)
RUN_TESTS = $(CARGO) nextest run --locked --test-threads $(THREADS)
else
RUN_TESTS = $(CARGO) test --locked
endif

test: ## every test, real boots included
	@tests/image/build >/dev/null
	@tests/image/tiny >/dev/null
	$(RUN_TESTS) --lib --tests

test-drivers: ## only the tests that boot guests
	@tests/image/build >/dev/null
	@tests/image/tiny >/dev/null
	$(RUN_TESTS) --test access --test boot --test cluster --test conformance --test crash --test containers --test machine \
		--test networks --test run --test ssh --test tiny --test uvt --test verbs --test warm --test warm_kill

dist: ## build the binary that is installed (takes minutes)
	$(CARGO) build --profile dist --locked

soak: ## kills at random moments on a busy machine, for hours (ROUNDS=100)
	@tests/image/build >/dev/null
	@tests/image/tiny >/dev/null
	ROUNDS=$(or $(ROUNDS),100) $(CARGO) test --locked --test crash template -- --nocapture
	ROUNDS=$(or $(ROUNDS),100) $(CARGO) test --locked --test soak -- --ignored --test-threads 1 --nocapture

# Many at a time: they wait more than they work.
QUICK = --lib --test architecture --test cli --test corpus --test hostile --test mirror --test sync
quick: ## what needs no guest and no daemon: under a minute once it is compiled
ifneq (,$(shell command -v cargo-nextest))
	$(CARGO) nextest run --locked --test-threads 8 $(QUICK) -E 'not test(machines)'
else
	$(CARGO) test --locked $(QUICK) -- --skip machines
endif

bench: ## speed against named tools, as a table
	$(CARGO) bench --profile dist --locked

fuzz: ## fuzz each parser for a minute (SECONDS=60)
	fuzz/run $(or $(SECONDS),60)

audit: ## vulnerabilities, licences and sources of what virga is built of
	@packaging/audit

install: dist ## install below DESTDIR (PREFIX is /usr)
	packaging/install-files "$(TARGET)/dist/virga" "$(DESTDIR)$(PREFIX)"

clean: ## remove what was built
	$(CARGO) clean
