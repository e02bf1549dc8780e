"""docs/work-queues.md: a video platform's encoding jobs, from a producer that knows no queue to workers of different
speed, one of them a board; and what the page prints.
"""

import os
import subprocess
import sys
import threading
import time
import tomllib
from collections import Counter
from pathlib import Path

from brokers import ROOT, micropython, start_host
from midge.config import parse
from paho_peer import Paho

from .test_docs_running import blocks

PAGE = (ROOT / "docs/work-queues.md").read_text(encoding="utf-8")
WORKERS = Path(__file__).parent / "workers"
JOBS = 140
DEADLINE_S = 40


class Worker:
    """A process that prints "ready", then "done JOB" for each."""

    def __init__(self, *command: object, env: dict[str, str] | None = None) -> None:
        self.lines: list[str] = []
        self._came = threading.Condition()
        self.process = subprocess.Popen(
            [str(part) for part in command], stdout=subprocess.PIPE, text=True, env={**os.environ, **(env or {})}
        )
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._came:
                self.lines.append(line.rstrip())
                self._came.notify_all()

    def wait_for(self, start: str) -> str:
        """The first line that starts with it."""
        end = time.monotonic() + DEADLINE_S
        with self._came:
            while not (found := [line for line in self.lines if line.startswith(start)]):
                left_s = end - time.monotonic()
                assert left_s > 0, f"no {start!r} in {self.lines}"
                self._came.wait(left_s)
            return found[0]

    @property
    def done(self) -> list[str]:
        with self._came:
            return [line.split()[1] for line in self.lines if line.startswith("done")]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def test_every_job_is_done_once_and_shares_follow_speed(tmp_path: Path) -> None:
    config = tmp_path / "midge.toml"
    config.write_text(blocks(PAGE, "toml")[0])
    workers: list[Worker] = []
    with start_host("--config", config, "--data", tmp_path) as broker:
        producer = Paho(broker.port, "uploads")
        for job in range(30):  # before there is any worker
            producer.publish(f"jobs/encode/{job}", str(job), 1)
        try:
            workers = [
                Worker(sys.executable, WORKERS / "worker.py", broker.port, name, seconds, *last)
                for name, seconds, *last in (("fast", 0.02), ("slow", 0.15), ("victim", 0.02, 6))
            ]
            board = [micropython(), "-X", "heapsize=256k", WORKERS / "board_worker.py", broker.port, "board", 0.06]
            workers.append(Worker(*board, env={"MICROPYPATH": f"{ROOT / 'device'}:.frozen"}))
            fast, slow, victim, board_worker = workers
            for worker in workers:
                worker.wait_for("ready")
            for job in range(30, JOBS):
                producer.publish(f"jobs/encode/{job}", str(job), 1)
            unfinished = victim.wait_for("begun").split()[1]
            victim.kill()
            end = time.monotonic() + DEADLINE_S
            while sum(len(worker.done) for worker in workers) < JOBS and time.monotonic() < end:
                time.sleep(0.05)
            time.sleep(0.3)  # for what would be done again
        finally:
            for worker in workers:
                worker.kill()
        producer.disconnect()
    done = Counter(job for worker in workers for job in worker.done)
    assert done == Counter(str(job) for job in range(JOBS))
    assert unfinished not in victim.done and len(victim.done) == 5
    # 7.5 to 2.5 to 1, if each were never kept waiting.
    shares = [len(worker.done) for worker in (fast, board_worker, slow)]
    print(f"shares of 20, 60 and 150 ms a job: {shares}")
    assert shares[0] > 1.3 * shares[1] > 1.3 * 1.3 * shares[2], shares


def test_the_page_s_configurations_are_understood() -> None:
    pieces = blocks(PAGE, "toml")
    assert len(pieces) >= 2
    for piece in pieces:
        assert parse(tomllib.loads(piece), "the page").queue
