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
# must be remembered (QoS 1 and 2, retained, queued) becomes one `message`, shared by all its receivers:
#
#     message = length of topic (2 bytes), topic, slot (2 bytes), payload        (bytes)
#
# The slot is where the packet identifier goes on the wire, so that sending is one copy; at rest it holds
# the QoS that the message was published with.
import asyncio
import gc
import os
import socket
import sys
import time

try:
    from asyncio import core as _core  # MicroPython only
except ImportError:
    _core = None

try:
    from micropython import const
except ImportError:

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
_PINGREQ = const(0xC0)
_DISCONNECT = const(0xE0)
_CONNACK_BYTES = b"\x20\x02\x00\x00"
_PINGRESP_BYTES = b"\xd0\x00"

# CONNACK return codes (§3.2.2.3)
_BAD_LEVEL = const(1)
_BAD_CLIENT_ID = const(2)
_UNAVAILABLE = const(3)
_NOT_AUTHORIZED = const(5)

# An entry of a session's queue is two neighbours in one list: `meta`, a small integer (no allocation), and
# the message. meta = packet identifier | QoS << 16 | flags.
_QOS_SHIFT = const(16)
_RETAIN = const(0x40000)
_DUP = const(0x80000)
_RELEASED = const(0x100000)  # PUBREC came: what is left of the message is its PUBREL
_ENTRY_BYTES = const(48)  # list cells and object headers of one entry on a 64-bit port; half on a board

_QOS2_RECEIVED_MAX = const(128)  # unreleased QoS 2 packet identifiers; Mosquitto allows 20, paho sends 20
_PENDING_MAX = const(4)  # connections beside max_clients that have not sent CONNECT yet, or take one over
_ROUTES_MAX = const(16)  # topics whose receivers are remembered; more only cost time
_ROUNDS_MAX = const(4)  # buffers read from one connection before the others have their turn
_LOG_LINES_MAX = const(5)  # per second: a UART of 115,200 bit/s takes 5 ms a line
_TICK_MS = const(1000)


class _Malformed(Exception):  # the peer broke the protocol: ends its connection and nothing else
    pass


def _print(line):
    print(line)


# ---- clock: ticks_ms of MicroPython wraps around (after 12 days on a 32-bit board) ----

if hasattr(time, "ticks_ms"):
    _ticks_ms = time.ticks_ms
    _ticks_diff = time.ticks_diff
else:

    def _ticks_ms():
        return time.monotonic_ns() // 1_000_000

    def _ticks_diff(end, start):
        return end - start


# ---- sockets: all of them are non-blocking; None means "not now" ----

if _core:

    def _receive(sock, view):
        return sock.readinto(view)

    def _send(sock, data, offset, length):
        return sock.write(data, offset, length)

else:

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


# Waiting for readiness. MicroPython: one small generator per socket on asyncio's own poller, through the
# two calls that its stream.py uses and that have been stable since 1.13 (the rest of IOQueue differs
# between versions), so the broker sleeps when the hosting program sleeps. Streams would cost a copy and
# a lock per packet; a poll object of our own could not wait together with the hosting program's tasks.
# CPython: the loop's readers and writers.
if _core:

    def _wait_readable(sock, on_ready):  # until on_ready() returns False
        more = True
        while more:
            yield _core._io_queue.queue_read(sock)
            more = on_ready()

    def _wait_writable(sock, on_ready):
        more = True
        while more:
            yield _core._io_queue.queue_write(sock)
            more = on_ready()

    def _watch_read(sock, on_ready):
        return asyncio.create_task(_wait_readable(sock, on_ready))

    def _watch_write(sock, on_ready):
        return asyncio.create_task(_wait_writable(sock, on_ready))

    def _unwatch(watch):
        if watch is not asyncio.current_task():
            watch.cancel()

else:

    class _Watch:
        def __init__(self, add, remove, sock, on_ready):
            self.remove, self.sock, self.on_ready = remove, sock, on_ready
            add(sock, self)

        def __call__(self):
            if not self.on_ready():
                self.cancel()

        def cancel(self):
            if self.sock is not None:
                self.remove(self.sock)
                self.sock = None

    def _watch_read(sock, on_ready):
        loop = asyncio.get_running_loop()
        return _Watch(loop.add_reader, loop.remove_reader, sock, on_ready)

    def _watch_write(sock, on_ready):
        loop = asyncio.get_running_loop()
        return _Watch(loop.add_writer, loop.remove_writer, sock, on_ready)

    def _unwatch(watch):
        watch.cancel()


# ---- codec ----


# The remaining length at buffer[at:], which is known to have more than one byte: value << 3 | bytes it
# takes, or 0 when more must be read first. One integer, since a tuple would be allocated.
def _remaining_length(buffer, at, end):
    value = shift = 0
    for count in range(1, 5):
        if at == end:
            return 0
        byte = buffer[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value << 3 | count
        shift += 7
    raise _Malformed("remaining length of more than 4 bytes")


# [MQTT-1.5.3-1] no surrogates, no overlong forms; [MQTT-1.5.3-2] no U+0000. MicroPython's own decoding
# lets surrogates and overlong forms pass.
def _text(data):
    need = 0
    low, high = 0x80, 0xBF
    for byte in data:
        if need:
            if not low <= byte <= high:
                raise _Malformed("not UTF-8")
            low, high = 0x80, 0xBF
            need -= 1
        elif byte < 0x80:
            if byte == 0:
                raise _Malformed("U+0000 in a string")
        elif 0xC2 <= byte <= 0xF4:
            need = 1 if byte < 0xE0 else 2 if byte < 0xF0 else 3
            if byte == 0xE0:
                low = 0xA0
            elif byte == 0xED:
                high = 0x9F
            elif byte == 0xF0:
                low = 0x90
            elif byte == 0xF4:
                high = 0x8F
        else:
            raise _Malformed("not UTF-8")
    if need:
        raise _Malformed("not UTF-8")
    return str(data, "utf-8")


# Fields of one packet, in order; used where allocating is no matter (CONNECT, SUBSCRIBE, UNSUBSCRIBE).
class _Fields:
    def __init__(self, view, at, end):
        self.view, self.at, self.end = view, at, end

    def byte(self):
        if self.at >= self.end:
            raise _Malformed("packet too short")
        self.at += 1
        return self.view[self.at - 1]

    def integer(self):
        return self.byte() << 8 | self.byte()

    def binary(self):
        length = self.integer()
        start = self.at
        self.at += length
        if self.at > self.end:
            raise _Malformed("packet too short")
        return bytes(self.view[start : self.at])

    def text(self):
        return _text(self.binary())

    def packet_id(self):
        packet_id = self.integer()
        if not packet_id:
            raise _Malformed("packet identifier 0")  # [MQTT-2.3.1-1]
        return packet_id

    def finish(self):
        if self.at != self.end:
            raise _Malformed("bytes after the last field")


def _message(topic, payload, qos):
    return bytes((len(topic) >> 8, len(topic) & 255)) + topic + bytes((0, qos)) + payload


def _message_qos(message):
    return message[3 + (message[0] << 8 | message[1])]


def _message_payload(message):
    return message[4 + (message[0] << 8 | message[1]) :]


# ---- topics ----


def check_topic(topic: str) -> None:
    if not topic or "+" in topic or "#" in topic:
        raise _Malformed("topic name empty or with a wildcard")  # [MQTT-3.3.2-2], [MQTT-4.7.3-1]


def check_filter(topic_filter: str) -> None:
    levels = topic_filter.split("/")
    for level in levels:
        # [MQTT-4.7.1-2], [MQTT-4.7.1-3]; `#` must be the last level
        if len(level) > 1 and ("#" in level or "+" in level):
            raise _Malformed("wildcard beside other characters")
    if not topic_filter or "#" in levels[:-1]:
        raise _Malformed("topic filter empty or # not last")


def matches(topic_filter: str, topic: str) -> bool:
    if topic[0] == "$" and topic_filter[0] in "+#":
        return False  # [MQTT-4.7.2-1]
    levels = topic.split("/")
    count = len(levels)
    at = 0
    for level in topic_filter.split("/"):
        if level == "#":
            return True
        if at == count or (level != "+" and level != levels[at]):
            return False
        at += 1
    return at == count


# Who receives a topic. Valid until a subscription changes; found again by the topic's bytes in place.
class _Route:
    def __init__(self, key, topic):
        self.key = key  # length and bytes of the topic, as on the wire
        self.topic = topic
        self.targets = []  # session, granted QoS, session, granted QoS ...
        self.callbacks = []  # of the hosting program


# ---- session: what outlives a connection ----


class _Session:
    def __init__(self, client_id, clean):
        self.client_id = client_id
        self.clean = clean
        self.connection = None  # set by CONNECT, cleared when the connection closes
        self.absent_since_s = 0
        self.subscriptions = {}  # topic filter -> granted QoS
        self.queue = []  # meta, message, meta, message ...: first those in flight, then those that wait
        self.in_flight = 0  # entries at the head that were sent on this connection
        self.queued_bytes = 0
        self.packet_id = 0  # the last one given
        self.received = []  # packet identifiers of QoS 2 between PUBLISH and PUBREL

    def waiting(self):
        return len(self.queue) // 2 - self.in_flight

    def next_packet_id(self):
        while True:
            self.packet_id = self.packet_id % 65535 + 1
            if self.find(self.packet_id) < 0:
                return self.packet_id

    # Index of the entry in flight, or -1. The first almost always, since clients acknowledge in order.
    def find(self, packet_id):
        queue = self.queue
        for at in range(0, len(queue), 2):
            if queue[at] & 0xFFFF == packet_id:
                return at
            if not queue[at] & 0xFFFF:
                break  # from here on nothing was ever sent
        return -1


# ---- connection: what one socket needs ----


class _Connection:
    def __init__(self, sock, now):
        self.sock = sock  # None once closed
        self.session = None  # set by CONNECT
        self.reader = None  # the watches; a stalled connection is not read from
        self.writer = None
        self.last_ms = now  # when bytes last came, or went to a stalled reader
        self.deadline_ms = 0  # 1.5 times the keep alive, 0: none; until CONNECT its deadline
        self.rest = None  # the beginning of a packet whose end has not come
        self.unsent = None  # what the socket did not take of a write; None: not stalled
        self.control = []  # acknowledgements (type << 16 | packet identifier) and ready packets (bytes)
        self.gathered = False  # control has QoS 0 messages
        self.forward = 0  # this part of the receive buffer is to be forwarded
        self.forward_end = 0
        self.dirty = False
        self.pings = 0  # PINGRESPs due ...
        self.pings_after = 0  # ... once so many of the entries waiting have gone
        self.bridge = False
        self.will = None  # (message, retain)
        self.route = None  # of the last PUBLISH


# ---- broker ----


class Broker:
    # auth(client_id: str, user: str | None, password: bytes | None) -> bool
    # log(line: str); at most a few lines a second
    # budget_bytes: heap to plan with, by default what is free now; the limits that are not given follow.
    def __init__(
        self,
        port=1883,
        bind="0.0.0.0",
        max_clients=8,
        auth=None,
        log=_print,
        budget_bytes=0,
        max_sessions=0,
        max_packet=0,
        max_queued_messages=0,
        max_queued_bytes=0,
        max_session_bytes=0,
        max_retained_messages=0,
        max_retained_bytes=0,
        max_subscription_bytes=0,
        max_inflight=16,
        connect_timeout_s=10,
        session_expiry_s=86_400,
        sys_interval_s=10,
    ):
        gc.collect()
        if not budget_bytes:
            budget_bytes = gc.mem_free() if hasattr(gc, "mem_free") else 4_000_000
        self.port, self.bind, self.auth, self.log = port, bind, auth, log
        self.budget_bytes = budget_bytes
        self.max_clients = max_clients
        self.max_sessions = max_sessions or 2 * max_clients
        # Two buffers of one packet each: an eighth of the budget.
        self.max_packet = max_packet or min(max(budget_bytes // 16, 256), 65_536)
        self.max_queued_messages = max_queued_messages or min(max(budget_bytes // 1000, 16), 1000)
        self.max_queued_bytes = max_queued_bytes or budget_bytes // 4
        self.max_session_bytes = max_session_bytes or self.max_queued_bytes // 2
        self.max_retained_messages = max_retained_messages or self.max_queued_messages
        self.max_retained_bytes = max_retained_bytes or budget_bytes // 8
        self.max_subscription_bytes = max_subscription_bytes or budget_bytes // 16
        self.max_inflight = max_inflight
        self.connect_timeout_s = connect_timeout_s
        self.session_expiry_s = session_expiry_s
        self.sys_interval_s = sys_interval_s

        self._listener = None
        self._accepting = None
        self._running = None  # the task in run()
        self._connections = []
        self._sessions = {}
        self._retained = {}  # topic -> message
        self._local = []  # (topic filter, callback)
        self._routes = []
        self._dirty = []  # connections with something to send
        self._busy = False  # inside _read: the turn's end flushes
        self._buffer = bytearray(self.max_packet)
        self._view = memoryview(self._buffer)
        self._stage = bytearray(self.max_packet + 4)  # outgoing packets are put together here
        self._stage_view = memoryview(self._stage)
        self._log_lines = 0
        self._anonymous = 0  # client identifiers given
        # counters; $SYS shows them
        self.uptime_s = 0
        self._uptime_ms = 0
        self._tick_at = 0
        self.messages_received = 0
        self.messages_sent = 0
        self.messages_dropped = 0  # queue full, or no memory
        self.retained_refused = 0
        self.subscriptions_refused = 0
        self.connections_refused = 0
        self.connections_malformed = 0
        self.queued_bytes = 0
        self.retained_bytes = 0
        self.subscription_bytes = 0

    def limits(self):
        return {name: value for name, value in self.__dict__.items() if name[:4] == "max_" or name == "budget_bytes"}

    # ---- the hosting program's side ----

    # callback(topic: str, payload: bytes, retained: bool), at once and in the broker's task: be quick.
    def subscribe(self, topic_filter, callback):
        check_filter(topic_filter)
        self._local.append((topic_filter, callback))
        self._forget_routes()
        for topic in list(self._retained):
            if matches(topic_filter, topic):
                self._call(callback, topic, _message_payload(self._retained[topic]), True)

    def unsubscribe(self, topic_filter, callback):
        self._local.remove((topic_filter, callback))
        self._forget_routes()

    def publish(self, topic, payload, qos=0, retain=False):
        check_topic(topic)
        if isinstance(payload, str):
            payload = payload.encode()
        topic = topic.encode()
        message = _message(topic, payload, qos)
        self._publish(self._find_route(message, 0, 2 + len(topic)), message, retain, None)
        if not self._busy:
            self._flush()

    def listen(self):
        port = self.port
        while True:
            # A board's socket can't tell which port it was given (no getsockname), so 0 is ours to choose.
            if not self.port:
                port = 49152 + (int.from_bytes(os.urandom(2), "big") & 0x3FFF)
            family, _, _, _, address = socket.getaddrinfo(self.bind, port, 0, socket.SOCK_STREAM)[0]
            sock = socket.socket(family, socket.SOCK_STREAM)
            try:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind(address)
                sock.listen(self.max_clients + _PENDING_MAX)
                break
            except OSError:
                sock.close()
                if self.port:
                    raise
        sock.setblocking(False)
        self.port = port
        self._listener = sock

    async def run(self):
        if self._listener is None:
            self.listen()
        self._running = asyncio.current_task()
        self._accepting = _watch_read(self._listener, self._accept)
        self._tick_at = _ticks_ms()
        try:
            while self._listener is not None:
                await asyncio.sleep(_TICK_MS / 1000)
                self._tick()
        except asyncio.CancelledError:
            if self._listener is not None:
                raise
        finally:
            self._running = None
            self.close()

    def close(self):
        if self._listener is None:
            return
        if self._accepting is not None:
            _unwatch(self._accepting)
        self._listener.close()
        self._listener = None
        for connection in list(self._connections):
            self._close(connection)
        if self._running is not None and self._running is not asyncio.current_task():
            self._running.cancel()

    # ---- time ----

    def _tick(self):
        now = _ticks_ms()
        self._uptime_ms += _ticks_diff(now, self._tick_at)
        self._tick_at = now
        while self._uptime_ms >= 1000:
            self._uptime_ms -= 1000
            self.uptime_s += 1
            if self.sys_interval_s and self.uptime_s % self.sys_interval_s == 0:
                self._publish_sys(None)
        if self._log_lines > _LOG_LINES_MAX:
            self.log("... and %d lines more" % (self._log_lines - _LOG_LINES_MAX))
        self._log_lines = 0
        for connection in list(self._connections):
            if connection.deadline_ms and _ticks_diff(now, connection.last_ms) > connection.deadline_ms:
                self._close(connection, "keep alive timeout" if connection.session else "no CONNECT in time")
        self._flush()

    def _log(self, connection, reason):
        self._log_lines += 1
        if self._log_lines <= _LOG_LINES_MAX:
            session = connection.session
            self.log("closed %s: %s" % (session.client_id if session else "a connection", reason))

    # ---- connections come and go ----

    def _accept(self):
        try:
            for _ in range(_PENDING_MAX):
                sock, _ = self._listener.accept()
                self._accepted(sock)
        except OSError:
            pass  # no more for now (EAGAIN), or gone before we looked (ECONNABORTED)
        except MemoryError:
            self.connections_refused += 1
            gc.collect()
        return True

    def _accepted(self, sock):
        if len(self._connections) >= self.max_clients + _PENDING_MAX:
            # The newcomer takes the place of whoever has been silent longest, so that connections that
            # were opened and abandoned lock nobody out.
            self.connections_refused += 1
            for connection in self._connections:
                if connection.session is None:
                    self._close(connection, "displaced before CONNECT")
                    break
            else:
                sock.close()
                return
        try:
            sock.setblocking(False)
            sock.setsockopt(6, 1, 1)  # TCP_NODELAY: we write once per burst, waiting gains nothing
        except OSError:
            pass  # not on this port
        connection = _Connection(sock, _ticks_ms())
        connection.deadline_ms = self.connect_timeout_s * 1000
        self._connections.append(connection)
        self._start_reading(connection)

    def _start_reading(self, connection):
        connection.reader = _watch_read(connection.sock, lambda: self._read(connection))

    def _start_writing(self, connection):
        connection.writer = _watch_write(connection.sock, lambda: self._resume(connection))

    # Ends a connection; without a reason it ended well. The will goes out unless DISCONNECT cleared it.
    def _close(self, connection, reason=None):
        if connection.sock is None:
            return
        if reason:
            self._log(connection, reason)
        if connection.reader is not None:
            _unwatch(connection.reader)
        if connection.writer is not None:
            _unwatch(connection.writer)
        connection.sock.close()
        connection.sock = connection.rest = connection.unsent = None
        self._connections.remove(connection)
        session = connection.session
        if session is None:
            return
        session.connection = None
        if session.clean:
            self._drop_session(session)
        else:
            self._leave(session)
        will = connection.will
        if will is not None:
            connection.will = None
            message, retain = will
            length = 2 + (message[0] << 8 | message[1])
            self._publish(self._find_route(message, 0, length), message, retain, None)

    # An absent session keeps QoS 1 and 2; what was in flight is sent again, marked, in the same order.
    def _leave(self, session):
        session.absent_since_s = self.uptime_s
        queue = session.queue
        for at in range(len(queue) - 2, -1, -2):
            if not queue[at] >> _QOS_SHIFT & 3:
                self._remove(session, at)
            elif queue[at] & 0xFFFF and not queue[at] & _RELEASED:
                queue[at] |= _DUP
        session.in_flight = 0

    def _drop_session(self, session):
        del self._sessions[session.client_id]
        self.queued_bytes -= session.queued_bytes
        session.queue = []
        for topic_filter in session.subscriptions:
            self.subscription_bytes -= len(topic_filter) + _ENTRY_BYTES
        self._forget_routes()

    # ---- bytes in ----

    # Reads and handles what has come; False: don't call again.
    def _read(self, connection):
        if connection.unsent is not None:
            # Who doesn't take what we send isn't read from: that bounds what we owe it. _resume goes on.
            connection.reader = None
            return False
        self._busy = True
        try:
            for _ in range(_ROUNDS_MAX):
                if not self._receive(connection):
                    break
        except _Malformed as error:
            self.connections_malformed += 1
            self._send(connection)
            self._close(connection, error.args[0])
        except OSError:
            self._close(connection, "connection lost")
        except MemoryError:
            gc.collect()
            self.connections_refused += 1
            self._close(connection, "out of memory")
        self._busy = False
        self._flush()
        return connection.sock is not None

    # One buffer full; True when there may be more.
    def _receive(self, connection):
        start = 0
        view = self._view
        rest = connection.rest
        if rest is not None:
            start = len(rest)
            view[:start] = rest
            view = view[start:]
        count = _receive(connection.sock, view)
        if count is None:
            return False
        if not count:
            self._close(connection, "connection lost" if connection.will else None)
            return False
        connection.rest = None
        connection.last_ms = _ticks_ms()
        end = start + count
        at = self._parse(connection, end)
        if connection.sock is None:
            return False
        self._flush()
        if at < end:
            connection.rest = bytes(self._view[at:end])
        return end == self.max_packet and connection.unsent is None

    # Handles all complete packets in the buffer; returns where the first incomplete one begins.
    def _parse(self, connection, end):
        buffer = self._buffer
        start = 0
        while end - start > 1:
            header = buffer[start]
            length = buffer[start + 1]
            at = start + 2
            if length > 127:
                length = _remaining_length(buffer, start + 1, end)
                if not length:
                    break
                at = start + 1 + (length & 7)
                length >>= 3
            if connection.session is None and header != _CONNECT:
                raise _Malformed("first packet is not CONNECT")  # [MQTT-3.1.0-1]
            after = at + length
            if after > end:
                if after - start > self.max_packet:
                    raise _Malformed("packet too large")
                break
            if header == _PUBLISH:
                route = connection.route
                key = route.key if route is not None else None
                if key is None or not buffer.startswith(key, at) or at + len(key) > after:
                    route = self._publish_route(at, after)
                    connection.route = route
                    key = route.key
                count = 1
                first = start
                size = after - start
                start = after
                # Its neighbours with the same topic and length, if any, go with it in one piece.
                if length < 128:
                    while (
                        start + size <= end
                        and buffer[start] == _PUBLISH
                        and buffer[start + 1] == length
                        and buffer.startswith(key, start + 2)
                    ):
                        start += size
                        count += 1
                self.messages_received += count
                self._forward(connection, route, first, size, count)
            else:
                if header >> 4 == 3:
                    self._receive_publish(connection, header, start, at, after)
                elif length == 2 and header in (_PUBACK, _PUBREC, _PUBREL, _PUBCOMP):
                    self._receive_ack(connection, header, buffer[at] << 8 | buffer[at + 1])
                else:
                    self._receive_other(connection, header, at, after)
                if connection.sock is None:
                    return end
                start = after
        return start

    def _receive_other(self, connection, header, at, after):
        if header == _PINGREQ and at == after:
            connection.pings += 1
            connection.pings_after = connection.session.waiting()
            self._mark(connection)
        elif header == _DISCONNECT and at == after:
            connection.will = None  # [MQTT-3.14.4-3]
            self._send(connection)
            self._close(connection)
        elif header == _CONNECT and connection.session is None:
            self._connect(connection, _Fields(self._view, at, after))
        elif header == _SUBSCRIBE:
            self._subscribe(connection, _Fields(self._view, at, after))
        elif header == _UNSUBSCRIBE:
            self._unsubscribe(connection, _Fields(self._view, at, after))
        else:
            raise _Malformed("unexpected packet 0x%02x" % header)

    # ---- PUBLISH ----

    # The route of the topic at buffer[at:], after checking it.
    def _publish_route(self, at, after):
        buffer = self._buffer
        if after - at < 2:
            raise _Malformed("packet too short")
        topic_end = at + 2 + (buffer[at] << 8 | buffer[at + 1])
        if topic_end > after:
            raise _Malformed("packet too short")
        return self._find_route(buffer, at, topic_end)

    def _find_route(self, data, at, end):
        length = end - at
        for route in self._routes:
            if len(route.key) == length and data.startswith(route.key, at):
                return route
        key = bytes(memoryview(data)[at:end])
        topic = _text(key[2:])
        check_topic(topic)
        route = self._resolve(key, topic)
        if len(self._routes) >= _ROUTES_MAX:
            self._routes.pop()
        self._routes.insert(0, route)
        return route

    # Each session once, at the highest QoS of the subscriptions that match [MQTT-3.3.5-1].
    def _resolve(self, key, topic):
        route = _Route(key, topic)
        for session in self._sessions.values():
            best = -1
            for topic_filter, qos in session.subscriptions.items():
                if qos > best and matches(topic_filter, topic):
                    best = qos
            if best >= 0:
                route.targets.append(session)
                route.targets.append(best)
        for topic_filter, callback in self._local:
            if matches(topic_filter, topic):
                route.callbacks.append(callback)
        return route

    def _forget_routes(self):
        self._routes.clear()
        for connection in self._connections:
            connection.route = None

    # Forwards *count* QoS 0 PUBLISH packets of *size* bytes each, at buffer[first:], as they are.
    def _forward(self, connection, route, first, size, count):
        end = first + size * count
        targets = route.targets
        slow = None
        for index in range(0, len(targets), 2):
            session = targets[index]
            target = session.connection
            if target is None or (target is connection and target.bridge):
                continue
            if target.unsent is not None or len(session.queue) > 2 * session.in_flight:
                slow = slow or []
                slow.append(session)
                continue
            self.messages_sent += count
            if not target.forward_end:
                target.forward = first
                target.forward_end = end
                self._mark(target)
            elif target.forward_end == first and not target.gathered:
                target.forward_end = end
            else:
                target.control.append(bytes(self._view[first:end]))
                target.gathered = True
        if slow or route.callbacks:
            for first in range(first, end, size):
                self._queue_forwarded(route, first, first + size, slow)

    # For receivers that can't take a QoS 0 message straight from the buffer.
    def _queue_forwarded(self, route, first, end, slow):
        try:
            payload = bytes(self._view[first:end])
            at = 1
            while payload[at] > 127:
                at += 1
            payload = payload[at + 1 + len(route.key) :]
            message = None
            for session in slow or ():
                if self._has_room(session, len(route.key) + 2 + len(payload) + _ENTRY_BYTES, 0):
                    message = message or route.key + b"\x00\x00" + payload
                    self._enqueue(session, message, 0)
        except MemoryError:
            self.messages_dropped += 1
            return
        for callback in route.callbacks:
            self._call(callback, route.topic, payload, False)

    # A PUBLISH that is more than plain QoS 0.
    def _receive_publish(self, connection, header, start, at, after):
        buffer = self._buffer
        qos = header >> 1 & 3
        if qos == 3 or (header & 8 and not qos):
            raise _Malformed("QoS 3, or DUP at QoS 0")  # [MQTT-3.3.1-4], [MQTT-3.3.1-2]
        route = connection.route
        if route is None or not buffer.startswith(route.key, at) or at + len(route.key) > after:
            route = connection.route = self._publish_route(at, after)
        slot = at + len(route.key)
        if not qos:
            message = route.key + b"\x00\x00" + bytes(self._view[slot:after])
            self.messages_received += 1
            self._publish(route, message, True, connection)
            return
        if slot + 2 > after:
            raise _Malformed("packet too short")
        packet_id = buffer[slot] << 8 | buffer[slot + 1]
        if not packet_id:
            raise _Malformed("packet identifier 0")
        received = connection.session.received
        if qos == 1 or packet_id not in received:
            buffer[slot] = 0
            buffer[slot + 1] = qos
            message = bytes(self._view[at:after])
            if qos == 2:
                if len(received) >= _QOS2_RECEIVED_MAX:
                    raise _Malformed("too many QoS 2 messages without PUBREL")
                received.append(packet_id)
            self.messages_received += 1
            self._publish(route, message, header & 1, connection)
        self._acknowledge(connection, _PUBACK if qos == 1 else _PUBREC, packet_id)

    def _publish(self, route, message, retain, source):
        if retain:
            self._retain(route.topic, message)
        qos = _message_qos(message)
        targets = route.targets
        for index in range(0, len(targets), 2):
            session = targets[index]
            target = session.connection
            effective = targets[index + 1]
            if qos < effective:
                effective = qos
            if target is None:
                if not effective:
                    continue  # QoS 0 is not kept for the absent
            elif target is source and target.bridge:
                continue
            if self._has_room(session, len(message) + _ENTRY_BYTES, effective):
                self._enqueue(session, message, effective << _QOS_SHIFT)
        for callback in route.callbacks:
            self._call(callback, route.topic, _message_payload(message), False)

    def _call(self, callback, topic, payload, retained):
        try:
            callback(topic, payload, retained)
        except Exception as error:  # noqa: BLE001 - the hosting program's mistake must not end a client
            self.log("callback for %s: %r" % (topic, error))

    # ---- what is kept: retained messages and queues ----

    def _retain(self, topic, message):
        old = self._retained.get(topic)
        size = 0 if old is None else len(old) + len(topic) + _ENTRY_BYTES
        if not _message_payload(message):  # [MQTT-3.3.1-10]
            if old is not None:
                del self._retained[topic]
                self.retained_bytes -= size
            return
        more = len(message) + len(topic) + _ENTRY_BYTES - size
        if self.retained_bytes + more > self.max_retained_bytes or (
            old is None and len(self._retained) >= self.max_retained_messages
        ):
            self.retained_refused += 1
            return
        self._retained[topic] = message
        self.retained_bytes += more

    # Makes room for *size* bytes in the session's queue: the oldest that waits goes; a QoS 0 message
    # displaces nothing. When all queues together are full, the largest one pays.
    def _has_room(self, session, size, qos):
        while session.waiting() >= self.max_queued_messages or session.queued_bytes + size > self.max_session_bytes:
            if not qos or not self._drop_oldest(session):
                self.messages_dropped += 1
                return False
        while self.queued_bytes + size > self.max_queued_bytes:
            largest = session
            for other in self._sessions.values():
                if other.queued_bytes > largest.queued_bytes and other.waiting():
                    largest = other
            if (largest is session and not qos) or not self._drop_oldest(largest):
                self.messages_dropped += 1
                return False
        return True

    def _drop_oldest(self, session):
        if not session.waiting():
            return False
        self._remove(session, 2 * session.in_flight)
        self.messages_dropped += 1
        if session.connection is not None and session.connection.pings_after:
            session.connection.pings_after -= 1
        return True

    def _enqueue(self, session, message, meta):
        queue = session.queue
        try:
            queue.append(meta)
            queue.append(message)
        except MemoryError:
            if len(queue) & 1:
                queue.pop()
            self.messages_dropped += 1
            return
        size = len(message) + _ENTRY_BYTES
        session.queued_bytes += size
        self.queued_bytes += size
        if session.connection is not None:
            self._mark(session.connection)

    # Takes the entry out of the queue; who calls keeps in_flight right.
    def _remove(self, session, at):
        queue = session.queue
        message = queue[at + 1]
        size = _ENTRY_BYTES if message is None else len(message) + _ENTRY_BYTES
        session.queued_bytes -= size
        self.queued_bytes -= size
        queue.pop(at)
        queue.pop(at)

    # ---- acknowledgements ----

    def _acknowledge(self, connection, header, packet_id):
        connection.control.append(header << 16 | packet_id)
        self._mark(connection)

    def _receive_ack(self, connection, header, packet_id):
        if not packet_id:
            raise _Malformed("packet identifier 0")
        session = connection.session
        if header == _PUBREL:
            if packet_id in session.received:
                session.received.remove(packet_id)
            self._acknowledge(connection, _PUBCOMP, packet_id)
            return
        at = session.find(packet_id)
        known = 0 <= at < 2 * session.in_flight
        if header == _PUBREC:
            # Answered even when unknown, so that the receiver can forget it [MQTT-4.3.3-1].
            if known and session.queue[at] >> _QOS_SHIFT & 3 == 2 and not session.queue[at] & _RELEASED:
                size = len(session.queue[at + 1])
                session.queue[at] |= _RELEASED
                session.queue[at + 1] = None
                session.queued_bytes -= size
                self.queued_bytes -= size
            self._acknowledge(connection, _PUBREL, packet_id)
            return
        # PUBACK ends QoS 1, PUBCOMP a released QoS 2; any other one is ignored.
        if known and (session.queue[at] >> _QOS_SHIFT & 3 == 1) == (header == _PUBACK):
            if header == _PUBCOMP and not session.queue[at] & _RELEASED:
                return
            self._remove(session, at)
            session.in_flight -= 1
            if len(session.queue) > 2 * session.in_flight:
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
            self._send(connection)

    # Sends what the connection has to send, as few and as large writes as the stage allows, until the
    # socket takes no more.
    def _send(self, connection):
        if connection.sock is None or connection.unsent is not None:
            return
        try:
            session = connection.session
            first, end = connection.forward, connection.forward_end
            idle = not (connection.control or connection.pings) and (
                session is None or len(session.queue) == 2 * session.in_flight
            )
            if end and idle:
                connection.forward_end = 0
                self._write(connection, self._buffer, self._view, first, end)
                return
            while connection.unsent is None:
                end = self._fill(connection)
                if not end:
                    break
                self._write(connection, self._stage, self._stage_view, 0, end)
        except OSError:
            self._close(connection, "connection lost")
        except MemoryError:
            gc.collect()
            self._close(connection, "out of memory")

    def _write(self, connection, data, view, first, end):
        count = _send(connection.sock, data, first, end - first) or 0
        if first + count < end:
            connection.unsent = bytes(view[first + count : end])
            self._start_writing(connection)

    # The socket takes bytes again; False: all is sent, don't call again.
    def _resume(self, connection):
        try:
            unsent = connection.unsent
            count = _send(connection.sock, unsent, 0, len(unsent)) or 0
            connection.last_ms = _ticks_ms()
            if count < len(unsent):
                connection.unsent = unsent[count:]
                return True
            connection.unsent = None
            _unwatch(connection.writer)
            connection.writer = None
            self._send(connection)
            if connection.sock is not None and connection.unsent is None and connection.reader is None:
                self._start_reading(connection)
        except OSError:
            self._close(connection, "connection lost")
        except MemoryError:
            gc.collect()
            self._close(connection, "out of memory")
        self._flush()
        return False

    # Puts packets into the stage, as many as fit; returns the bytes used.
    def _fill(self, connection):
        stage = self._stage
        room = len(stage)
        at = connection.forward_end - connection.forward
        if connection.forward_end:
            stage[:at] = self._view[connection.forward : connection.forward_end]
            connection.forward_end = 0
        else:
            at = 0
        control = connection.control
        done = 0
        for item in control:
            size = 4 if isinstance(item, int) else len(item)
            if at + size > room:
                break
            if isinstance(item, int):
                stage[at] = item >> 16
                stage[at + 1] = 2
                stage[at + 2] = item >> 8 & 255
                stage[at + 3] = item & 255
            else:
                stage[at : at + size] = item
            at += size
            done += 1
        if done < len(control):
            connection.control = control[done:]
            return at
        control.clear()
        connection.gathered = False
        if connection.session is not None:
            at = self._fill_queue(connection, connection.session, at)
            # DESIGN §4, the drained marker: PINGRESP follows all that waited when PINGREQ came.
            if connection.pings and not connection.pings_after and at + 2 <= room:
                connection.pings -= 1
                stage[at : at + 2] = _PINGRESP_BYTES
                at += 2
        return at

    def _fill_queue(self, connection, session, at):
        queue = session.queue
        while session.in_flight < self.max_inflight:
            index = 2 * session.in_flight
            if index == len(queue):
                break
            meta = queue[index]
            message = queue[index + 1]
            if at + (4 if message is None else len(message) + 5) > len(self._stage) and at:
                break
            if connection.pings_after:
                connection.pings_after -= 1
            if message is None:
                self._stage[at : at + 4] = bytes((_PUBREL, 2, meta >> 8 & 255, meta & 255))
                at += 4
                session.in_flight += 1
                continue
            self.messages_sent += 1
            if meta >> _QOS_SHIFT & 3:
                if not meta & 0xFFFF:
                    meta |= session.next_packet_id()
                    queue[index] = meta
                session.in_flight += 1
                at = self._put(at, meta, message)
            else:
                at = self._put(at, meta, message)
                self._remove(session, index)
        return at

    # Encodes one PUBLISH into the stage.
    def _put(self, at, meta, message):
        stage = self._stage
        qos = meta >> _QOS_SHIFT & 3
        slot = 2 + (message[0] << 8 | message[1])
        length = len(message) - (0 if qos else 2)
        stage[at] = _PUBLISH | (8 if meta & _DUP else 0) | qos << 1 | (1 if meta & _RETAIN else 0)
        at += 1
        while length > 127:
            stage[at] = length & 127 | 128
            length >>= 7
            at += 1
        stage[at] = length
        at += 1
        if qos:
            stage[at : at + len(message)] = message
            stage[at + slot] = meta >> 8 & 255
            stage[at + slot + 1] = meta & 255
            return at + len(message)
        stage[at : at + slot] = message[:slot]
        at += slot
        slot += 2
        stage[at : at + len(message) - slot] = message[slot:]
        return at + len(message) - slot

    # ---- CONNECT ----

    def _connect(self, connection, fields):
        name = fields.binary()
        level = fields.byte()
        bridge = level & 0x80  # Mosquitto's bridges mark themselves so
        level &= 0x7F
        if not ((name == b"MQTT" and level != 3) or (name == b"MQIsdp" and level == 3)):
            raise _Malformed("not MQTT")  # [MQTT-3.1.2-1]
        if level > 4 or level < 3:
            self._refuse(connection, _BAD_LEVEL, "protocol level %d" % level)  # [MQTT-3.1.2-2]
            return
        flags = fields.byte()
        will_flags = flags & 0x38
        if flags & 1 or (will_flags and not flags & 4) or will_flags & 0x18 == 0x18 or flags & 0xC0 == 0x40:
            raise _Malformed("CONNECT flags")  # [MQTT-3.1.2-3], -13 to -15, -22
        keep_alive_s = fields.integer()
        client_id = fields.text()
        will = None
        if flags & 4:
            topic = fields.text()
            check_topic(topic)
            will = (_message(topic.encode(), fields.binary(), flags >> 3 & 3), flags & 0x20)
        user = fields.text() if flags & 0x80 else None
        password = fields.binary() if flags & 0x40 else None
        fields.finish()
        clean = bool(flags & 2)
        if not client_id and not clean:
            self._refuse(connection, _BAD_CLIENT_ID, "no client identifier")  # [MQTT-3.1.3-8]
            return
        if self.auth is not None and not self._authorized(client_id, user, password):
            self._refuse(connection, _NOT_AUTHORIZED, "not authorized")
            return
        if not self._open_session(connection, client_id, clean):
            self._refuse(connection, _UNAVAILABLE, "no room for %s" % client_id)
            return
        connection.bridge = bool(bridge)
        connection.will = will
        connection.deadline_ms = keep_alive_s * 1500  # [MQTT-3.1.2-24]

    def _authorized(self, client_id, user, password):
        try:
            return self.auth(client_id, user, password)
        except Exception as error:  # noqa: BLE001 - a hook that fails lets nobody in
            self.log("auth: %r" % error)
            return False

    def _refuse(self, connection, code, reason):
        self.connections_refused += 1
        connection.control.append(bytes((0x20, 2, 0, code)))
        self._send(connection)
        self._close(connection, reason)

    def _open_session(self, connection, client_id, clean):
        if not client_id:
            self._anonymous += 1
            client_id = "\x00%d" % self._anonymous  # no client can send U+0000
        session = self._sessions.get(client_id)
        if session is not None and session.connection is not None:
            self._close(session.connection, "taken over by a new connection")  # [MQTT-3.1.4-2]
            session = self._sessions.get(client_id)
        connected = sum(1 for other in self._connections if other.session is not None)
        if connected >= self.max_clients:
            return False
        if session is not None and clean:
            self._drop_session(session)
            session = None
        present = session is not None
        if session is None:
            if len(self._sessions) >= self.max_sessions and not self._expire_session():
                return False
            session = self._sessions[client_id] = _Session(client_id, clean)
        session.connection = connection
        connection.session = session
        connection.control.append(b"\x20\x02\x01\x00" if present else _CONNACK_BYTES)
        self._mark(connection)
        return True

    # All places are taken: the session that has been away longest goes, if that is long enough.
    def _expire_session(self):
        oldest = None
        for session in self._sessions.values():
            if session.connection is None and (oldest is None or session.absent_since_s < oldest.absent_since_s):
                oldest = session
        if oldest is None or self.uptime_s - oldest.absent_since_s < self.session_expiry_s:
            return False
        self._drop_session(oldest)
        return True

    # ---- SUBSCRIBE and UNSUBSCRIBE ----

    def _subscribe(self, connection, fields):
        packet_id = fields.packet_id()
        wanted = []
        while fields.at < fields.end or not wanted:  # [MQTT-3.8.3-3] at least one
            topic_filter = fields.text()
            check_filter(topic_filter)
            qos = fields.byte()
            if qos > 2:
                raise _Malformed("requested QoS")  # [MQTT-3.8.3-4]
            wanted.append((topic_filter, qos))
        session = connection.session
        codes = bytearray()
        for topic_filter, qos in wanted:
            codes.append(qos if self._add_subscription(session, topic_filter, qos) else 0x80)
        self._forget_routes()
        length = 2 + len(codes)
        header = bytes((0x90, length)) if length < 128 else bytes((0x90, length & 127 | 128, length >> 7))
        connection.control.append(header + bytes((packet_id >> 8, packet_id & 255)) + codes)
        self._mark(connection)
        for index, (topic_filter, qos) in enumerate(wanted):
            if codes[index] != 0x80:
                self._send_retained(connection, session, topic_filter, qos)

    def _add_subscription(self, session, topic_filter, qos):
        if topic_filter not in session.subscriptions:
            size = len(topic_filter) + _ENTRY_BYTES
            # Shared subscriptions don't exist yet: saying so is better than granting them.
            if topic_filter.startswith("$share/") or self.subscription_bytes + size > self.max_subscription_bytes:
                self.subscriptions_refused += 1
                return False
            self.subscription_bytes += size
        session.subscriptions[topic_filter] = qos
        return True

    def _send_retained(self, connection, session, topic_filter, qos):
        if topic_filter.startswith("$SYS"):
            self._publish_sys(session)
            return
        for topic, message in self._retained.items():
            if matches(topic_filter, topic):
                if session.waiting() >= self.max_queued_messages:
                    self._send(connection)
                effective = min(qos, _message_qos(message))
                if self._has_room(session, len(message) + _ENTRY_BYTES, effective):
                    self._enqueue(session, message, effective << _QOS_SHIFT | _RETAIN)

    def _unsubscribe(self, connection, fields):
        packet_id = fields.packet_id()
        filters = []
        while fields.at < fields.end or not filters:  # [MQTT-3.10.3-2]
            topic_filter = fields.text()
            check_filter(topic_filter)
            filters.append(topic_filter)
        for topic_filter in filters:
            if connection.session.subscriptions.pop(topic_filter, None) is not None:
                self.subscription_bytes -= len(topic_filter) + _ENTRY_BYTES
        self._forget_routes()
        self._acknowledge(connection, 0xB0, packet_id)

    # ---- $SYS ----

    def _sys(self):
        values = (
            ("clients/connected", sum(1 for other in self._connections if other.session is not None)),
            ("clients/total", len(self._sessions)),
            ("messages/received", self.messages_received),
            ("messages/sent", self.messages_sent),
            ("messages/dropped", self.messages_dropped),
            ("messages/queued/bytes", self.queued_bytes),
            ("retained/count", len(self._retained)),
            ("retained/refused", self.retained_refused),
            ("subscriptions/refused", self.subscriptions_refused),
            ("connections/refused", self.connections_refused),
            ("connections/malformed", self.connections_malformed),
            ("heap/free", gc.mem_free() if hasattr(gc, "mem_free") else 0),
            ("uptime", self.uptime_s),
        )
        return values

    # To one session that has just subscribed, as retained, or to all subscribers. Nothing is kept.
    def _publish_sys(self, only):
        wanted = [f for f, _ in self._local if f.startswith("$SYS")]
        for session in self._sessions.values():
            if session.connection is not None:
                wanted.extend(f for f in session.subscriptions if f.startswith("$SYS"))
        if not wanted:
            return
        for name, value in self._sys():
            topic = "$SYS/broker/" + name
            route = self._resolve(b"", topic)
            if only is not None:
                if only in route.targets:
                    self._enqueue(only, _message(topic.encode(), str(value).encode(), 0), _RETAIN)
            elif route.targets or route.callbacks:
                self._publish(route, _message(topic.encode(), str(value).encode(), 0), False, None)


# ---- as a program: micropython midge_broker.py PORT [BIND] ----


def main(arguments):
    if len(arguments) not in (1, 2):
        print("usage: midge_broker.py PORT [BIND]")
        return 2
    broker = Broker(int(arguments[0]), arguments[1] if len(arguments) == 2 else "127.0.0.1")
    broker.listen()
    print("listening on mqtt://%s:%d" % (broker.bind, broker.port))
    if hasattr(sys.stdout, "flush"):
        sys.stdout.flush()
    if _core is None:
        _end_on_sigterm()
    try:
        asyncio.run(broker.run())
    except KeyboardInterrupt:
        pass
    return 0


def _end_on_sigterm():  # MicroPython has no signals but Ctrl-C
    import signal

    def interrupt(*_):
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
