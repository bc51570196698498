# make run: the page. make test: everything that can break; what goes by the clock alone, the rest two at a time. make rehearsal: twenty runs on ZeroGPU's stage, killed at
# random, and twenty visitors at once. make matrix: every method on every family of models. make bench: against a plain TRL script, and the usual way on ZeroGPU.
# The machine's own Python where it is 3.10 to 3.13 and can make environments, else one of those beside it.
FITS := import sys, ensurepip; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(firstword $(foreach p,python3 python3.12 python3.13 python3.11 python3.10,$(shell $(p) -c '$(FITS)' 2>/dev/null && echo $(p))))
PY := .venv/bin/python
export PIP_DISABLE_PIP_VERSION_CHECK := 1

run: .venv/run
	$(PY) app.py

test: .venv/dev
	.venv/bin/ruff check . && .venv/bin/ruff format --check .
	$(PY) -m pytest -m alone
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadfile -m "not alone"

rehearsal: .venv/dev
	TUNER_REHEARSALS=20 $(PY) -m pytest -s --timeout 1800 tests/test_rehearsal.py tests/test_visitors.py

matrix: .venv/dev
	TUNER_MATRIX=1 $(PY) -m pytest -s --timeout 3600 tests/test_matrix.py

bench: .venv/dev
	$(PY) benchmarks/bench.py
	$(PY) benchmarks/window.py --seconds 60
	$(PY) benchmarks/window.py --seconds 20 --rounds 3

install: .venv/run

example: .venv/run
	$(PY) -m examples.make_finished

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "Tuner needs Python 3.10 to 3.13 with venv (Debian: apt install python3-venv)."; exit 1; }
	$(PYTHON) -m venv .venv

.venv/run: .venv/bin/python requirements.txt
	$(PY) -m pip install --quiet -r requirements.txt
	touch $@

.venv/dev: .venv/run requirements-dev.txt
	$(PY) -m pip install --quiet -r requirements-dev.txt
	touch $@

.PHONY: run test rehearsal matrix bench install example
