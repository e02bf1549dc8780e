"""`-F`: what each letter of the format string prints."""

import base64
import json

import pytest

from midge.cli.message_format import (
    FormatError,
    Message,
    as_json,
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
    properties={
        "content-type": "text/plain",
        "user-properties": [("k", "v"), ("k", "w")],
        "message-expiry-interval": 60,
        "correlation-data": b"id\x00",
        "subscription-identifier": [7, 8],
    },
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
    ("%A%F%R|%S", b"|7 8"),
    ("%3A|%03A|%3F|%3R|%03R", b"   |000|   ||"),
    ("%P", b"k:v k:w"),
    ("%15t|%-15t|%.3t|%5.3t", b"   kitchen/lamp|kitchen/lamp   |kit|  kit"),
    ("%05l|%5l|%-5l|%-05l", b"00003|    3|3    |3    "),
    ("%.1p|%5p|%-5p|%05p|%2p", b"on\xff|  on\xff|on\xff  |00on\xff|on"),
    ("%8x|%-8X|%5x|%2x", b"      6f|6F      |   6f|6f"),  # the half of what fits: mosquitto_sub's arithmetic
    ("%5q|%5r|%9P|%-9D", b"1|1|k:v k:w|id\x00"),  # fields that have no width
    ("%00015E|%5%", b"000000000000060|%"),
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
    ("%--5l", "Invalid format specifier '-'."),
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
    assert list(values["properties"]) == list(MESSAGE.properties)  # in the order in which they came


def test_unquoted_json_takes_the_payload_as_json() -> None:
    message = Message("t", b'{"a": [1, 2]}')
    assert json.loads(compile_format("%J")(message))["payload"] == {"a": [1, 2]}
    with pytest.raises(FormatError, match="not valid JSON on topic t"):
        compile_format("%J")(Message("t", b"plain"))
    assert b'"payload":[1000,2.5,{"a":1,"a":2}]' in compile_format("%J")(Message("t", b'[1e3, 2.50, {"a":1,"a":2}]'))
    assert json.loads(compile_format("%J")(Message("t", b"")))["payload"] is None


def test_pretty_json_is_indented_and_the_same() -> None:
    short, long = compile_format("%j")(MESSAGE), compile_format("%j", is_pretty=True)(MESSAGE)
    assert json.loads(short) == json.loads(long)
    assert long.startswith(b'{\n\t"tst":\t"')
    assert b'\n\t\t"content-type":\t"text/plain",' in long


def test_our_json_holds_every_byte() -> None:
    values = json.loads(as_json(MESSAGE))
    assert values["payload_base64"] == base64.b64encode(MESSAGE.payload).decode()
    assert values["user-properties"] == [["k", "v"], ["k", "w"]]
    assert base64.b64decode(values["correlation-data_base64"]) == b"id\x00"
    assert (values["qos"], values["retain"], values["time"]) == (1, True, MESSAGE.time_ns / 1e9)
    assert json.loads(as_json(Message("t", "ü".encode())))["payload"] == "ü"


def test_the_plain_forms() -> None:
    assert payload_only(MESSAGE) == b"on\xff"
    assert topic_and_payload(MESSAGE) == b"kitchen/lamp on\xff"
    assert topic_and_payload(Message("t", b"")) == b"t (null)"
