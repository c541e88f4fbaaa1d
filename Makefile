# The commands of the project. A fresh machine needs git, make and Python 3.11 or 3.12, and no root.
# TORCH_INDEX names the index of CPU builds, used only where pip's own sources have none.

PYTHON ?= $(shell for p in python3.11 python3.12 python3; do $$p -c 'import sys; sys.exit(not ((3, 11) <= sys.version_info[:2] < (3, 13)))' 2>/dev/null && { echo $$p; break; }; done)
TORCH := 2.13.0
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q

# Images of containers like to set it; then each of the hundreds of processes here would compile the sources anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: pretrain test lint bench bench-peers prove prove-slow prove-grid prove-corruption slurm prove-slurm prove-reshard prove-kill prove-disk prove-build prove-order prove-flips prove-near prove-scaling prove-hangs prove-tracking prove-ui soak study-scaling study-reversal clean

## The main job: real text to a trained, resumed, evaluated and sampled model (about six minutes on two cores)
pretrain: .venv/installed
	$(BIN)/lacuna demo --out runs/demo

## Everything that checks the project
test: .venv/installed-test slurm lint
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow"

## The tests that take tens of seconds each
prove-slow: .venv/installed-test slurm
	$(BIN)/python -m pytest -m slow

lint: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

## Slurm's daemons for the tests that run jobs, where there are root and apt-get; elsewhere those tests are skipped
slurm:
	@if command -v slurmctld >/dev/null && command -v slurmd >/dev/null && command -v munged >/dev/null; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "installing Slurm for the tests"; \
		{ apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurm-wlm munge >/dev/null; } \
		|| echo "Slurm could not be installed: the tests that need it are skipped"; \
	else echo "neither Slurm nor root and apt-get are here: the tests that need a real Slurm are skipped"; fi

## Speed against this machine's own limits, in one run; see docs/benchmarks.md
bench: .venv/installed
	$(BIN)/python -m bench.run

## The data path beside other projects', installed into .venv-peers; rewrites a section of docs/benchmarks.md
bench-peers: .venv/installed-test
	$(BIN)/python -m bench.peers --markdown docs/benchmarks.md

## The longer proofs, with reports under docs/
prove: prove-slow prove-grid prove-corruption prove-slurm prove-reshard prove-kill prove-disk prove-build prove-order prove-flips prove-near prove-scaling prove-hangs prove-tracking prove-ui soak

## Every combination of layouts against the plain reference (about an hour on two cores); fails on any fault, else rewrites a table in docs/parallelism.md
prove-grid: .venv/installed-test
	$(BIN)/python -m tests.prove.grid

## 200 damages to checkpoints, each refused and named; rewrites a part of docs/reliability.md
prove-corruption: .venv/installed-test
	$(BIN)/python -m tests.prove.corruption

## Node failure, split brain, preemption, prolog failure on a real Slurm (root; some minutes); rewrites docs/slurm.md
prove-slurm: .venv/installed-test slurm
	$(BIN)/python -m tests.prove.slurm

## Every layout loads every other's checkpoint and trains on (19 minutes on two cores); rewrites a section of docs/reliability.md
prove-reshard: .venv/installed-test
	$(BIN)/python -m tests.prove.reshard

## Runs killed at 50 points and resumed, bit by bit (7 minutes on two cores, 13 beside other work); rewrites docs/reliability.md
prove-kill: .venv/installed-test
	$(BIN)/python -m tests.prove.kill

## A disk that fails at every call of a save (some minutes); rewrites docs/reliability.md
prove-disk: .venv/installed-test
	$(BIN)/python -m tests.prove.disk

## A dataset build killed at 20 seeded points and repeated, byte by byte; rewrites its table in docs/data.md
prove-build: .venv/installed-test
	$(BIN)/python -m tests.prove.build

## A rank that hangs in each place where one can (some minutes); rewrites its table in docs/reliability.md
prove-hangs: .venv/installed-test
	$(BIN)/python -m tests.prove.hangs

## Bits flipped in a dataset's files, each found; rewrites a table in docs/data.md
prove-flips: .venv/installed-test
	$(BIN)/python -m tests.prove.flips

## Near-copies at known similarities, against the truth and datasketch; rewrites a table in docs/data.md
prove-near: .venv/installed-test
	$(BIN)/python -m tests.prove.near

## One run of 4, 2, 3 and 8 processes reads what one process reads; rewrites its table in docs/data.md
prove-order: .venv/installed-test
	$(BIN)/python -m tests.prove.order

## Planted scaling laws through the fits; rewrites docs/scaling/method.md
prove-scaling: .venv/installed-test
	$(BIN)/python -m tests.prove.scaling

## Training beside a tracking server that fails in six ways (some minutes); rewrites a part of docs/reliability.md
prove-tracking: .venv/installed-test
	$(BIN)/python -m tests.prove.tracking

## MLflow's pages of a run in a real headless Chromium (Debian's chromium and chromium-driver; fails without)
prove-ui: .venv/installed-test
	$(PIP) install -c constraints.txt -e ".[ui]"
	$(BIN)/python -m tests.prove.ui

## A run under random faults, a fault a minute (20 minutes and some; MINUTES=3 for less); rewrites a part of docs/reliability.md
soak: .venv/installed-test
	$(BIN)/python -m tests.prove.soak --minutes $(or $(MINUTES),20)

## The scaling study: three sweeps on real text, then docs/scaling/report.md; killed, it continues. Each sweep's table is
## docs/scaling/NAME.csv from its first point on: kept (in git, say), it saves another machine the points in it
study-scaling: .venv/installed
	@echo "three sweeps of 20 small models each: an estimated 2.5 hours on two quiet cores; killed, the same command continues"
	test -d runs/scaling/data || $(BIN)/lacuna data build --config docs/scaling/data.yaml --out runs/scaling/data
	$(BIN)/lacuna scaling run docs/scaling/study-autoregressive.yaml --out runs/scaling/autoregressive --table docs/scaling/study-autoregressive.csv --processes 2
	$(BIN)/lacuna scaling run docs/scaling/study-masked.yaml --out runs/scaling/masked --table docs/scaling/study-masked.csv --processes 2
	$(BIN)/lacuna scaling run docs/scaling/repeats.yaml --out runs/scaling/repeats --table docs/scaling/repeats.csv --processes 2
	$(BIN)/lacuna scaling report runs/scaling/autoregressive runs/scaling/masked runs/scaling/repeats --out docs/scaling

## The reversal study: six small runs on couplets, then docs/studies/reversal.md; killed, it continues
study-reversal: .venv/installed
	$(BIN)/lacuna study reversal --out runs/reversal --processes 2 --report docs/studies

clean:
	rm -rf .venv build *.egg-info

.venv/torch:
	@test -n "$(PYTHON)" || { echo "lacuna needs Python 3.11 or 3.12 on the PATH (or PYTHON=/path/to/python)"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@if command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1; then \
		echo "installing torch $(TORCH) with CUDA"; $(PIP) install "torch===$(TORCH)"; \
	else \
		echo "installing torch $(TORCH) for the CPU"; \
		$(PIP) install "torch==$(TORCH)+cpu" 2>/dev/null \
		|| $(PIP) install --extra-index-url $(TORCH_INDEX) "torch==$(TORCH)+cpu" 2>/dev/null \
		|| { echo "no CPU build of torch for this Python was found: taking the default build, which is large"; $(PIP) install "torch==$(TORCH)"; }; \
	fi
	@touch $@

.venv/installed: .venv/torch pyproject.toml constraints.txt
	$(PIP) install -c constraints.txt -e .
	@touch $@

.venv/installed-test: .venv/installed
	$(PIP) install -c constraints.txt -e ".[test]"
	@touch $@
