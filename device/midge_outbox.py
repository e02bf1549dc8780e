"""Outboxes that keep the session through deep sleep (RTCOutbox) or power loss (FileOutbox).
They must not know of connections: midge_client tells them what changed, and asks before each write that it be kept."""

import os
from binascii import crc32

from midge_client import MemoryOutbox, OutboxFull, _put_string, const

# --------------------------------------------------------------------------------------------- constants

# A record: kind (one byte), length of the body (two), body, CRC-32 of all before it (four). Kind is the first byte of
# the packet that the record keeps or that ended what it tells of. A record that is cut or damaged is lost by itself
# alone: reading goes on with the next whole one, so appending after a cut needs no repair.
_PUBLISH = const(0x30)  # to 0x3F: identifier, topic, properties, payload
_PUBREC = const(0x50)  # identifier: from now on PUBREL only
_ENDED = const(0x40)  # identifier: acknowledged, sent (QoS 0) or dropped
_INBOUND = const(0x51)  # identifier: received at QoS 2, PUBREC may leave
_RELEASED = const(0x62)  # identifier: PUBREL came
_FILTERS = const(0x82)  # body of SUBSCRIBE
_PUBCOMP = const(0x70)
_SUBACK = const(0x90)
_AROUND = const(7)


# ------------------------------------------------------------------------------------------------------- codec


def _record(kind, body):
    record = bytearray((kind,))
    _put_string(record, body)
    record.extend((crc32(record) & 0xFFFFFFFF).to_bytes(4, "big"))
    return record


def _pair(number):
    return bytes((number >> 8, number & 0xFF))


# Identifier, topic, properties, payload.
def _split(body):
    topic = 4 + (body[2] << 8 | body[3])
    end = topic + 2 + (body[topic] << 8 | body[topic + 1])
    return body[0] << 8 | body[1], bytes(body[4:topic]), bytes(body[topic + 2:end]), bytes(body[end:])


# ----------------------------------------------------------------------------------------------------- session


# What both have in common: a log of records. A subclass has _append(record), _read(at, size), _commit(), _open_new()
# and _replace().
# A message put aside is read back from the log when it is sent, so a long queue costs no memory for its payloads.
class _Journal(MemoryOutbox):
    def __init__(self, limit, drop, log_max):
        super().__init__(limit, drop)
        self.logged = 0  # bytes in the log
        self.log_max = log_max  # above it the log is rewritten, with what is still needed
        self.damaged = 0  # bytes skipped when the log was read
        self._is_sync_due = False  # set by each record, cleared by sync()

    def put(self, topic, payload, qos=1, retain=False, sync=True):
        super().put(topic, payload, qos, retain, sync)
        message = self.messages[-1]
        message.topic = message.payload = None

    def add(self, header, topic, payload, properties=b""):
        message = super().add(header, topic, payload, properties)
        message.at = None
        try:
            self._log_message(message)
        except OSError as error:  # no space left on the device, say
            super().remove(message)
            raise OutboxFull(str(error))
        return message

    def load(self, message):
        _, message.topic, message.properties, message.payload = _split(self._read(message.at, message.record_size))

    def release(self, message):
        super().release(message)
        self._log(_PUBREC, _pair(message.packet_id))

    def remove(self, message):
        is_kept, packet_id = message.state < _SUBACK, message.packet_id
        super().remove(message)
        if is_kept:
            self._log(_ENDED, _pair(packet_id))

    def remember(self, packet_id):
        super().remember(packet_id)
        self._log(_INBOUND, _pair(packet_id))

    def forget(self, packet_id):
        if packet_id in self.inbound:
            super().forget(packet_id)
            self._log(_RELEASED, _pair(packet_id))

    def note(self, filters):
        if filters != self.filters:
            super().note(filters)
            self._log(_FILTERS, filters)

    def sync(self):
        if self._is_sync_due:
            self._commit()
            self._is_sync_due = False

    def _log_message(self, message):
        body = bytearray(_pair(message.packet_id))
        _put_string(body, message.topic)
        _put_string(body, message.properties)
        body.extend(message.payload)
        at = self._log(message.header, body)
        message.at, message.record_size = at, len(body)

    # Appends a record; gives the place of its body.
    def _log(self, kind, body):
        record = _record(kind, body)
        if self.logged + len(record) > self.log_max:
            self._rewrite()
        at = self.logged + 3
        self._append(record)
        self.logged += len(record)
        self._is_sync_due = True
        return at

    # The log again, of what is still needed. One record after the other, so that it never is in memory twice.
    def _rewrite(self):
        write = self._open_new()
        places = []
        at = 0
        for record, message in self._live():
            write(record)
            places.append((message, at + 3, len(record) - _AROUND))
            at += len(record)
        self._replace()
        self.logged = at
        for message, place, size in places:
            if message:
                message.at, message.record_size = place, size

    def _live(self):
        if self.filters:
            yield _record(_FILTERS, self.filters), None
        for packet_id in self.inbound:
            yield _record(_INBOUND, _pair(packet_id)), None
        for message in self.messages:
            if message.state == _PUBCOMP:
                yield _record(_PUBREC, _pair(message.packet_id)), None
            elif message.state < _SUBACK and message.at is not None:  # None: add() logs it after this
                yield _record(message.header, self._read(message.at, message.record_size)), message

    # Takes up what the log holds. read(n): the next bytes; seek(at).
    def _restore(self, read, seek, end):
        at = 0
        while at + _AROUND <= end:
            seek(at)
            head = read(3)
            size = head[1] << 8 | head[2]
            if at + size + _AROUND <= end:
                rest = read(size + 4)
                body = rest[:size]
                if _record(head[0], body)[-4:] == rest[size:]:
                    self._apply(head[0], body, at + 3)
                    at += size + _AROUND
                    continue
            at += 1
            self.damaged += 1
        self.logged = end
        self.damaged += end - at

    def _apply(self, kind, body, at):
        if kind == _FILTERS:  # empty: the server had no session
            self.filters = bytes(body)
            return
        packet_id = body[0] << 8 | body[1]
        message = self.find(packet_id)
        if kind == _INBOUND:
            self.inbound.append(packet_id)
        elif kind == _RELEASED:
            super().forget(packet_id)
        elif kind == _ENDED:
            if message:
                super().remove(message)
        elif kind == _PUBREC:
            message = message or self._restored(packet_id, 0x34, _PUBREC)
            super().release(message)
        elif not message:
            message = self._restored(packet_id, kind, _PUBLISH + (kind << 3 & 0x30))
            message.at, message.record_size = at, len(body)
            message.size = len(body) + 10  # of the record's 6 bytes for lengths and identifier, 16 are counted
            self.size += message.size

    # With DUP when it is sent: whether it was before, nobody knows [MQTT-3.3.1-1].
    def _restored(self, packet_id, header, state):
        message = self.new(header, None, state)
        self._last_id = message.packet_id = packet_id
        message.topic = message.properties = None
        message.sent = state != _PUBLISH
        return message


# In RTC memory: outlives deep sleep, not power loss. ESP32: 2,048 bytes (MICROPY_HW_RTC_USER_MEM_MAX).
# `rtc`: has memory() as machine.RTC() on the ESP32. What `limit` leaves of `capacity` is for filters and QoS 2.
class RTCOutbox(_Journal):
    def __init__(self, rtc=None, limit=1536, drop=False, capacity=2048):
        super().__init__(limit, drop, capacity)
        if rtc is None:
            import machine
            rtc = machine.RTC()
        self._rtc = rtc
        self._bytes = bytearray(rtc.memory())
        position = [0]

        def seek(at):
            position[0] = at

        def read(n):
            position[0] += n
            return self._bytes[position[0] - n:position[0]]

        self._restore(read, seek, len(self._bytes))

    def _append(self, record):
        if self.logged + len(record) > self.log_max:
            raise OutboxFull("RTC memory full")
        self._bytes.extend(record)

    def _read(self, at, size):
        return self._bytes[at:at + size]

    def _commit(self):
        self._rtc.memory(self._bytes)

    def _open_new(self):
        self._new = bytearray()
        return self._new.extend

    def _replace(self):
        self._bytes = self._new


# In a file on the board's flash: outlives power loss. Appended to, never rewritten per message: about once for each
# `limit` bytes of messages it is compacted into a second file, which then takes its name.
class FileOutbox(_Journal):
    def __init__(self, path="outbox.log", limit=16_384, drop=False):
        super().__init__(limit, drop, 2 * limit + 1024)
        self.path = path
        try:
            os.stat(path)
        except OSError:  # never made, or power went between _replace's two steps on a file system of FAT's kind
            try:
                os.rename(path + ".new", path)
            except OSError:
                open(path, "wb").close()
        self._open()
        self._restore(self._file.read, self._file.seek, self._file.seek(0, 2))

    def _open(self):
        self._file = open(self.path, "r+b", 0)  # CPython: without a buffer

    def _append(self, record):
        self._file.seek(self.logged)
        self._file.write(record)

    def _read(self, at, size):
        self._file.seek(at)
        return self._file.read(size)

    # On MicroPython flush() makes it last: LittleFS's and FAT's sync, fsync on the unix port.
    def _commit(self):
        self._keep(self._file)

    def _keep(self, file):
        file.flush()
        if hasattr(os, "fsync"):
            os.fsync(file.fileno())

    def _open_new(self):
        self._new = open(self.path + ".new", "wb")
        return self._new.write

    def _replace(self):
        self._keep(self._new)
        self._new.close()
        self._file.close()
        try:
            os.rename(self.path + ".new", self.path)
        except OSError:  # FAT renames onto nothing; see __init__
            os.remove(self.path)
            os.rename(self.path + ".new", self.path)
        self._open()

    def close(self):
        self.sync()
        self._file.close()
