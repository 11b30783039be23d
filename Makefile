# Every target creates what it needs: a virtual environment in .venv, the packages, the native
# module. A second run finds them there and installs nothing.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PY ?= $(BIN)/python
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
TORCH := $(shell sed -n 's/^torch==//p' constraints.txt)
# Where torch comes from; empty: from the index pip is set up with, which on Linux may hold only the
# CUDA build. It runs without a GPU too, but is gigabytes larger.
TORCH_INDEX ?=
PYTEST_ARGS ?=
comma := ,
# The Python sources as they lie in src/; `native` builds the module beside them.
EDITABLE := --no-build-isolation -C wheel.cmake=false -C wheel.py-api=py3 -e

READY := $(VENV)/.ready
RUN_READY := $(VENV)/.ready-run
DEV_READY := $(VENV)/.ready-dev
DOCS_READY := $(VENV)/.ready-docs

.PHONY: help quickstart census test test-slow test-ranks test-install fuzz check format bench bench-peers docs notebooks sanitize check-arm64 wheel \
    native native-inplace clean
help:
	@echo "make quickstart    the whole loop on a simulated app store: logs, training, gate, serving, retraining"
	@echo "make census        a model of UCI Adult, and the README's table: five seeds of wide, deep, and both"
	@echo "make test          the fast tests, docstring examples and the documents' code blocks, in JOBS=3"
	@echo "                   processes"
	@echo "make test-slow     the slow tests"
	@echo "make test-ranks    the tests of training over several processes"
	@echo "make test-install  the wheel where nothing else is installed, and without torch; FULL=1 by pip alone"
	@echo "make fuzz          crafted bundles and requests; CASES=10000 of each (minutes), FIRST=0 for others"
	@echo "make check         ruff, mypy, codespell, clang-format, lints of layout, words and symbols"
	@echo "make format        let ruff and clang-format rewrite the sources"
	@echo "make bench         every benchmarks/bench_*.py (an hour); QUICK=1 runs them short (minutes)"
	@echo "make bench-peers   other libraries on the same rows, each in its own environment, into"
	@echo "                   benchmarks/RESULTS.md; PEER_ARGS='--train-rows 100000' runs them shorter; goes"
	@echo "                   on where it stopped"
	@echo "make bench-models  every tower against the same model elsewhere, into RESULTS.md; QUICK=1"
	@echo "make bench-quality the league table beside trees and networks, into RESULTS.md (hours; goes on"
	@echo "                   where it stopped, a cell at a time); ONLINE_RETAIL=FILE adds a set; QUICK=1 in minutes"
	@echo "make bench-serve   whole servers against uvicorn and mlserver with ONNX Runtime, into RESULTS.md,"
	@echo "                   and then servers of other towers (make bench-serve_models)"
	@echo "make docs          the documentation, into site/"
	@echo "make notebooks     run the documentation's notebooks, which keep what they print (minutes)"
	@echo "make sanitize      the C++ tests under ASan, UBSan and TSan"
	@echo "make check-arm64   compile the core for arm64 and run its tests, where a cross compiler (and qemu) is"
	@echo "make wheel         a wheel for this machine, into dist/"
	@echo "make clean         remove what the above made, save .venv"
	@echo
	@echo "PYTHON=python3.12 names the interpreter (3.11 or later) that .venv is made from."
	@echo "TORCH_INDEX=URL takes torch from there: on Linux pip's usual index holds the CUDA build only, and"
	@echo "PyTorch's installation page names an index of CPU builds, which are far smaller."

$(READY):
	@command -v $(PYTHON) > /dev/null || { \
	    echo "PYTHON=$(PYTHON): not found; name a Python 3.11 or later, e.g. make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "PYTHON=$(PYTHON) is $$($(PYTHON) -V 2>&1); widedeep needs Python 3.11 or later, e.g. make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	touch $@

# First and alone, at the pinned version: what follows must not bring another build of torch.
$(RUN_READY): $(READY) pyproject.toml constraints.txt
	@echo "installing torch $(TORCH) and the package into $(VENV)"
	@if [ "$$(uname -s)" = Linux ] && [ -z "$(TORCH_INDEX)" ] && ! command -v nvidia-smi > /dev/null; then \
	    echo "no NVIDIA driver here, and pip may bring the CUDA build of torch, gigabytes that do no harm;"; \
	    echo "to do without: make $(MAKECMDGOALS) TORCH_INDEX=URL, the CPU index of PyTorch's installation page"; fi
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "torch==$(TORCH)"
	$(PIP) $(shell sed -nE 's/^(cmake|nanobind|ninja|scikit-build-core)==.*/\1/p' constraints.txt)
	$(PIP) $(EDITABLE) '.[train,join,serve]'
	touch $@

# PySpark is half a gigabyte, and its tests are left out where there is no Java.
$(DEV_READY): $(RUN_READY)
	$(PIP) $(EDITABLE) '.[test,check$(if $(shell command -v java),$(comma)spark)]'
	touch $@

$(DOCS_READY): $(RUN_READY)
	$(PIP) $(EDITABLE) '.[docs]'
	touch $@

quickstart: native
	$(BIN)/python examples/app_store/loop.py

census: native
	$(BIN)/python examples/census/run.py
	$(BIN)/python examples/census/table.py

# One more than two processors: many tests wait, for a server or a clock. The tests of a file share
# what it sets up, and a document's blocks their names, so they stay in one process.
JOBS ?= 3
test: native $(DEV_READY)
	$(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile $(PYTEST_ARGS)

# Runs of the command line over several processes: stopped, killed and resumed, to the bits of one.
test-ranks: native $(DEV_READY)
	$(BIN)/python -m pytest -q -m "slow or not slow" tests/ranks $(PYTEST_ARGS)

# pytest's 5 means that no test bears the marker.
test-slow: native $(DEV_READY)
	$(BIN)/python -m pytest -q -m slow $(PYTEST_ARGS) || [ $$? -eq 5 ]

# The wheel in environments of its own, with no extra, and without torch. Packages are links to those
# of .venv; FULL=1 installs them as users do, and tells the sizes.
FULL ?=
INSTALL := build/install
test-install: native $(DEV_READY)
	rm -rf $(INSTALL)
	@$(MAKE) --no-print-directory wheel DIST=$(INSTALL)
	$(BIN)/python -m tests.install.run $(INSTALL) $(INSTALL)/*.whl $(if $(FULL),--full) \
	    $(if $(TORCH_INDEX),--torch-index $(TORCH_INDEX))

CASES ?= 10000
FIRST ?= 0
FUZZERS := $(patsubst tests/fuzz/%.py,%,$(wildcard tests/fuzz/fuzz_*.py))
fuzz: native $(DEV_READY)
	@for fuzzer in $(FUZZERS); do echo "== $$fuzzer"; \
	    $(BIN)/python -m tests.fuzz.$$fuzzer --cases $(CASES) --first $(FIRST); done

NATIVE_SOURCES = $(wildcard native/*.cpp native/*.hpp native/tests/*.cpp native/tests/*.hpp)
check: native $(DEV_READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell
	$(BIN)/clang-format --dry-run -Werror $(NATIVE_SOURCES)
	$(BIN)/python tools/lint_layout.py
	$(BIN)/python tools/lint_words.py
	$(BIN)/python tools/lint_isa_symbols.py build/inplace

format: $(DEV_READY)
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(NATIVE_SOURCES)

# Short runs show that everything works, and rough figures.
QUICK ?=
QUICK_exploration := --seeds 1 --days 3 --policies linucb
QUICK_gate := --rows 50000 --train-rows 20000
QUICK_join := --scale 0.05 --repeats 1
QUICK_kernels := --repeats 10 --cap 20000
QUICK_object_store := --mb 64
QUICK_memory := --rows 100000
QUICK_off_policy := --seeds 1 --days 1
QUICK_order := --rows 60000 --pool-rows 4096
QUICK_rank := --repeats 20
QUICK_retraining := --seeds 1 --days 3 --requests 2000
QUICK_models := --quick
QUICK_quality := --rows 8000 --seconds 30 --seeds 1 --sets adult,crosses --again
QUICK_retrieval := --items 20000 --queries 10
QUICK_score := --repeats 20
QUICK_serve := --quick
QUICK_serve_models := --quick
QUICK_simulate := --impressions 50000
QUICK_two_towers := --seeds 1 --requests 50
QUICK_warm_start := --seeds 1 --rows 100000
QUICK_swap := --gigabytes 0.1 --items 10000 --rounds 1
QUICK_train := --quick --seconds 10
QUICK_tables := --seeds 1 --rows 20000 --turns 20
QUICK_tune := --trials 2 --minutes 0.5 --seeds 1
QUICK_transform := --rows 50000 --repeats 2
FULL_exploration := --jobs 2 --write
FULL_join := --write
FULL_gate := --write
FULL_models := --write
FULL_off_policy := --write
FULL_order := --write
FULL_quality := --write
FULL_retraining := --write
FULL_retrieval := --write
FULL_swap := --write
FULL_serve_models := --write
FULL_serve := --write $(if $(wildcard bundles/census),--bundle bundles/census)
FULL_table_memory := --write
FULL_tables := --write
FULL_train := --write
FULL_tune := --write
FULL_two_towers := --write
FULL_warm_start := --write
BENCHES := $(patsubst benchmarks/bench_%.py,%,$(wildcard benchmarks/bench_*.py))
bench: native $(DEV_READY) $(BENCHES:%=bench-%)

bench-%: native $(DEV_READY)
	@echo "== benchmarks/bench_$*.py"
	$(BIN)/python benchmarks/bench_$*.py $(if $(QUICK),$(QUICK_$*),$(FULL_$*))

bench-models: peers-models_deepctr_torch peers-models_fuxictr

bench-quality: peers-models_league peers-models_fuxictr

bench-serve: benchmarks/peers/.venv-serving/.ready bench-serve_models
bench-serve_models: benchmarks/peers/.venv-serving/.ready

benchmarks/peers/.venv-serving/.ready: benchmarks/peers/serving/requirements.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	touch $@

# Each peer lives in an environment of its own, made from its pinned requirements. What alone-NAME.txt
# lists comes without what it requires: TorchRec asks for FBGEMM's build for GPUs.
PEERS := $(patsubst benchmarks/peers/requirements-%.txt,%,$(wildcard benchmarks/peers/requirements-[!m]*.txt))
PEER_ARGS ?=
bench-peers: native $(PEERS:%=peers-%)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt scikit-learn
	$(BIN)/python benchmarks/peers/run_all.py $(PEER_ARGS)

peers-%: benchmarks/peers/.venv-%/.ready ;
.PRECIOUS: benchmarks/peers/.venv-%/.ready

benchmarks/peers/.venv-%/.ready: benchmarks/peers/requirements-%.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check \
	    $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -r $<
	$(if $(wildcard benchmarks/peers/alone-$*.txt),$(@D)/bin/python -m pip install --quiet \
	    --disable-pip-version-check --no-deps -r benchmarks/peers/alone-$*.txt)
	touch $@

docs: native $(DOCS_READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

notebooks: native $(DOCS_READY) $(DEV_READY)
	$(BIN)/python docs/run_notebooks.py

# The tests run once for each instruction set; those that the processor lacks say so and pass.
# setarch -R: ThreadSanitizer wants its shadow memory where address randomisation may put a library.
NO_RANDOM := $(shell command -v setarch > /dev/null && echo setarch -R)
sanitize: $(RUN_READY)
	@for kind in address,undefined thread; do \
	    $(BIN)/cmake -G Ninja -S . -B build/$$kind -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja) \
	        -DCMAKE_BUILD_TYPE=RelWithDebInfo -DWIDEDEEP_PYTHON=OFF -DWIDEDEEP_TESTS=ON \
	        -DWIDEDEEP_SANITIZE=$$kind --log-level=WARNING > /dev/null; \
	    $(BIN)/cmake --build build/$$kind -- --quiet; \
	    for isa in baseline avx2 avx512; do \
	        echo "== $$kind, $$isa"; WIDEDEEP_ISA=$$isa $(NO_RANDOM) build/$$kind/widedeep_native_tests; \
	    done; \
	done

ARM64_CXX ?= aarch64-linux-gnu-g++
ARM64_RUN ?= qemu-aarch64
# The emulator itself does not survive a fork while other threads run.
FORKING_TESTS := a_forked_child_starts_workers_of_its_own \
    a_child_forked_while_another_thread_uses_the_pool_is_not_stuck
check-arm64: $(RUN_READY)
	@if ! command -v $(ARM64_CXX) > /dev/null; then \
	    echo "check-arm64: skipped, no $(ARM64_CXX) (Debian: apt-get install g++-aarch64-linux-gnu)"; \
	else \
	    $(BIN)/cmake -G Ninja -S . -B build/arm64 -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja) \
	        -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER=$(ARM64_CXX) \
	        -DWIDEDEEP_PYTHON=OFF -DWIDEDEEP_TESTS=ON --log-level=WARNING > /dev/null; \
	    $(BIN)/cmake --build build/arm64 -- --quiet; \
	    echo "check-arm64: the core and its tests compile"; \
	    if command -v $(ARM64_RUN) > /dev/null; then \
	        $(ARM64_RUN) -L /usr/aarch64-linux-gnu build/arm64/widedeep_native_tests $(FORKING_TESTS); \
	    else echo "check-arm64: not run, no $(ARM64_RUN) (Debian: apt-get install qemu-user)"; fi; \
	fi

# From the objects that `native` has compiled.
DIST ?= dist
wheel: native
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation \
	    -C build-dir=build/inplace -C cmake.define.WIDEDEEP_INPLACE=OFF --wheel-dir $(DIST) .

native: $(RUN_READY)
	@$(MAKE) --no-print-directory native-inplace

# PY may be any Python that has nanobind, with cmake and ninja beside it.
NATIVE_BIN = $(dir $(shell command -v $(PY)))
native-inplace:
	@$(NATIVE_BIN)cmake -G Ninja -S . -B build/inplace -DWIDEDEEP_INPLACE=ON \
	    -DPython_EXECUTABLE=$(abspath $(shell command -v $(PY))) \
	    -DCMAKE_MAKE_PROGRAM=$(abspath $(NATIVE_BIN)ninja) --log-level=WARNING > /dev/null
	@$(NATIVE_BIN)cmake --build build/inplace -- --quiet

clean:
	rm -rf build dist site .mypy_cache .ruff_cache .pytest_cache .hypothesis src/widedeep/_native*.so
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf
