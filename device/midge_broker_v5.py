"""MQTT 5.0 for midge_broker.py, which imports this file where it finds it. It knows 5.0's form on the wire.

It must not know sockets, routes or queues: the broker asks it at the places where 5.0 differs from 3.1.1.
"""
# What the clients get: session and message expiry, delayed wills, reason codes, No Local, Retain As Published,
# Retain Handling, Receive Maximum and Maximum Packet Size in both directions, and messages with their properties as
# they were published. What they don't, CONNACK says: topic aliases, subscription identifiers. Nor is there AUTH.
#
# Two laptops that bridge this broker and each other lead each message round a triangle. So from the second bridge on,
# messages are marked as midge's brokers mark theirs (the user property midge-passage: an identifier, and the brokers
# that the message has been to), and what has been here with that identifier isn't taken again.
#
# A message that came in 5.0 has bit 2 in its slot's second byte, and its payload begins with its properties, as on the
# wire. With bit 3 there is a message expiry interval among them; instead of the interval it then holds the time at
# which it ends, on the clock below.
import os
import time
from binascii import crc32

try:
    from micropython import const
except ImportError:
    const = abs

_MINUS = const(-1)  # see midge_broker.py
_MICROPYTHON = const(_MINUS - 1)

# ---- constants ----

_MALFORMED = const(0x81)
_PROTOCOL_ERROR = const(0x82)

# Properties (§2.2.2.2)
_MESSAGE_EXPIRY = const(0x02)
_RESPONSE_TOPIC = const(0x08)
_SUBSCRIPTION_IDENTIFIER = const(0x0B)
_SESSION_EXPIRY = const(0x11)
_AUTHENTICATION_METHOD = const(0x15)
_AUTHENTICATION_DATA = const(0x16)
_WILL_DELAY = const(0x18)
_RECEIVE_MAXIMUM = const(0x21)
_TOPIC_ALIAS = const(0x23)
_USER_PROPERTY = const(0x26)
_MAXIMUM_PACKET = const(0x27)

# The form of each property by its identifier: its bytes if it is an integer; 5 a variable byte integer; 6 text;
# 7 binary; 8 two texts.
_FORMS = (
    b"\x00\x01\x04\x06\x00\x00\x00\x00\x06\x07\x00\x05\x00\x00\x00\x00"  # 0x00
    b"\x00\x04\x06\x02\x00\x06\x07\x01\x04\x01\x06\x00\x06\x00\x00\x06"  # 0x10
    b"\x00\x02\x02\x02\x01\x01\x08\x04\x01\x01\x01"  # 0x20
)

# The properties that each packet may have.
_OF_CONNECT = b"\x11\x15\x16\x17\x19\x21\x22\x26\x27"
_OF_WILL = b"\x01\x02\x03\x08\x09\x18\x26"
_OF_PUBLISH = b"\x01\x02\x03\x08\x09\x0b\x23\x26"
_OF_SUBSCRIBE = b"\x0b\x26"
_OF_UNSUBSCRIBE = b"\x26"
_OF_ACKNOWLEDGEMENT = b"\x1f\x26"
_OF_DISCONNECT = b"\x11\x1f\x26"
_0_OR_1 = b"\x01\x17\x19"
_NOT_0 = b"\x0b\x21\x27"

# What a client may say in PUBACK and PUBREC, and in DISCONNECT.
_REASONS = b"\x00\x10\x80\x83\x87\x90\x91\x97\x99"
_DISCONNECT_REASONS = b"\x00\x04\x80\x81\x82\x83\x90\x93\x94\x95\x96\x97\x98\x99"

_NEVER = const(0xFFFFFFFF)
_LONG_S = const(1 << 27)  # four years: what expires later doesn't expire, since the clock has 32 bits
_EXPIRED = const(5)  # in Broker._counts
_TOO_LARGE = const(6)
_RECEIVE_MAX = const(256)  # the broker's _QOS2_RECEIVED_MAX
_OF_BRIDGE = const(12)  # as in midge_broker.py
# Marks remembered, 4 bytes each on a board. The two ways that a message comes differ by a window or two.
_MARKS_MAX = const(256)

# ---- the clock: sixteenths of a second ----
#
# Whole seconds would let a message of one second expire at once.

if _MICROPYTHON:

    def now(broker):
        return broker.uptime_s * 16 + (broker._ms + time.ticks_diff(time.ticks_ms(), broker._tick_ms)) * 16 // 1000

else:

    def now(broker):
        return broker.uptime_s * 16 + (broker._ms + time.monotonic_ns() // 1_000_000 - broker._tick_ms) * 16 // 1000


# ---- properties ----


def _variable(data, at):
    value = shift = 0
    while True:
        if at >= len(data) or shift > 21:
            raise ValueError("variable byte integer", _MALFORMED)
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            if not byte and shift:
                raise ValueError("variable byte integer", _MALFORMED)  # [MQTT-1.5.5-1]
            return value, at
        shift += 7


# Where what follows the properties at data[at:] begins.
def skip_properties(data, at):
    length, at = _variable(data, at)
    return at + length


# The properties among the fields: identifier -> value.
def _properties(fields, allowed):
    length, at = _variable(fields.data, 0)
    if at + length > len(fields.data):
        raise ValueError("properties too long", _MALFORMED)
    after = fields.data[at + length :]
    fields.data = fields.data[at : at + length]
    values = {}
    while fields.data:
        name, at = _variable(fields.data, 0)
        fields.data = fields.data[at:]
        if name >= len(_FORMS) or not _FORMS[name]:
            raise ValueError("property", _MALFORMED)
        if name not in allowed or (name in values and name != _USER_PROPERTY):
            raise ValueError("property", _PROTOCOL_ERROR)
        form = _FORMS[name]
        if form < 5:
            value = 0
            for byte in fields.take(form):
                value = value << 8 | byte
        elif form == 5:
            value, at = _variable(fields.data, 0)
            fields.data = fields.data[at:]
        elif form == 7:
            value = fields.binary()
        else:
            value = fields.text()
            if form == 8:
                fields.text()
        if (
            (name in _0_OR_1 and value > 1)
            or (name in _NOT_0 and not value)
            or (name == _RESPONSE_TOPIC and ("#" in value or "+" in value))  # [MQTT-3.3.2-14]
        ):
            raise ValueError("property's value", _PROTOCOL_ERROR)
        values[name] = value
    fields.data = after
    return values


# Turns the message expiry interval among the properties at data[at:] into the time of its end.
def _start_expiry(broker, data, at):
    at = _find(data, at, _MESSAGE_EXPIRY) + 1
    interval_s = int.from_bytes(data[at : at + 4], "big")
    end = _NEVER if interval_s > _LONG_S else now(broker) + interval_s * 16
    for shift in (24, 16, 8, 0):
        data[at] = end >> shift & 255
        at += 1


# Where in the properties that begin at data[at], and were checked before, the one of that name is.
def _find(data, at, name):
    at = _variable(data, at)[1]
    while data[at] != name:
        form = _FORMS[data[at]]
        at += 1
        if form < 5:
            at += form
        else:
            for _ in range(2 if form == 8 else 1):
                at += 2 + (data[at] << 8 | data[at + 1])
    return at


# ---- PUBLISH ----


# The properties of the PUBLISH whose topic is at broker._buffer[at:]; returns the flags for the message's slot.
def check_publish(broker, fields, at, qos, after):
    buffer = broker._buffer
    topic = at
    at += 2 + (buffer[at] << 8 | buffer[at + 1]) + (2 if qos else 0)
    if at < after and not buffer[at]:
        return 4
    values = _properties(fields(broker._view[at:after]), _OF_PUBLISH)
    if _TOPIC_ALIAS in values:
        raise ValueError("topic alias", 0x94)  # none is allowed [MQTT-3.2.2-17]
    if _SUBSCRIPTION_IDENTIFIER in values:
        raise ValueError("subscription identifier", _PROTOCOL_ERROR)  # [MQTT-3.3.4-6]
    if broker._marks and _USER_PROPERTY in values and broker._marks.knows(buffer, topic, at):
        return 20
    if _MESSAGE_EXPIRY not in values:
        return 4
    _start_expiry(broker, buffer, at)
    return 12


# As Broker._put, for messages and receivers of either version. 0: the message has expired, or is too large for this
# receiver [MQTT-3.1.2-24].
def put(broker, connection, at, header, packet_id, message):
    slot = 2 + (message[0] << 8 | message[1])
    flags = message[slot + 1]
    start = slot + 2
    body = skip_properties(message, start) if flags & 4 else start
    left_s = 0
    if flags & 8:
        place = _find(message, start, _MESSAGE_EXPIRY) + 1
        end = int.from_bytes(message[place : place + 4], "big")
        left_s = _NEVER if end == _NEVER else (end - now(broker) + 15) // 16
        if left_s <= 0:
            if header & 12 != 12:  # QoS 2 that was sent doesn't expire [MQTT-4.3.3-7]
                broker._counts[_EXPIRED] += 1
                return 0
            left_s = 0
    length = slot + len(message) - body + (2 if header & 6 else 0)
    if connection.v5:
        length += body - start or 1
    stage = broker._stage
    first = at
    stage[at] = header
    at += 1
    rest = length
    while rest > 127:
        stage[at] = rest & 127 | 128
        rest >>= 7
        at += 1
    stage[at] = rest
    at += 1
    if at - first + length > connection.packet_max:
        broker._counts[_TOO_LARGE] += 1
        return 0
    view = memoryview(message)
    stage[at : at + slot] = view[:slot]
    at += slot
    if header & 6:
        stage[at] = packet_id >> 8 & 255
        stage[at + 1] = packet_id & 255
        at += 2
    if connection.v5:
        if body == start:
            stage[at] = 0
            at += 1
        else:
            stage[at : at + body - start] = view[start:body]
            if flags & 8:
                for shift in (24, 16, 8, 0):
                    stage[at + place - start] = left_s >> shift & 255
                    place += 1
            at += body - start
    size = len(message) - body
    stage[at : at + size] = view[body:]
    broker._counts[1] += 1
    return at + size


# ---- marks ----


# The value of the mark among the properties at data[at:], or nothing.
def _passage(data, at):
    length, at = _variable(data, at)
    end = at + length
    while at < end:
        form = _FORMS[data[at]]
        at += 1
        start = at
        if form < 5:
            at += form
        else:
            for _ in range(2 if form == 8 else 1):
                at += 2 + (data[at] << 8 | data[at + 1])
        if form == 8 and data[start : start + 15] == b"\x00\x0dmidge-passage":
            return bytes(data[start + 17 : at])
    return b""


class _Marks:
    def __init__(self):
        self.name = os.urandom(4).hex()  # this broker's
        self.last = 0  # number of the last mark given
        self.seen = [0] * _MARKS_MAX  # what was seen, by its digest, at most 30 bits: no allocation
        self.at = 0  # where the next one goes

    # Of the message whose topic is at data[topic:] and whose properties are at data[at:]; 0: it has no mark.
    def digest(self, data, topic, at):
        value = _passage(data, at)
        if not value:
            return 0
        size = data[topic] << 8 | data[topic + 1]
        return crc32(data[topic : topic + 2 + size], crc32(value.split(b" ")[0])) & 0x3FFFFFFF | 1

    def knows(self, data, topic, at):
        return self.digest(data, topic, at) in self.seen

    def remember(self, digest):
        self.seen[self.at] = digest
        self.at = (self.at + 1) % _MARKS_MAX

    # The last one: it was routed by half, and comes again.
    def forget(self):
        self.at = (self.at - 1) % _MARKS_MAX
        self.seen[self.at] = 0


# Before the message goes to anyone: it gets a mark if it has none.
def mark(broker, message):
    marks = broker._marks
    slot = 2 + (message[0] << 8 | message[1])
    start = slot + 2
    flags = message[slot + 1]
    digest = marks.digest(message, 0, start) if flags & 4 else 0
    if not digest:
        marks.last += 1
        value = "%s-%x %s" % (marks.name, marks.last, marks.name)
        value = b"\x26\x00\x0dmidge-passage" + bytes((0, len(value))) + value.encode()
        length, at = _variable(message, start) if flags & 4 else (0, start)
        length += len(value)
        head = message[:slot] + bytes((0, flags | 4))
        while length > 127:
            head.append(length & 127 | 128)
            length >>= 7
        head.append(length)
        message = head + value + message[at:]
        digest = marks.digest(message, 0, start)
    marks.remember(digest)
    return message


# ---- acknowledgements, SUBSCRIBE, DISCONNECT ----


# The reason in what follows the packet identifier of PUBACK, PUBREC, PUBREL or PUBCOMP.
def reason(header, fields):
    code = fields.take(1)[0]
    if fields.data:
        _properties(fields, _OF_ACKNOWLEDGEMENT)
    if fields.data or code not in (_REASONS if header < 0x60 else b"\x00\x92"):
        raise ValueError("acknowledgement", _PROTOCOL_ERROR)
    return code


def subscribe(fields, is_subscribe):
    if _SUBSCRIPTION_IDENTIFIER in _properties(fields, _OF_SUBSCRIBE if is_subscribe else _OF_UNSUBSCRIBE):
        raise ValueError("subscription identifier", 0xA1)


def options(value, topic_filter):
    if value & 3 == 3 or value & 0xC0 or value & 0x30 == 0x30:
        return False
    if value & 4 and topic_filter.startswith("$share/"):
        raise ValueError("No Local on a shared subscription", _PROTOCOL_ERROR)  # [MQTT-3.8.3-4]
    return True


# True if the will is discarded.
def disconnect(broker, connection, fields):
    code = fields.take(1)[0]
    values = _properties(fields, _OF_DISCONNECT) if fields.data else {}
    if fields.data or code not in _DISCONNECT_REASONS:
        raise ValueError("DISCONNECT", _PROTOCOL_ERROR)
    expiry_s = values.get(_SESSION_EXPIRY)
    if expiry_s is not None:
        session = connection.session
        if expiry_s and not session.expiry_s:
            raise ValueError("session expiry interval", _PROTOCOL_ERROR)  # §3.14.2.2.2
        session.expiry_s = -1 if expiry_s == _NEVER else expiry_s
        session.clean = not expiry_s
        if session.number:
            broker._store.session(session, session.expiry_s)
    return code == 0


# The last packet that a client gets: what waits for it goes first, as far as it may [MQTT-3.14.4-1].
def farewell(broker, connection, code):
    if code == 0x97 and broker._marks:
        broker._marks.forget()
    broker._flush()
    broker._mark(connection)
    connection.control.extend(bytes((0xE0, 1, code) if connection.session else (0x20, 3, 0, code, 0)))


# ---- shared subscriptions, $share/NAME/FILTER (§4.8.2); 3.1.1's clients may have them too ----


# Its filter.
def shared_filter(topic_filter):
    parts = topic_filter.split("/", 2)
    if not parts[1] or "+" in parts[1] or "#" in parts[1] or not parts[2:]:
        raise ValueError("share name", _PROTOCOL_ERROR)  # [MQTT-4.8.2-1], [MQTT-4.8.2-2]
    return parts[2]


# Adds one member of each group to the targets: the next of the connected ones, of those with the shortest queue; an
# absent one if there is no other. A group is [filter, turn, target, target ...].
def choose(groups, targets):
    for group in groups:
        count = len(group) - 2
        best = None
        least = turn = 0
        for _ in range(count):
            group[1] = group[1] % count + 1
            target = group[group[1] + 1]
            session = target[0]
            load = len(session.queue) + (0 if session.connection else 1 << 24)
            if best is None or load < least:
                best = target
                least = load
                turn = group[1]
        group[1] = turn
        targets.append(best)
    return targets


# What a session that ends had from a shared subscription and didn't take goes to another member; but for QoS 2 that
# may have been sent [MQTT-4.8.2-5].
def share_again(broker, session, meta, message):
    if message and not (meta & 0x20000 and (session.in_flight or meta & 0x80000)):
        route = broker._route(message, 0, len(message))
        groups = [group for group in route[4] if group[0] in session.subscriptions]
        if groups:
            broker._publish((route[0], route[1], (), (), groups), message, 0, None)


# ---- CONNECT ----


def connect(connection, fields):
    values = _properties(fields, _OF_CONNECT)
    if _AUTHENTICATION_METHOD in values:
        raise ValueError("authentication method", 0x8C)  # [MQTT-4.12.0-1]
    if _AUTHENTICATION_DATA in values:
        raise ValueError("authentication data", _PROTOCOL_ERROR)
    expiry_s = values.get(_SESSION_EXPIRY, 0)
    connection.expiry_s = -1 if expiry_s == _NEVER else expiry_s
    if values.get(_USER_PROPERTY) == "midge-bridge":
        connection.options = _OF_BRIDGE
    connection.receive_max = values.get(_RECEIVE_MAXIMUM, 65535)
    connection.packet_max = values.get(_MAXIMUM_PACKET, _NEVER)


# The will's properties, as its message begins with them.
def will(connection, fields):
    before = fields.data
    values = _properties(fields, _OF_WILL)
    properties = bytearray(before[: len(before) - len(fields.data)])
    connection.will_delay_s = values.get(_WILL_DELAY, 0)
    connection.will_expires = _MESSAGE_EXPIRY in values
    if _WILL_DELAY in values:  # isn't passed on
        at = _find(properties, 0, _WILL_DELAY)
        length, start = _variable(properties, 0)
        length -= 5
        size = bytes((length,)) if length < 128 else bytes((length & 127 | 128, length >> 7))
        properties = size + properties[start:at] + properties[at + 5 :]
    return properties


def connack(broker, connection, client_id, given):
    if connection.options and not broker._marks:
        for session in broker._sessions.values():
            for each in session.subscriptions.values():
                if each & _OF_BRIDGE == _OF_BRIDGE and session.client_id != given:
                    broker._marks = _Marks()
    control = connection.control
    properties = (
        bytes((_RECEIVE_MAXIMUM, _RECEIVE_MAX >> 8, _RECEIVE_MAX & 255, 0x22, 0, 0, 0x29, 0, _MAXIMUM_PACKET))
        + broker.max_packet.to_bytes(4, "big")
        + (b"" if broker.max_retained_bytes else b"\x25\x00")
    )
    if not client_id:
        properties += bytes((0x12, 0, len(given))) + given.encode()
    answer = bytes((0x20, len(properties) + 3, control[-2], 0, len(properties))) + properties
    if len(answer) > connection.packet_max:
        control[:] = b""
        raise ValueError("CONNACK is too large for the client", 0)
    control[-4:] = answer


# ---- what happens later ----


# A connection has ended: its will may wait, its session may end.
def leave(broker, connection, session):
    will = connection.will
    if will:
        slot = 2 + (will[0] << 8 | will[1])
        if connection.will_expires:
            will[slot + 1] |= 8
            _start_expiry(broker, will, slot + 2)
        if connection.will_delay_s:
            session.will = (will, connection.will_retain, now(broker) + connection.will_delay_s * 16 + 1)
            connection.will = None
            if session.number:
                broker._store.will(session)
    session.ends_at = now(broker) + session.expiry_s * 16 + 1 if session.expiry_s > 0 else 0


def tick(broker):
    for session in broker._sessions.values():
        if not session.connection and (session.will or session.ends_at):
            break
    else:
        return
    time = now(broker)
    for session in list(broker._sessions.values()):
        if session.connection:
            continue
        if session.ends_at and time >= session.ends_at:
            broker._drop_session(session)
        elif session.will and time >= session.will[2]:
            will = session.will
            session.will = None
            broker._call(broker._publish_message, *will[:2])
            if session.number:
                broker._store.session(session, session.expiry_s)
