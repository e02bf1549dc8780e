"""A board that has lost its session's state, where the server has not: against the host's broker, which goes by the
letter of MQTT 3.1.1 §4.3.3 (Mosquitto takes a PUBLISH without DUP for a new one)."""

import queue
import socket
import sys
import threading
from pathlib import Path

import paho.mqtt.client as paho
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # `import client_board`, with --import-mode=importlib

from client_board import Board

from brokers import start_host


@pytest.mark.parametrize("interpreter", ["micropython", "cpython"])
def test_its_next_message_is_delivered_after_a_hand_over_at_qos_2_that_its_power_cut(interpreter, tmp_path):
    with start_host("--data", str(tmp_path)) as broker:
        came: queue.Queue[bytes] = queue.Queue()
        subscribed = threading.Event()
        watcher = paho.Client(paho.CallbackAPIVersion.VERSION2)
        watcher.on_message = lambda _client, _data, message: came.put(message.payload)
        watcher.on_subscribe = lambda *_: subscribed.set()
        watcher.connect("127.0.0.1", broker.port)
        watcher.subscribe("t", 1)
        watcher.loop_start()
        assert subscribed.wait(10)
        with socket.create_connection(("127.0.0.1", broker.port), 10) as before:  # the board, until its power fails
            before.sendall(b"\x10\x11\0\4MQTT\4\0\0\x3c\0\5board" + b"\x34\x0a\0\1t\0\1first")
            received = b""
            while not received.endswith(b"\x50\2\0\1"):  # PUBREC: identifier 1 is taken until PUBREL comes
                received += before.recv(100)
        assert came.get(timeout=10) == b"first"
        board = Board(interpreter, "client_without_memory.py", broker.port)
        try:
            assert came.get(timeout=10) == b"second"
            board.has_ended()
        finally:
            board.stop()
            watcher.disconnect()
            watcher.loop_stop()
