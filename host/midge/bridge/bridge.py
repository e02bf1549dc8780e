"""One bridge's life: when it connects, to which address, in which version, and when it tries again.
Knows nothing of packets; a `Link` is one connection of it.
"""

from __future__ import annotations

import asyncio
import logging
import random
import socket
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from midge.bridge.dial import ConnectCable, Dialler
from midge.bridge.echo import Echo
from midge.bridge.link import Link
from midge.bridge.local import Local
from midge.bridge.rules import Rules
from midge.config import Bridge as Section
from midge.core.broker import Broker
from midge.core.passage import OWN_BRIDGES
from midge.core.session import Session
from midge.logs import fields

log = logging.getLogger("midge.bridge")

# s between two looks at whether enough waits, with start = "on-demand". Mosquitto looks once a second.
_DEMAND_POLL_S = 0.5
# Connections in a row that broke early without one acknowledgement until a message is suspected, see `_suspect`.
_FRUITLESS_MAX = 4
_EARLY_S = 10.0
# s that a connection lasts until the next failure is taken for a new one.
_STABLE_S = 5.0
_SUSPECT_BYTES = 1024


class Version(NamedTuple):
    level: int
    is_marked: bool  # the level's high bit says that it is a bridge, as Mosquitto's have it

    def __str__(self) -> str:
        return "MQTT 5.0" if self.level == 5 else f"MQTT 3.1.1{' with bridges' * self.is_marked}"


# In the order in which they are tried. amqtt closes on the mark; Mosquitto has try_private for such.
_VERSIONS = [Version(5, False), Version(4, True), Version(4, False)]


class Bridge:
    """Keeps one `[[bridge]]` connected. `start`, then `stop`; both once."""

    def __init__(
        self,
        section: Section,
        broker: Broker,
        end_turn_soon: Callable[[], None],
        now: Callable[[], float],
        changed: Callable[[Bridge], None],
        path: Callable[[str], Path] = Path,
        cable: ConnectCable | None = None,
    ) -> None:
        """*changed* is called when `is_connected` has; *path* makes paths of the configuration absolute;
        *cable*: what connects over a serial cable."""
        self.section = section
        self.broker = broker
        self.end_turn_soon = end_turn_soon
        self.now = now
        self.inward = Rules.inward(section.topics)
        self.outward = Rules.outward(section.topics)
        self.echo = Echo()
        # Whether what we send there can match what we subscribe to there. Looked at topic by topic later; this only
        # spares bridges in one direction the trouble. Cleared by `_asks_less`.
        self.may_echo = bool(self.inward.subscriptions()) and bool(self.outward.subscriptions())
        self.notifies = section.notifications  # cleared by `_asks_less`
        self.local_client_id = OWN_BRIDGES + section.name
        # As Mosquitto's remote_clientid: two laptops that bridge the same board are two clients.
        self.remote_client_id = section.client_id or f"{socket.gethostname()}.{section.name}"
        self.is_connected = False  # the remote broker has let us in; set and cleared by the link
        self.is_session_new = True  # ours had to be made; cleared once the remote broker's fits it
        self.owes_retained = True  # the remote broker has to be told what is retained; cleared when it was
        self._versions = {"auto": _VERSIONS, "5.0": _VERSIONS[:1], "3.1.1": _VERSIONS[1:]}[section.version]
        self.too_large: int | None = None  # packet identifier of a message that the remote broker can't take
        self.connect = Dialler(section, path, cable).connect
        self._changed = changed
        self._addresses = section.addresses
        self._task: asyncio.Task[None] | None = None
        self._link: Link | None = None
        self._fruitless = 0

    @property
    def version(self) -> Version:
        """What the next connection speaks."""
        return self._versions[0]

    @property
    def address(self) -> str:
        """The one that is connected to, or tried next."""
        return self._addresses[0]

    @property
    def session(self) -> Session | None:
        """Ours, which holds what the remote broker has yet to acknowledge."""
        return self.broker.sessions.get(self.local_client_id)

    @property
    def owed(self) -> int:
        """Messages of QoS 1 and 2 that wait for the remote broker."""
        session = self.session
        return 0 if session is None else len(session.queue) + len(session.in_flight)

    @property
    def known(self) -> dict[str, object]:
        """For the log."""
        return fields(bridge=self.section.name, address=self.address)

    def set_connected(self, is_connected: bool) -> None:
        if is_connected != self.is_connected:
            self.is_connected = is_connected
            self._changed(self)

    def start(self) -> None:
        # What is published before the remote broker has been found waits for it.
        self.is_session_new = self.session is None
        local = Local(self, None, 5)
        self.owes_retained = local.subscribe(tell_retained=False)
        local.close()
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        if self._link is not None:
            self._link.leave()
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
            await self._until_wanted()
            started = self.now()
            link = self._link = Link(self)
            try:
                reason = await link.run()
            finally:
                self.set_connected(False)
            if link.has_cleaned:
                log.info("bridge %s: ended what an earlier store of ours had under way", section.name, extra=self.known)
                continue
            if link.is_done:
                log.info("bridge %s to %s: %s", section.name, self.address, reason, extra=self.known)
                wait_s = section.reconnect_min
                if section.start == "periodic":
                    await asyncio.sleep(max(0.0, started + section.interval - self.now()))
                continue
            if self._other_version(link):
                continue
            if self._asks_less(link):
                continue
            if link.was_up:
                lasted_s = self.now() - started
                self._suspect(link, lasted_s)
                # Not after a short one: two bridges of one name would throw each other out as fast as they can
                # (mosquitto#3002).
                if lasted_s > _STABLE_S:
                    wait_s = section.reconnect_min
            if reason != last_reason or link.was_up:  # an absent board is worth one line, not one a second
                log.warning("bridge %s to %s: %s", section.name, self.address, reason, extra=self.known)
            last_reason = reason
            self._addresses = [*self._addresses[1:], self._addresses[0]]
            # Jitter, so that bridges that lost the same board don't come back in step.
            await asyncio.sleep(wait_s * random.uniform(0.8, 1.2))
            wait_s = min(wait_s * 2, section.reconnect_max)

    async def _until_wanted(self) -> None:
        if self.section.start != "on-demand":
            return
        while self.session is not None and self.owed < self.section.threshold:
            await asyncio.sleep(_DEMAND_POLL_S)

    def _other_version(self, link: Link) -> bool:
        """Whether to try again at once in the next version. A broker that closes without a word may just be
        starting: then the versions take turns, one at each attempt."""
        if link.was_up or not (link.is_too_new or link.was_closed_at_once) or len(self._versions) == 1:
            return False
        refused, *others = self._versions
        if link.is_too_new:
            name = self.section.name
            log.info("bridge %s: %s doesn't speak %s", name, self.address, refused, extra=self.known)
            self._versions = others
            return True
        self._versions = [*others, refused]
        return False

    def _asks_less(self, link: Link) -> bool:
        """Brokers that take nothing on topics that start with $ may say so by closing (aedes does). Then we do
        without, one after the other; True: try again at once."""
        if not link.was_up or link.was_answered:
            return False
        if self.notifies:
            self.notifies = False
            log.info(
                "bridge %s: the remote broker doesn't take notifications under $SYS/",
                self.section.name,
                extra=self.known,
            )
            return True
        if self.may_echo:
            self.may_echo = False
            log.info(
                "bridge %s: whether the remote broker sends back what we send can't be found out",
                self.section.name,
                extra=self.known,
            )
            return True
        return False

    def _suspect(self, link: Link, lasted_s: float) -> None:
        """A 3.1.1 broker that can't take a message has no way but closing, and would be sent it again for ever,
        with all others behind it. After a few such connections the largest message is taken for the cause."""
        if link.acknowledged or not link.unacknowledged or lasted_s > _EARLY_S:
            self._fruitless = 0
            return
        self._fruitless += 1
        if self._fruitless < _FRUITLESS_MAX:
            return
        self._fruitless = 0
        packet_id, (size, topic) = max(link.unacknowledged.items(), key=lambda item: item[1][0])
        if size < _SUSPECT_BYTES:
            return
        log.error(
            "bridge %s: the remote broker closes whenever it is sent %a, %d bytes; that message is given up "
            "(max_packet_size of the bridge keeps such messages from it)",
            self.section.name,
            topic,
            size,
            extra=self.known,
        )
        self.too_large = packet_id
