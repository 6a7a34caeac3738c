PYTHON ?= python3
BIN := .venv/bin
SET_UP := .venv/.set-up
RESULTS := benchmarks/results/$(shell $(BIN)/python -c 'from lada_ops.environment import device_slug; print(device_slug())' 2>/dev/null)

.PHONY: demo test lint results readme clean

demo: $(SET_UP)  ## the main job on a real model; DATA=path/to/stsb for a true score
	$(BIN)/lada demo $(if $(DATA),--data $(DATA))

test: $(SET_UP)  ## all tests
	$(BIN)/python -m pytest -q

lint: $(SET_UP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright

results: $(SET_UP)  ## measure all that the README shows, on this machine; needs DATA=path/to/stsb
	$(BIN)/lada demo --data $(DATA)
	mkdir -p $(RESULTS)
	cp demo/results.json $(RESULTS)/demo.json
	cp demo/speedups.png $(RESULTS)/demo.png
	$(BIN)/python -m pytest benchmarks --benchmark-only --results benchmarks/results
	$(MAKE) readme

readme: $(SET_UP)  ## write the README's tables from the committed results
	$(BIN)/python benchmarks/readme.py

# torch is pinned by constraints.txt: without the pin, pip may fetch a build of several gigabytes
$(SET_UP): setup.py pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv demo build *.egg-info
