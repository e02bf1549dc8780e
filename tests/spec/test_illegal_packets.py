"""What the specifications forbid a client, sent to the broker: it closes the connection, in 5.0 with the reason.

The packets are those of tests/vectors that name a statement.
"""

from __future__ import annotations

import contextlib
import socket

import pytest
from spec_client import TIMEOUT_S
from table import VERSIONS, bad_packets, shows

CONNECT = {
    "3.1.1": bytes.fromhex("100d 0004 4d515454 04 02 003c 0001 78"),
    "5.0": bytes.fromhex("100e 0004 4d515454 05 02 003c 00 0001 78"),
}
CONNACK = 0x20
CASES = [(version, statement) for version in VERSIONS.values() for statement in sorted(bad_packets(version))]


def answers(port: int, before: bytes, data: bytes) -> bytes:
    """All that the broker sends, once it has closed; TimeoutError if it doesn't."""
    received = b""
    with socket.create_connection(("127.0.0.1", port), TIMEOUT_S) as connection:
        connection.sendall(before + data)
        with contextlib.suppress(ConnectionError):
            while chunk := connection.recv(65_536):
                received += chunk
    return received


def refusal(version: str, before: bytes, reason: int | None) -> list[bytes]:
    """What may come after the answer to *before*."""
    if version == "3.1.1":
        return [b""] if before else [b"", b"\x20\x02\x00\x01", b"\x20\x02\x00\x02"]
    code = b"" if reason is None else bytes((reason,))
    return [b"\xe0\x01" + code] if before else [b"", b"\x20\x03\x00" + code + b"\x00"]


@pytest.mark.parametrize(("version", "statement"), CASES)
def test_what_a_statement_forbids_is_refused(port: int, version: str, statement: str) -> None:
    for vector in bad_packets(version)[statement]:
        data = bytes.fromhex(vector["hex"])
        before = bytes.fromhex(vector["after"]) if "after" in vector else b"" if data[0] >> 4 == 1 else CONNECT[version]
        received = answers(port, before, data)
        if before:
            assert received[:1] == bytes((CONNACK,)), vector
            received = received[2 + received[1] :]
        if "after" in vector:  # SUBACK, PUBACK and the like to what came before
            wanted = refusal(version, before, vector.get("reason"))[0]
            assert received.endswith(wanted), (vector, received)
        elif version == "5.0" and data[0] >> 4 == 1 and data[0] != 0x10:
            assert received in (b"", b"\x20\x03\x00\x81\x00"), (vector, received)
        else:
            unsupported = [b"\x20\x03\x00\x84\x00", b"\x20\x02\x00\x01"] if not before else []
            assert received in refusal(version, before, vector.get("reason")) + unsupported, (vector, received)


# §2.1.3: the flags of what a client sends; those of PUBLISH (type 3) say something.
FLAGS = {1: 0, 4: 0, 5: 0, 6: 2, 7: 0, 8: 2, 10: 2, 12: 0, 14: 0, 15: 0}


@shows(v3="2.2.2-1 2.2.2-2", v5="2.1.3-1")
@pytest.mark.parametrize("version", VERSIONS.values())
def test_other_flags_than_the_tables_are_refused(port: int, version: str) -> None:
    for kind, flags in FLAGS.items():
        for wrong in set(range(16)) - {flags}:
            # A packet identifier is all that most of them need; the flags are wrong before that.
            received = answers(port, CONNECT[version], bytes((kind << 4 | wrong, 2, 0, 1)))
            expected = b"\xe0\x01\x81" if version == "5.0" else b""
            assert received[2 + received[1] :] == expected, (kind, wrong, received)
