"""An MQTT 3.1.1 broker in one file, for MicroPython 1.22+ and CPython 3.11+.

It knows nothing of the client, of files or of radios: bring the network up, then `await broker.run()`.
"""
# Two more files may lie beside it: midge_broker_v5.py for clients of MQTT 5.0 and shared subscriptions, and
# midge_broker_store.py, with which what was acknowledged survives a power cut.
#
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
# From source it needs three times the heap that it needs as .mpy (compiling takes 17 bytes per token): see
# benchmarks/device_broker.py. Annotations would cost the compiler another 7 kB.
import asyncio
import gc
import os
import socket
import sys
import time

try:
    from micropython import const
except ImportError:
    const = abs

# MicroPython's compiler takes the first as it stands, so the second is -2, and leaves out the other interpreter's half
# of this file. CPython calls abs() and gets 1 and 0.
_MINUS = const(-1)
_MICROPYTHON = const(_MINUS - 1)

try:
    import midge_broker_v5 as _v5  # MQTT 5.0; without that file its clients are told to speak 3.1.1
except ImportError:
    _v5 = None


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
_SHARED = const(0x100000)  # came by a shared subscription
# What ends each state, or takes it one further.
_ENDS_WITH = (0, _PUBACK, _PUBREC, _PUBCOMP)

# Options of a subscription, beside its QoS: those of 5.0 (§3.8.3.1), and ours.
_NO_LOCAL = const(4)
_AS_PUBLISHED = const(8)  # RETAIN as it came
_OF_BRIDGE = const(12)  # nothing is echoed to a bridge (DESIGN §5), it is told what is retained: as Mosquitto has it
_OF_GROUP = const(64)
_ENTRY_BYTES = const(32)  # list cells of an entry, or header of an object, on a 64-bit port; half on a board
_RETAINED_BYTES = const(160)  # of a retained message beside itself: dict cells, topic, object headers

_QOS2_RECEIVED_MAX = const(256)  # unreleased QoS 2 packet identifiers; Mosquitto allows 20, paho sends 20
_PENDING_MAX = const(4)  # connections beside max_clients that have not sent CONNECT yet
_ROUTES_MAX = const(16)  # topics whose receivers are remembered; more topics only cost time
_CHUNK_BYTES = const(1460)  # read at once: one TCP segment, then the others have their turn
_BEHIND = const(4)  # messages that wait for a place in the window: their publisher waits, too
_HELD_BYTES_MAX = const(256)  # 64 acknowledgements; usual windows are 10 to 20
_LOG_LINES_MAX = const(5)  # per second: a UART of 115,200 bit/s takes 5 ms a line

# What becomes of a packet identifier, for the store; _RELEASED is one more.
_GONE = const(2)  # the session has ended
_DONE = const(7)  # sent and acknowledged, or dropped
_TAKEN = const(8)  # QoS 2, received
_FREED = const(9)  # ... and released

# Counters, by their place in Broker._counts, and their names under $SYS/broker/.
_RECEIVED = const(0)  # PUBLISH packets, each QoS 2 message once
_SENT = const(1)  # PUBLISH packets
_FULL = const(2)  # dropped: a queue, or all of them
_NO_MEMORY = const(3)  # dropped
_DENIED = const(4)  # dropped: the hook `allow` said no
_EXPIRED = const(5)  # dropped: 5.0, as is the next
_TOO_LARGE = const(6)  # dropped: for its receiver
_REFUSED = const(7)  # connections: no room, not authorized, displaced
_MALFORMED = const(8)  # connections
_RETAINED_REFUSED = const(9)
_SUBSCRIPTIONS_REFUSED = const(10)
_SYS = (  # m is messages, x is messages/dropped
    "m/received m/sent x/full x/memory x/denied x/expired x/large "
    "connections/refused connections/malformed retained/refused subscriptions/refused m/dropped m/queued/bytes "
    "retained/bytes clients/connected clients/total heap/free uptime store/bytes store/bytes_per_message"
)


class _Malformed(ValueError):  # the peer broke the protocol: ends its connection and nothing else
    pass


# ---- the two interpreters: clock, sockets, waiting ----

# All sockets are non-blocking; None from _receive or _send means "not now".
#
# _watch calls source.on_ready(events) whenever the socket is what *events* say, until it is called with others; 0: no
# more.
#
# On MicroPython asyncio takes a stream into its poll object for one wait and out again after it, which costs 160 bytes
# each time (on a 64-bit port), and a task per socket. So we stand between asyncio's queue and its poll object: sockets
# of ours stay registered there, and what happens to them goes to us without a task; all the rest goes to asyncio as
# ever. The broker thus sleeps and wakes together with the hosting program's tasks, in the one poll that there is, and
# waiting allocates nothing. Of asyncio it needs that core._io_queue.poller is used as a select.poll with
# register, modify, unregister and ipoll: so from MicroPython 1.13 to today's master, in Python on all ports.
_READ = const(1)  # select.POLLIN; all ports have the same values
_WRITE = const(4)  # select.POLLOUT

if _MICROPYTHON:
    _ticks_ms = time.ticks_ms  # wraps around, after 12 days on a 32-bit board
    _ticks_diff = time.ticks_diff

    def _receive(sock, view):
        return sock.readinto(view)

    def _send(sock, data, offset, length):
        return sock.write(data, offset, length)

    class _Poller:
        def __init__(self, poll):
            self.poll = poll
            self.register = poll.register
            self.modify = poll.modify
            self.unregister = poll.unregister
            self.sources = {}  # id(socket) -> what it belongs to
            self.end = StopIteration()

        def ipoll(self, timeout_ms):
            self.data = iter(self.poll.ipoll(timeout_ms))
            return self

        def __iter__(self):
            return self

        # Ends at no error of ours: it would end the hosting program. Where there is no memory now, there is some later.
        def __next__(self):
            for ready in self.data:
                source = self.sources.get(id(ready[0]))
                if not source:
                    return ready
                try:
                    source.on_ready(ready[1])
                except Exception as error:  # noqa: BLE001 - MemoryError, within what dealt with the first
                    sys.print_exception(error)
            self.end.__traceback__ = None  # else it grows
            raise self.end

    def _watch(sock, source, events):
        queue = asyncio.core._io_queue
        poller = getattr(queue, "broker", None)  # the outermost may be midge_client's
        if not poller:
            queue.broker = queue.poller = poller = _Poller(queue.poller)
        if events:
            poller.sources[id(sock)] = source
            poller.register(sock, events)
        else:
            poller.sources.pop(id(sock), None)
            poller.unregister(sock)

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

    def _watch(sock, source, events):
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # close() before or after the program's asyncio.run()
            return
        if events & _READ:
            loop.add_reader(sock, source.on_ready, _READ)
        else:
            loop.remove_reader(sock)
        if events & _WRITE:
            loop.add_writer(sock, source.on_ready, _WRITE)
        else:
            loop.remove_writer(sock)


# ---- codec ----


# str() checks the form; what MicroPython's lets pass is checked here: overlong forms, surrogates
# [MQTT-1.5.3-1] and U+0000 [MQTT-1.5.3-2]. After E0 comes A0 or more, after ED less; after F0 90 or more, F4 less.
def _text(data):
    try:
        text = str(data, "utf-8")
        before = 0
        for byte in data:
            if byte in b"\x00\xc0\xc1\xf5\xf6\xf7" or (
                before in b"\xe0\xed\xf0\xf4" and (byte < (0xA0 if before < 0xF0 else 0x90)) == (before in b"\xe0\xf0")
            ):
                raise UnicodeError
            before = byte
        return text
    except UnicodeError:
        raise _Malformed("text")


# Fields of one packet, in order; where allocating is no matter (CONNECT, SUBSCRIBE, UNSUBSCRIBE).
class _Fields:
    def __init__(self, data):
        self.data = data  # memoryview of what is left

    def take(self, count):
        data = self.data
        if count > len(data):
            raise _Malformed("too short")
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


# Where the payload begins.
def _body(message):
    at = _slot(message) + 2
    return _v5.skip_properties(message, at) if message[at - 1] & 4 else at


# ---- topics ----


def check_topic(topic):
    if not topic or "+" in topic or "#" in topic:
        raise _Malformed("topic name", 0x82)  # [MQTT-3.3.2-2], [MQTT-4.7.3-1]


def check_filter(topic_filter):
    if topic_filter.startswith("$share/") and _v5:
        topic_filter = _v5.shared_filter(topic_filter)
    wrong = not topic_filter or "#" in topic_filter[:-1]  # [MQTT-4.7.3-1], [MQTT-4.7.1-2]
    for level in topic_filter.split("/"):
        if wrong or (len(level) > 1 and ("#" in level or "+" in level)):
            raise _Malformed("topic filter", 0x82)  # [MQTT-4.7.1-2], [MQTT-4.7.1-3]


def matches(topic_filter, topic):
    # Never topic[0]: MicroPython interns each character that is taken out of a string, for ever.
    if topic.startswith("$") > topic_filter.startswith("$"):
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
    expiry_s = -1  # 5.0; -1: when its place is needed
    ends_at = 0  # 5.0: by the clock of midge_broker_v5.py; 0: no end
    will = None  # 5.0: one that is delayed
    in_flight = 0  # entries at the queue's head that were sent on this connection
    qos_0 = 0  # entries of that QoS, all of them waiting
    queued_bytes = 0  # of its messages, shared or not
    passed = 0  # entries that wait no longer, ever: sent or dropped
    packet_ids = 0  # how many have been given
    number = 0  # in the store; 0: it isn't kept there

    def __init__(self, client_id, clean):
        self.client_id = client_id
        self.clean = clean
        self.subscriptions = {}  # topic filter -> granted QoS | options
        # meta, message, meta, message ...: first those in flight, then those that wait. Room for some is made
        # now: in a heap full of messages there are few holes of 512 bytes.
        self.queue = [None] * 64
        del self.queue[:]
        self.received = []  # packet identifiers of QoS 2 between PUBLISH and PUBREL

    def waiting(self):
        return len(self.queue) // 2 - self.in_flight

    # What giving way can bring: the session with the most of it does.
    def load(self):
        return self.queued_bytes if self.waiting() else -1

    # They are given when a message joins the queue, so that what is kept of it needs no change when it is sent.
    def next_packet_id(self):
        while True:
            packet_id = self.packet_ids % 65535 + 1
            self.packet_ids += 1
            # Looking for it is needed only once they have been used up, and only among what may have been sent:
            # what waits has got the latest.
            if self.packet_ids <= 65535 or self.find(packet_id, 128) < 0:
                return packet_id

    # Where among the first entries the one with this identifier is, or -1. The first almost always, since
    # clients acknowledge in order.
    def find(self, packet_id, entries):
        queue = self.queue
        for at in range(0, min(2 * entries, len(queue)), 2):
            if queue[at] & 0xFFFF == packet_id:
                return at
        return -1


# ---- connection: what one socket needs ----


class _Connection:
    session = None  # set by CONNECT
    rest = None  # the beginning of a packet whose end has not come
    unsent = None  # what the socket did not take of a write; None: not stalled
    forward = 0  # buffer[forward:forward_end] is to be sent as it is
    forward_end = 0
    dirty = False  # in Broker._dirty
    pings = 0  # PINGRESPs due ...
    pings_after = 0  # ... once session.passed has come so far
    will = None  # a message; cleared by DISCONNECT
    v5 = False
    receive_max = packet_max = 1 << 28  # 5.0: what the client takes at most
    expiry_s = -1  # 5.0: of the session; -1: never
    options = 0  # of all its subscriptions
    waits_for = None  # a session that fell behind with what this connection published ...
    held = b""  # ... and the acknowledgements of that

    def __init__(self, broker, sock):
        self.broker = broker
        self.sock = sock  # None once closed
        self.control = bytearray()  # acknowledgements to send
        self.last_ms = _ticks_ms()  # when bytes last came
        self.deadline_ms = broker.connect_timeout_s * 1000  # of silence; after CONNECT 1.5 keep alives, 0: none
        _watch(sock, self, _READ)

    def on_ready(self, events):
        broker = self.broker
        if events != _WRITE and (len(self.held) <= _HELD_BYTES_MAX or broker._let_go(self)):
            broker._guard(Broker._read, self)  # an error, too: reading tells it
        if events & _WRITE and self.sock:
            _watch(self.sock, self, _READ)  # until it is found stalled again
            broker._mark(self)
        for other in broker._connections:
            if other.waits_for:
                broker._let_go(other)
        broker._flush()


# ---- broker ----


class Broker:
    # auth(client_id: str, user: str | None, password: bytes | None) -> bool
    # allow(client_id: str, topic: str, write: bool) -> bool; asked for a filter when it is subscribed to, and for
    #     each topic that is sent because of it
    # store: path of the journal, for midge_broker_store.py
    # log(line: str): a few lines a second at most
    # budget_bytes: the heap to plan with, by default what is free now
    # limits: any of those in `limits` below, which else follow from the budget
    def __init__(
        self,
        port=1883,
        bind="0.0.0.0",
        max_clients=8,
        auth=None,
        allow=None,
        store=None,
        log=print,
        budget_bytes=0,
        **limits
    ):
        gc.collect()
        budget = budget_bytes or (gc.mem_free() if _MICROPYTHON else 4_000_000)
        self._limits = {
            "budget_bytes": budget,
            "max_clients": max_clients,
            "max_sessions": 2 * max_clients,
            "max_packet": min(max(budget // 16, 256), 65_536),  # twice: to receive, to send
            "max_queued_messages": min(max(budget // 200, 150), 1000),  # per session; Mosquitto's limit is 1000
            "max_queued_bytes": budget * 3 // 8,  # of all queues
            "max_session_bytes": budget * 3 // 8,  # of each: no less, for the one that is away may be the only one
            "max_retained_bytes": budget // 8,
            "max_subscription_bytes": budget // 16,
            "max_inflight": min(max(budget // 4000, 8), 20),  # Mosquitto: 20
            "connect_timeout_s": 10,
            "session_expiry_s": 86_400,  # an absent session older than this makes room when there is none
            "sys_interval_s": 10,
            "max_store_bytes": 2 * budget,  # of the journal, before it is compacted; and as much again then
        }
        for name in limits:
            self._limits[name]  # KeyError: there is no such limit
        self._limits.update(limits)
        for name, value in self._limits.items():
            setattr(self, name, value)
        self.port = port
        self.bind = bind
        self.auth = auth
        self.allow = allow
        self.log = log
        self._connections = []  # in the order of their coming
        self._sessions = {}  # client identifier -> session
        self._retained = {}  # topic -> message
        self._local = []  # topic filter, callback of the hosting program
        # (length and bytes of the topic, topic, targets, callbacks, groups). A target is (session, QoS | options),
        # a group [turn, target, ...], the members of a shared subscription.
        self._routes = []
        self._dirty = []  # connections that have something to send
        self._buffer = bytearray(self.max_packet)
        self._view = memoryview(self._buffer)
        self._chunk = self._view[: min(_CHUNK_BYTES, self.max_queued_bytes // 8)]  # a queue has room for all in it
        self._stage = bytearray(self.max_packet + 64)  # outgoing packets are put together here
        self._stage_view = memoryview(self._stage)
        self._counts = [0] * 11
        # All attributes are made now: one more, and the dict of a full object grows, for which there may be no memory.
        self.uptime_s = 0  # with a store: of all starts together
        self._began_s = 0  # ... before this one
        self._ms = 0  # of the second that has begun
        self._tick_ms = _ticks_ms()
        self._log_lines = 0  # in this second
        self._queued_bytes = 0  # of all sessions
        self._retained_bytes = 0
        self._listener = None  # set by listen(), cleared by close()
        self._behind = None  # a session that fell behind in this _publish
        self._store = None
        self._marks = None  # of MQTT 5.0, once a second bridge is here
        if store:
            import midge_broker_store

            self._store = midge_broker_store.open_store(self, store, _Session)
            self._began_s = self.uptime_s

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
                self._call(callback, topic, bytes(message[_body(message) :]), True)

    # Where there is no memory for it, it is dropped and counted.
    def publish(self, topic, payload, qos=0, retain=False):
        try:
            check_topic(topic)
            message = _message(topic, payload.encode() if isinstance(payload, str) else payload, qos)
            if len(message) > self.max_packet:
                raise ValueError("packet too large")
            self._publish_message(message, retain)
        except MemoryError:
            self._make_room()
        self._flush()

    def listen(self):
        while not self._listener:
            # A board's socket can't tell which port it was given: for 0 we choose one, another each ms.
            port = self.port or 49152 + (_ticks_ms() & 0x3FFF)
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
        _watch(self._listener, self, _READ)
        try:
            while self._listener:
                await asyncio.sleep(1)
                try:
                    self._call(Broker._tick, self)
                except MemoryError:  # what it calls for help needs some, too
                    pass
        finally:
            self.close()

    def close(self):
        if self._listener:
            _watch(self._listener, self, 0)
            self._listener.close()
            self._listener = None
            for connection in list(self._connections):
                self._close(connection, None, 0x8B)
            if self._store:
                self._store.close()

    # ---- once a second ----

    def _tick(self):
        now = _ticks_ms()
        self._ms += _ticks_diff(now, self._tick_ms)
        self._tick_ms = now
        self._log_lines = 0
        if self._queued_bytes:
            # A heap that is collected only when it is full has what waits scattered all over, and no place for a long
            # list of it.
            gc.collect()
        while self._ms >= 1000:
            self._ms -= 1000
            self.uptime_s += 1
            if self.uptime_s % self.sys_interval_s == 0:
                self._publish_sys()
        for connection in list(self._connections):
            self._let_go(connection)
            if connection.deadline_ms and _ticks_diff(now, connection.last_ms) > connection.deadline_ms:
                self._close(connection, "silent", 0x8D)  # [MQTT-3.1.2-24]
        if _v5:
            _v5.tick(self)
        if self._store:
            self._store.tick()
        self._flush()

    # To whoever has subscribed to them; kept nowhere.
    def _publish_sys(self):
        gc.collect()  # or the figure would count garbage
        free = gc.mem_free() if _MICROPYTHON else 0
        counts = self._counts
        values = counts + [sum(counts[_FULL:_REFUSED]), self._queued_bytes, self._retained_bytes]  # noqa: RUF005
        values += [self._connected(), len(self._sessions), free, self.uptime_s - self._began_s]
        if self._store:
            values += self._store.figures()
        for name, value in zip(_SYS.split(" "), values):
            topic = "$SYS/broker/" + name.replace("x/", "m/dropped/").replace("m/", "messages/")
            route = self._resolve(b"", topic)
            if any(route[2:]):
                self._publish(route, _message(topic, str(value).encode(), 0), 0, None)

    # ---- connections come and go ----

    def _connected(self):
        count = 0
        for connection in self._connections:
            if connection.session:
                count += 1
        return count

    def on_ready(self, _):
        self._call(self._accept)

    def _accept(self):
        try:
            sock = self._listener.accept()[0]
        except OSError as error:
            if error.errno == 11:  # EAGAIN: gone again; or it is the poll's second look, which a new socket can cause
                return
            raise
        sock.setblocking(False)
        if self.attach(sock):
            sock.setsockopt(6, 1, 1)  # TCP_NODELAY: we write once per burst, waiting gains nothing

    # A connection that comes by any way: the listener, or a serial cable (Cable(on_channel=broker.attach)). Needs
    # readinto(view) and write(data, offset, length), which give None for "not now", and close(). True: it is let in.
    def attach(self, sock):
        try:
            # When all places are taken, whoever has been silent longest without CONNECT gives way, so that
            # connections that were opened and abandoned lock nobody out.
            if len(self._connections) >= self.max_clients + _PENDING_MAX:
                for connection in self._connections:
                    if not connection.session:
                        self._counts[_REFUSED] += 1
                        self._close(connection)
                        break
                else:
                    raise MemoryError
            self._connections.append(_Connection(self, sock))
            return True
        except MemoryError:
            self._counts[_REFUSED] += 1
            _watch(sock, None, 0)
            sock.close()
            return False

    # Ends a connection, well when there is no reason to tell. *code* is that of 5.0.
    def _close(self, connection, reason=None, code=0):
        if connection.v5 and code:
            _v5.farewell(self, connection, code)
        self._flush()  # what was answered before is sent
        if connection.sock is None:
            return
        session = connection.session
        if reason:
            self._log("closed %s: %s", session.client_id if session else "a newcomer", reason)
        _watch(connection.sock, connection, 0)
        connection.sock.close()
        connection.sock = connection.session = connection.unsent = None
        self._connections.remove(connection)
        if session is None:
            return
        session.connection = None
        if connection.v5:
            _v5.leave(self, connection, session)
        if connection.will:
            self._call(self._publish_message, connection.will, connection.will_retain)
        if session.clean:
            self._drop_session(session)
        else:
            self._leave(session)

    # An absent session keeps QoS 1 and 2; what was in flight is sent again, marked, in the same order.
    def _leave(self, session):
        session.absent_since_s = self.uptime_s
        queue = session.queue
        at = 0
        while at < len(queue):
            if queue[at] >> _STATE & 3:
                if at < 2 * session.in_flight:
                    queue[at] |= _DUP
                at += 2
            else:
                self._remove(session, at)
        session.in_flight = 0
        if len(queue) < 64:
            session.queue = queue[:]  # the absent keep only the memory that they use

    def _drop_session(self, session):
        del self._sessions[session.client_id]
        self._routes.clear()
        queue = session.queue
        while queue:
            if queue[0] & _SHARED:
                _v5.share_again(self, session, queue[0], queue[1])
            self._remove(session, 0)
            session.in_flight = max(0, session.in_flight - 1)
        self._note(_GONE, session)  # not before what it had was handed on
        if session.will:
            self._call(self._publish_message, *session.will[:2])

    # One step of a connection's work: whatever goes wrong in it ends this connection and no other. *step* is
    # a function, since a bound method would be allocated.
    def _guard(self, step, connection):
        try:
            step(self, connection)
        except OSError:
            self._close(connection, "connection lost")
        except MemoryError:
            self._make_room()
            self._close(connection, "out of memory", 0x97)
        except Exception as error:  # noqa: BLE001 - _Malformed, UnicodeError, and should there be a bug
            self._counts[_MALFORMED] += 1
            text, code = ((error.args or ("",)) + (0x81,))[:2]
            self._close(connection, text, code)

    # After a step that failed. Where the hosting program took more memory than was left to it, half of the longest
    # queue goes.
    def _make_room(self):
        if self._store:
            self._store.forget()
        self._counts[_NO_MEMORY] += 1
        if self._sessions:
            longest = max(self._sessions.values(), key=_Session.load)
            for _ in range((longest.waiting() + 1) // 2):
                self._drop_oldest(longest, _NO_MEMORY)

    def _call(self, hook, *arguments):
        try:
            return hook(*arguments)
        except MemoryError:
            self._make_room()
        except Exception as error:  # noqa: BLE001 - the hosting program's mistake must not end a client
            self._log("failed in %s: %r", hook, error)

    def _log(self, text, *values):
        self._log_lines += 1
        try:
            if self._log_lines <= _LOG_LINES_MAX:
                self.log(text % values)
        except MemoryError:
            pass

    # ---- bytes in ----

    # Back-pressure: while a receiver that acknowledges falls behind, the acknowledgements of what is
    # published to it are held, so that the publisher waits (one without a window isn't read any more) and
    # nothing is lost. For a second at most, and not for a receiver that has been silent for one: then the
    # receiver's oldest messages go. True if nothing is held any more.
    def _let_go(self, connection):
        slow = connection.waits_for
        if slow:
            receiver = slow.connection
            now = _ticks_ms()
            if (
                receiver
                and slow.waiting() > _BEHIND
                and _ticks_diff(now, receiver.last_ms) < 1000
                and _ticks_diff(now, connection.held_ms) < 1000
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
            chunk = self._view[start : start + len(self._chunk)]
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
            raise _Malformed("not reading")
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
            if connection.v5 and shift > 7 and not buffer[at - 1]:
                raise _Malformed("remaining length")  # [MQTT-1.5.5-1]
            if connection.session is None and header != _CONNECT:
                raise _Malformed("no CONNECT")  # [MQTT-3.1.0-1]
            after = at + length
            if after > end:
                if after - start > self.max_packet:
                    raise _Malformed("packet too large", 0x95)
                break
            if header == _PUBLISH and not connection.v5:
                self._forward(connection, start, at, after)
            elif header >> 4 == 3:
                self._receive_publish(connection, header, at, after)
            elif header in (_PUBACK, _PUBREC, _PUBREL, _PUBCOMP) and (length == 2 or (connection.v5 and length > 2)):
                reason = _v5.reason(header, _Fields(self._view[at + 2 : after])) if length > 2 else 0
                self._acknowledged(connection, header, buffer[at] << 8 | buffer[at + 1], reason)
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
        elif header == _DISCONNECT and (at == after or connection.v5):
            if at == after or _v5.disconnect(self, connection, _Fields(self._view[at:after])):
                connection.will = None  # [MQTT-3.14.4-3]
            self._close(connection)
        elif header == _CONNECT and session is None:
            self._connect(connection, _Fields(self._view[at:after]))
        elif header == _SUBSCRIBE or header == _UNSUBSCRIBE:
            self._subscribe_all(connection, header == _SUBSCRIBE, _Fields(self._view[at:after]))
        else:
            raise _Malformed("unexpected", 0x82 if header in (_CONNECT, 0xF0) else 0x81)

    # ---- routes ----

    # The route of the topic at data[at:], which must end by *end*.
    def _route(self, data, at, end):
        for route in self._routes:
            if data.startswith(route[0], at) and at + len(route[0]) <= end:
                return route
        fields = _Fields(memoryview(data)[at:end])
        topic = fields.text()
        check_topic(topic)
        route = self._resolve(bytes(memoryview(data)[at : end - len(fields.data)]), topic)
        if len(self._routes) >= _ROUTES_MAX:
            self._routes.pop()
        self._routes.insert(0, route)
        return route

    # Each session once, at the highest QoS of those of its subscriptions that match [MQTT-3.3.5-1]; a shared
    # subscription is one more.
    def _resolve(self, prefix, topic):
        targets = []
        groups = {}
        for session in self._sessions.values():
            best = -1
            for topic_filter, options in session.subscriptions.items():
                shared = options & _OF_GROUP
                if not matches(_v5.shared_filter(topic_filter) if shared else topic_filter, topic):
                    continue
                if self.allow and not self._may(session, topic, False):
                    break
                if shared:
                    groups.setdefault(topic_filter, [topic_filter, session.passed]).append((session, options))
                elif best < 0:
                    best = options
                else:
                    # No Local only if all of them say so.
                    best = max(best & 3, options & 3) | (best | options) & _AS_PUBLISHED | best & options & _NO_LOCAL
            if best >= 0:
                targets.append((session, best))
        callbacks = []
        for topic_filter, callback in self._local:
            if matches(topic_filter, topic):
                callbacks.append(callback)
        return prefix, topic, targets, callbacks, list(groups.values())

    def _may(self, session, topic, write):
        return self._call(self.allow, session.client_id, topic, write)

    # Only the broker publishes under $SYS.
    def _may_publish(self, connection, route):
        if route[1].startswith("$SYS") or (self.allow and not self._may(connection.session, route[1], True)):
            self._counts[_DENIED] += 1
            return False
        return True

    # ---- PUBLISH ----

    # A plain QoS 0 PUBLISH, buffer[start:after], goes to its receivers as it is, in one piece with what
    # went to them just before. If one of them can't take it so (it is slow, or something else goes
    # first), it takes the long way.
    def _forward(self, connection, start, at, after):
        route = self._route(self._buffer, at, after)
        targets = route[2]
        straight = not (route[3] or route[4] or self.allow or route[1].startswith("$"))
        for session, _ in targets:
            target = session.connection
            if target and (
                target.unsent
                or target.control
                or target.v5
                or (target.forward_end and target.forward_end != start)
                or len(session.queue) > 2 * session.in_flight
            ):
                straight = False
        if not straight:
            self._receive_publish(connection, _PUBLISH, at, after)
            return
        self._counts[_RECEIVED] += 1
        for session, options in targets:
            target = session.connection
            if target and not (target is connection and options & _NO_LOCAL):
                if not target.forward_end:
                    target.forward = start
                    self._mark(target)
                target.forward_end = after
                self._counts[_SENT] += 1

    def _receive_publish(self, connection, header, at, after):
        buffer = self._buffer
        qos = header >> 1 & 3
        if qos == 3 or header & 14 == 8:
            raise _Malformed("flags")  # [MQTT-3.3.1-4], [MQTT-3.3.1-2]
        # Whether all of the topic is there, _route looks.
        flags = qos | (_v5.check_publish(self, _Fields, at, qos, after) if connection.v5 else 0)
        route = self._route(buffer, at, after)
        slot = at + len(route[0])
        allowed = flags < 16 and self._may_publish(connection, route)  # 16: it has been here
        if not qos:
            self._counts[_RECEIVED] += 1
            if allowed:
                message = bytearray(route[0]) + bytes((0, flags)) + self._view[slot:after]
                self._publish(route, message, header & 1, connection)
            return
        packet_id = buffer[slot] << 8 | buffer[slot + 1] if slot + 2 <= after else 0
        if not packet_id:
            raise _Malformed("packet id", 0x82)  # [MQTT-2.3.1-1]
        session = connection.session
        received = session.received
        if allowed and (qos == 1 or packet_id not in received):
            buffer[slot] = 0
            buffer[slot + 1] = flags
            try:
                message = buffer[at:after]
            except MemoryError:
                self._make_room()
                message = buffer[at:after]
            if qos == 2:
                if len(received) >= _QOS2_RECEIVED_MAX + connection.received_before:
                    raise _Malformed("QoS 2", 0x93)
                self._note(_TAKEN, session, packet_id)
            self._counts[_RECEIVED] += 1
            self._publish(route, message, header & 1, connection)
            if qos == 2:  # not before: if there was no memory for it, it will come again
                received.append(packet_id)
        # 3.1.1 knows no other answer to what isn't allowed [MQTT-3.3.5-2].
        code = 0 if allowed else 0x87 if flags < 16 else 0x10
        self._acknowledge(connection, _PUBACK if qos == 1 else _PUBREC, packet_id, code)

    def _publish_message(self, message, retain):
        self._publish(self._route(message, 0, len(message)), message, retain, None)

    def _publish(self, route, message, retain, source):
        _, topic, targets, callbacks, groups = route
        if self._marks:
            message = _v5.mark(self, message)
        kept = retain and self._retain(topic, message)
        if groups:
            targets = _v5.choose(groups, list(targets))
        published = message[_slot(message) + 1] & 3
        for session, options in targets:
            qos = options & 3
            if qos > published:
                qos = published
            # QoS 0 is not kept for the absent.
            if (session.connection or qos) and not (options & _NO_LOCAL and source and session is source.session):
                meta = qos << _STATE
                if options & 0x48:
                    meta |= (_RETAIN if retain and options & _AS_PUBLISHED else 0) | (options & _OF_GROUP) << 14
                self._enqueue(session, message, meta)
        if self._store:
            self._store.message(message, kept)
        if source and self._behind and not source.waits_for:
            source.waits_for = self._behind
            source.held = bytearray()
            source.held_ms = _ticks_ms()
        self._behind = None
        for callback in callbacks:
            self._call(callback, topic, bytes(message[_body(message) :]), False)

    # True if what is kept is another now.
    def _retain(self, topic, message):
        old = self._retained.get(topic)
        size = self._retained_bytes - (len(old) + _RETAINED_BYTES if old else 0)
        if len(message) == _body(message):  # no payload: deletes [MQTT-3.3.1-10]
            self._retained.pop(topic, None)
            self._retained_bytes = size
            if not size:
                self._retained = {}  # a dict keeps the room that it once needed
            return bool(old)
        size += len(message) + _RETAINED_BYTES
        try:
            if size <= self.max_retained_bytes:
                self._retained[topic] = message
                self._retained_bytes = size
                # The same again needs no write to the store. They may differ in how many queues they are in.
                at = _slot(message)
                return not (old and len(old) == len(message) and old[at + 1 :] == message[at + 1 :])
        except MemoryError:  # no place for a larger dict
            pass
        self._counts[_RETAINED_REFUSED] += 1
        return False

    # ---- queues ----

    # Appends to the session's queue. When that is full, the oldest that waits goes (a QoS 0 message
    # displaces nothing); when all queues together are, the oldest of the one with the most bytes.
    def _enqueue(self, session, message, meta):
        slot = _slot(message)
        if message[slot] == 255:
            message = message[:]  # counts no further
            message[slot] = 0
        size = len(message) + 2 * _ENTRY_BYTES
        if meta >> _STATE & 3:
            meta |= session.next_packet_id()
        while True:
            victim = session
            waiting = session.waiting()
            if self._queued_bytes + size > self.max_queued_bytes:
                victim = max(self._sessions.values(), key=_Session.load)
            elif waiting < self.max_queued_messages and session.queued_bytes + size <= self.max_session_bytes:
                try:
                    session.queue.append(meta)  # a list grows in even steps: the second one allocates nothing
                    session.queue.append(message)
                    break
                except MemoryError:  # no larger list to be had in one piece: this is all it can take
                    pass
            if not victim.waiting() or (victim is session and not meta >> _STATE & 3):
                self._counts[_FULL] += 1
                return
            self._drop_oldest(victim, _FULL)
        if not message[slot]:
            self._queued_bytes += len(message) + _ENTRY_BYTES
        message[slot] += 1
        session.queued_bytes += len(message)
        self._queued_bytes += _ENTRY_BYTES
        if not meta >> _STATE & 3:
            session.qos_0 += 1
        elif session.number:
            self._store.target(session.number, meta)
        if session.connection:
            self._mark(session.connection)
            if waiting > _BEHIND:
                self._behind = session

    def _drop_oldest(self, session, cause):
        self._counts[cause] += 1
        self._remove(session, 2 * session.in_flight)
        session.passed += 1

    def _remove(self, session, at):
        if session.queue[at] >> _STATE & 3:
            self._note(_DONE, session, session.queue[at] & 0xFFFF)
        else:
            session.qos_0 -= 1
        self._release(session, session.queue[at + 1])
        del session.queue[at : at + 2]  # unlike pop() this keeps the list's memory, which is hard to find again
        self._queued_bytes -= _ENTRY_BYTES

    def _release(self, session, message):
        if message:
            session.queued_bytes -= len(message)
            slot = _slot(message)
            message[slot] -= 1
            if not message[slot]:
                self._queued_bytes -= len(message) + _ENTRY_BYTES

    # Tells the store what became of a packet identifier, if the session is kept there.
    def _note(self, kind, session, packet_id=0):
        if session.number:
            self._store.note(kind, session.number, packet_id)

    # ---- acknowledgements ----

    def _acknowledge(self, connection, header, packet_id, code=0):
        # Growing in place: bytes added to bytes would leave holes between the messages, that nothing fits in.
        control = connection.held if connection.waits_for and header < _PUBREL else connection.control
        code = code if connection.v5 else 0
        control.append(header)
        control.append(3 if code else 2)
        control.append(packet_id >> 8)
        control.append(packet_id & 255)
        if code:
            control.append(code)
        self._mark(connection)

    def _acknowledged(self, connection, header, packet_id, reason):
        if not packet_id:
            raise _Malformed("packet id", 0x82)
        session = connection.session
        if header == _PUBREL:
            known = packet_id in session.received
            if known:
                session.received.remove(packet_id)
                self._note(_FREED, session, packet_id)
            self._acknowledge(connection, _PUBCOMP, packet_id, 0 if known else 0x92)
            return
        at = session.find(packet_id, session.in_flight)
        queue = session.queue
        state = queue[at] >> _STATE & 3 if at >= 0 else 0
        if header == _PUBREC and reason < 128:
            # Answered even when unknown, so that the receiver can forget it.
            self._acknowledge(connection, _PUBREL, packet_id, 0 if state & 2 else 0x92)
            if state == 2:
                self._release(session, queue[at + 1])
                queue[at] = _RELEASED << _STATE | packet_id
                queue[at + 1] = b""
                self._note(_RELEASED, session, packet_id)
            return
        # PUBREC with an error is the end of its message [MQTT-4.3.3-4].
        if not state or header != (_PUBREC if reason > 127 and state == 2 else _ENDS_WITH[state]):
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
        if self._store:
            self._store.commit()
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
        if connection.unsent:
            _watch(connection.sock, connection, _READ | _WRITE)

    # Puts what waits in the queue into stage[at:], as much as fits and the window allows.
    def _fill(self, connection, session, at):
        stage = self._stage
        queue = session.queue
        # With little room left the window is small, so that it is the publisher who waits.
        window = self.max_inflight if self._queued_bytes < self.max_queued_bytes // 2 else 4
        window = min(window, connection.receive_max)
        index = 2 * session.in_flight
        while session.in_flight < window or session.qos_0:
            if session.in_flight < window:
                index = 2 * session.in_flight
            else:  # QoS 0 doesn't wait for acknowledgements [MQTT-4.9.0-3]
                while queue[index] >> _STATE & 3:
                    index += 2
            if index == len(queue) or len(connection.control) > 60:
                break
            meta = queue[index]
            message = queue[index + 1]
            # A segment at once, or one larger message: what a stuck reader's socket doesn't take is kept.
            if at + len(message) + 6 > (_CHUNK_BYTES if at else len(stage)):
                return at
            session.passed += 1
            if meta >> _STATE & 3 == _RELEASED:
                session.in_flight += 1
                self._acknowledge(connection, _PUBREL, meta & 0xFFFF)
                continue
            header = _PUBLISH | (meta >> _STATE & 3) << 1 | (meta & _RETAIN) >> 18 | (meta & _DUP) >> 16
            end = (_v5.put if connection.v5 or message[_slot(message) + 1] & 4 else Broker._put)(
                self, connection, at, header, meta, message
            )
            if end and header & 6:
                session.in_flight += 1
            else:
                self._remove(session, index)  # QoS 0, or expired
            at = end or at
        # DESIGN §4, the drained marker: PINGRESP follows all that waited when PINGREQ came.
        while connection.pings and session.passed >= connection.pings_after and at + 2 <= len(stage):
            connection.pings -= 1
            stage[at] = 0xD0
            stage[at + 1] = 0
            at += 2
        return at

    # Encodes one PUBLISH into stage[at:]; returns its end.
    def _put(self, connection, at, header, packet_id, message):
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
        if level > 127:  # so Mosquitto's bridges mark themselves
            connection.options = _OF_BRIDGE
        level &= 127
        if name != (b"MQIsdp" if level == 3 else b"MQTT"):
            raise _Malformed("not MQTT")  # [MQTT-3.1.2-1]
        connection.v5 = v5 = level == 5 and _v5
        if level != 3 and level != 4 and not v5:
            self._refuse(connection, _BAD_LEVEL)  # [MQTT-3.1.2-2]
            return
        flags = fields.take(1)[0]
        if (
            flags & 1
            or flags & 0x18 == 0x18
            or (flags & 0xC0 == 0x40 and not v5)
            or (flags & 0x38 and not flags & 4)
        ):
            raise _Malformed("flags")  # [MQTT-3.1.2-3], -11, -13 to -15, -22
        keep_alive_s = fields.integer()
        if v5:
            v5.connect(connection, fields)
        client_id = fields.text()
        will = user = password = None
        if flags & 4:
            properties = v5.will(connection, fields) if v5 else b""
            topic = fields.text()
            check_topic(topic)
            will = _message(topic, properties + fields.binary(), flags >> 3 & 3 | (4 if v5 else 0))
            if topic.startswith("$SYS"):
                will = None  # a bridge's, most likely: as what it publishes there, it goes nowhere
        if flags & 0x80:
            user = fields.text()
        if flags & 0x40:
            password = fields.binary()
        if fields.data:
            raise _Malformed("too long")
        clean = flags & 2
        code = 0
        if not client_id and not clean and not v5:
            code = _BAD_CLIENT_ID  # [MQTT-3.1.3-8]
        elif (self.auth and not self._call(self.auth, client_id, user, password)) or (
            will and self.allow and not self._call(self.allow, client_id, topic, True)
        ):
            code = _NOT_AUTHORIZED
        elif not self._open_session(connection, client_id, clean):
            code = _UNAVAILABLE
        if code:
            self._refuse(connection, code)
            return
        connection.deadline_ms = keep_alive_s * 1500  # [MQTT-3.1.2-24]
        connection.will = will
        connection.will_retain = flags & 0x20

    def _refuse(self, connection, code):
        self._counts[_REFUSED] += 1
        if not connection.v5:
            connection.control.extend(bytes((0x20, 2, 0, code)))
            self._mark(connection)
        self._close(connection, "refused: %d" % code, 0x87 if code == _NOT_AUTHORIZED else 0x88)

    # Finds or makes the session and answers; False when there is no room.
    def _open_session(self, connection, client_id, clean):
        if _v5:
            _v5.tick(self)
        sessions = self._sessions
        given = client_id or "auto-" + os.urandom(6).hex()
        session = sessions.get(given)
        if session and session.connection:
            self._close(session.connection, "taken over", 0x8E)  # [MQTT-3.1.4-2]
        if self._connected() >= self.max_clients:
            return False
        session = sessions.get(given)
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
        if connection.v5:
            clean = not connection.expiry_s
            _v5.connack(self, connection, client_id, given)
        if session is None:
            session = sessions[given] = _Session(given, clean)
        # The record takes back the one of a will that waits, too.
        if self._store and not clean and (
            not session.number or session.will or session.expiry_s != connection.expiry_s
        ):
            self._store.session(session, connection.expiry_s)
        session.clean = clean
        session.expiry_s = connection.expiry_s
        session.will = None  # [MQTT-3.1.3-9]
        session.connection = connection
        connection.session = session
        connection.received_before = min(len(session.received), _QOS2_RECEIVED_MAX)
        self._mark(connection)
        return True

    # ---- SUBSCRIBE and UNSUBSCRIBE ----

    def _subscribe_all(self, connection, subscribe, fields):
        packet_id = fields.integer()
        v5 = connection.v5
        if v5:
            v5.subscribe(fields, subscribe)
        if not packet_id or not fields.data:
            raise _Malformed("SUBSCRIBE", 0x82)  # [MQTT-2.3.1-1], [MQTT-3.8.3-3], [MQTT-3.10.3-2]
        wanted = []
        while fields.data:
            topic_filter = fields.text()
            check_filter(topic_filter)
            options = fields.take(1)[0] if subscribe else 0
            if options > 2 and not (v5 and v5.options(options, topic_filter)):
                raise _Malformed("QoS")  # [MQTT-3-8.3-4]
            wanted.append((topic_filter, options))
        self._routes.clear()
        session = connection.session
        answer = bytearray((packet_id >> 8, packet_id & 255))
        if v5:
            answer.append(0)  # properties
        subscribed = []
        for topic_filter, options in wanted:
            before = session.subscriptions.get(topic_filter)
            if subscribe:
                code = self._subscribe(connection, session, topic_filter, options)
                # Retain Handling: 1 if it is new, 2 never.
                if code < 3 and not options & 0x20 and (before is None or not options & 0x10):
                    subscribed.append((topic_filter, code))
            else:
                code = 0x11
                if before is not None:
                    code = 0
                    del session.subscriptions[topic_filter]
                    if session.number:
                        self._store.unsubscribed(session, topic_filter)
            answer.append(code)
        length = len(answer)
        if length + 3 > connection.packet_max:
            raise _Malformed("packet too large", 0x95)
        if not (subscribe or v5):
            length = 2
        header = 0x90 if subscribe else _UNSUBACK
        header = (header, length) if length < 128 else (header, length & 127 | 128, length >> 7)
        connection.control.extend(bytes(header) + answer[:length])
        self._mark(connection)
        for topic_filter, qos in subscribed:
            self._send_retained(session, topic_filter, qos)

    # Returns the code for SUBACK.
    def _subscribe(self, connection, session, topic_filter, options):
        used = len(topic_filter)
        for each in self._sessions.values():
            for other in each.subscriptions:
                used += len(other) + _ENTRY_BYTES
        qos = options & 3
        options = options & 15 | connection.options
        plain = topic_filter
        if topic_filter.startswith("$share/"):
            plain = _v5 and _v5.shared_filter(topic_filter)
            options = qos | _OF_GROUP
        code = 0
        if not plain or used > self.max_subscription_bytes:
            code = 0x97
        elif self.allow and not self._may(session, plain, False):
            code = 0x87
        if code:
            self._counts[_SUBSCRIPTIONS_REFUSED] += 1
            return code if connection.v5 else 0x80
        if session.number and session.subscriptions.get(topic_filter) != options:
            self._store.subscribed(session, topic_filter, options)
        session.subscriptions[topic_filter] = options
        return qos

    # A shared subscription has none (§4.8.2).
    def _send_retained(self, session, topic_filter, qos):
        if topic_filter.startswith("$SYS"):
            self._publish_sys()
        for topic, message in list(self._retained.items()):
            if matches(topic_filter, topic) and not (self.allow and not self._may(session, topic, False)):
                if session.waiting() > 8:
                    self._flush()  # there may be more of them than the queue takes
                self._enqueue(session, message, min(qos, message[_slot(message) + 1] & 3) << _STATE | _RETAIN)
                if self._store:
                    self._store.message(message, False)


# ---- as a program: micropython midge_broker.py PORT [BIND] ----


def main(arguments):
    broker = Broker(int(arguments[0]), (arguments + ["127.0.0.1"])[1])  # noqa: RUF005 - smaller so
    broker.listen()
    print("listening on mqtt://%s:%d" % (broker.bind, broker.port))
    if not _MICROPYTHON:  # MicroPython knows no signal but Ctrl-C, and doesn't buffer its output
        import signal

        signal.signal(signal.SIGTERM, signal.default_int_handler)
        sys.stdout.flush()
    try:
        asyncio.run(broker.run())
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main(sys.argv[1:])
