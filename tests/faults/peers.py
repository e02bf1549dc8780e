"""A publisher and a subscriber that keep their sessions as the specification asks, over real sockets.

They are what a correct client is, so that whatever is lost or doubled was lost or doubled by the broker:
unacknowledged packets are sent again with DUP and the same packet identifier, QoS 2 identifiers are
remembered in both directions. Payloads are running numbers.
"""

from __future__ import annotations

import socket
import time
from collections import OrderedDict
from typing import Any

from midge.protocol import packets as p
from midge.protocol.decoder import Decoder
from midge.protocol.encoder import encode

VERSION = 4
TOPICS = 4
# s for what certainly happens: it takes milliseconds, or many seconds on a machine that does ten other things.
DEADLINE_S = 60.0


class Disconnected(Exception):
    """The broker is gone, or didn't answer in time."""


class Peer:
    """One client with a persistent session; `connect` again after each loss."""

    def __init__(self, client_id: str) -> None:
        self.client_id = client_id
        self.socket: socket.socket | None = None

    def connect(self, port: int, timeout_s: float = DEADLINE_S, clean_start: bool = False) -> p.Connack:
        self.close()
        self._decoder = Decoder("client", VERSION)
        self._packets: list[Any] = []
        self.socket = socket.create_connection(("127.0.0.1", port), timeout_s)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.send(p.Connect(self.client_id, clean_start, keep_alive_s=60))
        connack = self.receive(timeout_s)
        assert isinstance(connack, p.Connack) and connack.reason_code == 0, connack
        return connack

    def close(self) -> None:
        if self.socket is not None:
            self.socket.close()
            self.socket = None

    def send(self, *packets: p.Packet) -> None:
        assert self.socket is not None
        try:
            self.socket.sendall(b"".join(encode(packet, VERSION) for packet in packets))
        except OSError as error:
            raise Disconnected(str(error)) from None

    def receive(self, timeout_s: float) -> Any:
        """The next packet; None if none comes in time."""
        assert self.socket is not None
        deadline = time.monotonic() + timeout_s
        while not self._packets:
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            self.socket.settimeout(left)
            try:
                data = self.socket.recv(65_536)
            except TimeoutError:
                return None
            except OSError as error:
                raise Disconnected(str(error)) from None
            if not data:
                raise Disconnected("closed by the broker")
            self._packets += self._decoder.receive_data(data)
            assert self._decoder.error is None, self._decoder.error
        return self._packets.pop(0)


class Publisher(Peer):
    """Publishes 0, 1, 2, ... with at most *window* unacknowledged; "{}" in *topic* is the number modulo TOPICS."""

    def __init__(self, client_id: str, topic: str, qos: int, window: int = 10, retain: bool = False) -> None:
        super().__init__(client_id)
        self.topic = topic
        self.qos = qos
        self.window = window
        self.retain = retain
        self.next_number = 0
        self.acknowledged: list[int] = []  # numbers that the broker took responsibility for
        self._under_way: OrderedDict[int, tuple[int, bool]] = OrderedDict()  # identifier: number, PUBREC came
        self._last_packet_id = 0

    def resume(self, port: int) -> None:
        """Connect, and send again what is unacknowledged, in order."""
        self.connect(port)
        for packet_id, (number, is_received) in self._under_way.items():
            self.send(p.Pubrel(packet_id) if is_received else self._publish(packet_id, number, dup=True))

    def _publish(self, packet_id: int, number: int, dup: bool = False) -> p.Publish:
        topic = self.topic.format(number % TOPICS)
        return p.Publish(topic, b"%d" % number, self.qos, self.retain, dup, packet_id)

    def step(self, may_publish: bool = True, timeout_s: float = 1.0) -> bool:
        """Fill the window, then take one packet; False if nothing is under way or came in time."""
        while may_publish and len(self._under_way) < self.window:
            self._last_packet_id = self._last_packet_id % 65_535 + 1
            self._under_way[self._last_packet_id] = (self.next_number, False)
            self.next_number += 1
            self.send(self._publish(self._last_packet_id, self.next_number - 1))
        if not self._under_way:
            return False
        packet = self.receive(timeout_s)
        if packet is None:
            return False
        self._take(packet)
        return True

    def _take(self, packet: Any) -> None:
        number, _ = self._under_way.get(packet.packet_id, (-1, False))
        if isinstance(packet, p.Pubrec):
            self._under_way[packet.packet_id] = (number, True)
            self.send(p.Pubrel(packet.packet_id))
        elif isinstance(packet, p.Puback | p.Pubcomp):
            if self._under_way.pop(packet.packet_id, None) is not None:
                self.acknowledged.append(number)
        else:
            raise AssertionError(f"unexpected {packet!r}")

    def finish(self) -> None:
        """Until everything is acknowledged."""
        while self._under_way:
            assert self.step(may_publish=False, timeout_s=DEADLINE_S), f"unanswered: {list(self._under_way)}"


class Subscriber(Peer):
    """Acknowledges everything, and suppresses QoS 2 duplicates by their identifier as a client must."""

    def __init__(self, client_id: str, topic_filter: str, qos: int) -> None:
        super().__init__(client_id)
        self.topic_filter = topic_filter
        self.qos = qos
        self.granted: list[int] = []  # by SUBACKs to what was subscribed to later
        self.numbers: list[int] = []  # as they came; QoS 2: once released or first seen
        self._received: set[int] = set()  # QoS 2 identifiers between PUBLISH and PUBREL

    def resume(self, port: int) -> bool:
        """Connect, and subscribe if the session is new; session present."""
        connack = self.connect(port)
        if not connack.session_present:
            self._received.clear()
            self.send(p.Subscribe(1, [p.Subscription(self.topic_filter, self.qos)]))
            suback = self.receive(DEADLINE_S)
            assert isinstance(suback, p.Suback) and suback.reason_codes == [self.qos], suback
        return connack.session_present

    def subscribe(self, topic_filter: str) -> None:
        """To one more; until that is acknowledged."""
        before = len(self.granted)
        self.send(p.Subscribe(1, [p.Subscription(topic_filter, self.qos)]))
        while len(self.granted) == before:
            assert self.step(timeout_s=DEADLINE_S), f"no SUBACK for {topic_filter}"

    def take_all(self, acknowledged: list[int]) -> None:
        """Until all of these are there, and then what comes too often: no deadline of its own but that of a message
        which doesn't come at all."""
        while set(acknowledged) - set(self.numbers) and self.step(timeout_s=DEADLINE_S):
            pass
        while self.step(timeout_s=0.5):
            pass

    def step(self, timeout_s: float) -> bool:
        """Take one packet; False if none came in time."""
        packet = self.receive(timeout_s)
        if packet is None:
            return False
        if isinstance(packet, p.Suback):
            self.granted += packet.reason_codes
        elif isinstance(packet, p.Pubrel):
            self._received.discard(packet.packet_id)
            self.send(p.Pubcomp(packet.packet_id))
        elif isinstance(packet, p.Publish) and packet.qos == 2:
            if packet.packet_id not in self._received:
                self._received.add(packet.packet_id)
                self.numbers.append(int(packet.payload[:8]))
            self.send(p.Pubrec(packet.packet_id))
        elif isinstance(packet, p.Publish):
            self.numbers.append(int(packet.payload[:8]))
            if packet.qos:
                self.send(p.Puback(packet.packet_id))
        return True
