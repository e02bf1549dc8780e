"""`midge boards` with a board behind a serial port and a broker that it connects to: MicroPython's unix port, mpremote,
the host's broker, all as they are. Stand-ins for the chip and the radio only."""

import contextlib
import json
import os
import re
import select
import subprocess
import sys
import time
import tty
from pathlib import Path

import pytest

import brokers
from board_on_a_cable import DEADLINE_S, BoardOnACable
from midge.boards import bundle, console, deploy
from midge.boards.simulate import BoardError
from midge.cli import main
from paho_peer import Paho

AIR = {"password": "quite a secret", "scan_ms": 1, "join_ms": 1, "dhcp_ms": 1}

# A program of the user's: says its version, obeys, and does as it is told to fail.
PROGRAM = """
import asyncio
from board import Board

VERSION = "{version}"

async def main():
    board = Board(lambda name, payload: 1 // 0 if payload == b"fail" else print("obeys", name, payload))
    await board.connect()
    await board.publish("version", VERSION, retain=True)
    print("version", VERSION, "is up")
    while True:
        await asyncio.sleep(1)
"""


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    """The unix port starts faster than a chip, on a machine that may be busy."""
    monkeypatch.setattr(console, "_ATTEMPT_S", 0.3)
    monkeypatch.setattr(console, "_ANSWER_S", 20)


@pytest.fixture
def impatience():
    """A context in which a board that is silent is given up at once."""

    @contextlib.contextmanager
    def impatience():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(console, "_ANSWER_S", 0.5)
            patch.setattr(console, "_RUN_S", 0.5)
            yield

    return impatience


@pytest.fixture
def board(tmp_path):
    with BoardOnACable(tmp_path, env={"MIDGE_AIR": json.dumps(AIR)}) as board:
        yield board


@pytest.fixture
def laptop(host_broker):
    paho = Paho(host_broker.port)
    paho.subscribe("kitchen/#", qos=1)
    yield paho
    paho.disconnect()


def midge(*argv: object) -> int:
    return main(["boards", *map(str, argv)])


def write_program(folder: Path, version: str) -> Path:
    path = folder / "app.py"
    path.write_text(PROGRAM.format(version=version))
    return path


def settings(board: BoardOnACable, port: int, **more: object) -> None:
    """As `midge boards set` leaves them; times that tests can wait for."""
    (board.flash / "midge.json").write_text(json.dumps({
        "name": "kitchen", "broker": {"host": "127.0.0.1", "port": port},
        "wifi": {"ssid": "home", "password": AIR["password"]}, **more,
    }))  # fmt: skip


def await_message(laptop: Paho, topic: str, payload: str | None = None) -> str:
    while True:
        message = laptop.receive(DEADLINE_S)
        text = message.payload.decode("utf-8", "replace")
        if message.topic == topic and payload in (None, text):
            return text


def slot_of(board: BoardOnACable) -> dict:
    return json.loads((board.flash / "midge_slot.json").read_text())


def test_from_an_empty_board_to_its_first_message(board, laptop, capsys, monkeypatch):
    assert midge("list", board.port, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["version"] is None and said["micropython"].startswith("1.") and said["flash_free"] > 100_000

    assert midge("deploy", board.port, "--as", "sensor", "--name", "kitchen") == 0
    assert re.search(r"midge_client.mpy +[\d,]+ bytes", capsys.readouterr().out)
    board.wait_for("no network yet: midge boards set PORT wifi.ssid")
    monkeypatch.setenv("HOME_WIFI", AIR["password"])
    assert midge("set", board.port, "wifi.ssid=home", "wifi.password=env:HOME_WIFI", "broker.host=127.0.0.1",
                 f"broker.port={laptop.port}") == 0  # fmt: skip
    out, err = capsys.readouterr()
    assert "wifi.password = (set)" in out and AIR["password"] not in out + err + board.text()
    assert await_message(laptop, "kitchen/status") == "online"
    assert int(await_message(laptop, "kitchen/memory")) > 0
    laptop.publish("kitchen/set/interval", b"7", qos=1)
    await_message(laptop, "kitchen/state/interval", "7")
    assert int((board.flash.parent / "fed").read_text()) > 0, "the watchdog"

    assert midge("list", board.port) == 0
    out = capsys.readouterr().out
    assert "runs kitchen (sensor), version " in out
    version = re.search(r"version (\w{16})", out).group(1)
    assert json.loads((board.flash / "midge_b" / "manifest.json").read_text())["id"] == version


def test_only_what_changed_goes_over_the_cable(board, laptop, tmp_path, capsys):
    assert midge("deploy", board.port, "--as", "sensor", "--program", write_program(tmp_path, "one")) == 0
    settings(board, laptop.port)
    assert midge("reset", board.port) == 0
    await_message(laptop, "kitchen/version", "one")
    capsys.readouterr()
    assert midge("deploy", board.port, "--as", "sensor", "--program", write_program(tmp_path, "one")) == 0
    assert capsys.readouterr().out.startswith("nothing to do")
    assert midge("deploy", board.port, "--as", "sensor", "--program", write_program(tmp_path, "two")) == 0
    sent = re.findall(r"^    (\S+) +[\d,]+ bytes$", capsys.readouterr().out, re.MULTILINE)
    assert sent == ["app.mpy"]
    await_message(laptop, "kitchen/version", "two")
    assert slot_of(board) == {"slot": "a"}


def test_a_copy_that_fails_anywhere_leaves_the_old_version_running(board, laptop, tmp_path, impatience):
    assert midge("deploy", board.port, "--as", "sensor", "--program", write_program(tmp_path, "old")) == 0
    settings(board, laptop.port)
    before = slot_of(board)
    files = {path.name: path.read_bytes() for path in (board.flash / "midge_b").iterdir()}
    new = write_program(tmp_path, "new")
    new.write_text(new.read_text() + "BALLAST = " + repr("ballast" * 1000) + "\n")
    for cut in (2000, 12_000):
        board.cut_after = board.carried + cut
        with impatience():
            assert midge("deploy", board.port, "--as", "sensor", "--program", new) == 1
        board.cut_after = None
        assert slot_of(board) == before
        assert {path.name: path.read_bytes() for path in (board.flash / "midge_b").iterdir()} == files
        board.cut_power()
        await_message(laptop, "kitchen/version", "old")
    assert midge("deploy", board.port, "--as", "sensor", "--program", new) == 0
    await_message(laptop, "kitchen/version", "new")


def test_what_arrives_wrong_is_not_switched_to(board, tmp_path):
    files = bundle.make("sensor", program=write_program(tmp_path, "one"))
    with console.Console(board.port) as line:
        plain = line.write
        line.write = lambda path, data, *more: plain(path, data[:-1] + b"?" if "client" in path else data, *more)
        with pytest.raises(BoardError, match=r"isn't what was sent: midge_b/midge_client.mpy. The old version stays"):
            deploy.deploy(line, deploy.survey(line), files)
    assert not (board.flash / "midge_slot.json").exists() and not (board.flash / "main.py").exists()


def test_a_program_of_the_users_own_is_moved_aside(board, capsys):
    (board.flash / "main.py").write_text("print('mine')\n")
    assert midge("deploy", board.port, "--as", "serial", "--no-reset") == 0
    assert "the board's own main.py is main_1.py now" in capsys.readouterr().out
    assert (board.flash / "main_1.py").read_text() == "print('mine')\n"


def test_an_exception_is_kept_told_and_survived(board, laptop, tmp_path, capsys):
    assert midge("deploy", board.port, "--as", "sensor", "--program", write_program(tmp_path, "one")) == 0
    settings(board, laptop.port)
    board.cut_power()
    await_message(laptop, "kitchen/version", "one")
    board.flash.joinpath("midge_b", "app.mpy").write_bytes(
        bundle.compile_file(_failing_at_first(tmp_path), None, "app.py"))  # fmt: skip
    at = len(board.text())
    board.cut_power()
    starts = board.starts
    board.wait_for("the first time", at)
    assert "ZeroDivisionError" in await_message(laptop, "kitchen/traceback")
    await_message(laptop, "kitchen/version", "again")
    assert board.starts == starts, "restarted by the supervisor, without a reset"
    assert not (board.flash / "midge_traceback.txt").exists()
    (board.flash / "midge_traceback.txt").write_text("Traceback of old\n")
    capsys.readouterr()
    assert midge("log", board.port, "--traceback") == 0
    assert "Traceback of old" in capsys.readouterr().out


def _failing_at_first(folder: Path) -> Path:
    path = folder / "failing.py"
    path.write_text(PROGRAM.format(version="again") + """
_main = main
async def main():
    import sys
    if not hasattr(sys, "ps1x") and not _seen:
        _seen.append(1)
        print("the first time")
        1 // 0
    await _main()
_seen = []
""")
    return path


def test_log_prints_what_the_board_prints_and_leaves_it_alone(board, tmp_path, capsys):
    (board.flash / "main.py").write_text("import time\nwhile True:\n    print('tick')\n    time.sleep(0.05)\n")
    board.cut_power()
    assert midge("log", board.port, "--seconds", "0.5") == 0
    assert capsys.readouterr().out.count("tick\n") > 2
    starts = board.starts
    assert midge("reset", board.port) == 0
    board.wait(lambda: board.starts > starts)


def test_a_hub_serves_its_own_network(board, tmp_path, capsys, until_the_end):
    assert midge("deploy", board.port, "--as", "hub", "--name", "kitchen") == 0
    (board.flash / "midge.json").write_text(json.dumps({
        "name": "kitchen", "role": "hub", "ap": {"password": "of the hub's own"}, "watchdog_s": 0, "led_pin": 2,
        "broker": {"port": 0, "bind": "127.0.0.1", "user": "guest", "password": "welcome"},
    }))  # fmt: skip
    at = len(board.text())
    board.cut_power()
    port = int(board.wait_for(r"listening on mqtt://127.0.0.1:(\d+)", at).group(1))
    guest = Paho(port, username="guest", password="welcome")
    until_the_end.callback(guest.disconnect)
    guest.subscribe("kitchen/#", qos=1)
    await_message(guest, "kitchen/status", "online")
    guest.publish("kitchen/set/led", b"on", qos=1)
    await_message(guest, "kitchen/state/led", "on")
    board.wait_for("pin 2 1", at)
    assert midge("list", board.port) == 0
    assert "runs kitchen (hub)" in capsys.readouterr().out


def test_ports_that_are_none_are_told_in_plain_words(board, capsys, impatience):
    assert midge("list", "/dev/ttyUSB99") == 1
    assert "there is no such port" in capsys.readouterr().err
    ours, theirs = os.openpty()
    try:
        with impatience():
            assert midge("deploy", os.ttyname(theirs), "--as", "sensor") == 1
    finally:
        os.close(ours)
        os.close(theirs)
    assert "no MicroPython answers there" in capsys.readouterr().err
    assert midge("deploy", board.port, "--as", "toaster") == 1
    assert "no role 'toaster'; there are: sensor, hub, serial" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        midge("deploy", board.port)
    assert ended.value.code == 2 and "--as" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "darwin", reason="os.openpty's names differ")
def test_an_rp2_with_micropython_enters_its_boot_loader(board):
    starts = board.starts
    assert midge("reset", board.port, "--bootloader") == 0
    board.wait(lambda: board.starts > starts)
    assert (board.flash.parent / "RPI-RP2" / "INFO_UF2.TXT").exists()


def test_a_board_without_a_radio_is_deployed_and_updated_over_its_cable(board, tmp_path, until_the_end, capsys):
    assert midge("deploy", board.port, "--as", "serial", "--name", "pico") == 0
    settings(board, 0, name="pico", role="serial", watchdog_s=0, interval_s=1)
    board.cut_power()
    config = tmp_path / "midge.toml"
    config.write_text(f'[[listener]]\nport = 0\n\n[[listener]]\ntype = "serial"\ndevice = "{board.port}"\n\n'
                      '[store]\npath = ":memory:"\n')  # fmt: skip
    host = until_the_end.enter_context(brokers.start_host("--config", config))
    laptop = Paho(host.port)
    until_the_end.callback(laptop.disconnect)
    laptop.subscribe("pico/#", qos=1)
    await_message(laptop, "pico/status", "online")
    await_message(laptop, "pico/uptime")
    words = tmp_path / "words.txt"
    words.write_text("spoken " * 500)
    assert midge("update", "pico", words, "--broker", f"127.0.0.1:{host.port}") == 0
    assert (board.flash / "midge_a" / "words.txt").read_text() == words.read_text()
    await_message(laptop, "pico/uptime", "0")


def test_repl_is_the_board_s_python_until_its_escape(board):
    ours, theirs = os.openpty()
    tty.setraw(theirs)  # what is written before mpremote does so must arrive as it is
    command = [sys.executable, "-m", "midge", "boards", "repl", board.port]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        try:
            _read_until(ours, b"Ctrl-]")
            os.write(ours, b"print(6 * 7, 'from the board')\r")
            _read_until(ours, b"\n42 from the board")
            os.write(ours, b"\x1d")
            assert process.wait(DEADLINE_S) == 0
        finally:
            process.kill()
    os.close(ours)
    os.close(theirs)


def _read_until(terminal: int, wanted: bytes) -> None:
    said = b""
    until = time.monotonic() + DEADLINE_S
    while wanted not in said.replace(b"\r", b""):
        ready, _, _ = select.select([terminal], [], [], max(0, until - time.monotonic()))
        assert ready, said
        said += os.read(terminal, 4096)
