"""Enhanced authentication (5.0 §3.15, §4.12): AUTH, by SCRAM-SHA-256, and re-authentication."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from spec_client import Client
from table import shows

from brokers import start_host
from midge.access.passwords import make_hash
from midge.protocol import packets as p
from midge.protocol.encoder import encode
from scram_peer import ScramClient

METHOD = "SCRAM-SHA-256"


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    directory: Path = tmp_path_factory.mktemp("scram")
    lines = [f"anna:{make_hash(b'a', 'scram-sha-256')}", f"bert:{make_hash(b'b', 'scram-sha-256')}",
             f"carl:{make_hash(b'c')}"]  # fmt: skip
    (directory / "passwd").write_text("\n".join(lines) + "\n")
    (directory / "midge.toml").write_text('[access]\npassword_file = "passwd"\nmax_failed_logins = 0\n')
    with start_host("--config", directory / "midge.toml") as running:
        yield running.port


def auth(data: bytes | None, reason_code: int = 0x18, method: str = METHOD) -> p.Auth:
    properties: dict[str, Any] = {"authentication_method": method}
    return p.Auth(reason_code, properties if data is None else properties | {"authentication_data": data})


def begin(port: int, name: str, scram: ScramClient, **properties: Any) -> Client:
    """CONNECT with the first message in it."""
    asked = {"authentication_method": METHOD, "authentication_data": scram.first} | properties
    return Client(port, 5, name, is_accepted=False, properties=asked)


def challenge(client: Client) -> bytes:
    """The broker's AUTH: its message."""
    answer = client.expect(p.Auth)
    assert answer.reason_code == 0x18
    assert set(answer.properties) == {"authentication_method", "authentication_data"}
    assert answer.properties["authentication_method"] == METHOD
    return answer.properties["authentication_data"]


def log_in(port: int, name: str, user: str = "anna", password: str = "a") -> Client:
    """One that was let in."""
    scram = ScramClient(user, password)
    client = begin(port, name, scram)
    client.send(auth(scram.final(challenge(client))))
    client.connack = client.expect(p.Connack)
    assert client.connack.reason_code == 0
    assert client.connack.properties["authentication_method"] == METHOD
    assert scram.is_signed(client.connack.properties["authentication_data"])
    return client


@shows(v5="4.12.0-2 4.12.0-5 3.15.2-1")
def test_who_shows_to_know_the_password_is_let_in(port: int, name: str) -> None:
    client = log_in(port, name)
    assert client.subscribe(name) == 0
    client.send(p.Publish(name, b"x"))
    assert [packet.payload for packet in client.until_ping()] == [b"x"]
    client.leave()


def test_the_first_message_may_come_in_auth(port: int, name: str) -> None:
    client = Client(port, 5, name, is_accepted=False, properties={"authentication_method": METHOD})
    answer = client.expect(p.Auth)
    assert answer == p.Auth(0x18, {"authentication_method": METHOD})
    scram = ScramClient("anna", "a")
    client.send(auth(scram.first))
    client.send(auth(scram.final(challenge(client))))
    assert client.expect(p.Connack).reason_code == 0
    client.leave()


@shows(v5="4.12.0-4")
@pytest.mark.parametrize(("user", "password"), [("anna", "b"), ("nobody", "a"), ("carl", "c")])
def test_who_does_not_is_refused_and_disconnected(port: int, name: str, user: str, password: str) -> None:
    scram = ScramClient(user, password)
    client = begin(port, name, scram)
    client.send(auth(scram.final(challenge(client))))
    assert client.until_closed() == [p.Connack(False, 0x86)]


def test_a_scram_user_may_also_give_the_password_itself(port: int, name: str, version: int) -> None:
    Client(port, version, name, username="anna", password=b"a").leave()
    refused = Client(port, version, name, is_accepted=False, username="anna", password=b"b")
    assert [packet.reason_code for packet in refused.until_closed()] == [0x86 if version == 5 else 4]


@shows(v5="3.1.2-30")
def test_before_connack_only_auth_and_disconnect_may_come(port: int, name: str) -> None:
    for packet in (p.Publish(name, b"x"), p.Publish(name, b"x", 1, packet_id=1), p.Pingreq(),
                   p.Subscribe(1, [p.Subscription(name)])):  # fmt: skip
        client = begin(port, name, ScramClient("anna", "a"))
        client.send(packet)
        assert type(client.expect(p.Auth)) is p.Auth
        assert client.until_closed() == [p.Connack(False, 0x82)]
    client = begin(port, name, ScramClient("anna", "a"))
    client.send(p.Disconnect())
    assert [type(packet) for packet in client.until_closed()] == [p.Auth]


def test_a_second_connect_during_the_exchange_is_a_protocol_error(port: int, name: str) -> None:
    client = begin(port, name, ScramClient("anna", "a"))
    challenge(client)
    client.send(p.Connect(name, True, 60, 5))
    assert client.until_closed() == [p.Connack(False, 0x82)]


@shows(v5="4.12.0-3 4.12.0-5")
@pytest.mark.parametrize("wrong", [auth(b"x", 0x19), auth(b"x", method="OTHER")])
def test_auth_with_another_reason_or_method_during_connect_is_a_protocol_error(
    port: int, name: str, wrong: p.Auth
) -> None:
    client = begin(port, name, ScramClient("anna", "a"))
    challenge(client)
    client.send(wrong)
    assert client.until_closed() == [p.Connack(False, 0x82)]


@shows(v5="3.15.2-2 3.15.2-3 3.1.2-24")
def test_auth_never_exceeds_what_the_client_takes(port: int, name: str) -> None:
    scram = ScramClient("anna", "a")
    client = begin(port, name, scram)
    needed = len(encode(auth(challenge(client)), 5))  # what challenge() found in it, and no more
    client.close()
    client = begin(port, name, ScramClient("anna", "a"), maximum_packet_size=needed)
    challenge(client)
    client.close()
    assert begin(port, name, ScramClient("anna", "a"), maximum_packet_size=needed - 1).until_closed() == []


def re_authenticate(client: Client, scram: ScramClient) -> None:
    client.send(auth(scram.first, 0x19))
    client.send(auth(scram.final(challenge(client))))


@shows(v5="4.12.0-5 4.12.1-1")
def test_re_authentication_goes_on_beside_other_packets(port: int, name: str) -> None:
    client = log_in(port, name)
    client.subscribe(name)
    scram = ScramClient("anna", "a")
    client.send(auth(scram.first, 0x19))
    final = scram.final(challenge(client))
    client.send(p.Publish(name, b"meanwhile"))
    assert [packet.payload for packet in client.until_ping()] == [b"meanwhile"]
    client.send(auth(final))
    done = client.expect(p.Auth)
    assert done.reason_code == 0 and done.properties["authentication_method"] == METHOD
    assert scram.is_signed(done.properties["authentication_data"])
    re_authenticate(client, again := ScramClient("anna", "a"))
    assert again.is_signed(client.expect(p.Auth).properties["authentication_data"])
    client.leave()


@shows(v5="4.12.1-2")
@pytest.mark.parametrize(("user", "password"), [("anna", "wrong"), ("bert", "b")])
def test_re_authentication_that_fails_or_as_somebody_else_ends_the_connection(
    port: int, name: str, user: str, password: str
) -> None:
    client = log_in(port, name)
    re_authenticate(client, ScramClient(user, password))
    client.expect_disconnect(0x87)


@pytest.mark.parametrize(
    "wrong", [auth(b"x"), auth(b"x", 0x19, "OTHER")], ids=["no exchange under way", "another method"]
)
def test_auth_out_of_turn_is_a_protocol_error(port: int, name: str, wrong: p.Auth) -> None:
    client = log_in(port, name)
    client.send(wrong)
    client.expect_disconnect(0x82)


def test_a_second_re_authentication_during_one_is_a_protocol_error(port: int, name: str) -> None:
    client = log_in(port, name)
    client.send(auth(ScramClient("anna", "a").first, 0x19))
    challenge(client)
    client.send(auth(ScramClient("anna", "a").first, 0x19))
    client.expect_disconnect(0x82)


def test_who_connected_by_password_can_not_re_authenticate(port: int, name: str) -> None:
    client = Client(port, 5, name, username="anna", password=b"a")
    client.send(auth(ScramClient("anna", "a").first, 0x19))
    client.expect_disconnect(0x82)
