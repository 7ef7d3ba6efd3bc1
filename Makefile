# Everything sets itself up: a virtual environment in .venv, made once.
PYTHON ?= python3
BIN := .venv/bin
OUT ?= demo
SWEEPS ?= sweeps

.PHONY: demo test test-kernels test-docs test-slow bench lint calibration fits oracle saga gate gate-update docs clean

# vllm-0.6 against vllm-0.15: recorded coding agents on 64 H200s.
demo: .venv/base
	@if [ -e $(OUT) ]; then echo "$(OUT) exists already: remove it, or choose another folder with OUT=..."; exit 2; fi
	$(BIN)/sagasim compare --presets vllm-0.6,vllm-0.15 --trace swe-bench-mini \
		--tasks 654 --concurrency 320 --seeds 3 --gpus 64 --gpu h200 --model llama-3.1-70b --tp 4 --out $(OUT)

# All tests but the slow ones; those of the kernels need torch and triton, and no GPU.
test: .venv/kernels
	$(BIN)/pytest -n auto

test-kernels: .venv/kernels
	$(BIN)/pytest -n auto tests/test_kernel_*.py

test-slow: .venv/kernels
	$(BIN)/pytest -n auto -m "slow"

# Measures the compiled engine where there is a C compiler, else the sources.
bench: .venv/test
	-$(BIN)/sagasim compile
	$(BIN)/python tests/bench_engine.py

lint: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Every embedded calibration from its tables, and the page of their errors.
calibration: .venv/base
	$(BIN)/python -m sagasim.calibrate calibration
	$(BIN)/python -m sagasim.errors_page --out docs

# How far evictions are from the optimum: the page and its figures, some minutes.
oracle: .venv/base
	$(BIN)/python -m sagasim.oracle.page --out docs

# Has anything become worse since the baseline? After a change of results that is meant: make gate-update.
gate: .venv/base
	$(BIN)/sagasim gate --baseline tests/gate/baseline.json

gate-update: .venv/base
	$(BIN)/sagasim gate --baseline tests/gate/baseline.json --update --from sagasim/gate/default.toml

# SAGA beside other systems: the sweeps of docs/examples, about a quarter of an hour on two cores, and the page of their results.
saga: .venv/base
	for name in strategies hints fairness swe coding; do \
		$(BIN)/sagasim sweep docs/examples/saga-$$name.toml --out $(SWEEPS)/saga-$$name || exit 1; done
	$(BIN)/python -m sagasim.saga_page --sweeps $(SWEEPS) --out docs

# The documentation site, with its notebooks run anew: site/index.html. A link that leads nowhere is an error.
docs: .venv/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

test-docs: .venv/docs
	$(BIN)/pytest -m docs tests/test_docs_site.py

# Parameters of the generators from recorded traces, and the page that compares them.
fits: .venv/base
	$(BIN)/python -m sagasim.workloads.fit --traces traces --out traces/fits
	$(BIN)/python -m sagasim.workloads.page

clean:
	rm -rf .venv build dist site .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp for each set of dependencies; a changed pyproject.toml sets up again.
.venv/base: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or later is needed: make PYTHON=python3.x"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	$(BIN)/python -m compileall -q sagasim
	@touch $@

# With the test tools comes mypyc: the engine is compiled once, where there is a C compiler.
.venv/test: pyproject.toml | .venv/base
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
	-$(BIN)/sagasim compile
	@touch $@

.venv/docs: pyproject.toml | .venv/test
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test,docs]'
	@touch $@

.venv/kernels: pyproject.toml | .venv/test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test,gpu,ray]'
	@touch $@
