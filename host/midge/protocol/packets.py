"""The packets of MQTT, one small class each.
Knows neither bytes nor versions: what a version doesn't have is None, 0 or False, and ignored by the encoder.

`properties` is a dictionary in CONNECT and in a will, empty if there are none (always in 3.1.1); in every
other packet it is None if there are none.
"""

from __future__ import annotations

from typing import ClassVar, TypedDict


class Properties(TypedDict, total=False):
    """MQTT 5.0 §2.2.2.2, in ascending order of the property identifier. Intervals are s, sizes bytes.

    What the specification defines as a byte of 0 or 1 is an int of 0 or 1.
    """

    payload_format_indicator: int
    message_expiry_interval: int
    content_type: str
    response_topic: str
    correlation_data: bytes
    subscription_identifier: list[int]
    session_expiry_interval: int
    assigned_client_identifier: str
    server_keep_alive: int
    authentication_method: str
    authentication_data: bytes
    request_problem_information: int
    will_delay_interval: int
    request_response_information: int
    response_information: str
    server_reference: str
    reason_string: str
    receive_maximum: int
    topic_alias_maximum: int
    topic_alias: int
    maximum_qos: int
    retain_available: int
    user_property: list[tuple[str, str]]
    maximum_packet_size: int
    wildcard_subscription_available: int
    subscription_identifier_available: int
    shared_subscription_available: int


class _Fields:
    """Equality and text by the fields that `_compared` names."""

    __slots__ = ()
    _compared: ClassVar[tuple[str, ...]] = ()
    __hash__ = None  # type: ignore[assignment]  # mutable

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in self._compared)

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={getattr(self, name)!r}" for name in self._compared)
        return f"{type(self).__name__}({fields})"


class Will(_Fields):
    """The message that the server publishes when the connection ends without DISCONNECT (§3.1.2.5)."""

    _compared = ("payload", "properties", "qos", "retain", "topic")
    __slots__ = _compared

    def __init__(
        self,
        topic: str,
        payload: bytes,
        qos: int = 0,
        retain: bool = False,
        properties: Properties | None = None,
    ) -> None:
        self.topic = topic
        self.payload = payload
        self.qos = qos
        self.retain = retain
        self.properties: Properties = {} if properties is None else properties


class Connect(_Fields):
    """CONNECT (§3.1). `level` is 3, 4 or 5; `is_bridge`: Mosquitto's habit, the level's high bit is set."""

    _compared = (
        "clean_start",
        "client_id",
        "is_bridge",
        "keep_alive_s",
        "level",
        "password",
        "properties",
        "username",
        "will",
    )
    __slots__ = _compared

    def __init__(
        self,
        client_id: str,
        clean_start: bool,
        keep_alive_s: int,
        level: int = 4,
        is_bridge: bool = False,
        will: Will | None = None,
        username: str | None = None,
        password: bytes | None = None,
        properties: Properties | None = None,
    ) -> None:
        self.client_id = client_id
        self.clean_start = clean_start
        self.keep_alive_s = keep_alive_s
        self.level = level
        self.is_bridge = is_bridge
        self.will = will
        self.username = username
        self.password = password
        self.properties: Properties = {} if properties is None else properties


class Connack(_Fields):
    """CONNACK (§3.2). `reason_code` is the return code in 3.1.1."""

    _compared = ("properties", "reason_code", "session_present")
    __slots__ = _compared

    def __init__(
        self, session_present: bool, reason_code: int = 0, properties: Properties | None = None
    ) -> None:
        self.session_present = session_present
        self.reason_code = reason_code
        self.properties = properties


class Publish(_Fields):
    """PUBLISH (§3.3). `packet_id` is 0 at QoS 0. In 5.0 `topic` is "" where a topic alias stands for it.

    In a received packet `wire` is the packet as it came and `packet_id_at` the offset of the packet
    identifier in it (0 at QoS 0), so that a forwarder can splice; b"" and 0 in one that we made.
    """

    __slots__ = (
        "dup",
        "packet_id",
        "packet_id_at",
        "payload",
        "properties",
        "qos",
        "retain",
        "topic",
        "wire",
    )
    _compared = ("topic", "payload", "qos", "retain", "dup", "packet_id", "properties")

    def __init__(
        self,
        topic: str,
        payload: bytes,
        qos: int = 0,
        retain: bool = False,
        dup: bool = False,
        packet_id: int = 0,
        properties: Properties | None = None,
        wire: bytes = b"",
        packet_id_at: int = 0,
    ) -> None:
        self.topic = topic
        self.payload = payload
        self.qos = qos
        self.retain = retain
        self.dup = dup
        self.packet_id = packet_id
        self.properties = properties
        self.wire = wire
        self.packet_id_at = packet_id_at


class PublishRun(_Fields):
    """*count* consecutive QoS 0 PUBLISH packets on one topic, without retain, dup and properties.

    `wire` is their bytes, one slice of the chunk that they came in.
    """

    _compared = ("count", "topic", "wire")
    __slots__ = _compared

    def __init__(self, topic: str, wire: bytes, count: int) -> None:
        self.topic = topic
        self.wire = wire
        self.count = count

    def publishes(self, version: int) -> list[Publish]:
        """The packets one by one; *version* is the one that they were sent in."""
        wire = self.wire
        found = []
        at = 0
        while at < len(wire):
            start = at
            length = shift = 0
            while True:  # the remaining length; the decoder has checked it
                at += 1
                length |= (wire[at] & 0x7F) << shift
                shift += 7
                if wire[at] < 0x80:
                    break
            body = at + 1
            at = body + length
            payload_at = body + 2 + (wire[body] << 8 | wire[body + 1]) + (version == 5)
            found.append(Publish(self.topic, wire[payload_at:at], wire=wire[start:at]))
        return found


class Puback(_Fields):
    """PUBACK (§3.4)."""

    _compared = ("packet_id", "properties", "reason_code")
    __slots__ = _compared

    def __init__(self, packet_id: int, reason_code: int = 0, properties: Properties | None = None) -> None:
        self.packet_id = packet_id
        self.reason_code = reason_code
        self.properties = properties


class Pubrec(_Fields):
    """PUBREC (§3.5)."""

    _compared = ("packet_id", "properties", "reason_code")
    __slots__ = _compared

    def __init__(self, packet_id: int, reason_code: int = 0, properties: Properties | None = None) -> None:
        self.packet_id = packet_id
        self.reason_code = reason_code
        self.properties = properties


class Pubrel(_Fields):
    """PUBREL (§3.6)."""

    _compared = ("packet_id", "properties", "reason_code")
    __slots__ = _compared

    def __init__(self, packet_id: int, reason_code: int = 0, properties: Properties | None = None) -> None:
        self.packet_id = packet_id
        self.reason_code = reason_code
        self.properties = properties


class Pubcomp(_Fields):
    """PUBCOMP (§3.7)."""

    _compared = ("packet_id", "properties", "reason_code")
    __slots__ = _compared

    def __init__(self, packet_id: int, reason_code: int = 0, properties: Properties | None = None) -> None:
        self.packet_id = packet_id
        self.reason_code = reason_code
        self.properties = properties


class Subscription(_Fields):
    """One topic filter of a SUBSCRIBE with its options (§3.8.3.1); 3.1.1 has only the QoS."""

    _compared = ("filter", "no_local", "qos", "retain_as_published", "retain_handling")
    __slots__ = _compared

    def __init__(
        self,
        filter: str,
        qos: int = 0,
        no_local: bool = False,
        retain_as_published: bool = False,
        retain_handling: int = 0,
    ) -> None:
        self.filter = filter
        self.qos = qos
        self.no_local = no_local
        self.retain_as_published = retain_as_published
        self.retain_handling = retain_handling


class Subscribe(_Fields):
    """SUBSCRIBE (§3.8)."""

    _compared = ("packet_id", "properties", "subscriptions")
    __slots__ = _compared

    def __init__(
        self, packet_id: int, subscriptions: list[Subscription], properties: Properties | None = None
    ) -> None:
        self.packet_id = packet_id
        self.subscriptions = subscriptions
        self.properties = properties


class Suback(_Fields):
    """SUBACK (§3.9), one reason code for each topic filter, in their order."""

    _compared = ("packet_id", "properties", "reason_codes")
    __slots__ = _compared

    def __init__(self, packet_id: int, reason_codes: list[int], properties: Properties | None = None) -> None:
        self.packet_id = packet_id
        self.reason_codes = reason_codes
        self.properties = properties


class Unsubscribe(_Fields):
    """UNSUBSCRIBE (§3.10)."""

    _compared = ("filters", "packet_id", "properties")
    __slots__ = _compared

    def __init__(self, packet_id: int, filters: list[str], properties: Properties | None = None) -> None:
        self.packet_id = packet_id
        self.filters = filters
        self.properties = properties


class Unsuback(_Fields):
    """UNSUBACK (§3.11), one reason code for each topic filter in 5.0; none in 3.1.1."""

    _compared = ("packet_id", "properties", "reason_codes")
    __slots__ = _compared

    def __init__(
        self, packet_id: int, reason_codes: list[int] | None = None, properties: Properties | None = None
    ) -> None:
        self.packet_id = packet_id
        self.reason_codes: list[int] = [] if reason_codes is None else reason_codes
        self.properties = properties


class Pingreq(_Fields):
    """PINGREQ (§3.12)."""

    __slots__ = ()


class Pingresp(_Fields):
    """PINGRESP (§3.13)."""

    __slots__ = ()


class Disconnect(_Fields):
    """DISCONNECT (§3.14); 3.1.1 has no reason code."""

    _compared = ("properties", "reason_code")
    __slots__ = _compared

    def __init__(self, reason_code: int = 0, properties: Properties | None = None) -> None:
        self.reason_code = reason_code
        self.properties = properties


class Auth(_Fields):
    """AUTH (§3.15), 5.0 only."""

    _compared = ("properties", "reason_code")
    __slots__ = _compared

    def __init__(self, reason_code: int = 0, properties: Properties | None = None) -> None:
        self.reason_code = reason_code
        self.properties = properties


Packet = (
    Connect
    | Connack
    | Publish
    | Puback
    | Pubrec
    | Pubrel
    | Pubcomp
    | Subscribe
    | Suback
    | Unsubscribe
    | Unsuback
    | Pingreq
    | Pingresp
    | Disconnect
    | Auth
)
