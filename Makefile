# Two commands: `make app` opens the dashboard on the embedded demo, `make test` runs every test.
# Each sets up what it needs in .venv; all it asks for is Python 3.11.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
PORT ?= 8501

.PHONY: app test check clean
.DELETE_ON_ERROR:

app: .venv/app.done
	$(BIN)/streamlit run app.py --server.port $(PORT)

test: .venv/tests.done
	@sh tests/browser/ensure_chromium.sh
	@sh tests/ensure_postgresql.sh
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

check: .venv/tests.done
	$(BIN)/pyright

.venv/app.done: requirements.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if v == (3, 11) else f"Verbatim needs Python 3.11, this is {v[0]}.{v[1]}: make PYTHON=/path/to/python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

.venv/tests.done: .venv/app.done tests/requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r tests/requirements.txt
	@touch $@

clean:
	rm -rf .venv
