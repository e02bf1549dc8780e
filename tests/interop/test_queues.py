"""Durable queues ($queue/NAME) with clients that know nothing of them: Mosquitto's tools and Paho."""

import re
import signal
import subprocess
import urllib.request
from pathlib import Path

import paho.mqtt.client as mqtt

from brokers import needs_mosquitto, start_host
from paho_peer import Paho, properties

DEADLINE_S = 20


def mosquitto(tool: str, port: int, *args: str, **options) -> subprocess.Popen[str]:
    return subprocess.Popen([f"mosquitto_{tool}", "-p", str(port), *args], text=True, **options)


@needs_mosquitto
def test_mosquitto_s_tools_produce_and_consume(tmp_path: Path) -> None:
    jobs = [f"job {number}" for number in range(20)]
    with start_host("--data", tmp_path) as broker:
        producer = mosquitto("pub", broker.port, "-t", "$queue/jobs", "-q", "1", "-l", stdin=subprocess.PIPE)
        producer.communicate("\n".join(jobs[:15]), timeout=DEADLINE_S)
        assert producer.returncode == 0
        broker.kill()
    with start_host("--data", tmp_path) as broker:
        for version, qos in (("mqttv311", "1"), ("mqttv5", "2")):
            command = ("-t", "$queue/jobs", "-q", qos, "-C", "5", "-V", version)
            consumer = mosquitto("sub", broker.port, *command, stdout=subprocess.PIPE)
            assert consumer.communicate(timeout=DEADLINE_S)[0].splitlines() == jobs[:5]
            del jobs[:5]
        refused = mosquitto("sub", broker.port, "-t", "$queue/jobs", "-q", "0", stderr=subprocess.PIPE)
        assert "denied" in refused.communicate(timeout=DEADLINE_S)[1]
        # Two share: the one that is given up after a job leaves the rest to the other.
        first = mosquitto("sub", broker.port, "-t", "$queue/jobs", "-q", "1", "-C", "1", stdout=subprocess.PIPE)
        assert first.communicate(timeout=DEADLINE_S)[0].splitlines() == jobs[:1]
        del jobs[:1]
        rest = mosquitto("sub", broker.port, "-t", "$queue/jobs", "-q", "1", "-C", "9", stdout=subprocess.PIPE)
        pub = mosquitto("pub", broker.port, "-t", "$queue/jobs", "-q", "2", "-l", stdin=subprocess.PIPE)
        pub.communicate("\n".join(jobs[4:]), timeout=DEADLINE_S)
        assert rest.communicate(timeout=DEADLINE_S)[0].splitlines() == jobs


def test_a_full_queue_pushes_back(tmp_path: Path) -> None:
    config = tmp_path / "midge.toml"
    config.write_text('[[queue]]\nname = "small"\nmax_messages = 2\n')
    with start_host("--config", config) as broker:
        new, old = Paho(broker.port, version=mqtt.MQTTv5), Paho(broker.port)
        reasons: list[int] = []
        new.client.on_publish = lambda _client, _data, _id, reason, _properties: reasons.append(reason.value)
        for number in range(3):
            new.publish("$queue/small", str(number), 1)
        assert reasons == [0, 0, 0x97]
        waiting = [old.client.publish("$queue/small", text, 1) for text in ("3", "4")]
        old.publish("elsewhere", b"")  # written behind them
        old.client.subscribe("marker")
        consumer = Paho(broker.port)
        assert not any(each.is_published() for each in waiting)
        consumer.subscribe("$queue/small", qos=1)
        assert [consumer.receive().payload for _ in range(4)] == [b"0", b"1", b"3", b"4"]
        for each in waiting:
            each.wait_for_publish(DEADLINE_S)
            assert each.is_published()
        for client in (new, old, consumer):
            client.disconnect()


def test_who_sits_on_a_message_is_disconnected_and_another_gets_it(tmp_path: Path) -> None:
    config = tmp_path / "midge.toml"
    config.write_text('[[queue]]\nname = "jobs"\nack_timeout = 1\n')
    with start_host("--config", config) as broker:
        idle = Paho(broker.port, "idle", version=mqtt.MQTTv5)
        idle.client.manual_ack_set(True)
        idle.subscribe("$queue/jobs", qos=1)
        idle.publish("$queue/jobs", b"1", 1)
        assert not idle.receive().dup
        other = Paho(broker.port)
        other.subscribe("$queue/jobs", qos=1)
        again = other.receive()
        assert (again.payload, again.dup) == (b"1", True)
        assert idle.lost.wait(DEADLINE_S)
        assert idle.lost_reason == 0x98  # administrative action
        broker.wait_for_output(r"idle.*acknowledged nothing of \$queue/jobs for 1 s")
        other.disconnect()


def test_the_queue_is_seen_under_sys_and_in_the_metrics(tmp_path: Path) -> None:
    config = tmp_path / "midge.toml"
    config.write_text('[[queue]]\nname = "jobs"\nmax_deliveries = 2\n[http]\nport = 0\n[sys]\ninterval = 1\n')
    with start_host("--config", config) as broker:
        http = broker.wait_for_output(r"http://127\.0\.0\.1:(\d+)")[1]
        producer = Paho(broker.port, version=mqtt.MQTTv5)
        for number in range(3):
            producer.publish("$queue/jobs", str(number), 1)
        for _ in range(2):
            consumer = Paho(broker.port, version=mqtt.MQTTv5)
            consumer.client.manual_ack_set(True)
            consumer.subscribe("$queue/jobs", qos=1)
            message = consumer.receive()
            assert message.payload == b"0"
            consumer.cut()
        assert message.properties.UserProperty == [("midge-deliveries", "2")]
        watcher = Paho(broker.port, version=mqtt.MQTTv5)
        watcher.subscribe("$queue/jobs.dead", qos=1)
        letter = watcher.receive()
        assert letter.payload == b"0"
        assert dict(letter.properties.UserProperty)["midge-dead-letter-queue"] == "jobs"
        wanted = {
            'midge_queue_messages{queue="jobs"}': 2,
            'midge_queue_waiting_messages{queue="jobs"}': 2,
            'midge_queue_consumers{queue="jobs.dead"}': 1,
            'midge_queue_redelivered_total{queue="jobs"}': 1,
            'midge_queue_dead_lettered_total{queue="jobs"}': 1,
        }
        with urllib.request.urlopen(f"http://127.0.0.1:{http}/metrics") as answer:
            lines = dict(line.rsplit(" ", 1) for line in answer.read().decode().splitlines() if line[0] != "#")
        assert {name: float(lines[name]) for name in wanted} == wanted
        watcher.subscribe("$SYS/broker/queues/jobs/#")
        told = {}
        while (told.get("redelivered"), told.get("dead lettered"), told.get("messages/count")) != ("1", "1", "2"):
            message = watcher.receive()
            told[re.sub(".*/jobs/", "", message.topic)] = message.payload.decode()
        for client in (producer, watcher):
            client.disconnect()


def test_a_reload_takes_over_queues_and_leaves_what_is_in_them(tmp_path: Path) -> None:
    config = tmp_path / "midge.toml"
    config.write_text('[[queue]]\nname = "jobs"\nfilter = "jobs/#"\nmax_messages = 2\n')
    with start_host("--config", config) as broker:
        client = Paho(broker.port, version=mqtt.MQTTv5)
        reasons: list[int] = []
        client.client.on_publish = lambda _client, _data, _id, reason, _properties: reasons.append(reason.value)
        for _ in range(3):
            client.publish("jobs/1", b"1", 1)
        config.write_text('[[queue]]\nname = "jobs"\nfilter = "work/#"\nprefetch = 3\n')
        broker.process.send_signal(signal.SIGHUP)
        broker.wait_for_output("configuration reloaded")
        client.publish("jobs/1", b"2", 1)
        client.publish("work/1", b"3", 1)
        assert reasons == [0, 0, 0x97, 0x10, 0]
        client.client.manual_ack_set(True)
        client.subscribe("$queue/jobs", qos=1)
        assert [client.receive().payload for _ in range(3)] == [b"1", b"1", b"3"]
        client.disconnect()


def test_rules_hold_for_queues_as_for_other_topics(tmp_path: Path) -> None:
    (tmp_path / "acl").write_text(
        "topic readwrite $queue/open\ntopic write $queue/letterbox\ntopic read $queue/results\n"
    )
    config = tmp_path / "midge.toml"
    config.write_text('[access]\nallow_anonymous = true\nacl_file = "acl"\n')
    with start_host("--config", config) as broker:
        client = Paho(broker.port, version=mqtt.MQTTv5)
        reasons: list[int] = []
        client.client.on_publish = lambda _client, _data, _id, reason, _properties: reasons.append(reason.value)
        for name in ("open", "letterbox", "results"):
            client.publish(f"$queue/{name}", b"1", 1)
        assert reasons == [0, 0, 0x87]
        assert [client.subscribe(f"$queue/{name}", qos=1) for name in ("open", "letterbox", "results")] == [
            [1],
            [0x87],
            [1],
        ]
        assert client.receive().topic == "$queue/open"
        client.disconnect()


def test_a_receive_maximum_is_room_for_as_many(host_broker) -> None:
    wide = Paho(
        host_broker.port, version=mqtt.MQTTv5, connect_properties=properties("CONNECT", ReceiveMaximum=5)
    )
    wide.client.manual_ack_set(True)
    wide.subscribe("$queue/jobs", qos=1)
    for number in range(7):
        wide.publish("$queue/jobs", str(number), 1)
    assert [wide.receive().payload for _ in range(5)] == [b"%d" % number for number in range(5)]
    assert wide.messages.empty()
    wide.disconnect()
