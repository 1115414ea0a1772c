# Everything runs in .venv, which is made of what pyproject.toml asks for; only Python is needed to begin with.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml README.md $(shell find dmproto dmserver -name '*.py' -o -name py.typed)
SOCKET ?= $(CURDIR)/dm.sock

.PHONY: run test bench fidelity clean

# Serve a device-mapper on ./dm.sock.
run: $(VENV)/runs
	@echo 'Try, in another shell:'
	@echo '  export DM_SOCKET="$(SOCKET)"'
	@echo '  $(BIN)/dmctl create vol1'
	@echo '  echo "0 2048 linear /dev/ram0 0" | $(BIN)/dmctl reload vol1'
	@echo '  $(BIN)/dmctl resume vol1; $(BIN)/dmctl table vol1; $(BIN)/dmctl deps vol1; $(BIN)/dmctl pdevs'
	@echo 'Stop it with ^C.'
	@exec $(BIN)/dmserver serve --socket "$(SOCKET)" --pdev /dev/ram0=ram:16M --pdev /dev/ram1=ram:16M

# Check the types and the style, and test the package as it is installed.
test: $(VENV)/tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -n 2

# Print ratios to peers, measured in the same run.
bench: $(VENV)/tests
	$(BIN)/python tests/bench

# Write specs/fidelity.md anew: how the recordings of the Linux kernel compare with what is answered.
fidelity: $(VENV)/tests
	PYTHONPATH=tests $(BIN)/python -m support.linux_fidelity

clean:
	rm -rf $(VENV)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/runs: $(BIN)/python $(SOURCES)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check .
	@touch $@

$(VENV)/tests: $(BIN)/python $(SOURCES)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check '.[test,all]'
	@touch $@ $(VENV)/runs
