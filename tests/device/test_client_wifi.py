"""device/wifi.py with a stand-in for the radio, on the unix port and on CPython."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # `import client_board`, with --import-mode=importlib

from client_board import Board

SLOW, FAST_RP2, FAST_ESP32 = [[], False], [["bssid", "channel"], True], [["bssid"], True]


@pytest.mark.parametrize("interpreter", ["micropython", "cpython"])
def test_what_is_known_of_the_network_is_used_and_given_up_when_it_does_not_hold(interpreter, tmp_path):
    board = Board(interpreter, "client_wifi.py", tmp_path / "wifi.json")
    try:
        board.says("first", False, [SLOW], True)
        board.says("again", True, [FAST_RP2], True)
        board.says("power", True)
        board.says("esp32", True, [FAST_ESP32], True)
        board.says("replaced", False, [FAST_ESP32, SLOW], True)
        board.says("replaced, again", True, [FAST_RP2], True)
        board.says("fixed", True, [FAST_RP2], True)
        board.says("no cache", False, [SLOW], True)
        board.says("cut cache", False, [SLOW], True)
        board.says("async", True)
        board.says("gone", False)
        board.says("nobody", "OSError", 110)
        board.has_ended()
    finally:
        board.stop()
