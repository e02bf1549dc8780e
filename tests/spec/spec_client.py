"""A client that does one thing at a time, and illegal ones too, over a real socket.

Knows the codec, which the vectors test; keeps no session and answers nothing by itself.
"""

from __future__ import annotations

import socket
from typing import Any, TypeVar

from peers import Disconnected, Peer

from midge.protocol import packets as p
from midge.protocol.decoder import Decoder
from midge.protocol.encoder import encode

TIMEOUT_S = 5.0
_Packet = TypeVar("_Packet")


class Client(Peer):
    """Connected when made, and with `accepted` (the default) let in; `connack` is the answer."""

    def __init__(
        self,
        port: int,
        version: int,
        client_id: str,
        *,
        is_accepted: bool = True,
        clean_start: bool = True,
        keep_alive_s: int = 60,
        **connect: Any,
    ) -> None:
        super().__init__(client_id)
        self.version = version
        self.open(port)
        self.send(p.Connect(client_id, clean_start, keep_alive_s, version, **connect))
        if is_accepted:
            self.connack = self.expect(p.Connack)
            assert self.connack.reason_code == 0, self.connack

    def open(self, port: int) -> None:
        self._decoder = Decoder("client", self.version)
        self._packets = []
        self.socket = socket.create_connection(("127.0.0.1", port), TIMEOUT_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, *packets: p.Packet) -> None:
        self.send_raw(b"".join(encode(packet, self.version) for packet in packets))

    def send_raw(self, data: bytes) -> None:
        assert self.socket is not None
        self.socket.sendall(data)

    def expect(self, kind: type[_Packet]) -> _Packet:
        """The next packet, which must be of *kind*."""
        packet = self.receive(TIMEOUT_S)
        assert type(packet) is kind, f"{kind.__name__} expected, received {packet!r}"
        return packet

    def until_ping(self) -> list[Any]:
        """What comes before the PINGRESP to a PINGREQ sent now."""
        self.send(p.Pingreq())
        received: list[Any] = []
        while not received or type(received[-1]) is not p.Pingresp:
            received.append(self.receive(TIMEOUT_S))
            assert received[-1] is not None, received
        return received[:-1]

    def until_closed(self, timeout_s: float = TIMEOUT_S) -> list[Any]:
        """What comes before the broker closes the connection, which it must within *timeout_s*."""
        received: list[Any] = []
        try:
            while True:
                received.append(self.receive(timeout_s))
                assert received[-1] is not None, f"still open after {received[:-1]}"
        except Disconnected:
            self.close()
            return received

    def expect_disconnect(self, reason_code: int, timeout_s: float = TIMEOUT_S) -> None:
        """5.0: DISCONNECT with that reason, and nothing else; 3.1.1: nothing. Then the connection is closed."""
        received = self.until_closed(timeout_s)
        expected = [p.Disconnect(reason_code)] if self.version == 5 else []
        assert received == expected, received

    def leave(self, reason_code: int = 0, **properties: Any) -> None:
        """DISCONNECT, and wait until the broker has closed, so that what follows finds the client gone."""
        self.send(p.Disconnect(reason_code, properties or None))
        assert self.until_closed() == []

    def subscribe(self, topic_filter: str, qos: int = 0, packet_id: int = 1, **options: Any) -> int:
        """The reason code of SUBACK. `identifier`: the subscription identifier."""
        identifier = options.pop("identifier", None)
        properties: Any = {"subscription_identifier": [identifier]} if identifier else None
        self.send(p.Subscribe(packet_id, [p.Subscription(topic_filter, qos, **options)], properties))
        suback = self.expect(p.Suback)
        assert suback.packet_id == packet_id
        return suback.reason_codes[0]

    def unsubscribe(self, *filters: str) -> p.Unsuback:
        self.send(p.Unsubscribe(1, list(filters)))
        return self.expect(p.Unsuback)

    def publish(self, topic: str, payload: bytes = b"", qos: int = 0, retain: bool = False, packet_id: int = 1,
                dup: bool = False, **properties: Any) -> Any:
        """The whole exchange; the answer (PUBACK, PUBCOMP or a refusing PUBREC), None at QoS 0."""
        packet_id = packet_id if qos else 0
        self.send(p.Publish(topic, payload, qos, retain, dup, packet_id, properties or None))
        if not qos:
            assert self.until_ping() == []  # it has been taken
            return None
        answer: Any = self.expect(p.Puback if qos == 1 else p.Pubrec)
        assert answer.packet_id == packet_id
        if qos == 2 and answer.reason_code < 0x80:
            self.send(p.Pubrel(packet_id))
            answer = self.expect(p.Pubcomp)
            assert answer.packet_id == packet_id
        return answer

    def take(self) -> p.Publish:
        """The next message, acknowledged to the end."""
        message = self.expect(p.Publish)
        if message.qos == 1:
            self.send(p.Puback(message.packet_id))
        elif message.qos == 2:
            self.send(p.Pubrec(message.packet_id))
            later: list[p.Publish] = []  # that were sent before PUBREC came
            while type(packet := self.receive(TIMEOUT_S)) is p.Publish:
                later.append(packet)
            assert packet == p.Pubrel(message.packet_id), packet
            self._packets[:0] = later
            self.send(p.Pubcomp(message.packet_id))
        return message
