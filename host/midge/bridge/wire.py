"""A PUBLISH as our core has encoded it, on its way out: its topic name may be another there, all else stays as it is.
Knows bytes only; which name becomes which is `rules`'.
"""

from __future__ import annotations

from midge.protocol.wire import encode_variable_integer


def topic_field(packet: bytes) -> tuple[int, int]:
    """Where the topic name's length starts in a whole PUBLISH, and where the topic name ends (MQTT 5.0 §3.3.2.1)."""
    at = 2
    while packet[at - 1] > 0x7F:
        at += 1
    return at, at + 2 + (packet[at] << 8 | packet[at + 1])


def with_topic(first: int, field: bytes, rest: bytes) -> bytes:
    """A PUBLISH of its first byte, the topic name with its length before it, and what follows that."""
    return b"".join((bytes((first,)), encode_variable_integer(len(field) + len(rest)), field, rest))
