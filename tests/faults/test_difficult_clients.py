"""Clients that read slowly, or not at all, or never acknowledge, or write a byte a second, or are simply many.

The broker's memory stays under a bound, and a pair of well-behaved clients beside them keeps its latency.
Bounds are far above the noise of a busy machine: what they exclude is growth without end, and a loop that stands.
"""

from __future__ import annotations

import contextlib
import resource
import select
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from brokers import RunningBroker, start_host
from midge.protocol import packets as p
from midge.protocol.encoder import encode

from .peers import Disconnected, Peer, Publisher, Subscriber

MB = 1_000_000
# s that a message may take from one well-behaved client to another while others misbehave: the worst of hundreds.
# Undisturbed it is under a millisecond.
LATENCY_MAX_S = 3.0


@pytest.fixture
def host(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[RunningBroker]:
    """The broker with a store; `@pytest.mark.parametrize("host", [LIMITS], indirect=True)` sets its limits."""
    config = tmp_path / "midge.toml"
    config.write_text("sys.interval = 1\n[limits]\n" + getattr(request, "param", ""))
    with start_host("--config", config, "--data", tmp_path, "--log-level", "warning") as broker:
        yield broker


def memory(broker: RunningBroker, field: str = "VmRSS") -> int:
    """bytes; "VmHWM": the most that it ever was."""
    for line in Path(f"/proc/{broker.pid}/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"no {field} of {broker.pid}")


class PingPong:
    """Two well-behaved clients, one message at a time, in a thread of its own; `slowest_s` when it has ended."""

    def __init__(self, broker: RunningBroker, qos: int = 1) -> None:
        self._sender, self._receiver = Peer("ping"), Peer("pong")
        self._qos = qos
        self._stop = threading.Event()
        self._error: Exception | None = None
        self.times_s: list[float] = []
        for peer in (self._sender, self._receiver):
            peer.connect(broker.port, clean_start=True)  # nothing of theirs has to wait for the disk
        self._receiver.send(p.Subscribe(1, [p.Subscription("ping/pong", qos)]))
        assert isinstance(self._receiver.receive(10), p.Suback)
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> PingPong:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        for peer in (self._sender, self._receiver):
            peer.close()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                start = time.monotonic()
                self._sender.send(p.Publish("ping/pong", b"x", self._qos, packet_id=1))
                message = self._receiver.receive(30)
                assert isinstance(message, p.Publish), message
                self._receiver.send(p.Puback(message.packet_id))
                assert isinstance(self._sender.receive(30), p.Puback)
                self.times_s.append(time.monotonic() - start)
                time.sleep(0.01)
        except (Disconnected, AssertionError) as error:
            self._error = error

    def check(self) -> None:
        print(f"{len(self.times_s)} messages, the slowest took {max(self.times_s):.3f} s")
        assert max(self.times_s) < LATENCY_MAX_S, f"{max(self.times_s):.2f} s, of {len(self.times_s)} messages"


def subscribed(broker: RunningBroker, name: str, topic_filter: str, qos: int) -> Peer:
    peer = Peer(name)
    peer.connect(broker.port, clean_start=True)
    peer.send(p.Subscribe(1, [p.Subscription(topic_filter, qos)]))
    assert isinstance(peer.receive(10), p.Suback)
    return peer


def flood(broker: RunningBroker, topic: str, qos: int, payload: bytes, count: int) -> None:
    """Publish *count* messages as fast as they are taken, without waiting for their acknowledgements in between,
    until all are acknowledged."""
    peer = Peer("flood")
    peer.connect(broker.port)
    assert peer.socket is not None
    sock = peer.socket
    sock.setblocking(False)
    packets = [encode(p.Publish(topic, payload, qos, packet_id=i % 65_535 + 1), 4) for i in range(min(count, 65_535))]
    waiting, at, acknowledged = b"", 0, 0
    deadline = time.monotonic() + 50
    while acknowledged < count if qos else at < count or waiting:
        assert time.monotonic() < deadline, f"{at} published, {acknowledged} acknowledged"
        if len(waiting) < 65_536 and at < count:
            more = packets[at % 65_535 : at % 65_535 + 64]
            at += len(more)
            waiting += b"".join(more)
        readable, writable, _ = select.select([sock], [sock] if waiting else [], [], 1)
        if writable:
            with contextlib.suppress(BlockingIOError):
                waiting = waiting[sock.send(waiting) :]
        if readable:
            data = sock.recv(65_536)
            assert data, "closed by the broker"
            acknowledged += len(data) // 4  # PUBACKs of four bytes each; a split one counts with the next
    if not qos:
        sock.setblocking(True)
        peer.send(p.Pingreq())
        assert isinstance(peer.receive(30), p.Pingresp)
    peer.close()


def test_a_reader_that_stops_costs_the_broker_a_bounded_queue_and_others_nothing(host: RunningBroker) -> None:
    slow = [subscribed(host, f"slow{i}", "flood", qos) for i, qos in enumerate((0, 0, 1, 2))]
    before = memory(host)
    with PingPong(host) as pair:
        flood(host, "flood", 1, bytes(20_000), 15_000)
    pair.check()
    # 300 MB went through. Each reader at QoS 0 may hold 8 MB (max_output_bytes), and the last 1000 messages wait
    # for the two others (max_queued_messages), kept once, but as they came and as they will be sent.
    grown = memory(host, "VmHWM") - before
    print(f"grown by {grown:,} bytes")
    assert grown < 120 * MB, f"grown by {grown:,} bytes"
    # They read on, and are still served.
    for peer in slow:
        message = peer.receive(30)
        assert isinstance(message, p.Publish) and message.topic == "flood"
        peer.close()


def test_a_subscriber_that_never_acknowledges_gets_one_window_and_holds_one_queue(host: RunningBroker) -> None:
    reader = subscribed(host, "never", "flood", 1)
    before = memory(host)
    with PingPong(host) as pair:
        flood(host, "flood", 1, bytes(4000), 20_000)
    pair.check()
    grown = memory(host, "VmHWM") - before
    print(f"grown by {grown:,} bytes")
    assert grown < 40 * MB, f"grown by {grown:,} bytes"  # of the 80 MB that came
    received = []
    while (message := reader.receive(0.5)) is not None:
        received.append(message.packet_id)
    assert received == list(range(1, 21))  # max_inflight_messages
    watcher = subscribed(host, "watch", "$SYS/broker/publish/messages/dropped", 0)
    expected = 20_000 - 20 - 1000
    counted = 0
    while counted < expected:  # published once a second, in change; the first is from during the flood
        counted = int(watcher.receive(30).payload)
    assert counted == expected


@pytest.mark.parametrize(
    "host", ["max_queued_messages = 1_000_000\nmax_queued_bytes = 1_000_000_000\n"
             "max_message_memory = 20_000_000\n"], indirect=True,
)  # fmt: skip
def test_a_publisher_faster_than_the_disk_is_slowed_down_and_loses_nothing(host: RunningBroker) -> None:
    away = Subscriber("away", "flood", 1)
    away.resume(host.port)
    away.close()
    before = memory(host)
    payload_size, count = 100_000, 2500
    with PingPong(host) as pair:
        flood(host, "flood", 1, b"7".ljust(payload_size), count)
    pair.check()
    # 250 MB are on the disk; in memory: what waits to be written (16 MB and what is being written), the budget
    # for queues, and what SQLite and the allocator keep.
    grown = memory(host, "VmHWM") - before
    print(f"grown by {grown:,} bytes")
    assert grown < 200 * MB, f"grown by {grown:,} bytes"
    assert away.resume(host.port)
    while len(away.numbers) < count:
        assert away.step(timeout_s=30), f"{len(away.numbers)} of {count} came back"
    away.close()


@pytest.mark.parametrize(
    "host", ["max_connections_per_address = 10_000\nmax_connections = 10_000\n"], indirect=True
)
def test_five_thousand_idle_connections_take_little_memory_and_no_time(host: RunningBroker) -> None:
    count = 5000
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < count + 500:
        pytest.skip(f"only {hard} file descriptors are allowed here: ulimit -Hn {count + 500} allows enough")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, count + 500), hard))
    before = memory(host)
    connections = []
    try:
        with PingPong(host) as pair:
            for start in range(0, count, 250):
                batch = [socket.create_connection((host.host, host.port), 30) for _ in range(250)]
                connections += batch
                for i, sock in enumerate(batch):
                    sock.sendall(encode(p.Connect(f"idle{start + i}", True, 3600), 4))
                for sock in batch:
                    assert sock.recv(4) == b"\x20\x02\x00\x00"
            per_connection = (memory(host) - before) / count
            for sock in connections[::50]:  # they are all there
                sock.sendall(b"\xc0\x00")
            for sock in connections[::50]:
                assert sock.recv(2) == b"\xd0\x00"
        pair.check()
        assert per_connection < 16_000, f"{per_connection:,.0f} bytes for each idle connection"
    finally:
        for sock in connections:
            sock.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("host", ["connect_timeout = 2\n"], indirect=True)
def test_who_sends_no_connect_or_a_byte_of_it_a_second_is_closed_in_time(host: RunningBroker) -> None:
    connect = encode(p.Connect("slow", True, 60), 4)
    silent = [socket.create_connection((host.host, host.port), 30) for _ in range(20)]
    dripping = [socket.create_connection((host.host, host.port), 30) for _ in range(20)]
    sent, start = 0, time.monotonic()
    with PingPong(host) as pair:
        while time.monotonic() - start < 1.5:
            for sock in dripping:
                sock.sendall(connect[sent : sent + 1])
            sent += 1
            time.sleep(0.5)
        for sock in (*silent, *dripping):
            assert sock.recv(1) == b""  # closed, without an answer
            sock.close()
        took = time.monotonic() - start
    pair.check()
    assert sent < len(connect)
    assert 1.9 < took < 2 + LATENCY_MAX_S


def test_a_byte_a_second_of_a_publish_holds_nobody_up_and_completes(host: RunningBroker) -> None:
    watcher = subscribed(host, "watcher", "slow", 0)
    slow = [Peer(f"slow{i}") for i in range(20)]
    for peer in slow:
        peer.connect(host.port)
    packet = encode(p.Publish("slow", b"."), 4)
    with PingPong(host) as pair:
        for at in range(len(packet)):
            for peer in slow:
                assert peer.socket is not None
                peer.socket.sendall(packet[at : at + 1])
            time.sleep(0.2)
        for _ in slow:
            assert isinstance(watcher.receive(30), p.Publish)
    pair.check()
    for peer in (watcher, *slow):
        peer.close()


def test_a_half_open_connection_ends_with_its_keep_alive_and_its_will_is_published(host: RunningBroker) -> None:
    watcher = subscribed(host, "watcher", "gone", 0)
    half_open = Peer("half")
    half_open.socket = socket.create_connection((host.host, host.port), 30)
    will = p.Will("gone", b"half", 0, False)
    start = time.monotonic()
    half_open.socket.sendall(encode(p.Connect("half", True, 1, will=will), 4))
    assert half_open.socket.recv(4) == b"\x20\x02\x00\x00"
    message = watcher.receive(30)
    took = time.monotonic() - start
    assert isinstance(message, p.Publish) and message.payload == b"half"
    assert 1.4 < took < 1.5 + LATENCY_MAX_S
    for peer in (watcher, half_open):
        peer.close()


def test_many_that_leave_without_a_word_leave_nothing_behind(host: RunningBroker) -> None:
    """Connections that are reset at any stage: the memory after the second thousand is that after the first."""
    grown = []
    for _ in range(3):
        for i in range(400):
            sock = socket.create_connection((host.host, host.port), 30)
            data = encode(p.Connect(f"brief{i}", True, 60), 4) + encode(
                p.Subscribe(1, [p.Subscription(f"brief/{i}", 1)]), 4
            )
            sock.sendall(data[: len(data) * (i % 5) // 4])
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")  # RST
            sock.close()
        Publisher("between", "x", 1).connect(host.port)  # all before it is handled
        grown.append(memory(host))
    assert grown[2] - grown[1] < 4 * MB, grown
