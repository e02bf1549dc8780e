"""Payloads larger than memory for midge_client: publish from a file, receive by chunks.
It must not hold more of a payload than one chunk."""

import asyncio

import midge_client
from midge_client import MQTTError, _get_length, _header, _put_length, _put_pair, _put_string, const, ticks_ms

# --------------------------------------------------------------------------------------------- constants

_PUBLISH = const(0x30)
_PUBCOMP = const(0x70)
_DUP = const(0x08)
# What is read at once: a third of a TCP segment, the size of a flash page or two.
_CHUNK = const(512)


# ---------------------------------------------------------------------------------------------------------- API


# A Client class with large payloads, made of another: midge_client's, or midge_mqtt5's (which only sends them, since it
# announces `buffer` to the server as the largest packet).
#
# `on_chunk(topic, chunk, offset, total)`: called for each part of a message that is larger than `buffer` bytes; `chunk`
# is a memoryview that is valid until it returns. The message is complete, and then acknowledged, when offset +
# len(chunk) is total; one that starts anew at offset 0 was interrupted. `max_packet`: bytes of the largest one taken.
def large(base):
    class Client(base):
        def __init__(self, *args, on_chunk=None, buffer=2048, max_packet=1_000_000, **options):
            self._source_chunk = memoryview(bytearray(_CHUNK))
            self._left = None  # bytes to come of the message that is being received
            self._large = None  # the message of QoS 1 or 2 that is being published from a file
            super().__init__(*args, max_packet=buffer, **options)
            self.on_chunk = on_chunk
            if on_chunk:
                self.max_packet = max_packet

        # `file`: has readinto(), and seek() for QoS 1 and 2, since they may have to be sent again. `size`: how many
        # bytes to send of it, from where it stands.
        async def publish_from(self, topic, file, size, qos=0, retain=False):
            while self._large or self._source:  # one at a time
                await asyncio.sleep(0.02)
            header = _header(qos, retain)
            await self._room(header)
            self._file = file
            self._size = size
            encoded = self._topics.get(topic) or self._encode_topic(topic)
            if not qos:
                self._start(header, 0, encoded)
                while self._source:
                    await asyncio.sleep(0.02)
                if not self._file:
                    raise self.error
                return
            self._start_at = file.seek(0, 1)
            message = self._large = self.outbox.new(header, b"", _PUBLISH + qos * 16)  # PUBACK, PUBREC
            message.topic = encoded
            try:
                self._pump()
                # However large it is: as long as it is being sent, the server's answer isn't late.
                while message.state and not self._closed:
                    await asyncio.sleep(0.02)
                if message.state:
                    raise MQTTError("disconnected")
                if message.error:
                    raise message.error
            except BaseException:
                # Half a packet can't be taken back: what has begun goes on, only its caller has gone.
                if message.state and not message.sent:
                    self.outbox.remove(message)
                raise
            finally:
                if not message.state:
                    self._large = None

        # ---------------------------------------------------------------------------------------------- sending

        def _begin(self):
            super()._begin()
            self._source = self._left = None
            self._rx_pos = 0  # where the payload goes on

        def _lose(self, error):
            super()._lose(error)
            if not self._large:  # at QoS 0 it won't be sent again
                self._file = None
            self._source = None

        def _send(self, message):
            if message is not self._large or message.state == _PUBCOMP:
                return super()._send(message)
            self.outbox.sent += 1
            self._file.seek(self._start_at)
            self._start(message.header | (_DUP if message.sent else 0), message.packet_id, message.topic)
            message.sent = True
            message.sent_at = ticks_ms()

        # What stands in _tx leaves before the payload, what is put there later behind it.
        def _start(self, header, packet_id, topic):
            tx = self._tx
            extra = self._extra
            tx.append(header)
            _put_length(tx, len(topic) + len(extra) + self._size + (4 if packet_id else 2))
            _put_string(tx, topic)
            if packet_id:
                _put_pair(tx, packet_id)
            tx.extend(extra)
            self._before = len(tx)
            self._to_read = self._size
            self._chunk = b""
            self._source = self._file
            tx.extend(b"")  # CPython's asks for a write

        def _flush(self):
            if not self._source:
                return super()._flush()
            self.outbox.sync()
            tx = self._tx
            data = memoryview(tx)[:self._before] if self._before else self._next_chunk()
            n = self._stream.write(data) if len(data) else 0
            del data  # MicroPython and CPython don't shorten what a memoryview looks at
            if n:
                self._tx_at = ticks_ms()
                if self._large:
                    self._large.sent_at = self._tx_at
                if self._before:
                    self._before -= n
                    tx[:n] = b""
                else:
                    self._chunk = self._chunk[n:]
            if not self._before and not self._to_read and not len(self._chunk):
                self._source = None

        def _next_chunk(self):
            if not len(self._chunk) and self._to_read:
                n = self._source.readinto(self._source_chunk[:min(_CHUNK, self._to_read)])
                if not n:  # the packet can't be completed: only the connection's end tells the server
                    raise OSError("the file is shorter than size")
                self._chunk = self._source_chunk[:n]
                self._to_read -= n
            return self._chunk

        # -------------------------------------------------------------------------------------------- receiving

        def _parse(self):
            while True:
                if self._left is not None and not self._take_chunk():
                    return
                super()._parse()
                if self._stalled or not self._begins_large():
                    return

        # Does a packet larger than the buffer begin there? Then what precedes its payload is read.
        def _begins_large(self):
            rx = self._rx
            end = self._rx_end
            if not self.on_chunk or end < 7 or rx[0] & 0xF0 != _PUBLISH:
                return False
            length, pos = _get_length(rx, 1, end)
            if pos + length <= len(self._view):
                return False
            payload = pos + 2 + (rx[pos] << 8 | rx[pos + 1]) + (2 if rx[0] & 6 else 0)
            if payload > end:
                if end == len(self._view):
                    raise MQTTError("topic larger than the buffer")
                return False
            self._mark = None
            self._offset = 0
            self._left = self._total = pos + length - payload
            self._rx_pos = payload
            self._on_publish(rx[0], pos, payload)  # checks it, and calls _deliver unless it is a duplicate
            return True

        def _deliver(self, payload, retained, mark):
            if self._left is None:
                super()._deliver(payload, retained, mark)
            else:
                self._mark = mark

        # Hands on what has come of the payload. True when that was its end.
        def _take_chunk(self):
            pos = self._rx_pos
            n = min(self._left, self._rx_end - pos)
            chunk = self._view[pos:pos + n]
            if self._mark is not None and (n or not self._left):
                self.on_chunk(self._rx_name, chunk, self._offset, self._total)
            self._offset += n
            self._left -= n
            pos += n
            self._rx_pos = 0
            self._rx_end -= pos
            if self._left:
                return False
            self._view[:self._rx_end] = self._view[pos:pos + self._rx_end]
            self._left = None
            if self._mark is not None:
                self.received += 1
                self._confirm(self._mark)
            return True

    return Client


Client = large(midge_client.Client)
