"""One history: a seed chooses clients, their habits, faults, and what happens next; then calm, and the reckoning.
Each seed leaves some features out and makes others frequent, since bugs hide where rare things meet.
"""

from __future__ import annotations

import random
from typing import Any

from midge.protocol import packets as p
from simulation import audit
from simulation.model import NEVER, Sent, all_owed
from simulation.peer import Habits, Peer
from simulation.world import Link, World, require

TOPICS = ("a/b", "a/c", "b/b", "b")
FILTERS = ("a/b", "a/+", "a/#", "+/b", "b/#", "b", "#", "+/+", "s")
SHARED_TOPICS = ("s/1", "s/2")
SHARED_FILTERS = ("$share/one/s/+", "$share/two/s/2")
# Filters that match SHARED_TOPICS would hide which copy came by which way.
PLAIN = tuple(each for each in FILTERS if each not in ("#", "+/+"))
# s that pass although time stands still: the core sends large answers in portions, and looks for room again.
_SOON_S = 0.1
# Steps after which a history that should have come to rest is said to go round in circles.
_REST_STEPS_MAX = 20_000
# A client whose message is refused is disconnected (3.1.1), and each time that it comes back there is more room.
_RECONNECTIONS_MAX = 50


class History:
    """`run` raises AssertionError with what was broken; `trace`, if it is a list, gets a line per event."""

    def __init__(self, seed: int, trace: list[str] | None = None) -> None:
        self.seed = seed
        self.rng = rng = random.Random(seed)
        self.trace = trace
        self.steps = int(rng.choice([40, 80, 120, 250]))
        self.has_shared = rng.random() < 0.4
        # In half of those nothing may be lost, since c0 never leaves the shared subscriptions, and what others
        # leave goes to it: at QoS 1 all, at QoS 2 not what was sent already [MQTT-4.8.2-5].
        self.is_shared_strict = self.has_shared and rng.random() < 0.5
        self.has_retained = rng.random() < 0.5
        self.has_expiry = rng.random() < 0.3
        limits: dict[str, Any] = {
            "max_inflight_messages": rng.choice([1, 2, 5, 20]),
            "max_queued_messages": rng.choice([3, 10]) if rng.random() < 0.2 else 1000,
            "max_output_bytes": rng.choice([100, 8_000_000]),
            "max_message_memory": rng.choice([0, 2000, 64_000_000]),
            "receive_maximum": 20,
            "topic_alias_maximum": 3,
        }
        # Of a generator of its own, so that each seed is still the history that it was without.
        if limits["max_queued_messages"] < 1000:
            limits["queue_full"] = random.Random(-seed).choice(["drop-oldest", "reject", "wait"])
        self.world = World(rng, limits)
        self.peers = [self._new_peer(f"c{number}") for number in range(rng.randint(2, 5))]
        if self.is_shared_strict:
            for each in SHARED_FILTERS:
                self.peers[0].wanted[each] = (p.Subscription(each, 1), 0)
        self.world.may_exceed = self.has_shared or any(peer.habits.has_will for peer in self.peers)
        self.next_number = 0
        self.weights = self._choose_weights()

    def _choose_weights(self) -> dict[str, float]:
        rng = self.rng
        weights = {
            "arrive": 10.0,
            "receive": 10.0,
            "turn": rng.choice([1.0, 5.0, 20.0]),
            "store": rng.choice([0.5, 3.0, 10.0]),
            "act": 4.0,
            "acknowledge": 3.0,
            "lose": rng.choice([0.2, 2.0]),
        }
        faults = {"cut": 0.5, "pause": 0.5, "resume": 1.0, "time": 0.3, "crash": 0.15}
        for name, weight in faults.items():
            if name == "resume" or rng.random() < 0.6:
                weights[name] = weight * rng.choice([0.5, 1, 3])
        return weights

    def _new_peer(self, name: str) -> Peer:
        rng = self.rng
        version = rng.choice([3, 4, 4, 5, 5])
        expiry_s = rng.choice([0, NEVER])
        if version == 5:
            expiry_s = rng.choice([0, NEVER, NEVER, 100])
        if self.is_shared_strict:
            expiry_s = NEVER  # a crash takes what a clean session was owed
        habits = Habits(
            version=version,
            expiry_s=expiry_s,
            window=rng.choice([1, 4, 10]),
            receive_maximum=rng.choice([None, None, 1, 3]),
            alias_maximum=rng.choice([0, 0, 2, 10]),
            uses_aliases=version == 5 and rng.random() < 0.3,
            acknowledges=rng.choice(["at once", "at once", "late", "never"]),
            keep_alive_s=rng.choice([0, 0, 10]),
            has_will=rng.random() < 0.4,
            will_delay_s=rng.choice([0, 0, 5, 200]),
            will_qos=rng.randint(0, 2),
            will_retain=self.has_retained and rng.random() < 0.3,
            pipelines=rng.random() < 0.3,
        )
        return Peer(self.world, name, habits, self._new_will)

    # -- what happens --

    def run(self) -> None:
        for _ in range(self.steps):
            self._step(self.weights)
        self._calm()
        self._reckon()
        self._wind_up()

    def _note(self, *what: Any) -> None:
        if self.trace is not None:
            self.trace.append(" ".join(str(each) for each in what))

    def _step(self, weights: dict[str, float]) -> bool:
        """One thing that can happen happens; False if nothing can."""
        names = [name for name in weights if weights[name]]
        rng = self.rng
        while names:
            name = rng.choices(names, [weights[each] for each in names])[0]
            if getattr(self, f"_{name}")():
                return True
            names.remove(name)
        return False

    def _choose(self, links: list[Link]) -> Link | None:
        return self.rng.choice(links) if links else None

    def _arrive(self) -> bool:
        link = self._choose(
            [each for each in self.world.links if each.up and each.is_open_there and not each.is_held]
        )
        if link is None:
            return False
        self._note("arrive", link.name, [packet for _, packet, _ in link.up])
        self.world.arrive(link)
        return True

    def _receive(self) -> bool:
        link = self._choose(
            [each for each in self.world.links if each.is_open_here and (each.down or each.is_at_end)]
        )
        if link is None:
            return False
        peer: Peer = link.client
        if link.down:
            packet = link.down.popleft()
            self._note("receive", link.name, packet)
            peer.receive(packet)
        else:
            self._note("end", link.name)
            peer.gone()
        return True

    def _turn(self) -> bool:
        if not self.world.is_turn_due:
            return False
        self._note("turn")
        self.world.end_turn()
        return True

    def _store(self) -> bool:
        world = self.world
        if world.batch is None:
            world.take_batch()  # what nobody waits for is written after a while
            return world.batch is not None
        self._note("told" if world.is_batch_kept else "kept", world.batch.number)
        if world.is_batch_kept:
            world.tell_batch()
        else:
            world.write_batch()
        return True

    def _lose(self) -> bool:
        world = self.world
        link = self._choose(
            [
                each
                for each in world.links
                if each.is_open_there and (each.is_closing_there or not each.is_open_here)
            ]
        )
        if link is None or (link.up and not link.is_closing_there and self.rng.random() < 0.9):
            return False
        self._note("lose", link.name)
        world.lose(link)
        world.forget_closed_links()
        return True

    def _cut(self) -> bool:
        peer = self.rng.choice(self.peers)
        if peer.link is None:
            return False
        self._note("cut", peer.name)
        peer.cut()
        return True

    def _pause(self) -> bool:
        link = self._choose([each for each in self.world.links if each.is_open_there])
        if link is None or link.connection.is_paused:
            return False
        self._note("pause", link.name)
        self.world.pause(link)
        return True

    def _resume(self) -> bool:
        link = self._choose(
            [each for each in self.world.links if each.is_open_there and each.connection.is_paused]
        )
        if link is None:
            return False
        self._note("resume", link.name)
        self.world.resume(link)
        return True

    def _time(self) -> bool:
        world = self.world
        due = world.broker.next_deadline()
        if due is not None and self.rng.random() < 0.5:
            world.now = max(world.now, due)
        else:
            world.now += self.rng.choice([0.1, 3.0, 60.0])
        self._note("time", world.now)
        if due is None or world.now < due or self.rng.random() < 0.5:
            return True  # the timer wakes late
        return self._timers()

    def _timers(self) -> bool:
        world = self.world
        due = world.broker.next_deadline()
        if due is None or due > world.now + _SOON_S:
            return False
        world.now = max(world.now, due)
        self._note("timers")
        world.run_timers()
        return True

    def _crash(self) -> bool:
        self._note("crash")
        self.world.crash()
        return True

    def _acknowledge(self) -> bool:
        peer = self.rng.choice(self.peers)
        if not peer.unacknowledged or peer.habits.acknowledges != "late" or peer.link is None:
            return False
        self._note("acknowledge", peer.name)
        peer.acknowledge(self.rng.randint(1, 3))
        return True

    # -- what clients do --

    def _act(self) -> bool:
        rng = self.rng
        peer = rng.choice(self.peers)
        if peer.link is None or rng.random() < 0.03:
            is_fresh = peer.keeps_session and self._may_leave(peer) and rng.random() < 0.1
            self._note("connect", peer.name, "clean" if is_fresh else "")
            peer.connect(clean_start=is_fresh)
            return True
        if not peer.is_connected:
            return False
        kind = rng.random()
        if kind < 0.6:
            for _ in range(rng.choice([1, 1, 1, 2, 5])):
                message = self._new_message(peer)
                self._note("publish", message)
                peer.publish(message)
        elif kind < 0.85:
            self._subscribe(peer)
        elif kind < 0.93 and peer.wanted:
            topic_filter = rng.choice(list(peer.wanted))
            if topic_filter.startswith("$share") and self.is_shared_strict:
                return False  # after a restart the core wouldn't know any more which way a message had come
            self._note("unsubscribe", peer.name, topic_filter)
            peer.unsubscribe(topic_filter)
        else:
            ends = (
                peer.version == 5
                and self._may_leave(peer)
                and rng.random() < (0.6 if self.is_shared_strict else 0.2)
            )
            self._note("disconnect", peer.name, "ends" if ends else "")
            peer.disconnect(0 if ends else None, rng.random() < 0.2)
        return True

    def _may_leave(self, peer: Peer) -> bool:
        # A clean session of 3.1.1 takes with a crash what it was chosen for.
        return not self.is_shared_strict or (peer is not self.peers[0] and peer.version == 5)

    def _subscribe(self, peer: Peer) -> None:
        rng = self.rng
        chosen = []
        for _ in range(rng.choice([1, 1, 2])):
            if self.has_shared and rng.random() < (0.6 if self.is_shared_strict else 0.4):
                qos = 1 if self.is_shared_strict else rng.randint(1, 2)
                chosen.append(p.Subscription(rng.choice(SHARED_FILTERS), qos))
                continue
            topic_filter = rng.choice(PLAIN if self.has_shared else FILTERS)
            wanted = p.Subscription(topic_filter, rng.randint(0, 2))
            if peer.version == 5:
                wanted.no_local = rng.random() < 0.2
                # The two together are taken for a bridge's, whose messages are marked (midge/core/passage.py).
                wanted.retain_as_published = not wanted.no_local and rng.random() < 0.4
                wanted.retain_handling = rng.choice([0, 0, 1, 2])
            chosen.append(wanted)
        chosen = list({each.filter: each for each in chosen}.values())
        identifier = rng.randint(1, 300) if rng.random() < 0.4 and peer.version == 5 else 0
        self._note("subscribe", peer.name, chosen, identifier)
        peer.subscribe(chosen, identifier)

    def _new_message(self, peer: Peer) -> Sent:
        rng = self.rng
        topic = rng.choice(TOPICS)
        if self.has_shared and rng.random() < (0.7 if self.is_shared_strict else 0.4):
            topic = rng.choice(SHARED_TOPICS)
        retain = self.has_retained and not topic.startswith("s/") and rng.random() < 0.3
        expiry_s = (
            rng.choice([1, 50]) if self.has_expiry and peer.version == 5 and rng.random() < 0.5 else None
        )
        self.next_number += 1
        number = self.next_number
        if retain and rng.random() < 0.3:
            number = -number  # no payload: nothing is retained any more
        message = Sent(number, peer.name, topic, rng.randint(0, 2), retain, expiry_s)
        self.world.messages[number] = message
        return message

    def _new_will(self, peer: Peer) -> Sent:
        self.next_number += 1
        habits = peer.habits
        # After a restart several wills may be due at once, in any order: what is retained must not depend on it.
        topic = f"w/{peer.name}" if habits.will_retain else self.rng.choice(TOPICS)
        message = Sent(self.next_number, peer.name, topic, habits.will_qos, habits.will_retain, is_will=True)
        self.world.messages[message.number] = message
        return message

    # -- the end --

    def _rest(self) -> None:
        """Everything that is under way arrives; time stands still."""
        weights = dict.fromkeys(
            ("arrive", "receive", "turn", "store", "lose", "resume", "acknowledge_all", "timers"), 1.0
        )
        for _ in range(_REST_STEPS_MAX):
            if not self._step(weights):
                return
        raise AssertionError("it never comes to rest")

    def _acknowledge_all(self) -> bool:
        for peer in self.peers:
            if peer.unacknowledged and peer.link is not None:
                self._note("acknowledge", peer.name)
                peer.acknowledge()
                return True
        return False

    def _calm(self) -> None:
        """The faults are over: every client that has a session comes back, and everything is acknowledged."""
        self._note("calm")
        self._rest()
        for _ in range(_RECONNECTIONS_MAX):
            away = [peer for peer in self.peers if peer.keeps_session and not (peer.link and peer.is_connected)]
            for peer in away:
                self._note("connect", peer.name)
                peer.connect()
            self._rest()
            if not away:
                break
        for link in self.world.links:
            require(not link.unanswered, f"{link.name} was never answered: {list(link.unanswered)}")
            require(not link.waiting, f"{link.name} waits for ever: {list(link.waiting)}")

    def _check_owed(self) -> None:
        world = self.world
        expired = world.expired()
        shared = set(world.model.state.shared)
        missing = [
            (name, number)
            for name, number in all_owed(world.model.state)
            if number not in expired and (name not in shared or self.is_shared_strict)
        ]
        dropped = world.total_dropped()
        require(
            len(missing) <= dropped,
            f"never delivered: {[(name, world.messages[number]) for name, number in missing]}; {dropped} were dropped",
        )
        for link in world.links:
            require(not link.expected_qos0, f"{link.name} never got at QoS 0: {list(link.expected_qos0)}")

    def _reckon(self) -> None:
        world = self.world
        self._check_owed()
        audit.idle(world.broker)
        audit.sizes(world.broker, world.may_exceed)
        if not world.total_dropped():
            for peer in self.peers:
                peer.check_order()
        self._check_retained()

    def _check_retained(self) -> None:
        """A client that comes now is sent what is retained, all of it and nothing else."""
        world = self.world
        auditor = Peer(world, "auditor", Habits(version=5), self._new_will)
        self.peers.append(auditor)
        auditor.subscribe([p.Subscription("#", 2)])
        auditor.connect()
        self._rest()
        wanted = {
            number
            for number, expires_at in world.model.state.retained.values()
            if expires_at is None or expires_at > world.now
        }
        require(set(auditor.seen) == wanted, f"retained: {set(auditor.seen)} came, {wanted} should")
        auditor.disconnect()
        self._rest()
        self.peers.remove(auditor)

    def _wind_up(self) -> None:
        """Everybody leaves; wills whose delay runs are published, sessions expire, the rest is ended."""
        world = self.world
        self._note("wind up")
        for peer in self.peers:
            peer.cut()
        self._rest()
        world.now += 1000
        self._rest()
        self._compare_sessions()
        for peer in self.peers:
            peer.habits.has_will = False
            peer.connect()
        self._rest()
        self._check_owed()
        for peer in self.peers:
            peer.disconnect()
        self._rest()
        for peer in self.peers:
            peer.wanted.clear()
            peer.habits.expiry_s = 0
            peer.connect(clean_start=True)
        self._rest()
        for peer in self.peers:
            peer.disconnect()
        self._rest()
        audit.empty(world.broker, world.store)

    def _compare_sessions(self) -> None:
        world = self.world
        found, wanted = set(world.broker.sessions), set(world.model.state.sessions)
        require(found == wanted, f"sessions {found}, should be {wanted}")

