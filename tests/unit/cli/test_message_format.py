"""`-F`: what each letter of the format string prints."""

import json

import pytest

from midge.cli.message_format import (
    FormatError,
    Message,
    compile_format,
    payload_only,
    topic_and_payload,
)
from midge.cli.options import UsageError

MESSAGE = Message(
    topic="kitchen/lamp",
    payload=b"on\xff",
    qos=1,
    retain=True,
    packet_id=7,
    properties={"content-type": "text/plain", "message-expiry-interval": 60, "correlation-data": b"id\x00"},
    user_properties=[("k", "v"), ("k", "w")],
    time_ns=1_470_818_943_786_368_637,
)

CASES = [
    ("", b""),
    ("plain ü", "plain ü".encode()),
    ("%%", b"%"),
    ("@@", b"@"),
    (r"\\\a\e\n\r\t\v\0", b"\\\a\x1b\n\r\t\v\0"),
    ("%t %p", b"kitchen/lamp on\xff"),
    ("%q %r %m %l", b"1 1 7 3"),
    ("%x %X", b"6f6eff 6F6EFF"),
    ("%C|%E|%D", b"text/plain|60|id\x00"),
    ("%A%F%R%S", b""),
    ("%P", b"k:v k:w"),
    ("%15t|%-15t|%.3t|%5.3t", b"   kitchen/lamp|kitchen/lamp   |kit|  kit"),
    ("%05l|%5l|%-5l|%-05l", b"00003|    3|3    |3    "),
    ("%.1p", b"on\xff"),
    ("%U", b"1470818943.786368637"),
    ("@N", b"786368637"),
]


@pytest.mark.parametrize(("text", "expected"), CASES)
def test_format(text: str, expected: bytes) -> None:
    assert compile_format(text)(MESSAGE) == expected


@pytest.mark.parametrize(("text", "error"), [
    ("%", "Incomplete format specifier."),
    ("%-05", "Incomplete format specifier."),
    ("x@", "Incomplete format specifier."),
    ("x\\", "Incomplete escape specifier."),
    ("%k", "Invalid format specifier 'k'."),
    (r"\q", "Invalid escape specifier 'q'."),
])  # fmt: skip
def test_a_wrong_format_is_refused(text: str, error: str) -> None:
    with pytest.raises(UsageError, match=error.replace("\\", "\\\\")):
        compile_format(text)


def test_time_letters_go_to_strftime() -> None:
    assert compile_format("@Y-%I")(MESSAGE).startswith(b"2016-2016-08-1")


def test_json_has_the_fields_of_mosquitto_sub_and_is_json() -> None:
    text = compile_format("%j")(MESSAGE).decode()
    values = json.loads(text)
    assert list(values) == ["tst", "topic", "qos", "retain", "payloadlen", "mid", "properties", "payload"]
    assert values["payload"] == "on\N{REPLACEMENT CHARACTER}"
    assert '"user-properties":{"k":"v","k":"w"}' in text


def test_unquoted_json_takes_the_payload_as_json() -> None:
    message = Message("t", b'{"a": [1, 2]}')
    assert json.loads(compile_format("%J")(message))["payload"] == {"a": [1, 2]}
    with pytest.raises(FormatError, match="not valid JSON on topic t"):
        compile_format("%J")(Message("t", b"plain"))


def test_the_plain_forms() -> None:
    assert payload_only(MESSAGE) == b"on\xff"
    assert topic_and_payload(MESSAGE) == b"kitchen/lamp on\xff"
    assert topic_and_payload(Message("t", b"")) == b"t (null)"
