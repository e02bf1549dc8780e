"""An MQTT 3.1.1 broker in one file, for MicroPython 1.22+ and CPython 3.11+.

It knows nothing of the client, of files or of radios: bring the network up, then `await broker.run()`.
"""
# broker = Broker(port=1883, max_clients=8, auth=check)
# broker.subscribe("button/#", on_button)      # on_button(topic: str, payload: bytes, retained: bool)
# broker.publish("led", b"on", qos=1)
# asyncio.run(broker.run())
#
# A message's way: all connections are read into one shared buffer and parsed in place. A QoS 0 PUBLISH
# is forwarded out of that buffer as it came, neighbours in one piece, and leaves nothing behind. Whatever
# must be remembered (QoS 1 and 2, retained, a slow reader's) becomes one `message`, shared by its receivers:
#
#     message = length of topic (2 bytes), topic, slot (2 bytes), payload        (bytearray)
#
# The slot is where the packet identifier goes on the wire, so that sending is one copy. At rest it holds
# how many queues have the message (so that shared bytes count once) and the QoS it was published with.
#
# From source it needs about 155 kB of heap on the 64-bit unix port (compiling takes 17 bytes per token), as .mpy
# 50 kB with four clients; a 32-bit board needs half. Annotations would cost the compiler another 7 kB.
import asyncio
import gc
import os
import socket
import sys
import time

try:
    from asyncio import core as _core  # MicroPython only
    from micropython import const
except ImportError:
    _core = None

    def const(value):
        return value


# ---- constants ----

_CONNECT = const(0x10)
_PUBLISH = const(0x30)
_PUBACK = const(0x40)
_PUBREC = const(0x50)
_PUBREL = const(0x62)
_PUBCOMP = const(0x70)
_SUBSCRIBE = const(0x82)
_UNSUBSCRIBE = const(0xA2)
_UNSUBACK = const(0xB0)
_PINGREQ = const(0xC0)
_DISCONNECT = const(0xE0)

# CONNACK return codes (§3.2.2.3)
_BAD_LEVEL = const(1)
_BAD_CLIENT_ID = const(2)
_UNAVAILABLE = const(3)
_NOT_AUTHORIZED = const(5)

# An entry of a session's queue is two neighbours in one list: `meta`, a small integer (no allocation), and
# the message. meta = packet identifier | state << 16 | flags; the state is the QoS, or _RELEASED.
_STATE = const(16)
_RELEASED = const(3)  # QoS 2, PUBREC came: the message is done with (now b""), its PUBREL is not
_RETAIN = const(0x40000)
_DUP = const(0x80000)
# What ends each state, or takes it one further.
_ENDS_WITH = (0, _PUBACK, _PUBREC, _PUBCOMP)
_ENTRY_BYTES = const(32)  # list cells of an entry, or header of an object, on a 64-bit port; half on a board
_RETAINED_BYTES = const(160)  # of a retained message beside itself: dict cells, topic, object headers

_QOS2_RECEIVED_MAX = const(128)  # unreleased QoS 2 packet identifiers; Mosquitto allows 20, paho sends 20
_PENDING_MAX = const(4)  # connections beside max_clients that have not sent CONNECT yet
_ROUTES_MAX = const(16)  # topics whose receivers are remembered; more topics only cost time
_CHUNK_BYTES = const(1460)  # read at once: one TCP segment, then the others have their turn
_BEHIND = const(4)  # messages that wait for a place in the window: their publisher waits, too
_HELD_BYTES_MAX = const(256)  # 64 acknowledgements; usual windows are 10 to 20
_LOG_LINES_MAX = const(5)  # per second: a UART of 115,200 bit/s takes 5 ms a line

# Counters, by their place in Broker._counts, and their names under $SYS/broker/.
_RECEIVED = const(0)  # PUBLISH packets, each QoS 2 message once
_SENT = const(1)  # PUBLISH packets
_DROPPED = const(2)  # a queue was full, or no memory
_REFUSED = const(3)  # connections: no room, not authorized, displaced
_MALFORMED = const(4)  # connections
_RETAINED_REFUSED = const(5)
_SUBSCRIPTIONS_REFUSED = const(6)
_SYS = (
    "messages/received",
    "messages/sent",
    "messages/dropped",
    "connections/refused",
    "connections/malformed",
    "retained/refused",
    "subscriptions/refused",
    "clients/connected",
    "clients/total",
    "heap/free",
    "uptime",
)


class _Malformed(ValueError):  # the peer broke the protocol: ends its connection and nothing else
    pass


# ---- the two interpreters: clock, sockets, waiting ----

# All sockets are non-blocking; None from _receive or _send means "not now".
#
# _watch calls on_ready() whenever the socket is readable (or writable), until that returns False or until
# the function that _watch returned is called. On MicroPython that is one small generator per socket on
# asyncio's own poller, through the two calls that its stream.py uses too (what lies beneath them differs
# between versions), so that the broker sleeps whenever the hosting program does: a poll object of our own
# couldn't wait together with that program's tasks, and streams would copy and lock per packet.
if _core:
    _ticks_ms = time.ticks_ms  # wraps around, after 12 days on a 32-bit board
    _ticks_diff = time.ticks_diff

    def _receive(sock, view):
        return sock.readinto(view)

    def _send(sock, data, offset, length):
        return sock.write(data, offset, length)

    def _wait(queue, sock, on_ready):
        while True:
            yield queue(sock)
            if not on_ready():
                return

    def _watch(sock, write, on_ready):
        queue = _core._io_queue
        task = asyncio.create_task(_wait(queue.queue_write if write else queue.queue_read, sock, on_ready))
        return lambda: task is asyncio.current_task() or task.cancel()

else:

    def _ticks_ms():
        return time.monotonic_ns() // 1_000_000

    def _ticks_diff(end, start):
        return end - start

    def _receive(sock, view):
        try:
            return sock.recv_into(view)
        except BlockingIOError:
            return None

    def _send(sock, data, offset, length):
        try:
            return sock.send(memoryview(data)[offset : offset + length])
        except BlockingIOError:
            return None

    def _watch(sock, write, on_ready):
        loop = asyncio.get_running_loop()
        remove = loop.remove_writer if write else loop.remove_reader

        def ready():
            if not on_ready() and sock.fileno() >= 0:
                remove(sock)

        (loop.add_writer if write else loop.add_reader)(sock, ready)
        return lambda: remove(sock)


# ---- codec ----


# str() checks the form; what MicroPython's lets pass is checked here: overlong forms, surrogates
# [MQTT-1.5.3-1] and U+0000 [MQTT-1.5.3-2].
def _text(data):
    text = str(data, "utf-8")
    before = 0
    for byte in data:
        if (
            not byte
            or byte in b"\xc0\xc1"
            or byte > 0xF4
            or (before == 0xE0 and byte < 0xA0)
            or (before == 0xED and byte > 0x9F)
            or (before == 0xF0 and byte < 0x90)
            or (before == 0xF4 and byte > 0x8F)
        ):
            raise _Malformed("not UTF-8, or U+0000")
        before = byte
    return text


# Fields of one packet, in order; where allocating is no matter (CONNECT, SUBSCRIBE, UNSUBSCRIBE).
class _Fields:
    def __init__(self, data):
        self.data = data  # memoryview of what is left

    def take(self, count):
        data = self.data
        if count > len(data):
            raise _Malformed("packet too short")
        self.data = data[count:]
        return bytes(data[:count])

    def integer(self):
        pair = self.take(2)
        return pair[0] << 8 | pair[1]

    def binary(self):
        return self.take(self.integer())

    def text(self):
        return _text(self.binary())


def _message(topic, payload, qos):
    topic = topic.encode()
    return bytearray((len(topic) >> 8, len(topic) & 255)) + topic + bytes((0, qos)) + payload


def _slot(message):
    return 2 + (message[0] << 8 | message[1])


# ---- topics ----


def check_topic(topic):
    if not topic or "+" in topic or "#" in topic:
        raise _Malformed("topic name")  # [MQTT-3.3.2-2], [MQTT-4.7.3-1]


def check_filter(topic_filter):
    if not topic_filter or "#" in topic_filter[:-1]:
        raise _Malformed("topic filter")  # [MQTT-4.7.3-1], [MQTT-4.7.1-2]
    for level in topic_filter.split("/"):
        if len(level) > 1 and ("#" in level or "+" in level):
            raise _Malformed("topic filter")  # [MQTT-4.7.1-2], [MQTT-4.7.1-3]


def matches(topic_filter, topic):
    if topic[0] == "$" != topic_filter[0]:
        return False  # [MQTT-4.7.2-1]
    levels = topic.split("/")
    at = 0
    for level in topic_filter.split("/"):
        if level == "#":
            return True
        if at == len(levels) or (level != "+" and level != levels[at]):
            return False
        at += 1
    return at == len(levels)


# ---- session: what outlives a connection ----


class _Session:
    connection = None  # set by CONNECT, cleared when the connection closes
    absent_since_s = 0
    in_flight = 0  # entries at the queue's head that were sent on this connection
    passed = 0  # entries that wait no longer, ever: sent or dropped
    packet_id = 0  # the last one given

    def __init__(self, client_id, clean):
        self.client_id = client_id
        self.clean = clean
        self.subscriptions = {}  # topic filter -> granted QoS
        # meta, message, meta, message ...: first those in flight, then those that wait. Room for some is made
        # now: in a heap full of messages there are few holes of 512 bytes.
        self.queue = [None] * 64
        del self.queue[:]
        self.received = []  # packet identifiers of QoS 2 between PUBLISH and PUBREL

    def waiting(self):
        return len(self.queue) // 2 - self.in_flight

    def next_packet_id(self):
        while True:
            self.packet_id = self.packet_id % 65535 + 1
            # Looking for it is needed only once they have been used up.
            if self.passed < 65535 or self.find(self.packet_id) < 0:
                return self.packet_id

    # Where the entry in flight is, or -1. The first almost always, since clients acknowledge in order.
    def find(self, packet_id):
        queue = self.queue
        for at in range(0, 2 * self.in_flight, 2):
            if queue[at] & 0xFFFF == packet_id:
                return at
        return -1


# ---- connection: what one socket needs ----


class _Connection:
    session = None  # set by CONNECT
    stop_writing = None  # ends the watch of a stalled socket
    rest = None  # the beginning of a packet whose end has not come
    unsent = None  # what the socket did not take of a write; None: not stalled
    forward = 0  # buffer[forward:forward_end] is to be sent as it is
    forward_end = 0
    dirty = False  # in Broker._dirty
    pings = 0  # PINGRESPs due ...
    pings_after = 0  # ... once session.passed has come so far
    will = None  # a message; cleared by DISCONNECT
    waits_for = None  # a session that fell behind with what this connection published ...
    held = b""  # ... and the acknowledgements of that

    def __init__(self, broker, sock):
        self.sock = sock  # None once closed
        self.control = bytearray()  # acknowledgements to send
        self.last_ms = _ticks_ms()  # when bytes last came
        self.deadline_ms = broker.connect_timeout_s * 1000  # of silence; after CONNECT 1.5 keep alives, 0: none
        self.stop_reading = _watch(sock, False, lambda: broker._on_readable(self))


# ---- broker ----


class Broker:
    uptime_s = 0
    _ms = 0  # of the second that has begun
    _log_lines = 0  # in this second
    _queued_bytes = 0  # of all sessions
    _retained_bytes = 0
    _listener = None  # set by listen(), cleared by close()
    _stop_accepting = None
    _behind = None  # a session that fell behind in this _publish

    # auth(client_id: str, user: str | None, password: bytes | None) -> bool
    # log(line: str): a few lines a second at most
    # budget_bytes: the heap to plan with, by default what is free now
    # limits: any of those in `limits` below, which else follow from the budget
    def __init__(self, port=1883, bind="0.0.0.0", max_clients=8, auth=None, log=print, budget_bytes=0, **limits):
        gc.collect()
        budget = budget_bytes or (gc.mem_free() if _core else 4_000_000)
        self._limits = {
            "budget_bytes": budget,
            "max_clients": max_clients,
            "max_sessions": 2 * max_clients,
            "max_packet": min(max(budget // 16, 256), 65_536),  # twice: to receive, to send
            "max_queued_messages": min(max(budget // 400, 32), 1000),  # per session; Mosquitto's limit is 1000
            "max_queued_bytes": budget * 3 // 8,  # of all queues
            "max_retained_bytes": budget // 8,
            "max_subscription_bytes": budget // 16,
            "max_inflight": min(max(budget // 4000, 8), 20),  # Mosquitto: 20
            "connect_timeout_s": 10,
            "session_expiry_s": 86_400,  # an absent session older than this makes room when there is none
            "sys_interval_s": 10,
        }
        for name in limits:
            self._limits[name]  # KeyError: there is no such limit
        self._limits.update(limits)
        for name in self._limits:
            setattr(self, name, self._limits[name])
        self.port = port
        self.bind = bind
        self.auth = auth
        self.log = log
        self._connections = []  # in the order of their coming
        self._sessions = {}  # client identifier -> session
        self._retained = {}  # topic -> message
        self._local = []  # topic filter, callback of the hosting program
        self._routes = []  # (length and bytes of the topic, topic, [(session, QoS), ...], callbacks)
        self._dirty = []  # connections that have something to send
        self._buffer = bytearray(self.max_packet)
        self._view = memoryview(self._buffer)
        self._chunk = self._view[:_CHUNK_BYTES]
        self._stage = bytearray(self.max_packet + 64)  # outgoing packets are put together here
        self._stage_view = memoryview(self._stage)
        self._counts = [0] * 7

    def limits(self):
        return self._limits

    # ---- the hosting program's side ----

    # A wrong topic or filter, or a message larger than max_packet, is a ValueError.
    # callback(topic: str, payload: bytes, retained: bool) is called at once, in the broker's task: be quick.
    def subscribe(self, topic_filter, callback):
        check_filter(topic_filter)
        self._local.append((topic_filter, callback))
        self._routes.clear()
        for topic, message in list(self._retained.items()):
            if matches(topic_filter, topic):
                self._call(callback, topic, bytes(message[_slot(message) + 2 :]), True)

    def publish(self, topic, payload, qos=0, retain=False):
        check_topic(topic)
        message = _message(topic, payload.encode() if isinstance(payload, str) else payload, qos)
        if len(message) > self.max_packet:
            raise ValueError("larger than max_packet")
        self._publish_message(message, retain)
        self._flush()

    def listen(self):
        while not self._listener:
            # A board's socket can't tell which port it was given: for 0 we choose one ourselves.
            port = self.port or 49152 + (int.from_bytes(os.urandom(2), "big") & 0x3FFF)
            sock = socket.socket()
            try:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind(socket.getaddrinfo(self.bind, port)[0][-1])
                sock.listen(32)  # more can be lost to a second's wait for the next SYN; 4 bytes each on lwIP
                sock.setblocking(False)
            except OSError:
                sock.close()
                if self.port:
                    raise
            else:
                self.port = port
                self._listener = sock

    # Until close(), within a second.
    async def run(self):
        self.listen()
        self._stop_accepting = _watch(self._listener, False, lambda: self._call(self._accept) or True)
        self._tick_ms = _ticks_ms()
        try:
            while self._listener:
                await asyncio.sleep(1)
                self._call(self._tick)
        finally:
            self.close()

    def close(self):
        if self._listener:
            if self._stop_accepting:
                self._stop_accepting()
            self._listener.close()
            self._listener = None
            for connection in list(self._connections):
                self._close(connection)

    # ---- once a second ----

    def _tick(self):
        now = _ticks_ms()
        self._ms += _ticks_diff(now, self._tick_ms)
        self._tick_ms = now
        self._log_lines = 0
        while self._ms >= 1000:
            self._ms -= 1000
            self.uptime_s += 1
            if self.uptime_s % self.sys_interval_s == 0:
                self._publish_sys()
        for connection in list(self._connections):
            self._let_go(connection)
            if connection.deadline_ms and _ticks_diff(now, connection.last_ms) > connection.deadline_ms:
                self._close(connection, "silent for too long")  # [MQTT-3.1.2-24]
        self._flush()

    # To whoever has subscribed to them; kept nowhere.
    def _publish_sys(self):
        connected = sum(1 for connection in self._connections if connection.session)
        gc.collect()  # or the figure would count garbage
        free = gc.mem_free() if _core else 0
        values = self._counts + [connected, len(self._sessions), free, self.uptime_s]  # noqa: RUF005
        for name, value in zip(_SYS, values):
            topic = "$SYS/broker/" + name
            targets, callbacks = self._resolve(topic)
            if targets or callbacks:
                self._publish((b"", topic, targets, callbacks), _message(topic, str(value).encode(), 0), 0, None)

    # ---- connections come and go ----

    def _accept(self):
        sock = self._listener.accept()[0]
        sock.setblocking(False)
        # When all places are taken, whoever has been silent longest without CONNECT gives way, so that
        # connections that were opened and abandoned lock nobody out.
        if len(self._connections) >= self.max_clients + _PENDING_MAX:
            self._counts[_REFUSED] += 1
            for connection in self._connections:
                if not connection.session:
                    self._close(connection)
                    break
            else:
                sock.close()
                return
        self._connections.append(_Connection(self, sock))
        sock.setsockopt(6, 1, 1)  # TCP_NODELAY: we write once per burst, waiting gains nothing

    # Ends a connection, well when there is no reason to tell.
    def _close(self, connection, reason=None):
        self._flush()  # what was answered before is sent
        if connection.sock is None:
            return
        session = connection.session
        if reason:
            self._log("closed %s: %s", session.client_id if session else "a newcomer", reason)
        connection.stop_reading()
        if connection.stop_writing:
            connection.stop_writing()
        connection.sock.close()
        # Whatever still refers to it, as an old task does for a while, shall not keep the rest.
        connection.sock = connection.session = connection.rest = connection.unsent = connection.waits_for = None
        self._connections.remove(connection)
        if session is None:
            return
        session.connection = None
        if session.clean:
            self._drop_session(session)
        else:
            self._leave(session)
        if connection.will:
            self._call(self._publish_message, connection.will, connection.will_retain)

    # An absent session keeps QoS 1 and 2; what was in flight is sent again, marked, in the same order.
    def _leave(self, session):
        session.absent_since_s = self.uptime_s
        queue = session.queue
        at = 0
        while at < len(queue):
            if queue[at] >> _STATE & 3:
                if queue[at] & 0xFFFF:
                    queue[at] |= _DUP
                at += 2
            else:
                self._remove(session, at)
        session.queue = queue[:]  # the absent keep only the memory that they use
        session.in_flight = 0

    def _drop_session(self, session):
        del self._sessions[session.client_id]
        while session.queue:
            self._remove(session, 0)
        self._routes.clear()

    # One step of a connection's work: whatever goes wrong in it ends this connection and no other. *step* is
    # a function, since a bound method would be allocated.
    def _guard(self, step, connection):
        try:
            step(self, connection)
        except OSError:
            self._close(connection, "connection lost")
        except MemoryError:
            gc.collect()
            self._counts[_DROPPED] += 1
            self._close(connection, "out of memory")
        except Exception as error:  # noqa: BLE001 - _Malformed, UnicodeError, and should there be a bug
            self._counts[_MALFORMED] += 1
            self._close(connection, str(error))

    def _call(self, hook, *arguments):
        try:
            return hook(*arguments)
        except Exception as error:  # noqa: BLE001 - the hosting program's mistake must not end a client
            self._log("failed in %s: %r", hook, error)

    def _log(self, text, *values):
        self._log_lines += 1
        if self._log_lines <= _LOG_LINES_MAX:
            self.log(text % values)

    # ---- bytes in ----

    def _on_readable(self, connection):
        if len(connection.held) <= _HELD_BYTES_MAX or self._let_go(connection):
            self._guard(Broker._read, connection)
        for other in self._connections:
            if other.waits_for:
                self._let_go(other)
        self._flush()
        return connection.sock

    # Back-pressure: while a receiver that acknowledges falls behind, the acknowledgements of what is
    # published to it are held, so that the publisher waits (one without a window isn't read any more) and
    # nothing is lost. For 500 ms at most, and not for a receiver that has been silent for 100 ms: then the
    # receiver's oldest messages go. True if nothing is held any more.
    def _let_go(self, connection):
        slow = connection.waits_for
        if slow:
            receiver = slow.connection
            now = _ticks_ms()
            if (
                receiver
                and slow.waiting() > _BEHIND
                and _ticks_diff(now, receiver.last_ms) < 100
                and _ticks_diff(now, connection.held_ms) < 500
            ):
                return False
            connection.waits_for = None
            connection.control.extend(connection.held)
            connection.held = b""
            self._mark(connection)
        return True

    def _read(self, connection):
        chunk = self._chunk
        start = 0
        rest = connection.rest
        if rest:
            start = len(rest)
            self._view[:start] = rest
            chunk = self._view[start : start + _CHUNK_BYTES]
        count = _receive(connection.sock, chunk)
        if count is None:
            return
        if not count:
            self._close(connection, "connection lost" if connection.will else None)
            return
        connection.rest = None
        connection.last_ms = _ticks_ms()
        end = start + count
        start = self._parse(connection, end)
        if len(connection.control) > self.max_packet:
            raise _Malformed("does not read our answers")
        self._flush()
        if start < end:
            connection.rest = bytes(self._view[start:end])

    # Handles all complete packets in the buffer; returns where the first incomplete one begins.
    def _parse(self, connection, end):
        buffer = self._buffer
        start = 0
        while end - start > 1:
            header = buffer[start]
            at = start + 1
            length = shift = 0
            more = True
            while more:
                if at == end:
                    return start
                if shift > 21:
                    raise _Malformed("remaining length")
                more = buffer[at] & 128
                length |= (buffer[at] & 127) << shift
                shift += 7
                at += 1
            if connection.session is None and header != _CONNECT:
                raise _Malformed("first packet is not CONNECT")  # [MQTT-3.1.0-1]
            after = at + length
            if after > end:
                if after - start > self.max_packet:
                    raise _Malformed("packet too large")
                break
            if header == _PUBLISH:
                self._forward(connection, start, at, after)
            elif header >> 4 == 3:
                self._receive_publish(connection, header, at, after)
            elif length == 2 and header in (_PUBACK, _PUBREC, _PUBREL, _PUBCOMP):
                self._receive_acknowledgement(connection, header, buffer[at] << 8 | buffer[at + 1])
            else:
                self._receive_other(connection, header, at, after)
            if connection.sock is None:
                return end
            start = after
        return start

    def _receive_other(self, connection, header, at, after):
        session = connection.session
        if header == _PINGREQ and at == after:
            connection.pings += 1
            connection.pings_after = session.passed + session.waiting()
            self._mark(connection)
        elif header == _DISCONNECT and at == after:
            connection.will = None  # [MQTT-3.14.4-3]
            self._close(connection)
        elif header == _CONNECT and session is None:
            self._connect(connection, _Fields(self._view[at:after]))
        elif header == _SUBSCRIBE or header == _UNSUBSCRIBE:
            self._change_subscriptions(connection, header == _SUBSCRIBE, _Fields(self._view[at:after]))
        else:
            raise _Malformed("unexpected packet 0x%02x" % header)

    # ---- routes ----

    # The route of the topic at data[at:], which must end by *end*.
    def _route(self, data, at, end):
        for route in self._routes:
            if data.startswith(route[0], at) and at + len(route[0]) <= end:
                return route
        fields = _Fields(memoryview(data)[at:end])
        topic = fields.text()
        check_topic(topic)
        targets, callbacks = self._resolve(topic)
        route = (bytes(memoryview(data)[at : end - len(fields.data)]), topic, targets, callbacks)
        if len(self._routes) >= _ROUTES_MAX:
            self._routes.pop()
        self._routes.insert(0, route)
        return route

    # Each session once, at the highest QoS of those of its subscriptions that match [MQTT-3.3.5-1].
    def _resolve(self, topic):
        targets = []
        for session in self._sessions.values():
            best = -1
            for topic_filter, qos in session.subscriptions.items():
                if qos > best and matches(topic_filter, topic):
                    best = qos
            if best >= 0:
                targets.append((session, best))
        return targets, [callback for topic_filter, callback in self._local if matches(topic_filter, topic)]

    # ---- PUBLISH ----

    # A plain QoS 0 PUBLISH, buffer[start:after], goes to its receivers as it is, in one piece with what
    # went to them just before. If one of them can't take it so (it is slow, or something else goes
    # first), it takes the long way.
    def _forward(self, connection, start, at, after):
        route = self._route(self._buffer, at, after)
        targets = route[2]
        straight = not route[3]
        for session, _ in targets:
            target = session.connection
            if target and (
                target.unsent
                or (target.forward_end and target.forward_end != start)
                or len(session.queue) > 2 * session.in_flight
            ):
                straight = False
        if not straight:
            self._receive_publish(connection, _PUBLISH, at, after)
            return
        self._counts[_RECEIVED] += 1
        for session, _ in targets:
            target = session.connection
            if target and not (target is connection and target.bridge):
                if not target.forward_end:
                    target.forward = start
                    self._mark(target)
                target.forward_end = after
                self._counts[_SENT] += 1

    def _receive_publish(self, connection, header, at, after):
        buffer = self._buffer
        qos = header >> 1 & 3
        if qos == 3 or header & 14 == 8:
            raise _Malformed("PUBLISH flags")  # [MQTT-3.3.1-4], [MQTT-3.3.1-2]
        route = self._route(buffer, at, after)
        slot = at + len(route[0])
        if not qos:
            self._counts[_RECEIVED] += 1
            message = bytearray(route[0]) + b"\x00\x00" + bytes(self._view[slot:after])
            self._publish(route, message, header & 1, connection)
            return
        packet_id = buffer[slot] << 8 | buffer[slot + 1] if slot + 2 <= after else 0
        if not packet_id:
            raise _Malformed("packet identifier")  # [MQTT-2.3.1-1]
        received = connection.session.received
        if qos == 1 or packet_id not in received:
            buffer[slot] = 0
            buffer[slot + 1] = qos
            message = buffer[at:after]
            if qos == 2:
                if len(received) >= _QOS2_RECEIVED_MAX:
                    raise _Malformed("too many QoS 2 messages without PUBREL")
                received.append(packet_id)
            self._counts[_RECEIVED] += 1
            self._publish(route, message, header & 1, connection)
        header = _PUBACK if qos == 1 else _PUBREC
        if connection.waits_for:
            connection.held += bytes((header, 2, packet_id >> 8, packet_id & 255))
        else:
            self._acknowledge(connection, header, packet_id)

    def _publish_message(self, message, retain):
        self._publish(self._route(message, 0, len(message)), message, retain, None)

    def _publish(self, route, message, retain, source):
        _, topic, targets, callbacks = route
        if retain:
            self._retain(topic, message)
        published = message[_slot(message) + 1]
        for session, granted in targets:
            qos = granted if granted < published else published
            target = session.connection
            # QoS 0 is not kept for the absent; nothing goes back to a bridge (DESIGN §5: no loops).
            if (target or qos) and not (target and target is source and target.bridge):
                self._enqueue(session, message, qos << _STATE)
        if source and self._behind and not source.waits_for:
            source.waits_for = self._behind
            source.held_ms = _ticks_ms()
        self._behind = None
        for callback in callbacks:
            self._call(callback, topic, bytes(message[_slot(message) + 2 :]), False)

    def _retain(self, topic, message):
        old = self._retained.get(topic)
        size = self._retained_bytes - (len(old) + _RETAINED_BYTES if old else 0)
        if len(message) == _slot(message) + 2:  # no payload: deletes [MQTT-3.3.1-10]
            self._retained.pop(topic, None)
            self._retained_bytes = size
            return
        size += len(message) + _RETAINED_BYTES
        try:
            if size <= self.max_retained_bytes:
                self._retained[topic] = message
                self._retained_bytes = size
                return
        except MemoryError:  # no place for a larger dict
            gc.collect()
        self._counts[_RETAINED_REFUSED] += 1

    # ---- queues ----

    # Appends to the session's queue. When that is full, the oldest that waits goes (a QoS 0 message
    # displaces nothing); when all queues together are, the oldest of the longest.
    def _enqueue(self, session, message, meta):
        slot = _slot(message)
        if message[slot] == 255:
            message = message[:]  # counts no further
            message[slot] = 0
        size = len(message) + 2 * _ENTRY_BYTES
        while True:
            victim = session
            waiting = session.waiting()
            if self._queued_bytes + size > self.max_queued_bytes:
                victim = max(self._sessions.values(), key=_Session.waiting)
            elif waiting < self.max_queued_messages:
                try:
                    session.queue.append(meta)  # a list grows in even steps: the second one allocates nothing
                    session.queue.append(message)
                    break
                except MemoryError:  # no larger list to be had in one piece: this is all it can take
                    gc.collect()
            self._counts[_DROPPED] += 1
            if not victim.waiting() or (victim is session and not meta >> _STATE & 3):
                return
            self._remove(victim, 2 * victim.in_flight)
            victim.passed += 1
        if not message[slot]:
            self._queued_bytes += len(message) + _ENTRY_BYTES
        message[slot] += 1
        self._queued_bytes += _ENTRY_BYTES
        if session.connection:
            self._mark(session.connection)
            if waiting > _BEHIND:
                self._behind = session

    def _remove(self, session, at):
        self._release(session.queue[at + 1])
        del session.queue[at : at + 2]  # unlike pop() this keeps the list's memory, which is hard to find again
        self._queued_bytes -= _ENTRY_BYTES

    def _release(self, message):
        if message:
            slot = _slot(message)
            message[slot] -= 1
            if not message[slot]:
                self._queued_bytes -= len(message) + _ENTRY_BYTES

    # ---- acknowledgements ----

    def _acknowledge(self, connection, header, packet_id):
        control = connection.control
        control.append(header)
        control.append(2)
        control.append(packet_id >> 8)
        control.append(packet_id & 255)
        self._mark(connection)

    def _receive_acknowledgement(self, connection, header, packet_id):
        if not packet_id:
            raise _Malformed("packet identifier")
        session = connection.session
        if header == _PUBREL:
            if packet_id in session.received:
                session.received.remove(packet_id)
            self._acknowledge(connection, _PUBCOMP, packet_id)
            return
        if header == _PUBREC:  # answered even when unknown, so that the receiver can forget it
            self._acknowledge(connection, _PUBREL, packet_id)
        at = session.find(packet_id)
        queue = session.queue
        if at < 0 or header != _ENDS_WITH[queue[at] >> _STATE & 3]:
            return
        if header == _PUBREC:
            self._release(queue[at + 1])
            queue[at] = _RELEASED << _STATE | packet_id
            queue[at + 1] = b""
            return
        self._remove(session, at)
        session.in_flight -= 1
        self._mark(connection)

    # ---- bytes out ----

    def _mark(self, connection):
        if not connection.dirty:
            connection.dirty = True
            self._dirty.append(connection)

    def _flush(self):
        while self._dirty:
            connection = self._dirty.pop()
            connection.dirty = False
            self._guard(Broker._transmit, connection)

    # Sends what there is to send, in as few and as large writes as the stage allows, until the socket
    # takes no more.
    def _transmit(self, connection):
        if connection.unsent:
            self._write(connection, connection.unsent, 0, len(connection.unsent))
        end = connection.forward_end
        if end:
            connection.forward_end = 0
            self._write(connection, self._buffer, connection.forward, end)
        while connection.sock and not connection.unsent:
            control = connection.control
            end = len(control)
            if end:
                self._stage[:end] = control
                control[:] = b""
            if connection.session:
                end = self._fill(connection, connection.session, end)
            if not end:
                return
            self._write(connection, self._stage, 0, end)

    def _write(self, connection, data, start, end):
        start += _send(connection.sock, data, start, end - start) or 0
        connection.unsent = bytes(memoryview(data)[start:end]) if start < end else None
        if connection.unsent and not connection.stop_writing:
            connection.stop_writing = _watch(connection.sock, True, lambda: self._on_writable(connection))

    def _on_writable(self, connection):
        self._mark(connection)
        self._flush()
        if not connection.unsent:
            connection.stop_writing = None
        return connection.unsent

    # Puts what waits in the queue into stage[at:], as much as fits and the window allows.
    def _fill(self, connection, session, at):
        stage = self._stage
        queue = session.queue
        # With little room left the window is small, so that it is the publisher who waits.
        window = self.max_inflight if self._queued_bytes < self.max_queued_bytes // 2 else 4
        while session.in_flight < window:
            index = 2 * session.in_flight
            if index == len(queue) or len(connection.control) > 60:
                break
            meta = queue[index]
            message = queue[index + 1]
            if at + len(message) + 5 > len(stage):
                return at
            session.passed += 1
            if not meta >> _STATE & 3:
                at = self._put(at, _PUBLISH | (meta & _RETAIN) >> 18, 0, message)
                self._remove(session, index)
                continue
            session.in_flight += 1
            if meta >> _STATE & 3 == _RELEASED:
                self._acknowledge(connection, _PUBREL, meta & 0xFFFF)
                continue
            if not meta & 0xFFFF:
                meta |= session.next_packet_id()
                queue[index] = meta
            header = _PUBLISH | (meta >> _STATE & 3) << 1 | (meta & _RETAIN) >> 18 | (meta & _DUP) >> 16
            at = self._put(at, header, meta, message)
        # DESIGN §4, the drained marker: PINGRESP follows all that waited when PINGREQ came.
        while connection.pings and session.passed >= connection.pings_after and at + 2 <= len(stage):
            connection.pings -= 1
            stage[at] = 0xD0
            stage[at + 1] = 0
            at += 2
        return at

    # Encodes one PUBLISH into stage[at:].
    def _put(self, at, header, packet_id, message):
        self._counts[_SENT] += 1
        stage = self._stage
        size = len(message)
        length = size if header & 6 else size - 2
        stage[at] = header
        at += 1
        while length > 127:
            stage[at] = length & 127 | 128
            length >>= 7
            at += 1
        stage[at] = length
        at += 1
        stage[at : at + size] = message
        end = at + size
        at += _slot(message)
        if header & 6:
            stage[at] = packet_id >> 8 & 255
            stage[at + 1] = packet_id & 255
            return end
        stage[at : end - 2] = self._stage_view[at + 2 : end]  # QoS 0 has no packet identifier
        return end - 2

    # ---- CONNECT ----

    def _connect(self, connection, fields):
        name = fields.binary()
        level = fields.take(1)[0]
        connection.bridge = level > 127  # so Mosquitto's bridges mark themselves
        level &= 127
        if name != (b"MQIsdp" if level == 3 else b"MQTT"):
            raise _Malformed("not MQTT")  # [MQTT-3.1.2-1]
        if level != 3 and level != 4:
            self._refuse(connection, _BAD_LEVEL)  # [MQTT-3.1.2-2]
            return
        flags = fields.take(1)[0]
        if flags & 1 or flags & 0x18 == 0x18 or flags & 0xC0 == 0x40 or (flags & 0x38 and not flags & 4):
            raise _Malformed("CONNECT flags")  # [MQTT-3.1.2-3], -11, -13 to -15, -22
        keep_alive_s = fields.integer()
        client_id = fields.text()
        will = user = password = None
        if flags & 4:
            topic = fields.text()
            check_topic(topic)
            will = _message(topic, fields.binary(), flags >> 3 & 3)
        if flags & 0x80:
            user = fields.text()
        if flags & 0x40:
            password = fields.binary()
        if fields.data:
            raise _Malformed("bytes after the last field")
        clean = flags & 2
        code = 0
        if not client_id and not clean:
            code = _BAD_CLIENT_ID  # [MQTT-3.1.3-8]
        elif self.auth and not self._call(self.auth, client_id, user, password):
            code = _NOT_AUTHORIZED
        elif not self._open_session(connection, client_id or "auto-" + os.urandom(6).hex(), clean):
            code = _UNAVAILABLE
        if code:
            self._refuse(connection, code)
            return
        connection.deadline_ms = keep_alive_s * 1500  # [MQTT-3.1.2-24]
        connection.will = will
        connection.will_retain = flags & 0x20

    def _refuse(self, connection, code):
        self._counts[_REFUSED] += 1
        connection.control.extend(bytes((0x20, 2, 0, code)))
        self._mark(connection)
        self._close(connection, "CONNECT refused, code %d" % code)

    # Finds or makes the session and answers; False when there is no room.
    def _open_session(self, connection, client_id, clean):
        sessions = self._sessions
        session = sessions.get(client_id)
        if session and session.connection:
            self._close(session.connection, "taken over by a new connection")  # [MQTT-3.1.4-2]
        if sum(1 for other in self._connections if other.session) >= self.max_clients:
            return False
        session = sessions.get(client_id)
        if session and clean:
            self._drop_session(session)
            session = None
        # When all places are taken, a session goes that has been away for long enough.
        if session is None and len(sessions) >= self.max_sessions:
            for other in list(sessions.values()):
                if not other.connection and self.uptime_s - other.absent_since_s >= self.session_expiry_s:
                    self._drop_session(other)
            if len(sessions) >= self.max_sessions:
                return False
        connection.control.extend(b"\x20\x02\x01\x00" if session else b"\x20\x02\x00\x00")
        if session is None:
            session = sessions[client_id] = _Session(client_id, clean)
        session.connection = connection
        connection.session = session
        self._mark(connection)
        return True

    # ---- SUBSCRIBE and UNSUBSCRIBE ----

    def _change_subscriptions(self, connection, subscribe, fields):
        packet_id = fields.integer()
        if not packet_id or not fields.data:
            raise _Malformed("SUBSCRIBE")  # [MQTT-2.3.1-1], [MQTT-3.8.3-3], [MQTT-3.10.3-2]
        wanted = []
        while fields.data:
            topic_filter = fields.text()
            check_filter(topic_filter)
            qos = fields.take(1)[0] if subscribe else 0
            if qos > 2:
                raise _Malformed("requested QoS")  # [MQTT-3-8.3-4]
            wanted.append((topic_filter, qos))
        self._routes.clear()
        session = connection.session
        if not subscribe:
            for topic_filter, _ in wanted:
                session.subscriptions.pop(topic_filter, None)
            self._acknowledge(connection, _UNSUBACK, packet_id)
            return
        answer = bytearray((packet_id >> 8, packet_id & 255))
        for topic_filter, qos in wanted:
            answer.append(qos if self._add_subscription(session, topic_filter, qos) else 0x80)
        length = len(answer)
        header = (0x90, length) if length < 128 else (0x90, length & 127 | 128, length >> 7)
        connection.control.extend(bytes(header) + answer)
        self._mark(connection)
        for index in range(len(wanted)):
            if answer[index + 2] != 0x80:
                self._send_retained(session, *wanted[index])

    def _add_subscription(self, session, topic_filter, qos):
        used = sum(len(other) + _ENTRY_BYTES for each in self._sessions.values() for other in each.subscriptions)
        # Shared subscriptions don't exist yet: saying so is better than granting them.
        if topic_filter.startswith("$share/") or used + len(topic_filter) > self.max_subscription_bytes:
            self._counts[_SUBSCRIPTIONS_REFUSED] += 1
            return False
        session.subscriptions[topic_filter] = qos
        return True

    def _send_retained(self, session, topic_filter, qos):
        if topic_filter.startswith("$SYS"):
            self._publish_sys()
        for topic, message in self._retained.items():
            if matches(topic_filter, topic):
                if session.waiting() > 8:
                    self._flush()  # there may be more of them than the queue takes
                self._enqueue(session, message, min(qos, message[_slot(message) + 1]) << _STATE | _RETAIN)


# ---- as a program: micropython midge_broker.py PORT [BIND] ----


def main(arguments):
    broker = Broker(int(arguments[0]), arguments[1] if len(arguments) > 1 else "127.0.0.1")
    broker.listen()
    print("listening on mqtt://%s:%d" % (broker.bind, broker.port))
    if _core is None:  # MicroPython knows no signal but Ctrl-C, and doesn't buffer its output
        import signal

        signal.signal(signal.SIGTERM, signal.default_int_handler)
        sys.stdout.flush()
    try:
        asyncio.run(broker.run())
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main(sys.argv[1:])
