"""How `midge sub` prints a message: payload, `-v`, or the `-F` format string of mosquitto_sub.
Knows nothing of connections; a format is read once and then applied to each message.
"""

import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from midge.cli.options import UsageError


@dataclass(slots=True)
class Message:
    """What there is to print. `properties` has the identifiers of MQTT 5.0 as mosquitto spells them."""

    topic: str
    payload: bytes
    qos: int = 0
    retain: bool = False
    packet_id: int = 0
    properties: dict[str, int | str | bytes] = field(default_factory=dict)
    user_properties: list[tuple[str, str]] = field(default_factory=list)
    time_ns: int = 0


Part = Callable[[Message], bytes]

_SPECIFIER = re.compile(r"%([0-]*)(\d*)(?:\.(\d+))?(.?)", re.DOTALL)
_ESCAPES = {
    "\\": b"\\",
    "0": b"\0",
    "a": b"\a",
    "e": b"\x1b",
    "n": b"\n",
    "r": b"\r",
    "t": b"\t",
    "v": b"\v",
}


def payload_only(message: Message) -> bytes:
    return message.payload


def topic_and_payload(message: Message) -> bytes:
    # "(null)" for an empty payload is mosquitto_sub's, and scripts compare with it.
    return message.topic.encode() + b" " + (message.payload or b"(null)")


def compile_format(text: str) -> Part:
    """A printer for the format string `text`; `UsageError` names what it doesn't understand."""
    parts: list[Part] = []
    at = 0
    while at < len(text):
        character = text[at]
        if character == "%":
            match = _SPECIFIER.match(text, at)
            if match is None or not match[4]:
                raise UsageError("Incomplete format specifier.")
            parts.append(_specifier(match[1], match[2], match[3], match[4]))
            at = match.end()
            continue
        if character in "@\\":
            if at + 1 == len(text):
                kind = "format" if character == "@" else "escape"
                raise UsageError(f"Incomplete {kind} specifier.")
            parts.append(_time_part(text[at + 1]) if character == "@" else _escape(text[at + 1]))
            at += 2
            continue
        end = min((i for i in (text.find(c, at) for c in "%@\\") if i >= 0), default=len(text))
        parts.append(_literal(text[at:end].encode("utf-8", "surrogateescape")))
        at = end
    return lambda message: b"".join([part(message) for part in parts])


def _literal(data: bytes) -> Part:
    return lambda _: data


def _escape(character: str) -> Part:
    if character not in _ESCAPES:
        raise UsageError(f"Invalid escape specifier '{character}'.")
    return _literal(_ESCAPES[character])


def _time_part(character: str) -> Part:
    if character == "@":
        return _literal(b"@")
    if character == "N":
        return lambda message: b"%09d" % (message.time_ns % 1_000_000_000)
    return lambda message: time.strftime(f"%{character}", _local(message)).encode()


def _local(message: Message) -> time.struct_time:
    return time.localtime(message.time_ns // 1_000_000_000)


def _specifier(flags: str, width: str, precision: str | None, letter: str) -> Part:
    if letter == "%":
        return _literal(b"%")
    field_of = _FIELDS.get(letter)
    if field_of is None:
        raise UsageError(f"Invalid format specifier '{letter}'.")
    least, most = int(width or 0), None if precision is None else int(precision)

    def part(message: Message) -> bytes:
        data = field_of(message)
        if most is not None and letter in "CIRt":
            data = data[:most]
        if "-" in flags:
            return data.ljust(least)
        return data.rjust(least, b"0" if "0" in flags and letter in "AEFlmSXx" else b" ")

    return part


def _number(get: Callable[[Message], int]) -> Part:
    return lambda message: b"%d" % get(message)


def _property(name: str) -> Part:
    def part(message: Message) -> bytes:
        given = message.properties.get(name, b"")
        return given if isinstance(given, bytes) else str(given).encode()

    return part


def _user_properties(message: Message) -> bytes:
    return " ".join(f"{name}:{value}" for name, value in message.user_properties).encode()


def _iso_time(message: Message) -> bytes:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z", _local(message)).encode()


def _unix_time(message: Message) -> bytes:
    return b"%d.%09d" % divmod(message.time_ns, 1_000_000_000)


def _json(message: Message, payload: str) -> bytes:
    """The fields and their order are mosquitto_sub's. `payload` is JSON already."""
    microseconds = message.time_ns // 1000 % 1_000_000
    local = _local(message)
    when = time.strftime("%Y-%m-%dT%H:%M:%S", local) + f".{microseconds:06d}" + time.strftime("%z", local)
    fields = [("tst", _quote(when)), ("topic", _quote(message.topic)), ("qos", str(message.qos))]
    fields += [("retain", str(int(message.retain))), ("payloadlen", str(len(message.payload)))]
    if message.qos:
        fields.append(("mid", str(message.packet_id)))
    properties = _json_properties(message)
    if properties:
        fields.append(("properties", properties))
    return _object([*fields, ("payload", payload)]).encode()


def _json_properties(message: Message) -> str:
    fields = []
    if message.user_properties:
        # Names may repeat [MQTT-3.3.2.3.7], so this is no dict.
        fields.append(("user-properties", _object([(k, _quote(v)) for k, v in message.user_properties])))
    for name, given in message.properties.items():
        text = given.decode("utf-8", "replace") if isinstance(given, bytes) else given
        fields.append((name, _quote(text)))
    return _object(fields) if fields else ""


def _quote(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _object(fields: list[tuple[str, str]]) -> str:
    return "{" + ",".join(f"{_quote(name)}:{value}" for name, value in fields) + "}"


def _json_quoted(message: Message) -> bytes:
    return _json(message, _quote(message.payload.decode("utf-8", "replace")))


def _json_plain(message: Message) -> bytes:
    try:
        payload = _quote(json.loads(message.payload))
    except ValueError:
        raise FormatError(f"Message payload is not valid JSON on topic {message.topic}.") from None
    return _json(message, payload)


class FormatError(Exception):
    """This message can't be printed in this format."""


_FIELDS: dict[str, Part] = {
    "A": _property("topic-alias"),
    "C": _property("content-type"),
    "D": _property("correlation-data"),
    "E": _property("message-expiry-interval"),
    "F": _property("payload-format-indicator"),
    "I": _iso_time,
    "j": _json_quoted,
    "J": _json_plain,
    "l": _number(lambda message: len(message.payload)),
    "m": _number(lambda message: message.packet_id),
    "P": _user_properties,
    "p": payload_only,
    "q": _number(lambda message: message.qos),
    "R": _property("response-topic"),
    "r": _number(lambda message: message.retain),
    "S": _property("subscription-identifier"),
    "t": lambda message: message.topic.encode(),
    "U": _unix_time,
    "x": lambda message: message.payload.hex().encode(),
    "X": lambda message: message.payload.hex().upper().encode(),
}
