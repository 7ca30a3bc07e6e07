# make run, make test: both set up what they need. ARGS="--port 7861" passes flags.
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
ifeq ($(OS),Windows_NT)
  BIN := $(VENV)/Scripts
else
  BIN := $(VENV)/bin
endif

.PHONY: run test test-all style types bench shapes lock

run: $(READY)
	$(BIN)/python app.py $(ARGS)

test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not gpu and not multi_gpu" $(ARGS)

test-all: $(READY)
	$(BIN)/python -m pytest $(ARGS)

style: $(READY)
	$(BIN)/ruff format --check . && $(BIN)/ruff check .

types: $(READY)
	$(BIN)/pyright

bench: $(READY)
	for name in coldstart txt2img overhead gallery control adapters; do $(BIN)/python -m benchmarks $$name || exit 1; done

shapes: $(READY)
	$(BIN)/python -m benchmarks.shapes.train --work build/shapes $(ARGS)

lock: $(READY)
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --no-emit-index-url --no-emit-find-links --no-header --no-annotate \
		requirements.txt --group dev -o requirements.lock

$(READY): requirements.lock
	$(PYTHON) -c "import sys; assert (3, 11) <= sys.version_info[:2] <= (3, 13), 'Studio needs Python 3.11, 3.12 or 3.13: make PYTHON=python3.12 ' + ' '.join(['run'])"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "uv>=0.9,<1"
	$(BIN)/uv pip install --quiet --python $(BIN)/python -r requirements.lock
	$(PYTHON) -c "open('$(READY)', 'w').close()"
