"""Opening a board's port while another program has it."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator

import pytest

from midge.boards.console import open_port
from midge.boards.simulate import BoardError


@pytest.fixture
def port() -> Iterator[tuple[str, int]]:
    """A pseudo-terminal that somebody has locked, as pyserial and ModemManager do."""
    ours, theirs = os.openpty()
    fcntl.flock(theirs, fcntl.LOCK_EX)
    yield os.ttyname(theirs), theirs
    os.close(ours)
    os.close(theirs)


def test_a_port_that_is_busy_for_a_moment_is_waited_for(port: tuple[str, int]) -> None:
    name, locked = port
    timer = threading.Timer(0.2, fcntl.flock, (locked, fcntl.LOCK_UN))
    timer.start()
    transport = open_port(name)
    transport.close()
    timer.join()


def test_a_port_that_stays_busy_is_said(port: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("midge.boards.console._BUSY_S", 0.1)
    with pytest.raises(BoardError, match="can't be opened as a serial port; another program may have it"):
        open_port(port[0])
    with pytest.raises(BoardError, match="there is no such port"):
        open_port(port[0] + "0")
