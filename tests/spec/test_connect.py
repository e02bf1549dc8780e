"""CONNECT and CONNACK (3.1, 3.2 of both specifications): sessions, wills, keep alive, identifiers, refusals."""

from __future__ import annotations

import string
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from spec_client import Client
from table import shows

from brokers import start_host
from midge.protocol import packets as p

Connect = Callable[..., Client]


def keep(version: int) -> dict[str, object]:
    """What CONNECT says so that its session lasts."""
    return {"clean_start": False} | ({"properties": {"session_expiry_interval": 300}} if version == 5 else {})


# -- CONNACK --


@shows(v3="3.1.4-4 3.2.0-1 3.2.2-1 7.1.1-1", v5="3.1.4-5 3.2.0-1 3.2.2-1 3.2.2-2 4.2.0-1")
def test_connect_is_answered_by_connack_before_anything_else(port: int, name: str, version: int) -> None:
    client = Client(port, version, name, is_accepted=False)
    client.send(p.Subscribe(1, [p.Subscription(name)]), p.Publish(name, b"x"))
    connack = client.expect(p.Connack)
    assert (connack.session_present, connack.reason_code) == (False, 0)
    client.expect(p.Suback)
    assert client.expect(p.Publish).payload == b"x"
    client.close()


@shows(v5="3.2.0-2 4.12.0-6 3.1.2-28")
def test_there_is_one_connack_without_what_was_not_asked_for(client: Connect, name: str) -> None:
    one = client(5, properties={"request_response_information": 0})
    properties = one.connack.properties
    assert not {"response_information", "authentication_method", "authentication_data"} & set(properties)
    one.subscribe(name, 1)
    one.send(p.Publish(name, b"x", 1, packet_id=1))
    kinds = {type(one.receive(5)) for _ in range(2)}
    assert kinds == {p.Puback, p.Publish}
    assert one.until_ping() == []


def test_response_information_is_given_to_who_asks(client: Connect, name: str) -> None:
    one = client(5, name, properties={"request_response_information": 1})
    assert one.connack.properties["response_information"] == f"response/{name}"


@shows(v5="3.2.2-19 3.2.2-20 3.1.2-24")
def test_a_client_that_connack_is_too_large_for_is_not_sent_it(port: int, client: Connect, name: str) -> None:
    size = next(size for size in range(5, 60) if _accepts(port, name, size))
    assert 10 < size < 30
    client(5, properties={"maximum_packet_size": size})


def _accepts(port: int, name: str, size: int) -> bool:
    one = Client(port, 5, name, is_accepted=False, properties={"maximum_packet_size": size})
    one.send(p.Disconnect())
    return [type(packet) for packet in one.until_closed()] == [p.Connack]


# -- refusals --


@shows(v3="3.1.4-1 3.1.4-5 4.8.0-1", v5="3.1.4-1 3.1.4-6 3.14.0-1 3.2.2-6 3.2.2-7 3.2.2-8 4.13.1-1 4.13.2-1")
def test_an_illegal_connect_is_refused_and_what_follows_it_is_not_done(
    port: int, client: Connect, name: str, version: int
) -> None:
    watcher = client(version)
    watcher.subscribe(name)
    bad = Client(port, version, name)
    bad.close()
    bad.open(port)
    level, properties = (5, b"\x00") if version == 5 else (4, b"")
    body = b"\x00\x04MQTT" + bytes((level, 0x03, 0, 60)) + properties + b"\x00\x01x"  # the reserved flag
    publish = p.Publish(name, b"x")
    bad.send_raw(bytes((0x10, len(body))) + body)
    bad.send(publish)
    # 3.1.1 closes without CONNACK; 5.0 may say why, by CONNACK and never by DISCONNECT.
    assert bad.until_closed() == ([p.Connack(False, 0x81)] if version == 5 else [])
    assert watcher.until_ping() == []


@shows(v3="3.1.2-2 3.1.4-5 3.2.2-4 3.2.2-5")
def test_an_unknown_level_is_answered_by_return_code_1(port: int) -> None:
    client = Client(port, 4, "x")
    client.close()
    client.open(port)
    client.send_raw(bytes.fromhex("100d 0004 4d515454 02 02 003c 0001 78"))
    assert client.until_closed() == [p.Connack(False, 1)]


@shows(v3="3.1.3-7 3.1.3-8 3.1.3-9 3.1.4-5 3.2.2-4 3.2.2-5")
def test_no_identifier_with_clean_session_0_is_answered_by_return_code_2(
    port: int, client: Connect, name: str
) -> None:
    watcher = client(4)
    watcher.subscribe(name)
    refused = Client(port, 4, "", is_accepted=False, clean_start=False)
    refused.send(p.Publish(name, b"x"))
    assert refused.until_closed() == [p.Connack(False, 2)]
    assert watcher.until_ping() == []


@shows(v5="3.1.3-8")
def test_an_identifier_that_is_not_to_be_had_is_refused(port: int) -> None:
    """Those of the broker's own bridges: whoever took one would get what waits for them."""
    refused = Client(port, 5, "bridge/x", is_accepted=False)
    assert refused.until_closed() == [p.Connack(False, 0x85)]


@shows(v3="3.2.2-6", v5="3.1.4-2 3.2.2-7 4.13.2-1")
def test_a_client_that_may_not_connect_is_closed(version: int, tmp_path: Path) -> None:
    config = tmp_path / "midge.toml"
    config.write_text("[access]\nallow_anonymous = false\n", encoding="utf-8")
    with start_host("--config", config) as broker:
        refused = Client(broker.port, version, "x", is_accepted=False)
        received = refused.until_closed()
    assert [type(packet) for packet in received] == [p.Connack]
    assert received[0].session_present is False
    assert received[0].reason_code in ((0x86, 0x87) if version == 5 else (4, 5))


@shows(v5="4.12.0-1 4.12.0-4 3.2.2-8")
def test_an_authentication_method_that_is_not_offered_is_refused(port: int, name: str) -> None:
    refused = Client(port, 5, name, is_accepted=False, properties={"authentication_method": "OURS"})
    assert refused.until_closed() == [p.Connack(False, 0x8C)]


@shows(v5="4.12.0-7 3.15.2-1")
def test_auth_without_an_authentication_method_is_a_protocol_error(client: Connect) -> None:
    one = client(5)
    one.send(p.Auth(0x18, {"authentication_method": "OURS"}))
    one.expect_disconnect(0x82)


# -- client identifiers --


@shows(v3="3.1.3-5", v5="3.1.3-5")
def test_identifiers_of_letters_and_digits_are_allowed(client: Connect, version: int) -> None:
    letters = string.digits + string.ascii_letters
    for start in range(0, len(letters), 23):
        client(version, letters[start : start + 23])
    client(version, "a")


@shows(v3="3.1.3-4", v5="3.1.3-4")
def test_an_identifier_that_is_not_utf_8_is_refused(port: int, version: int) -> None:
    client = Client(port, version, "x")
    client.close()
    client.open(port)
    level, properties = (5, b"\x00") if version == 5 else (4, b"")
    body = b"\x00\x04MQTT" + bytes((level, 0x02, 0, 60)) + properties + b"\x00\x02\xc3\x28"
    client.send_raw(bytes((0x10, len(body))) + body)
    assert client.until_closed() == ([p.Connack(False, 0x81)] if version == 5 else [])


@shows(v5="3.1.3-6 3.1.3-7 3.2.2-16")
@pytest.mark.parametrize("clean_start", [True, False])
def test_a_client_without_identifier_is_assigned_one_that_works_as_its_own(
    port: int, client: Connect, name: str, clean_start: bool
) -> None:
    expiry = {"session_expiry_interval": 60}
    one = Client(port, 5, "", clean_start=clean_start, properties=expiry)
    other = Client(port, 5, "", clean_start=clean_start, properties=expiry)
    assigned = one.connack.properties["assigned_client_identifier"]
    assert assigned and assigned != other.connack.properties["assigned_client_identifier"]
    one.subscribe(name, 1)
    one.leave()
    other.close()
    client(5).publish(name, b"kept", 1)
    again = client(5, assigned, clean_start=False)
    assert again.connack.session_present
    assert "assigned_client_identifier" not in (again.connack.properties or {})
    assert again.take().payload == b"kept"


@shows(v3="3.1.3-6")
def test_clients_without_identifier_have_sessions_of_their_own(port: int, name: str) -> None:
    one, other = Client(port, 4, ""), Client(port, 4, "")
    one.subscribe(name)
    other.subscribe(name)
    other.publish("elsewhere", b"")
    for client in (one, other):
        assert client.until_ping() == []
        client.close()


@shows(v3="3.1.3-2 3.1.4-2", v5="3.1.3-2 3.1.4-3 3.14.4-1 3.14.4-2")
def test_an_identifier_that_is_connected_is_taken_over(client: Connect, name: str, version: int) -> None:
    older = client(version, name, **keep(version))
    older.subscribe(name, 1)
    newer = client(version, name, **keep(version))
    older.expect_disconnect(0x8E)
    assert newer.connack.session_present
    client(version).publish(name, b"x", 1)
    assert newer.take().payload == b"x"


@shows(v5="3.1.4-3")
def test_taking_over_ends_a_session_that_was_to_end_with_its_connection(client: Connect, name: str) -> None:
    older = client(5, name)
    newer = client(5, name, clean_start=False)
    older.expect_disconnect(0x8E)
    assert not newer.connack.session_present


# -- sessions --


@shows(v3="3.1.2-4 3.1.2-5 3.2.2-2 3.2.2-3 4.1.0-1", v5="3.1.2-5 3.1.2-6 3.1.2-23 3.2.2-3")
def test_a_session_that_is_to_last_goes_on(client: Connect, name: str, version: int) -> None:
    first = client(version, name, **keep(version))
    assert not first.connack.session_present
    first.subscribe(f"{name}/1", 1)
    first.subscribe(f"{name}/2", 2)
    first.leave()
    publisher = client(version)
    publisher.publish(f"{name}/1", b"one", 1)
    publisher.publish(f"{name}/2", b"two", 2)
    second = client(version, name, **keep(version))
    assert second.connack.session_present
    assert [(m.payload, m.qos) for m in (second.take(), second.take())] == [(b"one", 1), (b"two", 2)]
    publisher.publish(f"{name}/1", b"three", 1)
    assert second.take().payload == b"three"


@shows(v3="3.1.2-6 3.1.4-3 3.2.2-1", v5="3.1.2-4 3.1.4-4 3.2.2-2")
def test_a_clean_start_discards_the_session_for_good(client: Connect, name: str, version: int) -> None:
    first = client(version, name, **keep(version))
    first.subscribe(name, 1)
    first.leave()
    publisher = client(version)
    publisher.publish(name, b"lost", 1)
    clean = client(version, name)
    assert not clean.connack.session_present
    publisher.publish(name, b"not subscribed", 1)
    assert clean.until_ping() == []
    clean.leave()
    third = client(version, name, **keep(version))
    assert not third.connack.session_present
    assert third.until_ping() == []


@shows(v3="3.1.2-7")
def test_retained_messages_outlive_the_session(client: Connect, name: str, version: int) -> None:
    publisher = client(version)
    publisher.publish(name, b"kept", 1, retain=True)
    publisher.leave()
    reader = client(version)
    reader.subscribe(name)
    assert reader.take().payload == b"kept"


@shows(v5="4.1.0-2")
def test_a_session_is_gone_when_its_expiry_interval_has_passed(client: Connect, name: str) -> None:
    one = client(5, name, clean_start=False, properties={"session_expiry_interval": 1})
    one.leave()
    time.sleep(1.1)  # what passes is what is tested
    assert not client(5, name, clean_start=False).connack.session_present


@shows(v3="4.1.0-2", v5="4.1.0-1")
def test_a_session_lasts_while_its_connection_is_open(client: Connect, name: str, version: int) -> None:
    one = client(version, name, **({"properties": {"session_expiry_interval": 1}} if version == 5 else {}))
    one.subscribe(name, 1)
    time.sleep(1.1)
    client(version).publish(name, b"x", 1)
    assert one.take().payload == b"x"


# -- user name and password --


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"username": "someone"},
        {"username": "someone", "password": b"\x00secret"},
        {"username": "", "password": b""},
    ],
)
@shows(v3="3.1.2-18 3.1.2-19 3.1.2-20 3.1.2-21", v5="3.1.2-16 3.1.2-17 3.1.2-18 3.1.2-19")
def test_user_name_and_password_are_there_as_the_flags_say(
    client: Connect, version: int, given: dict[str, object]
) -> None:
    assert client(version, **given).connack.reason_code == 0


@shows(v5="3.1.2-16 3.1.2-19")
def test_5_0_has_a_password_without_user_name(client: Connect) -> None:
    assert client(5, password=b"token").connack.reason_code == 0


# -- keep alive --


@shows(v3="3.1.2-24", v5="3.1.2-22 3.2.2-22")
def test_a_silent_client_is_cut_off_after_one_and_a_half_keep_alives(
    client: Connect, name: str, version: int
) -> None:
    watcher = client(version)
    watcher.subscribe(name)
    silent = client(version, keep_alive_s=1, will=p.Will(name, b"silent"))
    assert "server_keep_alive" not in (silent.connack.properties or {})
    start = time.monotonic()
    silent.expect_disconnect(0x8D)
    assert 1.4 <= time.monotonic() - start < 4
    assert watcher.take().payload == b"silent"  # as if the network had failed


@shows(v5="3.1.2-22")
def test_a_shorter_keep_alive_of_the_server_is_announced_and_kept(tmp_path: Path) -> None:
    config = tmp_path / "midge.toml"
    config.write_text("[limits]\nmax_keep_alive = 1\n", encoding="utf-8")
    with start_host("--config", config) as broker:
        for asked in (60, 0):
            client = Client(broker.port, 5, f"k{asked}", keep_alive_s=asked)
            assert client.connack.properties["server_keep_alive"] == 1
            start = time.monotonic()
            client.expect_disconnect(0x8D)
            assert 1.4 <= time.monotonic() - start < 4


# -- wills --


def will(name: str, payload: bytes = b"gone", qos: int = 0, retain: bool = False, **properties: object) -> p.Will:
    return p.Will(name, payload, qos, retain, properties)  # type: ignore[arg-type]


@shows(v3="3.1.2-8 3.1.2-9 3.1.2-14 3.1.2-16 3.1.3-1", v5="3.1.2-7 3.1.2-8 3.1.2-9 3.1.2-12 3.1.2-14 3.1.3-1")
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_a_will_is_published_with_its_qos_when_the_connection_breaks(
    client: Connect, name: str, version: int, qos: int
) -> None:
    watcher = client(version)
    watcher.subscribe(name, 2)
    client(version, username="u", password=b"p", will=will(name, b"gone", qos)).close()
    message = watcher.take()
    assert (message.payload, message.qos, message.retain) == (b"gone", qos, False)
    later = client(version)
    later.subscribe(name)
    assert later.until_ping() == []  # not retained


@shows(v3="3.1.2-17", v5="3.1.2-15")
def test_a_will_with_retain_is_retained(client: Connect, name: str, version: int) -> None:
    watcher = client(version)
    watcher.subscribe(name)
    client(version, will=will(name, b"gone", retain=True)).close()
    assert watcher.take().retain is False
    later = client(version)
    later.subscribe(name)
    message = later.take()
    assert (message.payload, message.retain) == (b"gone", True)


@shows(v3="3.1.2-10 3.14.4-3", v5="3.1.2-8 3.1.2-10 3.14.4-3")
def test_disconnect_discards_the_will(client: Connect, name: str, version: int) -> None:
    watcher = client(version)
    watcher.subscribe(name)
    client(version, will=will(name)).leave()
    assert watcher.until_ping() == []


@shows(v3="3.1.2-10", v5="3.1.2-10")
def test_a_will_is_published_once(client: Connect, name: str, version: int) -> None:
    watcher = client(version)
    watcher.subscribe(name)
    client(version, name, **keep(version), will=will(name)).close()
    assert watcher.take().payload == b"gone"
    client(version, name, **keep(version)).close()
    client(version, name).leave()
    assert watcher.until_ping() == []


@shows(v3="3.1.2-12", v5="3.1.2-11 3.1.2-13")
def test_without_a_will_none_is_published(client: Connect, name: str, version: int) -> None:
    watcher = client(version)
    watcher.subscribe("#")
    client(version, name).close()
    client(version, name).leave()  # by now the broken connection has been noticed
    assert [message for message in watcher.until_ping() if not message.retain] == []


def test_disconnect_with_will_message_publishes_it(client: Connect, name: str) -> None:
    watcher = client(5)
    watcher.subscribe(name)
    client(5, will=will(name)).leave(0x04)
    assert watcher.take().payload == b"gone"


@shows(v5="3.1.2-8")
def test_a_protocol_error_publishes_the_will(client: Connect, name: str, version: int) -> None:
    watcher = client(version)
    watcher.subscribe(name)
    bad = client(version, will=will(name))
    bad.send_raw(b"\x00\x00")
    bad.expect_disconnect(0x81)
    assert watcher.take().payload == b"gone"


@shows(v5="3.1.2-8")
def test_a_will_is_delayed(client: Connect, name: str) -> None:
    watcher = client(5)
    watcher.subscribe(name)
    expiry = {"session_expiry_interval": 60}
    delayed = client(5, will=will(name, will_delay_interval=1), properties=expiry)
    delayed.close()
    start = time.monotonic()
    assert watcher.take().payload == b"gone"
    assert 0.95 <= time.monotonic() - start < 2.5  # on a busy machine; else a few ms after the second


@shows(v5="3.1.2-8")
@pytest.mark.parametrize("expiry_s", [0, 1])
def test_a_delayed_will_is_published_when_the_session_ends_first(
    client: Connect, name: str, expiry_s: int
) -> None:
    watcher = client(5)
    watcher.subscribe(name)
    expiry = {"session_expiry_interval": expiry_s}
    client(5, will=will(name, will_delay_interval=60), properties=expiry).close()
    start = time.monotonic()
    assert watcher.take().payload == b"gone"
    assert expiry_s - 0.05 <= time.monotonic() - start < expiry_s + 3


@shows(v5="3.1.3-9 3.1.2-8")
def test_a_client_that_is_back_within_the_delay_has_no_will(client: Connect, name: str) -> None:
    watcher = client(5)
    watcher.subscribe(name)
    expiry = {"session_expiry_interval": 60}
    client(5, name, will=will(name, will_delay_interval=1), properties=expiry).close()
    back = client(5, name, clean_start=False, properties=expiry)
    assert back.connack.session_present
    time.sleep(1.2)  # the delay passes
    assert watcher.until_ping() == []


@shows(v5="3.1.3-10 3.1.2-9")
def test_a_will_has_its_properties(client: Connect, name: str) -> None:
    watcher = client(5)
    watcher.subscribe(name)
    properties = {
        "payload_format_indicator": 1,
        "message_expiry_interval": 30,
        "content_type": "text/plain",
        "response_topic": "answers",
        "correlation_data": b"\x01\x02",
        "user_property": [("z", "1"), ("a", "2"), ("z", "1")],
    }
    client(5, will=will(name, **properties)).close()
    assert watcher.take().properties == properties


# -- MQTT 3.1 --


def test_clients_of_3_1_are_served(client: Connect, port: int, name: str) -> None:
    """Level 3, MQIsdp: as 3.1.1 but for CONNECT, and DUP is allowed in SUBSCRIBE (3.1 §2.1)."""
    one = client(3, name, clean_start=False)
    one.send_raw(bytes((0x8A, 5 + len(name), 0, 1, 0, len(name))) + name.encode() + b"\x01")
    assert one.expect(p.Suback).reason_codes == [1]
    one.leave()
    client(5).publish(name, b"x", 1)
    assert client(3, name, clean_start=False).take().payload == b"x"
    refused = Client(port, 3, "", is_accepted=False, clean_start=False)
    assert refused.until_closed() == [p.Connack(False, 2)]
