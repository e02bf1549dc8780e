"""`midge doctor` looks at real set-ups: brokers, other programs on their port, stores, a board at a serial port."""

import json
import os
import pty
import select
import socket
import subprocess
import sys
import threading
import tty
from collections.abc import Iterator
from pathlib import Path

import pytest

import brokers
from midge import diagnosis
from midge.boards import usb
from midge.cli import doctor
from midge.config import Config, parse
from midge.diagnosis import NOTE, OK, PROBLEM, WARNING, Finding

DEADLINE_S = 50


def run_doctor(*argv: str) -> tuple[int, dict[str, list[dict[str, str]]]]:
    """Exit code, and the findings by what they are about; those about boards on this computer's USB are left out."""
    command = [sys.executable, "-m", "midge", "doctor", "--json", "-w", "0.1", *argv]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert done.stderr == ""
    findings: dict[str, list[dict[str, str]]] = {}
    for line in done.stdout.splitlines():
        finding = json.loads(line)
        findings.setdefault(finding["about"], []).append(finding)
    assert done.returncode == any(one["status"] == PROBLEM for each in findings.values() for one in each)
    del findings["boards"]
    return int(any(one["status"] == PROBLEM for each in findings.values() for one in each)), findings


def configuration(directory: Path, port: int, more: str = "") -> str:
    path = directory / "midge.toml"
    path.write_text(f"[[listener]]\nport = {port}\n{more}")
    return str(path)


def test_a_good_set_up_has_no_problem(tmp_path: Path) -> None:
    port = brokers.free_port()
    path = configuration(tmp_path, port)
    code, findings = run_doctor("--config", path)
    assert code == 0
    assert findings["port"][0]["status"] == NOTE
    assert "midge broker" in findings["port"][0]["advice"]
    with brokers.start_host("--config", path, "--port", str(port), "--data", str(tmp_path)):
        code, findings = run_doctor("--config", path)
    assert code == 0
    assert [one["status"] for about in ("config", "store", "port") for one in findings[about]] == [OK] * 3
    assert "readable and sound" in findings["store"][0]["text"]
    assert findings["network"][0]["status"] == NOTE  # this machine only
    assert set(findings) >= {"midge", "clock", "disk", "mdns"}


@brokers.needs_mosquitto
def test_another_broker_counts_too() -> None:
    with brokers.start_mosquitto() as running:
        assert diagnosis.knock("127.0.0.1", running.port) == "broker"


def test_what_is_wrong_is_told_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "midge.db").write_bytes(b"no database")
    with socket.create_server(("127.0.0.1", 0)) as other:
        threading.Thread(target=_answer_once, args=(other,), daemon=True).start()
        dead = brokers.free_port()
        bridge = f'[[bridge]]\nname = "hub"\naddress = "mqtt://127.0.0.1:{dead}"\ntopics = [{{ filter = "#" }}]\n'
        code, findings = run_doctor("--config", configuration(tmp_path, other.getsockname()[1], bridge))
    assert code == 1
    wrong = {about: one for about, [one, *_] in findings.items() if one["status"] == PROBLEM}
    assert {"config", "store", "port", "bridge"} <= set(wrong)
    assert "not a store of midge" in wrong["store"]["text"]
    assert "another program has it" in wrong["port"]["text"]
    assert f"process {os.getpid()}" in wrong["port"]["text"]
    assert f"hub: mqtt://127.0.0.1:{dead} doesn't answer" in wrong["bridge"]["text"]
    assert all(one["advice"] for one in wrong.values())


def _answer_once(listener: socket.socket) -> None:
    connection, _ = listener.accept()
    with connection:
        connection.recv(100)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


def test_an_error_in_the_file_is_a_finding(tmp_path: Path) -> None:
    code, findings = run_doctor("--config", configuration(tmp_path, 1, "nonsense = 1\n"))
    assert code == 1
    assert any("nonsense" in one["text"] for one in findings["config"])


def test_a_damaged_store_is_found(tmp_path: Path) -> None:
    with brokers.start_host("--data", str(tmp_path)) as running:
        for number in range(50):
            command = ["mosquitto_pub", "-p", str(running.port), "-r", "-t", f"a/{number}", "-m", "x" * 4000]
            if number == 0 or brokers.MOSQUITTO is None:
                command = [sys.executable, "-m", "midge", "pub", *command[1:]]
            subprocess.run(command, check=True, timeout=DEADLINE_S)
            if brokers.MOSQUITTO is None:
                break
    path = tmp_path / "midge.db"
    data = bytearray(path.read_bytes())
    for at in range(4096, len(data), 4096):
        data[at : at + 100] = bytes(100)
    path.write_bytes(data)
    [found, _] = diagnosis.store(Config(), tmp_path)
    assert found.status == PROBLEM
    assert "move it away" in found.advice


def test_what_others_can_reach_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    # The broker of the test is for this machine only, as all are here; what is looked at is the same.
    with brokers.start_host() as running:
        monkeypatch.setattr(diagnosis, "own_addresses", lambda: ["127.0.0.1"])
        config = parse({"listener": [{"bind": "0.0.0.0", "port": running.port}]}, "a test", Path())
        findings = list(diagnosis.listeners(config))
        # It may listen elsewhere than the file says: --bind.
        config_of_file = parse({"listener": [{"bind": "127.0.0.1", "port": running.port}]}, "a test", Path())
        for address, status in (("127.0.0.2", NOTE), ("127.0.0.1", OK)):
            monkeypatch.setattr(diagnosis, "own_addresses", lambda address=address: [address])
            [one, *_] = [one for one in diagnosis.listeners(config_of_file) if one.about == "network"]
            assert one.status == status
    told = [one for one in findings if one.about == "network"]
    assert told[0] == Finding("network", OK, f"boards can use mqtt://127.0.0.1:{running.port}")
    monkeypatch.setattr(diagnosis, "own_addresses", list)
    assert [one.status for one in diagnosis.listeners(config) if one.about == "network"] == [WARNING]


def test_a_full_disk_is_a_problem(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for free, status in ((5_000_000, PROBLEM), (500_000_000, WARNING), (5_000_000_000, OK)):
        usage = type("Usage", (), {"free": free, "total": 10_000_000_000})
        monkeypatch.setattr(diagnosis.shutil, "disk_usage", lambda _path, usage=usage: usage)
        assert list(diagnosis.store(Config(), tmp_path))[-1].status == status


def test_a_port_that_is_not_ours_names_its_group(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    device = tmp_path / "ttyACM0"
    device.touch()
    assert usb.why_not_ours(str(device)) == ("", "")
    monkeypatch.setattr(usb.os, "access", lambda *_: False)
    text, advice = usb.why_not_ours(str(device))
    assert "belongs to group" in text
    assert "usermod -aG" in advice or "log out and in again" in advice
    assert usb.why_not_ours(str(tmp_path / "gone"))[0].endswith("is gone")


# -- a board: the unix port behind a pseudo-terminal --


@pytest.fixture
def board() -> Iterator[str]:
    """The serial port of one."""
    outer, device = pty.openpty()
    inner, terminal = pty.openpty()
    for fd in (device, terminal):
        tty.setraw(fd)
    process = subprocess.Popen([brokers.micropython()], stdin=terminal, stdout=terminal, stderr=terminal)
    os.close(terminal)
    thread = threading.Thread(target=_pump, args=(outer, inner), daemon=True)
    thread.start()
    yield os.ttyname(device)
    process.kill()
    process.wait()
    thread.join(DEADLINE_S)
    for fd in (outer, device, inner):
        os.close(fd)


def _pump(outer: int, inner: int) -> None:
    """Passes bytes on until the board is gone."""
    while True:
        for fd in select.select([outer, inner], [], [])[0]:
            try:
                data = os.read(fd, 1000)
                os.write(inner if fd == outer else outer, data)
            except OSError:
                return


def test_a_boards_firmware_is_asked_for(board: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told = usb.firmware_of(board)
    assert told.startswith("micropython 1.")
    assert told.endswith(("linux", "darwin"))
    monkeypatch.setattr(usb, "firmware_of", lambda _device: "micropython 1.19.1 rp2")
    assert doctor._firmware("x").status == PROBLEM
    monkeypatch.setattr(usb, "firmware_of", lambda _device: "micropython 1.22.0 rp2")
    assert doctor._firmware("x") == Finding("boards", OK, "x: micropython 1.22.0 rp2")


def test_a_port_that_says_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    outer, device = pty.openpty()
    monkeypatch.setattr(usb, "_ANSWER_S", 0.3)
    found = doctor._firmware(os.ttyname(device))
    assert found.status == PROBLEM
    assert "no REPL answers" in found.text
    os.close(outer)
    os.close(device)


def test_the_plain_output_has_marks_and_advice() -> None:
    command = [sys.executable, "-m", "midge", "doctor", "-w", "0.1"]
    env = {**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False, env=env)
    assert done.returncode in (0, 1)
    assert done.stdout.isascii()
    assert "ok midge" in done.stdout
