.DEFAULT_GOAL := help
VENV := .venv
PY ?= $(VENV)/bin/python

.PHONY: help native-inplace
help:
	@echo "make native-inplace   build _native into src/widedeep with PY=$(PY)"

# cmake and ninja come from PyPI, beside the interpreter that builds the module.
BIN = $(dir $(shell command -v $(PY)))
native-inplace:
	$(BIN)cmake -G Ninja -S . -B build/inplace -DWIDEDEEP_INPLACE=ON \
	    -DPython_EXECUTABLE=$(abspath $(shell command -v $(PY))) -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)ninja) --log-level=WARNING
	$(BIN)cmake --build build/inplace
