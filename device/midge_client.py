"""MQTT 3.1.1 client for MicroPython 1.22+ and CPython 3.11+: one file, asyncio, QoS 0, 1 and 2.
It must not know what carries the bytes (`dial` makes the stream) nor what brings the network up."""

import asyncio
import random
import socket

try:
    from micropython import const
except ImportError:
    def const(value):
        return value if value >= 0 else 0

# MicroPython's compiler takes this one as it stands and leaves out the other interpreter's half of this file, about
# 1,000 bytes of the .mpy. CPython calls the function above and gets 0.
_MICROPYTHON = const(-1)

# --------------------------------------------------------------------------------------------- constants

# First byte of each packet, its reserved flags included (MQTT 3.1.1 §2.2.2).
_CONNECT = const(0x10)
_CONNACK = const(0x20)
_PUBLISH = const(0x30)
_PUBACK = const(0x40)
_PUBREC = const(0x50)
_PUBREL = const(0x62)
_PUBCOMP = const(0x70)
_SUBSCRIBE = const(0x82)
_SUBACK = const(0x90)
_UNSUBSCRIBE = const(0xA2)
_UNSUBACK = const(0xB0)
_DUP = const(0x08)
_PINGREQ = b"\xc0\x00"
_PINGRESP = const(0xD0)
_DISCONNECT = b"\xe0\x00"

# What a message in the outbox waits for.
_DONE = const(0)
_WAIT_PUBACK = const(1)
_WAIT_PUBREC = const(2)
_WAIT_PUBCOMP = const(3)

# "Until something happens": three days, safely below half the period of ticks_ms (2**29 ms).
_FOREVER_MS = const(0x0FFFFFFF)
# How long a full inbox holds up an answer that the program may be waiting for.
_GRACE_MS = const(20)
# Encoded topic names remembered, so that publishing to the same topic allocates nothing.
_TOPICS_MAX = const(16)
# Inbound QoS 2 identifiers between PUBLISH and PUBREL. 3.1.1 has no Receive Maximum; servers keep 10 (HiveMQ),
# 20 (Mosquitto) or 32 (EMQX) in flight, so a server that goes beyond this one is broken.
_INBOUND_MAX = const(256)

_REFUSALS = (
    "unacceptable protocol version",
    "identifier rejected",
    "server unavailable",
    "bad user name or password",
    "not authorized",
)


# Anything that the server or the link did wrong. `code` is the CONNACK return code, or 0x80 from SUBACK.
class MQTTError(Exception):
    def __init__(self, text, code=0):
        super().__init__(text)
        self.code = code


# No answer in time. A message that had been sent stays in flight and may still arrive.
class MQTTTimeout(MQTTError):
    pass


# ------------------------------------------------------------------------------- what the interpreters differ in
#
# _Signal: one task waits until set() or until the time is over. _Ready: one task waits for a stream.
# stream: readinto(buffer) and write(buffer) give the number of bytes, or None when they would block; close().
#
# Why not asyncio's streams: on the unix port StreamReader costs 3 generators and a slice for each read, and
# drain() a generator for each write; parking the task by hand allocates 0 bytes (a signal) or 96 (a poll).
# On CPython add_reader with recv_into is a third cheaper than a StreamReader, and it is the same shape.

if _MICROPYTHON:
    from asyncio import core
    from time import ticks_add, ticks_diff, ticks_ms

    class _Signal:
        def __init__(self):
            self.is_set = False
            self._task = None
            self._stop = StopIteration()  # raised again and again: a new one for each wait would be garbage

        def wait(self, ms):
            self._until = core.ticks_add(core.ticks(), ms)
            return self

        def set(self):
            self.is_set = True
            task = self._task
            if task:  # parked on the run queue for its deadline: bring it forward
                self._task = None
                core._task_queue.remove(task)
                core._task_queue.push(task)

        def clear(self):
            self.is_set = False

        def park(self):
            core._task_queue.push(core.cur_task, self._until)

        # Called when the wait is over, in whatever way. Gives the error that the one who waited gets.
        def settle(self):
            pass

        def __iter__(self):
            return self

        def __next__(self):
            if self.is_set or self._task:
                self._task = None
                error = self.settle()
                self._stop.__traceback__ = None
                raise error or self._stop
            self._task = core.cur_task
            self.park()

        # With send() and throw() the object is a coroutine to create_task(), gather() and wait_for().
        def send(self, _value):
            return self.__next__()

        def throw(self, error, *_):
            self._task = None
            self.settle()
            raise error

        def close(self):
            self.throw(GeneratorExit)

    class _Ready(_Signal):
        def __init__(self, stream, to_write):
            super().__init__()
            self._stream = stream
            self._to_write = to_write

        def park(self):
            queue = core._io_queue
            (queue.queue_write if self._to_write else queue.queue_read)(self._stream)

    async def _nothing():
        pass

    # A generator that has ended can be awaited any number of times: what a QoS 0 publish returns.
    _FINISHED = _nothing()
    try:
        _FINISHED.send(None)
    except StopIteration:
        pass

    # Makes the stream: a non-blocking TCP connection. Give Client another one for TLS or a serial cable.
    # getaddrinfo blocks on every port; for an address in figures it doesn't ask the network.
    async def dial(host, port):
        info = socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM)[0]
        stream = socket.socket(info[0], info[1], info[2])
        try:
            stream.setblocking(False)
            try:
                stream.connect(info[-1])
            except OSError as error:
                # EINPROGRESS as Linux and RP2 (115), ESP32 (119) and ESP8266 (118, EALREADY's) number it.
                if error.errno not in (115, 118, 119):
                    raise
            if hasattr(socket, "TCP_NODELAY"):  # not on every port: two writes on their way then don't wait
                stream.setsockopt(6, socket.TCP_NODELAY, 1)
            # A refused connection is "writable" too; the first write then raises its error.
            await _Ready(stream, True)
        except BaseException:
            stream.close()
            raise
        return stream

else:
    import time

    async def _nothing():
        pass

    def ticks_ms():
        return time.monotonic_ns() // 1_000_000 & 0x3FFFFFFF

    def ticks_add(ticks, ms):
        return (ticks + ms) & 0x3FFFFFFF

    def ticks_diff(end, start):
        return ((end - start + 0x20000000) & 0x3FFFFFFF) - 0x20000000

    def _resolve(future):
        if not future.done():
            future.set_result(None)

    class _Signal:
        def __init__(self):
            self.is_set = False
            self._future = None
            self._ms = 0

        def wait(self, ms):
            self._ms = ms
            return self

        def set(self):
            self.is_set = True
            if self._future:
                _resolve(self._future)

        def clear(self):
            self.is_set = False

        def __await__(self):
            if self.is_set:
                return
            loop = asyncio.get_running_loop()
            self._future = future = loop.create_future()
            timer = loop.call_later(self._ms / 1000, _resolve, future)
            try:
                yield from future
            finally:
                timer.cancel()
                self._future = None

    class _Ready:
        def __init__(self, stream, to_write):
            self._stream = stream
            self._to_write = to_write

        def __await__(self):
            loop = asyncio.get_running_loop()
            add, remove = loop.add_reader, loop.remove_reader
            if self._to_write:
                add, remove = loop.add_writer, loop.remove_writer
            future = loop.create_future()
            add(self._stream, _resolve, future)
            try:
                yield from future
            finally:
                remove(self._stream)

    async def dial(host, port):
        loop = asyncio.get_running_loop()
        info = (await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM))[0]
        with socket.socket(info[0], info[1], info[2]) as connection:
            connection.setblocking(False)
            await loop.sock_connect(connection, info[-1])
            return connection.makefile("rwb", 0)  # keeps the connection open


# ------------------------------------------------------------------------------------------------------- codec


async def _end(task):
    if task:
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            pass


def _encode(text):
    return text.encode() if isinstance(text, str) else bytes(text)


# §1.5.3: a length of two bytes, then the bytes.
def _put_string(packet, data):
    n = len(data)
    if n > 0xFFFF:
        raise ValueError("too long")
    packet.append(n >> 8)
    packet.append(n & 0xFF)
    packet.extend(data)


# §2.2.3: seven bits a byte, the least significant first.
def _put_length(packet, n):
    while n > 127:
        packet.append(n & 127 | 128)
        n >>= 7
    packet.append(n)


def _check_topic_name(topic):
    if not 0 < len(topic) <= 0xFFFF or b"+" in topic or b"#" in topic or b"\0" in topic:
        raise ValueError("topic name")  # [MQTT-3.3.2-2], [MQTT-4.7.3-1], [MQTT-4.7.3-2]


# What MicroPython's decode() lets pass [MQTT-1.5.3-1]: overlong forms, surrogates, beyond U+10FFFF. The first two bytes
# of a character tell (Unicode 15, table 3-7).
def _check_utf8(data):
    for i in range(len(data) - 1):
        pair = data[i] << 8 | data[i + 1]
        if pair >= 0xC000 and (pair < 0xC200 or 0xE000 <= pair < 0xE0A0 or 0xEDA0 <= pair < 0xEE00
                               or 0xF000 <= pair < 0xF090 or pair >= 0xF490):
            raise ValueError("UTF-8")


def _put_publish(packet, header, packet_id, topic, payload):
    n = len(topic)
    packet.append(header)
    _put_length(packet, n + len(payload) + (4 if packet_id else 2))
    packet.append(n >> 8)
    packet.append(n & 0xFF)
    packet.extend(topic)
    if packet_id:
        packet.append(packet_id >> 8)
        packet.append(packet_id & 0xFF)
    packet.extend(payload)


def _wrap(header, body):
    packet = bytearray()
    packet.append(header)
    _put_length(packet, len(body))
    packet.extend(body)
    return packet


# ----------------------------------------------------------------------------------------------------- session


# A message on its way out, and what publish() of QoS 1 and 2 returns to be awaited.
class _Message(_Signal):
    def __init__(self, outbox):
        super().__init__()
        self.outbox = outbox
        self.state = _DONE
        self.held = False  # set by publish(), cleared when its caller has the result: until then not used again

    def settle(self):
        self.held = False
        if self.state == _DONE:
            self.outbox.spare.append(self)
            return None
        closed = self.is_set  # disconnect() set it; else the time was over, or the task was cancelled
        if not self.sent:  # no byte of it has left: take it back, nobody will know of it
            self.outbox.remove(self)
        return MQTTError("disconnected") if closed else MQTTTimeout("no answer in time")


# The session state that the client must keep (§4.1): messages of QoS 1 and 2 not yet acknowledged, in the order
# in which they were published, and the identifiers of inbound QoS 2 messages between PUBLISH and PUBREL.
# A durable outbox takes over here: it extends put, release, remove, remember and forget, and fills `messages`
# and `inbound` when it is made.
class MemoryOutbox:
    def __init__(self, window=16):
        self.window = window  # messages in flight; Mosquitto takes 20 at a time, EMQX 32
        self.messages = []
        self.inbound = []
        self.spare = []  # _Message objects to use again, so that publishing allocates nothing

    def put(self, packet_id, header, topic, payload):
        message = self.spare.pop() if self.spare else _Message(self)
        message.packet_id = packet_id
        message.header = header
        message.topic = topic
        message.payload = payload
        message.state = _WAIT_PUBREC if header & 4 else _WAIT_PUBACK
        message.sent = False
        message.sent_at = 0
        message.is_set = False
        message.held = True
        self.messages.append(message)
        return message

    # PUBREC: the server has the message; from now on only PUBREL may be sent [MQTT-4.3.3-1].
    def release(self, message):
        message.state = _WAIT_PUBCOMP
        message.topic = message.payload = None

    def remove(self, message):
        self.messages.remove(message)
        message.state = _DONE
        message.topic = message.payload = None
        if not message.held:
            self.spare.append(message)

    def find(self, packet_id):
        for message in self.messages:  # the first one, when the server answers in order
            if message.packet_id == packet_id:
                return message
        return None

    def remember(self, packet_id):
        self.inbound.append(packet_id)

    def forget(self, packet_id):
        if packet_id in self.inbound:
            self.inbound.remove(packet_id)


# A SUBSCRIBE or UNSUBSCRIBE that waits for its answer; sent again on the next connection if that doesn't come.
class _Request(_Signal):
    def __init__(self, packet_id, header, body):
        super().__init__()
        self.packet_id = packet_id
        self.packet = _wrap(header, bytes((packet_id >> 8, packet_id & 0xFF)) + body)
        self.answer = _SUBACK if header == _SUBSCRIBE else _UNSUBACK
        self.codes = None
        self.sent_at = ticks_ms()


# ---------------------------------------------------------------------------------------------------------- API


# What `async for` awaits.
class _Arrival(_Signal):
    def __init__(self, client):
        super().__init__()
        self.client = client

    def __next__(self):
        self._task = None
        message = self.client._take()
        if message:
            raise StopIteration(message)
        if self.client._closed:
            raise StopAsyncIteration
        self._task = core.cur_task
        self.wait(_FOREVER_MS).park()


# Times: keepalive, timeout and patience in seconds. `timeout`: for each answer of the server; when it is over the
# connection is given up and made again. `patience`: for a publish or subscribe over all connections.
# `window`: QoS 1 and 2 messages in flight. `inbox`: messages received and not yet read. `max_packet`: bytes of
# the largest packet received (a larger one ends the connection) and of what is queued for one write.
# `will`: (topic, payload, qos, retain). `dial`: makes the stream, see above.
class Client:
    def __init__(self, client_id, host, port=1883, user=None, password=None, keepalive=60, clean=True, will=None,
                 timeout=10, patience=60, window=16, inbox=8, max_packet=2048, backoff_ms=(500, 60_000),
                 outbox=None, dial=dial):
        self.host = host
        self.port = port
        self.outbox = outbox or MemoryOutbox(window)
        self.connected = False
        self.session_present = False
        self.error = None  # why the last connection or attempt ended
        self.dropped = 0  # QoS 0 messages for which the inbox had no room
        self._connect_packet = _connect_packet(client_id, user, password, keepalive, clean, will)
        self._clean = clean
        self._dial = dial
        self._timeout_ms = int(timeout * 1000)
        self._patience_ms = int(patience * 1000)
        self._backoff_ms = backoff_ms
        # The server waits 1.5 keep alive; we ask an eighth early, so that the answer comes within them too.
        self._ping_after_ms = keepalive * 875
        self._pong_within_ms = min(self._timeout_ms, keepalive * 500)
        self._inbox_max = inbox
        self._max_packet = max_packet
        self._stream = self._runner = self._reader = self._writer = None
        self._closed = True  # cleared by connect(), set by disconnect()
        self._lost = None  # set by _lose(), cleared by _open()
        self._last_id = 0
        self._topics = {}  # topic name: its bytes
        self._subscriptions = {}  # filter: qos, renewed when the server has no session
        self._requests = []
        self._tx = bytearray(256)
        self._tx[:] = b""  # empty, its room kept
        self._rx = bytearray(max_packet)
        self._view = memoryview(self._rx)
        self._rx_end = 0  # received and not parsed: always at the start of _rx when reading
        self._rx_pos = 0
        self._stalled = False  # set and cleared by _parse: the inbox is full
        self._overflow = False  # set by _read: take more all the same; cleared by _take
        self._rx_topic = b""  # the last topic received, and its bytes
        self._rx_topic_name = ""
        self._inbox = []  # (topic, payload, retained) received and not yet taken
        self._marks = []  # for each, what is to be acknowledged: packet_id << 1, | 1 for QoS 2; 0 for nothing
        self._arrival = _Arrival(self)
        self._waiting = []  # signals of publishers that found no room
        self._up = _Signal()  # CONNACK, or lost
        self._down = _Signal()  # the timer's: lost, or something to watch earlier than it sleeps
        self._kick = _Signal()  # the writer's: something to write
        self._read_on = _Signal()  # the reader's: room in the inbox, or an answer expected
        self._wake_at = self._tx_at = self._rx_at = 0
        self._ping_at = None  # set when PINGREQ leaves, cleared by PINGRESP

    # Raises MQTTError (refused: .code), MQTTTimeout or OSError. Once connected, the connection is kept: lost, it is
    # made again, until disconnect().
    async def connect(self):
        if self._runner:
            raise RuntimeError("already connected")
        self._closed = False
        try:
            await self._open()
        except BaseException:
            self._closed = True
            raise
        self._runner = asyncio.create_task(self._run())

    # QoS 0: queued for this turn's write. QoS 1 and 2: awaited until PUBACK or PUBCOMP, over reconnections.
    # Raises MQTTTimeout after `patience`; then, as after a cancellation, a message of which nothing was sent is taken
    # back, any other stays in flight and is finished (or resent on the next connection) without its caller.
    def publish(self, topic, payload, qos=0, retain=False):
        encoded = self._topics.get(topic)
        if encoded is None:
            encoded = self._encode_topic(topic)
        if isinstance(payload, str):
            payload = payload.encode()
        header = _PUBLISH | qos << 1 | (1 if retain else 0)
        if not 0 <= qos <= 2:
            raise ValueError("qos")
        if self._waiting or not self._has_room(qos, len(encoded) + len(payload)):
            return self._publish_later(header, encoded, payload)
        if not qos:
            _put_publish(self._tx, header, 0, encoded, payload)
            self._kick.set()
            return _FINISHED if _MICROPYTHON else _nothing()
        message = self._start(header, encoded, payload).wait(self._patience_ms)
        return message if _MICROPYTHON else self._settle(message)

    # Gives the QoS that the server granted.
    async def subscribe(self, filter, qos=0):
        encoded = _encode(filter)
        granted = (await self._ask(_SUBSCRIBE, encoded, bytes((qos,))))[0]
        if granted > 2:
            raise MQTTError("subscription refused", granted)
        self._subscriptions[encoded] = qos
        return granted

    async def unsubscribe(self, filter):
        encoded = _encode(filter)
        self._subscriptions.pop(encoded, None)
        await self._ask(_UNSUBSCRIBE, encoded, b"")

    # Writes what is queued and DISCONNECT, so that the server drops the will, and ends the `async for`.
    async def disconnect(self):
        runner, self._runner = self._runner, None
        await _end(runner)
        if self.connected:
            self._tx.extend(_DISCONNECT)
            self._kick.set()
            until = ticks_add(ticks_ms(), self._timeout_ms)
            while self._tx and self.connected and ticks_diff(until, ticks_ms()) > 0:
                await asyncio.sleep(0.001)
        self._closed = True
        await self._close()
        for message in list(self.outbox.messages):
            message.set()
        for request in self._requests:
            request.set()
        self._wake_waiting()
        self._arrival.set()

    def __aiter__(self):
        return self

    def __anext__(self):
        return self._arrival if _MICROPYTHON else self._next()

    # `wake()`, the one call for a battery program, goes here: CONNECT, SUBSCRIBE, the outbox and PINGREQ in one write.

    # ------------------------------------------------------------------------------------------- publishing

    def _encode_topic(self, topic):
        encoded = _encode(topic)
        _check_topic_name(encoded)
        if len(self._topics) >= _TOPICS_MAX:
            self._topics.clear()
        self._topics[topic] = encoded
        return encoded

    # QoS 1 and 2 need a place in the window and may be taken while there is no connection; QoS 0 needs the connection.
    def _has_room(self, qos, size):
        if qos and len(self.outbox.messages) >= self.outbox.window:
            return False
        if not self.connected:
            return qos
        return not self._tx or len(self._tx) + size + 9 <= self._max_packet

    def _start(self, header, topic, payload):
        if self._closed:
            raise MQTTError("disconnected")
        if not isinstance(payload, bytes):
            payload = bytes(payload)  # it may have to be sent again after the caller has changed it
        message = self.outbox.put(self._new_id(), header, topic, payload)
        if self.connected:
            self._send(message)
        return message

    # The first time or, on a new connection, again [MQTT-4.4.0-1]: with DUP [MQTT-3.3.1-1], the same identifier.
    def _send(self, message):
        if message.state == _WAIT_PUBCOMP:
            self._acknowledge(_PUBREL, message.packet_id)
        else:
            header = message.header | _DUP if message.sent else message.header
            _put_publish(self._tx, header, message.packet_id, message.topic, message.payload)
        message.sent = True
        message.sent_at = ticks_ms()
        self._kick.set()
        self._watch(message.sent_at)

    def _acknowledge(self, header, packet_id):
        tx = self._tx
        tx.append(header)
        tx.append(2)
        tx.append(packet_id >> 8)
        tx.append(packet_id & 0xFF)
        self._kick.set()

    async def _publish_later(self, header, topic, payload):
        qos = header >> 1 & 3
        await self._wait_for_room(qos, len(topic) + len(payload))
        if not qos:
            _put_publish(self._tx, header, 0, topic, payload)
            self._kick.set()
            return
        message = self._start(header, topic, payload)
        message.wait(self._patience_ms)
        await (message if _MICROPYTHON else self._settle(message))

    # First come, first served: who waits here is woken when those before have gone, and looks again.
    async def _wait_for_room(self, qos, size):
        until = ticks_add(ticks_ms(), self._patience_ms)
        signal = _Signal()
        self._waiting.append(signal)
        try:
            while self._waiting[0] is not signal or not self._has_room(qos, size):
                left = ticks_diff(until, ticks_ms())
                if self._closed:
                    raise MQTTError("disconnected")
                if left <= 0:
                    raise MQTTTimeout("no room or no connection in time")
                signal.clear()
                await signal.wait(left)
        finally:
            self._waiting.remove(signal)
            self._wake_waiting()

    def _wake_waiting(self):
        if self._waiting:
            self._waiting[0].set()

    # Messages keep the order in which their identifiers were given, so the first identifier in use that a new one can
    # meet is the oldest message's, the next one the second oldest's.
    def _new_id(self):
        packet_id = self._last_id
        oldest = 0
        messages = self.outbox.messages
        while True:
            packet_id = packet_id % 0xFFFF + 1
            if oldest < len(messages) and messages[oldest].packet_id == packet_id:
                oldest += 1
                continue
            for request in self._requests:
                if request.packet_id == packet_id:
                    break
            else:
                self._last_id = packet_id
                return packet_id

    # ------------------------------------------------------------------------------- subscribing, receiving

    async def _ask(self, header, encoded, options):
        if self._closed:
            raise MQTTError("disconnected")
        body = bytearray()
        _put_string(body, encoded)
        body.extend(options)
        request = _Request(self._new_id(), header, body)
        self._requests.append(request)
        if self.connected:
            self._send_request(request)
        try:
            await request.wait(self._patience_ms)
        finally:
            self._requests.remove(request)
        if request.codes is None:
            raise MQTTError("disconnected") if self._closed else MQTTTimeout("no answer in time")
        return request.codes

    def _send_request(self, request):
        self._tx.extend(request.packet)
        request.sent_at = ticks_ms()
        self._kick.set()
        self._watch(request.sent_at)

    # The rule of acknowledging: PUBACK or PUBREC leaves when the loop takes the message, not when it arrives. What
    # a reset finds unread in the inbox is then sent again by the server; acknowledging later still, after the loop's
    # body, would show a QoS 2 message twice to a program that leaves its loop.
    def _take(self):
        if not self._inbox:
            return None
        mark = self._marks.pop(0)
        if mark & 1:  # also while there is no connection: the server will send it again
            self.outbox.remember(mark >> 1)
        if mark and self.connected:
            self._acknowledge(_PUBREC if mark & 1 else _PUBACK, mark >> 1)
        self._overflow = False
        if self._stalled:
            self._read_on.set()
        return self._inbox.pop(0)

    # ------------------------------------------------------------------------------------------- connection

    if not _MICROPYTHON:
        async def _settle(self, message):
            try:
                await message
            except BaseException:
                message.settle()
                raise
            error = message.settle()
            if error:
                raise error

        async def _next(self):
            while True:
                message = self._take()
                if message:
                    return message
                if self._closed:
                    raise StopAsyncIteration
                self._arrival.clear()
                await self._arrival.wait(_FOREVER_MS)

    # One deadline for all: address, TCP, CONNACK.
    async def _open(self):
        try:
            await asyncio.wait_for(self._handshake(), self._timeout_ms / 1000)
            if self._lost:  # wait_for resumes us a turn later: it may be gone again, and must be closed
                raise self._lost
        except asyncio.TimeoutError:
            await self._close()
            raise MQTTTimeout("no connection or no CONNACK in time")
        except BaseException:
            await self._close()
            raise

    async def _handshake(self):
        self._stream = await self._dial(self.host, self.port)
        self._lost = self._ping_at = None
        self._up.clear()
        self._down.clear()
        self._rx_end = self._rx_pos = 0
        self._stalled = False
        self._tx[:] = b""
        self._tx.extend(self._connect_packet)
        self._kick.set()
        self._rx_at = self._tx_at = ticks_ms()
        self._reader = asyncio.create_task(self._read())
        self._writer = asyncio.create_task(self._write())
        await self._up.wait(_FOREVER_MS)
        if self._lost:
            raise self._lost

    async def _close(self):
        self.connected = False
        reader, writer, stream = self._reader, self._writer, self._stream
        self._reader = self._writer = self._stream = None
        await _end(reader)
        await _end(writer)
        if stream:  # only now that nobody waits for it: CPython's event loop would keep its file descriptor
            stream.close()

    def _lose(self, error):
        if self._lost is None:
            self._lost = self.error = error
        self.connected = False
        self._up.set()
        self._down.set()

    async def _run(self):
        while True:
            await self._keep()
            await self._close()
            delay_ms = self._backoff_ms[0]
            while not self.connected:
                # Half of it at random: after a power cut a hundred boards don't come back in step.
                await asyncio.sleep((delay_ms + delay_ms * random.getrandbits(8) // 255) / 2000)
                delay_ms = min(delay_ms * 2, self._backoff_ms[1])
                try:
                    await self._open()
                except (OSError, MQTTError) as error:
                    self.error = error

    # Until the connection is lost: PINGREQ when nothing else was sent, or nothing came, for a keep alive; the link is
    # lost when an answer is overdue. A publish of QoS 0 every second would hide a half-open link for ever.
    async def _keep(self):
        while not self._lost:
            now = ticks_ms()
            sleep_ms = _FOREVER_MS
            if self._ping_after_ms:
                silent_ms = max(ticks_diff(now, self._tx_at), ticks_diff(now, self._rx_at))
                sleep_ms = self._ping_after_ms - silent_ms
                if self._ping_at is None and sleep_ms <= 0:
                    self._tx.extend(_PINGREQ)
                    self._kick.set()
                    self._ping_at = now
                if self._ping_at is not None:
                    sleep_ms = self._pong_within_ms - ticks_diff(now, self._ping_at)
            if self.outbox.messages:
                sleep_ms = min(sleep_ms, self._timeout_ms - ticks_diff(now, self.outbox.messages[0].sent_at))
            if self._requests:
                sleep_ms = min(sleep_ms, self._timeout_ms - ticks_diff(now, self._requests[0].sent_at))
            if sleep_ms <= 0:
                if not self._stalled:  # while the program doesn't read, nor do we: silence proves nothing
                    self._lose(MQTTTimeout("the server doesn't answer"))
                    return
                sleep_ms = self._timeout_ms
                self._ping_at = None
                self._rx_at = now
            self._wake_at = ticks_add(now, sleep_ms)
            self._down.clear()
            await self._down.wait(sleep_ms)

    # An answer is expected: the timer must not sleep past its deadline, and the reader must not stall.
    def _watch(self, now):
        if ticks_diff(self._wake_at, now) > self._timeout_ms:
            self._down.set()
        if self._stalled:
            self._read_on.set()

    # All that was queued since the last turn leaves in one write: MicroPython has no TCP_NODELAY on every port, and a
    # second small write would wait for the delayed ACK of the first (measured: 23 QoS 1 messages a second).
    async def _write(self):
        tx = self._tx
        writable = _Ready(self._stream, True)
        try:
            while True:
                self._kick.clear()
                while tx:
                    n = self._stream.write(tx)
                    if n:
                        self._tx_at = ticks_ms()
                        tx[:n] = b""
                    if tx:
                        await writable
                self._wake_waiting()
                await self._kick.wait(_FOREVER_MS)
        except OSError as error:
            self._lose(error)

    async def _read(self):
        readable = _Ready(self._stream, False)
        try:
            while True:
                await readable
                n = self._stream.readinto(self._view[self._rx_end:] if self._rx_end else self._rx)
                if n == 0:
                    raise MQTTError("the server closed the connection")
                if n is None:
                    continue
                self._rx_at = ticks_ms()
                self._rx_end += n
                self._parse()
                while self._stalled:
                    # Back-pressure: the server waits until the program reads. Unless an answer is expected: the program
                    # may wait for it in its loop. It gets a moment to read, then packets are taken beyond `inbox`.
                    self._read_on.clear()
                    answer = self.outbox.messages or self._requests
                    await self._read_on.wait(_GRACE_MS if answer else _FOREVER_MS)
                    self._overflow = not self._read_on.is_set
                    self._parse()
        except (OSError, MQTTError, MemoryError) as error:
            self._lose(error)

    # Takes all complete packets out of the buffer, where they lie; an incomplete one moves to its start.
    def _parse(self):
        rx = self._rx
        pos = self._rx_pos
        end = self._rx_end
        self._stalled = False
        while end - pos >= 2:
            length = rx[pos + 1]
            body = pos + 2
            if length > 127:
                length &= 127
                shift = 7
                while body < end:
                    byte = rx[body]
                    body += 1
                    length |= (byte & 127) << shift
                    shift += 7
                    if byte < 128:
                        break
                    if shift > 21:
                        raise MQTTError("malformed remaining length")
                else:
                    break
            if body + length - pos > self._max_packet:
                raise MQTTError("packet larger than max_packet")
            if body + length > end:
                break
            header = rx[pos]
            if header & 0xF0 == _PUBLISH:
                if len(self._inbox) >= self._inbox_max and not self._overflow:
                    self._stalled = True
                    break
                self._on_publish(header, body, body + length)
            else:
                self._on_packet(header, body, length)
            pos = body + length
        if self._stalled:
            self._rx_pos = pos
            return
        if pos and pos < end:
            self._view[:end - pos] = self._view[pos:end]
        self._rx_pos = 0
        self._rx_end = end - pos

    def _on_publish(self, header, pos, end):
        rx = self._rx
        qos = header >> 1 & 3
        if not self.connected or qos == 3 or header & 0x0E == _DUP:
            raise MQTTError("malformed PUBLISH")  # [MQTT-3.3.1-4], [MQTT-3.3.1-2]
        payload = pos + 2
        if payload <= end:
            payload += rx[pos] << 8 | rx[pos + 1]
        topic_end = payload
        packet_id = 0
        if qos:
            payload += 2
            if payload <= end:
                packet_id = rx[topic_end] << 8 | rx[topic_end + 1]
        if payload > end or (qos and not packet_id):
            raise MQTTError("malformed PUBLISH")
        if qos == 2 and self._is_duplicate(packet_id):
            return
        if not qos and len(self._inbox) >= self._inbox_max:
            self.dropped += 1
            return
        pos += 2
        if pos == topic_end or topic_end - pos != len(self._rx_topic) or not rx.startswith(self._rx_topic, pos):
            self._read_topic(pos, topic_end)
        self._inbox.append((self._rx_topic_name, bytes(self._view[payload:end]), header & 1 == 1))
        self._marks.append(packet_id << 1 | qos >> 1)
        self._arrival.set()

    # Exactly once: what the loop has taken is answered again, what it hasn't is answered when it does.
    def _is_duplicate(self, packet_id):
        inbound = self.outbox.inbound
        if packet_id in inbound:
            self._acknowledge(_PUBREC, packet_id)
            return True
        if len(inbound) >= _INBOUND_MAX:
            raise MQTTError("too many messages without PUBREL")
        return packet_id << 1 | 1 in self._marks

    def _read_topic(self, start, end):
        topic = bytes(self._view[start:end])
        try:
            _check_topic_name(topic)
            _check_utf8(topic)
            self._rx_topic_name = topic.decode()
        except ValueError:  # UnicodeError too [MQTT-1.5.3-1]
            raise MQTTError("malformed topic name")
        self._rx_topic = topic

    def _on_packet(self, header, pos, length):
        rx = self._rx
        packet_id = rx[pos] << 8 | rx[pos + 1] if length >= 2 else 0
        if not self.connected:
            self._on_connack(header, pos, length)
        elif header == _PINGRESP and length == 0:
            self._ping_at = None
        elif not packet_id:  # [MQTT-2.3.1-1], or too short
            raise MQTTError("malformed packet")
        elif (header == _SUBACK and length > 2) or (header == _UNSUBACK and length == 2):
            self._on_answer(header, packet_id, bytes(self._view[pos + 2:pos + length]))
        elif length == 2 and header in (_PUBACK, _PUBREC, _PUBREL, _PUBCOMP):
            self._on_ack(header, packet_id)
        else:
            raise MQTTError("malformed packet, or not a server's")

    def _on_ack(self, header, packet_id):
        if header == _PUBREL:
            self.outbox.forget(packet_id)
            self._acknowledge(_PUBCOMP, packet_id)
            return
        message = self.outbox.find(packet_id)
        state = message.state if message else _DONE
        if header == _PUBREC and state != _WAIT_PUBACK:
            # For an identifier that we don't know too: the server can then let go of it.
            if state == _WAIT_PUBREC:
                self.outbox.release(message)
            self._acknowledge(_PUBREL, packet_id)
        elif (header == _PUBACK and state == _WAIT_PUBACK) or (header == _PUBCOMP and state == _WAIT_PUBCOMP):
            self.outbox.remove(message)
            message.set()
            self._wake_waiting()
        elif state:
            raise MQTTError("acknowledgement of another QoS")

    def _on_answer(self, header, packet_id, codes):
        for code in codes:
            if code > 2 and code != 0x80:
                raise MQTTError("malformed SUBACK")  # [MQTT-3.9.3-2]
            if code == 0x80:
                self.error = MQTTError("subscription refused", code)  # the only trace when it was a renewal
        for request in self._requests:
            if request.packet_id == packet_id and request.answer == header:
                request.codes = codes
                request.set()

    def _on_connack(self, header, pos, length):
        if header != _CONNACK or length != 2:
            raise MQTTError("not a CONNACK")
        flags = self._rx[pos]
        code = self._rx[pos + 1]
        if flags > 1 or (flags and (code or self._clean)) or code > 5:  # [MQTT-3.2.2-1], [MQTT-3.2.2-4]
            raise MQTTError("malformed CONNACK")
        if code:
            raise MQTTError("refused: " + _REFUSALS[code - 1], code)
        self.session_present = flags == 1
        self.connected = True
        self._resume()
        self._up.set()

    # §4.4: what is unacknowledged goes again, in order; without a session at the server its subscriptions too. All in
    # one write. Of the inbox, what the server will send again is forgotten; what it won't stays, unacknowledged.
    def _resume(self):
        for i in range(len(self._marks) - 1, -1, -1):
            if self._marks[i] and self.session_present:
                del self._marks[i], self._inbox[i]
            else:
                self._marks[i] = 0
        if not self.session_present:
            for packet_id in list(self.outbox.inbound):
                self.outbox.forget(packet_id)
            if self._subscriptions:
                self._renew()
        for message in self.outbox.messages:
            self._send(message)
        for request in self._requests:
            self._send_request(request)
        self._wake_waiting()

    def _renew(self):
        body = bytearray()
        for encoded, qos in self._subscriptions.items():
            _put_string(body, encoded)
            body.append(qos)
        self._tx.extend(_Request(self._new_id(), _SUBSCRIBE, body).packet)
        self._kick.set()


def _connect_packet(client_id, user, password, keepalive, clean, will):
    flags = 2 if clean else 0
    fields = [client_id]
    if will:
        topic, payload, qos, retain = will
        _check_topic_name(_encode(topic))
        flags |= 4 | qos << 3 | (0x20 if retain else 0)
        fields += [topic, payload]
    if user is not None:
        flags |= 0x80
        fields.append(user)
    if password is not None:
        if user is None:
            raise ValueError("a password needs a user")  # [MQTT-3.1.2-22]
        flags |= 0x40
        fields.append(password)
    body = bytearray(b"\0\x04MQTT\x04")
    body.append(flags)
    body.append(keepalive >> 8)
    body.append(keepalive & 0xFF)
    for field in fields:
        _put_string(body, _encode(field))
    return _wrap(_CONNECT, body)
