"""The programs of device/examples on the unix port, with stand-ins for `machine` and `network`.

`make run` (tests/e2e) runs sensor.py, controller.py and cable.py; here is what sleeps.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # `import mqtt_wire`, with --import-mode=importlib

import mqtt_wire as wire

import brokers

EXAMPLES = brokers.ROOT / "device" / "examples"
STAND_INS = brokers.ROOT / "host" / "midge" / "sim" / "on_board"


@pytest.fixture
def board(tmp_path):
    """Runs an example from its start to its deep sleep; its files and RTC memory stay. Returns what it printed."""

    def run(program, *arguments, **air):
        environment = {**os.environ, "MIDGE_BOARD": str(tmp_path), "MIDGE_AIR": json.dumps(air),
                       "MICROPYPATH": f"{STAND_INS}:{brokers.ROOT / 'device'}:.frozen"}
        done = subprocess.run([brokers.micropython(), "-X", "heapsize=512k", EXAMPLES / program, *map(str, arguments)],
                              cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def test_battery_sensor_sleeps_between_cycles_and_loses_nothing(board, broker):
    arguments = ("garden", "127.0.0.1", broker.port, "home", "secret")
    with wire.subscriber(broker.port, "laptop", ("garden/#", 0)) as laptop:
        printed = board("battery.py", *arguments)
        assert "delivered 1 kept 0 received 0 error None" in printed
        assert "deep sleep 600000" in printed
        assert laptop.messages(1)[0].topic == "garden/temperature"
        if broker.kind == "host":  # once is enough: it looks for 6 s
            printed = board("battery.py", *arguments, is_up=False)
            assert "no network; 1 messages wait" in printed
            printed = board("battery.py", *arguments)  # what waited, and this cycle's
            assert "delivered 2 kept 0" in printed
            laptop.messages(2)
        with wire.client(broker.port, "phone") as phone:
            phone.send(wire.publish("garden/set/interval", b"60", 1, 1))
            phone.expect(wire.puback(1))
        laptop.messages(1)
        printed = board("battery.py", *arguments)
        assert "received 1" in printed
        assert "deep sleep 60000" in printed
        printed = board("battery.py", *arguments)
        assert "received 0" in printed
        assert "deep sleep 60000" in printed
        said = {message.topic: message.payload for message in laptop.messages(3)}
        assert said["garden/state/interval"] == b"60"
