"""The `midge` command itself: help, version, unknown commands, interrupts."""

import subprocess
import sys
from types import ModuleType

import pytest

from midge import __version__
from midge.cli import COMMANDS, main


def test_help_has_a_line_for_each_command_and_examples(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    for name, text in COMMANDS.items():
        assert f"{name:10} {text}" in out
    assert "midge sub -v -t '#'" in out
    assert "midge pub -t" in out


def test_no_command_shows_the_help_and_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "usage: midge COMMAND" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"midge {__version__}\n"


def test_unknown_command_names_the_allowed_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["subscribe"]) == 2
    error = capsys.readouterr().err
    assert "no command 'subscribe'" in error
    assert all(name in error for name in COMMANDS)


def _run_python(script: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", script]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def _fake_command(monkeypatch: pytest.MonkeyPatch, error: type[BaseException]) -> None:
    def run(argv: list[str]) -> int:
        raise error

    module = ModuleType("midge.cli.pub")
    monkeypatch.setattr(module, "run", run, raising=False)
    monkeypatch.setitem(sys.modules, "midge.cli.pub", module)


def test_interrupt_ends_with_130_and_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _fake_command(monkeypatch, KeyboardInterrupt)
    assert main(["pub"]) == 130
    assert capsys.readouterr().err == ""


def test_a_reader_that_went_away_ends_it_without_traceback() -> None:
    # The help goes into a pipe that nobody reads.
    script = "import os, sys; r, w = os.pipe(); os.close(r); os.dup2(w, 1)\n"
    script += "from midge.cli import main; sys.exit(main(['pub', '--help']))"
    done = _run_python(script)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_command_line_error_is_told_without_importing_paho() -> None:
    script = "import sys; from midge.cli import main; code = main(['pub', '--nonsense'])\n"
    script += "sys.exit(code if not any(name.startswith('paho') for name in sys.modules) else 99)"
    done = _run_python(script)
    assert done.returncode == 1
    assert "Unknown option '--nonsense'" in done.stderr
