"""/metrics, /healthz and /readyz over HTTP, read by Python's own client and by Prometheus' own parser."""

import http.client
import os
import resource
import socket
import sys
from pathlib import Path

import paho.mqtt.client as mqtt
import paho.mqtt.publish
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from brokers import BrokerDidNotStart, RunningBroker, start_host
from midge.protocol import packets as p
from midge.protocol.encoder import encode

TIMEOUT_S = 10
MONITORING = r"monitoring on http://127\.0\.0\.1:(\d+)"


@pytest.fixture
def start(until_the_end, tmp_path: Path):
    def run(text: str = "", *options: str | Path) -> RunningBroker:
        config = tmp_path / "midge.toml"
        config.write_text(f"[http]\nport = 0\n{text}")
        return until_the_end.enter_context(start_host("--config", config, *options))

    return run


def get(broker: RunningBroker, path: str, **headers: str) -> tuple[int, str, str]:
    """Status, type and text."""
    port = int(broker.wait_for_output(MONITORING)[1])
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, answer.headers["Content-Type"], text


def samples(broker: RunningBroker) -> dict[tuple[str, ...], float]:
    status, kind, text = get(broker, "/metrics")
    assert status == 200 and kind.startswith("text/plain; version=")
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in parse_text(text)
        for sample in family.samples
    }


def listening_sockets(pid: int) -> int:
    inodes = {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
    rows = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    return sum(1 for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in inodes)


@pytest.mark.skipif(sys.platform != "linux", reason="counts sockets by /proc")
def test_it_is_off_by_default(host_broker: RunningBroker, start) -> None:
    assert listening_sockets(host_broker.pid) == 1
    assert listening_sockets(start().pid) == 2


def test_alive_and_ready(start) -> None:
    broker = start()
    assert get(broker, "/healthz") == (200, "text/plain; charset=utf-8", "ok\n")
    assert get(broker, "/readyz") == (200, "text/plain; charset=utf-8", "ok\n")
    assert get(broker, "/")[0] == 404


@pytest.mark.skipif(sys.platform != "linux", reason="prlimit is Linux' way to fail another process's writes")
def test_it_is_not_ready_while_the_store_does_not_write(start, tmp_path: Path, eventually) -> None:
    broker = start("", "--data", tmp_path)
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="publisher")
    client.connect("127.0.0.1", broker.port)
    client.loop_start()
    client.publish("kept", b"before", 1, retain=True).wait_for_publish(TIMEOUT_S)
    limits = resource.prlimit(broker.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(broker.pid, resource.RLIMIT_FSIZE, (0, limits[1]))

    def after_a_publish() -> tuple[int, str]:
        client.publish("kept", b"during", 1, retain=True)
        status, _, text = get(broker, "/readyz")
        return status, text

    eventually(lambda: after_a_publish()[0] == 503)
    assert "store" in get(broker, "/readyz")[2]
    assert samples(broker)["midge_ready",] == 0
    assert get(broker, "/healthz")[0] == 200
    resource.prlimit(broker.pid, resource.RLIMIT_FSIZE, limits)
    eventually(lambda: after_a_publish() == (200, "ok\n"))
    client.disconnect()
    client.loop_stop()


def test_prometheus_reads_what_was_sent(start) -> None:
    broker = start()
    before = samples(broker)
    messages = [("a", b"12345", 1, True), ("b", b"123", 0, False)]
    paho.mqtt.publish.multiple(messages, "127.0.0.1", broker.port, client_id="publisher")
    after = samples(broker)
    grown = {key: after[key] - before[key] for key in after}
    assert after["midge_ready",] == 1
    assert grown["midge_received_messages_total",] == 2
    assert grown["midge_received_payload_bytes_total",] == 8
    assert grown["midge_accepted_connections_total",] == 1
    assert grown["midge_received_packets_total",] >= 4  # CONNECT, PUBLISH, PUBLISH, DISCONNECT
    assert grown["midge_sent_packets_total",] == 2  # CONNACK, PUBACK
    assert grown["midge_sent_bytes_total",] == 4 + 4
    assert after["midge_retained_messages",] == 1
    assert after["midge_sessions", "connected"] == 0
    assert after["midge_dropped_messages_total", "queue_full"] == 0
    assert after["process_resident_memory_bytes",] > 0
    assert [key for key in after if key[0] == "midge_build_info"]


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_packets_of_a_burst_are_counted_one_by_one(start, qos: int) -> None:
    broker = start()
    burst = b"".join(encode(p.Publish("a", b"12345", qos, packet_id=qos and n), 4) for n in range(1, 101))
    with (
        socket.create_connection(("127.0.0.1", broker.port), TIMEOUT_S) as subscriber,
        socket.create_connection(("127.0.0.1", broker.port), TIMEOUT_S) as publisher,
    ):
        for client, name in ((subscriber, "s"), (publisher, "p")):
            client.sendall(encode(p.Connect(name, True, keep_alive_s=60), 4))
            assert client.recv(4) == b"\x20\x02\x00\x00"
        subscriber.sendall(encode(p.Subscribe(1, [p.Subscription("a", 0)]), 4))
        assert subscriber.recv(5) == b"\x90\x03\x00\x01\x00"
        before = samples(broker)
        publisher.sendall(burst)
        arrived = 0
        while arrived < 100 * 10:
            arrived += len(subscriber.recv(65_536))
        answered = 0
        while answered < 100 * 4 * (qos > 0):
            answered += len(publisher.recv(65_536))
        after = samples(broker)
    grown = {key: after[key] - before[key] for key in after}
    assert grown["midge_received_packets_total",] == grown["midge_received_messages_total",] == 100
    assert grown["midge_sent_messages_total",] == 100
    assert grown["midge_sent_packets_total",] == 100 * (2 if qos else 1)
    assert grown["midge_sent_payload_bytes_total",] == grown["midge_received_payload_bytes_total",] == 500
    assert grown["midge_sent_bytes_total",] == arrived + answered


def test_openmetrics_where_it_is_asked_for(start) -> None:
    status, kind, text = get(start(), "/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert status == 200 and kind.startswith("application/openmetrics-text")
    names = {family.name for family in parse_openmetrics(text)}
    assert {"midge_received_messages", "midge_sessions"} <= names


def test_a_bridge_that_is_down_shows(start) -> None:
    bridge = '[[bridge]]\nname = "hub"\naddress = "mqtt://127.0.0.1:1"\ntopics = [{ filter = "#" }]\n'
    assert samples(start(bridge))["midge_bridge_up", "hub"] == 0


def test_a_port_in_use_is_said(start, tmp_path: Path) -> None:
    broker = start()
    port = broker.wait_for_output(MONITORING)[1]
    (tmp_path / "other.toml").write_text(f"[http]\nport = {port}\n")
    with pytest.raises(BrokerDidNotStart, match=f"can't listen on 127.0.0.1:{port}: another program listens there"):
        start_host("--config", tmp_path / "other.toml")
