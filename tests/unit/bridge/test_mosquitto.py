"""Mosquitto's bridge sections become ours."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from midge.bridge.mosquitto import NotUnderstood, read
from midge.cli.bridge import run
from midge.config import parse

CONF = """\
# a laptop at home
listener 1883
allow_anonymous true
persistence true

connection kitchen
addresses 192.168.1.20:1883 192.168.1.21 fe80::1
topic # in 1 kitchen/ ""
topic set/# out 2 kitchen/ ""
topic status
topic "" both 0 here/lamp there/lamp
topic "" in 0 a b
remote_clientid laptop
remote_username anna
remote_password two words
keepalive_interval 30
restart_timeout 5 60
start_type lazy
idle_timeout 20
threshold 3
try_private true
notifications_local_only true
cleansession true
bridge_psk secret

connection cloud/eu
address broker.example.com:8883
bridge_cafile /etc/ssl/ca.pem
bridge_insecure true
bridge_protocol_version mqttv50
topic sensors/# out 1
"""


def bridges(tmp_path: Path, text: str = CONF) -> list[dict[str, Any]]:
    path = tmp_path / "mosquitto.conf"
    path.write_text(text)
    return list(tomllib.loads("\n".join(bridge.toml() for bridge in read(path)))["bridge"])


def test_a_section_is_ours_key_by_key(tmp_path: Path) -> None:
    kitchen, cloud = bridges(tmp_path)
    assert kitchen == {
        "name": "kitchen",
        "address": "mqtt://192.168.1.20:1883",
        "alternatives": ["mqtt://192.168.1.21", "mqtt://[fe80::1]"],
        "client_id": "laptop",
        "username": "anna",
        "password": "two words",
        "keep_alive": 30,
        "reconnect_min": 5.0,
        "reconnect_max": 60.0,
        "start": "on-demand",
        "idle_timeout": 20.0,
        "threshold": 3,
        "notifications": False,
        "topics": [
            {"filter": "#", "direction": "in", "qos": 1, "local_prefix": "kitchen/"},
            {"filter": "set/#", "direction": "out", "qos": 2, "local_prefix": "kitchen/"},
            {"filter": "status", "direction": "out", "qos": 0},
            {"filter": "lamp", "direction": "both", "qos": 0, "local_prefix": "here/", "remote_prefix": "there/"},
        ],
    }
    assert cloud == {
        "name": "cloud-eu",
        "address": "mqtts://broker.example.com:8883",
        "cafile": "/etc/ssl/ca.pem",
        "check_hostname": False,
        "version": "5.0",
        "topics": [{"filter": "sensors/#", "direction": "out", "qos": 1}],
    }


def test_what_has_no_counterpart_is_said(tmp_path: Path) -> None:
    path = tmp_path / "mosquitto.conf"
    path.write_text(CONF)
    remarks = "\n".join(read(path)[0].remarks)
    assert "bridge_psk secret: has no counterpart here" in remarks
    assert "cleansession true: here the session always lasts" in remarks
    assert 'topic "" in 0 a b: a topic of another name' in remarks
    assert "try_private" not in remarks


def test_the_command_prints_what_the_broker_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mosquitto.conf"
    path.write_text(CONF)
    assert run(["import", str(path)]) == 0
    config = parse(tomllib.loads(capsys.readouterr().out), "the output")
    assert [bridge.name for bridge in config.bridge] == ["kitchen", "cloud-eu"]


def test_included_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / "a.conf").write_text("connection a\naddress h\ntopic # in\n")
    (found,) = bridges(tmp_path, f"include_dir {tmp_path / 'conf.d'}\n")
    assert found["address"] == "mqtt://h"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("topic # up 1", "5: topic # up 1: the direction is in, out or both"),
        ("topic # in 3", "5: topic # in 3: the QoS is 0, 1 or 2"),
        ("keepalive_interval soon", "5: keepalive_interval soon: "),
        ("notifications maybe", "5: notifications maybe: true or false is expected"),
        ("connection", "5: connection needs a name"),
    ],
)
def test_an_error_names_file_and_line(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "mosquitto.conf"
    path.write_text(f"connection a\naddress h\ntopic # in\n\n{line}\n")
    with pytest.raises(NotUnderstood) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}:{message}")


def test_a_file_without_bridges_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mosquitto.conf"
    path.write_text("listener 1883\n")
    assert run(["import", str(path)]) == 1
    assert run(["import", str(tmp_path / "nowhere")]) == 1
    out, err = capsys.readouterr()
    assert out == "" and "has no bridge" in err and "No such file" in err
