"""device/midge_client.py against Debian's Mosquitto, on the unix port and on CPython."""

import queue
import subprocess
import sys
import threading
from pathlib import Path

import paho.mqtt.client as paho
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # `import client_board`, with --import-mode=importlib

from client_board import Board

import brokers

pytestmark = brokers.needs_mosquitto


@pytest.fixture(params=["micropython", "cpython"])
def interpreter(request):
    return request.param


@pytest.fixture
def mosquitto():
    with brokers.start_mosquitto("set_tcp_nodelay true") as broker:
        yield broker


@pytest.fixture
def board(interpreter, mosquitto):
    board = Board(interpreter, "client_scenarios.py", "real_broker", mosquitto.port)
    yield board
    board.stop()


def pub(broker, topic, message, *options):
    command = ["mosquitto_pub", "-p", str(broker.port), "-t", topic, "-m", message, *options]
    subprocess.run(command, check=True, timeout=10)


def round_trips_are_done(board):
    board.says("connected", False)
    board.says("subscribed")
    for qos in (0, 1, 2):
        for i in range(20):
            board.says("received", f"in/{qos}", str(i))


class Watcher:
    """A paho client that is subscribed to `will`."""

    def __init__(self, port):
        self.messages = queue.Queue()
        subscribed = threading.Event()
        self.client = paho.Client(paho.CallbackAPIVersion.VERSION2)
        self.client.on_message = lambda _client, _data, message: self.messages.put(message.payload)
        self.client.on_subscribe = lambda *_: subscribed.set()
        self.client.connect("127.0.0.1", port)
        self.client.subscribe("will", 1)
        self.client.loop_start()
        assert subscribed.wait(10)

    def message(self):
        return self.messages.get(timeout=10)

    def stop(self):
        self.client.disconnect()
        self.client.loop_stop()


@pytest.fixture
def wills(mosquitto):
    watcher = Watcher(mosquitto.port)
    yield watcher
    watcher.stop()


def test_every_qos_goes_round_and_a_clean_disconnect_leaves_no_will(board, mosquitto, wills):
    round_trips_are_done(board)
    pub(mosquitto, "in/2", "stop", "-q", "2")
    board.says("received", "in/2", "stop", False)
    board.says("disconnected")
    board.has_ended()
    pub(mosquitto, "will", "none came before this")
    assert wills.message() == b"none came before this"


def test_board_that_dies_leaves_its_will(board, wills):
    round_trips_are_done(board)
    board.stop()
    assert wills.message() == b"gone"


def test_session_outlives_a_takeover(board, mosquitto):
    round_trips_are_done(board)
    # Another client of the same name puts ours out and keeps the session; ours comes back and takes it over in turn.
    subprocess.run(["mosquitto_sub", "-p", str(mosquitto.port), "-i", "real", "-c", "-t", "in/1", "-q", "1", "-E"],
                   check=True, timeout=10)
    pub(mosquitto, "in/1", "after", "-q", "1")
    board.says("received", "in/1", "after", True)
    pub(mosquitto, "in/1", "stop", "-q", "1")
    board.says("received", "in/1", "stop", True)
    board.says("disconnected")
    board.has_ended()


def test_client_comes_back_to_a_broker_that_was_killed_and_renews_its_subscriptions(interpreter):
    first = brokers.start_mosquitto("set_tcp_nodelay true")
    board = Board(interpreter, "client_scenarios.py", "real_broker", first.port)
    try:
        round_trips_are_done(board)
        first.kill()
        with brokers.start_mosquitto(port=first.port) as again:
            for _ in range(100):  # until the client is back and subscribed
                pub(again, "in/1", "stop", "-q", "1")
                if board.process.poll() is not None or not board.lines.empty():
                    break
            board.says("received", "in/1", "stop", False)
            board.says("disconnected")
            board.has_ended()
    finally:
        board.stop()
        first.kill()
