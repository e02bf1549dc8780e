"""What the broker logs about a client that comes and goes, as text and as JSON, and what it never logs."""

import json
import re
import signal
from pathlib import Path

import paho.mqtt.client as mqtt
import paho.mqtt.publish
import pytest

from brokers import RunningBroker, start_host

SECRET = "seven-of-nine"


def visit(broker: RunningBroker, version: int = mqtt.MQTTv5) -> None:
    messages = [("topic/of/it", SECRET, 1, True)]
    auth = {"username": "anna", "password": SECRET}
    paho.mqtt.publish.multiple(
        messages, "127.0.0.1", broker.port, client_id="kitchen", keepalive=30, auth=auth, protocol=version
    )


def log_of(broker: RunningBroker, visits: int = 1) -> list[str]:
    broker.wait_for_output(rf"(?s)(disconnected by the client.*){{{visits}}}")
    broker.stop()
    return [line for line in broker.output().splitlines() if not line.startswith("listening on")]


def test_coming_and_going_is_a_line_each(until_the_end) -> None:
    broker = until_the_end.enter_context(start_host())
    visit(broker, mqtt.MQTTv311)
    broker.wait_for_output("disconnected by the client")
    visit(broker)
    lines = log_of(broker, visits=2)
    time, who = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z INFO ", r"kitchen@127\.0\.0\.1:\d+: "
    for line, said in zip(
        lines,
        ["connected, MQTT 3.1.1, keep alive 30 s, user anna", "disconnected by the client",
         "connected, MQTT 5.0, keep alive 30 s, user anna", "disconnected by the client"],
        strict=True,
    ):  # fmt: skip
        assert re.fullmatch(time + who + re.escape(said), line)


def test_json_has_a_client_and_an_address_in_each(until_the_end) -> None:
    broker = until_the_end.enter_context(start_host("--log-format", "json"))
    visit(broker)
    lines = [json.loads(line) for line in log_of(broker)]
    assert [line["event"] for line in lines] == ["connected", "disconnected"]
    for line in lines:
        assert line["client"] == "kitchen" and re.fullmatch(r"127\.0\.0\.1:\d+", line["address"])
        assert line["level"] == "info" and line["message"] and line["time"].endswith("Z")
    assert (lines[0]["mqtt"], lines[0]["user"], lines[0]["keep_alive_s"]) == ("5.0", "anna", 30)


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error"])
def test_no_payload_and_no_password_is_logged_at_any_level(until_the_end, level: str) -> None:
    broker = until_the_end.enter_context(start_host("--log-level", level))
    visit(broker)
    broker.stop()
    assert SECRET not in broker.output()
    assert ("kitchen" in broker.output()) == (level in ("debug", "info"))


def test_the_configuration_file_says_how_and_a_reload_changes_it(until_the_end, tmp_path: Path) -> None:
    config = tmp_path / "midge.toml"
    config.write_text('[log]\nformat = "json"\nlevel = "warning"\n')
    broker = until_the_end.enter_context(start_host("--config", config))
    config.write_text('[log]\nlevel = "info"\n')
    broker.process.send_signal(signal.SIGHUP)
    broker.wait_for_output(r"Z INFO configuration reloaded")
