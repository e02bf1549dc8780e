"""Runs histories from the command line: `python tests/simulation --seed 17` repeats one, and prints all of it."""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import sys
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from simulation.history import History
from simulation.queue_history import QueueHistory

# Seeds that a process takes at a time.
_SLICE = 100


def main() -> int:
    parser = argparse.ArgumentParser(prog="python tests/simulation", description=__doc__)
    parser.add_argument("--seed", type=int, help="run this history alone and print its events")
    parser.add_argument("--first", type=int, default=0, help="the first seed (0)")
    parser.add_argument("--histories", type=int, default=10_000, help="how many seeds (10,000)")
    parser.add_argument("--seconds", type=float, default=0, help="stop after so long")
    parser.add_argument("--failures", type=int, default=1, help="stop after so many failures (1)")
    parser.add_argument("--queues", action="store_true", help="histories of durable queues")
    parser.add_argument("--jobs", type=int, default=1, help="processes (1); 0: one for each core")
    options = parser.parse_args()
    if options.seed is not None:
        return _one(QueueHistory if options.queues else History, options.seed)
    return _many(options)


def _one(kind: type[History], seed: int) -> int:
    trace: list[str] = []
    try:
        kind(seed, trace).run()
    except Exception:  # noqa: BLE001  # whatever a history ends with is its result
        print("\n".join(trace))
        traceback.print_exc()
        return 1
    print("\n".join(trace))
    print(f"seed {seed}: {len(trace)} events, all invariants hold")
    return 0


def _run(kind: type[History], seeds: range) -> list[str]:
    """What those of *seeds* broke; empty if all is well."""
    broken = []
    for seed in seeds:
        try:
            kind(seed).run()
        except Exception as error:  # noqa: BLE001  # whatever a history ends with is its result
            broken.append(f"seed {seed}: {type(error).__name__}: {error}")
    return broken


def _many(options: argparse.Namespace) -> int:
    started = time.monotonic()
    last = options.first + options.histories
    slices = (range(at, min(at + _SLICE, last)) for at in range(options.first, last, _SLICE))
    done = failures = 0
    with multiprocessing.Pool(options.jobs or None) as pool:
        run = functools.partial(_run, QueueHistory if options.queues else History)
        for broken in pool.imap_unordered(run, slices):
            done += _SLICE
            failures += len(broken)
            print("".join(f"{line}\n" for line in broken), end="", flush=True)
            if done % 10_000 == 0:
                print(f"{done} histories in {time.monotonic() - started:.0f} s", flush=True)
            is_late = options.seconds and time.monotonic() - started > options.seconds
            if failures >= options.failures or is_late:
                break
    done = min(done, options.histories)
    took = time.monotonic() - started
    print(f"{done} histories from seed {options.first}, {failures} broke an invariant, {took:.1f} s")
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
