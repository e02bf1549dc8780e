"""The bounds of everything that a client could otherwise make grow, and the counters that show when one was met.
Knows nothing of who sets them; the configuration file does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

QueueFull = Literal["drop-oldest", "reject", "wait"]


@dataclass(slots=True)
class Limits:
    """Defaults are for a laptop or a Raspberry Pi; each says where it comes from."""

    # bytes of a whole packet. Mosquitto: unlimited by default (268 MB by the encoding); EMQX: 1 MB.
    # Room for a photograph of a camera board, not for a client that wants our memory.
    max_packet_size: int = 2_000_000

    # messages at QoS 1 and 2 that wait for one session. Mosquitto: 1,000; EMQX: 1,000.
    max_queued_messages: int = 1000
    # bytes of payload and topic that wait for one session. Mosquitto: no limit; ours must have one.
    max_queued_bytes: int = 64_000_000

    # what becomes of a message for a session whose queue is full: see midge.core.pressure. Mosquitto drops the
    # newest, EMQX the oldest, both with success to the publisher; NATS and RabbitMQ let one choose.
    queue_full: QueueFull = "drop-oldest"

    # bytes of memory for messages that wait in queues and for retained ones, half for each; what is beyond
    # lives on disk only. Without a store there is nowhere else: then the limits above are what bounds it.
    # Mosquitto and EMQX keep all of it in memory.
    max_message_memory: int = 128_000_000

    # messages at QoS 1 and 2 that are sent and not yet acknowledged, per session: the window of a
    # client that names no Receive Maximum (every 3.1.1 client). Mosquitto: 20; EMQX: 32. A bridge that names one may
    # have `receive_maximum`: see `admission.greet`.
    max_inflight_messages: int = 20

    # messages at QoS 1 and 2 that a client may send without our acknowledgement (5.0 Receive Maximum).
    # Mosquitto announces 20; group commit wants more under way to share one write to disk.
    receive_maximum: int = 1000

    # 5.0 topic aliases that a client may define for what it sends. Mosquitto: 10; EMQX: 65,535.
    topic_alias_maximum: int = 64

    # s; a client that asks for more is told in CONNACK (5.0). 65,535 is all that CONNECT can ask for.
    max_keep_alive: int = 65_535

    # s between a connection and its CONNECT, and until it is let in. Mosquitto has none by default; NATS 2 s,
    # EMQX 15 s.
    connect_timeout: int = 5

    # s that the session of an absent client is kept at most; 0xFFFFFFFF: for ever, as 3.1.1 has it.
    max_session_expiry: int = 0xFFFF_FFFF

    # bytes that wait in memory for one slow connection, beyond the kernel's buffers. Past it, QoS 0 is
    # dropped and counted; QoS 1 and 2 are bounded by their window. NATS: 64 MB, then it disconnects.
    max_output_bytes: int = 8_000_000

    # connections in total. Most systems allow 1,024 file descriptors to a process without being asked.
    max_connections: int = 10_000
    # of these, from one address; of IPv6 from one /64. This machine's own aren't counted. Room for all boards
    # behind one router; ten of such can't lock out the rest. Mosquitto, EMQX: no limit.
    max_connections_per_address: int = 1000

    # packets and bytes per second from one connection, over any second or so; 0: no limit. Who sends more is
    # read from more slowly, and disconnected (0x96) once it is RATE_DEBT_MAX_S ahead. Off, as in Mosquitto and
    # EMQX: memory is bounded without them, and no figure fits both a meter and a camera.
    max_packets_per_second: int = 0
    max_bytes_per_second: int = 0

    # subscriptions of one session. Each is about 500 bytes. Mosquitto, EMQX: no limit.
    max_subscriptions: int = 10_000

    # durable queues ($queue/NAME) that nobody has configured: each may hold what `QueueSettings` allows.
    max_queues: int = 100

    # levels of a topic name or filter. Mosquitto: 200, fixed; EMQX: 128. Each is a node of a trie, 200 bytes.
    max_topic_levels: int = 200

    # retained messages, and bytes of their topics and payloads. Mosquitto, EMQX: no limit. Past it what would
    # need more room is refused (0x97); what replaces or removes a message is not.
    max_retained_messages: int = 1_000_000
    max_retained_bytes: int = 1_000_000_000


# Those whose excess is refused. What exceeds the others is dropped, which has counters of its own, waits (the
# windows), or is said in CONNACK.
COUNTED_LIMITS = (
    "max_packet_size",
    "receive_maximum",
    "topic_alias_maximum",
    "connect_timeout",
    "max_connections",
    "max_connections_per_address",
    "max_failed_logins",  # of [access]
    "max_packets_per_second",
    "max_bytes_per_second",
    "max_subscriptions",
    "max_queues",
    "max_topic_levels",
    "max_retained_messages",
    "max_retained_bytes",
)


class Counters:
    """What happened since the start; read by `$SYS/` and the metrics. Plain integers that only grow."""

    __slots__ = (
        "bytes_received",
        "bytes_sent",
        "connections",
        "dropped_expired",
        "dropped_output_full",
        "dropped_queue_full",
        "limits_met",
        "messages_received",
        "messages_sent",
        "missed_by_history",
        "protocol_errors",
        "publish_bytes_received",
        "publish_bytes_sent",
        "publish_received",
        "publish_sent",
        "refused",
        "refused_queue_full",
        "refused_store_failing",
        "sessions_expired",
        "sessions_maximum",
        "sockets",
    )

    def __init__(self) -> None:
        self.bytes_received = 0  # bytes, from all connections
        self.bytes_sent = 0  # bytes, to all connections
        self.messages_received = 0  # packets of any kind, from all connections
        self.messages_sent = 0  # packets of any kind; counted by whoever writes them
        self.sockets = 0  # connections that were accepted, with or without CONNECT; counted by their owner
        self.connections = 0  # CONNECT packets that were accepted
        self.refused = 0  # CONNECT packets that were refused
        self.refused_queue_full = 0  # messages that were not taken: queue_full = "reject"
        self.refused_store_failing = 0  # messages that were not taken: the disk is full
        self.protocol_errors = 0  # connections closed for a malformed or illegal packet
        self.publish_received = 0  # PUBLISH packets from clients, duplicates of QoS 2 not counted
        self.publish_sent = 0  # PUBLISH packets to clients
        self.publish_bytes_received = 0  # their payloads (of plain ones, see `forwarding`)
        self.publish_bytes_sent = 0  # their payloads
        self.sessions_expired = 0  # sessions whose client didn't come back in time
        self.sessions_maximum = 0  # the most that there were at a time
        self.dropped_queue_full = 0  # QoS 1 and 2: the oldest of a full queue
        self.dropped_output_full = 0  # QoS 0: to a connection that does not read
        self.missed_by_history = 0  # QoS 0: not kept for replay, since the store couldn't be written
        self.dropped_expired = 0  # messages whose Message Expiry Interval passed in a queue

        self.limits_met = dict.fromkeys(COUNTED_LIMITS, 0)  # how often, by the limit's name

    def meet(self, limit: str) -> None:
        self.limits_met[limit] += 1

    @property
    def dropped(self) -> int:
        """Messages that were dropped, whatever the cause."""
        return self.dropped_queue_full + self.dropped_output_full + self.dropped_expired
