"""Measures wake cycles on the unix port: a program, behind a link, against the real broker, again and again.
Knows times, bytes and segments, nothing of currents.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ipaddress
import json
import statistics
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from midge.boards.simulate import Board, BoardError, Process, make_image
from midge.sim.board import ON_BOARD
from midge.sim.laptop import LISTENING, START_TIMEOUT_S, Laptop
from midge.sim.link import Conditions, Link, Traffic

HEAP = "256k"

# Those of sim_battery.py that send, and their topic.
PROGRAMS = ("wake", "umqtt", "umqtt commands")
TOPIC = "battery/reading"
PHASES = ("connect_ms", "connack_ms", "exchange_ms", "close_ms")

# s for a cycle beyond what is expected, before the program counts as hanging.
_CYCLE_TIMEOUT_S = 60.0

# ms between two cycles, for the proxy to see the end of the one.
_PAUSE_MS = 60

# Of the measurement of a connection that stays: pings are a second apart.
_ALWAYS_ON_S = 4.0


@dataclass(frozen=True, slots=True)
class Choice:
    """What is measured. *program*: "wake", "umqtt", "umqtt commands", "always on", or a file of the user's."""

    label: str
    program: str = "wake"
    qos: int = 1
    tls: bool = False
    messages: int = 3
    payload_bytes: int = 20
    arguments: tuple[str, ...] = ()

    @property
    def nagle(self) -> bool:
        """midge's client sets TCP_NODELAY; umqtt.simple leaves lwIP's default."""
        return self.program.startswith("umqtt")


@dataclass(slots=True)
class Measured:
    """Of all cycles but the first, which makes the session; of "always on": of one PINGREQ and its answer.

    *loses*: the link does, so means are told, of which retransmissions are a part. Else medians: what a busy machine
    adds to one cycle is no part of it."""

    choice: Choice
    loses: bool = False
    cycles: list[dict[str, Any]] = field(default_factory=list)
    connections: list[Traffic] = field(default_factory=list)
    made: int = 0  # messages, the first cycle's too
    arrived: int = 0

    def _typical(self, values: Iterable[float]) -> float:
        known = list(values)
        if not known:
            return 0.0
        return statistics.fmean(known) if self.loses else statistics.median(known)

    def _times(self) -> list[float]:
        """ms from the call to its return; of a program that doesn't say: as long as its connections lasted."""
        known = [cycle["ms"] for cycle in self.cycles]
        return known or [second * 1000 for traffic in self.connections for second in traffic.seconds]

    @property
    def ms(self) -> float:
        return self._typical(self._times())

    @property
    def worst_ms(self) -> float:
        return max(self._times(), default=0.0)

    @property
    def phases_ms(self) -> dict[str, float]:
        """Of wake(): its `stats`. Empty for programs that don't call it."""
        names = [name for name in PHASES if all(name in cycle for cycle in self.cycles)] if self.cycles else []
        return {name: self._typical(cycle[name] for cycle in self.cycles) for name in names}

    @property
    def segments(self) -> float:
        """From the board; on a link that loses, those sent again too."""
        return self._typical(traffic.segments_up + traffic.again for traffic in self.connections)

    @property
    def bytes(self) -> float:
        return self._typical(traffic.bytes_up + traffic.bytes_down for traffic in self.connections)

    @property
    def round_trips(self) -> float:
        return self._typical(trips for traffic in self.connections for trips in traffic.round_trips)


class Bench:
    """The broker, the compiled files and the certificate that all measurements share. Use it as a context manager."""

    def __init__(
        self, conditions: Conditions, cycles: int, umqtt: Path | None, programs: tuple[Path, ...] = ()
    ) -> None:
        self.conditions, self.cycles, self.umqtt, self.programs = conditions, cycles, umqtt, programs
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Bench:
        try:
            name = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="midge-battery-"))
            self._directory = Path(name)
            self._image = self._directory / "image"
            self._image.mkdir()
            names = ("sim_battery.py", "sim_main.py", "machine.py", "network.py")
            await make_image(self._image, [*(ON_BOARD / name for name in names), *self.programs])
            if self.umqtt is not None:
                (self._image / "umqtt").mkdir()
                (self._image / "umqtt" / "simple.py").write_bytes((self.umqtt / "umqtt" / "simple.py").read_bytes())
                # It imports `ussl`, a name that MicroPython has given up.
                (self._image / "ussl.py").write_text("from ssl import wrap_socket\n", encoding="utf-8")
            self._ca = make_certificate(self._directory)
            self._ports = await self._start_broker()
            self._laptop = Laptop("127.0.0.1", self._ports[0], {}, all_topics=True)
            self._stack.callback(self._laptop.stop)
            await self._laptop.start()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def _start_broker(self) -> tuple[int, int]:
        """Its ports without and with TLS."""
        folder = self._directory.as_posix()
        config = self._directory / "midge.toml"
        config.write_text(
            f'[[listener]]\nport = 0\n[[listener]]\ntype = "tls"\nport = 0\ncertfile = "{folder}/server.pem"\n'
            f'keyfile = "{folder}/server.key"\n[store]\npath = "{folder}/midge.db"\n[discovery]\nannounce = false\n',
            encoding="utf-8",
        )
        command = [sys.executable, "-m", "midge", "broker", "--config", str(config)]
        broker = Process("broker", command, {"PYTHONUNBUFFERED": "1"})
        self._stack.push_async_callback(broker.stop)
        await broker.start()
        plain = await broker.wait_for_line(LISTENING, START_TIMEOUT_S)
        secure = await broker.wait_for_line(r"listening on mqtts://127\.0\.0\.1:(\d+)", START_TIMEOUT_S)
        return int(plain[1]), int(secure[1])

    async def measure(
        self, choice: Choice, conditions: Conditions | None = None, cycles: int | None = None
    ) -> Measured:
        """Runs *choice*. `BoardError`: its program died or hangs, with what it said last."""
        known = conditions or self.conditions
        known = Conditions(known.delay_s, known.jitter_s, known.loss, known.rto_s, choice.nagle)
        measured = Measured(choice, known.loss > 0)
        link = Link(self._ports[choice.tls], known, seed=7, on_closed=measured.connections.append)
        link.sleeps = choice.program != "always on"
        await link.start()
        count = cycles or self.cycles
        before = self._laptop.others[TOPIC]
        try:
            if choice.program.endswith(".py"):
                for _ in range(count + 1):
                    await self._run_once(choice, link, measured)
            else:
                await self._run_all(choice, link, measured, count)
            await asyncio.sleep(_PAUSE_MS / 1000 + 2 * known.delay_s)
        finally:
            link.close()
        measured.arrived = self._laptop.others[TOPIC] - before
        if choice.program in PROGRAMS:
            measured.made = (count + 1) * choice.messages
        if choice.program == "always on":
            _split_into_pings(measured)
        else:
            del measured.connections[0]
            if choice.program.endswith(".py") and measured.cycles:
                del measured.cycles[0]
        return measured

    async def _run_all(self, choice: Choice, link: Link, measured: Measured, count: int) -> None:
        settings = {
            "program": choice.program, "qos": choice.qos, "messages": choice.messages, "cycles": count,
            "payload_bytes": choice.payload_bytes, "port": link.port, "pause_ms": _PAUSE_MS, "keep_alive_s": 1,
            "seconds": _ALWAYS_ON_S, "cafile": str(self._ca) if choice.tls else "",
        }  # fmt: skip
        board = self._board(ON_BOARD / "sim_battery.py", [], {"MIDGE_SIM": json.dumps(settings)}, measured)
        await _whole(board, _CYCLE_TIMEOUT_S + count * 5)

    async def _run_once(self, choice: Choice, link: Link, measured: Measured) -> None:
        program = Path(choice.program)
        mark = "+" if "wake(" in program.read_text(encoding="utf-8") else ""
        arguments = [part.format(name="battery", port=link.port) for part in choice.arguments]
        board = self._board(ON_BOARD / "sim_main.py", [mark + program.stem, *arguments], {}, measured)
        await _whole(board, _CYCLE_TIMEOUT_S)

    def _board(self, program: Path, arguments: list[str], env: dict[str, str], measured: Measured) -> Board:
        def take(line: str) -> None:
            if line.startswith("@"):
                what, *rest = json.loads(line[1:])
                if what == "cycle":
                    result = rest[0]
                    measured.cycles.append({"ms": result.get("total_ms", 0), **result})

        flash = self._directory / "flash"
        flash.mkdir(exist_ok=True)
        env = {"MIDGE_BOARD": str(flash), "MIDGE_AIR": '{"scan_ms": 0, "join_ms": 0, "dhcp_ms": 0}', **env}
        return Board("board", program, arguments, HEAP, env, take, flash, self._image)


async def _whole(board: Board, timeout_s: float) -> None:
    try:
        await board.start()
        if await asyncio.wait_for(board.wait(), timeout_s):
            raise BoardError(board.obituary())
    except TimeoutError:
        raise BoardError(f"the program hangs{board.quote_lines()}") from None
    finally:
        await board.stop()


def _split_into_pings(measured: Measured) -> None:
    """Of the one connection that stayed: PINGREQ and PINGRESP, whose number its bytes tell (2 each way)."""
    whole = measured.connections[0]
    # CONNECT and its answer are the first segment each way; all others carry a ping.
    count = max(1, whole.segments_up - 1)
    ping = Traffic(segments_up=1, segments_down=1, bytes_up=2, bytes_down=2)
    measured.connections[:] = [ping] * count


def make_certificate(directory: Path) -> Path:
    """A key and a certificate that is its own authority, for localhost; the path of the latter as boards want it."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(public_exponent=65_537, key_size=2048)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    (directory / "server.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (directory / "server.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    path = directory / "server.der"
    path.write_bytes(certificate.public_bytes(serialization.Encoding.DER))
    return path
