"""A journal on flash for midge_broker.py: retained messages, and what lasts of sessions, survive a power cut.

It knows the broker's state and a file system; it must not know sockets, packets or what is decided about messages.
"""
# One file, the journal, is only ever appended to. A record tells one change:
#
#     record = 0xA5, length of body (3 bytes), CRC-32 of length and body (4 bytes), body (its first byte: the kind)
#
# What a turn of the broker changed is synced to flash before anything of that turn is sent: acknowledged means kept.
# An acknowledgement that a client sent needs no sync of its own, since its loss costs only a message sent again,
# with DUP; it is synced with whatever comes next. Records that are not whole, as a power cut leaves them, or that
# decay, are skipped, what follows them is read on.
#
# When the journal has become twice as long as what it amounts to, that is written to PATH.new, which then takes its
# place. The rename is one step on littlefs; FAT knows no such step, so a start without PATH takes PATH.new.
import gc
import os
from binascii import crc32

# ---- constants ----

try:
    from micropython import const
except ImportError:

    def const(value):
        return value


_MARK = const(0xA5)
_HEAD_BYTES = const(8)
_SLACK_BYTES = const(8192)  # two blocks of littlefs: below that a new file gains nothing
_SCAN_BYTES = const(256)
_CLOCK_INTERVAL_S = const(10)

# Kinds; those from _GONE to _FREED are the broker's.
_SESSION = const(1)
_GONE = const(2)
_RELEASED = const(3)
_SUBSCRIBED = const(4)
_UNSUBSCRIBED = const(5)
_MESSAGE = const(6)
_DONE = const(7)
_TAKEN = const(8)
_FREED = const(9)
_CLOCK = const(10)
_SAME = const(11)  # an entry with the message of another entry
_WILL = const(12)

_DUP = const(0x80000)  # as in midge_broker.py
_ENTRY_BYTES = const(32)
_NO_MEMORY = const(3)


def _bytes(value, count):
    return value.to_bytes(count, "big")


def _integer(data, at, count):
    return int.from_bytes(data[at : at + count], "big")


def _sync(file):
    file.flush()
    if hasattr(os, "fsync"):  # CPython; MicroPython's flush() does it
        os.fsync(file.fileno())


def _close(file):
    try:
        if file:
            file.close()
    except OSError:
        pass


def _exists(path):
    try:
        os.stat(path)
        return True
    except OSError:
        return False


# The journal, with what it holds brought into the broker.
def open_store(broker, path, make_session):
    store = Store(broker, path)
    store.load(make_session)
    return store


class Store:
    size = 0  # of the journal
    written = 0  # since the start, in bytes
    messages = 0  # recorded since the start
    damaged = 0  # places that could not be read
    _is_dirty = False  # something is to be synced before anything is sent
    _has_failed = False  # the file took something by half: it must be written anew before it is written to again
    _may_retry = True  # once a second
    _clock_s = -_CLOCK_INTERVAL_S
    _last_number = 0

    def __init__(self, broker, path):
        self._broker = broker
        self._path = path
        self._file = None
        self._limit = 0
        # Of the message that is being routed: number, state, packet identifier, of each session that it goes to; and
        # number and packet identifier of the session that it came from, if at QoS 2.
        self._targets = bytearray()
        self._taken = b""

    # ---- records ----

    def _record(self, body, message=b"", needs_sync=True):
        self._is_dirty = self._is_dirty or needs_sync
        if self._has_failed:
            return
        length = len(body) + len(message)
        head = bytes((_MARK,)) + _bytes(length, 3)
        head += _bytes(crc32(message, crc32(body, crc32(head[1:]))), 4) + body
        try:
            self._file.write(head)
            if message:
                self._file.write(message)
        except OSError:
            self._has_failed = True
        self.size += _HEAD_BYTES + length
        self.written += _HEAD_BYTES + length

    def note(self, kind, number, packet_id):
        body = bytes((kind, number >> 8, number & 255, packet_id >> 8, packet_id & 255))
        if kind == _TAKEN:
            self._taken = body[1:]  # in one record with the message: either alone would lose it, or double it
        else:
            self._record(body, b"", kind != _DONE)

    # A session is new, or its expiry is.
    def session(self, session, expiry_s):
        if not session.number:
            used = [other.number for other in self._broker._sessions.values()]
            while not self._last_number or self._last_number in used:
                self._last_number = (self._last_number + 1) & 0xFFFF
            session.number = self._last_number
        expiry = _bytes(expiry_s & 0xFFFFFFFF, 4)
        self._record(bytes((_SESSION,)) + _bytes(session.number, 2) + expiry + session.client_id.encode())

    def subscribed(self, session, topic_filter, options):
        self._record(bytes((_SUBSCRIBED,)) + _bytes(session.number, 2) + bytes((options,)) + topic_filter.encode())

    def unsubscribed(self, session, topic_filter):
        self._record(bytes((_UNSUBSCRIBED,)) + _bytes(session.number, 2) + topic_filter.encode())

    # It waits for its delay to pass, until the session's next record (MQTT 5.0 §3.1.3.2.2).
    def will(self, session):
        message, retain, ends_at = session.will
        self._clock_s = -_CLOCK_INTERVAL_S
        self._record(
            bytes((_WILL,)) + _bytes(session.number, 2) + bytes((1 if retain else 0,)) + _bytes(ends_at, 4), message
        )

    # The message that is being routed has come into a queue.
    def target(self, number, meta):
        self._targets.extend(bytes((number >> 8, number & 255, meta >> 16 & 0x17, meta >> 8 & 255, meta & 255)))

    # It was routed by half.
    def forget(self):
        self._targets[:] = b""
        self._taken = b""

    # It has been routed; *is_retained*: it is to be kept as a retained one, or deletes one.
    def message(self, message, is_retained):
        targets = self._targets
        taken = self._taken
        if targets or is_retained:
            self.messages += 1
            if message[3 + _integer(message, 0, 2)] & 8:
                self._clock_s = -_CLOCK_INTERVAL_S  # it ends at a time: the clock is written with it
            head = bytes((_MESSAGE, (1 if is_retained else 0) | (2 if taken else 0))) + _bytes(len(targets) // 5, 2)
            self._record(head + targets + taken, message)
        elif taken:
            self._record(bytes((_TAKEN,)) + taken)
        self.forget()

    # ---- to flash ----

    # Before anything is sent. What can't be kept is not acknowledged: its senders lose their connections, and come
    # again.
    def commit(self):
        if not self._is_dirty:
            return
        broker = self._broker
        if broker.uptime_s - self._clock_s >= _CLOCK_INTERVAL_S:
            self._clock_s = broker.uptime_s
            self._record(bytes((_CLOCK,)) + _bytes(broker.uptime_s, 4))
        try:
            if not self._has_failed:
                _sync(self._file)
        except OSError:
            self._has_failed = True
        self._is_dirty = False
        if (self._has_failed or self.size > self._limit) and self._may_retry:
            self._compact()
        if self._has_failed:
            victims = [connection for connection in broker._connections if connection.control]
            for connection in victims:
                connection.control[:] = b""
            for connection in victims:
                broker._close(connection, "store failed")

    def tick(self):
        self._may_retry = True
        if self._has_failed:
            self._compact()
            if not self._has_failed:
                self._broker._log("store recovered")

    def close(self):
        self._is_dirty = True
        self.commit()
        _close(self._file)

    # Bytes in the journal, bytes written per message.
    def figures(self):
        return [self.size, self.written // (self.messages or 1)]

    # Writes all that there is to a new file. If that fails, the old one stays as it is.
    def _compact(self):
        gc.collect()
        old = self._file, self.size, self._has_failed
        new = self._path + ".new"
        self._is_dirty = False
        try:
            self._file = open(new, "wb")
            self._has_failed = False
            self.size = 0
            self._write_all()
            if self._has_failed:
                raise OSError
            _sync(self._file)
            self._file.close()
        except (OSError, MemoryError):
            if self._file is not old[0]:
                _close(self._file)
            self._file, self.size, self._has_failed = old
            self._may_retry = False
            self._broker._log("the store can't be compacted")
            return
        _close(old[0])
        self._file = None
        self._has_failed = True
        try:
            try:
                os.rename(new, self._path)
            except OSError:  # FAT
                os.remove(self._path)
                os.rename(new, self._path)
            self._file = open(self._path, "ab")
            self._has_failed = False
            size = self.size
            most = max(self._broker.max_store_bytes, size + size // 2 + 1024)
            self._limit = min(max(2 * size, size + _SLACK_BYTES), most)
        except OSError:
            self._may_retry = False

    def _write_all(self):
        broker = self._broker
        self._record(bytes((_CLOCK,)) + _bytes(broker.uptime_s, 4))
        for message in broker._retained.values():
            self._record(bytes((_MESSAGE, 1, 0, 0)), message)
        before = []  # [session, where in its queue the search goes on]
        for session in broker._sessions.values():
            number = session.number
            if not number:
                continue
            self.session(session, session.expiry_s)
            if session.will:
                self.will(session)
            for topic_filter in session.subscriptions:
                self.subscribed(session, topic_filter, session.subscriptions[topic_filter])
            for packet_id in session.received:
                self._record(bytes((_TAKEN, number >> 8, number & 255, packet_id >> 8, packet_id & 255)))
            queue = session.queue
            for at in range(0, len(queue), 2):
                meta = queue[at]
                message = queue[at + 1]
                if not meta & 0x30000:
                    continue
                entry = bytes((number >> 8, number & 255, meta >> 16 & 0x17, meta >> 8 & 255, meta & 255))
                same = _find_same(before, message) if message and message[2 + _integer(message, 0, 2)] > 1 else b""
                if same:
                    self._record(bytes((_SAME,)) + entry + same)
                else:
                    self._record(bytes((_MESSAGE, 0, 0, 1)) + entry, message)
            before.append([session, 0])

    # ---- the start ----

    def load(self, make_session):
        broker = self._broker
        new = self._path + ".new"
        if _exists(new) and not _exists(self._path):
            os.rename(new, self._path)
        sessions = {}  # by number
        if _exists(self._path):
            with open(self._path, "rb") as file:
                self._read(file, sessions, make_session)
        for number, session in sessions.items():
            session.number = number
            session.absent_since_s = broker.uptime_s
            if session.expiry_s > 0:
                session.ends_at = (broker.uptime_s + session.expiry_s) * 16
            # What may have been sent before the power went.
            for at in range(0, min(2 * broker.max_inflight, len(session.queue)), 2):
                session.queue[at] |= _DUP
        broker._routes.clear()
        self._compact()
        if self._has_failed or not self._file:
            raise OSError("can't write " + self._path)

    def _read(self, file, sessions, make_session):
        at = 0
        is_whole = True
        while True:
            head = file.read(_HEAD_BYTES)
            if not head:
                return
            body = _read_body(file, head)
            if body is not None:
                is_whole = True
                at += _HEAD_BYTES + len(body)
                try:
                    self._apply(body, sessions, make_session)
                except MemoryError:
                    gc.collect()
                    self._broker._counts[_NO_MEMORY] += 1
                continue
            self.damaged += is_whole
            is_whole = False
            while True:  # to the next place where a record may begin
                at += 1
                file.seek(at)
                skipped = file.read(_SCAN_BYTES)
                found = skipped.find(bytes((_MARK,)))
                if found >= 0 or not skipped:
                    break
                at += len(skipped) - 1
            if not skipped:
                return
            at += found
            file.seek(at)

    def _apply(self, body, sessions, make_session):
        broker = self._broker
        kind = body[0]
        if kind == _CLOCK:
            # What is left of that second counts as passed: nothing gets more time than it was given [MQTT-3.3.2-6].
            broker.uptime_s = _integer(body, 1, 4) + 1
            return
        if kind == _MESSAGE:
            self._apply_message(body, sessions)
            return
        number = _integer(body, 1, 2)
        session = sessions.get(number)
        if kind == _SESSION:
            client_id = str(body[7:], "utf-8")
            if session is None or session.client_id != client_id:
                for other in list(sessions):  # whose end was not read
                    if other == number or sessions[other].client_id == client_id:
                        self._forget(sessions.pop(other))
                session = sessions[number] = broker._sessions[client_id] = make_session(client_id, False)
            expiry_s = _integer(body, 3, 4)
            session.expiry_s = -1 if expiry_s == 0xFFFFFFFF else expiry_s
            session.will = None
        if session is None:
            return
        packet_id = _integer(body, 3, 2)
        if kind == _GONE:
            self._forget(sessions.pop(number))
        elif kind == _WILL:
            session.will = body[8:], body[3], _integer(body, 4, 4)
            session.will[0][2 + _integer(body, 8, 2)] = 0  # in no queue yet
        elif kind == _SUBSCRIBED:
            session.subscriptions[str(body[4:], "utf-8")] = body[3]
        elif kind == _UNSUBSCRIBED:
            session.subscriptions.pop(str(body[3:], "utf-8"), None)
        elif kind == _TAKEN and packet_id not in session.received:
            session.received.append(packet_id)
        elif kind == _FREED and packet_id in session.received:
            session.received.remove(packet_id)
        elif kind == _SAME:
            other = sessions.get(_integer(body, 6, 2))
            at = other.find(_integer(body, 8, 2), len(other.queue)) if other else -1
            if at >= 0:
                self._append(session, body, 1, other.queue[at + 1])
        elif kind == _DONE or kind == _RELEASED:
            at = session.find(packet_id, len(session.queue))
            if at >= 0 and kind == _DONE:
                broker._remove(session, at)
            elif at >= 0:
                broker._release(session, session.queue[at + 1])
                session.queue[at] = _RELEASED << 16 | packet_id
                session.queue[at + 1] = b""

    def _apply_message(self, body, sessions):
        start = 4 + 5 * _integer(body, 2, 2)
        message = body[start:]
        if body[1] & 2:
            source = sessions.get(_integer(body, start, 2))
            packet_id = _integer(body, start + 2, 2)
            if source and packet_id not in source.received:
                source.received.append(packet_id)
            message = message[4:]
        if message:
            slot = 2 + _integer(message, 0, 2)
            message[slot] = 0
            if body[1] & 1:
                self._broker._retain(str(message[2:slot], "utf-8"), message)
        for at in range(4, start, 5):
            session = sessions.get(_integer(body, at, 2))
            if session:
                self._append(session, body, at, message or b"")

    # The entry at data[at:] comes to the end of the session's queue.
    def _append(self, session, data, at, message):
        broker = self._broker
        packet_id = _integer(data, at + 3, 2)
        if message:
            slot = 2 + _integer(message, 0, 2)
            if message[slot] == 255:
                message = message[:]
                message[slot] = 0
            if not message[slot]:
                broker._queued_bytes += len(message) + _ENTRY_BYTES
            message[slot] += 1
        session.queued_bytes += len(message)
        session.queue.append(data[at + 2] << 16 | packet_id)
        session.queue.append(message)
        broker._queued_bytes += _ENTRY_BYTES
        session.packet_ids = 65535 + packet_id  # from now on each is looked for first

    def _forget(self, session):
        while session.queue:
            self._broker._remove(session, 0)
        self._broker._sessions.pop(session.client_id, None)


# The body that follows *head*, or None.
def _read_body(file, head):
    if len(head) < _HEAD_BYTES or head[0] != _MARK:
        return None
    length = _integer(head, 1, 3)
    try:
        body = bytearray(length)
        if not length or file.readinto(body) != length or crc32(body, crc32(head[1:4])) != _integer(head, 4, 4):
            return None
    except MemoryError:
        gc.collect()
        return None
    return body


# Number and packet identifier of an entry with this message, of a session that has been written; or nothing. Queues
# that share messages have them in the same order, so the search goes on where it ended.
def _find_same(before, message):
    for each in before:
        queue = each[0].queue
        size = len(queue)
        for step in range(0, size, 2):
            at = (each[1] + step) % size
            if queue[at + 1] is message:
                each[1] = (at + 2) % size
                return _bytes(each[0].number, 2) + _bytes(queue[at] & 0xFFFF, 2)
    return b""
