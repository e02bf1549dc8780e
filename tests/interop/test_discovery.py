"""The broker announces itself by mDNS, and is found by `midge find` and by the board's helper: on 127.0.0.1 alone."""

import asyncio
import json
import subprocess
from pathlib import Path

import pytest
import trustme

import brokers
from brokers import host_python, start_host
from midge import mdns
from midge.bridge.dial import Dialler
from midge.config import Bridge

pytestmark = pytest.mark.timeout(120)

CONFIG = """
[discovery]
interfaces = ["127.0.0.1"]
name = "midge test {name}"
[[listener]]
bind = "127.0.0.1"
port = 0
[[listener]]
type = "tls"
bind = "127.0.0.1"
port = 0
certfile = "server.pem"
keyfile = "server.key"
"""


@pytest.fixture
def announced(tmp_path: Path, until_the_end):
    """A broker, and the name that it has announced."""
    name = f"{tmp_path.name}-{id(tmp_path)}"
    certificate = trustme.CA().issue_cert("localhost")
    certificate.private_key_pem.write_to_path(tmp_path / "server.key")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "server.pem")
    config = tmp_path / "midge.toml"
    config.write_text(CONFIG.format(name=name))
    command = [host_python(), "-m", "midge", "broker", "--config", config, "--data", ":memory:"]
    broker = until_the_end.enter_context(
        brokers.RunningBroker("host", command, brokers.LISTENING, env={"PYTHONUNBUFFERED": "1"})
    )
    broker.wait_for_output("announced by mDNS: ", 30)
    return broker, f"midge test {name}"


def find(*options: str) -> list[dict]:
    command = [host_python(), "-m", "midge", "find", "--json", "--interface", "127.0.0.1", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode in (0, 1), done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def ours(found: list[dict], name: str) -> list[dict]:
    return [each for each in found if each["kind"] == "broker" and each["instance"] == name]


def test_midge_find_lists_the_listeners_until_the_broker_stops(announced) -> None:
    broker, name = announced
    found = sorted(ours(find(), name), key=lambda each: each["is_tls"])
    assert [each["is_tls"] for each in found] == [False, True]
    assert found[0]["port"] == broker.port and found[0]["addresses"] == ["127.0.0.1"]
    assert found[0]["url"].startswith("mqtt://") and found[1]["url"].startswith("mqtts://")
    broker.stop()
    assert ours(find("-w", "1"), name) == []


def test_a_name_that_ends_in_local_is_resolved(announced) -> None:
    (host, *_) = [each["host"] for each in ours(find(), announced[1])]
    assert host.endswith(".local")
    assert asyncio.run(mdns.resolve(host, 5, ["127.0.0.1"])) == ["127.0.0.1"]
    assert asyncio.run(mdns.resolve("nobody-has-this-name.local", 0.5, ["127.0.0.1"])) == []


def test_a_bridge_reaches_a_broker_by_its_local_name(announced, monkeypatch: pytest.MonkeyPatch) -> None:
    broker, name = announced
    (host, *_) = [each["host"] for each in ours(find(), name)]
    resolve = mdns.resolve
    asked = []

    async def resolve_here(host: str) -> list[str]:
        asked.append(host)
        return await resolve(host, 5, ["127.0.0.1"])

    monkeypatch.setattr(mdns, "resolve", resolve_here)

    class Hello(asyncio.Protocol):
        def __init__(self) -> None:
            self.answer = asyncio.get_running_loop().create_future()

        def connection_made(self, transport) -> None:
            transport.write(b"\x10\x0d\0\x04MQTT\x04\x02\0\0\0\x01x")

        def data_received(self, data: bytes) -> None:
            self.answer.set_result(data)

    async def dial(host: str) -> bytes:
        topics = [{"filter": "#"}]
        section = Bridge.model_validate({"name": "b", "address": f"mqtt://{host}:{broker.port}", "topics": topics})
        hello = Hello()
        await Dialler(section, Path).connect(section.address, hello)
        return await asyncio.wait_for(hello.answer, 20)

    assert asyncio.run(dial(host)) == b"\x20\x02\0\0" and asked in ([host], [])  # a system may know the name itself
    with pytest.raises(OSError, match="nor does it answer by mDNS"):
        asyncio.run(dial("nobody-has-this-name.local"))
    assert "nobody-has-this-name.local" in asked


def test_the_board_s_helper_finds_it(announced) -> None:
    program = (
        "import sys; sys.path.insert(0, 'device'); import midge_find\n"
        "print(midge_find.find(server=('127.0.0.1', 5353)))"
    )
    done = subprocess.run([brokers.micropython(), "-c", program], cwd=brokers.ROOT, capture_output=True, text=True,
                          timeout=30, check=False)
    # Another run of the tests may be announcing a broker here, too.
    ports = [each["port"] for each in find() if each["kind"] == "broker" and not each["is_tls"]]
    assert announced[0].port in ports
    assert done.stdout.strip() in [f"('127.0.0.1', {port})" for port in ports], done.stdout + done.stderr


def test_a_broker_that_only_this_machine_reaches_announces_nothing() -> None:
    with start_host() as broker:
        broker.stop()
        assert "announced" not in broker.output()
