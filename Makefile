# `make demo`, `make train` and `make test` make .venv when it is missing and keep it when nothing changed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# What is imported is compiled then, and kept; to compile all that lies there would take as long as the rest.
INSTALL := $(BIN)/python -m pip install --no-compile --constraint constraints.txt
export PYTHONDONTWRITEBYTECODE =

.PHONY: demo train test clean

demo: $(VENV)/.installed
	$(BIN)/captioner generate examples/pictures
	$(BIN)/python examples/contact_sheet.py examples/pictures --out build/demo.png

train: $(VENV)/.installed-train
	@echo "Ready to train: source $(BIN)/activate, then see the README's section Train."

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

$(VENV)/.installed: setup.cfg pyproject.toml constraints.txt
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(INSTALL) --editable '.[eval,web]'
	touch $@

$(VENV)/.installed-train: $(VENV)/.installed
	$(INSTALL) --editable '.[train]'
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(INSTALL) --editable '.[test]'
	touch $@

clean:
	rm -rf $(VENV) build
