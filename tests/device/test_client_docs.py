"""The programs in docs/, those that call themselves main.py, run on the unix port with a stand-in for `network`."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # `import mqtt_wire`, with --import-mode=importlib

import mqtt_wire as wire

import brokers

DOCS = brokers.ROOT / "docs"
STAND_INS = brokers.ROOT / "host" / "midge" / "sim" / "on_board"
PAGES = ("always-on-controller.md", "battery-sensor.md", "from-mqtt-as.md", "from-umqtt-simple.md", "request-reply.md")
MIDGE = [sys.executable, "-m", "midge"]


def program(page, port):
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text("utf-8"), re.S)
    (block,) = [block for block in blocks if "# main.py" in block]
    return block.replace('"192.168.4.1"', f'"127.0.0.1", {port}').replace("your network", "home").replace(
        "its password", "secret")


@pytest.fixture
def run(tmp_path):
    started = []

    def start(page, port):
        (tmp_path / "main.py").write_text(program(page, port))
        environment = {**os.environ, "MIDGE_AIR": json.dumps({}),
                       "MICROPYPATH": f"{STAND_INS}:{brokers.ROOT / 'device'}:.frozen"}
        started.append(subprocess.Popen([brokers.micropython(), "-X", "heapsize=512k", "main.py"], cwd=tmp_path,
                                        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def command(port, payload):
    with wire.client(port, "phone") as phone:
        phone.send(wire.publish("lamp/set", payload, 1, 1))
        phone.expect(wire.puback(1))


def test_always_on_controller(run, host_broker):
    with wire.subscriber(host_broker.port, "laptop", ("lamp/#", 0), ) as laptop:
        laptop.socket.settimeout(30)
        run("always-on-controller.md", host_broker.port)
        assert laptop.messages(1)[0] == wire.Message("lamp/status", b"online")
        command(host_broker.port, b"on")
        assert [message.topic for message in laptop.messages(2)] == ["lamp/set", "lamp/state"]


def test_from_mqtt_as(run, host_broker):
    with wire.subscriber(host_broker.port, "laptop", ("lamp/count", 0)) as laptop:
        laptop.socket.settimeout(30)
        process = run("from-mqtt-as.md", host_broker.port)
        assert [message.payload for message in laptop.messages(3)] == [b"0", b"1", b"2"]
        assert process.wait(30) == 0


def test_from_umqtt_simple(run, host_broker):
    with wire.subscriber(host_broker.port, "laptop", ("lamp/state", 0)) as laptop:
        laptop.socket.settimeout(30)
        process = run("from-umqtt-simple.md", host_broker.port)
        assert laptop.messages(1)[0].payload == b"on"
        command(host_broker.port, b"dim")
        assert process.wait(30) == 0
        assert process.stdout.read() == "b'lamp/set' b'dim'\n"


def test_board_asks_and_answers_the_command_line(run, host_broker):
    def ask(topic, payload, *options):
        command = [*MIDGE, "rr", "-p", str(host_broker.port), "-t", topic, "-m", payload, *options]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    port = str(host_broker.port)
    serving = subprocess.Popen([*MIDGE, "serve", "-p", port, "-t", "time", "--", "echo", "noon"])
    try:
        while ask("time", "", "-W", "1").returncode:  # until it has subscribed
            pass
        process = run("request-reply.md", host_broker.port)
        assert process.stdout.readline() == "b'noon\\n'\n"
        assert ask("lamp/level", "50", "-W", "30").stdout == "511\n"
        assert ask("lamp/level", "50", "-W", "30", "-V", "311").stdout == "511\n"
        failed = ask("lamp/level", "bright", "-W", "30")
        assert (failed.returncode, "ValueError" in failed.stderr) == (1, True)
    finally:
        serving.terminate()
        serving.wait(30)


@pytest.mark.parametrize("page", PAGES)
def test_every_link_and_every_file_named_is_there(page):
    text = (DOCS / page).read_text("utf-8")
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert (DOCS / link).exists(), link
    for name in re.findall(r"build/mpy/(\w+)\.mpy", text):
        assert (brokers.ROOT / "device" / f"{name}.py").exists(), name
