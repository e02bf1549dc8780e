"""`midge completion`: what the Tab key offers, asked as the shells ask (argcomplete's protocol), and bash itself."""

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from midge.cli import COMMANDS, main
from midge.cli.completion import _whole_parser

DEADLINE_S = 60
BIN = Path(sys.executable).parent


def offered(line: str, shell: str, tmp_path: Path) -> list[str]:
    """What is offered behind *line*."""
    told = tmp_path / "told"
    env = {
        **os.environ,
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_SHELL": shell,
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(told),
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
        "COMP_TYPE": "9",
    }
    subprocess.run([sys.executable, "-m", "midge"], env=env, timeout=DEADLINE_S, check=True)
    # Beside the word fish shows what it means, after a tab, and zsh after a colon.
    words = told.read_text().split("\n")
    return sorted(word.replace("\\:", "\0").split("\t")[0].split(":")[0].strip() for word in words)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_commands_options_and_values_are_offered(shell: str, tmp_path: Path) -> None:
    assert set(COMMANDS) <= set(offered("midge ", shell, tmp_path))
    assert offered("midge pub --will-", shell, tmp_path) == [
        "--will-payload",
        "--will-qos",
        "--will-retain",
        "--will-topic",
    ]
    assert offered("midge sub -q ", shell, tmp_path) == ["0", "1", "2"]
    assert offered("midge passwd --", shell, tmp_path) != [""]


@pytest.mark.parametrize("name", COMMANDS)
def test_each_commands_options_are_known(name: str) -> None:
    [commands] = [one for one in _whole_parser(name)._actions if isinstance(one, argparse._SubParsersAction)]
    assert set(commands.choices) == set(COMMANDS)
    assert "--help" in [option for action in commands.choices[name]._actions for option in action.option_strings]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_names_midge(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    assert "midge" in capsys.readouterr().out


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_completes_with_it(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    script = """
        eval "$(midge completion bash)"
        COMP_LINE="midge pub -f no"; COMP_POINT=${#COMP_LINE}; COMP_TYPE=9
        _python_argcomplete midge
        echo "${COMPREPLY[@]}"
    """
    env = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=DEADLINE_S, check=True
    )
    assert done.stdout.strip() == "notes.txt"
