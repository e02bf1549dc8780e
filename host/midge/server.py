"""The running broker: listeners, store and bridges around one core, turn by turn.
Knows asyncio and threads; decides nothing about messages.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from pathlib import Path

from midge.access import ListenerAccess, Rules, acl, passwords
from midge.access.attempts import FailedLogins
from midge.access.errors import AccessFileError
from midge.bridge import Bridge
from midge.config import Config, ConfigError
from midge.core.broker import Broker
from midge.core.changes import Batch
from midge.core.connection import Connection
from midge.listeners import tcp
from midge.listeners.connection import ClientConnection
from midge.metrics import SysTopics
from midge.store import Store, StoreError, open_store

log = logging.getLogger("midge.server")

# bytes of payload that may wait for the store before publishers are no longer read from.
_UNWRITTEN_MAX = 16_000_000
# s between two writes with durability "interval": what a crash may cost there.
_INTERVAL_S = 1.0
# s until a write that failed is tried again.
_RETRY_S = 1.0
# s between two updates of $SYS. Mosquitto: 10; ours cost nothing while nobody subscribes to them.
_SYS_INTERVAL_S = 1.0
# s that clients get to read their DISCONNECT when the broker stops.
_STOP_TIMEOUT_S = 1.0
# Threads that hash passwords. A fleet's logins may keep two cores busy, and leave the others to the rest.
_HASHING_THREADS = 2


class Server:
    """One broker process. `start`, then `stop`; both once."""

    def __init__(self, config: Config, directory: Path) -> None:
        """*directory* is where relative paths of the store start. ConfigError: it would listen to the
        network without asking anybody who they are, or a file that it names can't be used."""
        self.config = config
        self.addresses: list[str] = []  # "mqtt://127.0.0.1:1883", one per listener, once started
        _check_access(config)
        self._store: Store | None = open_store(config.store.path, config.store.durability, directory)
        self.broker = Broker(config.core_limits(), is_durable=self._store is not None)
        self._hashing = ThreadPoolExecutor(_HASHING_THREADS, "passwords")
        self._rules = Rules(self._hashing, self.end_turn_soon)
        self._access = ListenerAccess(self._rules, allow_anonymous=False)
        self._load_access(config)
        self._writer = ThreadPoolExecutor(1, "store")
        self._waits = config.store.durability == "commit"
        if not self._waits:
            self.broker.committed(sys.maxsize)  # nothing is ever held back
        self._writing: asyncio.Task[None] | None = None
        self._waiting: list[Connection] = []  # with output that rests on a commit
        self._held: list[Connection] = []  # that are not read from until the store has caught up
        self._is_turn_scheduled = False
        self._timer: asyncio.TimerHandle | None = None
        self._listeners: list[asyncio.Server] = []
        self._bridges: list[Bridge] = []
        self._sys_topics = SysTopics(self.broker)

    async def start(self) -> None:
        """Load the store, then listen. StoreError, OSError: one of them can't be had."""
        self._loop = asyncio.get_running_loop()
        # Seconds since the epoch that never jump back: wall clock at the start, monotonic from there.
        self._epoch = time.time() - self._loop.time()
        if self._store is not None:
            self.broker.restore(self._store.load(), self.now())
        for listener in self.config.listener:
            try:
                server, port = await tcp.listen(listener.bind, listener.port, self._protocol)
            except OSError as error:
                raise OSError(
                    f"can't listen on {listener.bind}:{listener.port}: {error.strerror or error}"
                ) from error
            self._listeners.append(server)
            host = f"[{listener.bind}]" if ":" in listener.bind else listener.bind
            self.addresses.append(f"mqtt://{host}:{port}")
        for section in self.config.bridge:
            bridge = Bridge(section, self.broker, self.end_turn_soon, self.now)
            self._bridges.append(bridge)
            bridge.start()
        self._update_sys()

    async def stop(self) -> None:
        """Tell the clients, write what is unwritten, close."""
        for listener in self._listeners:
            listener.close()
        for bridge in self._bridges:
            await bridge.stop()
        self.broker.shut_down()
        self._end_turn()
        deadline = self._loop.time() + _STOP_TIMEOUT_S
        while self.broker.connections and self._loop.time() < deadline:
            await asyncio.sleep(0.01)
        while self._writing is not None:
            await self._writing
        self._end_turn()
        while self._writing is not None:
            await self._writing
        for handle in (self._timer, self._sys_timer):
            if handle is not None:
                handle.cancel()
        self._writer.shutdown()
        self._hashing.shutdown(cancel_futures=True)
        if self._store is not None:
            self._store.close()

    def now(self) -> float:
        """s since the epoch."""
        return self._loop.time() + self._epoch

    def _protocol(self) -> ClientConnection:
        return ClientConnection(self.broker, self.end_turn_soon, self.now, self._access)

    def _load_access(self, config: Config) -> None:
        """Take over users and rules. ConfigError, and nothing changed: a file can't be used."""
        section = config.access
        try:
            users = passwords.load(config.path(section.password_file)) if section.password_file else None
            rules = acl.load(config.path(section.acl_file)) if section.acl_file else None
        except AccessFileError as error:
            raise ConfigError(str(error)) from None
        self._rules.users, self._rules.acl = users, rules
        self._rules.failed = FailedLogins(section.max_failed_logins)
        allow = section.allow_anonymous
        self._access.allow_anonymous = users is None if allow is None else allow

    # -- turns --

    def end_turn_soon(self) -> None:
        """Something happened in the core: end the turn once all that is ready now has been handled."""
        if not self._is_turn_scheduled:
            self._is_turn_scheduled = True
            self._loop.call_soon(self._end_turn)

    def _end_turn(self) -> None:
        self._is_turn_scheduled = False
        for connection in self.broker.end_turn():
            connection.owner.flush()
            if not connection.is_drained:
                self._waiting.append(connection)
        if self._store is not None:
            self._write_soon()
        self._set_timer()

    def _set_timer(self) -> None:
        due = self.broker.next_deadline()
        if due is None:
            return
        at = due - self._epoch
        if self._timer is not None:
            if self._timer.when() <= at and not self._timer.cancelled():
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(at, self._run_timers)

    def _run_timers(self) -> None:
        self._timer = None
        self.broker.run_timers(self.now())
        self._end_turn()

    def _update_sys(self) -> None:
        self._sys_topics.publish(self.now())
        self.end_turn_soon()
        self._sys_timer = self._loop.call_later(_SYS_INTERVAL_S, self._update_sys)

    # -- the store --

    def _write_soon(self) -> None:
        changes = self.broker.changes
        if changes is not None and changes.pending_bytes > _UNWRITTEN_MAX:
            for connection in self._waiting:
                connection.owner.hold_reading(True)
                self._held.append(connection)
        if self._writing is None:
            batch = self.broker.take_batch()
            if batch is not None:
                self._writing = self._loop.create_task(self._write(batch))

    async def _write(self, batch: Batch) -> None:
        """Write *batch* in the writer's thread, then release what rested on it."""
        assert self._store is not None
        while batch:
            try:
                await self._loop.run_in_executor(self._writer, self._store.write, batch)
                break
            except StoreError as error:
                # Nothing of it is acknowledged; the clients wait, and publishers are held (see above).
                log.error("%s; trying again in %s s", error, _RETRY_S)
                await asyncio.sleep(_RETRY_S)
        if self._waits:
            self.broker.committed(batch.number)
        elif self.config.store.durability == "interval":
            await asyncio.sleep(_INTERVAL_S)
        self._writing = None
        waiting, self._waiting = self._waiting, []
        held, self._held = self._held, []
        for connection in waiting:
            connection.owner.flush()
            if not connection.is_drained:
                self._waiting.append(connection)
        for connection in held:
            connection.owner.hold_reading(False)
        self._write_soon()


def _check_access(config: Config) -> None:
    if config.access.allow_anonymous is not None or config.access.password_file is not None:
        return
    for listener in config.listener:
        if not _is_loopback(listener.bind):
            raise ConfigError(
                f"refusing to listen on {listener.bind}, which other machines can reach, without "
                "authentication: set access.password_file, or pass --allow-anonymous (or set "
                "access.allow_anonymous = true) if anybody on that network may publish and subscribe, or "
                "bind 127.0.0.1"
            )


def _is_loopback(bind: str) -> bool:
    if bind == "localhost":
        return True
    try:
        return ip_address(bind).is_loopback
    except ValueError:
        return False
