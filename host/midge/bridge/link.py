"""One connection to the remote broker: a client of it, wired packet by packet to a client of our core.
Knows no storage: the sessions on both sides hold whatever is under way.

Every packet that belongs to an exchange crosses with the packet identifier that it came with: a PUBLISH
of the remote broker becomes a PUBLISH to the core under the same identifier, and the core's PUBACK goes
back as it is. So the remote broker is acknowledged only when our store has the message, our session keeps
what the remote broker has not acknowledged, and QoS 2 is exactly once over both, whichever side dies when.
The identifiers can't collide: each direction has its own, and each comes from one session (MQTT 3.1.1 §2.3.1).
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from midge.bridge.echo import PROBE_TIMEOUT_S
from midge.bridge.local import Local
from midge.bridge.packets import connack_reason, connect_packet, reason, topic_field, with_topic
from midge.bridge.sync import RetainedSync
from midge.protocol import packets as p
from midge.protocol.decoder import Decoder
from midge.protocol.encoder import encode
from midge.protocol.reasons import ReasonCode

if TYPE_CHECKING:
    from midge.bridge.bridge import Bridge

log = logging.getLogger("midge.bridge")

# bytes that may wait for the remote broker before QoS 0 is dropped; QoS 1 and 2 are bounded by the window.
_WRITE_BUFFER_HIGH = 256 * 1024
# s without a message, with nothing left to bring, until a "periodic" bridge leaves. A board that was woken by
# what we brought may want to answer.
_QUIET_S = 0.5


class Link(asyncio.Protocol):
    """From the transport's beginning to its end."""

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge
        self.version, self._is_marked = bridge.version
        self._decoder = Decoder("client", self.version, max_packet_size=bridge.broker.limits.max_packet_size)
        self._probe_topic = bridge.echo.probe_topic(self._is_marked)
        self._transport: asyncio.Transport | None = None
        self._local: Local | None = None  # opened by CONNACK
        self._sync: RetainedSync | None = None  # set by SUBACK
        self._keep_alive_s = bridge.section.keep_alive
        self._is_paused = False
        self._is_retain_available = True
        self._output: list[bytes] = []
        self._for_core: list[p.Packet | p.PublishRun] = []  # of the chunk that has come
        self._skipped: set[int] = set()  # QoS 2 messages of ours that the remote broker isn't to get
        self._last_received = 0.0
        self._last_sent = 0.0
        self._last_message = 0.0  # when a PUBLISH went either way
        self._pings = 0  # PINGREQs without an answer
        self._was_told_of_refusal: set[int] = set()  # reason codes that stand in the log
        # Sent on this connection and not acknowledged: packet identifier, (bytes of payload, topic).
        self.unacknowledged: dict[int, tuple[int, str]] = {}
        self.acknowledged = 0  # messages that the remote broker has taken on this connection
        self.is_cleaning = False  # this connection is only to end an old session on the remote side ...
        self.has_cleaned = False  # ... and has
        self.is_done = False  # it has ended because there was nothing left to do
        self.was_up = False
        self.was_answered = False  # something came after CONNACK
        self.is_too_new = False  # the remote broker doesn't speak our version
        self.was_closed_at_once = False  # connected, and closed (or left to wait) without a packet
        self._ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    # -- its life --

    async def run(self) -> str:
        """Connect, work until the connection ends; the reason why it ended."""
        watch: asyncio.Task[None] | None = None
        try:
            async with asyncio.timeout(self._bridge.section.connect_timeout):
                await self._bridge.connect(self._bridge.address, self)
            watch = asyncio.get_running_loop().create_task(self._watch())
            return await self._ended
        except TimeoutError:
            return f"no connection within {self._bridge.section.connect_timeout:.0f} s"
        except OSError as error:
            file = f"{error.filename}: " if error.filename else ""
            return f"{file}{error.strerror or error}"
        finally:
            if watch is not None:
                watch.cancel()
            self._close()

    def leave(self) -> None:
        """We end it: say so, instead of leaving the will to do it."""
        if self.was_up and not self._ended.done():
            self._notify("0")
            self._send(p.Disconnect(0, None))
            self.flush()
            self._end("we leave")

    def _close(self) -> None:
        if self._local is not None:
            self._local.close()
            self._local = None
        if self._transport is not None:
            self._transport.close()

    def _end(self, reason: str) -> None:
        if not self._ended.done():
            self._ended.set_result(reason)

    async def _watch(self) -> None:
        """The deadline for CONNACK."""
        timeout_s = self._bridge.section.connect_timeout
        await asyncio.wait([self._ended], timeout=timeout_s)
        if not self.was_up and not self._ended.done():
            self.was_closed_at_once = True  # amqtt keeps silent, and open, when asked for a version it doesn't know
            self._end(f"no CONNACK within {timeout_s:.0f} s")

    def _check_time(self) -> None:
        """The keep alive, and whether there is anything left to do; looked at several times in its interval."""
        if self._ended.done():
            return
        now = self._bridge.now()
        if now - self._last_received > self._keep_alive_s * 1.5:
            self._end(f"nothing received for {self._keep_alive_s * 1.5:.0f} s")
            return
        if now - max(self._last_sent, self._last_received) >= self._keep_alive_s / 2:
            self._ping()
            self.flush()
        quiet_s = now - self._last_message
        if self._bridge.owed == 0 and self._pings == 0 and quiet_s >= self._stays_s:
            self.is_done = True
            self.leave()
        asyncio.get_running_loop().call_later(self._check_interval_s, self._check_time)

    @property
    def _stays_s(self) -> float:
        """How long it stays without a message."""
        section = self._bridge.section
        return {"always": math.inf, "on-demand": section.idle_timeout, "periodic": _QUIET_S}[section.start]

    @property
    def _check_interval_s(self) -> float:
        return min(self._stays_s / 2, self._keep_alive_s / 4)

    # -- bytes --

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports have the methods of asyncio.Transport without being its subclasses.
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=_WRITE_BUFFER_HIGH)
        self._last_received = self._bridge.now()
        # Our session is new: its packet identifiers start at 1 again, and the remote broker must not
        # take one for the rest of an old QoS 2 exchange and drop the message as a duplicate.
        self.is_cleaning = self._bridge.outward.has_qos2 and self._bridge.is_session_new
        will = None
        if self._notifies and not self.is_cleaning:
            will = p.Will(self._notification_topic, b"0", 1, True)
        self._send(connect_packet(self._bridge, self.is_cleaning, will))
        self.flush()

    def data_received(self, data: bytes) -> None:
        self._last_received = self._bridge.now()
        self._receive(self._decoder.receive_data(data))
        if self._decoder.error is not None:
            # A broker that knows only 3.1.1 refuses in 3.1.1.
            self.is_too_new = self.version == 5 and not self.was_up
            self._end(f"the remote broker sent a bad packet: {self._decoder.error}")
        self.flush()
        self._bridge.end_turn_soon()

    def _receive(self, packets: list[p.Packet | p.PublishRun]) -> None:
        """All that came together. What is for the core goes there in one piece."""
        for packet in packets:
            self.was_answered = self.was_up
            kind = type(packet)
            is_for_core = _FOR_CORE.get(kind)
            if is_for_core is not None:
                if is_for_core(self, packet):
                    self._for_core.append(packet)
                continue
            handler = _FROM_REMOTE.get(kind)
            if handler is not None:
                self._pass_in()  # it came before
                handler(self, packet)
        self._pass_in()

    def _pass_in(self) -> None:
        """To the core, what has gathered."""
        if self._for_core and self._local is not None:
            packets, self._for_core = self._for_core, []
            self._local.send_all(packets)

    def connection_lost(self, exc: Exception | None) -> None:
        self.was_closed_at_once = not self._ended.done() and not self.was_up
        self._end(f"connection lost{f': {exc}' if exc else ''}")

    def pause_writing(self) -> None:
        self._is_paused = True

    def resume_writing(self) -> None:
        self._is_paused = False

    def hold_reading(self, hold: bool) -> None:
        """Our store can't keep up, or can again."""
        if self._transport is None or self._transport.is_closing():
            return
        if hold:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def _send(self, packet: p.Packet) -> None:
        self._output.append(encode(packet, self.version))

    def flush(self) -> None:
        if self._output and self._transport is not None and not self._transport.is_closing():
            self._transport.write(b"".join(self._output))
            self._last_sent = self._bridge.now()
        self._output = []

    def _ping(self) -> None:
        self._pings += 1
        self._send(p.Pingreq())

    # -- from the remote broker --

    def _on_connack(self, packet: p.Connack) -> None:
        bridge = self._bridge
        if packet.reason_code:
            self.is_too_new = packet.reason_code in (ReasonCode.UNSUPPORTED_PROTOCOL_VERSION, 1)  # 1: in 3.1.1
            self._end(f"refused by the remote broker: {connack_reason(packet.reason_code)}")
            return
        if self.is_cleaning:
            bridge.is_session_new = False
            self.has_cleaned = True
            self._send(p.Disconnect(0, None))
            self.flush()
            self._end("cleaned")
            return
        self.was_up = True
        self._last_message = self._last_received
        bridge.is_session_new = False
        bridge.set_connected(True)
        log.info("bridge %s to %s: connected", bridge.section.name, bridge.address, extra=bridge.known)
        properties = packet.properties or {}
        self._is_retain_available = bool(properties.get("retain_available", 1))
        self._keep_alive_s = properties.get("server_keep_alive", self._keep_alive_s) or self._keep_alive_s
        largest = [
            size
            for size in (bridge.section.max_packet_size, properties.get("maximum_packet_size"))
            if size is not None
        ]
        self._local = Local(
            bridge,
            self,
            self.version,
            properties.get("receive_maximum"),
            max(1, min(largest) - max(0, bridge.outward.growth)) if largest else None,
        )
        if not packet.session_present:
            self._local.forget_received()
        self._local.subscribe(tell_retained=bridge.owes_retained or not packet.session_present)
        bridge.owes_retained = False
        self._notify("1")
        self._subscribe()
        self._check_time()

    def _subscribe(self) -> None:
        """At each connection: the session there may be of an older configuration, and the answer, what is retained,
        tells what changed at QoS 0 while we were away. Mosquitto's bridges do the same."""
        bridge = self._bridge
        wanted = bridge.inward.subscriptions()
        if not wanted:
            return
        is_5 = self.version == 5
        subscriptions = [p.Subscription(name, qos, is_5, is_5, 0) for name, qos in wanted.items()]
        if self._may_echo:
            subscriptions.append(p.Subscription(self._probe_topic, 0, is_5, False, 2 if is_5 else 0))
        self._send(p.Subscribe(1, subscriptions, None))
        if self._may_echo:
            self._send(p.Publish(self._probe_topic, b"", 0))
        self._ping()  # its answer comes after what is retained

    @property
    def _may_echo(self) -> bool:
        # [MQTT-3.8.3-3] of 5.0, No Local, is every broker's duty.
        return self.version != 5 and self._bridge.may_echo

    def _on_suback(self, packet: p.Suback) -> None:
        bridge = self._bridge
        refused = [
            topic_filter
            for topic_filter, code in zip(bridge.inward.subscriptions(), packet.reason_codes, strict=False)
            if code >= 0x80
        ]
        if refused:
            log.error(
                "bridge %s: the remote broker refuses to send %s",
                bridge.section.name,
                ", ".join(refused),
                extra=bridge.known,
            )
        if self._local is not None:
            self._sync = RetainedSync(bridge, self._local.retained_under_way())

    def _takes_publish(self, packet: p.Publish) -> bool:
        bridge = self._bridge
        if self._local is None:
            self._end("the remote broker sent PUBLISH before CONNACK")
            return False
        self._last_message = self._last_received
        topic = packet.topic
        if topic == self._probe_topic:
            self._found_echo()
            return False
        name = bridge.inward.map(topic)
        if name is None or self._is_known(packet, name):
            # Nothing for us: of an older configuration, or what we have. Its PUBREL, unknown to the core, is
            # answered there.
            if packet.qos:
                self._send(p.Puback(packet.packet_id) if packet.qos == 1 else p.Pubrec(packet.packet_id))
            return False
        if name != topic:
            packet.topic = name
            packet.packet_id_at = 0  # what came is not what is sent on
        return True

    def _is_known(self, packet: p.Publish, topic: str) -> bool:
        if self._sync is not None and packet.retain:
            self._pass_in()  # what came before may have changed what is retained
            if self._sync.is_known(topic, packet.payload):
                return True
        # An echo that is sent again (DUP) was not acknowledged, so it was taken for no echo the first time.
        return self.version != 5 and self._bridge.echo.is_ours(packet.topic, packet.payload)

    def _takes_acknowledgement(self, packet: p.Puback | p.Pubrec | p.Pubcomp) -> bool:
        """The remote broker has a message of ours, or refuses it."""
        if packet.reason_code >= 0x80 and not isinstance(packet, p.Pubcomp):
            if packet.reason_code == ReasonCode.QUOTA_EXCEEDED:
                # It is full for now. Ours waits for it, in its order, until the next connection.
                self._end("the remote broker is full: quota exceeded")
                return False
            self._tell_refusal(packet)
        self.acknowledged += 1
        sent = self.unacknowledged.pop(packet.packet_id, None)
        if self._sync is not None and sent is not None:
            self._sync.acknowledged(self._bridge.inward.map(sent[1]))
        return self._local is not None

    def _tell_refusal(self, packet: p.Puback | p.Pubrec) -> None:
        if packet.reason_code in self._was_told_of_refusal:
            return
        self._was_told_of_refusal.add(packet.reason_code)
        _, topic = self.unacknowledged.get(packet.packet_id, (0, "?"))
        log.error(
            "bridge %s: the remote broker refuses %a: %s",
            self._bridge.section.name,
            topic,
            reason(packet.reason_code),
            extra=self._bridge.known,
        )

    def _takes_pubrel(self, packet: p.Pubrel) -> bool:
        return self._local is not None

    def _on_pingresp(self, packet: p.Pingresp) -> None:
        self._pings = max(0, self._pings - 1)
        if self._sync is not None:
            self._sync.ends_soon(self._last_received)
        if self._may_echo and self._bridge.echo.comes_back is None:
            asyncio.get_running_loop().call_later(PROBE_TIMEOUT_S, self._found_no_echo)

    def _found_echo(self) -> None:
        bridge = self._bridge
        if not bridge.echo.comes_back:
            log.warning(
                "bridge %s: a loop: the remote broker sends back what we send it, since it doesn't know bridges; "
                "what comes back is dropped",
                bridge.section.name,
                extra=bridge.known,
            )
        bridge.echo.found(True)

    def _found_no_echo(self) -> None:
        if self.was_up and not self._ended.done() and self._bridge.echo.comes_back is None:
            self._bridge.echo.found(False)

    def _on_remote_disconnect(self, packet: p.Disconnect) -> None:
        self._end(f"the remote broker disconnects: {reason(packet.reason_code)}")

    # -- from our core --

    def from_local(self, data: list[bytes]) -> None:
        """What the core sends to this bridge, one packet each. Nothing of it is decoded: acknowledgements are the same
        in all versions, and of a PUBLISH only the topic name is looked at."""
        output = self._output
        for piece in data:
            kind = piece[0] & 0xF0
            if kind == 0x30:
                self._on_local_publish(piece)
            elif kind == 0x60 and self._skipped and (packet_id := piece[2] << 8 | piece[3]) in self._skipped:
                self._skipped.discard(packet_id)
                self._answer_local(p.Pubcomp(packet_id))
            elif 0x40 <= kind <= 0x70:  # CONNACK, SUBACK and what else there is are answers to the bridge itself
                output.append(piece)

    def _on_local_publish(self, packet: bytes) -> None:
        bridge = self._bridge
        first = packet[0]
        qos = first >> 1 & 3
        field_at, end = topic_field(packet)
        packet_id = packet[end] << 8 | packet[end + 1] if qos else 0
        name = bridge.outward.name(packet[field_at + 2 : end])
        if name is None or (qos and packet_id == bridge.too_large):
            self._skip(qos, packet_id)
            return
        if self._is_paused and not qos:
            bridge.broker.counters.dropped_output_full += 1
            return
        self._last_message = bridge.now()
        if qos:
            self.unacknowledged[packet_id] = (len(packet) - end - 2, name.topic)
        if self.version != 5 and bridge.may_echo and bridge.inward.covers(name.topic):
            bridge.echo.sent(name.topic, packet[end + 2 * (qos > 0) :], self._last_message)
        if first & 0x01 and not self._is_retain_available:
            self._output.append(with_topic(first & 0xFE, name.field, packet[end:]))
        elif name.is_same:
            self._output.append(packet)
        else:
            self._output.append(with_topic(first, name.field, packet[end:]))

    def _skip(self, qos: int, packet_id: int) -> None:
        """The remote broker isn't to get it: it can't take it, or it was queued under an older configuration."""
        if not qos:
            return
        if packet_id == self._bridge.too_large:
            self._bridge.too_large = None
        if qos == 1:
            self._answer_local(p.Puback(packet_id))
        else:
            self._skipped.add(packet_id)
            self._answer_local(p.Pubrec(packet_id))

    def _answer_local(self, packet: p.Packet) -> None:
        if self._local is not None:
            self._local.send(packet)
        self._bridge.end_turn_soon()

    def local_closed(self, reason: str) -> None:
        self._end(f"closed on our side: {reason}")

    # -- notifications --

    @property
    def _notifies(self) -> bool:
        # Whoever doesn't know bridges takes nothing under $SYS/ either; amqtt hears nothing more after it.
        return self._bridge.notifies and (self._is_marked or self.version == 5)

    @property
    def _notification_topic(self) -> str:
        return f"$SYS/broker/connection/{self._bridge.remote_client_id}/state"

    def _notify(self, state: str) -> None:
        if self._notifies and self._is_retain_available:
            self._send(p.Publish(self._notification_topic, state.encode(), 0, True))


# What is the core's: whether it goes there.
_FOR_CORE: dict[type, Callable[..., bool]] = {
    p.Publish: Link._takes_publish,
    p.Puback: Link._takes_acknowledgement,
    p.Pubrec: Link._takes_acknowledgement,
    p.Pubrel: Link._takes_pubrel,
    p.Pubcomp: Link._takes_acknowledgement,
}
_FROM_REMOTE: dict[type, Callable[..., None]] = {
    p.Connack: Link._on_connack,
    p.Suback: Link._on_suback,
    p.Pingresp: Link._on_pingresp,
    p.Disconnect: Link._on_remote_disconnect,
}
