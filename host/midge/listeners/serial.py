"""Serial cables: boards without a radio, each channel of the cable a connection (docs/serial-cable.md).
Knows ports, hot-plugging and the link's clock, not what the channels carry.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from midge.protocol.serial_link import HOST_CHANNELS, LOG, Lane, Link

if TYPE_CHECKING:
    from serial import Serial

log = logging.getLogger("midge.serial")

# s between two looks for a board that isn't plugged in.
_LOOK_S = 1.0
# bytes taken from the port at once; at 921,600 baud that is 40 ms.
_READ_MAX = 4096
# bytes of output that wait when no other limit is set; asyncio's own.
_HIGH_WATER = 64 * 1024
# Vendors whose USB ports are boards, or the converters on them: Espressif, Raspberry Pi, Silicon Labs CP210x,
# WCH CH340, FTDI (https://usb-ids.gowdy.us). "auto" takes no other.
_BOARD_VENDORS = {0x303A, 0x2E8A, 0x10C4, 0x1A86, 0x0403}


def find_port(device: str, taken: set[str]) -> str | None:
    """The path of *device*: itself, "usb:SERIAL_NUMBER", or "auto", a board's that is not *taken*; None: not there."""
    if not device.startswith("usb:") and device != "auto":
        return device if os.path.exists(device) else None
    from serial.tools.list_ports import comports

    for port in sorted(comports()):
        if device == "auto" and port.vid in _BOARD_VENDORS and port.device not in taken:
            return str(port.device)
        if port.serial_number and device == f"usb:{port.serial_number}":
            return str(port.device)
    return None


class LaneTransport(asyncio.Transport):
    """A transport on one lane of the cable."""

    def __init__(self, lane: Lane, cable: SerialCable) -> None:
        super().__init__()
        self._lane = lane
        self._cable = cable
        self._pending = bytearray()
        self._high = _HIGH_WATER
        self._is_paused = False  # our protocol was told to pause writing
        self._is_reading = True
        self._is_closing = False
        self._is_lost = False  # our protocol was told of the end
        self._protocol: asyncio.Protocol | None = None

    def start(self, protocol: asyncio.Protocol) -> None:
        self._protocol = protocol
        protocol.connection_made(self)

    # -- from the link --

    def on_input(self) -> None:
        if self._is_reading and not self._is_closing and self._protocol is not None:
            data = self._lane.read()
            if data:
                self._protocol.data_received(data)

    def on_room(self) -> None:
        taken = self._lane.write(bytes(self._pending[: self._lane.room]))
        del self._pending[:taken]
        if self._pending:
            return
        if self._is_paused and self._protocol is not None:
            self._is_paused = False
            self._protocol.resume_writing()
        if self._is_closing and not self._pending:
            self.abort()

    def on_ended(self) -> None:
        """The other side closed the channel, or the cable is gone."""
        self.on_input()
        self._is_closing = True
        self._lose()

    def _lose(self) -> None:
        if not self._is_lost and self._protocol is not None:
            self._is_lost = True
            self._cable.forget(self._lane)
            asyncio.get_running_loop().call_soon(self._protocol.connection_lost, None)

    # -- asyncio.Transport --

    def write(self, data: Any) -> None:
        if self._is_closing:
            return
        self._pending += data
        self.on_room()
        self._cable.flush_soon()
        if len(self._pending) > self._high and not self._is_paused and self._protocol is not None:
            self._is_paused = True
            self._protocol.pause_writing()

    def close(self) -> None:
        if not self._is_closing:
            self._is_closing = True
            self.on_room()

    def abort(self) -> None:
        self._is_closing = True
        self._lane.close()
        self._cable.flush_soon()
        self._lose()

    def is_closing(self) -> bool:
        return self._is_closing

    def pause_reading(self) -> None:
        self._is_reading = False  # the lane fills, and the link tells the board to wait

    def resume_reading(self) -> None:
        self._is_reading = True
        self.on_input()
        self._cable.flush_soon()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = high or _HIGH_WATER

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default


class SerialCable:
    """One serial port: opened when it is there, again when it comes back. `start`, then `stop`."""

    taken: set[str] = set()  # noqa: RUF012 -- the ports that cables of this process have open: shared on purpose

    def __init__(self, device: str, baud: int, protocol: Callable[[str], asyncio.Protocol]) -> None:
        """*device*: see `find_port`. *protocol*: makes the one for a channel that the board opens, given its
        address for the log."""
        self.device = device
        self.baud = baud
        self._make_protocol = protocol
        self._port: Serial | None = None
        self._link: Link | None = None
        self._lanes: dict[Lane, LaneTransport] = {}
        self._unwritten = b""
        self._line = b""  # of the board's log
        self._is_flush_due = False
        self._timer: asyncio.TimerHandle | None = None
        self._looking: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        """Of the cable, for the log: "serial:/dev/ttyUSB0/kitchen"."""
        where = self._port.port if self._port is not None else self.device
        return f"serial:{where}" + (f"/{self._link.peer_name}" if self._link and self._link.peer_name else "")

    @property
    def is_up(self) -> bool:
        return self._link is not None and self._link.is_up

    def start(self) -> None:
        """Look for the port from now on. A port that isn't there is no error: it may be plugged in later."""
        self._loop = asyncio.get_running_loop()
        self._looking = self._loop.create_task(self._look())

    async def stop(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
        self._flush()
        self._lose(None)

    def connect(self, protocol: asyncio.Protocol) -> LaneTransport:
        """A channel to the board's broker. OSError: the cable isn't there, or has no channel free."""
        if self._link is not None:
            for channel in HOST_CHANNELS:
                lane = self._link.open(channel)
                if lane is not None:
                    transport = self._lanes[lane] = LaneTransport(lane, self)
                    transport.start(protocol)
                    self.flush_soon()
                    return transport
        raise OSError(f"{self.name}: {'no channel is free' if self.is_up else 'no board answers on this cable'}")

    def forget(self, lane: Lane) -> None:
        """Its transport has ended."""
        self._lanes.pop(lane, None)

    # -- the port --

    async def _look(self) -> None:
        told = ""
        while True:
            if self._port is None:
                reason = self._try_to_open()
                if reason and reason != told:
                    log.warning("%s", reason)
                told = reason
            await asyncio.sleep(_LOOK_S)

    def _try_to_open(self) -> str:
        """Why the port isn't open; "" if it is now."""
        path = find_port(self.device, self.taken)
        if path is None:
            return f"serial:{self.device}: not there yet"
        try:
            self._open(path)
        except OSError as error:  # pyserial's are OSErrors too
            return f"serial:{path}: {_explain(error)}"
        return ""

    def _open(self, path: str) -> None:
        from serial import Serial

        port = Serial(path, self.baud, timeout=0, write_timeout=0, exclusive=True)
        port.reset_input_buffer()
        os.set_blocking(port.fileno(), False)
        self._port = port
        self.taken.add(path)
        self._link = link = Link("midge", self._loop.time())
        link.on_up, link.on_open, link.on_console = self._on_up, self._on_open, self._on_console
        link.on_input, link.on_room, link.on_ended = self._on_input, self._on_room, self._on_ended
        self._loop.add_reader(port.fileno(), self._read)
        self._flush()

    def _lose(self, reason: str | None) -> None:
        """The port is gone, or no longer wanted."""
        port, link = self._port, self._link
        if port is None or link is None:
            return
        if reason is not None:
            log.warning("%s: %s", self.name, reason)
        if self._timer is not None:
            self._timer.cancel()
        self._loop.remove_reader(port.fileno())
        self._loop.remove_writer(port.fileno())
        self._port = self._link = None
        self._unwritten = self._line = b""
        self.taken.discard(port.port)
        port.close()
        for transport in list(self._lanes.values()):
            transport.on_ended()

    def _read(self) -> None:
        assert self._port is not None and self._link is not None
        try:
            data = os.read(self._port.fileno(), _READ_MAX)
        except BlockingIOError:
            return
        except OSError as error:
            self._lose(f"unplugged ({error.strerror})")
            return
        if not data:
            self._lose("unplugged")
            return
        self._link.receive_data(data, self._loop.time())
        self._flush()

    def flush_soon(self) -> None:
        """Something was written to a lane: send it once all that happens now has happened."""
        if not self._is_flush_due:
            self._is_flush_due = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._is_flush_due = False
        if self._port is None or self._link is None:
            return
        now = self._loop.time()
        data = self._unwritten + self._link.data_to_send(now)
        try:
            written = os.write(self._port.fileno(), data) if data else 0
        except BlockingIOError:
            written = 0
        except OSError as error:
            self._lose(f"unplugged ({error.strerror})")
            return
        waited = bool(self._unwritten)
        self._unwritten = data[written:]
        if self._unwritten and not waited:
            self._loop.add_writer(self._port.fileno(), self._flush)
        elif waited and not self._unwritten:
            self._loop.remove_writer(self._port.fileno())
        self._set_timer()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due = self._link.next_deadline() if self._link is not None else None
        if due is not None:
            self._timer = self._loop.call_at(due, self._tick)

    def _tick(self) -> None:
        self._timer = None
        if self._link is not None:
            self._link.tick(self._loop.time())
            self._flush()

    # -- from the link --

    def _on_up(self, is_up: bool) -> None:
        log.info("%s: %s", self.name, "connected" if is_up else "the link starts anew")

    def _on_open(self, lane: Lane) -> None:
        transport = self._lanes[lane] = LaneTransport(lane, self)
        transport.start(self._make_protocol(f"{self.name}/{lane.channel}"))

    def _on_input(self, lane: Lane) -> None:
        if lane.channel == LOG:
            self._on_log(lane.read())
        elif lane in self._lanes:
            self._lanes[lane].on_input()

    def _on_log(self, data: bytes) -> None:
        *lines, self._line = (self._line + data).split(b"\n")
        for line in lines:
            log.info("%s: says: %s", self.name, _printable(line))

    def _on_console(self, data: bytes) -> None:
        try:
            lines = data.decode().splitlines()
        except UnicodeDecodeError:
            return  # a damaged frame
        for line in lines:
            if line.strip() and line.isprintable():
                log.info("%s: console: %s", self.name, line)

    def _on_room(self, lane: Lane) -> None:
        if lane in self._lanes:
            self._lanes[lane].on_room()

    def _on_ended(self, lane: Lane) -> None:
        if lane in self._lanes:
            self._lanes[lane].on_ended()


def _printable(data: bytes) -> str:
    text = data.decode(errors="backslashreplace").rstrip("\r")
    return text if text.isprintable() else ascii(text)[1:-1]


def _explain(error: OSError) -> str:
    text = error.strerror or str(error)
    if isinstance(error, PermissionError) or "Permission denied" in text:
        return "permission denied; sudo usermod -aG dialout $USER lets you in from your next login on"
    if "lock" in text.lower():
        return "in use by another program (a serial terminal, mpremote, an IDE?)"
    return text
