PYTHON ?= python3
BIN := .venv/bin
SET_UP := .venv/.set-up
TRITONS := 3.6.0 3.9.0
NATIVE := $(wildcard kernels/lada_kernels/cpu/*.h kernels/lada_kernels/cpu/*.cpp) \
	kernels/lada_kernels/cpu/instruction_sets.py
SANITIZED := build/sanitized
SANITIZE := -fsanitize=address,undefined -fno-sanitize-recover=undefined
CHECKED := -O1 -g -Wall -Wextra -Werror
RESULTS := benchmarks/results/$(shell $(BIN)/python -c 'from lada_ops.host.environment import device_slug; print(device_slug())' 2>/dev/null)

.PHONY: demo test test-all test-release test-triton $(TRITONS:%=test-triton-%) test-sanitized lint results readme clean

demo: $(SET_UP)  ## the main job on a real model; DATA=path/to/stsb for a true score
	$(BIN)/lada demo $(if $(DATA),--data $(DATA))

PYTEST := $(BIN)/python -m pytest -q --numprocesses logical --maxprocesses 8 --dist worksteal

test: $(SET_UP)  ## one case of each kind, in minutes
	$(PYTEST) -m "not exhaustive"

test-all: $(SET_UP)  ## every case, then kernels under the oldest Triton supported
	$(PYTEST)
	$(MAKE) test-triton-$(firstword $(TRITONS))

test-release: test-all test-triton test-sanitized lint  ## all that is checked

test-triton: $(TRITONS:%=test-triton-%)  ## kernels and machine code under other versions of Triton

$(TRITONS:%=test-triton-%): test-triton-%: .venv/triton-%/.set-up
	PYTHONPATH=.venv/triton-$* $(PYTEST) -p no:cacheprovider \
		tests/kernels --ignore=tests/kernels/cpu tests/machine_code tests/test_static_gate.py

test-sanitized: $(SANITIZED)/.built  ## the native kernels under AddressSanitizer and UBSan
	LADA_SANITIZED=$(SANITIZED) ASAN_OPTIONS=detect_leaks=0 \
		LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
		$(BIN)/python -m pytest -q -p no:cacheprovider --capture=sys tests/kernels/cpu

lint: $(SET_UP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright

results: $(SET_UP)  ## measure what the README and the page of results show; needs GLUE=path/to/glue
	$(BIN)/lada demo --data $(GLUE)/stsb
	mkdir -p $(RESULTS)
	cp demo/results.json $(RESULTS)/demo.json
	$(BIN)/python -m pytest benchmarks --benchmark-only --results benchmarks/results
	$(BIN)/python -m benchmarks.traffic --data $(GLUE)
	$(BIN)/python -m benchmarks.accuracy.table --data $(GLUE)/.. --work build/compression
	$(BIN)/python -m benchmarks.accuracy.embedders --data $(GLUE)/.. --work build/embedder
	$(MAKE) readme

readme: $(SET_UP)  ## write both pages and their pictures from the committed results
	$(BIN)/python -m benchmarks.readme.plots
	$(BIN)/python -m benchmarks.readme

# torch is pinned by constraints.txt: without the pin, pip may fetch a build of several gigabytes
$(SET_UP): setup.py pyproject.toml constraints.txt $(NATIVE)
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# the interpreter of Triton 3.6 cannot loop with numpy 2.4
.venv/triton-%/.set-up: $(SET_UP)
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(@D) triton==$* numpy==2.3.5
	touch $@

$(SANITIZED)/.built: $(SET_UP)
	LADA_NATIVE_FLAGS="$(SANITIZE) $(CHECKED)" LDFLAGS="$(SANITIZE)" $(BIN)/python setup.py -q \
		build_ext --build-lib $(SANITIZED) --build-temp $(SANITIZED)/objects
	touch $@

clean:
	rm -rf .venv demo build *.egg-info
