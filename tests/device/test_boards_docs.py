"""docs/flashing.md and docs/updates.md: their commands do as they say, with the unix port as the board."""

import json
import re
import shlex

import pytest

import brokers
from board_on_a_cable import BoardOnACable
from midge.boards import console
from midge.cli import main

PROGRAM = """
from board import Board
import asyncio

async def main():
    board = Board()
    await board.connect()
    while True:
        await asyncio.sleep(1)
"""


def commands(page: str) -> list[str]:
    """Each line of the blocks that can be run without hardware (```sh)."""
    text = (brokers.ROOT / "docs" / page).read_text(encoding="utf-8")
    lines = "\n".join(re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)).splitlines()
    return [line for line in lines if line.startswith(".venv/bin/midge boards ")]


def test_the_commands_of_the_pages_run_as_printed(tmp_path, host_broker, capsys, monkeypatch):
    monkeypatch.setattr(console, "_ATTEMPT_S", 0.3)
    monkeypatch.setattr(console, "_ANSWER_S", 20)
    monkeypatch.setenv("WIFI_PASSWORD", "quite a secret")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "app.py").write_text(PROGRAM)
    (tmp_path / "update.key").write_text("a key of 16 or more\n")
    air = {"password": "quite a secret", "scan_ms": 1, "join_ms": 1, "dhcp_ms": 1}
    with BoardOnACable(tmp_path, env={"MIDGE_AIR": json.dumps(air)}) as board:
        run = []
        for page in ("flashing.md", "updates.md"):
            for command in commands(page):
                words = shlex.split(command.partition("#")[0])[1:]
                # What stands for the user's own: the port, the broker's address.
                ours = {"/dev/ttyUSB0": board.port, "broker.host=192.168.1.10": "broker.host=127.0.0.1"}
                words = [ours.get(word, word) for word in words]
                if words[1] == "update":
                    words += ["--broker", f"mqtt://127.0.0.1:{host_broker.port}"]
                if words == ["boards", "list"]:
                    continue  # what is on this computer's USB is nobody's business
                assert main(words) == 0, (command, capsys.readouterr(), board.text()[-1500:])
                run.append(words[1])
                if words[1] == "set" and "--keys" not in words and page == "flashing.md":
                    assert main(["boards", "set", board.port, f"broker.port={host_broker.port}"]) == 0
        assert {"info", "deploy", "set", "log", "list", "reset", "update"} == set(run)
    out = capsys.readouterr().out
    assert "quite a secret" not in out and "a key of 16" not in out
    assert out.count("kitchen runs version") == 2


@pytest.mark.parametrize("page", ["flashing.md", "updates.md", "freezing.md"])
def test_links_lead_somewhere(page):
    text = (brokers.ROOT / "docs" / page).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]
    assert links and not [link for link in links if not (brokers.ROOT / "docs" / link).exists()]
