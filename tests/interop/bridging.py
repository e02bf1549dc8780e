"""Brokers linked by bridges, and who got what on each of them.

Knows how each kind of broker is told to bridge, not what a test is about.
"""

import json
import shutil
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest

from brokers import (
    LISTENING,
    ROOT,
    RunningBroker,
    free_port,
    host_python,
    start_host,
)
from paho_peer import Paho

TIMEOUT_S = 20
# A message that comes once more would come in this time: rounds take milliseconds.
QUIET_S = 0.7

EVERYTHING = '[{ filter = "#", direction = "both", qos = 2 }]'


def section(name: str, port: int, topics: str = EVERYTHING, scheme: str = "mqtt", **keys: object) -> str:
    """One [[bridge]]."""
    lines = "".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items())
    return (
        f'[[bridge]]\nname = "{name}"\naddress = "{scheme}://127.0.0.1:{port}"\ntopics = {topics}\n'
        f"reconnect_min = 0.1\nreconnect_max = 0.5\n{lines}"
    )


def start_bridging(directory: Path, *sections: str, port: int = 0, extra: str = "", data: str = ":memory:",
                   limits: str = "") -> RunningBroker:
    """Our broker with bridges."""
    directory.mkdir(parents=True, exist_ok=True)
    config = directory / "midge.toml"
    config.write_text(f"{limits}\n{extra}\n" + "\n".join(sections))
    return start_host("--config", str(config), "--port", str(port), "--data", data)


def mosquitto_section(name: str, port: int, topic: str = "topic # both 2", *lines: str) -> str:
    return "\n".join(
        (f"connection {name}", f"address 127.0.0.1:{port}", "restart_timeout 1 2", f"remote_clientid {name}",
         "cleansession false", topic, *lines)
    )


def connected(*brokers: RunningBroker, names: tuple[str, ...] = ()) -> None:
    """Wait until our brokers' bridges (all those *names*, else one each) are connected."""
    for broker in brokers:
        for name in names or (r"\S+",):
            broker.wait_for_output(rf"bridge {name} to \S+: connected", TIMEOUT_S)


def listeners(*brokers: RunningBroker) -> list[Paho]:
    found = []
    for number, broker in enumerate(brokers):
        found.append(Paho(broker.port, f"listener-{number}"))
        assert found[-1].subscribe("#", qos=2) == [2]
    return found


def links_carry(*brokers: RunningBroker) -> None:
    """Wait until a message from each broker reaches each other one: bridges of others' are silent about it."""
    clients = [Paho(broker.port) for broker in brokers]
    for client in clients:
        client.subscribe("links-carry", qos=0)
    deadline = time.monotonic() + TIMEOUT_S
    for client in clients:
        heard: set[int] = set()
        number = 0
        while len(heard) < len(clients):
            assert time.monotonic() < deadline, f"only {heard} of {len(clients)} brokers heard it"
            number += 1
            word = f"{client.port} {number}"
            client.publish("links-carry", word)
            time.sleep(0.1)
            for index, other in enumerate(clients):
                while not other.messages.empty():
                    if other.messages.get().payload.decode().startswith(f"{client.port} "):
                        heard.add(index)
    time.sleep(QUIET_S)
    for client in clients:
        client.disconnect()


def collect(clients: list[Paho], count: int) -> list[Counter[str]]:
    """What each got, payload by payload, once each has *count* messages and there was quiet."""
    got: list[Counter[str]] = [Counter() for _ in clients]
    deadline = time.monotonic() + TIMEOUT_S
    quiet_since = time.monotonic()
    while time.monotonic() - quiet_since < QUIET_S or any(sum(each.values()) < count for each in got):
        if time.monotonic() > deadline:
            break
        is_quiet = True
        for client, counter in zip(clients, got, strict=True):
            while not client.messages.empty():
                message = client.messages.get()
                if message.topic != "links-carry":
                    counter[message.payload.decode()] += 1
                    is_quiet = False
        if not is_quiet:
            quiet_since = time.monotonic()
        time.sleep(0.02)
    return got


def each_gets_each_once(*brokers: RunningBroker, messages: int = 5, may_lose: int = 0) -> None:
    """Publish on each broker at each QoS; every broker's subscriber gets every message once, and then it is quiet.
    *may_lose*: how many a broker that acknowledges before it routes may lose by itself."""
    clients = listeners(*brokers)
    publishers = [Paho(broker.port) for broker in brokers]
    wanted = set()
    for number in range(messages):
        for index, publisher in enumerate(publishers):
            for qos in (0, 1, 2):
                wanted.add(f"{index} {qos} {number}")
                publisher.publish(f"from/{index}/qos{qos}", f"{index} {qos} {number}", qos)
    got = collect(clients, len(wanted))
    for client in clients + publishers:
        client.disconnect()
    for index, counter in enumerate(got):
        missing = wanted - set(counter)
        doubled = {payload: count for payload, count in counter.items() if count > 1}
        about = f"broker {index} ({brokers[index].kind})"
        assert len(missing) <= may_lose, f"{about} misses {len(missing)}: {sorted(missing)[:6]}"
        assert not doubled, f"{about} got some twice: {list(doubled.items())[:6]}"


def node_modules(package: str) -> Path:
    """The directory in which node finds *package*; the test is skipped where npm can't get it."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("node and npm are not installed: apt-get install nodejs npm")
    modules = ROOT / "build" / "npm" / "node_modules"
    if not (modules / package).exists():
        modules.parent.mkdir(parents=True, exist_ok=True)
        command = [npm, "install", "--no-audit", "--no-fund", "--prefix", str(modules.parent), package]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        if done.returncode:
            pytest.skip(f"npm can't install {package}: {done.stderr.strip()[-200:]}")
    return modules


AMQTT = """
import asyncio, logging, sys
from amqtt.broker import Broker
logging.basicConfig(level=logging.WARNING)
async def main():
    port = int(sys.argv[1])
    broker = Broker({
        "listeners": {"default": {"type": "tcp", "bind": f"127.0.0.1:{port}"}},
        "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
    })
    await broker.start()
    print(f"listening on mqtt://127.0.0.1:{port}", flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""
AEDES = """
const net = require('node:net');
const { Aedes } = require('aedes');
Aedes.createBroker().then((broker) => {
  const server = net.createServer(broker.handle);
  server.listen(0, '127.0.0.1', () => console.log(`listening on mqtt://127.0.0.1:${server.address().port}`));
});
"""


def start_amqtt() -> RunningBroker:
    """amqtt (PyPI), which knows no bridges and closes without a word when it is asked for 5.0."""
    port = free_port()
    return RunningBroker("amqtt", [host_python(), "-c", AMQTT, str(port)], LISTENING, port)


def start_aedes() -> RunningBroker:
    """aedes (npm), which knows the mark of 3.1.1 and speaks no 5.0."""
    return RunningBroker("aedes", ["node", "-e", AEDES], LISTENING, env={"NODE_PATH": str(node_modules("aedes"))})
