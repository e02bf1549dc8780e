"""Reason codes: their names, which packet may carry which, and what 3.1.1 knows of them.
Knows no bytes.
"""

from __future__ import annotations

from enum import IntEnum


class ReasonCode(IntEnum):
    """MQTT 5.0 §2.4, table 2-6. 0x00 has three names there; here it is SUCCESS."""

    SUCCESS = 0x00
    GRANTED_QOS_1 = 0x01
    GRANTED_QOS_2 = 0x02
    DISCONNECT_WITH_WILL_MESSAGE = 0x04
    NO_MATCHING_SUBSCRIBERS = 0x10
    NO_SUBSCRIPTION_EXISTED = 0x11
    CONTINUE_AUTHENTICATION = 0x18
    RE_AUTHENTICATE = 0x19
    UNSPECIFIED_ERROR = 0x80
    MALFORMED_PACKET = 0x81
    PROTOCOL_ERROR = 0x82
    IMPLEMENTATION_SPECIFIC_ERROR = 0x83
    UNSUPPORTED_PROTOCOL_VERSION = 0x84
    CLIENT_IDENTIFIER_NOT_VALID = 0x85
    BAD_USER_NAME_OR_PASSWORD = 0x86
    NOT_AUTHORIZED = 0x87
    SERVER_UNAVAILABLE = 0x88
    SERVER_BUSY = 0x89
    BANNED = 0x8A
    SERVER_SHUTTING_DOWN = 0x8B
    BAD_AUTHENTICATION_METHOD = 0x8C
    KEEP_ALIVE_TIMEOUT = 0x8D
    SESSION_TAKEN_OVER = 0x8E
    TOPIC_FILTER_INVALID = 0x8F
    TOPIC_NAME_INVALID = 0x90
    PACKET_IDENTIFIER_IN_USE = 0x91
    PACKET_IDENTIFIER_NOT_FOUND = 0x92
    RECEIVE_MAXIMUM_EXCEEDED = 0x93
    TOPIC_ALIAS_INVALID = 0x94
    PACKET_TOO_LARGE = 0x95
    MESSAGE_RATE_TOO_HIGH = 0x96
    QUOTA_EXCEEDED = 0x97
    ADMINISTRATIVE_ACTION = 0x98
    PAYLOAD_FORMAT_INVALID = 0x99
    RETAIN_NOT_SUPPORTED = 0x9A
    QOS_NOT_SUPPORTED = 0x9B
    USE_ANOTHER_SERVER = 0x9C
    SERVER_MOVED = 0x9D
    SHARED_SUBSCRIPTIONS_NOT_SUPPORTED = 0x9E
    CONNECTION_RATE_EXCEEDED = 0x9F
    MAXIMUM_CONNECT_TIME = 0xA0
    SUBSCRIPTION_IDENTIFIERS_NOT_SUPPORTED = 0xA1
    WILDCARD_SUBSCRIPTIONS_NOT_SUPPORTED = 0xA2

    @property
    def connack_311(self) -> int:
        """The nearest CONNACK return code of 3.1.1 (§3.2.2.3, table 3.1)."""
        return _CONNACK_311.get(self, 3)


# MQTT 3.1.1 §3.2.2.3. What isn't here is, for a client of 3.1.1, a server that is unavailable (3).
_CONNACK_311 = {
    ReasonCode.SUCCESS: 0,
    ReasonCode.UNSUPPORTED_PROTOCOL_VERSION: 1,
    ReasonCode.CLIENT_IDENTIFIER_NOT_VALID: 2,
    ReasonCode.BAD_USER_NAME_OR_PASSWORD: 4,
    ReasonCode.BAD_AUTHENTICATION_METHOD: 4,
    ReasonCode.NOT_AUTHORIZED: 5,
    ReasonCode.BANNED: 5,
}

_PUBACK = frozenset((0x00, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99))  # §3.4.2.1, §3.5.2.1
_PUBREL = frozenset((0x00, 0x92))  # §3.6.2.1, §3.7.2.1

# What either side may put into DISCONNECT (§3.14.2.1, table 3-10).
_DISCONNECT = frozenset((0x00, 0x80, 0x81, 0x82, 0x83, 0x90, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99))

# Which reason codes a 5.0 packet of each kind may carry, by who sends it.
FROM_CLIENT: dict[str, frozenset[int]] = {
    "PUBACK": _PUBACK,
    "PUBREC": _PUBACK,
    "PUBREL": _PUBREL,
    "PUBCOMP": _PUBREL,
    "DISCONNECT": _DISCONNECT | {0x04},
    "AUTH": frozenset((0x18, 0x19)),  # §3.15.2.1
}
FROM_SERVER: dict[str, frozenset[int]] = {
    # §3.2.2.2
    "CONNACK": frozenset((0x00, *range(0x80, 0x8B), 0x8C, 0x90, 0x95, 0x97, *range(0x99, 0x9E), 0x9F)),
    "PUBACK": _PUBACK,
    "PUBREC": _PUBACK,
    "PUBREL": _PUBREL,
    "PUBCOMP": _PUBREL,
    # §3.9.3, §3.11.3
    "SUBACK": frozenset((0x00, 0x01, 0x02, 0x80, 0x83, 0x87, 0x8F, 0x91, 0x97, 0x9E, 0xA1, 0xA2)),
    "UNSUBACK": frozenset((0x00, 0x11, 0x80, 0x83, 0x87, 0x8F, 0x91)),
    # 0x8C is allowed by table 2-6 and by §4.12, though missing from table 3-10.
    "DISCONNECT": _DISCONNECT | {0x87, 0x89, 0x8B, 0x8C, 0x8D, 0x8E, 0x8F, *range(0x9A, 0xA3)},
    "AUTH": frozenset((0x00, 0x18)),
}

# 3.1.1: CONNACK return codes (§3.2.2.3) and SUBACK return codes (§3.9.3).
CONNACK_311 = frozenset(range(6))
SUBACK_311 = frozenset((0x00, 0x01, 0x02, 0x80))
