"""How `midge sub` prints a message: payload, `-v`, JSON, or the `-F` format string of mosquitto_sub.
Knows nothing of connections; a format is read once and then applied to each message.
"""

import base64
import json
import re
import time
from collections.abc import Callable
from typing import Any

from midge.cli.options import UsageError

Property = int | str | bytes | list[int] | list[tuple[str, str]]


class Message:
    """What there is to print. `properties` has mosquitto's names, in the order in which they came;
    "user-properties" are pairs, "subscription-identifier" is a list."""

    __slots__ = ("packet_id", "payload", "properties", "qos", "retain", "time_ns", "topic")

    def __init__(
        self,
        topic: str,
        payload: bytes,
        qos: int = 0,
        retain: bool = False,
        packet_id: int = 0,
        properties: dict[str, Property] | None = None,
        time_ns: int = 0,
    ) -> None:
        self.topic = topic
        self.payload = payload
        self.qos = qos
        self.retain = retain
        self.packet_id = packet_id
        self.properties = properties or {}
        self.time_ns = time_ns


Part = Callable[[Message], bytes]

_SPECIFIER = re.compile(r"%([0-]?)(\d*)(?:\.(\d*))?(.?)", re.DOTALL)
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


def compile_format(text: str, is_pretty: bool = False) -> Part:
    """A printer for the format string `text`; `UsageError` names what it doesn't understand."""
    parts: list[Part] = []
    at = 0
    while at < len(text):
        character = text[at]
        if character == "%":
            match = _SPECIFIER.match(text, at)
            if match is None or not match[4]:
                raise UsageError("Incomplete format specifier.")
            parts.append(_specifier(match, is_pretty))
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
    return lambda message: _join(parts, message)


def _join(parts: list[Part], message: Message) -> bytes:
    line, error = [], None
    for part in parts:
        try:
            line.append(part(message))
        except FormatError as problem:
            error = problem
    if error is not None:
        error.line = b"".join(line)
        raise error
    return b"".join(line)


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


def _specifier(match: re.Match[str], is_pretty: bool) -> Part:
    flag, width, precision, letter = match.groups()
    if letter == "%":
        return _literal(b"%")
    if letter in "jJ":
        json_of = _json_quoted if letter == "j" else _json_plain
        return lambda message: _to_text(json_of(message), is_pretty)
    field_of = _FIELDS.get(letter)
    if field_of is None:
        raise UsageError(f"Invalid format specifier '{letter}'.")
    if letter in _WITHOUT_WIDTH:
        return field_of
    least, most = int(width or 0), None
    if precision is not None and letter in "CIRt":
        most = int(precision or 0)
    pad = b"0" if flag == "0" and letter in "AEFlmpSXx" else b" "

    def part(message: Message) -> bytes:
        data = field_of(message)
        if letter == "R" and not data:
            return b""  # sic: no blanks where there is no response topic
        if least and letter in "pxX":
            # Sic: mosquitto_sub takes the width of a payload for its limit too, and of hexadecimal digits the half.
            data = data[: least if letter == "p" else min(least, len(data) // 2) // 2 * 2]
        data = data[:most]
        if flag != "-":
            return data.rjust(least, pad)
        return data.ljust(least)

    return part


# Fields that mosquitto_sub prints as they are, whatever width was given.
_WITHOUT_WIDTH = "DPqrU"


def _number(get: Callable[[Message], int]) -> Part:
    return lambda message: b"%d" % get(message)


def _property(name: str) -> Part:
    def part(message: Message) -> bytes:
        given = message.properties.get(name, b"")
        if isinstance(given, list):
            return b" ".join(str(each).encode() for each in given)
        return given if isinstance(given, bytes) else str(given).encode()

    return part


def _user_properties(message: Message) -> bytes:
    return " ".join(f"{name}:{value}" for name, value in user_properties(message)).encode()


def user_properties(message: Message) -> list[tuple[str, str]]:
    given: Any = message.properties.get("user-properties", [])
    return list(given)


def _iso_time(message: Message) -> bytes:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z", _local(message)).encode()


def _unix_time(message: Message) -> bytes:
    return b"%d.%09d" % divmod(message.time_ns, 1_000_000_000)


# -- JSON: names may repeat among the user properties [MQTT-3.3.2.3.7], so an object is a list of pairs here --


class _Object(list[tuple[str, object]]):
    pass


def _json(message: Message, payload: object) -> _Object:
    """The fields and their order are mosquitto_sub's."""
    microseconds = message.time_ns // 1000 % 1_000_000
    local = _local(message)
    when = time.strftime("%Y-%m-%dT%H:%M:%S", local) + f".{microseconds:06d}" + time.strftime("%z", local)
    fields = _Object([("tst", when), ("topic", message.topic), ("qos", message.qos)])
    fields += [("retain", int(message.retain)), ("payloadlen", len(message.payload))]
    if message.qos:
        fields.append(("mid", message.packet_id))
    if message.properties:
        fields.append(("properties", _json_properties(message)))
    fields.append(("payload", payload))
    return fields


def _json_properties(message: Message) -> _Object:
    fields = _Object()
    for name, given in message.properties.items():
        if name == "user-properties":
            fields.append((name, _Object(user_properties(message))))
        elif isinstance(given, list):
            fields += [(name, each) for each in given]
        else:
            fields.append((name, given.decode("utf-8", "replace") if isinstance(given, bytes) else given))
    return fields


def _json_quoted(message: Message) -> _Object:
    return _json(message, message.payload.decode("utf-8", "replace") if message.payload else None)


def _json_plain(message: Message) -> _Object:
    if not message.payload:
        return _json(message, None)
    try:
        payload = json.loads(message.payload, parse_float=_shortest, object_pairs_hook=_Object)
    except ValueError:
        raise FormatError(f"Message payload is not valid JSON on topic {message.topic}.") from None
    return _json(message, payload)


def _shortest(text: str) -> float | int:
    """1e3 is printed as 1000 and 2.50 as 2.5: mosquitto_sub's way."""
    number = float(text)
    return int(number) if number.is_integer() and abs(number) < 1e15 else number


def _to_text(given: object, is_pretty: bool) -> bytes:
    return _write(given, "\n" if is_pretty else "").encode()


def _write(given: object, indent: str) -> str:
    """JSON as cJSON prints it; *indent* is empty for the short form, else an end of line and the tabs so far."""
    if isinstance(given, _Object):
        deeper = indent and indent + "\t"
        colon = ":\t" if indent else ":"
        inside = ",".join(f"{deeper}{_quote(name)}{colon}{_write(each, deeper)}" for name, each in given)
        return "{" + inside + indent + "}"
    if isinstance(given, list):
        return "[" + (", " if indent else ",").join(_write(each, indent) for each in given) + "]"
    return _quote(given)


def _quote(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def as_json(message: Message, is_pretty: bool = False) -> bytes:
    """`--json`: what `midge pub --json` reads back without loss. A payload that isn't text is in base64."""
    fields = _Object([("time", message.time_ns / 1e9), ("topic", message.topic)])
    try:
        fields.append(("payload", message.payload.decode()))
    except UnicodeDecodeError:
        fields.append(("payload_base64", base64.b64encode(message.payload).decode()))
    fields += [("qos", message.qos), ("retain", message.retain)]
    for name, given in message.properties.items():
        if name == "correlation-data" and isinstance(given, bytes):
            fields.append(("correlation-data_base64", base64.b64encode(given).decode()))
        elif name == "user-properties":
            fields.append((name, [list(pair) for pair in user_properties(message)]))
        else:
            fields.append((name, given))
    return _to_text(fields, is_pretty)


class FormatError(Exception):
    """This message can't be printed in this format; `line` is what remains of it."""

    line = b""


_FIELDS: dict[str, Part] = {
    "A": _property("topic-alias"),
    "C": _property("content-type"),
    "D": _property("correlation-data"),
    "E": _property("message-expiry-interval"),
    "F": _property("payload-format-indicator"),
    "I": _iso_time,
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
