"""A message on its way through the broker: what was published, kept once however many sessions wait for it.
Knows how it is encoded for a subscriber, not who the subscribers are.
"""

from __future__ import annotations

from midge.protocol.encoder import publish_parts
from midge.protocol.packets import Properties, Publish, Will
from midge.protocol.properties import decode_properties, encode_properties

# What a store keeps of a message: plain values, as cheap to make and to encode as Python has it. Key, topic
# name, payload, QoS, retain, properties (encoded, None: none), when it expires (s since the epoch; None: never).
# Rows with one key are one message: its payload is kept once.
MessageRow = tuple[int, str, bytes, int, bool, bytes | None, float | None]

# Properties that travel with a message to its subscribers (MQTT 5.0 §3.3.2.3); topic alias and
# subscription identifier belong to one connection, the expiry interval is counted down by us.
_END_TO_END = (
    "payload_format_indicator",
    "content_type",
    "response_topic",
    "correlation_data",
    "user_property",
)
_NO_PROPERTIES = b"\x00"
_NO_PARTS = (b"", b"")


class Message:
    """One published message.

    `qos` and `retain` are the publisher's. `expires_at` is s since the epoch, None: never
    (MQTT 5.0 §3.3.2.3.3). `key` tells the store that several queues wait for one message; 0: none that
    lasts does (set by `Changes`).
    """

    __slots__ = (
        "_encoded",
        "_form",
        "_other_parts",
        "_parts",
        "expires_at",
        "key",
        "payload",
        "properties",
        "qos",
        "retain",
        "topic",
    )

    def __init__(
        self,
        topic: str,
        payload: bytes,
        qos: int,
        retain: bool = False,
        properties: Properties | None = None,
        expires_at: float | None = None,
    ) -> None:
        self.topic = topic
        self.payload = payload
        self.qos = qos
        self.retain = retain
        self.properties = properties
        self.expires_at = expires_at
        self.key = 0
        self._encoded = b""  # its properties as 5.0 has them, once somebody has asked
        # Encoded, by QoS << 4 | retain << 3 | version: mostly there is one form, and it needs no dictionary.
        self._form = -1
        self._parts = _NO_PARTS
        self._other_parts: dict[int, tuple[bytes, bytes]] | None = None

    @staticmethod  # not of a class that it is told: compiled, that would cost more than the rest
    def published(source: Publish, topic: str, now: float, version: int) -> Message:
        """The message in a PUBLISH of *version*; *topic* is its topic name with any alias resolved."""
        if source.properties:
            return Message.with_properties(source, topic, now)
        message = Message(topic, source.payload, source.qos, source.retain)
        if source.qos and not (source.retain or source.dup):
            wire, at = source.wire, source.packet_id_at
            if at:
                message.came_as(source.qos, version, wire[:at], wire[at + 2 :])
        return message

    def came_as(self, qos: int, version: int, head: bytes, tail: bytes) -> None:
        """What came is, but for the packet identifier between *head* and *tail*, what will be sent: no need to encode
        it again. Without retain, dup and properties."""
        self._form = (qos << 4) | version
        self._parts = (head, tail)

    @classmethod
    def with_properties(cls, source: Publish | Will, topic: str, now: float) -> Message:
        """The message in a will, or in a PUBLISH that may have properties."""
        properties = source.properties or {}
        if len(properties) == 1 and "user_property" in properties:  # a bridge's mark, mostly
            return cls(topic, source.payload, source.qos, source.retain, properties)
        kept = {name: properties[name] for name in _END_TO_END if name in properties}  # type: ignore[literal-required]
        expiry_s = properties.get("message_expiry_interval")
        return cls(
            topic,
            source.payload,
            source.qos,
            source.retain,
            kept or None,  # type: ignore[arg-type]
            None if expiry_s is None else now + expiry_s,
        )

    def set_properties(self, properties: Properties) -> None:
        """Other properties from now on: what was encoded with the former ones is not sent any more."""
        self.properties = properties
        self._encoded = b""
        self._form = -1
        self._other_parts = None

    def encoded_properties(self) -> bytes:
        """With their length before them. Those that travel with it: not when it expires."""
        if not self._encoded:
            self._encoded = encode_properties(self.properties, "PUBLISH") if self.properties else _NO_PROPERTIES
        return self._encoded

    @classmethod
    def restored(cls, row: MessageRow) -> Message:
        """The message in a row of the store."""
        key, topic, payload, qos, retain, encoded, expires_at = row
        properties = None if encoded is None else decode_properties(encoded, "PUBLISH")
        message = cls(topic, payload, qos, retain, properties, expires_at)
        message.key = key
        return message

    def is_expired(self, now: float) -> bool:
        return self.expires_at is not None and self.expires_at <= now

    def size(self) -> int:
        """bytes that it is counted with in a queue's limit."""
        return len(self.topic) + len(self.payload)

    def parts(self, version: int, qos: int, retain: bool, now: float) -> tuple[bytes, bytes]:
        """Its PUBLISH as (up to the packet identifier, after the packet identifier).

        Encoded once per protocol version, QoS and retain flag, and shared by all subscribers.
        """
        if version == 5 and self.expires_at is not None:
            return self.parts_for(qos, retain, (), now)
        form = (qos << 4) | (retain << 3) | version
        if form == self._form:
            return self._parts
        if self._other_parts is not None and form in self._other_parts:
            return self._other_parts[form]
        properties = self.encoded_properties() if version == 5 else _NO_PROPERTIES
        parts = publish_parts(self.topic, self.payload, properties, qos, retain, version)
        if self._form < 0:
            self._form, self._parts = form, parts
        elif self._other_parts is None:
            self._other_parts = {form: parts}
        else:
            self._other_parts[form] = parts
        return parts

    def parts_for(
        self,
        qos: int,
        retain: bool,
        identifiers: tuple[int, ...],
        now: float,
        alias: int = 0,
        is_alias_known: bool = False,
    ) -> tuple[bytes, bytes]:
        """As `parts`, with what is the subscriber's own (5.0): subscription identifiers, topic alias, time left."""
        properties: Properties = {}
        if self.properties:
            properties.update(self.properties)
        if self.expires_at is not None:
            # [MQTT-3.3.2-6]: the received value minus the time it has waited here, to the nearest second:
            # what is passed on at once keeps its value.
            properties["message_expiry_interval"] = max(1, int(self.expires_at - now + 0.5))
        if identifiers:
            properties["subscription_identifier"] = list(identifiers)
        if alias:
            properties["topic_alias"] = alias
        encoded = encode_properties(properties, "PUBLISH")
        return publish_parts("" if is_alias_known else self.topic, self.payload, encoded, qos, retain, 5)
