"""Tokens, the auth hook, listeners with rules and limits of their own, and their reload: with Paho as the client."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import jwt
import paho.mqtt.client as mqtt
import pytest

from brokers import RunningBroker, host_python
from midge.access.passwords import make_hash
from midge.protocol import packets as p
from midge.protocol.decoder import Decoder
from midge.protocol.encoder import encode
from paho_peer import TIMEOUT_S, Paho

SECRET = "0123456789abcdef0123456789abcdef"
V5 = mqtt.MQTTv5


@pytest.fixture
def start(until_the_end, tmp_path: Path) -> Callable[..., RunningBroker]:
    """Starts the host's broker with this configuration, which stands in tmp_path."""

    def run(text: str, **env: str) -> RunningBroker:
        (tmp_path / "midge.toml").write_text(text)
        command = [host_python(), "-m", "midge", "broker", "--data", ":memory:", "--config", tmp_path / "midge.toml"]
        ready = re.compile(r"listening on \w+://127\.0\.0\.1:(\d+)")
        env = {"PYTHONUNBUFFERED": "1"} | env
        return until_the_end.enter_context(RunningBroker("host", command, ready, env=env))

    return run


def ports(broker: RunningBroker, count: int) -> list[int]:
    """Of the listeners, in the configuration's order."""
    text = broker.wait_for_output(rf"(?s)(?:listening on.*?\n){{{count}}}").group()
    return [int(port) for port in re.findall(r"listening on \w+://127\.0\.0\.1:(\d+)", text)]


def reload(broker: RunningBroker, pattern: str = "configuration reloaded") -> None:
    done = broker.output().count("reloaded")
    broker.process.send_signal(signal.SIGHUP)
    broker.wait_for_output(rf"(?s)(?:reloaded.*?){{{done}}}{pattern}")


def token(secret: str = SECRET, lasts_s: float = 60, **claims: object) -> str:
    return jwt.encode({"sub": "anna", "exp": int(time.time() + lasts_s)} | claims, secret, "HS256")


def reason(port: int, username: str | None = None, password: str | None = None, **options: object) -> int:
    """What CONNACK says, in 5.0."""
    client = Paho(port, username=username, password=password, version=V5, **options)
    client.disconnect()
    return client.connect_reason.value


JWT = 'jwt = { key_file = "jwt.key", algorithms = ["HS256"] }\n'


def test_a_token_lets_in_and_says_which_topics(start, tmp_path: Path) -> None:
    (tmp_path / "jwt.key").write_text(SECRET)
    (tmp_path / "acl").write_text("user anna\ntopic file/#\n")
    broker = start(f'[access]\n{JWT}acl_file = "acl"\n[[listener]]\nport = 0\n')
    assert reason(broker.port) == 0x87  # nobody is anonymous here
    assert reason(broker.port, "anna", "secret") == 0x86
    assert reason(broker.port, "anna", token("x" * 32)) == 0x86
    broker.wait_for_output("a token that is not accepted: none of our keys")
    assert Paho(broker.port, username="x", password="a.b.c").connect_reason.value == 134  # 3.1.1: 4, as Paho shows it
    grants = {"pub": ["to/%c"], "sub": ["for/%u/#"]}
    one = Paho(broker.port, "one", username="ignored", password=token(acl=grants), version=V5)
    assert one.subscribe("for/anna/#", "for/bert/#", "to/one") == [0, 0x87, 0x87]
    two = Paho(broker.port, "two", username="", password=token(), version=V5)  # the ACL file says what it may
    assert two.subscribe("file/#", "for/anna/#") == [0, 0x87]
    one.publish("to/one", b"x", 1)
    one.publish("file/x", b"x", 1)
    two.publish("file/y", b"y", 1)
    assert two.receive().topic == "file/y"
    for client in (one, two):
        client.disconnect()


def test_when_its_token_ends_a_client_is_disconnected(start, tmp_path: Path) -> None:
    (tmp_path / "jwt.key").write_text(SECRET)
    broker = start(f"[access]\n{JWT}[[listener]]\nport = 0\n")
    until = int(time.time() + 3)
    client = Paho(broker.port, username="anna", password=token(exp=until), version=V5)
    old = Paho(broker.port, username="anna", password=token(exp=until))
    assert not client.connect_reason.is_failure
    for each in (client, old):
        assert each.lost.wait(TIMEOUT_S)
    assert time.time() >= until - 0.1
    assert client.lost_reason == 0xA0
    assert reason(broker.port, "anna", token(exp=until)) == 0x86


def test_sighup_replaces_the_keys(start, tmp_path: Path) -> None:
    (tmp_path / "jwt.key").write_text(SECRET)
    broker = start(f"[access]\n{JWT}[[listener]]\nport = 0\n")
    client = Paho(broker.port, username="anna", password=token(), version=V5)
    reload(broker)
    client.publish("still", b"", 1)
    (tmp_path / "jwt.key").write_text("too short")
    reload(broker, "not reloaded: .*jwt.key: a secret of less than 32 bytes")
    client.publish("still", b"", 1)
    (tmp_path / "jwt.key").write_text("y" * 32)
    reload(broker)
    assert client.lost.wait(TIMEOUT_S) and client.lost_reason == 0x87
    assert reason(broker.port, "anna", token()) == 0x86
    assert reason(broker.port, "anna", token("y" * 32)) == 0


# -- the hook --

HOOK = '''
import asyncio, time
from midge.access.hook import Admit, Login

def check(login: Login):
    if login.username == "broken":
        raise RuntimeError("no directory")
    if login.username == "slow":
        time.sleep(1)
        return True
    if login.username == "wrong":
        return 5
    if login.username == "passed on":
        return None
    if login.username != "anna" or login.password != b"secret" or login.version not in (4, 5):
        return False
    return Admit(username="anna@" + login.address.partition(":")[0], subscribe=["from/%c"], publish=["of/%u"])

async def check_later(login: Login):
    await asyncio.sleep(0.05)
    time.sleep(1) if login.username == "slow" else None  # what async code must not do
    return login.client_id == "one"
'''


@pytest.fixture
def installed(tmp_path: Path) -> dict[str, str]:
    """A package with the hooks "check" and "later", installed by pip; the environment in which it is found."""
    wheel = tmp_path / "my_auth-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("my_auth.py", HOOK)
        info = "my_auth-1.dist-info"
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: my-auth\nVersion: 1\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        entries = "[midge.auth]\ncheck = my_auth:check\nlater = my_auth:check_later\n"
        archive.writestr(f"{info}/entry_points.txt", entries)
        archive.writestr(f"{info}/RECORD", "")
    target = tmp_path / "site"
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--target", target, wheel]
    subprocess.run(command, check=True, timeout=50, capture_output=True)
    return {"PYTHONPATH": os.pathsep.join([str(target), os.environ.get("PYTHONPATH", "")])}


def test_a_hook_decides_who_the_client_is_and_what_it_may(start, installed: dict[str, str]) -> None:
    broker = start('[access]\nauth_hook = "check"\n[[listener]]\nport = 0\n', **installed)
    client = Paho(broker.port, "one", username="anna", password="secret", version=V5)
    assert client.subscribe("from/one", "from/two", "of/anna@127.0.0.1") == [0, 0x87, 0x87]
    assert reason(broker.port, "anna", "wrong") == 0x86
    assert reason(broker.port) == 0x86  # asked about those without a name too
    assert reason(broker.port, "passed on", "x") == 0x87  # and nobody else lets it in
    assert reason(broker.port, "broken", "x") == 0x88
    broker.wait_for_output(r"paho-\d+@127.0.0.1:\d+: the auth hook 'check' failed: RuntimeError: no directory")
    assert reason(broker.port, "wrong", "x") == 0x88
    broker.wait_for_output("TypeError: it returned 5")
    reload(broker)
    assert client.subscribe("from/one") == [0]
    client.disconnect()


@pytest.mark.parametrize("hook", ["check", "later"])
def test_a_slow_hook_holds_up_nobody_else(start, installed: dict[str, str], tmp_path: Path, hook: str) -> None:
    (tmp_path / "passwd").write_text(f"bert:{make_hash(b'b', 'sha512')}\n")
    broker = start(f'[access]\npassword_file = "passwd"\nauth_hook = "{hook}"\n[[listener]]\nport = 0\n', **installed)
    bert = Paho(broker.port, username="bert", password="b")
    bert.subscribe("a")
    slow = Paho(broker.port, "one", username="slow", password="x", wait=False)
    meanwhile = 0
    while slow._answers.empty():
        bert.publish("a", b"x", 1)
        bert.receive()
        meanwhile += 1
    assert slow._answers.get()[1].value == 0
    assert meanwhile > 5
    for client in (bert, slow):
        client.disconnect()


def test_hashing_holds_up_nobody_else(start, tmp_path: Path) -> None:
    slow_hash = make_hash(b"a", iterations=700_000)  # a second or two
    (tmp_path / "passwd").write_text(f"anna:{slow_hash}\nbert:{make_hash(b'b', 'sha512')}\n")
    text = '[access]\npassword_file = "passwd"\n[limits]\nconnect_timeout = 60\n[[listener]]\nport = 0\n'
    broker = start(text)
    bert = Paho(broker.port, username="bert", password="b")
    bert.subscribe("a")
    anna = Paho(broker.port, username="anna", password="a", wait=False)
    meanwhile = 0
    while anna._answers.empty():
        bert.publish("a", b"x", 1)
        bert.receive()
        meanwhile += 1
    assert anna._answers.get()[1].value == 0
    assert meanwhile > 5
    for client in (anna, bert):
        client.disconnect()


def test_a_hook_that_is_not_there_is_said_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "midge.toml").write_text('[access]\nauth_hook = "ldap"\n')
    command = [host_python(), "-m", "midge", "broker", "--check", "--config", tmp_path / "midge.toml"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 2
    assert "auth hook 'ldap': no installed package has it; there are: none" in done.stderr


# -- listeners with rules and limits of their own --


def test_each_listener_has_its_own_users_and_rules(start, tmp_path: Path) -> None:
    for name in ("anna", "bert"):
        (tmp_path / f"{name}.passwd").write_text(f"{name}:{make_hash(b'x', 'sha512')}\n")
        (tmp_path / f"{name}.acl").write_text(f"topic {name}/#\nuser {name}\ntopic {name}/#\n")
    (tmp_path / "jwt.key").write_text(SECRET)
    broker = start(
        '[access]\npassword_file = "anna.passwd"\nacl_file = "anna.acl"\n[[listener]]\nport = 0\n'
        '[[listener]]\nport = 0\npassword_file = "bert.passwd"\nacl_file = "bert.acl"\n'
        f'[[listener]]\nport = 0\npassword_file = ""\n{JWT}'
        '[[listener]]\nport = 0\npassword_file = ""\nacl_file = ""\n'
    )
    common, own, tokens, free = ports(broker, 4)
    assert [reason(common, name, "x") for name in ("anna", "bert")] == [0, 0x86]
    assert [reason(own, name, "x") for name in ("anna", "bert")] == [0x86, 0]
    assert [reason(tokens, "anna", "x"), reason(tokens, "anna", token())] == [0x86, 0]
    assert [reason(port) for port in (common, own, tokens, free)] == [0x87, 0x87, 0x87, 0]
    bert = Paho(own, username="bert", password="x", version=V5)
    assert bert.subscribe("bert/#", "anna/#") == [0, 0x87]
    anybody = Paho(free, version=V5)
    assert anybody.subscribe("#") == [0]
    (tmp_path / "bert.acl").write_text("user bert\ntopic new/#\n")
    (tmp_path / "bert.passwd").write_text("")
    reload(broker)
    assert bert.lost.wait(TIMEOUT_S) and bert.lost_reason == 0x87
    assert reason(common, "anna", "x") == 0
    anybody.disconnect()


class Raw:
    """A 5.0 client of our codec, which may be illegal; *proxied*: the address that the proxy tells."""

    def __init__(self, port: int, client_id: str = "", proxied: str = "", **connect: object):
        self._decoder = Decoder("client", 5)
        self._packets: list = []
        self.socket = socket.create_connection(("127.0.0.1", port), TIMEOUT_S)
        header = proxy_header(proxied) if proxied else b""
        self.socket.sendall(header + encode(p.Connect(client_id, True, 60, 5, **connect), 5))
        self.connack = self.receive()

    def send(self, *packets: p.Packet) -> None:
        self.socket.sendall(b"".join(encode(packet, 5) for packet in packets))

    def receive(self):
        """None: the broker has closed."""
        while not self._packets:
            data = self.socket.recv(65_536)
            if not data:
                return None
            self._packets += self._decoder.receive_data(data)
        return self._packets.pop(0)

    def close(self) -> None:
        self.socket.close()


def proxy_header(address: str) -> bytes:
    family, kind = (socket.AF_INET6, 0x21) if ":" in address else (socket.AF_INET, 0x11)
    packed = socket.inet_pton(family, address)
    body = packed + packed + b"\xd4\x31\x07\x5b"
    return b"\r\n\r\n\0\r\nQUIT\n\x21" + bytes((kind, 0, len(body))) + body


def test_failed_logins_count_by_network_also_behind_a_proxy(start, tmp_path: Path) -> None:
    (tmp_path / "passwd").write_text(f"anna:{make_hash(b'a', 'sha512')}\n")
    broker = start(
        '[access]\npassword_file = "passwd"\nmax_failed_logins = 2\n[[listener]]\nport = 0\nproxy_protocol = true\n'
    )

    def code(address: str, password: bytes) -> int:
        client = Raw(broker.port, proxied=address, username="anna", password=password)
        client.close()
        return client.connack.reason_code

    assert [code(f"2001:db8::{number}", b"x") for number in range(3)] == [0x86, 0x86, 0x9F]
    assert code("2001:db8:0:0:ffff::1", b"a") == 0x9F  # the same /64
    assert code("2001:db8:0:1::1", b"a") == 0
    assert [code("192.0.2.1", word) for word in (b"x", b"x", b"a")] == [0x86, 0x86, 0x9F]
    assert code("192.0.2.2", b"a") == 0
    assert code("::ffff:192.0.2.1", b"a") == 0x9F


def test_connections_are_limited_by_network(start) -> None:
    broker = start(
        "[access]\nallow_anonymous = true\n[sys]\ninterval = 1\n[limits]\nmax_connections_per_address = 2\n"
        "[[listener]]\nport = 0\nproxy_protocol = true\n[[listener]]\nport = 0\n"
    )
    behind, direct = ports(broker, 2)
    clients = [Raw(behind, proxied=f"2001:db8::{number}") for number in range(3)]
    assert [client.connack.reason_code for client in clients] == [0, 0, 0x97]
    assert Raw(behind, proxied="2001:db8:0:1::1").connack.reason_code == 0
    assert [Raw(direct).connack.reason_code for _ in range(4)] == [0] * 4  # this machine's own aren't counted
    clients.pop(0).close()
    deadline = time.monotonic() + TIMEOUT_S
    while Raw(behind, proxied="2001:db8::9").connack.reason_code != 0:
        assert time.monotonic() < deadline
    watcher = Paho(direct)
    watcher.subscribe("$SYS/broker/limits/max_connections_per_address")
    while int(watcher.receive().payload) < 1:
        pass
    watcher.disconnect()


def test_a_listener_has_limits_of_its_own(start) -> None:
    broker = start(
        "[[listener]]\nport = 0\n[[listener]]\nport = 0\nmax_connections = 1\n"
        "limits = { max_packet_size = 1000, receive_maximum = 5, topic_alias_maximum = 0, max_keep_alive = 30, "
        "max_subscriptions = 1 }\n"
    )
    common, own = ports(broker, 2)
    usual, client = Raw(common), Raw(own)
    assert usual.connack.properties["maximum_packet_size"] == 2_000_000
    found = client.connack.properties
    names = ("maximum_packet_size", "receive_maximum", "topic_alias_maximum", "server_keep_alive")
    assert [found[name] for name in names] == [1000, 5, 0, 30]
    client.send(p.Subscribe(1, [p.Subscription("a"), p.Subscription("b"), p.Subscription("a")]))
    assert client.receive().reason_codes == [0, 0x97, 0]
    assert Raw(own).connack.reason_code == 0x89  # max_connections
    client.send(p.Publish("a", bytes(1000)))
    assert client.receive().reason_code == 0x95
    usual.send(p.Publish("b", bytes(1000), 1, packet_id=1))
    assert usual.receive().packet_id == 1


def test_sighup_changes_the_limits_of_who_is_connected(start, tmp_path: Path) -> None:
    text = "[[listener]]\nport = 0\n[[listener]]\nport = 0\n"
    broker = start(text)
    common, own = (Raw(port) for port in ports(broker, 2))
    for client in (common, own):
        client.send(p.Subscribe(1, [p.Subscription("a"), p.Subscription("b")]))
        assert client.receive().reason_codes == [0, 0]
    limits = "limits = { max_subscriptions = 2, receive_maximum = 1, max_packets_per_second = 1 }\n"
    (tmp_path / "midge.toml").write_text(f"[limits]\nmax_topic_levels = 2\n{text}{limits}")
    reload(broker)
    for client, codes in ((common, [0, 0x8F]), (own, [0x97, 0x8F])):
        client.send(p.Subscribe(1, [p.Subscription("c"), p.Subscription("a/b/c")]))
        assert client.receive().reason_codes == codes
    # CONNACK's Receive Maximum holds for as long as the connection does.
    own.send(*(p.Publish("x", b"", 2, packet_id=number) for number in (1, 2)))
    assert [type(own.receive()) for _ in range(2)] == [p.Pubrec, p.Pubrec]
    own.send(*(p.Publish("x", b"%d" % number) for number in range(20)))
    assert own.receive().reason_code == 0x96
    (tmp_path / "midge.toml").write_text(text)
    reload(broker)
    common.send(p.Subscribe(1, [p.Subscription("a/b/c")]))
    assert common.receive().reason_codes == [0]
