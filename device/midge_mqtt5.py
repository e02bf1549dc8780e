"""MQTT 5.0 for midge_client: a Client of the same face, with properties, reason codes and request and reply.
It must not know what midge_client keeps to itself about streams and tasks: it only changes what stands in packets."""

import asyncio

import midge_client
from midge_client import (MQTTError, MQTTTimeout, OutboxFull, _encode, _get_length, _header, _put_length, _put_string,
                          _Signal, const)

# --------------------------------------------------------------------------------------------- constants

_PUBACK = const(0x40)
_PUBREC = const(0x50)
_PUBREL = const(0x62)
_PUBCOMP = const(0x70)
_CONNACK = const(0x20)
_SUBACK = const(0x90)
_UNSUBACK = const(0xB0)
_DISCONNECT = const(0xE0)

# Properties (MQTT 5.0 §2.2.2.2). What a program may look for in `client.properties` has a name without underscore.
_EXPIRY = const(0x02)
CONTENT_TYPE = const(0x03)
RESPONSE_TOPIC = const(0x08)
CORRELATION = const(0x09)
_SUBSCRIPTION_ID = const(0x0B)
_SESSION_EXPIRY = const(0x11)
_ASSIGNED_ID = const(0x12)
_SERVER_KEEP_ALIVE = const(0x13)
_RECEIVE_MAXIMUM = const(0x21)
_TOPIC_ALIAS_MAXIMUM = const(0x22)
_TOPIC_ALIAS = const(0x23)
_USER_PROPERTY = const(0x26)
_MAXIMUM_PACKET_SIZE = const(0x27)
# For each number how its value is written: 1, 2, 4: so many bytes; v: variable length; k: a string that is kept, s: one
# that is skipped, u: two (user properties cost no memory, except one called "error"); a dot: no such property.
_FORMS = b".14k....kk.v.....4k2.ss141s.s..s.22211u4111."

# Topics that we let the server give a number: 16 topics of 32 bytes are what a board can spare.
_ALIASES_MAX = const(16)
_NONE = {}


# ------------------------------------------------------------------------------------------------------- codec


def _number(kind, value, size):
    return bytes((kind,)) + value.to_bytes(size, "big")


def _string(kind, text):
    packet = bytearray((kind,))
    _put_string(packet, _encode(text))
    return bytes(packet)


# What it raises is told to who asked: a request that is wrong must not end the connection.
def _attempt(handler, payload):
    try:
        return handler(payload)
    except Exception as error:  # noqa: BLE001
        return error


# ---------------------------------------------------------------------------------------------------------- API


# As midge_client's, and: `session_expiry`: seconds that the server keeps the session when we are away, as long as it
# can if `clean` is False, else not at all. `receive_maximum`: QoS 1 and 2 messages that it may have unacknowledged.
# MQTTError's `code` is the reason code (§2.4); publish() and subscribe() raise it when it is 0x80 or more.
class Client(midge_client.Client):
    _level = 5
    _extra = b"\0"
    # Of the message that the loop has got, or that on_message is called for: response topic, correlation data, seconds
    # to its expiry (2) ..., by their numbers.
    properties = _NONE
    server_properties = _NONE  # of CONNACK, by their numbers
    assigned_id = None  # the client identifier that the server chose
    _replies_to = None  # set by the first request
    _correlation = 0

    def __init__(self, client_id, host, port=1883, session_expiry=None, receive_maximum=20, clean=True, max_packet=2048,
                 window=16, **options):
        if session_expiry is None:
            session_expiry = 0 if clean else 0xFFFFFFFF
        extra = (_number(_SESSION_EXPIRY, session_expiry, 4) + _number(_RECEIVE_MAXIMUM, receive_maximum, 2)
                 + _number(_MAXIMUM_PACKET_SIZE, max_packet, 4) + _number(_TOPIC_ALIAS_MAXIMUM, _ALIASES_MAX, 2))
        self._properties = bytes((len(extra),)) + extra
        self._window_max = window
        self._aliases = {}  # topic: its alias, on this connection
        self._rx_aliases = {}
        self._rx_properties = {}  # of the last packet read
        self._requests = {}  # correlation data: the signal of the request that waits
        self._handlers = {}  # topic: what answers requests
        self._replying = []  # tasks of `async` handlers
        self._put = bytearray(8)
        super().__init__(client_id, host, port, clean=clean, max_packet=max_packet, window=window, **options)
        self._client_id = client_id

    # expiry: seconds after which nobody gets the message any more.
    def publish(self, topic, payload, qos=0, retain=False, expiry=None, response_topic=None, correlation=None):
        properties = b""
        if expiry is not None:
            properties = _number(_EXPIRY, expiry, 4)
        if response_topic:
            properties += _string(RESPONSE_TOPIC, response_topic)
        if correlation:
            properties += _string(CORRELATION, correlation)
        return super().publish(topic, payload, qos, retain, properties)

    # ------------------------------------------------------------------------------------- request and reply

    # Publishes with a response topic of our own and returns the payload of the reply. Raises MQTTTimeout after
    # `timeout` seconds, MQTTError with the reason if the reply says that it is none (`midge serve`, responds()).
    async def request(self, topic, payload, qos=1, timeout=10):
        if not self._replies_to:
            replies_to = "reply/" + (self.assigned_id or self._client_id)
            await self.subscribe(replies_to, 1)
            self._replies_to = replies_to
        self._correlation += 1
        key = b"%d" % self._correlation
        signal = self._requests[key] = _Signal()
        signal.payload = signal.error = None
        try:
            await self.publish(topic, payload, qos, False, max(int(timeout), 1), self._replies_to, key)
            await signal.wait(int(timeout * 1000))
        finally:
            del self._requests[key]
        if signal.payload is None:
            raise MQTTTimeout("no reply")
        if signal.error is not None:
            raise MQTTError(signal.error.decode())
        return signal.payload

    # Before connect(): @client.responds("lamp/level"), then a function that takes a request's payload and returns the
    # reply's; it may be `async`. Answered are requests with a response topic and, for peers that speak 3.1.1, requests
    # to lamp/level/request/ID, at lamp/level/response/ID. See docs/request-reply.md.
    def responds(self, topic):
        def register(handler):
            self._handlers[topic] = handler
            return handler
        return register

    # The same while connected.
    async def serve(self, topic, handler, qos=1):
        self._handlers[topic] = handler
        await self.subscribe(topic + "/request/+", qos)
        return await self.subscribe(topic, qos)

    async def connect(self):
        await super().connect()
        try:
            for topic in self._handlers:
                await self.serve(topic, self._handlers[topic])
        except BaseException:
            await self.disconnect()
            raise

    # Hands the message to who answers, if it is a request that someone here answers.
    def _is_request(self, payload, mark):
        name = self._rx_name
        found = self._rx_properties
        topic = found.get(RESPONSE_TOPIC)
        at = 0 if topic else max(name.rfind("/request/"), 0)
        if at:
            topic = _encode(name[:at] + "/response/" + name[at + 9:])
            name = name[:at]
        handler = self._handlers.get(name)
        if not handler or not topic:
            return False
        # At QoS 1 if the request was more than QoS 0; to a peer that speaks 3.1.1 without properties.
        header = _header(1 if mark else 0, False)
        properties = None if at else b""
        if CORRELATION in found:
            properties = _string(CORRELATION, found[CORRELATION])
        reply = _attempt(handler, payload)
        self._confirm(mark)
        if hasattr(reply, "send"):  # a coroutine
            self._replying.append(asyncio.create_task(self._reply_later(header, topic, reply, properties)))
        else:
            self._reply(header, topic, reply, properties)
        return True

    async def _reply_later(self, header, topic, reply, properties):
        try:
            reply = await reply
        except Exception as error:  # noqa: BLE001 - told to who asked
            reply = error
        self._reply(header, topic, reply, properties)
        self._replying.remove(asyncio.current_task())

    # It never waits: the outbox has room, or who asked waits in vain.
    def _reply(self, header, topic, reply, properties):
        if isinstance(reply, Exception):  # as `midge serve` tells it
            self.error = reply
            reply = repr(reply)
            if properties is None:
                topic += b"/error"
            else:
                properties += _string(_USER_PROPERTY, "error") + _string(0, reply)[1:]
        try:
            self.outbox.add(header, topic, _encode(reply), properties or b"")
            self._pump()
        except OutboxFull:
            self.dropped += 1

    # ---------------------------------------------------------------------------------------------- sending

    def _begin(self):
        super()._begin()
        self._aliases.clear()
        self._rx_aliases.clear()
        self._aliases_max = 0  # the server's, from CONNACK

    def _put_publish(self, header, packet_id, topic, payload, properties):
        alias = self._aliases.get(topic)
        if alias:
            topic = b""
        elif len(self._aliases) < self._aliases_max:
            self._aliases[topic] = alias = len(self._aliases) + 1
        put = self._put
        put[:] = b""
        _put_length(put, len(properties) + (3 if alias else 0))
        if alias:
            put.append(_TOPIC_ALIAS)
            put.append(0)
            put.append(alias)
        put.extend(properties)
        super()._put_publish(header, packet_id, topic, payload, put)

    # -------------------------------------------------------------------------------------------- receiving

    # Gives the place after the properties; what is of use is in _rx_properties.
    def _read_properties(self, pos, limit):
        rx = self._rx
        found = self._rx_properties
        found.clear()
        length = rx[pos]
        if length < 128:
            pos += 1
        else:
            length, pos = _get_length(rx, pos, limit)
        if length is None or pos + length > limit:
            raise MQTTError("malformed")
        end = pos + length
        while pos < end:
            kind = rx[pos]
            form = _FORMS[min(kind, 43)] - 48  # the figures 1, 2 and 4; letters are above them, the dot below
            pos += 1
            value = 0
            if 0 < form < 5:
                while form and pos < end:
                    value = value << 8 | rx[pos]
                    pos += 1
                    form -= 1
                if form:
                    pos = end + 1
            elif form == 70:  # v
                value, pos = _get_length(rx, pos, end)
            elif form < 0:
                raise MQTTError("no such property")
            else:
                start = pos + 2
                pos = start + (rx[pos] << 8 | rx[pos + 1])
                if form == 69:  # u
                    is_error = pos - start == 5 and rx[start:pos] == b"error"
                    start = pos + 2
                    pos = start + (rx[pos] << 8 | rx[pos + 1]) if pos < end else end + 1
                    if is_error and pos <= end:
                        found[_USER_PROPERTY] = bytes(self._view[start:pos])
                    continue
                value = bytes(self._view[start:pos]) if form == 59 and pos <= end else b""  # k
            if pos > end or value is None or (kind in found and kind != _SUBSCRIPTION_ID):
                raise MQTTError("malformed")  # §2.2.2.2
            found[kind] = value
        if pos > end:
            raise MQTTError("malformed")
        return end

    def _on_packet(self, header, pos, length):
        rx = self._rx
        end = pos + length
        if header == _DISCONNECT and self.connected:
            code = rx[pos] if length else 0
            raise MQTTError("the server disconnects: 0x%02x" % code, code)
        if self.connected and length > 2:
            packet_id = rx[pos] << 8 | rx[pos + 1]
            message = self.outbox.find(packet_id)
            is_answered = message and message.state == header
            if header in (_SUBACK, _UNSUBACK):
                at = self._read_properties(pos + 2, end)
                if at == end or not packet_id:
                    raise MQTTError("malformed")
                if is_answered:
                    self._done(message, max(rx[at:end]))
                return
            if header in (_PUBACK, _PUBREC, _PUBREL, _PUBCOMP):
                code = rx[pos + 2]
                if length > 3 and self._read_properties(pos + 3, end) != end:
                    raise MQTTError("malformed")
                length = 2
                # A message that the server refuses is done with. "Packet Identifier not found" (0x92) at PUBREL and
                # PUBCOMP: the other side had forgotten it, and nothing is left to do.
                if code > 127:
                    if is_answered and header != _PUBCOMP:
                        return self._done(message, code)
                    if header == _PUBREC:
                        return
        super()._on_packet(header, pos, length)

    def _on_connack(self, header, pos, length):
        if header != _CONNACK or length < 3 or self._read_properties(pos + 2, pos + length) != pos + length:
            raise MQTTError("not a CONNACK")
        flags = self._rx[pos]
        code = self._rx[pos + 1]
        found = self._rx_properties
        if flags > 1 or (flags and (code or self.clean)) or found.get(_RECEIVE_MAXIMUM) == 0:
            raise MQTTError("malformed")
        if code:
            raise MQTTError("refused: 0x%02x" % code, code)
        self.server_properties = dict(found)
        self.window = min(self._window_max, found.get(_RECEIVE_MAXIMUM, 0xFFFF))
        self._aliases_max = min(_ALIASES_MAX, found.get(_TOPIC_ALIAS_MAXIMUM, 0))
        if _ASSIGNED_ID in found:
            self.assigned_id = found[_ASSIGNED_ID].decode()
        self.keepalive = found.get(_SERVER_KEEP_ALIVE, self.keepalive)  # [MQTT-3.1.2-21]
        self._accepted(flags == 1)

    # Called for a topic that isn't the last one's, and for one of no bytes: its alias stands for it then.
    def _read_topic(self, start, end):
        if start < end:
            super()._read_topic(start, end)
            return
        self._rx_topic = b""
        self._rx_name = self._rx_aliases.get(self._rx_properties.get(_TOPIC_ALIAS))
        if not self._rx_name:
            raise MQTTError("unknown topic alias")

    def _deliver(self, payload, retained, mark):
        found = self._rx_properties
        alias = found.pop(_TOPIC_ALIAS, None)
        if alias is not None:
            if not 0 < alias <= _ALIASES_MAX:
                raise MQTTError("topic alias")  # [MQTT-3.3.2-8], above our maximum
            self._rx_aliases[alias] = self._rx_name
        request = self._requests.get(found.get(CORRELATION))
        if request and self._rx_name == self._replies_to:
            self._confirm(mark)
            request.payload = payload
            request.error = found.get(_USER_PROPERTY)
            request.set()
        elif retained or not self._handlers or not self._is_request(payload, mark):
            self.properties = found or _NONE
            before = len(self._inbox)
            super()._deliver(payload, retained, mark)
            if found:
                self._rx_properties = {}  # this one is the program's now
                if len(self._inbox) > before:
                    self._inbox[-1] += (found,)

    # `properties` belong to the message that is handed out.
    def _take(self):
        message = super()._take()
        if message:
            self.properties = message[3] if len(message) > 3 else _NONE
            message = message[:3]
        return message
