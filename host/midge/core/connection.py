"""One connection's protocol: packets in, decisions asked of the broker, bytes out (MQTT 5.0 §4).
Knows neither socket nor clock: bytes and times are handed in, `data_to_send` is taken out once per turn.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from midge.core.access import ANYBODY, Identity
from midge.core.aliases import ReceivedAliases, SentAliases
from midge.core.changes import ReadError
from midge.core.forwarding import forward_run, receive_sole
from midge.core.incoming import HANDLERS, on_publish
from midge.core.output import Output
from midge.core.owner import GONE, Owner
from midge.core.rate import DEBT_MAX_S, Rate, rate_of
from midge.protocol import packets as p
from midge.protocol.decoder import Decoder
from midge.protocol.encoder import encode
from midge.protocol.errors import ProtocolError
from midge.protocol.packets import Publish, PublishRun
from midge.protocol.reasons import ReasonCode

if TYPE_CHECKING:
    from midge.core.access import Access
    from midge.core.admission import Exchange
    from midge.core.broker import Broker
    from midge.core.limits import Limits
    from midge.core.session import Session
    from midge.core.timers import Timer


# Why a connection is not read from; bits of `Connection.holds`.
HELD_BY_STORE: Final = 1
HELD_BY_ADMISSION: Final = 2
HELD_BY_RATE: Final = 4
HELD_BY_QUEUE: Final = 8

_PACKET_ID = struct.Struct("!H")
_PINGRESP: Final = b"\xd0\x00"
_NO_ALIASES: Final = ReceivedAliases(0)  # 3.1.1 has none
_UNLIMITED: Final = 0xFFFF_FFFF
_LIMIT_OF_ERROR = {
    ReasonCode.PACKET_TOO_LARGE: "max_packet_size",
    ReasonCode.RECEIVE_MAXIMUM_EXCEEDED: "receive_maximum",
    ReasonCode.TOPIC_ALIAS_INVALID: "topic_alias_maximum",
    ReasonCode.TOPIC_NAME_INVALID: "max_topic_levels",
}


class Connection(Output):
    """Made by `Broker.open`. Bytes come in by `receive_data`; after each turn the owner calls
    `end_turn`, writes what `data_to_send` gives, and closes when `is_closing` is set and all is written.
    """

    __slots__ = (
        "_deferred",
        "access",
        "address",
        "aliases",
        "close_reason",
        "decoder",
        "exchange",
        "expiry_timer",
        "has_postponed_qos2",
        "holds",
        "identity",
        "is_bridge",
        "is_ping_waiting",
        "is_trusted",
        "keep_alive_s",
        "last_received",
        "limits",
        "max_packet_size",
        "owner",
        "ping_position",
        "ping_timer",
        "plain_version",
        "postponed",
        "rate",
        "rate_timer",
        "receive_maximum",
        "refusal",
        "sent_aliases",
        "session",
        "timer",
        "unreleased",
        "version",
        "will",
        "window",
    )

    def __init__(
        self,
        broker: Broker,
        address: str,
        owner: Owner,
        now: float,
        access: Access | None = None,
        limits: Limits | None = None,
    ) -> None:
        super().__init__(broker)
        self.limits = limits = limits or broker.limits  # its listener's own, if it has any
        self.access = access  # who is asked whether the client may connect; None: nobody
        self.address = address
        self.owner: Owner = owner  # whoever does the I/O; the core only hands it back
        self.decoder = Decoder("server", max_packet_size=limits.max_packet_size)
        self.session: Session | None = None  # set by CONNECT, cleared by `lost`
        self.version = 4  # wire format: 4 (also for 3) or 5; set by CONNECT
        self.identity: Identity = ANYBODY  # who the client is; set when it is let in
        self.refusal: tuple[ReasonCode, str] | None = None  # known at the start: the answer to its CONNECT
        self.exchange: Exchange | None = None  # set by a CONNECT that asks for enhanced authentication
        self.expiry_timer: Timer | None = None  # until then what let the client in is valid
        self.holds = 0  # HELD_BY_...: set and cleared by `hold`
        self.rate: Rate | None = rate_of(limits)
        self.rate_timer: Timer | None = None  # until then nothing is read, for the rate's sake
        self.is_bridge = False
        self.is_trusted = False  # set by the owner: not asked who it is, nor what it may do
        self.will: p.Will | None = None  # set by CONNECT, cleared by DISCONNECT and once published
        self.keep_alive_s = 0
        self.last_received = now
        self.timer: Timer | None = None  # deadline of CONNECT, then of the keep alive
        self.window = limits.max_inflight_messages
        self.receive_maximum = limits.receive_maximum  # as CONNACK says, also when the limits change later
        self.max_packet_size = _UNLIMITED  # bytes, the client's (5.0)
        self.plain_version = 0  # wire format if a PUBLISH of that format may be passed on as it is, else 0
        self.aliases = _NO_ALIASES  # set by CONNECT of 5.0
        self.sent_aliases: SentAliases | None = None  # set by CONNECT if the client allows any
        self._deferred: list[p.Packet | PublishRun] | None = None  # not None: CONNECT waits for an answer
        # QoS 2 messages of this connection without PUBREL: a send quota isn't carried over (5.0 §4.9).
        self.unreleased = 0
        self.is_ping_waiting = False  # a PINGREQ whose answer waits for the queue (the drained marker)
        self.ping_position = 0  # of the last delivery that it waits for
        self.ping_timer: Timer | None = None
        # Packets that wait until the store can be written again, and whether QoS 2 messages do that should have
        # been sent again at CONNECT.
        self.postponed: list[bytes] = []
        self.has_postponed_qos2 = False
        self.close_reason = ""

    def __str__(self) -> str:
        if self.session is None:
            return self.address
        client_id = self.session.client_id
        # 3.1.1 and 5.0 allow control characters: a line break must not forge a line of the log.
        return f"{client_id if client_id.isprintable() else ascii(client_id)}@{self.address}"

    # -- bytes in --

    def receive_data(self, data: bytes, now: float) -> None:
        """A chunk from the peer. Never raises: a bad packet closes this connection, with a reason."""
        if self.is_closing:
            return
        self.last_received = now
        self.broker.counters.bytes_received += len(data)
        session = self.session
        if session is not None and data and receive_sole(self, session, data, now):
            if self.rate is not None:
                self._count(self.rate, 1, len(data), now)
            return
        packets = self.decoder.receive_data(data)
        self.broker.counters.messages_received += len(packets)
        if self.rate is not None:
            self._count(self.rate, _count_of(packets), len(data), now)
            if self.is_closing:
                return
        if session is None:
            self._handle_first(packets, now)
        else:
            self._handle(packets, now)

    def receive_packets(self, packets: list[p.Packet | p.PublishRun], now: float) -> None:
        """The next packets of a client in our own process that has sent its CONNECT: there is nothing to decode."""
        if self.is_closing:
            return
        self.last_received = now
        self.broker.counters.messages_received += len(packets)
        self._handle(packets, now)

    def set_limits(self, limits: Limits) -> None:
        """They have changed. What CONNACK announced stays."""
        self.limits = limits
        self.rate = rate_of(limits)

    def hold(self, why: int, is_held: bool) -> None:
        """Stop reading from the client, or go on once there is no other reason to hold it."""
        before = self.holds
        self.holds = before | why if is_held else before & ~why
        if bool(before) is not bool(self.holds):
            self.owner.hold_reading(is_held)

    def _count(self, rate: Rate, packets: int, size: int, now: float) -> None:
        """Keep the client to its rate, chunk by chunk."""
        wait_s, name = rate.take(packets, size, now)
        if not wait_s:
            return
        self.broker.counters.meet(name)
        if wait_s > DEBT_MAX_S:
            self.close(ReasonCode.MESSAGE_RATE_TOO_HIGH, f"{wait_s:.0f} s ahead of {name}")
            return
        if self.rate_timer is not None:
            self.rate_timer.cancel()
        self.hold(HELD_BY_RATE, True)
        self.rate_timer = self.broker.timers.at(now + wait_s, self._rate_due)

    def _rate_due(self, now: float) -> None:
        self.rate_timer = None
        self.hold(HELD_BY_RATE, False)

    def _handle_first(self, packets: list[p.Packet | PublishRun], now: float) -> None:
        """Before there is a session: CONNECT, and what may already follow it [MQTT-3.1.4-5 of 3.1.1]."""
        for place, packet in enumerate(packets):  # the decoder lets nothing but CONNECT come first
            if self._deferred is not None:
                self._deferred += packets[place:]
                return
            if self.is_closing:
                return
            if self.session is not None:
                self._handle(packets[place:], now)
                return
            if self.exchange is not None and type(packet) not in (p.Auth, p.Disconnect):
                self.fail(ProtocolError(ReasonCode.PROTOCOL_ERROR, "not AUTH, but not let in yet [MQTT-3.1.2-30]"))
                return
            try:
                HANDLERS[type(packet)](self, packet, now)
            except ProtocolError as error:
                self.fail(error)
            except ReadError as failure:  # not "error": compiled, a name has one type in a function
                self.close(ReasonCode.UNSPECIFIED_ERROR, str(failure))
        if self._deferred is None and not self.is_closing:
            self._handle([], now)  # what couldn't be decoded

    def _handle(self, packets: list[p.Packet | PublishRun], now: float) -> None:
        try:
            for packet in packets:
                kind = type(packet)
                if kind is PublishRun:
                    forward_run(self, packet, now)  # type: ignore[arg-type]
                elif kind is Publish:
                    on_publish(self, packet, now)  # type: ignore[arg-type]
                else:
                    HANDLERS[kind](self, packet, now)
                if self.is_closing:
                    return
            if self.decoder.error is not None:
                raise self.decoder.error
        except ProtocolError as error:
            self.fail(error)
        except ReadError as failure:
            self.close(ReasonCode.UNSPECIFIED_ERROR, str(failure))
        if self.rests and self.is_paused:
            self.rest_on_commit()

    @property
    def is_being_decided(self) -> bool:
        """It has sent CONNECT, and whether it is let in is being found out."""
        return self._deferred is not None

    def wait_for_decision(self) -> None:
        """Whether the client may connect is being found out: what it sends meanwhile is kept, unread."""
        self._deferred = []
        self.hold(HELD_BY_ADMISSION, True)

    def decided(self, now: float) -> None:
        """The client is let in, or refused: go on with what it sent behind its CONNECT."""
        deferred, self._deferred = self._deferred, None
        self.hold(HELD_BY_ADMISSION, False)
        if deferred is not None and not self.is_closing:
            self._handle(deferred, now)

    def fail(self, error: ProtocolError) -> None:
        """The peer broke a rule: tell it the reason where the protocol can (5.0 §4.13), and close."""
        self.broker.counters.protocol_errors += 1
        limit = _LIMIT_OF_ERROR.get(error.reason_code)
        if limit is not None:
            self.broker.counters.meet(limit)
        if self.session is not None:
            self.close(error.reason_code, str(error))
            return
        if error.reason_code == ReasonCode.UNSUPPORTED_PROTOCOL_VERSION or self.decoder.version == 5:
            self.version = 5 if self.decoder.version == 5 else 4
            self.send(p.Connack(False, self.connack_code(error.reason_code), None))
        self.abort(str(error))

    def close(self, reason_code: ReasonCode, reason: str) -> None:
        """Close from our side: DISCONNECT with the reason to a 5.0 client, then the connection ends."""
        if self.version == 5 and self.session is not None and not self.is_closing:
            self.send(p.Disconnect(reason_code, None))
        self.abort(reason)

    def abort(self, reason: str) -> None:
        """End the connection once its output is written, without a further packet."""
        if self.is_closing:
            return
        self.is_closing = True
        # Nothing follows [MQTT-3.14.4-1]: what others publish before the socket is closed waits or is dropped.
        self.plain_version = self.window = 0
        self.close_reason = reason
        self.broker.output_ready(self)

    def lost(self, now: float) -> None:
        """The connection has ended, whoever ended it. Nothing is sent any more."""
        self.is_closing = True
        self.plain_version = 0
        self.owner = GONE  # so that neither keeps the other until the garbage collector comes
        self.out.clear()
        self.held.clear()
        for timer in (self.timer, self.ping_timer, self.expiry_timer, self.rate_timer):
            if timer is not None:
                timer.cancel()
        self.broker.connection_lost(self, now)

    # -- packets out --

    def rest_on_commit(self) -> None:
        """What this connection is sent in this turn leaves only after the turn's changes are kept. Not while the
        store can't be written: what must rest then is refused or postponed."""
        changes = self.broker.changes
        if changes is None or changes.is_stuck:
            return
        self.rests = True
        if self.is_paused:  # what it was sent in earlier turns is still there, so it isn't named as ready anew
            self.broker.output_ready(self)

    def postpone(self, data: bytes) -> bool:
        """Whether *data* has to wait until the store can be written: then it does."""
        session, changes = self.session, self.broker.changes
        if changes is None or not changes.is_stuck or session is None:
            return False
        if session.changes is None and not session.consuming:
            return False
        self.postponed.append(data)
        return True

    def send_bytes(self, data: bytes) -> None:
        if self.is_closing:
            return
        if not self.out:
            self.broker.output_ready(self)
        self.out.append(data)

    def send(self, packet: p.Packet) -> None:
        """Any packet but PUBLISH. One that the client can't take ends the connection: unlike a message
        [MQTT-3.1.2-25] an answer that isn't sent would be waited for."""
        data = encode(packet, self.version)
        if len(data) > self.max_packet_size:
            self.close(
                ReasonCode.PACKET_TOO_LARGE,
                f"an answer of {len(data)} bytes, the client takes {self.max_packet_size} [MQTT-3.1.2-24]",
            )
            return
        self.send_bytes(data)

    def send_pubrel(self, packet_id: int) -> None:
        self.send_bytes(b"\x62\x02" + _PACKET_ID.pack(packet_id))

    def send_pingresp(self) -> None:
        self.is_ping_waiting = False
        if self.ping_timer is not None:
            self.ping_timer.cancel()
            self.ping_timer = None
        self.send_bytes(_PINGRESP)

    # -- packets --

    def refuse(self, reason_code: ReasonCode, reason: str) -> None:
        """Answer CONNECT with a refusal and close [MQTT-3.2.2-7]."""
        self.broker.counters.refused += 1
        self.send(p.Connack(False, self.connack_code(reason_code), None))
        self.abort(reason)

    def connack_code(self, reason_code: ReasonCode) -> int:
        return reason_code if self.version == 5 else reason_code.connack_311

    def acknowledge(self, kind: bytes, packet_id: int, reason_code: int = 0) -> None:
        if reason_code and self.version == 5:
            data = kind + b"\x03" + _PACKET_ID.pack(packet_id) + bytes((reason_code,))
        else:
            data = kind + b"\x02" + _PACKET_ID.pack(packet_id)
        self.send_acknowledgement(data)

    def send_acknowledgement(self, data: bytes) -> None:
        """PUBACK, PUBREC or PUBCOMP as it goes on the wire; also while it is closing."""
        if not self.out:
            self.broker.ready.append(self)
        self.out.append(data)

    def ping_waited(self, now: float) -> None:
        self.ping_timer = None
        if self.is_ping_waiting:
            self.send_pingresp()

    def its_session(self) -> Session:
        session = self.session
        if session is None:  # the decoder lets nothing but CONNECT come first
            raise ProtocolError(ReasonCode.PROTOCOL_ERROR, "the first packet must be CONNECT [MQTT-3.1.0-1]")
        return session

    # -- time --

    def connect_due(self, now: float) -> None:
        """The deadline for CONNECT, and for whoever decides about it, has come."""
        self.timer = None
        self.broker.counters.meet("connect_timeout")
        timeout_s = self.limits.connect_timeout
        if self.exchange is None and self._deferred is None:
            self.abort(f"no CONNECT within {timeout_s} s")
        else:  # whoever decides is too busy, or the client leaves its authentication unfinished
            self.refuse(ReasonCode.SERVER_UNAVAILABLE, f"not let in within {timeout_s} s")

    def watch_keep_alive(self, now: float) -> None:
        """Arm the keep alive's deadline: one and a half times the interval [MQTT-3.1.2-22]."""
        timer = self.timer
        due = now + self.keep_alive_s * 1.5
        if timer is not None and self.keep_alive_s and timer.when <= due:
            timer.action = self._keep_alive_due  # CONNECT's own: comes early, and moves on; half the cost of a new one
            return
        if timer is not None:
            timer.cancel()
            self.timer = None
        if self.keep_alive_s:
            self.timer = self.broker.timers.at(due, self._keep_alive_due)

    def _keep_alive_due(self, now: float) -> None:
        # Packets only note their time; the deadline moves when it comes, not with each packet.
        if self.holds:
            self.last_received = now  # it is we who don't read
        due = self.last_received + self.keep_alive_s * 1.5
        if now < due:
            self.timer = self.broker.timers.at(due, self._keep_alive_due)
            return
        self.timer = None
        self.close(ReasonCode.KEEP_ALIVE_TIMEOUT, f"nothing received for {self.keep_alive_s * 1.5:.1f} s")


def _count_of(packets: list[p.Packet | PublishRun]) -> int:
    count = len(packets)
    for packet in packets:
        if type(packet) is PublishRun:
            count += packet.count - 1
    return count
