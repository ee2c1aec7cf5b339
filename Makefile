# `make demo`, `make train` and `make test` make .venv when it is missing and keep it when nothing changed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo train test clean

demo: $(VENV)/.installed
	$(BIN)/captioner generate examples/pictures
	$(BIN)/python examples/contact_sheet.py examples/pictures --out build/demo.png

train: $(VENV)/.installed-train
	@echo "Ready to train: source $(BIN)/activate, then see the README's section Train."

# The tests start many processes: what one has compiled the others read, also where Python is told to write nothing.
test: $(VENV)/.installed-test
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

$(VENV)/.installed: setup.cfg pyproject.toml constraints.txt
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[eval,web]'
	touch $@

$(VENV)/.installed-train: $(VENV)/.installed
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[train]'
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[test]'
	touch $@

clean:
	rm -rf $(VENV) build
