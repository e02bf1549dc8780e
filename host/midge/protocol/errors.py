"""What the peer did wrong, with the reason code that tells it so.
Knows no packet. Our own misuse of the encoder is another class: ValueError.
"""

from __future__ import annotations

from midge.protocol.reasons import ReasonCode


class ProtocolError(Exception):
    """The peer broke a rule of the protocol: its connection must end (MQTT 5.0 §4.13).

    `reason_code` is for DISCONNECT or CONNACK of 5.0; `message` is for the log, with the id of the
    specification's statement where there is one.
    """

    def __init__(self, reason_code: ReasonCode, message: str) -> None:
        super().__init__(reason_code, message)
        self.reason_code = reason_code
        self.message = message

    def __str__(self) -> str:
        return self.message


class MalformedPacket(ProtocolError):
    """The bytes can't be parsed as the specification says (MQTT 5.0 §1.2)."""

    def __init__(self, message: str) -> None:
        super().__init__(ReasonCode.MALFORMED_PACKET, message)

    def __reduce__(self) -> tuple[type[MalformedPacket], tuple[str]]:
        # Exception's own passes both of `args`, and so couldn't be unpickled or copied.
        return MalformedPacket, (self.message,)
