"""Drives the sans-IO core in tests: a client whose packets go straight in and whose output is decoded.
Knows no socket and no clock; the test moves the time.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

from midge.core.access import Access
from midge.core.broker import Broker
from midge.core.changes import Batch
from midge.core.durable_queue import QueueSettings
from midge.core.limits import Limits
from midge.core.restore import restore
from midge.protocol import packets as p
from midge.protocol.decoder import Decoder
from midge.protocol.encoder import encode
from midge.store.memory import MemoryStore


class Core:
    """A broker, its time (s), and a store that keeps what it is told to."""

    def __init__(
        self,
        is_durable: bool = False,
        store: MemoryStore | None = None,
        access: Access | None = None,
        now: float = 1_000_000.0,
        queues: Iterable[QueueSettings] = (),
        **limits: Any,
    ) -> None:
        self.now = now
        self.broker = Broker(Limits(**limits), access, is_durable)
        self.written: list[Batch] = []
        self._failed: Batch | None = None  # what can't be written
        if is_durable:
            self.store = store or MemoryStore()
            restore(self.broker, self.store.load(), self.store.reader, self.now)
        self.queues = list(queues)
        if self.queues:
            self.broker.queues.configure(self.queues, self.now)

    def client(self, client_id: str = "", version: int = 4, connect: bool = True, **fields: Any) -> Client:
        client = Client(self, version)
        if connect:
            client.send(connect_packet(client_id, version, **fields))
        return client

    def advance(self, seconds: float) -> None:
        """Let time pass, from deadline to deadline."""
        end = self.now + seconds
        while (due := self.broker.next_deadline()) is not None and due <= end:
            self.now = max(self.now, due)
            self.broker.run_timers(self.now)
            self.turn()
        self.now = end

    def turn(self, commit: bool = True) -> None:
        """End the turn; *commit* False leaves what was changed unwritten, as a store that is busy does."""
        # A connection that ends may give others something to send (its will).
        while self.broker.ready or self.broker.replay.due:
            for connection in self.broker.end_turn():
                connection.owner.flush()
        if self._failed is not None:
            return
        if commit:
            while (batch := self.broker.take_batch()) is not None:
                self.written.append(batch)
                settled = self.store.write(batch)
                self.broker.committed(batch.number)
                self.broker.settled(settled)
                for connection in list(self.broker.connections):
                    connection.owner.flush()

    def fail_store(self) -> None:
        """The batch that is due can't be written; what is due after it waits."""
        batch = self.broker.take_batch()
        assert batch is not None and self._failed is None, "nothing is to be written"
        self._failed = batch
        self.broker.pressure.store_failed()
        self.turn()

    def recover_store(self) -> None:
        batch, self._failed = self._failed, None
        assert batch is not None
        self.written.append(batch)
        self.store.write(batch)
        self.broker.pressure.store_recovered()
        self.broker.committed(batch.number)
        self.turn()
        self.advance(0)

    def restarted(self, **limits: Any) -> Core:
        """A new core on what was written, as after a crash."""
        again = Core(True, copy.deepcopy(self.store), now=self.now, queues=self.queues, **limits)
        return again


class Client:
    """One connection; `received` are the packets that it was sent, in order."""

    def __init__(self, core: Core, version: int) -> None:
        self.core = core
        self.version = version
        self.received: list[Any] = []
        self.is_open = True
        self.is_held = False  # the core asked not to be handed more for now
        self.connection = core.broker.open("test", self, core.now)
        self._decoder = Decoder("client", version)

    def send(self, *sent: p.Packet, commit: bool = True) -> None:
        for packet in sent:
            self.send_bytes(encode(packet, self.version), commit)

    def send_bytes(self, data: bytes, commit: bool = True) -> None:
        self.connection.receive_data(data, self.core.now)
        self.core.turn(commit)

    def lose(self) -> None:
        """The link breaks, without DISCONNECT."""
        self.is_open = False
        self.connection.lost(self.core.now)
        self.core.turn()

    def flush(self) -> None:
        if self.connection.is_paused:
            return
        data = b"".join(self.connection.data_to_send())
        self.received += self._decoder.receive_data(data)
        assert self._decoder.error is None, self._decoder.error
        if self.connection.is_closing and self.connection.is_drained and self.is_open:
            self.is_open = False
            self.connection.lost(self.core.now)

    def hold_reading(self, hold: bool) -> None:
        self.is_held = hold

    def take(self, kind: type | None = None) -> list[Any]:
        """What was received since the last call, of one class if *kind* is given."""
        taken, self.received = self.received, []
        return [packet for packet in taken if kind is None or type(packet) is kind]

    def subscribe(self, topic_filter: str, qos: int = 0, properties: Any = None, **options: Any) -> int:
        """Subscribe; the code granted."""
        fields = {"no_local": False, "retain_as_published": False, "retain_handling": 0} | options
        self.send(p.Subscribe(1, [p.Subscription(topic_filter, qos, **fields)], properties))
        (suback,) = [packet for packet in self.received if type(packet) is p.Suback]
        self.received.remove(suback)
        return int(suback.reason_codes[0])

    def publish(
        self,
        topic: str,
        payload: bytes = b"",
        qos: int = 0,
        packet_id: int = 1,
        commit: bool = True,
        **fields: Any,
    ) -> None:
        self.send(publish_packet(topic, payload, qos, packet_id, **fields), commit=commit)


def connect_packet(client_id: str, version: int = 4, **fields: Any) -> p.Connect:
    defaults: dict[str, Any] = {
        "clean_start": True,
        "keep_alive_s": 0,
        "level": version,
        "is_bridge": False,
        "will": None,
        "username": None,
        "password": None,
        "properties": {},
    }
    return p.Connect(client_id=client_id, **(defaults | fields))


def publish_packet(
    topic: str, payload: bytes = b"", qos: int = 0, packet_id: int = 1, **fields: Any
) -> p.Publish:
    values: dict[str, Any] = {"retain": False, "dup": False, "properties": None} | fields
    return p.Publish(
        topic=topic,
        payload=payload,
        qos=qos,
        packet_id=packet_id if qos else 0,
        wire=b"",
        packet_id_at=0,
        **values,
    )
