"""Packets that no client should send, how they are sent to a broker, and a pair of clients that must not notice.

Knows no broker: what runs it, and how its memory and its log are looked at, is the test's business.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import socket
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent / "faults"))  # `import peers`, with --import-mode=importlib

from peers import Publisher, Subscriber

VECTORS = Path(__file__).resolve().parent.parent / "vectors"
VERSIONS = ("3.1.1", "5.0")
SEED = int(os.environ.get("MIDGE_SEED", "20261124"))
MUTANTS = int(os.environ.get("MIDGE_MUTANTS", "10000"))

# s that a broker gets for what it should do at once. Below the 5 s after which the host closes a connection
# without CONNECT, so that this close isn't taken for a refusal.
ANSWER_TIMEOUT_S = 4.5
# Connections that are open at the same time. The board's broker takes fewer.
AT_ONCE = 64
# Of a packet with a longer payload (two vectors have 16 KiB) both ends are cut at each byte, not the middle.
CUT_AT_EACH_BYTE = 400
CONNACK, DISCONNECT = 0x20, 0xE0
PINGREQ, PINGRESP = b"\xc0\x00", b"\xd0\x00"


class Case(NamedTuple):
    """`before` is what a good client sends first, `data` what is under test, both in one write."""

    name: str
    version: str
    before: bytes
    data: bytes
    reason_code: int | None = None  # 5.0: what CONNACK or DISCONNECT should carry
    reply: bytes | None = None  # the answer, where the vector knows it


@dataclass
class Outcome:
    """What was seen of one connection."""

    case: Case
    port: int  # our end's, by which the broker's log names it
    received: bytes = b""
    stayed_open: bool = False  # the broker waited for more, until we closed
    ended: bool = False  # end of file, or a reset

    def __str__(self) -> str:
        return (f"{self.case.version} {self.case.name}: {self.case.data[:80].hex()} -> {self.received.hex()}, "
                f"{'waited' if self.stayed_open else 'closed' if self.ended else 'still open'}")


# -- packets --


def connect_packet(version: str, client_id: str) -> bytes:
    """CONNECT, clean, keep alive 60 s."""
    level, properties = (5, b"\x00") if version == "5.0" else (4, b"")
    name = client_id.encode()
    body = b"\x00\x04MQTT" + bytes((level, 2, 0, 60)) + properties + len(name).to_bytes(2, "big") + name
    return bytes((0x10, len(body))) + body


def split(data: bytes) -> list[bytes]:
    """The whole packets in *data*."""
    packets = []
    at = 0
    while at + 2 <= len(data):
        length = shift = 0
        body = at + 1
        while True:
            byte = data[body]
            length |= (byte & 0x7F) << shift
            shift += 7
            body += 1
            if byte < 0x80:
                break
        packets.append(data[at : body + length])
        at = body + length
    return packets


def closing_reason_code(received: bytes) -> int | None:
    """The reason code of the last packet, if that is a refusing CONNACK or a DISCONNECT of 5.0."""
    last = split(received)[-1:] or [b""]
    if last[0][:1] == bytes((CONNACK,)) and last[0][3]:
        return last[0][3]
    if last[0][:1] == bytes((DISCONNECT,)):
        return last[0][2] if len(last[0]) > 2 else 0
    return None


# -- cases --


def vectors(version: str) -> list[dict]:
    return json.loads((VECTORS / f"packets-{version}.json").read_text(encoding="utf-8"))


_numbers = iter(range(1, 1 << 60))


def _before(version: str, data: bytes) -> bytes:
    """Nothing before a CONNECT, else one with a client identifier that nobody else has."""
    return b"" if data[:1] and data[0] >> 4 == 1 else connect_packet(version, f"bad{next(_numbers)}")


# CONNACK, SUBACK, UNSUBACK, PINGRESP: only a server sends them.
_FROM_SERVER = (2, 9, 11, 13)


def malformed(version: str) -> list[Case]:
    """What a server must refuse: what is malformed, and what only a client may be sent."""
    cases = []
    for vector in vectors(version):
        data = bytes.fromhex(vector["hex"])
        if vector.get("state"):
            continue
        if vector["from"] == "server" and data[0] >> 4 in _FROM_SERVER:
            cases.append(Case(vector["name"], version, _before(version, data), data))
        elif "error" in vector and vector["from"] != "server":
            cases.append(Case(vector["name"], version, _before(version, data), data, vector.get("reason")))
    return cases


def stateful(version: str) -> list[Case]:
    """What is wrong, or has one right answer, after the packets before it. Same client identifiers: one at a time."""
    return [
        Case(vector["name"], version, bytes.fromhex(vector["after"]), bytes.fromhex(vector["hex"]),
             vector.get("reason"), bytes.fromhex(vector["reply"]) if "reply" in vector else None)
        for vector in vectors(version)
        if vector.get("state") and vector["from"] != "server"
    ]


def _cuts(size: int) -> Iterable[int]:
    if size <= CUT_AT_EACH_BYTE:
        return range(1, size)
    half = CUT_AT_EACH_BYTE // 2
    return (*range(1, half), *range(size - half, size))


def truncated(version: str) -> list[Case]:
    """Each valid packet of a client without its end, cut at every byte."""
    cases = []
    for vector in vectors(version):
        data = bytes.fromhex(vector["hex"])
        if "packet" in vector and vector["from"] != "server":
            cases += [Case(f"{vector['name']}[:{cut}]", version, _before(version, data), data[:cut])
                      for cut in _cuts(len(data))]
    return cases


def truncated_malformed(version: str) -> list[Case]:
    """Each bad packet without its end: what is left may be bad or merely incomplete."""
    return [case._replace(name=f"{case.name}[:{cut}]", data=case.data[:cut],
                          before=_before(version, case.data), reason_code=None)
            for case in malformed(version) for cut in _cuts(len(case.data))]


def mutants(count: int, seed: int, versions: tuple[str, ...] = VERSIONS) -> Iterator[Case]:
    """Valid packets with one to four random faults each, the same ones for the same seed."""
    chance = random.Random(seed)
    valid = [(version, vector["name"], bytes.fromhex(vector["hex"]))
             for version in versions for vector in vectors(version) if "packet" in vector]
    made = 0
    while made < count:
        version, name, data = chance.choice(valid)
        mutant = data
        for _ in range(chance.randint(1, 4)):
            mutant = _FAULTS[chance.randrange(len(_FAULTS))](chance, mutant, chance.choice(valid)[2])
        if mutant and mutant != data:
            made += 1
            yield Case(f"mutant {made} of {name}", version, _before(version, mutant), mutant)


def _place(chance: random.Random, data: bytes) -> int:
    # The headers are where it matters: half of the faults hit the first eight bytes.
    return chance.randrange(min(len(data), 8) if chance.random() < 0.5 else len(data)) if data else 0


def _flip(chance: random.Random, data: bytes, _: bytes) -> bytes:
    at = _place(chance, data)
    return data[:at] + bytes(b ^ 1 << chance.randrange(8) for b in data[at : at + 1]) + data[at + 1 :]


def _set(chance: random.Random, data: bytes, _: bytes) -> bytes:
    at = _place(chance, data)
    byte = chance.choice((0, 1, 2, 0x7F, 0x80, 0xC0, 0xFF, chance.randrange(256)))
    return data[:at] + bytes((byte,)) + data[at + 1 :]


def _insert(chance: random.Random, data: bytes, _: bytes) -> bytes:
    at = _place(chance, data)
    return data[:at] + chance.randbytes(chance.randint(1, 8)) + data[at:]


def _delete(chance: random.Random, data: bytes, _: bytes) -> bytes:
    at = _place(chance, data)
    return data[:at] + data[at + chance.randint(1, 8) :]


def _repeat(chance: random.Random, data: bytes, _: bytes) -> bytes:
    at = _place(chance, data)
    return data[: at + chance.randint(1, 16)] + data[at:]


def _append(_chance: random.Random, data: bytes, other: bytes) -> bytes:
    return data + other


def _graft(chance: random.Random, data: bytes, other: bytes) -> bytes:
    """The head of one packet, the body of another."""
    at = _place(chance, data)
    return data[:at] + other[min(at, len(other)) :]


_FAULTS = (_flip, _flip, _set, _set, _insert, _delete, _repeat, _append, _graft)


# -- sending --


class Witness:
    """A good client. Once it has been answered, the broker has seen what others sent before it asked."""

    def __init__(self, port: int):
        self._socket = socket.create_connection(("127.0.0.1", port), 10)
        self._socket.sendall(connect_packet(VERSIONS[0], "witness"))
        assert self._socket.recv(4) == b"\x20\x02\x00\x00"

    def round_trips(self, count: int = 3) -> None:
        """The first can overtake a connection that is still being accepted; the third can't."""
        for _ in range(count):
            self._socket.sendall(PINGREQ)
            assert self._socket.recv(2) == PINGRESP

    def close(self) -> None:
        self._socket.sendall(b"\xe0\x00")
        self._socket.close()


def refused(port: int, cases: Iterable[Case], at_once: int = AT_ONCE) -> Iterator[Outcome]:
    """Send each on a connection of its own; the broker has to end it."""
    for batch in _batches(cases, at_once):
        connections = [_send(port, case) for case in batch]
        yield from _read_to_the_end(connections)


def waited_for(port: int, cases: Iterable[Case], at_once: int = AT_ONCE) -> Iterator[Outcome]:
    """Send each on a connection of its own; once the broker has seen it, end the connection from our side."""
    with contextlib.closing(Witness(port)) as witness:
        for batch in _batches(cases, at_once):
            connections = [_send(port, case) for case in batch]
            witness.round_trips()
            for connection, outcome in connections:
                _read_what_came(connection, outcome)
                if outcome.case.reply is not None:
                    _read_until(connection, outcome, outcome.case.reply)  # a commit may hold it back
                outcome.stayed_open = not outcome.ended
                with contextlib.suppress(OSError):  # a broker that didn't wait
                    connection.shutdown(socket.SHUT_WR)
            yield from _read_to_the_end(connections)


def _batches(cases: Iterable[Case], size: int) -> Iterator[list[Case]]:
    left = iter(cases)
    while batch := list(islice(left, size)):
        yield batch


def _send(port: int, case: Case) -> tuple[socket.socket, Outcome]:
    connection = socket.create_connection(("127.0.0.1", port), ANSWER_TIMEOUT_S)
    connection.sendall(case.before + case.data)
    connection.setblocking(False)
    return connection, Outcome(case, connection.getsockname()[1])


def _read_what_came(connection: socket.socket, outcome: Outcome) -> None:
    """All that has arrived, without waiting."""
    while not outcome.ended:
        try:
            data = connection.recv(65_536)
        except BlockingIOError:
            return
        except ConnectionError:
            data = b""
        outcome.received += data
        outcome.ended = not data


def _read_until(connection: socket.socket, outcome: Outcome, reply: bytes) -> None:
    deadline = time.monotonic() + ANSWER_TIMEOUT_S
    while not (outcome.ended or outcome.received.endswith(reply)):
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([connection], [], [], left)[0]:
            break
        _read_what_came(connection, outcome)


def _read_to_the_end(connections: list[tuple[socket.socket, Outcome]]) -> Iterator[Outcome]:
    deadline = time.monotonic() + ANSWER_TIMEOUT_S
    for connection, outcome in connections:
        with connection:
            while not outcome.ended:
                left = deadline - time.monotonic()
                if left <= 0 or not select.select([connection], [], [], left)[0]:
                    break
                _read_what_came(connection, outcome)
        yield outcome


# -- the others --


class Flow:
    """A publisher and a subscriber at QoS 1 that go on while the broker is shelled."""

    def __init__(self, port: int, stall_s: float = ANSWER_TIMEOUT_S):
        self._stall_s = stall_s
        self._publisher = Publisher("flow-publisher", "flow/of/the/others", 1)
        self._subscriber = Subscriber("flow-subscriber", "flow/of/the/others", 1)
        self._port = port
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._failure: BaseException | None = None

    @property
    def messages(self) -> int:
        """How many have arrived."""
        return len(self._subscriber.numbers)

    def _run(self) -> None:
        try:
            while True:
                assert self._publisher.step(timeout_s=self._stall_s), "PUBACK did not come"
                assert self._subscriber.step(timeout_s=self._stall_s), "PUBLISH did not come"
                # A little less than all it could, to leave the processor to the shelling.
                if self._is_over.wait(0.002):
                    break
            self._publisher.finish()
            while self.messages < self._publisher.next_number:
                assert self._subscriber.step(timeout_s=self._stall_s), "PUBLISH did not come"
        except BaseException as failure:  # noqa: BLE001 - handed to the test's thread
            self._failure = failure

    def __enter__(self) -> Flow:
        self._subscriber.resume(self._port)
        self._publisher.resume(self._port)
        self._thread.start()
        return self

    def finish(self) -> None:
        """Wait for what is under way; fails if a message was lost, doubled or out of order, or took too long."""
        self._end()
        if self._failure is not None:
            raise AssertionError("the flow of the others stopped") from self._failure
        assert self._subscriber.numbers == list(range(self._publisher.next_number))
        assert sorted(self._publisher.acknowledged) == self._subscriber.numbers

    def _end(self) -> None:
        self._is_over.set()
        self._thread.join()
        self._publisher.close()
        self._subscriber.close()

    def __exit__(self, *_: object) -> None:
        self._end()
