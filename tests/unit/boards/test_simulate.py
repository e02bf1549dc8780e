"""Simulated boards: real processes of the real unix port, started, read and ended."""

import asyncio
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Coroutine
from pathlib import Path

import pytest

from midge.boards import simulate
from midge.boards.simulate import Board, BoardError, Process, device_directory, find_micropython

DEADLINE_S = 20


def test_micropython_named_by_the_environment_is_taken() -> None:
    assert find_micropython({"MICROPYTHON": sys.executable}) == Path(sys.executable)


def test_micropython_named_wrongly_is_an_error_that_says_so() -> None:
    with pytest.raises(BoardError, match="MICROPYTHON=/nonexistent: no such program"):
        find_micropython({"MICROPYTHON": "/nonexistent"})


def test_micropython_is_found_on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulate.sys, "executable", str(tmp_path / "python"))
    program = tmp_path / "bin" / "micropython"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert find_micropython({"PATH": str(program.parent)}) == program


def test_no_micropython_is_an_error_that_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(simulate.sys, "executable", str(tmp_path / "python"))
    with pytest.raises(BoardError, match="MICROPYTHON=/path/to/micropython"):
        find_micropython({"PATH": str(tmp_path)})


def test_command_of_a_unix_port_of_ones_own_is_its_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "micropython"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("MICROPYTHON", str(program))
    assert simulate.micropython_command() == [str(program)]


def test_device_files_are_the_checkouts() -> None:
    assert device_directory() == Path(__file__).resolve().parents[3] / "device"


def test_device_files_inside_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site-packages" / "midge"
    (package / "_device").mkdir(parents=True)
    (package / "_device" / "midge_broker.py").touch()
    monkeypatch.setattr(simulate, "__file__", str(package / "boards" / "simulate.py"))
    assert device_directory() == package / "_device"


def _run(use: Callable[[], Coroutine[object, object, None]]) -> None:
    asyncio.run(asyncio.wait_for(use(), DEADLINE_S))


def _program(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "program.py"
    path.write_text(text)
    return path


def _is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_board_runs_micropython_with_its_heap_and_arguments(tmp_path: Path) -> None:
    text = "import sys, gc\nprint(sys.implementation.name, sys.argv[1:], gc.mem_free() + gc.mem_alloc())"
    lines: list[str] = []

    async def use() -> None:
        board = Board("one", _program(tmp_path, text), ["a", "b"], heap="100k", on_line=lines.append)
        await board.start()
        assert await board.wait() == 0
        await board.stop()

    _run(use)
    name, rest = lines[0].split(" ", 1)
    assert name == "micropython"
    assert rest.startswith("['a', 'b']")
    assert 90_000 < int(rest.split()[-1]) < 102_400


def test_a_board_imports_the_device_files_and_works_in_a_directory_of_its_own(tmp_path: Path) -> None:
    text = "import os, midge_broker\nopen('mine', 'w').close()\nprint(midge_broker.__file__)\nprint(os.getcwd())"

    async def use() -> None:
        board = Board("one", _program(tmp_path, text))
        await board.start()
        assert await board.wait() == 0, board.obituary()
        file, directory = board.last_lines
        assert file == "midge_broker.mpy"
        assert os.path.exists(os.path.join(directory, "mine"))
        await board.stop()
        assert not os.path.exists(directory)

    _run(use)


def test_stop_interrupts_a_board_so_that_it_can_say_goodbye(tmp_path: Path) -> None:
    text = "import time\ntry:\n print('ready')\n time.sleep(60)\nexcept KeyboardInterrupt:\n print('goodbye')"

    async def use() -> None:
        board = Board("one", _program(tmp_path, text))
        await board.start()
        await board.wait_for_line("ready", DEADLINE_S)
        pid = board.pid
        await board.stop()
        await board.stop()  # again: nothing happens
        assert (board.exit_code, list(board.last_lines)) == (0, ["ready", "goodbye"])
        assert not _is_there(pid)

    _run(use)


def test_board_that_is_killed_finds_what_it_wrote_when_it_starts_again(tmp_path: Path) -> None:
    flash = tmp_path / "flash"
    flash.mkdir()
    text = "import os, time\nprint('has', os.listdir('.').count('kept'))\nopen('kept', 'w').close()\ntime.sleep(60)"
    program = _program(tmp_path, text)

    async def use() -> None:
        image = tmp_path / "image"
        image.mkdir()
        await simulate.make_image(image, [program])
        for count in (0, 1):
            board = Board("one", program, directory=flash, image=image)
            try:
                await board.start()
                await board.wait_for_line(f"has {count}", DEADLINE_S)
                while not (flash / "kept").exists():
                    await asyncio.sleep(0.01)
                board.kill()
                assert await board.wait() == -signal.SIGKILL
            finally:
                await board.stop()
        assert (flash / "kept").exists()

    _run(use)


def test_stop_ends_a_program_that_listens_to_no_signal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(simulate, "STOP_STEP_S", 0.2)
    text = "import signal, time\nfor n in (2, 15): signal.signal(n, signal.SIG_IGN)\n"
    text += "print('ready', flush=True)\ntime.sleep(60)"

    async def use() -> None:
        process = Process("stubborn", [sys.executable, _program(tmp_path, text)])
        await process.start()
        await process.wait_for_line("ready", DEADLINE_S)
        await process.stop()
        assert process.exit_code == -signal.SIGKILL
        assert "was ended by SIGKILL; its last lines:\n    ready" in process.obituary()

    _run(use)


def test_waiting_for_a_line_of_a_board_that_died_tells_its_last_lines(tmp_path: Path) -> None:
    async def use() -> None:
        board = Board("kitchen", _program(tmp_path, "print('here')\nraise ValueError('broken')"))
        await board.start()
        try:
            with pytest.raises(BoardError, match=r"(?s)kitchen ended with exit code 1.*ValueError: broken"):
                await board.wait_for_line("never", DEADLINE_S)
        finally:
            await board.stop()

    _run(use)


def test_waiting_for_a_line_has_a_deadline(tmp_path: Path) -> None:
    async def use() -> None:
        board = Board("kitchen", _program(tmp_path, "import time\ntime.sleep(60)"))
        await board.start()
        try:
            with pytest.raises(BoardError, match=r"kitchen didn't print 'never' within 0.1 s"):
                await board.wait_for_line("never", 0.1)
        finally:
            await board.stop()

    _run(use)


def test_a_program_that_does_not_compile_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    async def use() -> None:
        board = Board("faulty", _program(tmp_path, "def broken(:\n"))
        with pytest.raises(BoardError, match=r"(?s)program.py doesn't compile: .*SyntaxError"):
            await board.start()

    before = set(Path(tempfile.gettempdir()).glob("midge-faulty-*"))  # of no other test
    _run(use)
    assert set(Path(tempfile.gettempdir()).glob("midge-faulty-*")) <= before


def test_a_program_that_is_not_there_is_told() -> None:
    async def use() -> None:
        with pytest.raises(BoardError, match="can't start ghost: /nonexistent: No such file"):
            await Process("ghost", ["/nonexistent"]).start()

    _run(use)


def test_a_line_without_end_and_one_of_a_megabyte_arrive(tmp_path: Path) -> None:
    text = "import sys\nsys.stdout.write('x' * 1_000_000 + '\\nlast')"

    async def use() -> None:
        process = Process("long", [sys.executable, _program(tmp_path, text)])
        await process.start()
        assert await process.wait() == 0
        await process.stop()
        assert process.last_lines[-1] == "last"
        assert set(process.last_lines[0]) == {"x"}

    _run(use)
