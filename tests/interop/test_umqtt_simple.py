"""The real `umqtt.simple` from PyPI, unchanged, on MicroPython's unix port against every broker; and the same programs
with device/midge_umqtt.py in its place.

The archive has no setup file, so pip can't install it; it is downloaded once and kept under `.cache/`.
"""

import os
import subprocess
from pathlib import Path

import pytest

from brokers import ROOT, micropython
from midge.boards.simulate import BoardError
from midge.sim.umqtt import fetch

CACHE = ROOT / ".cache" / "umqtt.simple-1.3.4"
TIMEOUT_S = 15


@pytest.fixture(scope="session", params=["umqtt.simple", "midge_umqtt"])
def umqtt(request, tmp_path_factory) -> str:
    """Where to import `umqtt.simple` from."""
    if request.param == "midge_umqtt":
        folder = tmp_path_factory.mktemp("umqtt")
        (folder / "umqtt").mkdir()
        (folder / "umqtt" / "simple.py").write_text("from midge_umqtt import MQTTClient, MQTTException\n")
        return f"{folder}:{ROOT / 'device'}"
    return str(download())


def download() -> Path:
    try:
        return fetch(CACHE)
    except BoardError as error:
        pytest.skip(f"umqtt.simple is not here: {error}")


@pytest.fixture
def board_program(broker, umqtt):
    """Runs a program on the unix port with `connect(...)` and `got` at hand; returns what it printed."""
    prelude = (
        "from umqtt.simple import MQTTClient, MQTTException\n"
        "got = []\n"
        "def connect(name, clean=True, **options):\n"
        f"    client = MQTTClient(name, '127.0.0.1', {broker.port}, **options)\n"
        "    client.set_callback(lambda topic, payload: got.append((topic, payload)))\n"
        "    client.session_present = client.connect(clean)\n"
        "    return client\n"
        "def wait(client, count):\n"
        "    while len(got) < count: client.wait_msg()\n"
    )

    def run(program: str) -> list[str]:
        done = subprocess.run([micropython(), "-X", "heapsize=256k", "-c", prelude + program],
                              env={**os.environ, "MICROPYPATH": f"{umqtt}:.frozen"}, capture_output=True,
                              text=True, timeout=TIMEOUT_S)
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout.splitlines()

    return run


def test_its_own_messages_come_back_at_qos_0_and_1(board_program):
    assert board_program("""
c = connect("board")
c.subscribe(b"a/#", 1)
c.publish(b"a/0", b"zero")
c.publish(b"a/1", b"one", qos=1)
wait(c, 2)
print(got)
c.disconnect()
""") == ["[(b'a/0', b'zero'), (b'a/1', b'one')]"]


@pytest.mark.parametrize("qos", [0, 1])
def test_a_laptop_hears_the_board(broker, board_program, paho, qos):
    laptop = paho(broker)
    laptop.subscribe("board/#", qos=1)
    board_program(f"""
c = connect("board", user="u", password="p", keepalive=30)
for n in range(20): c.publish(b"board/n", str(n).encode(), qos={qos})
c.publish(b"board/big", b"x" * 1000, qos={qos})
c.disconnect()
""")
    received = [laptop.receive() for _ in range(21)]
    assert [message.payload for message in received[:20]] == [b"%d" % number for number in range(20)]
    assert (received[20].payload, received[20].qos) == (b"x" * 1000, qos)


@pytest.mark.parametrize("qos", [0, 1])
def test_the_board_hears_a_retained_message(broker, board_program, paho, qos):
    paho(broker).publish("set/led", "on" * 100, qos, retain=True)
    assert board_program(f"""
c = connect("board")
c.subscribe(b"set/+", {qos})
wait(c, 1)
print(got == [(b"set/led", b"on" * 100)])
""") == ["True"]


def test_check_msg_returns_at_once_when_there_is_nothing(board_program):
    assert board_program("""
c = connect("board")
print(c.check_msg())
c.ping()
print(c.wait_msg())
""") == ["None", "None"]


def test_a_persistent_session_has_what_was_sent_meanwhile(broker, board_program, paho):
    assert board_program("""
c = connect("sleeper", clean=False)
c.subscribe(b"set/#", 1)
c.disconnect()
print(c.session_present)
""") == ["0"]
    laptop = paho(broker)
    for number in range(5):
        laptop.publish("set/x", str(number), 1)
    assert board_program("""
c = connect("sleeper", clean=False)
wait(c, 5)
print(c.session_present, b"".join(payload for _, payload in got))
c.disconnect()
""") == ["1 b'01234'"]


def test_its_will_is_sent_when_the_program_ends_without_disconnect(broker, board_program, paho):
    laptop = paho(broker)
    laptop.subscribe("status", qos=1)
    board_program(f"""
c = MQTTClient("dying", "127.0.0.1", {broker.port})
c.set_last_will(b"status", b"gone", qos=1)
c.connect()
""")
    assert laptop.receive().payload == b"gone"
