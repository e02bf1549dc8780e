"""MQTT 3.1.1 client for MicroPython 1.22+ and CPython 3.11+: asyncio, QoS 0, 1 and 2; `wake()` for batteries.
It must not know what carries the bytes (`dial` makes the stream) nor what brings the network up (`link` does)."""
# Beside this file, each loaded only by programs that use it: midge_wake.py (wake cycles), midge_outbox.py (what must
# outlive deep sleep or power loss), midge_mqtt5.py (MQTT 5.0), midge_large.py (payloads larger than memory),
# midge_umqtt.py (umqtt.simple's face).

import asyncio
import os
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

# First byte of each packet, its reserved flags included (MQTT 3.1.1 §2.2.2). A message's `state` is the first byte of
# the packet that it waits for: PUBACK, PUBREC, PUBCOMP, SUBACK or UNSUBACK; PUBLISH: to be sent at QoS 0; 0: nothing.
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
_PINGRESP = const(0xD0)

# "Until something happens": three days, safely below half the period of ticks_ms (2**29 ms).
_FOREVER_MS = const(0x0FFFFFFF)
# How long a full inbox holds up an answer that the program may be waiting for.
_GRACE_MS = const(20)
# Encoded topic names remembered, so that publishing to the same topic allocates nothing.
_TOPICS_MAX = const(16)
# What a poll object says, the same numbers on all ports: POLLIN, POLLOUT.
_READ = const(1)
_WRITE = const(4)
# For so long tasks that are ready, one after the other, go before the network: what they have to write leaves together.
_BUSY_MS = const(10)
# Inbound QoS 2 identifiers between PUBLISH and PUBREL. 3.1.1 has no Receive Maximum; servers keep 10 (HiveMQ),
# 20 (Mosquitto) or 32 (EMQX) in flight, so a server that goes beyond this one is broken.
_INBOUND_MAX = const(256)


# Anything that the server or the link did wrong; an OSError, as what the network does wrong is. `code`: CONNACK's
# return code, 0x80 from SUBACK, 5.0's reason code.
class MQTTError(OSError):
    def __init__(self, text, code=0):
        super().__init__(text)
        self.code = code


# No answer in time. A message that had been sent stays in flight and may still arrive.
class MQTTTimeout(MQTTError):
    pass


class OutboxFull(MQTTError):
    pass


# ------------------------------------------------------------------------------- what the interpreters differ in
#
# _Signal: one task waits until set() or until the time is over.
# _watch(client): from now on client.on_ready(events) is called whenever its stream can be read (unless the client is
# stalled) or written (if it is blocked), and client.on_idle(ms) when the loop is about to sleep for that long, or when
# tasks have kept it busy for _BUSY_MS; it gives for how long the loop may sleep. _watch(client, False): no more.
# stream: readinto(buffer) and write(buffer) give the number of bytes, or None when they would block; close().
#
# Why no tasks that read and write, nor asyncio's streams: a message at QoS 1 that is awaited would cost three changes
# of task, four calls of poll and 48 bytes of asyncio's queue, where one, one and none do. So on MicroPython we stand
# between asyncio and its poll object, as midge_broker.py does: streams of ours stay registered there, and what happens
# to them goes to us; all the rest goes to asyncio as ever. It needs that asyncio calls core._io_queue.wait_io_event,
# and that this uses its poller as a select.poll with register, modify, unregister and ipoll: so from MicroPython 1.13
# to today's master, in Python on all ports.

async def _end(task):
    if task:
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            pass


if _MICROPYTHON:
    from asyncio import core, sleep_ms
    from time import ticks_add, ticks_diff, ticks_ms

    _STOP = StopIteration()  # raised again and again: a new one each time would be garbage

    class _Signal:
        is_set = False
        _task = None

        def __init__(self, owner=None):
            self.owner = owner

        def wait(self, ms=_FOREVER_MS):
            self._until = core.ticks_add(core.ticks(), ms)
            return self

        def set(self):
            self.is_set = True
            task = self._task
            if task:  # parked on the run queue for its deadline: bring it forward
                self._task = None
                core._task_queue.remove(task)
                core._task_queue.push(task)

        # Called when the wait is over, in whatever way. Gives the error that the one who waited gets.
        def settle(self):
            pass

        def __iter__(self):
            return self

        def __next__(self):
            if self.is_set or self._task:
                self._task = None
                error = self.settle()
                _STOP.__traceback__ = None  # else it grows
                raise error or _STOP
            self._task = core.cur_task
            core._task_queue.push(core.cur_task, self._until)

        # With send() and throw() the object is a coroutine to create_task(), gather() and wait_for().
        def send(self, _):
            return self.__next__()

        def throw(self, error, *_):
            self._task = None
            self.settle()
            raise error

    class _Poller:
        def __init__(self, queue):
            self.poll = poll = queue.poller
            self.register = poll.register
            self.modify = poll.modify
            self.unregister = poll.unregister
            self.clients = set()
            self.ticks = ticks_ms()  # of the last poll
            self.asyncio = queue.wait_io_event
            queue.wait_io_event = self.wait
            queue.poller = queue.client = self

        # ms is 0 when a task is ready: it may have more to write, and need not wait for what the network says.
        def wait(self, ms):
            if not ms and ticks_diff(ticks_ms(), self.ticks) < _BUSY_MS:
                return
            for client in self.clients:
                ms = client.on_idle(ms & _FOREVER_MS)  # -1: for ever
            for ready in self.poll.ipoll(ms):
                for client in self.clients:
                    if client._stream is ready[0]:
                        client.on_ready(ready[1])
                        break
                else:
                    self.data = (ready,)
                    self.asyncio(0)
            self.ticks = ticks_ms()

        # What asyncio then finds.
        def ipoll(self, _):
            return self.data

    def _watch(client, connected=True):
        queue = core._io_queue
        poller = getattr(queue, "client", None) or _Poller(queue)
        events = client._blocked if client._stalled else client._blocked | _READ
        poller.clients.add(client)
        poller.unregister(client._stream)
        if not connected:
            poller.clients.remove(client)
        elif events:
            poller.register(client._stream, events)

    # A generator that has ended can be awaited any number of times: what a QoS 0 publish returns.
    _ENDED = _end(None)
    for _ in _ENDED:
        pass

else:
    import time

    def sleep_ms(ms):
        return asyncio.sleep(ms / 1000)

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
        is_set = False
        _future = None

        def __init__(self, owner=None):
            self.owner = owner

        def wait(self, ms=_FOREVER_MS):
            self._ms = ms
            return self

        def set(self):
            self.is_set = True
            if self._future:
                _resolve(self._future)

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

    def _watch(client, connected=True):
        loop = asyncio.get_running_loop()
        stream = client._stream
        loop.remove_reader(stream)
        loop.remove_writer(stream)
        client._tx.loop = loop if connected else None
        if connected and client._blocked:
            loop.add_writer(stream, _on_ready, client, _WRITE)
        if connected and not client._stalled:
            loop.add_reader(stream, _on_ready, client, _READ)
            _on_ready(client, 0)

    def _on_ready(client, events):
        if events:
            client.on_ready(events)
        pending = getattr(client._stream, "pending", None)
        while pending and pending() and not (client._stalled or client._lost):
            client.on_ready(_READ)  # TLS: decrypted and not yet read, no poll would tell
        client._tx.kick()

    # What is to be written. Nobody tells that asyncio's loop is about to sleep: at the end of this turn is soon enough.
    class _Buffer(bytearray):
        client = loop = _timer = None

        def extend(self, data):
            super().extend(data)
            self.kick()

        def kick(self):
            if self._timer:
                self._timer.cancel()
            if self.loop:
                self._timer = self.loop.call_soon(self._on_idle)

        def _on_idle(self):
            ms = self.client.on_idle(_FOREVER_MS) if self.loop else _FOREVER_MS
            if ms < _FOREVER_MS:
                self._timer = self.loop.call_later(ms / 1000, self._on_idle)

    # A socket with TLS, with a file's reads and writes that don't block. ssl wants the socket connected first.
    class _TLSStream:
        def __init__(self, connection, context, host):
            self._wrap = lambda: context.wrap_socket(connection, server_hostname=host, do_handshake_on_connect=False)
            self._socket = connection
            self._tls = None
            self.fileno = connection.fileno

        def _try(self, name, data):
            import ssl
            if self._tls is None:
                self._tls = self._socket = self._wrap()
                self.fileno = self._tls.fileno
            try:
                return getattr(self._tls, name)(data)
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                time.sleep(0.001)  # in the handshake the socket is writable all the time
                return None

        def readinto(self, buffer):
            return self._try("recv_into", buffer)

        def write(self, data):
            return self._try("send", data)

        def pending(self):
            return self._tls.pending() if self._tls else 0

        def close(self):
            self._socket.close()


# Makes the stream: a TCP connection on its way, with TLS if `tls` is an SSLContext. Client and wake() take another
# function of this kind for a serial cable, say. getaddrinfo blocks on every port; for an address in figures it
# doesn't ask the network.
def dial(host, port, tls=None):
    info = socket.getaddrinfo(host, port)[0]
    stream = socket.socket(info[0])
    try:
        stream.setblocking(False)
        try:
            stream.connect(info[-1])
        except OSError as error:
            # EINPROGRESS as Linux and RP2 (115), ESP32 (119), ESP8266 (118, EALREADY's) and macOS (36) number it.
            if error.errno not in (115, 119, 118, 36):
                raise
        nodelay = getattr(socket, "TCP_NODELAY", 0)
        if nodelay:  # not on every port: two writes on their way then don't wait
            stream.setsockopt(6, nodelay, 1)
        if tls:
            if _MICROPYTHON:
                stream = tls.wrap_socket(stream, server_hostname=host, do_handshake_on_connect=False)
            else:
                return _TLSStream(stream, tls, host)
    except BaseException:
        stream.close()
        raise
    if _MICROPYTHON:
        return stream
    else:
        return stream.makefile("rwb", 0)


# ------------------------------------------------------------------------------------------------------- codec


def _encode(text):
    return text.encode() if isinstance(text, str) else bytes(text)


# First byte of a PUBLISH.
def _header(qos, retain):
    if not 0 <= qos <= 2:
        raise ValueError("qos")
    return _PUBLISH | qos << 1 | (1 if retain else 0)


def _put_pair(packet, n):
    if n > 0xFFFF:
        raise ValueError("length")
    packet.append(n >> 8)
    packet.append(n & 0xFF)


# §1.5.3: a length of two bytes, then the bytes.
def _put_string(packet, data):
    _put_pair(packet, len(data))
    packet.extend(data)


# §2.2.3: seven bits a byte, the least significant first.
def _put_length(packet, n):
    while n > 127:
        packet.append(n & 127 | 128)
        n >>= 7
    packet.append(n)


def _check_topic(topic):
    is_good = 0 < len(topic) <= 0xFFFF
    for byte in b"+#\0":
        if byte in topic:
            is_good = False
    if not is_good:
        raise ValueError("topic name")  # [MQTT-3.3.2-2], [MQTT-4.7.3-1], [MQTT-4.7.3-2]


# §2.2.3, when the first byte has its high bit. Gives the length and the place after it; None, None: it isn't all there.
def _get_length(data, pos, end):
    length = shift = 0
    while pos < end:
        byte = data[pos]
        pos += 1
        length |= (byte & 127) << shift
        if byte < 128:
            return length, pos
        shift += 7
        if shift > 21:
            raise MQTTError("malformed")
    return None, pos


# ----------------------------------------------------------------------------------------------------- session


# A packet that waits for its answer: PUBLISH, SUBSCRIBE or UNSUBSCRIBE (`payload`: what follows the identifier). To
# publish() of QoS 1 and 2 also what is awaited.
class _Message(_Signal):
    def settle(self):
        self.held = False
        if not self.state:
            self.owner.spare.append(self)
            return self.error
        if not self.sent:  # no byte of it has left: take it back, nobody will know of it
            self.owner.remove(self)
        # disconnect() set it; else the time was over, or the task was cancelled
        return MQTTError("disconnected") if self.is_set else MQTTTimeout("no answer")


# The session state that the client must keep (§4.1): messages not yet acknowledged, in the order in which they were
# published, the identifiers of inbound QoS 2 messages between PUBLISH and PUBREL, and the filters subscribed to by
# wake(). Those of midge_outbox.py keep it through deep sleep or power loss. `limit`: bytes, of each message its topic,
# payload and 16 more. Full, put() and publish() raise OutboxFull, or, with `drop`, the oldest of QoS 0, then of QoS 1
# makes room.
class MemoryOutbox:
    size = dropped = 0
    # Not 0 at each start: after a power cut that took the session's state from us and not from the server, messages
    # would come under identifiers that it remembers from a hand-over at QoS 2, and be taken for repetitions.
    _last_id = int.from_bytes(os.urandom(2), "big")
    sent = 0  # so many of the first messages were sent on this connection
    filters = b""  # as they stand in SUBSCRIBE

    def __init__(self, limit=32_768, drop=False):
        self.limit = limit
        self.drop = drop
        self.messages = []
        self.inbound = []
        self.spare = []  # _Message objects to use again, so that publishing allocates nothing

    # A message to be sent when there is a connection. Once this returns, the outbox answers for it.
    def put(self, topic, payload, qos=1, retain=False, sync=True):
        topic = _encode(topic)
        _check_topic(topic)
        self.add(_header(qos, retain), topic, _encode(payload))
        if sync:
            self.sync()

    def add(self, header, topic, payload, properties=b""):
        size = len(topic) + len(payload) + 16
        while self.size + size > self.limit:
            self._make_room()
        message = self.new(header, payload, _PUBLISH + (header << 3 & 0x30))  # PUBLISH itself, PUBACK, PUBREC
        message.topic = topic
        message.properties = properties
        message.size = size
        self.size += size
        return message

    def new(self, header, payload, state):
        message = self.spare.pop() if self.spare else _Message(self)
        while True:
            self._last_id = packet_id = self._last_id % 0xFFFF + 1
            if not self.find(packet_id):
                break
        message.packet_id = packet_id
        message.header = header
        message.payload = payload
        message.state = state
        message.size = message.code = 0
        message.error = None
        # held: set by publish(), cleared when its caller has the result: until then not used again
        message.sent = message.is_set = message.held = False
        self.messages.append(message)
        return message

    def _make_room(self):
        for state in (_PUBLISH, _PUBACK) if self.drop else ():
            for message in self.messages:
                if message.state == state:
                    message.set()
                    self.remove(message)
                    self.dropped += 1
                    return
        raise OutboxFull("limit")

    # PUBREC: the server has the message; from now on only PUBREL may be sent [MQTT-4.3.3-1].
    def release(self, message):
        message.state = _PUBCOMP
        message.header = _PUBREL
        message.topic = message.payload = b""
        self.size -= message.size
        message.size = 0

    def remove(self, message):
        i = self.messages.index(message)
        del self.messages[i]
        if i < self.sent:
            self.sent -= 1
        self.size -= message.size
        message.state = 0
        message.topic = message.payload = None
        if not message.held:
            self.spare.append(message)

    def find(self, packet_id):
        for message in self.messages:  # the first one, when the server answers in order
            if message.packet_id == packet_id:
                return message

    def remember(self, packet_id):
        self.inbound.append(packet_id)

    def forget(self, packet_id):
        if packet_id in self.inbound:
            self.inbound.remove(packet_id)

    def note(self, filters):
        self.filters = filters

    # Called before each write to the connection: what was told until now must be kept before the server hears of it.
    def sync(self):
        pass


# ---------------------------------------------------------------------------------------------------------- API


# What `async for` awaits.
class _Arrival(_Signal):
    def __next__(self):
        self._task = None
        message = self.owner._take()
        if message:
            raise StopIteration(message)
        if self.owner._closed:
            raise StopAsyncIteration
        self._task = core.cur_task
        core._task_queue.push(core.cur_task, self.wait()._until)


# Times: keepalive, timeout and patience in seconds. `timeout`: for each answer of the server; when it is over the
# connection is given up and made again. `patience`: for a publish or subscribe over all connections, and for the link.
# `window`: QoS 1 and 2 messages in flight. `inbox`: messages received and not yet read. `max_packet`: bytes of
# the largest packet received (a larger one ends the connection) and of what is queued for one write.
# `linger_ms`: what is published within that time leaves in one write, acknowledgements with it.
# `will`: (topic, payload, qos, retain). `tls`: an ssl.SSLContext. `link`: brings the network up, `isconnected()` and
# `async connect()`. `on_message`: a function (topic, payload, retained) in the place of the `async for`; it is
# acknowledged when it returns. `dial`: makes the stream, see above; for Client it may be a coroutine.
class Client:
    # What MQTT 5.0 (midge_mqtt5.py) does in another way: its level, properties of CONNECT, no properties of others.
    _level = 4
    _properties = _extra = b""

    connected = False
    session_present = None  # True or False after CONNACK
    error = None  # why the last connection or attempt ended
    dropped = received = 0  # QoS 0 messages for which the inbox had no room; messages received

    _stream = _runner = None
    _source = None  # midge_large.py: what a payload is being read from
    _closed = True  # cleared by connect(), set by disconnect()
    _early = False  # set by wake(): packets follow CONNECT before CONNACK
    _greedy = False  # set by on_idle: take more all the same; cleared by _take
    _since = 0  # since when there is something to be written
    _rx_topic = b""  # the last topic received, and its bytes
    _rx_name = ""

    # Client(..., version=5) is midge_mqtt5's.
    def __new__(cls, *args, version=4, **options):
        if version > cls._level:
            from midge_mqtt5 import Client as cls
            if _MICROPYTHON:  # which calls __init__ of the class that was asked for only
                return cls(*args, **options)
        return object.__new__(cls)

    def __init__(self, client_id, host, port=1883, user=None, password=None, keepalive=60, clean=True, will=None,
                 timeout=10, patience=60, window=16, inbox=8, max_packet=2048, linger_ms=0, backoff_ms=(500, 60_000),
                 outbox=None, tls=None, link=None, on_message=None, dial=dial, version=4):
        self.host = host
        self.port = port
        self.keepalive = keepalive
        self.clean = clean
        self.window = window
        self.inbox = inbox
        self.max_packet = max_packet
        self.linger_ms = linger_ms
        self.backoff_ms = backoff_ms
        self.outbox = outbox or MemoryOutbox()
        self.tls = tls
        self.link = link
        self.on_message = on_message
        self.dial = dial
        self._timeout_ms = int(timeout * 1000)
        self._patience_ms = int(patience * 1000)
        self._connect = self._compose(client_id, user, password, will)
        self._topics = {}  # topic name: its bytes
        self._filters = {}  # filter: qos, renewed when the server has no session
        if _MICROPYTHON:
            self._tx = bytearray(256)
        else:
            self._tx = _Buffer(256)
            self._tx.client = self
        self._tx[:] = b""  # empty, its room kept
        self._rx = bytearray(max_packet + 2)  # a length can be read from its end, and is then found wrong
        self._view = memoryview(self._rx)[:max_packet]
        self._inbox = []  # (topic, payload, retained) received and not yet taken
        self._marks = []  # for each, what is to be acknowledged: packet_id << 1, | 1 for QoS 2; 0 for nothing
        self._waiting = []  # signals of publishers that found no room
        self._arrival = _Arrival(self)
        self._up = _Signal()  # CONNACK, or lost

    # Raises MQTTError (refused: .code), MQTTTimeout or OSError. Once connected, the connection is kept: lost, it is
    # made again, until disconnect().
    async def connect(self):
        if self._runner:
            raise RuntimeError("connected")
        self._closed = False
        try:
            await self._open()
        except BaseException:
            self._closed = True
            self._close()
            raise
        self._runner = asyncio.create_task(self._run())

    # QoS 0: queued for this turn's write. QoS 1 and 2: awaited until PUBACK or PUBCOMP, over reconnections.
    # Raises MQTTTimeout after `patience`; then, as after a cancellation, a message of which nothing was sent is taken
    # back, any other stays in flight and is finished (or resent on the next connection) without its caller.
    def publish(self, topic, payload, qos=0, retain=False, properties=b""):
        encoded = self._topics.get(topic) or self._encode_topic(topic)
        if not isinstance(payload, bytes):
            payload = _encode(payload)
        header = _header(qos, retain)
        if self._waiting or not self._has_room(header):
            return self._later(header, encoded, payload, properties)
        return self._now(header, encoded, payload, properties)

    # Leaves a message to the outbox and doesn't wait: it is sent when there is a connection.
    def store(self, topic, payload, qos=1, retain=False):
        self.outbox.put(topic, payload, qos, retain)
        self._pump()

    # Gives the QoS that the server granted.
    async def subscribe(self, filter, qos=0):
        encoded = _encode(filter)
        message = self._ask(_SUBSCRIBE, {encoded: qos})
        await self._settled(message)
        self._filters[encoded] = qos
        return message.code

    async def unsubscribe(self, filter):
        encoded = _encode(filter)
        self._filters.pop(encoded, None)
        await self._settled(self._ask(_UNSUBSCRIBE, (encoded,)))

    # Writes what is queued and DISCONNECT, so that the server drops the will, and ends the `async for`.
    async def disconnect(self):
        runner, self._runner = self._runner, None  # _run looks at it: _close swallows a cancellation
        await _end(runner)
        if self.connected:
            self._tx.extend(b"\xe0\0")  # DISCONNECT
            for _ in range(self._timeout_ms):
                if not self._tx or self._lost:
                    break
                await sleep_ms(1)
        self._closed = True
        self._close()
        for message in self.outbox.messages:
            message.set()
        self._pump()
        self._arrival.set()

    def __aiter__(self):
        return self

    if _MICROPYTHON:
        def __anext__(self):
            return self._arrival

        def _settled(self, message):
            message.held = True
            return message.wait(self._patience_ms)
    else:
        async def __anext__(self):
            while True:
                message = self._take()
                self._tx.kick()  # there is room in the inbox
                if message:
                    return message
                if self._closed:
                    raise StopAsyncIteration
                self._arrival.is_set = False
                await self._arrival.wait()

        def _settled(self, message):
            message.held = True
            return self._settle(message)

        async def _settle(self, message):
            try:
                await message.wait(self._patience_ms)
            except BaseException:
                message.settle()
                raise
            error = message.settle()
            if error:
                raise error

    # ------------------------------------------------------------------------------------------- publishing

    def _encode_topic(self, topic):
        encoded = _encode(topic)
        _check_topic(encoded)
        if len(self._topics) >= _TOPICS_MAX:
            self._topics.clear()
        self._topics[topic] = encoded
        return encoded

    # QoS 1 and 2 need a place in the window and may be taken while there is no connection; QoS 0 needs the connection.
    def _has_room(self, header):
        if header & 6:
            return len(self.outbox.messages) < self.window
        return self.connected and len(self._tx) < len(self._rx)

    def _now(self, header, topic, payload, properties):
        if not header & 6:
            self._put_publish(header, 0, topic, payload, properties)
            if _MICROPYTHON:
                return _ENDED
            else:
                return _end(None)
        if self._closed:
            raise MQTTError("disconnected")
        message = self.outbox.add(header, topic, payload, properties)
        self._pump()
        return self._settled(message)

    async def _later(self, header, *rest):
        await self._room(header)
        await self._now(header, *rest)

    def _put_publish(self, header, packet_id, topic, payload, properties):
        packet = self._tx
        n = len(topic)
        packet.append(header)
        _put_length(packet, n + len(properties) + len(payload) + (4 if header & 6 else 2))
        packet.append(n >> 8)
        packet.append(n & 0xFF)
        packet.extend(topic)
        if header & 6:
            packet.append(packet_id >> 8)
            packet.append(packet_id & 0xFF)
        packet.extend(properties)
        packet.extend(payload)

    # Sends what of the outbox wasn't sent on this connection, as far as the window and the buffer have room. Then who
    # waits for room may look.
    def _pump(self):
        outbox = self.outbox
        if self.connected or self._early:
            while outbox.sent < len(outbox.messages) and outbox.sent < self.window and len(self._tx) < len(self._rx):
                self._send(outbox.messages[outbox.sent])
        if self._waiting:
            self._waiting[0].set()

    # The first time or, on a new connection, again [MQTT-4.4.0-1]: with DUP [MQTT-3.3.1-1], the same identifier.
    def _send(self, message):
        outbox = self.outbox
        header = message.header
        payload = message.payload
        outbox.sent += 1
        if message.state >= _PUBCOMP:  # PUBREL, SUBSCRIBE, UNSUBSCRIBE
            self._answer(header, message.packet_id, payload)
        else:
            if message.sent:
                header |= _DUP
            if payload is None:
                outbox.load(message)
            self._put_publish(header, message.packet_id, message.topic, message.payload, message.properties)
            if payload is None:
                message.topic = message.payload = None
            if message.state == _PUBLISH:
                outbox.remove(message)
        message.sent = True
        message.sent_at = ticks_ms()

    def _answer(self, header, packet_id, rest=b""):
        tx = self._tx
        tx.append(header)
        _put_length(tx, 2 + len(rest))
        _put_pair(tx, packet_id)
        tx.extend(rest)

    # First come, first served: who waits here is woken when those before have gone, and looks again.
    async def _room(self, header):
        until = ticks_add(ticks_ms(), self._patience_ms)
        signal = _Signal()
        self._waiting.append(signal)
        try:
            while self._waiting[0] is not signal or not self._has_room(header):
                left = ticks_diff(until, ticks_ms())
                if self._closed:
                    raise MQTTError("disconnected")
                if left <= 0:
                    raise MQTTTimeout("not sent")
                signal.is_set = False
                await signal.wait(left)
        finally:
            self._waiting.remove(signal)
            self._pump()

    # ------------------------------------------------------------------------------- subscribing, receiving

    # filters: {filter: qos}, or filters alone to unsubscribe.
    def _ask(self, header, filters):
        if self._closed:
            raise MQTTError("disconnected")
        body = bytearray(self._extra)
        for encoded in filters:
            _put_string(body, encoded)
            if header == _SUBSCRIBE:
                body.append(filters[encoded])
        message = self.outbox.new(header, body, header + 14)  # SUBACK, UNSUBACK
        self._pump()
        return message

    # The rule of acknowledging: PUBACK or PUBREC leaves when the loop takes the message, not when it arrives. What
    # a reset finds unread in the inbox is then sent again by the server; acknowledging later still, after the loop's
    # body, would show a QoS 2 message twice to a program that leaves its loop.
    def _take(self):
        if self._inbox:
            self._confirm(self._marks.pop(0))
            self._greedy = False
            return self._inbox.pop(0)

    def _confirm(self, mark):
        if mark & 1:  # also while there is no connection: the server will send it again
            self.outbox.remember(mark >> 1)
        if mark and self.connected:
            self._answer(_PUBACK + (mark << 4 & 0x10), mark >> 1)  # PUBACK, or PUBREC

    # ------------------------------------------------------------------------------------------ connection

    # Who calls this closes when it raises. One deadline for TCP, TLS and CONNACK.
    async def _open(self):
        if self.link and not self.link.isconnected():
            await self._within(self.link.connect())
        stream = self._dial()
        self._stream = stream if hasattr(stream, "readinto") else await self._within(stream)
        self._begin()
        _watch(self)
        await self._up.wait(self._timeout_ms)
        # A connection that was accepted, and is lost already, is a lost connection like any other.
        if self.session_present is None:
            raise self._lost or MQTTTimeout("no CONNACK")

    async def _within(self, task):
        try:
            return await asyncio.wait_for(task, self._patience_ms / 1000)
        except asyncio.TimeoutError:
            raise MQTTTimeout("no link")

    def _dial(self):
        return self.dial(self.host, self.port, self.tls) if self.tls else self.dial(self.host, self.port)

    def _begin(self):
        self._lost = None  # set by _lose
        self._ping_at = None  # set when PINGREQ leaves, cleared by PINGRESP
        self._stalled = 0  # set and cleared by _parse: since when the inbox is full
        self._blocked = _WRITE  # set when the stream takes no more, cleared by on_ready: connected, or room again
        self._rx_end = 0  # received and not parsed, at the start of _rx
        self.session_present = None
        self._up.is_set = False
        self.outbox.sent = 0
        self._tx[:] = self._connect
        self._rx_at = self._tx_at = ticks_ms()

    def _close(self):
        self.connected = False
        if self._stream:
            _watch(self, False)
            self._stream.close()
        self._stream = None

    def _lose(self, error):
        if not self._lost:
            self._lost = self.error = error
        self.connected = False
        self._up.set()

    async def _run(self):
        while self._runner:
            await self._keep()
            delay_ms = self.backoff_ms[0]
            while not self.connected:
                self._close()
                if not self._runner:
                    return
                # Half of it by chance, as the clock's last bits are: a hundred boards don't come back in step.
                await sleep_ms(delay_ms * (256 + (ticks_ms() & 255)) >> 9)
                delay_ms = min(delay_ms * 2, self.backoff_ms[1])
                try:
                    await self._open()
                except Exception as error:  # noqa: BLE001 - MemoryError, say: there is some later
                    self.error = error

    # Until the connection is lost: PINGREQ when nothing else was sent, or nothing came, for a keep alive; the link is
    # lost when an answer is overdue. A publish of QoS 0 every second would hide a half-open link for ever.
    async def _keep(self):
        while not self._lost:
            now = ticks_ms()
            left_ms = _FOREVER_MS
            if self.keepalive:
                left_ms = self._ping_ms(now)
                if left_ms <= 0 and self._ping_at is None:
                    self._tx.extend(b"\xc0\0")  # PINGREQ
                    self._ping_at = now
                    left_ms = self._ping_ms(now)
            if self.outbox.sent:
                left_ms = min(left_ms, self._timeout_ms - ticks_diff(now, self.outbox.messages[0].sent_at))
            if left_ms <= 0:
                if not self._stalled:  # while the program doesn't read, nor do we: silence proves nothing
                    return self._lose(MQTTTimeout("no answer"))
                left_ms = self._timeout_ms
                self._ping_at = None
                self._rx_at = now
            if self.link:  # a network that says that it is gone needn't be asked by PINGREQ
                if not self.link.isconnected():
                    return self._lose(MQTTError("no link"))
                left_ms = min(left_ms, 1000)
            self._up.is_set = False
            await self._up.wait(min(left_ms, self._timeout_ms // 4))  # what is sent meanwhile has a deadline too

    # Milliseconds until PINGREQ is due, or then until PINGRESP is overdue. The server waits 1.5 keep alive; we ask an
    # eighth early, so that the answer comes within them too.
    def _ping_ms(self, now):
        if self._ping_at is None:
            return self.keepalive * 875 - max(ticks_diff(now, self._tx_at), ticks_diff(now, self._rx_at))
        return min(self._timeout_ms, self.keepalive * 500) - ticks_diff(now, self._ping_at)

    def on_ready(self, events):
        try:
            if events != _READ:
                self._blocked = 0
                _watch(self)
            if self._stalled:
                _watch(self)
            elif not self._lost:
                self._receive()
        except Exception as error:  # noqa: BLE001 - of on_message, say: it would end the hosting program
            self._lose(error)

    # All that was put there since the last turn leaves in one write: MicroPython has no TCP_NODELAY on every port, and
    # a second small write would wait for the delayed ACK of the first (measured: 23 QoS 1 messages a second).
    def on_idle(self, ms):
        tx = self._tx
        try:
            if self._stalled:
                # Back-pressure: the server waits until the program reads. Unless an answer is expected: the program
                # may wait for it in its loop. It gets a moment to read, then packets are taken beyond `inbox`.
                if self.outbox.messages:
                    self._greedy = ticks_diff(ticks_ms(), self._stalled) >= _GRACE_MS
                    ms = min(ms, _GRACE_MS)
                if self._greedy or len(self._inbox) < self.inbox:
                    self._parse()
                    _watch(self)
                    ms = 0  # someone may have been woken
            while (tx or self._source) and not (self._blocked or self._lost):
                if self.linger_ms and self.connected:
                    self._since = self._since or ticks_ms() | 1
                    left_ms = self.linger_ms - ticks_diff(ticks_ms(), self._since)
                    if left_ms > 0:
                        return min(ms, left_ms)
                    self._since = 0
                self._flush()
                if tx or self._source:
                    self._blocked = _WRITE
                    _watch(self)
                elif self._waiting:
                    ms = 0
                self._pump()
            return ms
        except Exception as error:  # noqa: BLE001
            self._lose(error)
            return 0

    # Writes what the stream takes at once.
    def _flush(self):
        self.outbox.sync()
        try:
            n = self._stream.write(self._tx)
        except ValueError as error:  # so MicroPython says that it doesn't trust a certificate
            raise MQTTError(str(error))
        if n:
            self._tx_at = ticks_ms()
            self._tx[:n] = b""

    # Reads and handles what has come; None if nothing had.
    def _receive(self):
        try:
            n = self._stream.readinto(self._view[self._rx_end:] if self._rx_end else self._view)
        except ValueError as error:  # as in _flush
            raise MQTTError(str(error))
        if n:
            self._rx_at = ticks_ms()
            self._rx_end += n
            self._parse()
        elif n == 0:
            raise MQTTError("closed by the server")
        return n

    # Takes all complete packets out of the buffer, where they lie; what is left then moves to its start.
    def _parse(self):
        rx = self._rx
        pos = 0
        end = self._rx_end
        self._stalled = 0
        while end - pos >= 2:
            length = rx[pos + 1]
            body = pos + 2
            if length > 127:
                length, body = _get_length(rx, pos + 1, end)
                if length is None:
                    break
            if body + length - pos > self.max_packet:
                raise MQTTError("max_packet")
            if body + length > end:
                break
            header = rx[pos]
            if header & 0xF0 == _PUBLISH:
                if len(self._inbox) >= self.inbox and not self._greedy:
                    self._stalled = ticks_ms() | 1
                    break
                self._on_publish(header, body, body + length)
            else:
                self._on_packet(header, body, length)
            pos = body + length
        self._rx_end = end - pos
        if 0 < pos < end:
            self._view[:end - pos] = self._view[pos:end]

    def _on_publish(self, header, pos, end):
        rx = self._rx
        qos = header >> 1 & 3
        topic_end = pos + 2 + (rx[pos] << 8 | rx[pos + 1])
        payload = topic_end + 2 if qos else topic_end
        packet_id = rx[topic_end] << 8 | rx[topic_end + 1] if qos and payload <= end else 0
        # [MQTT-3.3.1-4], [MQTT-3.3.1-2], [MQTT-2.3.1-1]
        if payload > end or not self.connected or qos == 3 or header & 0x0E == _DUP or (qos and not packet_id):
            raise MQTTError("malformed")
        if self._extra:
            payload = self._read_properties(payload, end)
        inbound = self.outbox.inbound
        if qos == 2:  # exactly once: what the loop has taken is answered again, what it hasn't is answered when it does
            if packet_id in inbound:
                self._answer(_PUBREC, packet_id)
                return
            if packet_id << 1 | 1 in self._marks:
                return
            if len(inbound) >= _INBOUND_MAX:
                raise MQTTError("protocol error")
        pos += 2
        if pos == topic_end or topic_end - pos != len(self._rx_topic) or not rx.startswith(self._rx_topic, pos):
            self._read_topic(pos, topic_end)
        self._deliver(bytes(self._view[payload:end]), header & 1 == 1, packet_id << 1 | qos >> 1)

    def _deliver(self, payload, retained, mark):
        self.received += 1
        if self.on_message:
            self.on_message(self._rx_name, payload, retained)
            self._confirm(mark)
        elif not mark and len(self._inbox) >= self.inbox:
            self.dropped += 1
        else:
            self._inbox.append((self._rx_name, payload, retained))
            self._marks.append(mark)
            self._arrival.set()

    def _read_topic(self, start, end):
        topic = bytes(self._view[start:end])
        try:
            _check_topic(topic)
            # What MicroPython's decode() lets pass [MQTT-1.5.3-1]: overlong forms, surrogates, beyond U+10FFFF. The
            # first two bytes of a character tell (Unicode 15, table 3-7).
            for i in range(len(topic) - 1):
                pair = topic[i] << 8 | topic[i + 1]
                if pair >= 0xC000 and (pair < 0xC200 or 0xE000 <= pair < 0xE0A0 or 0xEDA0 <= pair < 0xEE00
                                       or 0xF000 <= pair < 0xF090 or pair >= 0xF490):
                    raise ValueError
            self._rx_name = topic.decode()
        except ValueError:  # UnicodeError too [MQTT-1.5.3-1]
            raise MQTTError("malformed")
        self._rx_topic = topic

    def _on_packet(self, header, pos, length):
        rx = self._rx
        packet_id = rx[pos] << 8 | rx[pos + 1] if length >= 2 else 0
        if not self.connected:
            self._on_connack(header, pos, length)
        elif header == _PINGRESP and length == 0:
            self._ping_at = None
        elif not packet_id or (length < 3 if header == _SUBACK else length > 2):  # [MQTT-2.3.1-1]
            raise MQTTError("malformed")
        elif header == _PUBREL:
            self.outbox.forget(packet_id)
            self._answer(_PUBCOMP, packet_id)
        else:
            code = max(rx[pos + 2:pos + length]) if header == _SUBACK else 0
            message = self.outbox.find(packet_id)
            state = message.state if message else None
            if header == _PUBREC and (not state or state == _PUBREC or state == _PUBCOMP):
                # For an identifier that we don't know too: the server can then let go of it.
                if state == _PUBREC:
                    self.outbox.release(message)
                self._answer(_PUBREL, packet_id)
            # PUBACK, PUBREC, PUBCOMP, SUBACK and UNSUBACK may answer what we don't know any more [MQTT-3.9.3-2].
            elif (code > 2 and code != 0x80) or (header != state and (state or header not in b"\x40\x50\x70\x90\xb0")):
                raise MQTTError("protocol error")
            elif state:
                self._done(message, code)

    def _done(self, message, code):
        message.code = code
        if code > 127:
            self.error = message.error = MQTTError("refused", code)  # its only trace when nobody waits for it
        self.outbox.remove(message)
        message.set()
        self._pump()

    def _on_connack(self, header, pos, length):
        flags = self._rx[pos]
        code = self._rx[pos + 1]
        # [MQTT-3.2.2-1], [MQTT-3.2.2-4]
        if header != _CONNACK or length != 2 or flags > 1 or (flags and (code or self.clean)) or code > 5:
            raise MQTTError("malformed")
        if code:
            raise MQTTError("refused: %d" % code, code)
        self._accepted(flags == 1)

    # §4.4: what is unacknowledged goes again, in order; without a session at the server its subscriptions too. All in
    # one write. Of the inbox, what the server will send again is forgotten; what it won't stays, unacknowledged.
    def _accepted(self, session_present):
        self.session_present = session_present
        self.connected = True
        i = len(self._marks)
        while i:
            i -= 1
            if self._marks[i] and session_present:
                del self._marks[i], self._inbox[i]
            else:
                self._marks[i] = 0
        if not session_present:
            while self.outbox.inbound:
                self.outbox.forget(self.outbox.inbound[0])
            if self._filters:
                self._ask(_SUBSCRIBE, self._filters)
        if not self._early:
            self._pump()
        self._up.set()

    def _compose(self, client_id, user, password, will):
        flags = 2 if self.clean else 0
        payload = bytearray()
        _put_string(payload, _encode(client_id))
        if will:
            topic, message, qos, retain = will
            topic = _encode(topic)
            _check_topic(topic)
            flags |= 4 | qos << 3 | (0x20 if retain else 0)
            payload.extend(self._extra)
            _put_string(payload, topic)
            _put_string(payload, _encode(message))
        for flag, text in ((0x80, user), (0x40, password)):
            if text is not None:
                flags |= flag
                _put_string(payload, _encode(text))
        if flags & 0xC0 == 0x40:
            raise ValueError("user")  # [MQTT-3.1.2-22]
        packet = bytearray(b"\x10")
        _put_length(packet, 10 + len(self._properties) + len(payload))
        packet.extend(b"\0\x04MQTT")
        packet.append(self._level)
        packet.append(flags)
        _put_pair(packet, self.keepalive)
        packet.extend(self._properties)
        packet.extend(payload)
        return packet


# One wake cycle, without asyncio. What it does and returns: midge_wake.py.
def wake(*args, **options):
    from midge_wake import wake
    return wake(*args, **options)
