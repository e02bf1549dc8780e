"""PUBLISH to one client: what it may be sent of a message, in its version, at its size, with what is its own.
Knows neither routes nor queues, nor when the bytes leave.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from midge.core.message import Message

if TYPE_CHECKING:
    from midge.core.connection import Connection
    from midge.core.session import Delivery

_PACKET_ID = struct.Struct("!H")


def send_publish(connection: Connection, delivery: Delivery, now: float, dup: bool) -> bool:
    """PUBLISH at QoS 1 or 2; False, and nothing sent, if the client takes no packet of that size."""
    message = delivery.message
    if connection.version == 5 and (delivery.identifiers or connection.sent_aliases is not None):
        head, tail = _own_parts(connection, message, delivery.qos, delivery.retain, delivery.identifiers, now)
    else:
        head, tail = message.parts(connection.version, delivery.qos, delivery.retain, now)
    if len(head) + len(tail) + 2 > connection.max_packet_size:
        return False
    if dup:  # [MQTT-3.3.1-1]
        head = bytes((head[0] | 0x08,)) + head[1:]
    counters = connection.broker.counters
    counters.publish_sent += 1
    counters.publish_bytes_sent += len(message.payload)
    if not connection.out:
        connection.broker.output_ready(connection)
    connection.out.append(b"".join((head, _PACKET_ID.pack(delivery.packet_id), tail)))
    return True


def send_qos0(connection: Connection, message: Message, retain: bool, identifiers: tuple[int, ...], now: float) -> None:
    """PUBLISH at QoS 0: dropped and counted if the client reads too slowly."""
    if connection.version == 5 and (identifiers or connection.sent_aliases is not None):
        head, tail = _own_parts(connection, message, 0, retain, identifiers, now)
    else:
        head, tail = message.parts(connection.version, 0, retain, now)
    data = head + tail
    if len(data) > connection.max_packet_size:
        return
    if connection.is_paused:
        if connection.output_bytes + len(data) > connection.broker.limits.max_output_bytes:
            connection.broker.counters.dropped_output_full += 1
            return
        connection.output_bytes += len(data)
    counters = connection.broker.counters
    counters.publish_sent += 1
    counters.publish_bytes_sent += len(message.payload)
    connection.send_bytes(data)


def _own_parts(
    connection: Connection, message: Message, qos: int, retain: bool, identifiers: tuple[int, ...], now: float
) -> tuple[bytes, bytes]:
    """A PUBLISH that is this client's own (5.0): its subscription identifiers, our topic aliases."""
    aliases = connection.sent_aliases
    if aliases is None or connection.is_paused:  # paused: it may yet be dropped, and an alias with it
        return message.parts_for(qos, retain, identifiers, now)
    alias, is_known = aliases.find(message.topic)
    parts = message.parts_for(qos, retain, identifiers, now, alias, is_known)
    if alias and not is_known:
        if len(parts[0]) + len(parts[1]) + 2 > connection.max_packet_size:
            return message.parts_for(qos, retain, identifiers, now)  # it may fit without
        aliases.sent(message.topic, alias)
    return parts
