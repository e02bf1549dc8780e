"""How long a command takes to start: `midge pub` and its like beside Mosquitto's, against a broker of ours.

CPU time (user and system, of the process) and wall time, the runs in turn: medians, and of the CPU time the least,
since what else the machine does only adds to it. The aim: `midge pub` under 150 ms more than `python -c pass`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from broker_processes import start_midge

AIM_MS = 150.0


def run_once(command: list[str]) -> tuple[float, float]:
    """CPU and wall time, ms."""
    began = time.perf_counter()
    before = os.times()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True, timeout=60)
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return cpu * 1000, (time.perf_counter() - began) * 1000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    midge = [sys.executable, "-m", "midge"]
    with tempfile.TemporaryDirectory() as directory:
        broker = start_midge(sys.executable, Path(directory), None)
        where = ["-h", "127.0.0.1", "-p", str(broker.port), "-t", "a"]
        commands = {
            "python -c pass": [sys.executable, "-c", "pass"],
            "midge pub": [*midge, "pub", *where, "-m", "x"],
            "midge pub -q 1": [*midge, "pub", *where, "-m", "x", "-q", "1"],
            "midge sub -E": [*midge, "sub", *where, "-E"],
            "midge rr": [*midge, "rr", *where, "-e", "a", "-m", "x"],
        }
        for tool, rest in (("mosquitto_pub", ["-m", "x"]), ("mosquitto_sub", ["-E"])):
            if shutil.which(tool):
                commands[tool] = [tool, *where, *rest]
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for _ in range(options.rounds):
            for name, command in commands.items():
                times[name].append(run_once(command))
        broker.stop()
    print(f"{'':16} {'CPU, least':>11} {'more than python':>17} {'CPU, median':>12} {'wall, median':>13}")
    base = min(cpu for cpu, _ in times["python -c pass"])
    for name, runs in times.items():
        least = min(cpu for cpu, _ in runs)
        cpu = statistics.median(cpu for cpu, _ in runs)
        wall = statistics.median(wall for _, wall in runs)
        print(f"{name:16} {least:8.0f} ms {least - base:14.0f} ms {cpu:9.0f} ms {wall:10.0f} ms")
    more = min(cpu for cpu, _ in times["midge pub"]) - base
    print(f"midge pub: {more:.0f} ms of CPU more than python -c pass; the aim is under {AIM_MS:.0f}")
    return 0 if more < AIM_MS else 1


if __name__ == "__main__":
    sys.exit(main())
