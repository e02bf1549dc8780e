"""The laptop's connection to a broker, for updates: paho-mqtt on a thread of its own.
Knows nothing of what is sent.
"""

from __future__ import annotations

import os
import ssl
import threading
from collections.abc import Callable, Mapping
from urllib.parse import unquote, urlsplit

from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from midge.boards.simulate import BoardError

_CONNECT_S = 10.0


class BrokerLink:
    """Use it as a context manager. Lost, the connection is made again, with its subscriptions."""

    def __init__(self, url: str, cafile: str | None = None, environ: Mapping[str, str] = os.environ) -> None:
        """*url*: mqtt://[USER@]HOST[:PORT] or mqtts://...; the password is in $MIDGE_PASSWORD."""
        parts = urlsplit(url if "://" in url else f"mqtt://{url}")
        try:
            port = parts.port
        except ValueError:
            port = -1
        if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname or port == -1:
            raise BoardError(f"{url}: not a broker's address, as mqtt://192.168.1.10:1883")
        self._host = parts.hostname
        self._port = port or (8883 if parts.scheme == "mqtts" else 1883)
        self._handlers: dict[str, Callable[[str, bytes, bool], None]] = {}
        self._answered = threading.Event()
        self._refusal: str | None = None
        self._client = client = Client(CallbackAPIVersion.VERSION2)
        client.on_connect, client.on_message, client.on_disconnect = self._on_connect, self._on_message, self._on_lost
        if parts.username:
            client.username_pw_set(unquote(parts.username), environ.get("MIDGE_PASSWORD"))
        if parts.scheme == "mqtts":
            client.tls_set_context(ssl.create_default_context(cafile=cafile))

    def __enter__(self) -> BrokerLink:
        where = f"mqtt://{self._host}:{self._port}"
        try:
            self._client.connect(self._host, self._port, keepalive=30)
        except OSError as error:
            raise BoardError(f"{where}: {error.strerror or error}") from None
        self._client.loop_start()
        if not self._answered.wait(_CONNECT_S) or self._refusal:
            self.__exit__()
            raise BoardError(f"{where}: {self._refusal or 'no answer'}")
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def publish(self, topic: str, payload: bytes) -> None:
        self._client.publish(topic, payload, qos=1)

    def subscribe(self, topic: str, on_message: Callable[[str, bytes, bool], None]) -> None:
        self._handlers[topic] = on_message
        self._client.subscribe(topic, qos=1)

    # ---- paho's thread ----

    def _on_connect(
        self, client: Client, _: object, flags: ConnectFlags, reason: ReasonCode, properties: Properties | None
    ) -> None:
        if reason.is_failure:
            self._refusal = f"refused: {reason}"
        for topic in self._handlers:
            client.subscribe(topic, qos=1)
        self._answered.set()

    def _on_message(self, client: Client, _: object, message: MQTTMessage) -> None:
        handler = self._handlers.get(message.topic)
        if handler is not None:
            handler(message.topic, bytes(message.payload), message.retain)

    def _on_lost(
        self, client: Client, _: object, flags: DisconnectFlags, reason: ReasonCode, properties: Properties | None
    ) -> None:
        if not self._answered.is_set():
            self._refusal = f"closed the connection: {reason}"
            self._answered.set()
