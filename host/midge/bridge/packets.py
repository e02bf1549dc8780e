"""What a link makes of packets: its CONNECT, a PUBLISH on its way out, reason codes in words.
Knows no connection.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from midge.core.passage import BRIDGE
from midge.core.session import NEVER_EXPIRES
from midge.protocol import packets as p
from midge.protocol.reasons import ReasonCode
from midge.protocol.wire import encode_variable_integer

if TYPE_CHECKING:
    from midge.bridge.bridge import Bridge

_CONNACK_REASONS = {  # MQTT 3.1.1 §3.2.2.3
    1: "protocol version not accepted",
    2: "client identifier not accepted",
    3: "server unavailable",
    4: "bad user name or password",
    5: "not authorized",
}


def connect_packet(bridge: Bridge, clean_start: bool, will: p.Will | None) -> p.Connect:
    """*clean_start*: the connection is only to end an old session."""
    section = bridge.section
    version, is_marked = bridge.version
    properties: p.Properties = {}
    if version == 5:
        limits = bridge.broker.limits
        properties = {
            "session_expiry_interval": 0 if clean_start else NEVER_EXPIRES,
            "receive_maximum": limits.receive_maximum,
            "maximum_packet_size": limits.max_packet_size,
            "user_property": [(BRIDGE, "1")],
        }
    return p.Connect(
        client_id=bridge.remote_client_id,
        clean_start=clean_start,
        keep_alive_s=section.keep_alive,
        level=version,
        is_bridge=is_marked,
        will=will,
        username=section.username,
        password=None if section.password is None else section.password.encode(),
        properties=properties,
    )


def topic_field(packet: bytes) -> tuple[int, int]:
    """Where the length of the topic name is in a whole PUBLISH, and where the name ends (MQTT 5.0 §3.3.2.1)."""
    at = 2
    while packet[at - 1] > 0x7F:  # the remaining length goes on
        at += 1
    return at, at + 2 + (packet[at] << 8 | packet[at + 1])


def with_topic(first: int, field: bytes, rest: bytes) -> bytes:
    """A PUBLISH: its first byte, the topic name with its length before it, and what follows that."""
    return b"".join((bytes((first,)), encode_variable_integer(len(field) + len(rest)), field, rest))


def connack_reason(code: int) -> str:
    return _CONNACK_REASONS.get(code) or reason(code)


def reason(code: int) -> str:
    try:
        return ReasonCode(code).name.lower().replace("_", " ")
    except ValueError:
        return f"code {code}"
