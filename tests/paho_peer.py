"""Paho's client, made to be waited for: what it is told arrives in queues with deadlines.

Knows nothing of which broker answers.
"""

import itertools
import queue
import socket
import threading
from collections.abc import Callable

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

TIMEOUT_S = 10
_numbers = itertools.count(1)


def properties(packet_type: str, **values: object) -> Properties:
    """`properties("PUBLISH", ContentType="text/plain")`, by Paho's names."""
    made = Properties(getattr(PacketTypes, packet_type))
    for name, value in values.items():
        setattr(made, name, value)
    return made


class Paho:
    """One Paho client in its own thread; what it is told arrives in queues that a test waits for."""

    def __init__(self, port: int, client_id: str | None = None, version: int = mqtt.MQTTv311,
                 clean: bool = True, keep_alive_s: int = 60, will: tuple | None = None,
                 username: str | None = None, password: str | None = None,
                 connect_properties: Properties | None = None, wait: bool = True):
        self.client_id = f"paho-{next(_numbers)}" if client_id is None else client_id
        self.port = port
        self.may_leave_a_session = not clean or connect_properties is not None
        self.messages: queue.Queue[mqtt.MQTTMessage] = queue.Queue()
        self.lost = threading.Event()
        self.lost_reason: int | None = None  # 5.0: the reason code of the server's DISCONNECT
        self._answers: queue.Queue = queue.Queue()
        options = {"clean_session": clean} if version != mqtt.MQTTv5 else {}
        self.client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, self.client_id, protocol=version,
                                  reconnect_on_failure=False, **options)
        if will:
            self.client.will_set(*will)
        if username is not None:
            self.client.username_pw_set(username, password)
        # Paho leaves Nagle's algorithm on, which costs 40 ms at every second small packet.
        self.client.on_socket_open = lambda _client, _data, opened: opened.setsockopt(
            socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.client.on_connect = lambda *answer: self._answers.put(answer[2:])
        self.client.on_subscribe = lambda *answer: self._answers.put(answer[2:])
        self.client.on_unsubscribe = lambda *answer: self._answers.put(answer[2:])
        self.client.on_message = lambda _client, _data, message: self.messages.put(message)
        self.client.on_disconnect = self._on_disconnect
        self.version = version
        options = {"clean_start": clean, "properties": connect_properties} if version == mqtt.MQTTv5 else {}
        self.client.connect("127.0.0.1", port, keep_alive_s, **options)
        self.client.loop_start()
        self.connect_reason = None
        if wait:
            flags, self.connect_reason, self.connack_properties = self._answers.get(timeout=TIMEOUT_S)
            self.session_present = bool(flags.session_present)

    def _on_disconnect(self, _client, _data, _flags, reason, _properties):
        if not self.lost.is_set():  # called again when the socket closes
            self.lost_reason = reason.value
        self.lost.set()

    def subscribe(self, *filters: str, qos: int = 0, options: mqtt.SubscribeOptions | None = None,
                  sub_properties: Properties | None = None) -> list[int]:
        """All filters in one SUBSCRIBE; returns when SUBACK is there, with its codes."""
        asked = options or (mqtt.SubscribeOptions(qos) if self.version == mqtt.MQTTv5 else qos)
        self.client.subscribe([(one, asked) for one in filters], properties=sub_properties)
        return [code.value for code in self._answers.get(timeout=TIMEOUT_S)[1]]

    def unsubscribe(self, topic_filter: str) -> list[int]:
        self.client.unsubscribe(topic_filter)
        return [code.value for code in self._answers.get(timeout=TIMEOUT_S)[1]]

    def publish(self, topic: str, payload: bytes | str = b"", qos: int = 0, retain: bool = False,
                pub_properties: Properties | None = None) -> None:
        """Returns when the QoS asked for is reached; for QoS 0 when the bytes are written."""
        done = self.client.publish(topic, payload, qos, retain, pub_properties)
        done.wait_for_publish(TIMEOUT_S)
        assert done.is_published(), f"no acknowledgement of {topic}"

    def receive(self, timeout_s: float = TIMEOUT_S) -> mqtt.MQTTMessage:
        return self.messages.get(timeout=timeout_s)

    def receive_all(self) -> list[mqtt.MQTTMessage]:
        """All that is on its way: what came before a marker that this client sends to itself."""
        marker = f"marker/{self.client_id}"
        self.subscribe(marker, qos=2)
        self.publish(marker, b"", 2)
        received = list(iter(self._until(marker), None))
        self.unsubscribe(marker)
        return received

    def _until(self, marker: str) -> Callable[[], mqtt.MQTTMessage | None]:
        def next_one() -> mqtt.MQTTMessage | None:
            message = self.receive()
            return None if message.topic == marker else message

        return next_one

    def disconnect(self) -> None:
        """In good order: DISCONNECT, then the connection closes."""
        self.client.disconnect()
        self.client.loop_stop()

    def stop_answering(self) -> None:
        """The connection stays open and silent: no PINGREQ goes out any more."""
        self.client.loop_stop()

    def cut(self) -> None:
        """The connection breaks without a DISCONNECT."""
        self.client.socket().shutdown(socket.SHUT_RDWR)
        assert self.lost.wait(TIMEOUT_S)
        self.client.loop_stop()


def sweep(port: int, client_ids: set[str]) -> None:
    """Ends the sessions of these clients and deletes what is retained, so that tests can share a broker."""
    for client_id in client_ids:
        Paho(port, client_id).disconnect()
    sweeper = Paho(port)
    sweeper.subscribe("#")
    for message in sweeper.receive_all():
        sweeper.publish(message.topic, b"", 1, retain=True)
    sweeper.disconnect()
