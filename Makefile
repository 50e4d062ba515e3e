# The commands of a checkout. Each sets up what it needs in .venv, once; see tools/environment.sh.
#
#   make demo     compile ViT-B/16 for this machine's GPU or CPU, run it on a photo, check it against timm
#   make test     the tests;  make test PYTEST_ARGS="-k memory -n 0"
#   make lint     ruff, pyright, clang-format;  make format applies them
#
# PYTHON=python3.12 chooses the interpreter, VENV=/elsewhere the environment's place.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Test processes share the cores: more threads in each would only disturb the others.
TEST_JOBS ?= auto
PYTEST_ARGS ?=
CXX_FILES = $$(find vitc examples benchmarks tests -type f 2>/dev/null \
	\( -name '*.h' -o -name '*.cuh' -o -name '*.c' -o -name '*.cc' -o -name '*.cpp' -o -name '*.cu' \) \
	-not -path '*/golden/*')
PY_FOLDERS = $$(ls -d vitc tests examples benchmarks tools 2>/dev/null)

.PHONY: help demo test lint format wheel clean
.DEFAULT_GOAL := help

help:
	@sed -n 's/^#  \( *make\)/\1/p' Makefile

demo: $(VENV)/.ready-plot
	$(BIN)/python examples/compile_and_classify.py

test: $(VENV)/.ready-test
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -n $(TEST_JOBS) --dist worksteal $(PYTEST_ARGS)

# All of them run, whichever fails.
lint: $(VENV)/.ready-dev
	@failed=; try() { echo "$$@" | cut -c 1-90; "$$@" || failed=1; }; \
	try $(BIN)/ruff check $(PY_FOLDERS); \
	try $(BIN)/ruff format --check $(PY_FOLDERS); \
	try $(BIN)/pyright --pythonpath $(BIN)/python; \
	files="$(CXX_FILES)"; [ -z "$$files" ] || try $(BIN)/clang-format --dry-run -Werror $$files; \
	[ -z "$$failed" ]

format: $(VENV)/.ready-dev
	$(BIN)/ruff check --fix $(PY_FOLDERS)
	$(BIN)/ruff format $(PY_FOLDERS)
	files="$(CXX_FILES)"; [ -z "$$files" ] || $(BIN)/clang-format -i $$files

wheel: $(VENV)/.ready-test
	$(BIN)/python -c "import setuptools.build_meta as b; print('dist/' + b.build_wheel('dist'))"

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache

# One stamp for each extra of pyproject.toml.
$(VENV)/.ready-%: pyproject.toml tools/environment.sh
	@sh tools/environment.sh "$(PYTHON)" "$(VENV)" "$*"
	@touch $@
