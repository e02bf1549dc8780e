"""A backlog and retained messages far beyond the memory budget don't need that much memory, nor does a restart."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from brokers import start_host
from midge.protocol import packets as p
from midge.protocol.encoder import encode

from .peers import Peer, Publisher, Subscriber

BUDGET = 4_000_000  # bytes
# What may come on top of the budget: SQLite's caches, batches that are filled, written and settled, routes, the
# allocator's holes.
EXTRA = 60_000_000


def rss(pid: int) -> int:
    """bytes"""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def configured(tmp_path: Path) -> tuple[str, ...]:
    config = tmp_path / "midge.toml"
    config.write_text(
        f"[limits]\nmax_message_memory = {BUDGET}\nmax_queued_messages = 1_000_000\n"
        "max_queued_bytes = 1_000_000_000\n"
    )
    return ("--config", str(config), "--data", str(tmp_path), "--log-level", "warning")


class Padded(Publisher):
    """Its payloads are of 4 kB."""

    def _publish(self, packet_id: int, number: int, dup: bool = False) -> p.Publish:
        return p.Publish(self.topic, b"%08d" % number + bytes(4000), self.qos, dup=dup, packet_id=packet_id)


@pytest.mark.timeout(120)
def test_a_backlog_of_15_times_the_budget_is_kept_on_disk_and_delivered(tmp_path: Path) -> None:
    arguments = configured(tmp_path)
    subscriber, publisher = Subscriber("subscriber", "numbers", 1), Padded("publisher", "numbers", 1, window=100)
    with start_host(*arguments) as broker:
        subscriber.resume(broker.port)
        subscriber.close()
        publisher.resume(broker.port)
        while publisher.next_number < 1000:
            publisher.step()
        before = rss(broker.pid)
        while publisher.next_number < 15_000:
            publisher.step()
        publisher.finish()
        queued = rss(broker.pid)
        broker.kill()
    with start_host(*arguments) as broker:
        restarted = rss(broker.pid)
        assert subscriber.resume(broker.port)
        while len(subscriber.numbers) < 15_000:
            assert subscriber.step(timeout_s=10)
        delivered = rss(broker.pid)
    print(f"RSS in MB: {before / 1e6:.0f} before, {queued / 1e6:.0f} with 60 MB queued, {restarted / 1e6:.0f} "
          f"restarted, {delivered / 1e6:.0f} delivered")  # fmt: skip
    assert subscriber.numbers == list(range(15_000))
    assert max(queued, restarted, delivered) - before < BUDGET + EXTRA // 2


@pytest.mark.timeout(120)
def test_retained_messages_beyond_the_budget_are_kept_on_disk_and_found(tmp_path: Path) -> None:
    arguments = configured(tmp_path)
    count = 8_000  # of 16 kB: 128 MB
    with start_host(*arguments) as broker:
        peer = Peer("publisher")
        peer.connect(broker.port)
        before = rss(broker.pid)
        for at in range(0, count, 100):
            publishes = [
                encode(p.Publish(f"home/{i % 100}/{i}/t", b"%016000d" % i, 0, retain=True), 4)
                for i in range(at, at + 100)
            ]
            assert peer.socket is not None
            peer.socket.sendall(b"".join(publishes))
            peer.send(p.Pingreq())
            assert isinstance(peer.receive(10), p.Pingresp)
        published = rss(broker.pid)
        peer.close()
        broker.stop()
    with start_host(*arguments) as broker:
        restarted = rss(broker.pid)
        peer.connect(broker.port)
        peer.send(p.Subscribe(1, [p.Subscription("home/7/#", 0)]))
        found = [peer.receive(10) for _ in range(1 + count // 100)][1:]
        peer.send(p.Subscribe(2, [p.Subscription("home/#", 0)]))
        peer.receive(10)
        everything = set()
        while len(everything) < count:
            packet = peer.receive(10)
            assert packet is not None, f"only {len(everything)} came"
            everything.add(packet.topic)
        read = rss(broker.pid)
    print(f"RSS in MB: {before / 1e6:.0f} before, {published / 1e6:.0f} with {count} retained, "
          f"{restarted / 1e6:.0f} restarted, {read / 1e6:.0f} after reading all")  # fmt: skip
    assert {packet.payload for packet in found} == {b"%016000d" % i for i in range(7, count, 100)}
    assert max(published, restarted, read) - before < BUDGET + EXTRA
