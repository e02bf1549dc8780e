"""Bytes of one connection to packets, one chunk at a time, all complete packets of a chunk in one call.
Knows neither socket nor session; the one thing it remembers of the stream is the protocol version.
"""

from __future__ import annotations

from typing import Final, Literal

from midge.protocol import reasons
from midge.protocol.bodies import PARSERS, ReasonCodes, parse_connect, protocol_level
from midge.protocol.errors import MalformedPacket, ProtocolError
from midge.protocol.packets import Packet, Properties, Puback, Pubcomp, Publish, PublishRun, Pubrec, Pubrel
from midge.protocol.properties import decode_properties as decode_properties
from midge.protocol.properties import read_properties
from midge.protocol.reasons import ReasonCode
from midge.protocol.topics import check_topic_name
from midge.protocol.wire import VARIABLE_INTEGER_MAX, decode_string

# The largest packet there can be: a fixed header of five bytes before the largest remaining length.
PACKET_SIZE_MAX = 5 + VARIABLE_INTEGER_MAX

# Topic names that need not be checked again, shared by all connections: what was a topic name once is one
# always, and a topic keeps one str object, whose hash is computed once. Bounded to about 25 MB by what all names
# together have, enough for a fleet of 100,000 topics, so that a client that invents topics costs time, its own
# mostly, but no memory.
_TOPICS_BYTES_MAX = 4_000_000
_TOPIC_CACHED_BYTES_MAX = 256
_topics: Final[dict[bytes, str]] = {}
_topics_bytes: Final = [0]

# What a decoder has pending while it has nothing: never changed, shared by all.
_NOTHING: Final = bytearray()

# First byte of a PUBLISH: (QoS, retain, dup). Missing are QoS 3 [MQTT-3.3.1-4], dup at QoS 0 [MQTT-3.3.1-2].
_PUBLISH_FLAGS: Final = {
    0x30 | dup << 3 | qos << 1 | retain: (qos, bool(retain), bool(dup))
    for qos in range(3)
    for retain in range(2)
    for dup in range(2 if qos else 1)
}
# First byte of an acknowledgement that is only a packet identifier.
_ACKNOWLEDGEMENTS: Final[dict[int, type[Puback] | type[Pubrec] | type[Pubrel] | type[Pubcomp]]] = {
    0x40: Puback,
    0x50: Pubrec,
    0x62: Pubrel,
    0x70: Pubcomp,
}

# Which first bytes may come from which side (§2.1.2, §2.1.3) in 3.1.1; 5.0 adds AUTH and the server's
# DISCONNECT; 3.1 allows dup in PUBREL, SUBSCRIBE and UNSUBSCRIBE (3.1 §2.1).
_BOTH = frozenset((*_PUBLISH_FLAGS, *_ACKNOWLEDGEMENTS))
_FROM_CLIENT = _BOTH | {0x10, 0x82, 0xA2, 0xC0, 0xE0}
_FROM_SERVER = _BOTH | {0x20, 0x90, 0xB0, 0xD0}
_TO_SERVER: Final = {3: _FROM_CLIENT | {0x6A, 0x8A, 0xAA}, 4: _FROM_CLIENT, 5: _FROM_CLIENT | {0xF0}}
_TO_CLIENT: Final = {3: _FROM_SERVER | {0x6A}, 4: _FROM_SERVER, 5: _FROM_SERVER | {0xE0, 0xF0}}

_CODES_TO_SERVER: Final = reasons.FROM_CLIENT
_CODES_TO_CLIENT: Final = reasons.FROM_SERVER


class Decoder:
    """The receiving half of one connection. *role* is ours: a "server" is sent a client's packets.

    A server learns the version from CONNECT, the first packet; a client has to name it (3, 4 or 5).
    `error` is set by the first bad packet and never cleared: what follows it is ignored.
    """

    __slots__ = (
        "_first_bytes",
        "_hands_runs",
        "_max_packet_size",
        "_needed",
        "_pending",
        "_reason_codes",
        "_role",
        "error",
        "version",
    )

    def __init__(
        self,
        role: Literal["server", "client"],
        version: int | None = None,
        max_packet_size: int = PACKET_SIZE_MAX,
    ) -> None:
        if version is None and role == "client":
            raise ValueError("a client's decoder has to be told the version")
        self.version = version  # 3, 4 or 5; None until a server has seen CONNECT
        self.error: ProtocolError | None = None
        self._role = role
        self._hands_runs = role == "server"
        self._reason_codes: ReasonCodes = _CODES_TO_SERVER if self._hands_runs else _CODES_TO_CLIENT
        self._first_bytes: frozenset[int] = (_TO_SERVER if self._hands_runs else _TO_CLIENT)[version or 4]
        self._max_packet_size = max_packet_size
        self._pending = _NOTHING  # the beginning of a packet that is not complete yet
        self._needed = 0  # bytes that `_pending` has to grow to; 0 if not even the header is complete

    def receive_data(self, data: bytes) -> list[Packet | PublishRun]:
        """All packets that *data* completes, in order; those before a bad one too. Then look at `error`."""
        if self.error is not None:
            return []
        pending = self._pending
        if pending:
            if len(pending) + len(data) < self._needed:
                pending += data
                return []
            data = b"".join((pending, data))
            self._pending = _NOTHING
        self._needed = 0
        packets: list[Packet | PublishRun] = []
        try:
            at = self._decode_connect(data, packets) if self.version is None else 0
            if self.version is not None and at < len(data):
                at = self._decode(data, at, packets)
        except ProtocolError as error:
            self.error = error
            return packets
        if at < len(data):
            self._pending = bytearray(data[at:] if at else data)
        return packets

    def sole_publish(self, data: bytes) -> str:
        """The topic name, if *data* is one whole PUBLISH of the plainest kind (QoS 0, no retain, no properties) on a
        topic name that came before; else "", and nothing is taken: `receive_data` looks at it in full.

        Where clients send one message now and then, this is what most chunks are.
        """
        size = len(data)
        if size < 5 or data[0] != 0x30 or data[1] != size - 2 or self._pending or size > self._max_packet_size:
            return ""
        end = 4 + (data[2] << 8 | data[3])
        if end > size or (self.version == 5 and (end == size or data[end])):
            return ""
        return _topics.get(data[4:end], "")

    def sole_publish_qos1(self, data: bytes) -> str:
        """As `sole_publish`, for QoS 1 without dup."""
        size = len(data)
        if size < 7 or data[0] != 0x32 or data[1] != size - 2 or self._pending or size > self._max_packet_size:
            return ""
        end = 6 + (data[2] << 8 | data[3])
        if end > size or not (data[end - 2] or data[end - 1]):
            return ""
        if self.version == 5 and (end == size or data[end]):
            return ""
        return _topics.get(data[4 : end - 2], "")

    def sole_puback(self, data: bytes) -> int:
        """The packet identifier, if *data* is one whole PUBACK and no more; else 0, and nothing is taken."""
        if len(data) != 4 or data[0] != 0x40 or data[1] != 2 or self._pending:
            return 0
        return data[2] << 8 | data[3]

    def _decode(self, data: bytes, at: int, packets: list[Packet | PublishRun]) -> int:
        """Append the complete packets from *at* on to *packets*; where the first incomplete one starts."""
        end = len(data)
        size_max = self._max_packet_size
        is_v5 = self.version == 5
        run_first = 0x30 if self._hands_runs else -1  # the first byte of what may begin a run
        append = packets.append
        while at + 1 < end:
            first = data[at]
            length = data[at + 1]
            body = at + 2
            if length == 2 and body + 2 <= end and first in _ACKNOWLEDGEMENTS:
                packet_id = data[body] << 8 | data[body + 1]
                if packet_id:  # else `_parse` refuses it
                    append(_ACKNOWLEDGEMENTS[first](packet_id))
                    at = body + 2
                    continue
            if length > 0x7F:
                if body < end and 0 < data[body] <= 0x7F:
                    length = length & 0x7F | data[body] << 7
                    body += 1
                else:
                    length, body = self._remaining_length(data, at)
                    if not body:
                        break
            packet_end = body + length
            if packet_end > end or packet_end - at > size_max:
                self._await(first, packet_end - at)
                break
            if first not in _PUBLISH_FLAGS:
                append(self._parse(first, data, body, packet_end))
                at = packet_end
                continue
            topic_at = body + 2
            if length < 2 or (topic_end := topic_at + (data[body] << 8 | data[body + 1])) > packet_end:
                raise MalformedPacket("topic name longer than its PUBLISH (§3.3.2.1)")
            name = data[topic_at:topic_end]
            topic = _topics.get(name)
            if topic is None:
                topic = self._topic(name)
            payload_at = topic_end
            if first == run_first and not (is_v5 and _has_properties(data, topic_end, packet_end, topic)):
                start, at, count = at, packet_end, 1
                if data.startswith(name, packet_end + topic_at - start):
                    at, count = _scan_run(data, start, body, topic_end + is_v5, packet_end, size_max)
                append(PublishRun(topic, data[start:at], count))
                continue
            qos, retain, dup = _PUBLISH_FLAGS[first]
            packet_id = packet_id_at = 0
            if qos:
                payload_at += 2
                packet_id_at = topic_end - at
                if payload_at > packet_end:
                    raise MalformedPacket("PUBLISH ends before its packet identifier (§3.3.2.2)")
                packet_id = data[topic_end] << 8 | data[topic_end + 1]
                if not packet_id:
                    raise ProtocolError(ReasonCode.PROTOCOL_ERROR, "packet identifier 0 [MQTT-2.2.1-3]")
            properties = None
            if is_v5 and topic and payload_at < packet_end and not data[payload_at]:
                payload_at += 1
            elif is_v5:
                properties, payload_at = self._publish_properties(data, payload_at, packet_end, topic)
            append(Publish(topic, data[payload_at:packet_end], qos, retain, dup, packet_id, properties,
                           data[at:packet_end], packet_id_at))  # fmt: skip
            at = packet_end
        return at

    def _decode_connect(self, data: bytes, packets: list[Packet | PublishRun]) -> int:
        """A server's first packet, which must be CONNECT [MQTT-3.1.0-1]; where it ends, 0 if it isn't complete."""
        length, body = self._remaining_length(data, 0)
        if data and data[0] >> 4 != 1:
            raise ProtocolError(ReasonCode.PROTOCOL_ERROR, "the first packet must be CONNECT [MQTT-3.1.0-1]")
        end = body + length
        if not body:
            return 0
        if end > len(data) or end > self._max_packet_size or data[0] != 0x10:
            self._await(data[0], end)
            return 0
        level = protocol_level(data, body, end)
        if level is not None:  # also where the rest is wrong: the refusal has to have the right shape
            self._set_version(5 if level >= 5 else 4)
        connect = parse_connect(data, body, end, 0, self._reason_codes)
        if connect.level == 5 and body > 2 and data[body - 1] == 0:
            raise _not_minimal()
        if connect.level != self.version:
            self._set_version(connect.level)
        packets.append(connect)
        return end

    def _set_version(self, version: int) -> None:
        self.version = version
        self._first_bytes = (_TO_SERVER if self._hands_runs else _TO_CLIENT)[version]

    def _remaining_length(self, data: bytes, at: int) -> tuple[int, int]:
        """(remaining length, where the body starts) of the packet at *at*; (0, 0) if more bytes are needed."""
        length = shift = 0
        for place in range(at + 1, min(at + 5, len(data))):
            byte = data[place]
            length |= (byte & 0x7F) << shift
            if byte <= 0x7F:
                if not byte and shift and self.version == 5:  # 3.1.1 doesn't forbid it
                    raise _not_minimal()
                return length, place + 1
            shift += 7
        if shift == 28:
            raise MalformedPacket("remaining length of more than four bytes (§2.1.4)")
        return 0, 0

    def _await(self, first: int, size: int) -> None:
        """Of a packet only the header is there, or it is too large: refuse at once what can't become valid."""
        self._check_first_byte(first)
        if size > self._max_packet_size:
            raise ProtocolError(
                ReasonCode.PACKET_TOO_LARGE,
                f"packet of {size:,} bytes, {self._max_packet_size:,} are allowed [MQTT-3.2.2-15]",
            )
        self._needed = size

    def _check_first_byte(self, first: int) -> None:
        if first in self._first_bytes:
            return
        kind = first >> 4
        if kind == 3:
            raise MalformedPacket("QoS 3, or dup at QoS 0 [MQTT-3.3.1-4] [MQTT-3.3.1-2]")
        if kind == 0 or (kind == 15 and self.version != 5):
            raise MalformedPacket(f"packet type {kind} is reserved (§2.1.2)")
        if any(allowed >> 4 == kind for allowed in self._first_bytes):
            raise MalformedPacket(f"flags {first & 0x0F:04b} of packet type {kind} [MQTT-2.1.3-1]")
        raise ProtocolError(ReasonCode.PROTOCOL_ERROR, f"packet type {kind} from the wrong side (§2.1.2)")

    def _parse(self, first: int, data: bytes, at: int, end: int) -> Packet:
        """Any packet but PUBLISH."""
        self._check_first_byte(first)
        assert self.version is not None
        return PARSERS[first >> 4](data, at, end, self.version, self._reason_codes)

    def _topic(self, name: bytes) -> str:
        """The topic name in a PUBLISH, checked, and remembered so that it needn't be checked again."""
        if not name:
            if self.version == 5:
                return ""  # a topic alias stands for it; `_publish_properties` looks
            raise MalformedPacket("empty topic name [MQTT-4.7.3-1]")
        topic = decode_string(name)
        check_topic_name(topic)
        if len(name) <= _TOPIC_CACHED_BYTES_MAX:
            _topics_bytes[0] += len(name)
            if _topics_bytes[0] > _TOPICS_BYTES_MAX:
                _topics.clear()
                _topics_bytes[0] = len(name)
            _topics[name] = topic
        return topic

    def _publish_properties(
        self, data: bytes, at: int, end: int, topic: str
    ) -> tuple[Properties | None, int]:
        properties, at = read_properties(data, at, end, "PUBLISH")
        if not topic and "topic_alias" not in properties:
            raise ProtocolError(ReasonCode.PROTOCOL_ERROR, "empty topic name without topic alias (§3.3.2.1)")
        if self._role == "server" and "subscription_identifier" in properties:
            raise ProtocolError(
                ReasonCode.PROTOCOL_ERROR, "subscription identifier in a client's PUBLISH [MQTT-3.3.4-6]"
            )
        return properties or None, at


def _has_properties(data: bytes, at: int, end: int, topic: str) -> bool:
    """Whether the properties of a 5.0 PUBLISH at *at* have to be looked at; without a topic name they must."""
    return at >= end or data[at] != 0 or not topic


def _not_minimal() -> MalformedPacket:
    return MalformedPacket("remaining length in more bytes than it needs [MQTT-1.5.5-1]")


def _scan_run(
    data: bytes, start: int, body: int, plain_end: int, packet_end: int, size_max: int
) -> tuple[int, int]:
    """Where the run ends that begins with the QoS 0 PUBLISH at *start*, and how many packets it has.

    *plain_end* is where that packet's payload starts. A packet that begins with the same bytes up to
    there is of the same size, on the same topic, and as valid; one of another size at least shares
    what follows the remaining length.
    """
    end = len(data)
    begins_with = data.startswith
    head = data[start:plain_end]
    topic = data[body:plain_end]
    size = packet_end - start
    at = packet_end
    count = 1
    while True:
        while begins_with(head, at):
            if at + size > end:
                return at, count
            at += size
            count += 1
        if at + 2 > end or data[at] != 0x30:
            return at, count
        length = data[at + 1]
        body = at + 2
        if length > 0x7F:
            if body >= end or not 0 < data[body] <= 0x7F:
                return at, count
            length = length & 0x7F | data[body] << 7
            body += 1
        size = body + length - at
        if length < len(topic) or not begins_with(topic, body) or body + length > end or size > size_max:
            return at, count
        head = data[at : body + len(topic)]
        at += size
        count += 1
