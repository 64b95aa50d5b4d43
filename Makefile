# Every target sets up what it needs; a second run reuses it. `make help` lists them.
.DEFAULT_GOAL := help
.PHONY: help install demo test check docs bench quality soak chaos image-test audit clean
MAKEFLAGS += --no-print-directory

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

install: ## the environment from uv.lock, and Kafka's jars; seconds when nothing changed
	@scripts/preflight
	@scripts/install

# Ctrl-C is the demo's own way to end: it must not reach make, which would call it an error.
demo: ## train, export, start Kafka and two workers, replay real events, open the live page (RATE=200 DURATION=30 BOOTSTRAP=host:port)
	@scripts/preflight demo
	@scripts/install
	@exec .venv/bin/python -m demo.foreground .venv/bin/python -m demo

test: ## lint, types and all tests on a real Kafka, as CI does it
	@scripts/test

check: install ## lint, format, types, and the site only
	@scripts/check

docs: install ## the site of docs/, to read at site/index.html
	@scripts/site site
	@echo "site/index.html"

bench: install ## the bars: beside an echo, peers, FAISS, a bare consumer; workers, users, idle; about an hour and a half
	@exec .venv/bin/python -m benchmarks.run bars

quality: install ## HR@10 and NDCG@10 of every model on MovieLens and groceries beside the baselines; about two hours and a half
	@exec .venv/bin/python -m benchmarks.quality

soak: install ## memory of a worker whose users churn, and of a state that meets 100 million users; about 20 minutes
	@exec .venv/bin/python -m benchmarks.run soak

chaos: install ## kill, stall and cut off workers and the broker, at length; prints what was lost, doubled or stale
	@CHAOS=long exec .venv/bin/python -m pytest tests/chaos -p no:cacheprovider

image-test: install ## build the worker's image without a daemon, start it against a real broker (TARGETS="worker worker-gpu exporter"); as root
	@scripts/image-test $(TARGETS)

audit: install ## known vulnerabilities of what is locked, and the worker's SBOM; asks PyPI
	@scripts/audit $(AUDIT)

clean: ## remove what the targets made: .venv, .tools, .cache, .demo, dist, models, site
	rm -rf .venv .tools .cache .demo dist models site .mypy_cache .ruff_cache .pytest_cache .hypothesis
