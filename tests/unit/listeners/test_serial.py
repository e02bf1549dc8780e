"""Which port a `device` of the configuration means, and how a lane is a transport. The ports are stand-ins: there is no
USB here; the cable itself is tested in tests/device/test_serial.py."""

import asyncio
from types import SimpleNamespace

import pytest
from serial.tools import list_ports

from midge.listeners.serial import LaneTransport, find_port
from midge.protocol.serial_link import Lane, Link


def port(device: str, vid: int | None = None, serial_number: str | None = None) -> SimpleNamespace:
    return SimpleNamespace(device=device, vid=vid, serial_number=serial_number)


@pytest.fixture
def plugged_in(monkeypatch):
    ports: list[SimpleNamespace] = []

    class Comparable(SimpleNamespace):
        def __lt__(self, other):
            return self.device < other.device

    monkeypatch.setattr(list_ports, "comports", lambda: [Comparable(**vars(one)) for one in ports])
    return ports


def test_a_path_is_itself_once_it_is_there(tmp_path):
    path = tmp_path / "ttyUSB0"
    assert find_port(str(path), set()) is None
    path.touch()
    assert find_port(str(path), set()) == str(path)


def test_auto_is_the_first_board_that_no_other_cable_has(plugged_in):
    plugged_in += [port("/dev/ttyACM1", 0x2E8A), port("/dev/ttyACM0", 0x303A), port("/dev/ttyS0"), port("/dev/a", 0x1)]
    assert find_port("auto", set()) == "/dev/ttyACM0"
    assert find_port("auto", {"/dev/ttyACM0"}) == "/dev/ttyACM1"
    assert find_port("auto", {"/dev/ttyACM0", "/dev/ttyACM1"}) is None


def test_a_board_is_found_by_its_serial_number_wherever_it_is_plugged_in(plugged_in):
    plugged_in += [port("/dev/ttyACM0", 0x2E8A, "E66"), port("/dev/ttyACM1", 0x2E8A, "E67")]
    assert find_port("usb:E67", set()) == "/dev/ttyACM1"
    assert find_port("usb:E68", set()) is None


class Cable:
    """What a transport needs of its cable."""

    def __init__(self):
        self.forgotten: list[Lane] = []

    def flush_soon(self) -> None: ...

    def forget(self, lane: Lane) -> None:
        self.forgotten.append(lane)


class Client(asyncio.Protocol):
    def __init__(self):
        self.events: list[object] = []

    def data_received(self, data: bytes) -> None:
        self.events.append(data)

    def pause_writing(self) -> None:
        self.events.append("pause")

    def resume_writing(self) -> None:
        self.events.append("resume")

    def connection_lost(self, exc: Exception | None) -> None:
        self.events.append("lost")


def start() -> tuple[Lane, Cable, Client, LaneTransport]:
    lane = Lane(Link("host", 0.0), 1, to_open=False)
    cable, client = Cable(), Client()
    transport = LaneTransport(lane, cable)
    transport.start(client)
    return lane, cable, client, transport


def test_what_a_lane_has_no_room_for_waits_and_slows_the_writer_down():
    lane, _, client, transport = start()
    transport.set_write_buffer_limits(high=1000)
    transport.write(b"x" * 2000)
    assert client.events == ["pause"]
    sent = b""
    while lane.output:
        sent, lane.output = sent + lane.output, b""
        transport.on_room()
    assert sent == b"x" * 2000
    assert client.events == ["pause", "resume"]


def test_closing_sends_what_was_written_and_then_ends():
    async def close() -> None:
        lane, cable, client, transport = start()
        transport.write(b"y" * 700)
        transport.close()
        assert not lane.is_closing  # the rest has to follow
        lane.output = b""
        transport.on_room()
        assert lane.output == b"y" * (700 - 512) and lane.is_closing
        await asyncio.sleep(0)
        assert client.events == ["lost"] and cable.forgotten == [lane]

    asyncio.run(close())


def test_a_paused_reader_leaves_the_data_in_the_lane():
    lane, _, client, transport = start()
    transport.pause_reading()
    lane.input = b"later"
    transport.on_input()
    assert client.events == []
    transport.resume_reading()
    assert client.events == [b"later"]
