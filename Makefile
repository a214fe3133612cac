# Each target does its own set-up, once. `make help` lists them.
SHELL := /bin/bash
node := node_modules/.bin/node
export PATH := $(CURDIR)/node_modules/.bin:$(PATH)

.PHONY: help demo walk test check build sdks release bench-synthesis bench-handoff bench-memory bench-engine lab lab-down clean modules machine engine

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: machine modules engine build ## show a stateful application that follows its subscriber from gateway to gateway
	@PULUMI_ENGINE="$$(tools/engine/build)" $(node) tools/demo.ts $(if $(KIND),--kind $(KIND))

walk: machine modules engine build ## show an application that follows its subscriber along three gateways while it runs
	@PULUMI_ENGINE="$$(tools/engine/build)" $(node) tools/walk.ts

test: machine modules engine check build ## run everything, the lab's tests included (root)
	@PULUMI_ENGINE="$$(tools/engine/build)" npm run --silent test:lab

check: modules ## types, lint, style, unit tests, generated files equal (no root)
	@npm run --silent check

build: modules ## make dist/
	@npm run --silent build

sdks: ## write the SDKs for Python and Go anew from schema.json (needs Go)
	@tools/engine/generate sdk

release: build ## make the plugin's tarballs, one per platform, and SHA256SUMS in release/
	@$(node) tools/release.ts

bench-synthesis: machine modules build ## measure the start of cloudlets from overlays (root, long; ARGS=--help)
	@$(node) test/bench/synthesis.ts $(ARGS)

bench-handoff: machine modules build ## measure moves of running cloudlets (root, long; ARGS=--help)
	@$(node) test/bench/handoff.ts $(ARGS)

bench-memory: machine modules engine build ## measure what memory an image of 4 GiB takes (root, minutes)
	@PULUMI_ENGINE="$$(tools/engine/build)" $(node) test/bench/memory.ts

bench-engine: machine modules engine build ## measure what the plugin adds to Pulumi's engine (minutes)
	@PULUMI_ENGINE="$$(tools/engine/build)" $(node) test/bench/engine.ts $(ARGS)

lab: machine modules build ## start a lab of four hosts and leave it running (root)
	@$(node) test/lab/cli.ts up

lab-down: modules ## take the lab down
	@$(node) test/lab/cli.ts down

clean: ## remove what was built here (caches outside the work tree stay)
	@rm -rf dist release .lab *.tgz

modules:
	@tools/setup/modules

machine:
	@tools/setup/machine

engine: machine
	@tools/engine/build >/dev/null
