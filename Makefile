# Two commands do all the set-up themselves: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
NATIVE := CMakeLists.txt setup.py $(shell find csrc python -type f)

.PHONY: help demo test lint test-cpp test-python format bench bench-gpu kernels docs clean

help:
	@echo "make demo       train on cyclic preferences, align a policy, draw it (demo_output/)"
	@echo "make test       style, types, C++ tests, Python tests"
	@echo "make bench      speed against eager PyTorch, torch.compile and the paper's code"
	@echo "make bench-gpu  GPU tests, sanitizers and speed, in the environment of PYTHON (docs/gpu)"
	@echo "make kernels    registers, occupancy and traffic of the GPU kernels (docs/kernels.md)"
	@echo "make docs       the site with the reference of every public name (site/index.html)"
	@echo "make format     format all sources"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "gpm_core needs Python >= 3.11; name one: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

# The CPU build of PyTorch: as configured for pip (a mirror, PIP_FIND_LINKS), else from its own index.
$(VENV)/torch: $(BIN)/python constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch || \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch \
		--extra-index-url https://download.pytorch.org/whl/cpu
	@touch $@

$(VENV)/installed: $(VENV)/torch pyproject.toml $(NATIVE)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[train,test,dev,docs]"
	@touch $@

demo: $(VENV)/installed
	$(BIN)/gpm-core demo --output demo_output

test: lint test-cpp test-python

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files '*.cpp' '*.h' '*.cu' '*.cuh')

test-cpp: $(VENV)/installed
	$(BIN)/cmake -S . -B build/cpp -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja) \
		-Dpybind11_DIR=$$($(BIN)/python -m pybind11 --cmakedir) \
		-DPython_EXECUTABLE=$(abspath $(BIN)/python) -DGPM_TESTS=ON > /dev/null
	$(BIN)/cmake --build build/cpp
	$(BIN)/ctest --test-dir build/cpp --output-on-failure

test-python: $(VENV)/installed
	$(BIN)/python -m pytest

bench: $(VENV)/installed
	$(BIN)/python -m pytest benchmarks --benchmark-only

# Not in .venv, which has the CPU build of PyTorch: in the environment that PYTHON names.
bench-gpu:
	$(PYTHON) -m benchmarks.gpu --output docs/gpu $(BENCH_GPU)

kernels: $(VENV)/installed
	$(BIN)/python -m benchmarks.kernels --output docs/kernels.md

docs: $(VENV)/installed
	$(BIN)/python -m mkdocs build --strict

format: $(VENV)/installed
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $$(git ls-files '*.cpp' '*.h' '*.cu' '*.cuh')

clean:
	rm -rf $(VENV) build demo_output site
