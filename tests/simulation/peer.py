"""A client as the specification wants it, and as strict: whatever is lost, doubled, out of order or never asked for
was lost, doubled, disordered or invented by the broker.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from midge.protocol import packets as p
from simulation.model import Sent
from simulation.world import Link, World, require

# Disconnect reasons that a client here may be sent: keep alive timeout, session taken over.
_GOODBYES = {0x8D, 0x8E}
# Two shared subscriptions match this topic, and a client may be chosen by both.
COPIES = {"s/2": 2}


@dataclass
class Habits:
    """How a client behaves, chosen once for a history."""

    version: int = 4
    expiry_s: int = 0  # 0: a clean session
    window: int = 4  # messages of its own under way
    receive_maximum: int | None = None
    alias_maximum: int = 0
    uses_aliases: bool = False
    acknowledges: str = "at once"  # or "late", "never"
    keep_alive_s: int = 0
    has_will: bool = False
    will_delay_s: int = 0
    will_qos: int = 1
    will_retain: bool = False
    pipelines: bool = False  # sends behind CONNECT without waiting


class Peer:
    """One client identifier through all its connections."""

    def __init__(self, world: World, name: str, habits: Habits, new_will: Callable[[Peer], Sent]) -> None:
        self.world = world
        self.name = name
        self.habits = habits
        self.version = habits.version
        self.new_will = new_will
        self.link: Link | None = None
        self.is_connected = False  # CONNACK has come
        self._is_ending = False  # a clean start was asked for, and no CONNACK came yet
        self.incarnation = 0  # sessions that it has had
        self.wanted: OrderedDict[str, tuple[p.Subscription, int]] = (
            OrderedDict()
        )  # what it wants to be subscribed to
        self.under_way: OrderedDict[int, tuple[Sent, bool]] = (
            OrderedDict()
        )  # by identifier: message, PUBREC came
        self.waiting: list[Sent] = []  # to be published once there is room
        self.unacknowledged: list[tuple[p.Packet, int | None]] = []  # answers that it has not sent yet
        self.received: dict[int, int] = {}  # QoS 2 identifiers: numbers, until PUBREL
        self.numbers: dict[int, int] = {}  # by identifier: the last message that came with it
        self.in_hand: dict[int, None] = {}  # identifiers of this connection that it has not acknowledged
        self.seen: dict[int, list[int]] = {}  # by number: in which incarnations it came
        self.seen_once: dict[int, list[int]] = {}  # the same of those that came at QoS 2
        self.first_seen: dict[tuple[str, str, int], list[int]] = {}  # (publisher, topic, QoS): live messages
        self._session = 0  # the link's number of the session that it knows
        self._last_request_id = 0
        self._last_packet_id = 0  # of what the broker sends
        self._broker_starts = -1  # which broker that was
        self._aliases: dict[int, str] = {}  # from the broker
        self._own_aliases: dict[str, int] = {}

    @property
    def keeps_session(self) -> bool:
        return self.habits.expiry_s > 0

    # -- what it does --

    def connect(self, clean_start: bool = False) -> None:
        habits = self.habits
        if self.link is not None:
            self.link.close_here()
        self.link = link = self.world.open(self)
        self.is_connected = False
        # Once it has thrown its own state away, the broker has to do so too before the session can be kept again.
        clean_start = self._is_ending = bool(clean_start) or not self.keeps_session or self._is_ending
        properties: p.Properties = {}
        if habits.version == 5:
            if habits.expiry_s:
                properties["session_expiry_interval"] = habits.expiry_s
            if habits.receive_maximum:
                properties["receive_maximum"] = habits.receive_maximum
            if habits.alias_maximum:
                properties["topic_alias_maximum"] = habits.alias_maximum
        will, tag = None, None
        if habits.has_will:
            message = self.new_will(self)
            will_properties: p.Properties = {}
            if habits.version == 5 and habits.will_delay_s:
                will_properties["will_delay_interval"] = habits.will_delay_s
            will = p.Will(message.topic, b"%d" % message.number, message.qos, message.retain, will_properties)
            tag = (message, habits.will_delay_s if habits.version == 5 else 0)
        link.send(
            p.Connect(
                self.name, clean_start, habits.keep_alive_s, habits.version, will=will, properties=properties
            ),
            tag,
        )
        self.in_hand.clear()
        self.unacknowledged.clear()
        self._aliases, self._own_aliases = {}, {}
        if clean_start:
            self._new_session()
            if habits.pipelines:
                self._begin()

    def disconnect(self, expiry_s: int | None = None, with_will: bool = False) -> None:
        if self.link is None:
            return
        properties = None if expiry_s is None else p.Properties(session_expiry_interval=expiry_s)
        self.link.send(p.Disconnect(4 if with_will and self.version == 5 else 0, properties))
        # The client closes; what it sent arrives, since it closed in good order.
        self.link.is_open_here = False
        self.link.down.clear()
        self.gone()

    def cut(self) -> None:
        """The link breaks on the client's side."""
        if self.link is not None:
            self.link.close_here()
            self.gone()

    def gone(self) -> None:
        if self.link is not None:
            self.link.is_open_here = False
        self.link, self.is_connected = None, False

    def subscribe(self, filters: list[p.Subscription], identifier: int = 0) -> None:
        for each in filters:
            self.wanted[each.filter] = (each, identifier)
        if self.link is not None and self.is_connected:
            self._send_subscribe(filters, identifier)

    def _send_subscribe(self, filters: list[p.Subscription], identifier: int) -> None:
        assert self.link is not None
        properties = (
            p.Properties(subscription_identifier=[identifier]) if identifier and self.version == 5 else None
        )
        self.link.send(p.Subscribe(self._request_id(), filters, properties))

    def unsubscribe(self, topic_filter: str) -> None:
        self.wanted.pop(topic_filter, None)
        if self.link is not None and self.is_connected:
            self.link.send(p.Unsubscribe(self._request_id(), [topic_filter]))

    def publish(self, message: Sent) -> None:
        self.waiting.append(message)
        if self.link is not None and self.is_connected:
            self._publish_waiting()

    def acknowledge(self, count: int = 1_000_000) -> None:
        """Send answers that were put off, in order [MQTT-4.6.0-2]."""
        while self.unacknowledged and count and self.link is not None:
            packet, tag = self.unacknowledged.pop(0)
            if not isinstance(packet, p.Pubrec):
                self.in_hand.pop(packet.packet_id, None)  # type: ignore[union-attr]
            self.link.send(packet, tag)
            count -= 1

    def _request_id(self) -> int:
        while True:
            self._last_request_id = self._last_request_id % 65_535 + 1
            if self._last_request_id not in self.under_way:
                return self._last_request_id

    def _new_session(self) -> None:
        self.incarnation += 1
        self.under_way.clear()
        self.received.clear()
        self.numbers.clear()
        self._last_packet_id = 0
        self._broker_starts = -1

    def _begin(self) -> None:
        """In a new session: subscribe, and publish what waits."""
        for each, identifier in self.wanted.values():
            self._send_subscribe([each], identifier)
        self._publish_waiting()

    def _publish_waiting(self) -> None:
        while self.waiting and (len(self.under_way) < self.habits.window or not self.waiting[0].qos):
            message = self.waiting.pop(0)
            packet_id = 0
            if message.qos:
                packet_id = self._request_id()
                self.under_way[packet_id] = (message, False)
            self._send_publish(message, packet_id)

    def _send_publish(self, message: Sent, packet_id: int, dup: bool = False) -> None:
        assert self.link is not None
        topic = message.topic
        properties: p.Properties = {}
        if self.version == 5:
            if message.expiry_s is not None:
                properties["message_expiry_interval"] = message.expiry_s
            known = topic in self._own_aliases
            if self.habits.uses_aliases and (
                known or len(self._own_aliases) < self.world.limits["topic_alias_maximum"]
            ):
                properties["topic_alias"] = self._own_aliases.setdefault(topic, len(self._own_aliases) + 1)
                topic = "" if known else topic
        payload = b"%d" % message.number if message.number >= 0 else b""
        self.link.send(
            p.Publish(topic, payload, message.qos, message.retain, dup, packet_id, properties or None),
            message.number,
        )

    # -- what comes --

    def receive(self, packet: Any) -> None:
        _RECEIVE[type(packet)](self, packet)

    def _on_connack(self, packet: p.Connack) -> None:
        link = self.link
        assert link is not None
        require(packet.reason_code == 0, f"{self.name}: {packet}")
        require(
            packet.session_present == link.session_present,
            f"{self.name}: session present {packet.session_present}, should be {link.session_present}",
        )
        was_begun = self.habits.pipelines and self._is_ending
        self.is_connected, self._is_ending = True, False
        # A session that began with a CONNECT whose CONNACK was lost is present, and yet not the one that the
        # client knows. MQTT has no way to tell it; here the link does, since the broker isn't to blame.
        is_known = packet.session_present and link.session == self._session
        self._session = link.session
        if is_known:
            for packet_id, (message, is_received) in self.under_way.items():  # [MQTT-4.4.0-1]
                if is_received:
                    link.send(p.Pubrel(packet_id))
                else:
                    self._send_publish(message, packet_id, dup=True)
            missing = link.session_present and self._missing()
            for each, identifier in missing or ():
                self._send_subscribe([each], identifier)
            self._publish_waiting()
        elif not was_begun:
            self._new_session()
            self._begin()

    def _missing(self) -> list[tuple[p.Subscription, int]]:
        """What it wanted to subscribe to while it was away, or asked for in vain."""
        session = self.world.model.state.sessions.get(self.name)
        has = session.subscriptions if session is not None else {}
        return [wanted for name, wanted in self.wanted.items() if name not in has]

    def _on_publish(self, packet: p.Publish) -> None:
        number = self._check_copy(packet)
        if packet.qos == 0:
            self._note(packet, number)
            return
        self._check_packet_id(packet, number)
        packet_id = packet.packet_id
        if packet.qos == 1:
            self._note(packet, number)
            self._answer(p.Puback(packet_id), number)
        elif packet_id in self.received:
            require(packet.dup, f"{self.name}: QoS 2 identifier {packet_id} used again before its PUBREL")
            require(
                self.received[packet_id] == (number or -1),
                f"{self.name}: another message as duplicate of {packet_id}",
            )
            self._answer(p.Pubrec(packet_id), None)
        else:
            self.received[packet_id] = number or -1
            self._note(packet, number)
            self._answer(p.Pubrec(packet_id), None)

    def _check_copy(self, packet: p.Publish) -> int | None:
        """The message's number, if it has one; it must be one that this client may be sent in this form."""
        topic = packet.topic
        properties = packet.properties or {}
        if "topic_alias" in properties:
            alias = properties["topic_alias"]
            require(1 <= alias <= self.habits.alias_maximum, f"{self.name}: topic alias {alias}")
            if topic:
                self._aliases[alias] = topic
            require(alias in self._aliases, f"{self.name}: topic alias {alias} was never set")
            topic = self._aliases[alias]
        if not packet.payload:
            return None
        number = int(packet.payload)
        message = self.world.messages.get(number)
        require(
            message is not None and message.topic == topic,
            f"{self.name}: {number} on {topic}, it was {message}",
        )
        allowed = self.world.model.allowed.get((self.name, number), set())
        identifiers = tuple(sorted(properties.get("subscription_identifier", ())))
        require(
            any(
                copy.qos == packet.qos
                and copy.retain == packet.retain
                and (copy.identifiers == identifiers or self.version != 5)
                for copy in allowed
            ),
            f"{self.name}: {message} came at QoS {packet.qos}, retain {packet.retain}, {identifiers}: {allowed}",
        )
        assert message is not None
        left_s = properties.get("message_expiry_interval")
        if self.version == 5:
            require((left_s is None) == (message.expiry_s is None), f"{self.name}: {number}: expiry {left_s}")
            require(
                left_s is None or 0 < left_s <= message.expiry_s, f"{self.name}: {number}: expiry {left_s}"
            )
        return number

    def _check_packet_id(self, packet: p.Publish, number: int | None) -> None:
        packet_id = packet.packet_id
        require(packet_id not in self.in_hand, f"{self.name}: identifier {packet_id} is in use")
        limit = self.world.limits["max_inflight_messages"]
        window = min((self.version == 5 and self.habits.receive_maximum) or limit, limit)
        self.in_hand[packet_id] = None
        require(
            len(self.in_hand) <= window, f"{self.name}: {len(self.in_hand)} messages in a window of {window}"
        )
        assert self.link is not None
        if self._broker_starts != self.link.broker_starts:
            self._broker_starts = self.link.broker_starts
            self._last_packet_id = 0 if packet.dup else packet_id - 1  # it goes on from what the store has
        if packet.dup:
            self._last_packet_id = max(self._last_packet_id, packet_id)
        else:
            # 1, 2, 3, ... ; what was lost with a connection has counted too, and comes again with DUP first.
            is_next = packet_id == self._last_packet_id + 1
            require(is_next, f"{self.name}: identifier {packet_id} after {self._last_packet_id}")
            if number is not None and self.numbers.get(packet_id) == number and packet.qos == 2:
                require(False, f"{self.name}: {number} again as {packet_id} without DUP [MQTT-3.3.1-1]")
            self._last_packet_id = packet_id
        if number is not None:
            self.numbers[packet_id] = number
        else:
            self.numbers.pop(packet_id, None)

    def _note(self, packet: p.Publish, number: int | None) -> None:
        """A message has come, and not as a duplicate that the client can tell."""
        if number is None:
            return
        if self.link is not None:
            self.link.expected_qos0.pop(number, None)
        message = self.world.messages[number]
        before = self.seen.setdefault(number, [])
        if not message.retain:
            copies_max = COPIES.get(message.topic, 1)
            if packet.qos == 2:
                once = self.seen_once.setdefault(number, [])
                require(
                    once.count(self.incarnation) < copies_max, f"{self.name}: {message} came twice at QoS 2"
                )
                once.append(self.incarnation)
            if packet.qos == message.qos == 0:
                require(len(before) < copies_max, f"{self.name}: {message} came twice at QoS 0")
            # At QoS 0 the first copy may be lost, and a later one of a repeated PUBLISH come; nobody repeats a
            # will that was lost with a crash.
            if not before and (packet.qos or not message.qos) and not message.is_will:
                self.first_seen.setdefault((message.publisher, message.topic, packet.qos), []).append(number)
        before.append(self.incarnation)

    def _answer(self, packet: p.Packet, number: int | None) -> None:
        self.unacknowledged.append((packet, number))
        if self.habits.acknowledges == "at once":
            self.acknowledge()

    def _on_pubrel(self, packet: p.Pubrel) -> None:
        number = self.received.pop(packet.packet_id, self.numbers.get(packet.packet_id, -1))
        self.in_hand[packet.packet_id] = None
        self._answer(p.Pubcomp(packet.packet_id), number if number >= 0 else None)

    def _on_acknowledged(self, packet: p.Puback | p.Pubcomp) -> None:
        if self._is_refused(packet):
            return
        is_repeated = isinstance(packet, p.Pubcomp) and packet.reason_code == 0x92  # PUBREL came twice
        require(packet.reason_code < 0x80 or is_repeated, f"{self.name}: {packet}")
        if packet.packet_id in self.under_way:
            message, is_received = self.under_way.pop(packet.packet_id)
            is_qos_2 = isinstance(packet, p.Pubcomp)
            require(is_qos_2 == (message.qos == 2) == is_received, f"{self.name}: {packet} for {message}")
        self._publish_waiting()

    def _is_refused(self, packet: p.Puback | p.Pubcomp | p.Pubrec) -> bool:
        """A queue was full: the client gives the message up, and its identifier is free."""
        if packet.reason_code != 0x97 or not self.world.has_pressure:
            return False
        require(not isinstance(packet, p.Pubcomp), f"{self.name}: {packet}")
        self.under_way.pop(packet.packet_id, None)
        self._publish_waiting()
        return True

    def _on_pubrec(self, packet: p.Pubrec) -> None:
        if self._is_refused(packet):
            return
        require(packet.reason_code < 0x80, f"{self.name}: {packet}")
        assert self.link is not None
        if packet.packet_id in self.under_way:
            message, _ = self.under_way[packet.packet_id]
            self.under_way[packet.packet_id] = (message, True)
        self.link.send(p.Pubrel(packet.packet_id))

    def _on_suback(self, packet: p.Suback) -> None:
        require(all(code < 0x80 for code in packet.reason_codes), f"{self.name}: {packet}")

    def _on_disconnect(self, packet: p.Disconnect) -> None:
        require(packet.reason_code in _GOODBYES, f"{self.name}: {packet}")

    def _ignore(self, packet: Any) -> None:
        pass

    def check_order(self) -> None:
        """What came first came in the order in which the broker took it [MQTT-4.6.0-6]. What a publisher sends
        again it took again: then one or the other place will do."""
        taken = self.world.model.live.get(self.name, [])
        for (publisher, topic, qos), numbers in self.first_seen.items():
            if topic.startswith("s/"):
                continue  # what a member of a shared subscription leaves comes to another late
            wanted = set(numbers)
            places = iter([number for number in taken if number in wanted])
            in_order = all(number in places for number in numbers)
            require(
                in_order, f"{self.name}: {numbers} of {publisher} on {topic} at QoS {qos} are out of order"
            )


_RECEIVE: dict[type, Callable[[Peer, Any], None]] = {
    p.Connack: Peer._on_connack,
    p.Publish: Peer._on_publish,
    p.Puback: Peer._on_acknowledged,
    p.Pubrec: Peer._on_pubrec,
    p.Pubrel: Peer._on_pubrel,
    p.Pubcomp: Peer._on_acknowledged,
    p.Suback: Peer._on_suback,
    p.Unsuback: Peer._ignore,
    p.Pingresp: Peer._ignore,
    p.Disconnect: Peer._on_disconnect,
}
