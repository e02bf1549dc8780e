"""One wake cycle for boards that sleep: connect, send and fetch all, disconnect; no asyncio, one deadline.
It must not know where messages are kept (`outbox` does) nor how the board sleeps or gets its network."""

import select

from midge_client import (Client, MQTTTimeout, OutboxFull, _encode, _put_string, const, ticks_add,
                          ticks_diff, ticks_ms)

# --------------------------------------------------------------------------------------------- constants

_PUBLISH = const(0x30)
_SUBSCRIBE = const(0x82)
_SUBACK = const(0x90)
_UNSUBSCRIBE = const(0xA2)

# After so many messages in one round a server whose window is 10 (HiveMQ; Mosquitto 20, EMQX 32) may have more for us.
_ROUND = const(10)
# Acknowledgements wait so long for what is on its way, PINGRESP at the end of it, and leave with DISCONNECT. A server
# whose window is full sends no more until it has them; 8 of them don't wait.
_QUIET_MS = const(50)
_ACKS = const(32)


# What a cycle did, and took: see docs/battery-sensor.md.
class Stats:
    def __init__(self):
        self.error = None  # why the cycle ended early: MQTTError, MQTTTimeout, OSError
        self.session_present = False
        # messages: acknowledged (QoS 0: sent, and PINGRESP came), still in the outbox, received
        self.delivered = self.kept = self.received = 0
        self.refused = []  # what of `publish` found the outbox full, to the end
        # address and TCP (TLS is in the next); to CONNACK; to the last answer; to the end
        self.connect_ms = self.connack_ms = self.exchange_ms = self.close_ms = self.total_ms = 0
        self.tx_bytes = self.tx_writes = self.rx_bytes = self.rx_reads = 0
        self.pipelined = True  # False: the server closed on what came before its CONNACK, so we had to wait for that


def _ignore(_topic, _payload, _retained):
    pass


# Connects, publishes `publish` [(topic, payload, qos = 1, retain = False)] and what is in the outbox, receives what the
# server has for us, disconnects; returns Stats. It never takes longer than `timeout_ms` (but for a name that has to be
# looked up: see dial) and never raises what a later cycle may repair. What isn't acknowledged stays in the outbox.
# `subscribe` [(filter, qos)]: sent when it isn't what the session has; None: leave that alone. `on_message(topic,
# payload, retained)`: what it raises ends the cycle, and the message comes again. The other options are Client's.
def wake(client_id, host, port=1883, publish=(), subscribe=None, on_message=None, outbox=None, timeout_ms=10_000,
         pipeline=True, client=Client, **options):
    start = ticks_ms()
    c = client(client_id, host, port, clean=False, outbox=outbox, on_message=on_message or _ignore, **options)
    cycle = _Cycle(c, list(publish), subscribe, ticks_add(start, timeout_ms))
    cycle.run(pipeline)
    cycle.stats.total_ms = ticks_diff(ticks_ms(), start)
    return cycle.stats


class _Cycle:
    def __init__(self, client, publish, subscribe, until):
        self.client = client
        self.outbox = outbox = client.outbox
        self.stats = Stats()
        self.until = until
        self.publish = publish
        self.subscribe = subscribe
        self.poller = None
        self.total = len(outbox.messages) + outbox.dropped
        self.quick = self.count_quick()  # of them at QoS 0: known to have arrived only by the cycle's end
        self.take()

    def run(self, pipeline):
        c, stats = self.client, self.stats
        error = True
        try:
            stats.pipelined = pipeline
            error = self.attempt(pipeline)
            # A server that closes on what comes before its CONNACK (vertx-mqtt#121): once more, waiting for that.
            if error and pipeline and self.stats.tx_bytes and not c.connected \
                    and not isinstance(error, MQTTTimeout) and not getattr(error, "code", 0):
                stats.pipelined = False
                error = self.attempt(False)
        finally:
            self.count(error is None)
        stats.error = error or c.error  # c.error: something was refused

    def attempt(self, pipeline):
        c = self.client
        c._early = pipeline
        try:
            self.connect()
            self.exchange()
            self.leave()
        except OSError as error:
            return error
        finally:
            for message in [message for message in self.outbox.messages if message.state >= _SUBACK]:
                self.outbox.remove(message)
            if c._stream:
                c._stream.close()
            c._stream = None

    def count(self, is_complete):
        c, outbox, stats = self.client, self.outbox, self.stats
        outbox.sync()
        stats.kept = len(outbox.messages)
        stats.refused = self.publish
        stats.delivered = self.total - outbox.dropped - stats.kept
        if not is_complete:
            stats.delivered -= self.quick - self.count_quick()
        stats.session_present = bool(c.session_present)
        stats.received = c.received

    def left_ms(self):
        left = ticks_diff(self.until, ticks_ms())
        if left <= 0:
            raise MQTTTimeout("no answer")
        return left

    # ------------------------------------------------------------------------------------- what is to be sent

    def count_quick(self):
        return sum([message.state == _PUBLISH for message in self.outbox.messages])

    # Of `publish` to the outbox, as much as fits.
    def take(self):
        while self.publish:
            try:
                self.outbox.put(*self.publish[0], sync=False)
            except OutboxFull:
                break
            self.publish.pop(0)
            self.total += 1
            self.quick += self.outbox.messages[-1].state == _PUBLISH
        self.outbox.sync()
        # 3.1.1 has no Receive Maximum: all goes at once. But Mosquitto 2.0.11 changes the order beyond 20 at QoS 2.
        if not self.client._extra:
            self.client.window = 16 if [message for message in self.outbox.messages if message.header & 4] else 0xFFFF

    # SUBSCRIBE, if the session hasn't these filters, and UNSUBSCRIBE for what it has beyond them; before all others.
    def ask(self):
        outbox = self.outbox
        extra = self.client._extra
        wanted, names, gone = bytearray(), [], bytearray()
        for name, qos in self.subscribe or ():
            name = _encode(name)
            names.append(name)
            _put_string(wanted, name)
            wanted.append(qos)
        has = outbox.filters
        if self.subscribe is None or wanted == has:
            return
        pos = 0
        while pos < len(has):
            end = pos + 2 + (has[pos] << 8 | has[pos + 1])
            if has[pos + 2:end] not in names:
                gone.extend(has[pos:end])
            pos = end + 1
        for header, body in ((_UNSUBSCRIBE, gone), (_SUBSCRIBE, wanted)):
            if body:
                self.asked = outbox.new(header, extra + body, header + 14)  # UNSUBACK, SUBACK
                self.asked.held = True  # its answer is read in has_all
                outbox.messages.insert(outbox.sent, outbox.messages.pop())
        self.wanted = wanted

    # Puts what there is room for behind what is to be written, PINGREQ behind the last of it. True if there was any.
    def fill(self):
        c, outbox = self.client, self.outbox
        before = len(c._tx)
        c._pump()
        if self.is_ping_due and outbox.sent == len(outbox.messages):
            self.is_ping_due = False
            c._tx.extend(b"\xc0\0")  # PINGREQ
            c._ping_at = ticks_ms()
        return len(c._tx) > before

    # ---------------------------------------------------------------------------------------------- the phases

    def connect(self):
        c = self.client
        start = ticks_ms()
        c._stream = c._dial()
        self.poller = select.poll()
        self.poller.register(c._stream, select.POLLOUT)
        if not self.poller.poll(self.left_ms()):
            raise MQTTTimeout("no connection")
        self.stats.connect_ms = ticks_diff(ticks_ms(), start)
        c._begin()
        c.connected = False
        self.asked = None  # the answer to this is awaited; set by ask, cleared by has_all
        self.is_asked_late = False  # set when it left behind PINGREQ: another round
        self.is_ping_due = True  # set for each round, cleared when PINGREQ is put behind the last packet
        self.round = c.received  # as it was before this round
        self.taken = 0  # QoS 2 messages without PUBREL, as it was before this round
        if c._early:
            self.ask()

    def exchange(self):
        c = self.client
        start = ticks_ms()
        is_flowing = False  # something has just come, more may be on its way
        while True:
            if (c._early or c.connected) and self.fill():
                is_flowing = False
            is_flowing = self.turn(is_flowing and c._ping_at is not None and len(c._tx) < _ACKS)
            if c.connected:
                if not self.stats.connack_ms:
                    self.stats.connack_ms = ticks_diff(ticks_ms(), start) or 1
                    self.on_connack()
                if self.has_all():
                    break
        self.stats.exchange_ms = ticks_diff(ticks_ms(), start) - self.stats.connack_ms

    def on_connack(self):
        if not self.client.session_present:
            self.outbox.note(b"")
        if not self.asked:
            self.ask()
            self.is_asked_late = self.client._early and self.asked is not None

    # One turn: writes, unless acknowledgements are held back, then reads. True if something came.
    def turn(self, is_held):
        c = self.client
        if c._tx and not is_held:
            self.write()
        wait_ms = self.left_ms()
        if c._tx and is_held:
            wait_ms = min(wait_ms, _QUIET_MS)
        self.poller.modify(c._stream, select.POLLIN if is_held or not c._tx else select.POLLIN | select.POLLOUT)
        came = False
        for _ in self.poller.poll(wait_ms):
            while True:
                n = c._receive()
                if not n:
                    break
                self.stats.rx_reads += 1
                self.stats.rx_bytes += n
                came = self.left_ms() > 0
        return came

    def write(self):
        tx = self.client._tx
        before = len(tx)
        self.client._flush()
        if len(tx) < before:
            self.stats.tx_writes += 1
            self.stats.tx_bytes += before - len(tx)

    # All is acknowledged, and PINGRESP says that nothing waits for us. Else another round, if one is due.
    def has_all(self):
        c, outbox = self.client, self.outbox
        if self.is_ping_due or c._ping_at is not None or outbox.messages:
            return False
        if self.asked:
            if self.asked.code < 128:
                outbox.note(bytes(self.wanted))
            self.asked = None
        self.take()
        # At QoS 2 the server's window has room again only when its PUBREL has been answered, a round later.
        self.is_ping_due = (bool(outbox.messages) or self.is_asked_late
                            or max(c.received - self.round, self.taken) >= _ROUND)
        self.is_asked_late = False
        self.round = c.received
        self.taken = len(outbox.inbound)
        return not self.is_ping_due

    def leave(self):
        c = self.client
        start = ticks_ms()
        has_acks = len(c._tx) > 0
        c._tx.extend(b"\xe0\0")  # DISCONNECT
        self.poller.modify(c._stream, select.POLLOUT)
        while c._tx:
            self.write()
            if c._tx:
                self.poller.poll(self.left_ms())
        # Sleep at once would lose what is still in the radio's buffer, and the server would send again what is
        # acknowledged by it (pubsubclient#690): until the server has closed, at most for as long as CONNACK took.
        if has_acks:
            self.poller.modify(c._stream, select.POLLIN)
            until = ticks_add(ticks_ms(), min(self.stats.connack_ms + _QUIET_MS, self.left_ms()))
            while True:
                left = ticks_diff(until, ticks_ms())
                if left <= 0 or not self.poller.poll(left) or c._stream.readinto(c._rx) == 0:
                    break
        self.stats.close_ms = ticks_diff(ticks_ms(), start)
