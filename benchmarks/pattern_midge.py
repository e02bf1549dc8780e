"""midge as one of the systems of `patterns.py`: with a client of a few lines, and with paho-mqtt as it is.
Knows MQTT; the figures are made elsewhere.
"""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pattern_systems import HOST, QUEUE, Process, Stop, Told, age, free_port, payload

from midge.protocol import packets as p
from midge.protocol.decoder import Decoder
from midge.protocol.encoder import encode


class Mqtt:
    """A client of few lines: what it costs is mostly the broker's. 3.1.1, QoS 1."""

    def __init__(self, port: int, name: str, window: int = 0) -> None:
        self._socket = socket.create_connection((HOST, port), 30)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._decoder = Decoder("client", 5)
        properties: p.Properties = {"receive_maximum": window} if window else {}
        self.send(encode(p.Connect(name, True, 0, 5, properties=properties), 5))
        self.packets()

    def send(self, data: bytes) -> None:
        try:
            self._socket.sendall(data)
        except OSError:
            raise Stop from None

    def packets(self) -> list[Any]:
        """At least one."""
        while True:
            try:
                data = self._socket.recv(65_536)
            except OSError:
                raise Stop from None
            if not data:
                raise Stop
            found: list[Any] = []
            for packet in self._decoder.receive_data(data):
                found += packet.publishes(5) if type(packet) is p.PublishRun else [packet]
            if found:
                return found


class Midge:
    name = "midge, QoS 1"

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = free_port()

    @staticmethod
    def missing() -> str:
        return ""

    def start(self) -> Process:
        command = [sys.executable, "-m", "midge", "broker", "--port", str(self.port), "--data", str(self.directory)]
        return Process([*command, "--log-level", "warning"], self.port)

    def produce(self, count: int, size: int, window: int, told: Told, pause_s: float = 0) -> None:
        client = Mqtt(self.port, "producer")
        sent = confirmed = 0
        while confirmed < count:
            batch = []
            while sent < count and sent - confirmed < window:
                sent += 1
                packet_id = sent % 65_535 + 1
                publish = p.Publish(f"$queue/{QUEUE}", payload(size, sent), 1, False, False, packet_id, None)
                batch.append(encode(publish, 5))
            if batch:
                client.send(b"".join(batch))
            confirmed += len(client.packets())
            told(confirmed)
            if pause_s:
                time.sleep(pause_s)

    def consume(self, count: int, prefetch: int, took: Callable[[bytes], None]) -> None:
        client = Mqtt(self.port, "consumer", prefetch)
        client.send(encode(p.Subscribe(1, [p.Subscription(f"$queue/{QUEUE}", 1)], None), 5))
        while count > 0:
            answers = []
            for packet in client.packets():
                if type(packet) is p.Publish:
                    took(packet.payload)
                    count -= 1
                    answers.append(b"\x40\x02" + packet.packet_id.to_bytes(2, "big"))
            client.send(b"".join(answers))
        time.sleep(0.2)  # so that the last acknowledgement is read

    def respond(self) -> None:
        client = Mqtt(self.port, "responder")
        client.send(encode(p.Subscribe(1, [p.Subscription("ask", 0)], None), 5))
        while True:
            for packet in client.packets():
                if type(packet) is p.Publish:
                    topic = packet.properties["response_topic"]
                    client.send(encode(p.Publish(topic, packet.payload, 0, False, False, 0, None), 5))

    def request(self, count: int, size: int) -> list[float]:
        client = Mqtt(self.port, "requester")
        client.send(encode(p.Subscribe(1, [p.Subscription("answers/1", 0)], None), 5))
        client.packets()
        times = []
        properties: p.Properties = {"response_topic": "answers/1", "correlation_data": b"1"}
        for _ in range(count):
            client.send(encode(p.Publish("ask", payload(size), 0, False, False, 0, properties), 5))
            times.append(age(client.packets()[0].payload))
        return times


class MidgePaho(Midge):
    """The same broker; the client is paho-mqtt as it is."""

    name = "midge, QoS 1, paho-mqtt"

    @staticmethod
    def _client(name: str) -> Any:
        import paho.mqtt.client as mqtt

        client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, name, protocol=mqtt.MQTTv5, reconnect_on_failure=False)
        client.on_socket_open = lambda _client, _data, opened: opened.setsockopt(
            socket.IPPROTO_TCP, socket.TCP_NODELAY, 1
        )
        return client

    def produce(self, count: int, size: int, window: int, told: Told, pause_s: float = 0) -> None:
        client = self._client("producer")
        client.max_inflight_messages_set(window)
        confirmed = 0

        def on_publish(*_: Any) -> None:
            nonlocal confirmed
            confirmed += 1
            told(confirmed)

        client.on_publish = on_publish
        client.connect(HOST, self.port)
        client.loop_start()
        while not client.is_connected():
            time.sleep(0.01)
        for sent in range(1, count + 1):
            client.publish(f"$queue/{QUEUE}", payload(size, sent), 1)
            while sent - confirmed > window:
                if not client.is_connected():
                    raise Stop
                time.sleep(0.0005)
            if pause_s:
                time.sleep(pause_s)
        while confirmed < count:
            time.sleep(0.01)

    def consume(self, count: int, prefetch: int, took: Callable[[bytes], None]) -> None:
        import paho.mqtt.client as mqtt

        client = self._client("consumer")
        left = count

        def on_message(_client: Any, _data: Any, message: mqtt.MQTTMessage) -> None:
            nonlocal left
            took(message.payload)
            left -= 1

        client.on_message = on_message
        properties = mqtt.Properties(mqtt.PacketTypes.CONNECT)
        properties.ReceiveMaximum = prefetch
        client.connect(HOST, self.port, properties=properties)
        client.subscribe(f"$queue/{QUEUE}", qos=1)
        while left > 0:
            client.loop()
        for _ in range(5):
            client.loop(0.02)

    def respond(self) -> None:
        client = self._client("responder")
        client.on_message = lambda _client, _data, message: client.publish(
            message.properties.ResponseTopic, message.payload
        )
        client.connect(HOST, self.port)
        client.subscribe("ask")
        client.loop_forever()

    def request(self, count: int, size: int) -> list[float]:
        import paho.mqtt.client as mqtt

        client = self._client("requester")
        times: list[float] = []
        client.on_message = lambda _client, _data, message: times.append(age(message.payload))
        client.connect(HOST, self.port)
        client.subscribe("answers/1")
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            client.loop(0.05)
        properties = mqtt.Properties(mqtt.PacketTypes.PUBLISH)
        properties.ResponseTopic = "answers/1"
        for number in range(count):
            client.publish("ask", payload(size), properties=properties)
            while len(times) <= number:
                client.loop(1)
        return times
