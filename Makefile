# make test   sets everything up and runs the whole check      make demo   sets everything up and runs the main job
# make chat   sets everything up, trains a small dialogue model and opens the chat
# Both need git, make and Python 3.11 or later; everything else goes into .venv (remove it to start anew).

PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= requirements/constraints.txt
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO ?= demo
ATTENTION ?=

.PHONY: setup test test-all gpu-check sanitize demo chat bench long long-seeds long-curve long-heads long-trained long-encoder sparsify-demo docs dist clean
.DEFAULT_GOAL := test

setup: $(READY)

$(READY): pyproject.toml $(CONSTRAINTS) $(wildcard hatch_build.py src/jieyue/*/csrc/*)
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "jieyue needs Python 3.11 or later; name one with: make PYTHON=python3.12")'
	@echo "Setting up $(VENV) (a minute or two, once)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint $(CONSTRAINTS) --editable '.[dev]'
	@touch $@

test: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

test-all: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal --all

# The Triton kernels in the interpreter, slow cases too: right, and no lane outside the tensors of its launch.
sanitize: setup
	TRITON_INTERPRET=1 $(BIN)/python -m pytest -q --all tests/contracts/fused_battery.py

# Every CUDA path tested, memory compared with what was predicted and the cells of docs/attention.md timed, in at most ten minutes;
# says so where there is no GPU.
gpu-check: setup
	$(BIN)/python benchmarks/gpu_check.py

# The main job, on the corpus that ships: plan, train, evaluate, report, answer. A model that is there is used again.
# ATTENTION="local(64)+atrous(16)" trains with that pattern and reports it against full attention at growing lengths.
demo: setup
	@if [ -f $(DEMO)/reader/report.html ]; then \
	  echo "Using the model in $(DEMO)/reader (remove the folder to train anew)"; \
	else \
	  $(BIN)/jieyue train read --model tiny --budget 1GiB --time 225s $(if $(ATTENTION),--attention "$(ATTENTION)") --out $(DEMO)/reader; \
	fi
	@echo; echo "One question about a new notice:"; echo "  $(DEMO_TEXT)"; echo "  $(DEMO_QUESTION)"
	@$(BIN)/jieyue read $(DEMO)/reader --question "$(DEMO_QUESTION)" --text "$(DEMO_TEXT)"
	@echo; echo "Model   $(DEMO)/reader"; echo "Report  $(DEMO)/reader/report.html"; echo "Try next:"
	@echo "  $(BIN)/jieyue evaluate $(DEMO)/reader"
	@echo "  $(BIN)/jieyue read $(DEMO)/reader --question '…' --file passage.txt"

DEMO_TEXT ?= 王小明出生于青岛市，现在是一名教师。李芳喜欢游泳。
DEMO_QUESTION ?= 王小明在哪里出生？

# Trains a small dialogue model on the everyday talks that ship (once, about four minutes), then opens the chat.
chat: setup
	@if [ -f $(DEMO)/chat/report.html ]; then \
	  echo "Using the model in $(DEMO)/chat (remove the folder to train anew)"; \
	else \
	  $(BIN)/jieyue train chat --model tiny --budget 1GiB --time 225s --out $(DEMO)/chat; \
	fi
	@echo; echo "A small model that learned from 2,000 short everyday talks. Try: 我手机没电了。 or: I lost my keys."
	@$(BIN)/jieyue chat $(DEMO)/chat --temperature 0

# Each benchmark prints its numbers and writes them, dated, into benchmarks/results; quiet machine, please.
bench: setup
	$(BIN)/jieyue bench attention --out benchmarks/results
	$(BIN)/jieyue bench activation --out benchmarks/results
	$(BIN)/jieyue bench memory --model small --effective-batch 8 --micro-batch 2 --out benchmarks/results
	$(BIN)/python benchmarks/accumulation.py
	$(BIN)/python benchmarks/allocator.py
	$(BIN)/python benchmarks/cold_start.py
	$(BIN)/python benchmarks/dialogue_files.py --forms list --out benchmarks/results
	$(BIN)/python benchmarks/digits.py
	$(BIN)/python benchmarks/memory_goals.py --run
	$(BIN)/python benchmarks/memory_prediction.py
	$(BIN)/python benchmarks/method_price.py
	$(BIN)/python benchmarks/whole_process.py
	$(BIN)/python benchmarks/cuda_predictions.py
	$(BIN)/python benchmarks/ptxas.py --add --out benchmarks/results
	$(BIN)/python benchmarks/predict.py
	$(BIN)/python benchmarks/reading.py
	$(BIN)/python benchmarks/remedies.py
	$(BIN)/python benchmarks/tasks.py
	$(BIN)/python benchmarks/serving.py --out benchmarks/results
	$(BIN)/python benchmarks/trainers.py
	$(BIN)/python benchmarks/decoding.py --out benchmarks/results
	$(BIN)/python benchmarks/write_docs.py
	$(BIN)/python docs/fill_numbers.py

# A pretrained model that you have under sparse attention: the layers that jieyue sparsify chose, the price by length, the cache,
# needles in long text, a second kind of text, how far each head moves.
# make long MODEL=folder CHOICE=the folder that jieyue sparsify left TEXT=a file of held-out text SECOND=a file of another kind
# ALSO="NAME=another such folder"
long: setup
	$(BIN)/python benchmarks/long.py $(MODEL) --choice $(CHOICE) --text $(TEXT) --lengths 1024 2048 4096 --rows 8 --cache 1024 4096 16384 --forward 16384 --step 8192 --token 1024 4096 16384 --repeats 3 --also $(ALSO) --add --out benchmarks/results
	$(BIN)/python benchmarks/needle.py $(MODEL) --choice $(CHOICE) --text $(TEXT) --lengths 1024 2048 --needles 5 --out benchmarks/results
	$(BIN)/python benchmarks/long.py $(MODEL) --choice $(CHOICE) --text $(TEXT) --positions 16384 --rows 2 --name-of-result long-positions --out benchmarks/results
	$(BIN)/python benchmarks/long.py $(MODEL) --choice $(CHOICE) --text $(TEXT) --second $(SECOND) --lengths 2048 --rows 8 --name-of-result long-second --out benchmarks/results
	$(BIN)/python benchmarks/long_bound.py $(MODEL) --text $(TEXT) --rows 4 --queries 4000 --out benchmarks/results

# The same model trained a little beside the full one trained alike, three seeds: LEARN is a file of text that neither chose nor judges.
long-seeds: setup
	$(BIN)/python benchmarks/long_seeds.py $(MODEL) --choice $(CHOICE) --data $(LEARN) --text $(TEXT) --tokens 100k --lengths 2048 --runs runs/long-seeds-100k --name-of-result long-seeds-100k --out benchmarks/results
	$(BIN)/python benchmarks/long_seeds.py $(MODEL) --choice $(CHOICE) --data $(LEARN) --text $(TEXT) --tokens 200k --lengths 2048 --runs runs/long-seeds --out benchmarks/results

# Ten times the tokens, the sparse model alone: hours. It goes on where it was stopped, and its curve is drawn as far as it came.
long-curve: setup
	$(BIN)/python benchmarks/long_seeds.py $(MODEL) --choice $(CHOICE) --data $(LEARN) --text $(TEXT) --tokens 2M --seeds 0 --arms sparse --every 24 --runs runs/long-curve --name-of-result long-curve --out benchmarks/results

# As many key-value heads full as the choice has in its full layers, so the same cache: LEARN is a file of text by which heads are ranked.
long-heads: setup
	$(BIN)/python benchmarks/long_heads.py $(MODEL) --choice $(CHOICE) --calibrate $(LEARN) --text $(TEXT) --tell 1024 2048 --rows 4 --out benchmarks/results

# Folders that were trained, each beside the model as it is and beside the first of them, on a second kind of text too.
# make long-trained MODEL=… CHOICE=… TEXT=… SECOND=file of other text TRAINED="control=folder sparse=folder distilled=folder"
long-trained: setup
	$(BIN)/python benchmarks/long.py $(MODEL) --choice $(CHOICE) --text $(TEXT) --second $(SECOND) --lengths 2048 --rows 8 --trained $(TRAINED) --name-of-result long-trained --out benchmarks/results

# A pretrained encoder: distilled from itself under sparse attention, which book a passage is from, its speed (a quiet machine).
# make long-encoder ENCODER=folder LEARN="files of books" CHOOSE=… TELL=… BOOKS="files of other books"
long-encoder: setup
	$(BIN)/python benchmarks/long_encoder.py $(ENCODER) --train $(LEARN) --choose $(CHOOSE) --test $(TELL) --books $(BOOKS) --chapters 4 --speed 2048 4096 --repeats 15 --add --out benchmarks/results
	$(BIN)/python benchmarks/long_encoder.py $(ENCODER) --books $(BOOKS) --chapters 4 --positions interpolate --name-of-result long-encoder-interpolate --out benchmarks/results
	$(BIN)/python benchmarks/long_encoder.py $(ENCODER) --train $(LEARN) --choose $(CHOOSE) --test $(TELL) --rates 1e-5 3e-5 1e-4 --rate-tokens 100000 --tokens 1000000 --seeds 0 1 2 --runs runs/long-encoder-more --name-of-result long-encoder-more --out benchmarks/results

# Sparse attention in a small masked language model that learned the passages that ship (it is trained first where it is not there),
# about four minutes in all: prices measured, the layer that stays full chosen, 100,000 tokens trained, beside the full model trained alike.
sparsify-demo: setup
	@if [ ! -f $(DEMO)/mlm/report.html ]; then \
	  $(BIN)/jieyue train mlm --model tiny --max-tokens 256 --budget 1GiB --time 180s --out $(DEMO)/mlm; \
	fi
	$(BIN)/jieyue sparsify $(DEMO)/mlm --attention "global(1)+local(16)" --row-tokens 256 --full-layers auto:+2% --tokens 100k \
	  --learning-rate 2e-4 --control --budget 2GiB --out $(DEMO)/sparse --overwrite
	@echo; echo "Model   $(DEMO)/sparse"; echo "Report  $(DEMO)/sparse/report.html"; echo "Try next:"
	@echo "  $(BIN)/jieyue evaluate $(DEMO)/sparse"

# The documentation as a site in site/, both languages; strict: a link that leads nowhere is an error.
docs: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint $(CONSTRAINTS) --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "Read it, search included, with: $(BIN)/python -m http.server --bind 127.0.0.1 --directory site"

# A source archive and a wheel for this machine; before them, where the cross-compiler is there, a wheel for Linux on ARM.
dist: setup
	rm -rf dist
	@if command -v aarch64-linux-gnu-g++ > /dev/null && [ "$$(uname -m)" != aarch64 ]; then \
	  CXX=aarch64-linux-gnu-g++ $(BIN)/python -m build --no-isolation --wheel; \
	else echo "No wheel for linux-aarch64: aarch64-linux-gnu-g++ not found"; fi
	$(BIN)/python -m build --no-isolation

# The attention kernel's ARM build, emulated, against float64; skipped with a reason where the tools are missing.
qemu-check: setup
	$(BIN)/python tests/arm/check.py

clean:
	rm -rf dist build .mypy_cache .ruff_cache .hypothesis
