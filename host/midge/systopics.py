"""The `$SYS/` topics: publishes what the metrics say, with Mosquitto's names, at an interval.
Knows names and averages; the numbers come from `metrics`.

Retained, so that a new subscriber has them at once, but in the broker's memory only: the store has none of them,
so none outlives the broker, and what tells of something that has gone (a bridge) is cleared.
"""

from __future__ import annotations

import math

from midge import __version__
from midge.core.broker import Broker
from midge.core.limits import Counters
from midge.core.message import Message
from midge.metrics import Number, read_all

PREFIX = "$SYS/broker/"

# min, Mosquitto's: over which its load averages fade.
_WINDOWS = (1, 5, 15)

# What load/NAME/1min is an average of, per minute.
_LOADS = {
    "messages/received": lambda counters: counters.messages_received,
    "messages/sent": lambda counters: counters.messages_sent,
    "publish/dropped": lambda counters: counters.dropped,
    "publish/received": lambda counters: counters.publish_received,
    "publish/sent": lambda counters: counters.publish_sent,
    "bytes/received": lambda counters: counters.bytes_received,
    "bytes/sent": lambda counters: counters.bytes_sent,
    "sockets": lambda counters: counters.sockets,
    "connections": lambda counters: counters.connections,
}


class LoadAverage:
    """What a counter grew by per minute, fading over 1, 5 and 15 minutes, as the kernel's load average does."""

    def __init__(self) -> None:
        self.averages = [0.0] * len(_WINDOWS)
        self._last = 0

    def update(self, count: int, elapsed_s: float) -> None:
        per_minute = (count - self._last) * 60 / elapsed_s
        self._last = count
        for number, window in enumerate(_WINDOWS):
            fading = math.exp(-elapsed_s / (60 * window))
            self.averages[number] = per_minute + fading * (self.averages[number] - per_minute)


class SysTopics:
    """Publishes what has changed since the last time."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._published: dict[str, str] = {}
        self._loads = {name: LoadAverage() for name in _LOADS}
        self._started: float | None = None  # s since the epoch; set by the first `publish`, as the next
        self._updated = 0.0

    def publish(self, now: float) -> None:
        if self._started is None:
            self._started = self._updated = now
        values = self._values(now)
        for topic in [topic for topic in self._published if topic.startswith("queues/") and topic not in values]:
            self.set(topic, "", now)  # that queue is gone
        for topic, value in values.items():
            self.set(topic, value, now)

    def set(self, topic: str, value: str, now: float) -> None:
        """Publish *value* for *topic*, below `$SYS/broker/`, if it is another one; "": there is none any more."""
        if self._published.get(topic, "") == value:
            return
        if value:
            self._published[topic] = value
        else:
            del self._published[topic]
        # QoS 0: it never waits in a session's queue, where it would be stale and go into the store.
        self._broker.publish(Message(PREFIX + topic, value.encode(), 0, retain=True), None, now)

    def clear(self, now: float) -> None:
        """There are none any more."""
        for topic in list(self._published):
            self.set(topic, "", now)

    def _values(self, now: float) -> dict[str, str]:
        assert self._started is not None
        values = {
            "version": f"midge version {__version__}",
            "uptime": f"{int(now - self._started)} seconds",
        }
        for metric, number in read_all(self._broker):
            if metric.topic:
                values[metric.topic] = _text(number)
        self._update_loads(self._broker.counters, now)
        for name, load in self._loads.items():
            for window, average in zip(_WINDOWS, load.averages, strict=True):
                values[f"load/{name}/{window}min"] = f"{average:.2f}"
        return values

    def _update_loads(self, counters: Counters, now: float) -> None:
        elapsed_s = now - self._updated
        if elapsed_s <= 0:
            return
        self._updated = now
        for name, load in self._loads.items():
            load.update(_LOADS[name](counters), elapsed_s)


def _text(number: Number) -> str:
    return str(number) if isinstance(number, int) else f"{number:.2f}"
