"""MQTT 5.0 for midge_client: a Client of the same face, with properties, reason codes and request and reply.
It must not know what midge_client keeps to itself about streams and tasks: it only changes what stands in packets."""

import midge_client
from midge_client import MQTTError, MQTTTimeout, _encode, _put_length, _put_string, _Signal, const

# --------------------------------------------------------------------------------------------- constants

_PUBLISH = const(0x30)
_PUBACK = const(0x40)
_PUBREC = const(0x50)
_PUBREL = const(0x62)
_PUBCOMP = const(0x70)
_CONNACK = const(0x20)
_SUBACK = const(0x90)
_UNSUBACK = const(0xB0)
_DISCONNECT = const(0xE0)

# Properties (MQTT 5.0 §2.2.2.2), by how their value is written; of those with a length we keep the last three.
_EXPIRY = const(0x02)
_RESPONSE_TOPIC = const(0x08)
_CORRELATION = const(0x09)
_SESSION_EXPIRY = const(0x11)
_ASSIGNED_ID = const(0x12)
_SERVER_KEEP_ALIVE = const(0x13)
_RECEIVE_MAXIMUM = const(0x21)
_TOPIC_ALIAS_MAXIMUM = const(0x22)
_TOPIC_ALIAS = const(0x23)
_USER_PROPERTY = const(0x26)
_MAXIMUM_PACKET_SIZE = const(0x27)
_SUBSCRIPTION_ID = const(0x0B)
_BYTES_1 = b"\x01\x17\x19\x24\x25\x28\x29\x2a"
_BYTES_2 = b"\x13\x21\x22\x23"
_BYTES_4 = b"\x02\x11\x18\x27"
_STRINGS = b"\x03\x08\x09\x12\x15\x16\x1a\x1c\x1f"
_KEPT = b"\x08\x09\x12"

# Topics that we let the server give a number: 16 topics of 32 bytes are what a board can spare.
_ALIASES_MAX = const(16)


# ------------------------------------------------------------------------------------------------------- codec


def _put_number(packet, kind, value, size):
    packet.append(kind)
    while size:
        size -= 1
        packet.append(value >> 8 * size & 0xFF)


# ---------------------------------------------------------------------------------------------------------- API


# As midge_client's, and: `session_expiry`: seconds that the server keeps the session when we are away, as long as it
# can if `clean` is False, else not at all. `receive_maximum`: QoS 1 and 2 messages that it may have unacknowledged.
# MQTTError's `code` is the reason code (§2.4); publish() and subscribe() raise it when it is 0x80 or more.
class Client(midge_client.Client):
    _level = 5
    _extra = b"\0"

    def __init__(self, client_id, host, port=1883, session_expiry=None, receive_maximum=20, clean=True, max_packet=2048,
                 window=16, **options):
        if session_expiry is None:
            session_expiry = 0 if clean else 0xFFFFFFFF
        extra = bytearray(b"\0")
        _put_number(extra, _SESSION_EXPIRY, session_expiry, 4)
        _put_number(extra, _RECEIVE_MAXIMUM, receive_maximum, 2)
        _put_number(extra, _MAXIMUM_PACKET_SIZE, max_packet, 4)
        _put_number(extra, _TOPIC_ALIAS_MAXIMUM, _ALIASES_MAX, 2)
        extra[0] = len(extra) - 1
        self._connect_extra = extra
        self._window_max = window
        self._aliases = {}  # topic: its alias, on this connection
        self._aliases_max = 0  # the server's, from CONNACK
        self._rx_aliases = {}
        self._rx_properties = {}  # of the last packet read
        self._requests = {}  # correlation data: the signal of the request that waits
        self._handlers = {}
        self._replies_to = None  # set by the first request
        self._correlation = 0
        self.assigned_id = None  # the client identifier that the server chose
        self.server_properties = {}  # of CONNACK, by their numbers
        super().__init__(client_id, host, port, clean=clean, max_packet=max_packet, window=window, **options)
        self._client_id = client_id

    # expiry: seconds after which nobody gets the message any more.
    def publish(self, topic, payload, qos=0, retain=False, expiry=None, response_topic=None, correlation=None):
        properties = bytearray()
        if expiry is not None:
            _put_number(properties, _EXPIRY, expiry, 4)
        if response_topic:
            properties.append(_RESPONSE_TOPIC)
            _put_string(properties, _encode(response_topic))
        if correlation:
            properties.append(_CORRELATION)
            _put_string(properties, correlation)
        return super().publish(topic, payload, qos, retain, bytes(properties) or None)

    # Publishes with a response topic of our own and returns the payload of the reply, or raises MQTTTimeout after
    # `timeout` seconds.
    async def request(self, topic, payload, qos=1, timeout=10):
        if not self._replies_to:
            replies_to = "reply/" + (self.assigned_id or self._client_id)
            await self.subscribe(replies_to, 1)
            self._replies_to = replies_to
        self._correlation += 1
        key = b"%d" % self._correlation
        signal = self._requests[key] = _Signal()
        signal.payload = None
        try:
            await self.publish(topic, payload, qos, False, max(int(timeout), 1), self._replies_to, key)
            await signal.wait(int(timeout * 1000))
        finally:
            del self._requests[key]
        if signal.payload is None:
            raise MQTTTimeout("no reply in time")
        return signal.payload

    # Answers requests on a topic: handler(payload) gives the reply's payload at once.
    async def serve(self, topic, handler, qos=1):
        self._handlers[topic] = handler
        return await self.subscribe(topic, qos)

    # ---------------------------------------------------------------------------------------------- sending

    def _begin(self):
        super()._begin()
        self._aliases.clear()
        self._rx_aliases.clear()
        self._aliases_max = 0

    def _put_publish(self, header, packet_id, topic, payload, properties):
        packet = self._tx
        properties = properties or b""
        alias = self._aliases.get(topic)
        if alias:
            topic = b""
        elif len(self._aliases) < self._aliases_max:
            self._aliases[topic] = alias = len(self._aliases) + 1
        n = len(properties) + (3 if alias else 0)
        packet.append(header)
        _put_length(packet, len(topic) + len(payload) + n + (4 if header & 6 else 2) + (1 if n < 128 else 2))
        _put_string(packet, topic)
        if header & 6:
            packet.append(packet_id >> 8)
            packet.append(packet_id & 0xFF)
        _put_length(packet, n)
        if alias:
            _put_number(packet, _TOPIC_ALIAS, alias, 2)
        packet.extend(properties)
        packet.extend(payload)

    # -------------------------------------------------------------------------------------------- receiving

    # Gives the place after the properties; what is of use is in _rx_properties. User properties cost no memory.
    def _read_properties(self, pos, limit):
        rx = self._rx
        found = self._rx_properties
        found.clear()
        if pos < limit and rx[pos] == 0:
            return pos + 1
        length, pos = self._read_length(pos, limit)
        end = pos + length
        if end > limit:
            raise MQTTError("malformed properties")
        while pos < end:
            kind = rx[pos]
            pos += 1
            if kind == _USER_PROPERTY:
                pos = self._skip_string(self._skip_string(pos, end), end)
                continue
            if kind in found and kind != _SUBSCRIPTION_ID:
                raise MQTTError("property twice")  # §2.2.2.2
            size = 1 if kind in _BYTES_1 else 2 if kind in _BYTES_2 else 4 if kind in _BYTES_4 else 0
            if size:
                value = 0
                for i in range(pos, min(pos + size, end)):
                    value = value << 8 | rx[i]
                pos += size
            elif kind in _STRINGS:
                start = pos + 2
                pos = self._skip_string(pos, end)
                value = bytes(self._view[start:pos]) if kind in _KEPT else b""
            elif kind == _SUBSCRIPTION_ID:
                value, pos = self._read_length(pos, end)
            else:
                raise MQTTError("unknown property")
            found[kind] = value
        if pos > end:
            raise MQTTError("malformed properties")
        return end

    def _read_length(self, pos, end):
        length = shift = 0
        while pos < end and shift < 28:
            byte = self._rx[pos]
            pos += 1
            length |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return length, pos
        raise MQTTError("malformed length")

    def _skip_string(self, pos, end):
        if pos + 2 > end:
            raise MQTTError("malformed properties")
        return pos + 2 + (self._rx[pos] << 8 | self._rx[pos + 1])

    def _on_packet(self, header, pos, length):
        rx = self._rx
        end = pos + length
        if header == _DISCONNECT and self.connected:
            code = rx[pos] if length else 0
            raise MQTTError("the server disconnects: 0x%02x" % code, code)
        if self.connected and length > 2:
            packet_id = rx[pos] << 8 | rx[pos + 1]
            message = self.outbox.find(packet_id)
            if header in (_SUBACK, _UNSUBACK):
                at = self._read_properties(pos + 2, end)
                if at == end or not packet_id:
                    raise MQTTError("malformed SUBACK")
                if message and message.state == header:
                    self._done(message, max(rx[at:end]))
                return
            if header in (_PUBACK, _PUBREC, _PUBREL, _PUBCOMP):
                code = rx[pos + 2]
                if length > 3 and self._read_properties(pos + 3, end) != end:
                    raise MQTTError("malformed packet")
                length = 2
                # A message that the server refuses is done with. "Packet Identifier not found" (0x92) at PUBREL and
                # PUBCOMP: the other side had forgotten it, and nothing is left to do.
                if code > 127 and message and message.state == header and header != _PUBCOMP:
                    return self._done(message, code)
                if code > 127 and header == _PUBREC:
                    return
        super()._on_packet(header, pos, length)

    def _on_connack(self, header, pos, length):
        if header != _CONNACK or length < 3 or self._read_properties(pos + 2, pos + length) != pos + length:
            raise MQTTError("not a CONNACK")
        flags = self._rx[pos]
        code = self._rx[pos + 1]
        found = self._rx_properties
        if flags > 1 or (flags and (code or self._clean)) or found.get(_RECEIVE_MAXIMUM) == 0:
            raise MQTTError("malformed CONNACK")
        if code:
            raise MQTTError("refused: 0x%02x" % code, code)
        self.server_properties = dict(found)
        self._window = min(self._window_max, found.get(_RECEIVE_MAXIMUM, 0xFFFF))
        self._aliases_max = min(_ALIASES_MAX, found.get(_TOPIC_ALIAS_MAXIMUM, 0))
        if _ASSIGNED_ID in found:
            self.assigned_id = found[_ASSIGNED_ID].decode()
        if _SERVER_KEEP_ALIVE in found:  # [MQTT-3.1.2-21]
            self._set_keepalive(found[_SERVER_KEEP_ALIVE])
        self._accepted(flags == 1)

    # Called for a topic that isn't the last one's, and for one of no bytes: its alias stands for it then.
    def _read_topic(self, start, end):
        if start < end:
            super()._read_topic(start, end)
            return
        self._rx_topic = b""
        self._rx_topic_name = self._rx_aliases.get(self._rx_properties.get(_TOPIC_ALIAS))
        if not self._rx_topic_name:
            raise MQTTError("unknown topic alias")

    def _deliver(self, payload, retained, mark):
        found = self._rx_properties
        if found:
            alias = found.get(_TOPIC_ALIAS)
            if alias is not None:
                if not 0 < alias <= _ALIASES_MAX:
                    raise MQTTError("topic alias")  # [MQTT-3.3.2-8], above our maximum
                self._rx_aliases[alias] = self._rx_topic_name
            request = self._requests.get(found.get(_CORRELATION))
            if request and self._rx_topic_name == self._replies_to:
                self._confirm(mark)
                request.payload = payload
                request.set()
                return
            handler = self._handlers.get(self._rx_topic_name)
            if handler and _RESPONSE_TOPIC in found:
                properties = bytearray()
                if _CORRELATION in found:
                    properties.append(_CORRELATION)
                    _put_string(properties, found[_CORRELATION])
                topic = found[_RESPONSE_TOPIC]
                reply = _encode(handler(payload))
                self._confirm(mark)
                self._put_publish(_PUBLISH, 0, topic, reply, properties)
                self._kick.set()
                return
        super()._deliver(payload, retained, mark)
