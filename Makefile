# Two commands to start with: `make demo` and `make test`. The environment is made once, in .venv, from a pinned lock.
PYTHON ?= python3
BIN := .venv/bin
LOCK := requirements/cpu.lock
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check --no-deps

# Two workers more than there are cores: tests that need no engine wait for sockets and clocks most of the time.
WORKERS := $(shell expr $$(nproc) + 2)

# The CPU build of torch is not on PyPI itself: taken from the configured sources, else from PyTorch's own index.
TORCH_INDEX := https://download.pytorch.org/whl/cpu

.PHONY: demo serve test test-fast test-faults fuzz check audit format bench loadtest proto lock clean

demo: .venv/installed  ## start a server, classify one conversation over gRPC, print the answers, stop it
	$(BIN)/fantail demo

serve: .venv/installed  ## serve on 127.0.0.1:50051 until stopped
	$(BIN)/fantail serve

test: .venv/installed  ## the whole test suite, real engine included
	$(BIN)/python -m pytest -m "not engine" -n $(WORKERS) --dist loadfile
	$(BIN)/python -m pytest -m "engine and not faults"

test-faults: .venv/installed  ## faults planted in the engine, then a real server under load, one fault after another
	$(BIN)/python -m pytest -m faults
	$(BIN)/python -m tests.faults

fuzz: .venv/installed  ## 100,000 hostile inputs on the wire; prints what became of them
	GRPC_VERBOSITY=NONE MALLOC_ARENA_MAX=1 $(BIN)/python -m tools.fuzz

test-fast: .venv/installed  ## everything that needs no engine
	$(BIN)/python -m pytest -m "not engine" -n $(WORKERS) --dist loadfile

check: .venv/installed  ## lint, format, types, proto lint, generated code fresh
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python tools/proto.py check
	$(BIN)/python tools/readme.py --check

audit: .audit/installed  ## known vulnerabilities among the pinned packages, by pip-audit in an environment of its own
	.audit/bin/python tools/audit.py

.audit/installed:
	$(PYTHON) -m venv .audit
	.audit/bin/python -m pip install -q --disable-pip-version-check pip-audit==2.10.1
	touch $@

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/python tools/readme.py

bench: .venv/installed  ## the fan-out beside PEFT, stock vLLM, a merged model and MiniLM, in one alternating run
	$(BIN)/python -m loadtest.bench

loadtest: .venv/installed  ## a fresh server under growing load, open loop; prints a table, writes loadtest-report/report.html
	$(BIN)/python -m loadtest short

proto: .venv/installed  ## generate service/pb from proto/
	$(BIN)/python tools/proto.py generate

lock: .venv/installed  ## resolve the lock anew; needs uv
	uv pip compile pyproject.toml --extra cpu --extra train --extra evaluate --extra loadtest --extra dev --python-version 3.11 \
	  --python-platform x86_64-manylinux_2_28 --no-annotate --no-header -o $(LOCK)

# Everything is pinned and nothing resolved (--no-deps): that is what keeps torchvision out, see pyproject.toml. pip would
# compile one file after the other; compileall takes all cores, without what is hardly ever imported.
.venv/installed: $(LOCK) pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed")'
	$(PYTHON) -m venv .venv
	$(PIP) --no-compile -r $(LOCK) || $(PIP) --no-compile --extra-index-url $(TORCH_INDEX) -r $(LOCK)
	$(BIN)/python -m compileall -q -j 0 -x '/(tests|testing)/|transformers/models/[^a]' .venv/lib || true
	$(PIP) --no-build-isolation -e .
	touch $@

clean:
	rm -rf .venv build *.egg-info
