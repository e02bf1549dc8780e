"""What the tests of the board's client share: both interpreters, a scripted server, boards that end with the test."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # `import client_board`, with --import-mode=importlib

from client_board import Board, Server


@pytest.fixture(params=["micropython", "cpython"])
def interpreter(request):
    return request.param


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


@pytest.fixture
def start_board(interpreter):
    """`start_board(script, *arguments, heap="256k")`: a program of on_board/ on this interpreter."""
    boards = []

    def start(script, *arguments, **options):
        boards.append(Board(interpreter, script, *arguments, **options))
        return boards[-1]

    yield start
    for board in boards:
        board.stop()
