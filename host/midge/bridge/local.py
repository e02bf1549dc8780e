"""A bridge as a client of our own core, without a socket between them.
Knows the core's connection; what the packets mean to the other side is the link's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from midge.core.connection import Connection
from midge.core.passage import BRIDGE
from midge.core.session import NEVER_EXPIRES
from midge.core.session_limits import SessionRule
from midge.protocol import packets as p
from midge.protocol.encoder import encode

if TYPE_CHECKING:
    from midge.bridge.bridge import Bridge
    from midge.bridge.link import Link


class Local:
    """Opened with each connection to the remote broker, and for a moment at the start, so that our session is there
    (link None). It speaks the same version as the link, so that properties cross as they are."""

    def __init__(
        self,
        bridge: Bridge,
        link: Link | None,
        version: int,
        window: int | None = None,
        max_packet_size: int | None = None,
    ) -> None:
        """*window*, *max_packet_size* (bytes): what the remote broker takes; None: it hasn't said."""
        self._bridge = bridge
        self._link = link
        self._version = version
        self._core: Connection = bridge.broker.open(f"bridge {bridge.section.name}", self, bridge.now())
        self._core.is_trusted = True  # whoever wrote the configuration has already allowed it
        properties: p.Properties = {}
        if version == 5:
            properties = {
                "session_expiry_interval": NEVER_EXPIRES,
                "user_property": [(BRIDGE, "1")],
            }
            if window is not None:
                properties["receive_maximum"] = window
            if max_packet_size is not None:
                properties["maximum_packet_size"] = max_packet_size
        elif max_packet_size is not None:
            self._core.max_packet_size = max_packet_size  # 3.1.1 can't say it, but this client is ours
        section = bridge.section
        rule = SessionRule(
            bridge.local_client_id,
            max_queued_messages=section.max_queued_messages,
            max_queued_bytes=section.max_queued_bytes,
            queue_full=section.queue_full,
        )
        bridge.broker.limit_session(rule)
        # Our own session goes first, so that it is there when what it is owed has to be kept.
        connect = p.Connect(
            bridge.local_client_id, False, 0, version, is_bridge=version != 5, properties=properties
        )
        self._core.receive_data(encode(connect, version), bridge.now())
        self._core.plain_version = 0  # each PUBLISH is looked at by itself, so each has to come by itself

    def forget_received(self) -> None:
        """What the remote broker had under way is gone with its session; the same identifiers now belong to new
        messages."""
        session = self._core.session
        if session is not None:
            for packet_id in list(session.received):
                session.release(packet_id)

    def subscribe(self, tell_retained: bool) -> bool:
        """Subscribe to what goes out, and (*tell_retained*) have all of it that is retained sent. Returns whether
        something was subscribed to that wasn't before."""
        session = self._core.session
        if session is None:
            return False  # the core is shutting down
        wanted = self._bridge.outward.subscriptions()
        there = {name: subscription.qos for name, subscription in session.subscriptions.items()}
        stale = [name for name in there if name not in wanted]
        if stale:
            self.send(p.Unsubscribe(1, stale))
        missing = [
            p.Subscription(name, qos, True, True, 0 if tell_retained else 2)
            for name, qos in wanted.items()
            # Nobody keeps QoS 0 for it while it is away: it is told what is retained each time.
            if there.get(name) != qos or tell_retained or qos == 0
        ]
        if missing:
            self.send(p.Subscribe(1, missing, None))
        return any(there.get(name) != qos for name, qos in wanted.items())

    def retained_under_way(self) -> set[str]:
        """Topic names of retained messages, deletions too, that the remote broker has yet to acknowledge."""
        session = self._core.session
        if session is None:
            return set()
        owed = (*session.in_flight.values(), *session.queue.in_memory())
        return {delivery.message.topic for delivery in owed if delivery.retain}

    def send(self, *packets: p.Packet) -> None:
        self.send_all(list(packets))

    def send_all(self, packets: list[p.Packet | p.PublishRun]) -> None:
        self._core.receive_packets(packets, self._bridge.now())

    # -- midge.core.connection.Owner --

    def flush(self) -> None:
        data = self._core.data_to_send()
        link = self._link
        if link is None:
            return
        if data:
            link.from_local(data)  # a packet each
            link.flush()
        if self._core.is_closing and self._core.is_drained:
            link.local_closed(self._core.close_reason)

    def hold_reading(self, hold: bool) -> None:
        if self._link is not None:
            self._link.hold_reading(hold)

    def close(self) -> None:
        self._link = None
        self._core.lost(self._bridge.now())
        self._bridge.end_turn_soon()
