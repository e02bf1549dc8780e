"""What the broker says of itself: the `$SYS/` topics, with Mosquitto's names.
Knows the counters, not what made them grow.
"""

from __future__ import annotations

from midge import __version__
from midge.core.broker import Broker
from midge.core.message import Message


class SysTopics:
    """Publishes what changed. Retained, so that a new subscriber has them at once, but never stored."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._published: dict[str, str] = {}
        self._started: float | None = None  # s since the epoch

    def publish(self, now: float) -> None:
        if self._started is None:
            self._started = now
        for name, value in self._values(now).items():
            if self._published.get(name) != value:
                self._published[name] = value
                message = Message(f"$SYS/broker/{name}", value.encode(), 0, retain=True)
                self._broker.publish(message, None, now)

    def _values(self, now: float) -> dict[str, str]:
        broker = self._broker
        counters = broker.counters
        connected = sum(1 for connection in broker.connections if connection.session is not None)
        total = len(broker.sessions)
        assert self._started is not None
        numbers = {
            "clients/connected": connected,
            "clients/disconnected": total - connected,
            "clients/total": total,
            "connections/refused": counters.refused,
            "connections/protocol errors": counters.protocol_errors,
            "bytes/received": counters.bytes_received,
            "bytes/sent": counters.bytes_sent,
            "publish/messages/received": counters.publish_received,
            "publish/messages/sent": counters.publish_sent,
            "publish/messages/dropped": counters.dropped,
            "publish/messages/dropped/queue full": counters.dropped_queue_full,
            "publish/messages/dropped/slow reader": counters.dropped_output_full,
            "publish/messages/dropped/expired": counters.dropped_expired,
            "subscriptions/count": broker.routing.count,
            "retained messages/count": broker.retained.count,
        }
        values = {name: str(number) for name, number in numbers.items()}
        values["version"] = f"midge version {__version__}"
        values["uptime"] = f"{int(now - self._started)} seconds"
        return values
