# Two commands on a fresh machine: `make demo` and `make test`. The rest is for
# developers. Everything is installed into .venv; nothing else is touched, but for the
# system libraries that Qt needs (tools/qt_libraries.sh says which, or installs them).

PYTHON ?= python3
BIN := .venv/bin
SLIDE ?=
REGIONS ?=
# A clone of facebookresearch/mae, to be compared with by "make bench".
PEER ?=
SCREEN := xvfb-run --auto-servernum --server-args="-screen 0 1280x800x24"
# A window where there is a display, the same window under Xvfb where there is none.
# (macOS needs neither.)
WINDOW := $(if $(or $(DISPLAY),$(WAYLAND_DISPLAY),$(filter Darwin,$(shell uname))),,$(SCREEN))

# Each of the many processes would compile all of torch and napari for itself.
unexport PYTHONDONTWRITEBYTECODE
# One more than there are cores, because some tests wait; each takes some 1.5 GB.
WORKERS ?= $(shell $(PYTHON) -c 'import os; print(min(4, 1 + os.cpu_count()))')

.PHONY: demo test lint format bench docs install clean

demo: install libraries
	$(WINDOW) $(BIN)/python -m napari_histomae.demo \
		$(if $(SLIDE),--slide "$(SLIDE)") $(if $(REGIONS),--regions "$(REGIONS)") \
		--out demo-output $(if $(WINDOW),--close)

test: install libraries
	$(WINDOW) $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal $(TESTS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/npe2 validate napari.yaml

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# All that was ever measured, one after the other: hours.
bench: install libraries
	$(WINDOW) $(BIN)/python training/benchmarks/overlay_alignment.py
	$(WINDOW) $(BIN)/python training/benchmarks/event_loop.py
	$(WINDOW) $(BIN)/python training/benchmarks/viewer_latency.py
	$(BIN)/python training/benchmarks/reader_speed.py
	$(BIN)/python training/benchmarks/huge_slide.py
	$(BIN)/python training/benchmarks/mutants.py
	$(BIN)/python training/benchmarks/slide_faults.py
	$(BIN)/python training/benchmarks/kill9.py
	$(BIN)/python training/benchmarks/resume_exact.py
	$(WINDOW) $(BIN)/python training/benchmarks/faults.py
	$(BIN)/python training/benchmarks/throughput.py $(if $(PEER),--peer "$(PEER)")
	$(BIN)/python training/benchmarks/embed_speed.py
	$(BIN)/python training/benchmarks/sampler_loss.py
	$(BIN)/python training/benchmarks/recipe_quality.py --recipes reference default
	$(BIN)/python training/benchmarks/slide_pairs.py
	$(BIN)/python training/benchmarks/pama_memory.py
	$(BIN)/python training/benchmarks/pama_cohort.py

docs: install libraries
	$(WINDOW) $(BIN)/python docs/pictures.py

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; $(PYTHON) is older. Install one and run: make PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || \
		{ echo "Python cannot make a virtual environment. On Debian or Ubuntu: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip install --python $(BIN)/python --quiet --constraint constraints.txt \
		--editable . --group test --group lint
	touch $@

.PHONY: libraries
libraries:
	@tools/qt_libraries.sh $(if $(WINDOW),with-xvfb)

clean:
	rm -rf .venv demo-output build dist
