"""One bridge: a client of the remote broker and a client of our core, wired together packet by packet.
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
import random
import socket
from collections.abc import Callable
from typing import cast

from midge.bridge.rules import Rules
from midge.config import Bridge as Section
from midge.core.broker import Broker
from midge.core.connection import Connection
from midge.protocol import packets as p
from midge.protocol.decoder import Decoder
from midge.protocol.encoder import encode

log = logging.getLogger("midge.bridge")

_VERSION = 4  # 3.1.1: what the brokers on the boards speak
# s for TCP's handshake, and again for CONNACK.
_CONNECT_TIMEOUT_S = 10.0
# bytes that may wait for the remote broker before QoS 0 is dropped; QoS 1 and 2 are bounded by the window.
_WRITE_BUFFER_HIGH = 256 * 1024


class Bridge:
    """Keeps one `[[bridge]]` connected. `start`, then `stop`; both once."""

    def __init__(
        self,
        section: Section,
        broker: Broker,
        end_turn_soon: Callable[[], None],
        now: Callable[[], float],
        changed: Callable[[Bridge], None],
    ) -> None:
        """*changed* is called when `is_connected` has."""
        self.section = section
        self.broker = broker
        self.end_turn_soon = end_turn_soon
        self.now = now
        self.inward = Rules.inward(section.topics)
        self.outward = Rules.outward(section.topics)
        self.local_client_id = f"bridge/{section.name}"
        # As Mosquitto's remote_clientid: two laptops that bridge the same board are two clients.
        self.remote_client_id = section.client_id or f"{socket.gethostname()}.{section.name}"
        self.is_subscribed = False  # the remote session has our filters, as far as this process knows
        self.is_connected = False  # the remote broker has let us in; set and cleared by the link
        self._changed = changed
        self._task: asyncio.Task[None] | None = None

    def set_connected(self, is_connected: bool) -> None:
        if is_connected != self.is_connected:
            self.is_connected = is_connected
            self._changed(self)

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            try:
                await self._task
            except asyncio.CancelledError:
                pass

    async def _run(self) -> None:
        section = self.section
        wait_s = section.reconnect_min
        last_reason = ""
        while True:
            link = _Link(self)
            try:
                reason = await link.run()
            finally:
                self.set_connected(False)
            if link.is_cleaning:
                log.info("bridge %s: ended what an earlier store of ours had under way", section.name)
                continue
            if link.was_up:
                wait_s = section.reconnect_min
            if reason != last_reason or link.was_up:  # an absent board is worth one line, not one a second
                log.warning("bridge %s to %s: %s", section.name, section.address, reason)
            last_reason = reason
            # Jitter, so that bridges that lost the same board don't come back in step.
            await asyncio.sleep(wait_s * random.uniform(0.8, 1.2))
            wait_s = min(wait_s * 2, section.reconnect_max)


class _Link(asyncio.Protocol):
    """One connection of a bridge, from TCP's handshake to its end."""

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge
        self._decoder = Decoder("client", _VERSION, max_packet_size=bridge.broker.limits.max_packet_size)
        self._transport: asyncio.Transport | None = None
        self._local: _Local | None = None  # opened by CONNACK
        self._is_paused = False
        self._output: list[bytes] = []
        self._skipped: set[int] = set()  # QoS 2 messages of ours that no rule takes out any more
        self._last_received = 0.0
        self._last_sent = 0.0
        self.is_cleaning = False  # this connection only ends an old session on the remote side
        self._ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.was_up = False

    # -- its life --

    async def run(self) -> str:
        """Connect, work until the connection ends; the reason why it ended."""
        loop = asyncio.get_running_loop()
        section = self._bridge.section
        watch: asyncio.Task[None] | None = None
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                await loop.create_connection(lambda: self, section.host, section.port)
            watch = loop.create_task(self._watch())
            return await self._ended
        except TimeoutError:
            return f"no connection within {_CONNECT_TIMEOUT_S:.0f} s"
        except OSError as error:
            return error.strerror or str(error)
        finally:
            if watch is not None:
                watch.cancel()
            self._close()

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
        """The deadline for CONNACK, then the keep alive: PINGREQ when nothing else was sent."""
        await asyncio.sleep(_CONNECT_TIMEOUT_S)
        if not self.was_up and not self.is_cleaning:
            self._end(f"no CONNACK within {_CONNECT_TIMEOUT_S:.0f} s")
        keep_alive_s = self._bridge.section.keep_alive
        while True:
            now = self._bridge.now()
            if now - self._last_received > keep_alive_s * 1.5:
                self._end(f"nothing received for {keep_alive_s * 1.5:.0f} s")
                return
            if now - max(self._last_sent, self._last_received) >= keep_alive_s / 2:
                self._send(p.Pingreq())
                self._flush()
            await asyncio.sleep(keep_alive_s / 4)

    # -- the remote side --

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports have the methods of asyncio.Transport without being its subclasses.
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=_WRITE_BUFFER_HIGH)
        self._last_received = self._bridge.now()
        self.is_cleaning = self._must_clean()
        self._send(self._connect_packet(self.is_cleaning))
        self._flush()

    def _must_clean(self) -> bool:
        # Our session is new: its packet identifiers start at 1 again, and the remote broker must not
        # take one for the rest of an old QoS 2 exchange and drop the message as a duplicate.
        bridge = self._bridge
        return bridge.outward.has_qos2 and bridge.local_client_id not in bridge.broker.sessions

    def _connect_packet(self, clean_start: bool) -> p.Connect:
        section = self._bridge.section
        return p.Connect(
            client_id=self._bridge.remote_client_id,
            clean_start=clean_start,
            keep_alive_s=section.keep_alive,
            level=_VERSION,
            is_bridge=True,
            will=None,
            username=section.username,
            password=None if section.password is None else section.password.encode(),
            properties={},
        )

    def data_received(self, data: bytes) -> None:
        self._last_received = self._bridge.now()
        for packet in self._decoder.receive_data(data):
            handler = _FROM_REMOTE.get(type(packet))
            if handler is not None:
                handler(self, packet)
        if self._decoder.error is not None:
            self._end(f"the remote broker sent a bad packet: {self._decoder.error}")
        self._flush()
        self._bridge.end_turn_soon()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(f"connection lost{f': {exc}' if exc else ''}")

    def pause_writing(self) -> None:
        self._is_paused = True

    def resume_writing(self) -> None:
        self._is_paused = False

    def _send(self, packet: p.Packet) -> None:
        self._output.append(encode(packet, _VERSION))

    def _flush(self) -> None:
        if self._output and self._transport is not None and not self._transport.is_closing():
            self._transport.write(b"".join(self._output))
            self._last_sent = self._bridge.now()
        self._output = []

    def _on_connack(self, packet: p.Connack) -> None:
        if packet.reason_code:
            self._end(
                f"refused by the remote broker: {_CONNACK_REASONS.get(packet.reason_code, packet.reason_code)}"
            )
            return
        bridge = self._bridge
        if self.is_cleaning:
            _Local(bridge, self).close()  # our session exists from now on
            bridge.end_turn_soon()
            self._send(p.Disconnect(0, None))
            self._flush()
            self._end("cleaned")
            return
        self.was_up = True
        bridge.set_connected(True)
        log.info("bridge %s to %s: connected", bridge.section.name, bridge.section.address)
        if not packet.session_present:
            bridge.is_subscribed = False
        self._local = _Local(bridge, self)
        self._local.open(remote_is_new=not packet.session_present)
        wanted = bridge.inward.subscriptions()
        if wanted and not bridge.is_subscribed:
            subscriptions = [p.Subscription(name, qos, False, False, 0) for name, qos in wanted.items()]
            self._send(p.Subscribe(1, subscriptions, None))

    def _on_suback(self, packet: p.Suback) -> None:
        bridge = self._bridge
        refused = [
            topic_filter
            for topic_filter, code in zip(bridge.inward.subscriptions(), packet.reason_codes, strict=False)
            if code >= 0x80
        ]
        if refused:
            log.error(
                "bridge %s: the remote broker refuses to send %s", bridge.section.name, ", ".join(refused)
            )
        bridge.is_subscribed = not refused

    def _on_remote_publish(self, packet: p.Publish) -> None:
        if self._local is None:
            self._end("the remote broker sent PUBLISH before CONNACK")
            return
        topic = self._bridge.inward.map(packet.topic)
        if topic is not None:
            packet.topic = topic
            self._local.send(packet)
        elif packet.qos == 1:  # a subscription of an older configuration
            self._send(p.Puback(packet.packet_id))
        elif packet.qos == 2:
            self._send(p.Pubrec(packet.packet_id))  # its PUBREL, unknown to the core, is answered there

    def _pass_in(self, packet: p.Packet) -> None:
        """An acknowledgement, or PUBREL, from the remote broker to the core."""
        if self._local is not None:
            self._local.send(packet)

    def _ignore(self, packet: p.Packet) -> None:
        """PINGRESP: that something came is all it says."""

    # -- the local side --

    def from_local(self, data: list[bytes], decoder: Decoder) -> None:
        """What the core sends to this bridge."""
        for packet in decoder.receive_data(b"".join(data)):
            if isinstance(packet, p.Publish):
                self._on_local_publish(packet)
            elif isinstance(packet, p.Pubrel) and packet.packet_id in self._skipped:
                self._skipped.discard(packet.packet_id)
                self._answer_local(p.Pubcomp(packet.packet_id))
            elif isinstance(packet, p.Puback | p.Pubrec | p.Pubrel | p.Pubcomp):
                self._send(packet)
        self._flush()

    def _on_local_publish(self, packet: p.Publish) -> None:
        topic = self._bridge.outward.map(packet.topic)
        if topic is not None:
            if packet.qos or not self._is_paused:
                packet.topic = topic
                self._send(packet)
        elif packet.qos == 1:  # queued under an older configuration
            self._answer_local(p.Puback(packet.packet_id))
        elif packet.qos == 2:
            self._skipped.add(packet.packet_id)
            self._answer_local(p.Pubrec(packet.packet_id))

    def _answer_local(self, packet: p.Packet) -> None:
        self._pass_in(packet)
        self._bridge.end_turn_soon()

    def local_closed(self, reason: str) -> None:
        self._end(f"closed on our side: {reason}")


class _Local:
    """The bridge as a client of our own core, without a socket between them."""

    def __init__(self, bridge: Bridge, link: _Link) -> None:
        self._bridge = bridge
        self._link: _Link | None = link
        self._decoder = Decoder(
            "client", _VERSION, max_packet_size=bridge.broker.limits.max_packet_size + 1024
        )
        self._core: Connection = bridge.broker.open(f"bridge {bridge.section.name}", self, bridge.now())
        self._core.is_trusted = True  # whoever wrote the configuration has already allowed it
        # Our own session goes first, so that it is there when what it is owed has to be kept.
        self.send(
            p.Connect(
                client_id=bridge.local_client_id,
                clean_start=False,
                keep_alive_s=0,
                level=_VERSION,
                is_bridge=True,
                will=None,
                username=None,
                password=None,
                properties={},
            )
        )

    def open(self, remote_is_new: bool) -> None:
        """Subscribe to what goes out, where the session hasn't already."""
        session = self._core.session
        assert session is not None
        if remote_is_new:
            # What the remote broker had under way is gone with its session; the same identifiers
            # now belong to new messages.
            for packet_id in list(session.received):
                session.release(packet_id)
        wanted = self._bridge.outward.subscriptions()
        there = {name: subscription.qos for name, subscription in session.subscriptions.items()}
        stale = [name for name in there if name not in wanted]
        if stale:
            self.send(p.Unsubscribe(1, stale))
        missing = [
            p.Subscription(name, qos, True, True, 0) for name, qos in wanted.items() if there.get(name) != qos
        ]
        if missing:
            self.send(p.Subscribe(1, missing, None))

    def send(self, packet: p.Packet) -> None:
        self._core.receive_data(encode(packet, _VERSION), self._bridge.now())

    def flush(self) -> None:
        data = self._core.data_to_send()
        link = self._link
        if link is None:
            return
        if data:
            link.from_local(data, self._decoder)
        if self._core.is_closing and self._core.is_drained:
            link.local_closed(self._core.close_reason)

    def hold_reading(self, hold: bool) -> None:
        """The remote broker is held by its own window: nothing is acknowledged before it is kept."""

    def close(self) -> None:
        self._link = None
        self._core.lost(self._bridge.now())
        self._bridge.end_turn_soon()


_CONNACK_REASONS = {  # MQTT 3.1.1 §3.2.2.3
    1: "protocol version not accepted",
    2: "client identifier not accepted",
    3: "server unavailable",
    4: "bad user name or password",
    5: "not authorized",
}
_FROM_REMOTE: dict[type, Callable[..., None]] = {
    p.Connack: _Link._on_connack,
    p.Suback: _Link._on_suback,
    p.Publish: _Link._on_remote_publish,
    p.Puback: _Link._pass_in,
    p.Pubrec: _Link._pass_in,
    p.Pubrel: _Link._pass_in,
    p.Pubcomp: _Link._pass_in,
    p.Pingresp: _Link._ignore,
}
