"""Runs the command of `midge serve` for each request, so many at a time, each with its deadline.
Knows nothing of MQTT: a request goes in, an answer comes out, and `fileno` becomes readable.
"""

import json
import os
import queue
import signal
import subprocess
import threading
from typing import NamedTuple

# What an answer that is none may carry of the command's stderr.
_STDERR_BYTES = 1000


class Request(NamedTuple):
    """What the command is to answer. *context* is the caller's."""

    topic: str
    payload: bytes
    content_type: str | None
    user_properties: list[tuple[str, str]]
    expires_in_s: int | None
    context: object


class Answer(NamedTuple):
    """What it printed. *error*: why this is no answer; the payload then is the end of its stderr."""

    payload: bytes
    error: str | None = None


class Runner:
    """*jobs* threads, each of which runs one command at a time."""

    def __init__(self, command: list[str], jobs: int, timeout_s: float) -> None:
        self._command = command
        self._timeout_s = timeout_s
        self._requests: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[tuple[Request, Answer]] = queue.SimpleQueue()
        self._bell, self._ring = os.pipe()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._is_closed = False  # set by `close`: commands that start now are ended at once
        self.waiting = 0  # requests handed in whose answer wasn't taken
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(jobs)]
        for thread in self._threads:
            thread.start()

    def fileno(self) -> int:
        """Readable when there are answers to take."""
        return self._bell

    @property
    def is_idle(self) -> bool:
        return self.waiting == 0

    def submit(self, request: Request) -> None:
        self.waiting += 1
        self._requests.put(request)

    def finished(self) -> list[tuple[Request, Answer]]:
        os.read(self._bell, 65536)
        answers = []
        while not self._answers.empty():
            answers.append(self._answers.get())
        self.waiting -= len(answers)
        return answers

    @staticmethod
    def busy() -> Answer:
        return Answer(b"", "busy")

    def close(self) -> None:
        """Ends what still runs."""
        self._is_closed = True
        for process in list(self._running):
            _kill(process)
        for _ in self._threads:
            self._requests.put(None)

    def _work(self) -> None:
        while (request := self._requests.get()) is not None:
            answer = self._answer(request)
            self._answers.put((request, answer))
            os.write(self._ring, b"!")

    def _answer(self, request: Request) -> Answer:
        timeout_s = self._timeout_s
        if request.expires_in_s is not None:
            timeout_s = min(timeout_s, request.expires_in_s)  # nobody waits longer
        try:
            process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=_environment(request),
                start_new_session=True,  # so that its children end with it
            )
        except (OSError, ValueError) as error:
            return Answer(b"", f"can't run {self._command[0]}: {error}")
        self._running.add(process)
        try:
            if self._is_closed:
                _kill(process)
            output, errors = process.communicate(request.payload, timeout_s)
        except subprocess.TimeoutExpired:
            _kill(process)
            process.communicate()
            return Answer(b"", f"no answer within {timeout_s:g} s")
        finally:
            self._running.discard(process)
        if process.returncode == 0:
            return Answer(output)
        return Answer(errors[-_STDERR_BYTES:], _why(process.returncode))


def _why(code: int) -> str:
    return f"exit code {code}" if code > 0 else f"ended by signal {signal.Signals(-code).name}"


def _kill(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # it was faster


def _environment(request: Request) -> dict[str, str]:
    return {
        **os.environ,
        "MIDGE_TOPIC": request.topic,
        "MIDGE_CONTENT_TYPE": request.content_type or "",
        "MIDGE_USER_PROPERTIES": json.dumps(request.user_properties),
    }
