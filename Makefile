# Everything runs in .venv, which `setup` makes and keeps up to date; seconds when nothing is missing. Serving
# needs a part of it only.
PY := .venv/bin/python

.PHONY: help setup setup-serve serve test test-fast lint format bench loadtest gpu-check swap-under-load complaints mutants monitor docs chart

help:
	@echo "make serve      set up what is missing, then serve on http://127.0.0.1:8000"
	@echo "make setup      all packages (serving, training, tests) and the base model"
	@echo "make test       set up what is missing, then run every test"
	@echo "make test-fast  the tests that need no model"
	@echo "make lint       ruff and mypy"
	@echo "make bench      ours beside vLLM's server and the one people write first; QUICK=1 takes six minutes"
	@echo "make loadtest   Locust on the service at HOTSWAP_URL or port 8000, or on one of its own; a report in var/"
	@echo "make gpu-check  on a GPU machine (HOTSWAP_EXTRA=gpu make setup): all that is measured there, in eight minutes"
	@echo "make monitor    Prometheus and Alertmanager beside a running service"
	@echo "make docs       docs/metrics.md, the dashboards and the operator's rules, from what they are made of"
	@echo "make chart      the Helm chart's templates and schema, from k8s/base and k8s/components"
	@echo "make mutants    changes the serving core and the store, and looks whether a test fails; ONLY=FILE, SAMPLE=60"
	@echo "make swap-under-load   versions change under load for five minutes; every answer is checked"

setup:
	@scripts/setup.sh

setup-serve:
	@scripts/setup.sh serve

serve: setup-serve
	@exec $(PY) -m service

# Two at a time, what shares a server on one of them.
test: setup
	@$(PY) -m pytest -n 2 --dist loadscope --no-loadscope-reorder

test-fast: setup
	@$(PY) -m pytest -n 2 --dist loadscope --no-loadscope-reorder -m "not slow"

lint: setup
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy

format: setup
	@$(PY) -m ruff format .
	@$(PY) -m ruff check --fix .

bench: setup
	@$(PY) -m loadtests.bench $(if $(QUICK),--quick)
	@$(PY) -m loadtests.bench.front $(if $(QUICK),--repeats 1)

loadtest: setup
	@$(PY) -m loadtests $(USERS)

# Without setup, which would take minutes of a machine that is lent: packages and base are to be there.
gpu-check:
	@$(PY) -m loadtests.gpu $(if $(QUICK),--quick)

swap-under-load: setup
	@$(PY) -m loadtests.swap_under_load


monitor: setup
	@exec $(PY) -m scripts.monitor $(if $(HOTSWAP_URL),--service $(HOTSWAP_URL))

docs: setup
	@$(PY) -m scripts.metrics
	@$(PY) -m scripts.dashboards
	@$(PY) -m scripts.prometheus_rule

chart: setup
	@$(PY) -m scripts.helm.chart

mutants: setup
	@$(PY) scripts/mutants.py $(if $(ONLY),--only $(ONLY)) $(if $(SAMPLE),--sample $(SAMPLE))

complaints: setup
	@$(PY) -m loadtests.complaints
