"""What README.md tells a newcomer to do works as it stands there."""

import asyncio
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import brokers
from midge.boards.simulate import Board
from midge.cli import pub, sub
from midge.cli.options import parse

README = (brokers.ROOT / "README.md").read_text(encoding="utf-8")
MAKEFILE = (brokers.ROOT / "Makefile").read_text(encoding="utf-8")
DEADLINE_S = 30


def code_blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def shell_lines() -> list[list[str]]:
    return [shlex.split(line, comments=True) for block in code_blocks("sh") for line in block.splitlines()]


def test_the_first_program_runs_on_a_board_and_answers(tmp_path: Path, host_broker: brokers.RunningBroker) -> None:
    (text,) = code_blocks("python")
    program = tmp_path / "main.py"
    here = text.replace('"192.168.1.10"', '"127.0.0.1"').replace("will=", f"port={host_broker.port}, will=")
    assert here != text
    program.write_text(here)
    midge = [sys.executable, "-m", "midge"]
    port = ["-p", str(host_broker.port)]

    async def use() -> str:
        board = Board("main", program)
        await board.start()
        try:
            online = [*midge, "sub", *port, "-t", "kitchen/status", "-C", "1", "-W", str(DEADLINE_S)]
            await asyncio.to_thread(subprocess.run, online, check=True, capture_output=True)
            answer = [*midge, "sub", *port, "-t", "kitchen/said", "-C", "1", "-W", str(DEADLINE_S), "-d"]
            listener = await asyncio.create_subprocess_exec(*answer, stdout=subprocess.PIPE)
            assert listener.stdout is not None
            while b"Subscribed" not in await listener.stdout.readline():
                pass
            greet = [*midge, "pub", *port, "-t", "kitchen/set/greeting", "-m", "hello", "-q", "1"]
            await asyncio.to_thread(subprocess.run, greet, check=True)
            out, _ = await listener.communicate()
            assert listener.returncode == 0, board.last_lines
            return out.decode()
        finally:
            await board.stop()

    assert "hello\n" in asyncio.run(asyncio.wait_for(use(), 2 * DEADLINE_S))


def test_every_midge_command_line_is_accepted() -> None:
    lines = [line for line in shell_lines() if line[0].endswith("/midge")]
    assert {line[1] for line in lines} == {"broker", "sub", "pub"}
    for _, command, *argv in lines:
        if command in ("pub", "sub"):
            parse(argv, {"pub": pub, "sub": sub}[command].OPTIONS, ())
        else:
            done = subprocess.run([sys.executable, "-m", "midge", command, "--help"], capture_output=True, check=True)
            assert all(word.encode() in done.stdout for word in argv if word.startswith("--"))


def test_every_make_target_named_exists_and_mpremote_is_given_files_that_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", MAKEFILE, re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z]+)\b(?= |`|\n)", README)) & {"run", "test", "help", "mpy"} <= targets
    copied = [line[2] for line in shell_lines() if line[0].endswith("/mpremote") and line[1] == "cp"]
    assert copied == ["build/mpy/midge_client.mpy", "main.py"]  # `make mpy` makes the first
    package = json.loads((brokers.ROOT / "device" / "package.json").read_text())
    for _, source in package["urls"]:
        assert (brokers.ROOT / "device" / source).is_file()


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#:]+)\)", README))))
def test_every_link_leads_to_a_file(link: str) -> None:
    assert (brokers.ROOT / link).exists()
