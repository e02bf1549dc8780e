"""The running broker: listeners, store and bridges around one core, turn by turn.
Knows asyncio and threads; decides nothing about messages.
"""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

from midge.access import Desk
from midge.admitting import RulesLoader, allows_anonymous, limits_of
from midge.announcing import Announcing
from midge.bridge import Bridge
from midge.checks import check_access, store_problem, warnings
from midge.config import Bridge as BridgeSection
from midge.config import Config, ConfigError, Listener
from midge.core.broker import Broker
from midge.core.changes import ReadError
from midge.core.connection import Connection
from midge.core.restore import restore
from midge.listeners.connection import ClientConnection, is_told, log_admitted
from midge.listeners.turns import Turns
from midge.listening import MakeProtocol, OpenListener, cannot_listen, host_of_url
from midge.protocol.reasons import ReasonCode
from midge.store import Store, StoreError, open_store
from midge.systopics import SysTopics
from midge.writing import Writer

if TYPE_CHECKING:
    from midge.monitoring import Monitoring

log = logging.getLogger("midge.server")

# s that clients get to read their DISCONNECT when the broker stops.
_STOP_TIMEOUT_S = 0.8
# s that connections which were cut get to say so.
_ABORT_TIMEOUT_S = 0.2
# Threads that hash passwords. A fleet's logins may keep two cores busy, and leave the others to the rest.
_HASHING_THREADS = 2


class Server:
    """One broker process. `start`, then `stop`; both once."""

    def __init__(self, config: Config, directory: Path) -> None:
        """*directory* is where relative paths of the store start. ConfigError: it would listen to the
        network without asking anybody who they are, or a file that it names can't be used."""
        self.config = config
        self.addresses: list[str] = []  # "mqtt://127.0.0.1:1883", one per listener, once started
        self.monitoring_address = ""  # "http://127.0.0.1:9883", once started, if it is asked for
        check_access(config)
        if config.store.path != ":memory:" and (problem := store_problem(directory / config.store.path)):
            raise StoreError(problem)
        self._store: Store | None = open_store(config.store.path, config.store.durability, directory)
        self.broker = Broker(config.core_limits(), is_durable=self._store is not None)
        self.broker.set_limits(config.core_limits(), config.session_rules())
        self.broker.passage.on_loop = _tell_loop
        if is_told():
            self.broker.on_admitted = log_admitted
        self.broker.replay.on_refused = _tell_refused
        self._check_histories(config)
        self._set_histories(config)
        self._hashing = ThreadPoolExecutor(_HASHING_THREADS, "passwords")
        self._desk = Desk(self._hashing, self.end_turn_soon)
        self._loader = RulesLoader(config)
        self._turns = Turns(self.broker, self._wait_for_commit, self._turn_ended if self._store else None)
        # What a listener adds, its door and the address, comes last: then making a connection is one call in C.
        protocol = cast(MakeProtocol, partial(ClientConnection, self.broker, self._turns))
        self._listeners = [
            OpenListener(section, config, self._desk, self._loader.rules_of(section), protocol, self._turns)
            for section in config.listener
        ]
        self._take_over_access(config)
        self._writer: Writer | None = None  # set by `start` if there is a store
        # Each once, however many turns end before the commit.
        self._waiting: dict[Connection, None] = {}  # with output that rests on a commit
        self._announcing: Announcing | None = None
        self._bridges: list[Bridge] = []
        self._sys_topics = SysTopics(self.broker)
        self._sys_timer: asyncio.TimerHandle | None = None
        self._monitoring: Monitoring | None = None
        self._phase = "it is starting"  # "" while clients are served; set by `start` and `stop`

    async def start(self) -> None:
        """Load the store, then listen. StoreError, OSError: one of them can't be had."""
        self._loop = asyncio.get_running_loop()
        self._turns.start(self._loop)
        if self._store is not None:
            try:
                restore(self.broker, self._store.load(), self._store.reader, self.now())
            except ReadError as error:
                raise StoreError(str(error)) from error
            durability = self.config.store.durability
            self._writer = Writer(self._loop, self.broker, self._store, durability, self._released, self.now)
        self.broker.queues.configure([queue.settings() for queue in self.config.queue], self.now())
        for text in warnings(self.config):
            log.warning("%s", text)
        for bridge in self.config.bridge:  # first, so that nothing is published before their sessions are there
            self._start_bridge(bridge)
        for listener in self._listeners:
            try:
                await listener.start()
            except OSError as error:
                section = listener.section
                where = section.path if section.type == "unix" else f"{section.bind}:{section.port}"
                raise cannot_listen(where, error) from error
            self.addresses.append(listener.address)
        self._update_sys()
        self._announcing = Announcing(self.config, self._listeners)
        self._announcing.start()
        if self.config.http.port is not None:
            await self._start_monitoring(self.config.http.bind, self.config.http.port)
        self._phase = ""

    @property
    def problem(self) -> str:
        """Why the broker can't do its work at the moment; "" if it can."""
        return self._phase or (self._writer.problem if self._writer is not None else "")

    async def _start_monitoring(self, bind: str, port: int) -> None:
        from midge.monitoring import Monitoring

        monitoring = Monitoring(
            self.broker,
            lambda: [(bridge.section.name, bridge.is_connected) for bridge in self._bridges],
            lambda: self.problem,
        )
        try:
            port = await monitoring.start(bind, port)
        except OSError as error:
            raise cannot_listen(f"{bind}:{port}", error) from error
        self._monitoring = monitoring
        self.monitoring_address = f"http://{host_of_url(bind)}:{port}"

    def _start_bridge(self, section: BridgeSection) -> None:
        path = self.config.path
        bridge = Bridge(
            section, self.broker, self.end_turn_soon, self.now, self._tell_bridge, path, cable=self._connect_cable
        )
        self._bridges.append(bridge)
        self._tell_bridge(bridge)
        bridge.start()

    def _connect_cable(self, device: str, protocol: asyncio.Protocol) -> None:
        """To the broker of the board on a serial cable. OSError: it isn't there."""
        for listener in self._listeners:
            if listener.cable is not None and listener.section.device == device:
                listener.cable.connect(protocol)
                return
        raise OSError(f"no listener has the cable {device}")

    async def _stop_bridge(self, bridge: Bridge) -> None:
        self._bridges.remove(bridge)
        await bridge.stop()
        self._tell(bridge, "")

    def _tell_bridge(self, bridge: Bridge) -> None:
        """Its state has changed. Mosquitto's name and values."""
        self._tell(bridge, "1" if bridge.is_connected else "0")

    def _tell(self, bridge: Bridge, state: str) -> None:
        if self.config.sys.interval:
            self._sys_topics.set(f"connection/{bridge.section.name}/state", state, self.now())
            self.end_turn_soon()

    async def reload(self, config: Config) -> None:
        """Take over users, rules, certificates, limits and bridges of *config*; clients that would no longer
        be let in are disconnected. ConfigError: it can't be used, and nothing was changed but certificates."""
        check_access(config)
        self._check_histories(config)
        self._warn_of_what_stays(config)
        sections = [listener.section for listener in self._listeners]
        if [_place(section) for section in config.listener] != [_place(section) for section in sections]:
            log.warning("listeners are added, moved and removed only by a restart")
        else:
            sections = config.listener
        loader = RulesLoader(config, self._loader.hooks)
        rules = [loader.rules_of(section) for section in sections]
        for listener, section in zip(self._listeners, sections, strict=True):
            try:
                listener.reload(section, config)
            except OSError as error:
                raise ConfigError(f"{error.filename}: {error.strerror}") from None
        for listener, its_rules in zip(self._listeners, rules, strict=True):
            listener.door.access.rules.take_over(its_rules)
        self._loader.close_hooks(but=loader.hooks)
        self._loader = loader
        self.broker.set_limits(config.core_limits(), config.session_rules())
        self._set_histories(config)
        self.broker.queues.configure([queue.settings() for queue in config.queue], self.now())
        self._take_over_access(config)
        self._ask_again()
        for bridge in [bridge for bridge in self._bridges if bridge.section not in config.bridge]:
            await self._stop_bridge(bridge)
        running = [bridge.section for bridge in self._bridges]
        for bridge_section in config.bridge:
            if bridge_section not in running:
                self._start_bridge(bridge_section)
        former, self.config = self.config, config
        if config.sys != former.sys:
            self._restart_sys()
        self.end_turn_soon()

    def _warn_of_what_stays(self, config: Config) -> None:
        for text in warnings(config):
            log.warning("%s", text)
        for name in ("store", "http"):
            if getattr(config, name) != getattr(self.config, name):
                log.warning("[%s] has changed: that takes a restart", name)

    def _ask_again(self) -> None:
        """Users, rules and limits have changed: look again at who is connected."""
        for connection in list(self.broker.connections):
            client, session = connection.owner, connection.session
            if not isinstance(client, ClientConnection):
                continue  # a bridge's
            connection.access = None if client.access.is_open else client.access
            connection.set_limits(client.door.limits or self.broker.limits)
            if session is None:
                continue
            if client.access.still_admits(connection.identity):
                self.broker.set_permissions(connection, session)
            else:
                connection.close(ReasonCode.NOT_AUTHORIZED, "no longer let in since the reload")

    async def stop(self) -> None:
        """Tell the clients, write what is unwritten, close."""
        self._phase = "it is stopping"
        goodbye = None if self._announcing is None else self._loop.create_task(self._announcing.stop())
        for listener in self._listeners:
            await listener.close()
        for bridge in self._bridges:
            await bridge.stop()
        self.broker.shut_down()
        self._turns.end()
        await self._connections_have_ended(_STOP_TIMEOUT_S)
        for connection in list(self.broker.connections):
            if isinstance(connection.owner, ClientConnection):
                connection.owner.abort()  # it doesn't read
        await self._connections_have_ended(_ABORT_TIMEOUT_S)
        self._turns.end()
        for listener in self._listeners:
            await listener.stop()
        self._turns.stop()
        if self._sys_timer is not None:
            self._sys_timer.cancel()
        if self._monitoring is not None:
            await self._monitoring.stop()
        if goodbye is not None:
            await asyncio.wait([goodbye], timeout=_ABORT_TIMEOUT_S)
        self._hashing.shutdown(wait=False, cancel_futures=True)
        self._loader.close_hooks()
        if self._writer is not None:
            self._writer.finish()
            await asyncio.to_thread(self._writer.join)
        if self._store is not None:
            self._store.close()

    async def _connections_have_ended(self, timeout_s: float) -> None:
        """Wait for it, or for *timeout_s*."""
        deadline = self._loop.time() + timeout_s
        while self.broker.connections and self._loop.time() < deadline:
            await asyncio.sleep(0.01)

    def now(self) -> float:
        """s since the epoch."""
        return self._turns.now()

    def _take_over_access(self, config: Config) -> None:
        """Of each listener, who may come without a name, and its own limits."""
        self._desk.failed.limit = config.access.max_failed_logins
        for listener in self._listeners:
            section, door = listener.section, listener.door
            door.access.allow_anonymous = allows_anonymous(config, section)
            door.limits = None if section.limits is None else limits_of(config, section)

    def _check_histories(self, config: Config) -> None:
        if config.history and self._store is None:
            raise ConfigError('[[history]] needs a store, and the store is ":memory:"')

    def _set_histories(self, config: Config) -> None:
        if self._store is not None:
            rules = config.history_rules()
            self.broker.replay.set_rules(rules)
            self._store.set_histories(rules)

    def end_turn_soon(self) -> None:
        """Something happened in the core: end the turn once all that is ready now has been handled."""
        self._turns.begin()

    def _update_sys(self) -> None:
        if self.config.sys.interval:
            self._sys_topics.publish(self.now())
            self.end_turn_soon()
            self._sys_timer = self._loop.call_later(self.config.sys.interval, self._update_sys)

    def _restart_sys(self) -> None:
        if self._sys_timer is not None:
            self._sys_timer.cancel()
        if not self.config.sys.interval:
            self._sys_topics.clear(self.now())
        for bridge in self._bridges:
            self._tell_bridge(bridge)
        self._update_sys()

    # -- the store --

    def _wait_for_commit(self, connection: Connection) -> None:
        self._waiting[connection] = None

    def _turn_ended(self) -> None:
        """With a store: write what the turn has changed."""
        assert self._writer is not None
        self._writer.write_soon()

    def _released(self) -> None:
        """A batch is committed, or the store's state has changed: send what rested on it."""
        waiting, self._waiting = self._waiting, {}
        for connection in waiting:
            connection.owner.flush()
            if not connection.is_drained:
                self._waiting[connection] = None
        if self.broker.ready:
            self.end_turn_soon()


def _place(section: Listener) -> dict[str, object]:
    """What of a listener a reload can't change."""
    files = {"certfile", "keyfile", "cafile", "crlfile", "password_file", "acl_file"}
    changeable = files | {"jwt", "auth_hook", "allow_anonymous", "max_connections", "limits"}
    return section.model_dump(exclude=changeable) | {
        "is_tls": section.certfile is not None,
        "has_revocations": section.crlfile is not None,
    }


def _tell_refused(connection: Connection, topic_filter: str, reason: str) -> None:
    log.warning("%s: subscription to %s refused: %s", connection, ascii(topic_filter), reason)


def _tell_loop(topic: str, client_id: str) -> None:
    log.error(
        "a loop: %s comes round by the bridge %s again and again, and the brokers on its way mark nothing; "
        "it is dropped until it has been quiet for some seconds",
        ascii(topic),
        ascii(client_id),
    )
