"""The host's other ways in, each with a client of somebody else's: TLS, WebSocket, Unix socket, PROXY protocol."""

import contextlib
import datetime
import os
import queue
import re
import shutil
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import paho.mqtt.client as mqtt
import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from brokers import BrokerDidNotStart, RunningBroker, host_python, needs_mosquitto, start_mosquitto
from midge.protocol import packets as p
from midge.protocol.decoder import Decoder
from midge.protocol.encoder import encode

TIMEOUT_S = 10


class Certificates:
    """An authority and what it signed, as files in *directory*."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.authority = trustme.CA()
        self.authority.cert_pem.write_to_path(directory / "ca.pem")
        self.issue("server", "127.0.0.1", "localhost")
        self.issue("client", "anna@example.org", common_name="anna")

    def issue(self, name: str, *identities: str, common_name: str | None = None, organization: str = "us") -> None:
        issued = self.authority.issue_cert(*identities, common_name=common_name, organization_name=organization)
        issued.private_key_pem.write_to_path(self.directory / f"{name}.key")
        (self.directory / f"{name}.pem").write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))


    def revoke(self, *names: str) -> None:
        """Writes "crl.pem" with these."""
        now = datetime.datetime.now(datetime.UTC)
        authority = x509.load_pem_x509_certificate(self.authority.cert_pem.bytes())
        made = x509.CertificateRevocationListBuilder(authority.subject, now - datetime.timedelta(days=1),
                                                     now + datetime.timedelta(days=1))  # fmt: skip
        for name in names:
            revoked = x509.load_pem_x509_certificate((self.directory / f"{name}.pem").read_bytes())
            entry = x509.RevokedCertificateBuilder(revoked.serial_number, now - datetime.timedelta(days=1))
            made = made.add_revoked_certificate(entry.build())
        key = load_pem_private_key(self.authority.private_key_pem.bytes(), None)
        crl = made.sign(key, hashes.SHA256())
        (self.directory / "crl.pem").write_bytes(crl.public_bytes(Encoding.PEM))


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def start(until_the_end, certificates: Certificates) -> Callable[[str], RunningBroker]:
    """Starts the host's broker with a configuration that stands beside the certificates; port 0 is asked for."""

    def run(text: str, name: str = "midge.toml") -> RunningBroker:
        config = certificates.directory / name
        config.write_text(text)
        ready = re.compile(r"listening on unix:" if '"unix"' in text else r"listening on \w+://127\.0\.0\.1:(\d+)")
        command = [host_python(), "-m", "midge", "broker", "--data", ":memory:", "--config", config]
        return until_the_end.enter_context(RunningBroker("host", command, ready, env={"PYTHONUNBUFFERED": "1"}))

    return run


TLS = 'type = "tls"\nport = 0\ncertfile = "server.pem"\nkeyfile = "server.key"\n'


def connect(broker: RunningBroker, transport: str = "tcp", ca: Path | None = None,
            certificate: Path | None = None, host: str = "127.0.0.1") -> mqtt.Client:  # fmt: skip
    """A Paho client that was let in; with *ca*, over TLS."""
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, transport=transport, reconnect_on_failure=False)
    if ca is not None:
        key = certificate and str(certificate.with_suffix(".key"))
        client.tls_set(str(ca), certificate and str(certificate), key)
    answers: queue.Queue = queue.Queue()
    client.on_connect = lambda *answer: answers.put(answer[3])
    client.connect(host, broker.port)
    client.loop_start()
    try:
        assert not answers.get(timeout=TIMEOUT_S).is_failure
    except queue.Empty:
        client.loop_stop()
        raise
    return client


def assert_echo(client: mqtt.Client, sizes: tuple[int, ...] = (0, 100, 300_000)) -> None:
    """Messages of these sizes come back whole and in order; then the client leaves."""
    subscribed: queue.Queue = queue.Queue()
    messages: queue.Queue = queue.Queue()
    client.on_subscribe = lambda *answer: subscribed.put(answer)
    client.on_message = lambda _client, _data, message: messages.put(message.payload)
    client.subscribe("echo", 1)
    subscribed.get(timeout=TIMEOUT_S)
    sent = [os.urandom(size) for size in sizes]
    for payload in sent:
        client.publish("echo", payload, 1)
    assert [messages.get(timeout=TIMEOUT_S) for _ in sent] == sent
    client.disconnect()
    client.loop_stop()


def test_tls_carries_what_tcp_does(start, certificates: Certificates) -> None:
    broker = start(f"[[listener]]\n{TLS}")
    assert f"listening on mqtts://127.0.0.1:{broker.port}\n" in broker.output()
    assert_echo(connect(broker, ca=certificates.directory / "ca.pem"))


@needs_mosquitto
def test_mosquitto_pub_speaks_tls_to_it_and_checks_the_certificate(start, certificates: Certificates) -> None:
    broker = start(f"[[listener]]\n{TLS}")
    other = trustme.CA()
    other.cert_pem.write_to_path(certificates.directory / "other.pem")
    for authority, is_good in (("ca.pem", True), ("other.pem", False)):
        command = ["mosquitto_pub", "-p", str(broker.port), "--cafile", certificates.directory / authority]
        done = subprocess.run([*command, "-t", "a", "-m", "x", "-q", "1"], capture_output=True, timeout=15)
        assert (done.returncode == 0) is is_good


def test_a_handshake_that_fails_is_told_of_and_harms_nobody(start, certificates: Certificates) -> None:
    directory = certificates.directory
    broker = start(
        f'[[listener]]\n{TLS}cafile = "ca.pem"\nrequire_certificate = true\n[limits]\nconnect_timeout = 1\n'
    )
    trusting = ssl.create_default_context(cafile=str(directory / "ca.pem"))
    with socket.create_connection(("127.0.0.1", broker.port), TIMEOUT_S) as silent:
        with socket.create_connection(("127.0.0.1", broker.port), TIMEOUT_S) as plain:
            plain.sendall(encode(p.Connect("x", True, keep_alive_s=60), 4))
            with contextlib.suppress(ConnectionResetError):
                while plain.recv(100):  # an alert, then the end
                    pass
        with (
            socket.create_connection(("127.0.0.1", broker.port), TIMEOUT_S) as stranger,
            pytest.raises((ssl.SSLError, ConnectionError)),
            trusting.wrap_socket(stranger, server_hostname="127.0.0.1") as wrapped,
        ):
            if not wrapped.recv(10):
                raise ConnectionResetError
        assert silent.recv(10) == b""  # after connect_timeout
    assert_echo(connect(broker, ca=directory / "ca.pem", certificate=directory / "client.pem"))
    output = broker.output()
    assert output.count("TLS handshake failed: ") == 3, output
    assert "peer did not return a certificate" in output


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
@pytest.mark.parametrize(
    ("version", "is_offered"), [("-tls1_1", False), ("-tls1_2", True), ("-tls1_3", True)]
)
def test_tls_versions(start, certificates: Certificates, version: str, is_offered: bool) -> None:
    broker = start(f"[[listener]]\n{TLS}")
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{broker.port}", version, "-verify_return_error",
               "-CAfile", certificates.directory / "ca.pem"]  # fmt: skip
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=15)
    assert ("Verify return code: 0 (ok)" in done.stdout and "Cipher is (NONE)" not in done.stdout) is is_offered


def test_without_the_certificate_that_is_asked_for_nobody_gets_in(start, certificates: Certificates) -> None:
    directory = certificates.directory
    broker = start(f'[[listener]]\n{TLS}cafile = "ca.pem"\nrequire_certificate = true\n')
    assert_echo(connect(broker, ca=directory / "ca.pem", certificate=directory / "client.pem"))
    context = ssl.create_default_context(cafile=str(directory / "ca.pem"))
    with (
        socket.create_connection(("127.0.0.1", broker.port), TIMEOUT_S) as plain,
        pytest.raises((ssl.SSLError, ConnectionError)),
        context.wrap_socket(plain, server_hostname="127.0.0.1") as wrapped,
    ):
        wrapped.sendall(encode(p.Connect("x", True, keep_alive_s=60), 4))
        if not wrapped.recv(10):
            raise ConnectionResetError


@pytest.mark.parametrize(("kind", "transport"), [("tls", "tcp"), ("websocket", "websockets")])
def test_the_certificate_says_who_the_client_is(
    start, certificates: Certificates, kind: str, transport: str
) -> None:
    directory = certificates.directory
    (directory / "acl").write_text("user anna\ntopic echo\n")
    broker = start(
        f'[access]\nallow_anonymous = false\nacl_file = "acl"\n[[listener]]\n{TLS.replace("tls", kind)}'
        'cafile = "ca.pem"\nrequire_certificate = true\nuse_identity_as_username = true\n'
    )
    certificate = directory / "client.pem"
    assert_echo(connect(broker, transport, ca=directory / "ca.pem", certificate=certificate))


IDENTITY = f'{TLS}cafile = "ca.pem"\nrequire_certificate = true\n'


def test_the_certificates_subject_may_be_the_user_name(start, certificates: Certificates) -> None:
    directory = certificates.directory
    certificates.issue("odd", "x@example.org", common_name="a,b+c", organization="Exämple")
    subject = x509.load_pem_x509_certificate((directory / "odd.pem").read_bytes()).subject.rfc4514_string()
    (directory / "acl").write_text(f"user {subject}\ntopic echo\n")
    broker = start(f'[access]\nacl_file = "acl"\n[[listener]]\n{IDENTITY}use_subject_as_username = true\n')
    assert_echo(connect(broker, ca=directory / "ca.pem", certificate=directory / "odd.pem"))
    assert subject.startswith("CN=a\\,b\\+c,")


@needs_mosquitto
def test_the_subject_is_written_as_mosquitto_writes_it(until_the_end, certificates: Certificates) -> None:
    directory = certificates.directory
    certificates.issue("plain", "x@example.org", common_name="anna", organization="Example Works")
    name = x509.load_pem_x509_certificate((directory / "plain.pem").read_bytes()).subject.rfc4514_string()
    files = "".join(f"{key} {directory}/{file}\n" for key, file in
                    (("certfile", "server.pem"), ("keyfile", "server.key"), ("cafile", "ca.pem")))  # fmt: skip
    theirs = until_the_end.enter_context(
        start_mosquitto(f"{files}require_certificate true\nuse_subject_as_username true\n")
    )
    client = connect(theirs, ca=directory / "ca.pem", certificate=directory / "plain.pem")
    theirs.wait_for_output(re.escape(f"u'{name}'"))
    client.disconnect()
    client.loop_stop()


def is_let_in(broker: RunningBroker, authority: Path, certificate: Path) -> bool:
    """TLS 1.3 tells the client only after its handshake: so it is asked for CONNACK."""
    context = ssl.create_default_context(cafile=str(authority))
    context.load_cert_chain(certificate, certificate.with_suffix(".key"))
    try:
        with (
            socket.create_connection(("127.0.0.1", broker.port), TIMEOUT_S) as plain,
            context.wrap_socket(plain, server_hostname="127.0.0.1") as wrapped,
        ):
            wrapped.sendall(encode(p.Connect("x", True, keep_alive_s=60), 4))
            return wrapped.recv(10) == b"\x20\x02\x00\x00"
    except (ssl.SSLError, ConnectionError):
        return False


def hang_up(broker: RunningBroker) -> None:
    done = broker.output().count("configuration reloaded")
    broker.process.send_signal(signal.SIGHUP)
    broker.wait_for_output(rf"(?s)(?:configuration reloaded.*?){{{done + 1}}}")


def test_a_revoked_certificate_is_refused_also_after_a_reload(start, certificates: Certificates) -> None:
    directory = certificates.directory
    for name in ("one", "two"):
        certificates.issue(name, f"{name}@example.org", common_name=name)
    certificates.revoke("one")
    broker = start(f'[[listener]]\n{IDENTITY}crlfile = "crl.pem"\n')
    ca, one, two = directory / "ca.pem", directory / "one.pem", directory / "two.pem"
    assert [is_let_in(broker, ca, certificate) for certificate in (one, two)] == [False, True]
    certificates.revoke("two")
    assert is_let_in(broker, ca, two)
    hang_up(broker)
    assert [is_let_in(broker, ca, certificate) for certificate in (one, two)] == [True, False]


def test_a_reload_forgets_an_authority(start, certificates: Certificates) -> None:
    directory = certificates.directory
    ours, client = directory / "ca.pem", directory / "client.pem"
    (directory / "trusted.pem").write_bytes(ours.read_bytes())
    broker = start(f'[[listener]]\n{IDENTITY.replace("ca.pem", "trusted.pem")}')
    assert is_let_in(broker, ours, client)
    trustme.CA().cert_pem.write_to_path(directory / "trusted.pem")
    hang_up(broker)
    assert not is_let_in(broker, ours, client)


def test_a_websocket_carries_what_tcp_does(start, certificates: Certificates) -> None:
    broker = start('[[listener]]\ntype = "websocket"\nport = 0\n')
    assert f"listening on ws://127.0.0.1:{broker.port}/mqtt\n" in broker.output()
    assert_echo(connect(broker, "websockets"))


def test_a_websocket_over_tls(start, certificates: Certificates) -> None:
    broker = start(f"[[listener]]\n{TLS.replace('tls', 'websocket')}")
    assert f"listening on wss://127.0.0.1:{broker.port}/mqtt\n" in broker.output()
    assert_echo(connect(broker, "websockets", ca=certificates.directory / "ca.pem"))


def upgrade(broker: RunningBroker, subprotocol: str, path: str = "/mqtt") -> socket.socket:
    client = socket.create_connection(("127.0.0.1", broker.port), TIMEOUT_S)
    offer = f"Sec-WebSocket-Protocol: {subprotocol}\r\n" if subprotocol else ""
    client.sendall(
        f"GET {path} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {'A' * 22}==\r\n{offer}\r\n".encode()
    )
    return client


@pytest.mark.parametrize(
    ("subprotocol", "path", "status"),
    [("mqtt", "/mqtt", b"101"), ("chat, mqttv3.1", "/mqtt", b"101"), ("chat", "/mqtt", b"400"),
     ("", "/mqtt", b"400"), ("mqtt", "/", b"404")],
)  # fmt: skip
def test_the_subprotocol_is_mqtt(start, subprotocol: str, path: str, status: bytes) -> None:
    broker = start('[[listener]]\ntype = "websocket"\nport = 0\n')
    with upgrade(broker, subprotocol, path) as client:
        assert client.recv(4096).split()[1] == status


def frame(opcode: int, payload: bytes) -> bytes:
    """Of a client: masked, with a mask of zeros."""
    return bytes((0x80 | opcode, 0x80 | len(payload))) + bytes(4) + payload


def test_packets_may_lie_across_websocket_messages_and_text_ends_the_connection(start) -> None:
    broker = start('[[listener]]\ntype = "websocket"\nport = 0\n')
    with upgrade(broker, "mqtt") as client:
        assert b"101" in client.recv(4096)
        packet = encode(p.Connect("split", True, keep_alive_s=60), 4)  # [MQTT-6.0.0-2]
        client.sendall(frame(2, packet[:5]))
        client.sendall(frame(2, packet[5:]))
        assert client.recv(100) == b"\x82\x04\x20\x02\x00\x00"
        client.sendall(frame(1, b"text"))  # [MQTT-6.0.0-1]
        assert client.recv(100)[:4] == b"\x88\x10\x03\xeb"  # close, 1003


def test_a_unix_socket_that_a_dead_broker_left_is_taken_over(start, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    text = f'[[listener]]\ntype = "unix"\npath = "{path}"\n'
    broker = start(text)
    assert f"listening on unix:{path}\n" in broker.output()
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, transport="unix", reconnect_on_failure=False)
    connected: queue.Queue = queue.Queue()
    client.on_connect = lambda *answer: connected.put(answer[3])
    client.connect(str(path))
    client.loop_start()
    assert not connected.get(timeout=TIMEOUT_S).is_failure
    assert_echo(client)
    with pytest.raises(BrokerDidNotStart, match="another program listens there"):
        start(text, "second.toml")
    broker.stop()
    assert not path.exists()


PROXY_HEADER = bytes.fromhex("0d0a0d0a000d0a515549540a 2111000c c0000201 7f000001 d431 075b")


def test_the_proxy_says_who_the_client_is(start) -> None:
    broker = start("[[listener]]\nport = 0\nproxy_protocol = true\n")
    with socket.create_connection(("127.0.0.1", broker.port), TIMEOUT_S) as client:
        client.sendall(PROXY_HEADER[:7])
        client.sendall(PROXY_HEADER[7:] + encode(p.Connect("behind", True, keep_alive_s=60), 4))
        assert client.recv(100) == b"\x20\x02\x00\x00"
        client.sendall(b"\xe0\x00")
        assert client.recv(100) == b""
    broker.wait_for_output(r"behind@192\.0\.2\.1:54321")
    with socket.create_connection(("127.0.0.1", broker.port), TIMEOUT_S) as client:
        client.sendall(encode(p.Connect("direct", True, keep_alive_s=60), 4))
        with pytest.raises(ConnectionResetError):
            assert client.recv(100) == b""
            raise ConnectionResetError
    broker.wait_for_output("refused: no PROXY protocol header")


def test_a_listener_has_its_own_limit_and_its_own_rules(start) -> None:
    broker = start(
        "[access]\nallow_anonymous = true\n[[listener]]\nport = 0\nmax_connections = 1\n"
        "[[listener]]\nport = 0\nallow_anonymous = false\n"
    )
    ports = [int(port) for port in re.findall(r"listening on mqtt://127\.0\.0\.1:(\d+)",
             broker.wait_for_output(r"(?s)(?:listening.*){2}").group())]  # fmt: skip
    with socket.create_connection(("127.0.0.1", ports[0]), TIMEOUT_S) as first:
        first.sendall(encode(p.Connect("first", True, keep_alive_s=60), 4))
        assert first.recv(100) == b"\x20\x02\x00\x00"
        with socket.create_connection(("127.0.0.1", ports[0]), TIMEOUT_S) as second:
            second.sendall(encode(p.Connect("second", True, keep_alive_s=60), 4))
            assert second.recv(100) == b"\x20\x02\x00\x03"
    with socket.create_connection(("127.0.0.1", ports[1]), TIMEOUT_S) as stranger:
        stranger.sendall(encode(p.Connect("stranger", True, keep_alive_s=60), 4))
        assert stranger.recv(100) == b"\x20\x02\x00\x05"


def serial_number(broker: RunningBroker, authority: Path) -> str:
    context = ssl.create_default_context(cafile=str(authority))
    with (
        socket.create_connection(("127.0.0.1", broker.port), TIMEOUT_S) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as wrapped,
    ):
        return str(wrapped.getpeercert()["serialNumber"])


def test_sighup_reloads_certificates(start, certificates: Certificates) -> None:
    broker = start(f"[[listener]]\n{TLS}")
    authority = certificates.directory / "ca.pem"
    before = serial_number(broker, authority)
    certificates.issue("server", "127.0.0.1")
    assert serial_number(broker, authority) == before
    broker.process.send_signal(signal.SIGHUP)
    broker.wait_for_output("configuration reloaded")
    assert serial_number(broker, authority) != before


def test_sighup_reloads_users_rules_and_limits(start, certificates: Certificates) -> None:
    from midge.access.passwords import make_hash, remove_user, set_password

    directory = certificates.directory
    users, acl = directory / "passwd", directory / "acl"
    for number, name in enumerate(("anna", "bert")):
        set_password(users, name, make_hash(b"x", "sha512"), create=not number)
    acl.write_text("user anna\ntopic a\ntopic end\n")
    text = '[access]\npassword_file = "passwd"\nacl_file = "acl"\n[[listener]]\nport = 0\n'
    broker = start(text)
    anna, bert = RawClient(broker, "anna"), RawClient(broker, "bert")
    anna.send(p.Subscribe(1, [p.Subscription("#", 0)]))
    assert isinstance(anna.receive(), p.Suback)

    (directory / "midge.toml").write_text(text + "[limits]\nmax_packet_size = 1000\n")
    acl.write_text("user anna\ntopic b\ntopic end\n")
    remove_user(users, "bert")
    broker.process.send_signal(signal.SIGHUP)
    broker.wait_for_output("configuration reloaded")
    farewell = bert.receive()
    assert isinstance(farewell, p.Disconnect) and farewell.reason_code == 0x87
    for topic in ("a", "b", "end"):
        anna.send(p.Publish(topic, b"", 0))
    assert [anna.receive().topic, anna.receive().topic] == ["b", "end"]
    again = RawClient(broker, "anna", client_id="again")
    assert again.connack.properties["maximum_packet_size"] == 1000

    (directory / "acl").write_text("nonsense\n")
    broker.process.send_signal(signal.SIGHUP)
    broker.wait_for_output(r"not reloaded: .*acl:1: 'nonsense' is not allowed")
    anna.send(p.Publish("b", b"", 0))
    assert anna.receive().topic == "b"
    for client in (anna, bert, again):
        client.socket.close()


class RawClient:
    """A 5.0 client with a password."""

    def __init__(self, broker: RunningBroker, user: str, client_id: str | None = None):
        self._decoder = Decoder("client", 5)
        self._packets: list = []
        self.socket = socket.create_connection(("127.0.0.1", broker.port), TIMEOUT_S)
        self.send(p.Connect(client_id or user, True, level=5, keep_alive_s=60, username=user, password=b"x"))
        self.connack = self.receive()
        assert self.connack.reason_code == 0

    def send(self, packet: p.Packet) -> None:
        self.socket.sendall(encode(packet, 5))

    def receive(self):
        while not self._packets:
            self._packets += self._decoder.receive_data(self.socket.recv(65_536))
        return self._packets.pop(0)


def test_sigterm_says_why_on_every_kind_of_listener_and_ends_soon(start, tmp_path: Path) -> None:
    broker = start('[[listener]]\nport = 0\n[[listener]]\ntype = "websocket"\nport = 0\n')
    port = int(broker.wait_for_output(r"ws://127\.0\.0\.1:(\d+)").group(1))
    client = RawClient(broker, "anna")
    broker.port = port
    web = upgrade(broker, "mqtt")
    assert b"101" in web.recv(4096)
    web.sendall(frame(2, encode(p.Connect("web", True, level=5, keep_alive_s=60), 5)))
    assert web.recv(100)[2] == 0x20
    started = time.monotonic()
    broker.send_signal(signal.SIGTERM)
    assert client.receive().reason_code == 0x8B
    assert b"\xe0\x01\x8b" in web.recv(100)
    assert broker.process.wait(5) == 0
    print("ended after", time.monotonic() - started)
    assert time.monotonic() - started < 2
    client.socket.close()
    web.close()
