# Two commands on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# Two workers with one torch thread each: what a laptop and a CI machine can both do.
export OMP_NUM_THREADS ?= 1
PYTEST := $(BIN)/python -m pytest -n 2 --dist worksteal

.PHONY: demo install test slow flower lint docs clean

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt torch torchvision
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev,docs]'
	touch $(STAMP)

install: $(STAMP)

demo: install
	env -u OMP_NUM_THREADS $(BIN)/datastill demo

test: install lint
	$(PYTEST)

slow: install
	$(PYTEST) -m slow

# Flower pins about thirty packages: an environment of its own.
flower:
	$(PYTHON) -m venv $(VENV)-flower
	$(VENV)-flower/bin/python -m pip install -q -c constraints.txt torch torchvision
	$(VENV)-flower/bin/python -m pip install -q -c constraints.txt -e '.[flower]' pytest hypothesis
	$(VENV)-flower/bin/python -m pytest tests/unit/test_flower.py

lint: install
	$(BIN)/ruff check src tests
	$(BIN)/ruff format --check src tests
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: install
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

clean:
	rm -rf $(VENV) $(VENV)-flower runs build dist docs/_build .pytest_cache .mypy_cache .ruff_cache
