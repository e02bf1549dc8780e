"""The keys of `[[bridge]]`.
Knows what a bridge is told, not how it does it.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from pydantic import field_validator, model_validator

from midge.config.section import Section, checked, key
from midge.core.limits import QueueFull
from midge.protocol.topics import check_topic_filter, check_topic_name

# The schemes of addresses and their ports.
PORTS = {"mqtt": 1883, "mqtts": 8883, "ws": 80, "wss": 443}
_ADDRESS = re.compile(
    r"(?P<scheme>[a-z]+)://(?P<host>\[[0-9a-fA-F:.]+\]|[^:/?#@\[\]\s]+)(:(?P<port>\d{1,5}))?(?P<path>/[^\s#]*)?"
)

_CABLE = "serial:"  # then the `device` of a listener
ADDRESSES = (
    "mqtt://HOST, mqtts://HOST, ws://HOST/PATH or wss://HOST/PATH, each with :PORT if it isn't the usual one, "
    "or serial:DEVICE"
)

_TOPICS_EXAMPLE = [
    {"filter": "#", "direction": "in", "qos": 1, "local_prefix": "kitchen/"},
    {"filter": "set/#", "direction": "out", "qos": 1, "local_prefix": "kitchen/"},
]


class BridgeTopic(Section):
    """One entry of a bridge's `topics`: remote_prefix + topic there is local_prefix + topic here."""

    filter: str = key(..., "Which topics, without the prefixes.", example="#")
    direction: Literal["in", "out", "both"] = key(
        "in", '"in": from there to here; "out": from here to there.'
    )
    qos: int = key(1, "The highest QoS that is asked for and sent.", ge=0, le=2)
    local_prefix: str = key("", "Put before the topic here.")
    remote_prefix: str = key("", "Put before the topic there.")

    @field_validator("filter")
    @classmethod
    def _is_a_filter(cls, value: str) -> str:
        return checked(check_topic_filter, value)

    @field_validator("local_prefix", "remote_prefix")
    @classmethod
    def _has_no_wildcard(cls, value: str) -> str:
        return checked(check_topic_name, value) if value else value


class Address(NamedTuple):
    """Where a broker is, in parts; `path` is a WebSocket's. Of the scheme "serial", `host` is the device."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def is_tls(self) -> bool:
        return self.scheme in ("mqtts", "wss")


def parse_address(text: str) -> Address:
    """ValueError: it is none of a broker."""
    if text.startswith(_CABLE) and len(text) > len(_CABLE):
        return Address("serial", text.removeprefix(_CABLE), 0, "")
    match = _ADDRESS.fullmatch(text)
    if match is None or match["scheme"] not in PORTS or int(match["port"] or 1) not in range(1, 65_536):
        raise ValueError(f"must be {ADDRESSES}")
    scheme, path = match["scheme"], match["path"] or ""
    if scheme in ("ws", "wss"):
        path = path if path not in ("", "/") else "/mqtt"
    elif path not in ("", "/"):
        raise ValueError(f"a path ({path}) is for ws:// and wss://")
    return Address(scheme, match["host"].strip("[]"), int(match["port"] or PORTS[scheme]), path)


class Bridge(Section):
    """A link to another broker, which we dial: a board's, or anybody's that speaks MQTT 3.1.1 or 5.0."""

    name: str = key(
        ...,
        "What it is called in the log and under $SYS/; no two are alike.",
        example="kitchen",
        allowed="a text without /, + and #",
        min_length=1,
        pattern=r"^[^/+#\x00]+$",
    )
    address: str = key(
        ...,
        "The other broker; a name that ends in .local is also looked for by mDNS. With serial:DEVICE the broker of "
        "the board on that cable, which needs a [[listener]] of its own.",
        example="mqtt://kitchen.local:1883",
        allowed=ADDRESSES,
    )
    alternatives: list[str] = key(
        [], "Other addresses of it, or of a broker that stands in for it: after a failure the next is tried."
    )
    topics: list[BridgeTopic] = key(
        ..., "What goes through it, and which way.", example=_TOPICS_EXAMPLE, min_length=1
    )
    version: Literal["auto", "3.1.1", "5.0"] = key(
        "auto", '"auto": 5.0 with brokers that speak it; loops of several brokers need it to be recognised.'
    )
    client_id: str | None = key(
        None,
        "Our client identifier there; not set: this machine's name and the bridge's.",
        example="laptop-kitchen",
    )
    username: str | None = key(None, "Our user name there.", example="laptop")
    password: str | None = key(None, "Our password there.", example="secret")
    cafile: str | None = key(
        None,
        "TLS: the authorities that its certificate must come from, PEM, relative to this file; not set: "
        "the system's.",
        example="ca.pem",
    )
    certfile: str | None = key(
        None, "TLS: our certificate, PEM, relative to this file.", example="laptop.pem"
    )
    keyfile: str | None = key(None, "TLS: its key, PEM, relative to this file.", example="laptop.key")
    check_hostname: bool = key(True, "TLS: its certificate must be for the name in the address.")
    start: Literal["always", "on-demand", "periodic"] = key(
        "always",
        '"always": connected whenever it is possible. "on-demand": once threshold messages wait here, until '
        'nothing went either way for idle_timeout. "periodic": every interval, until nothing is left to '
        "fetch or bring; for boards that sleep.",
    )
    threshold: int = key(10, 'Of "on-demand".', unit="messages", ge=1)
    idle_timeout: float = key(60.0, 'Of "on-demand".', unit="s", gt=0)
    interval: float = key(60.0, 'Of "periodic".', unit="s", gt=0)
    keep_alive: int = key(60, "How often the link is checked when it is idle.", unit="s", ge=5, le=65_535)
    connect_timeout: float = key(10.0, "For TCP's and TLS's handshakes, and again for CONNACK.", unit="s", gt=0)
    reconnect_min: float = key(0.5, "The first wait after a failure; it doubles.", unit="s", gt=0)
    reconnect_max: float = key(30.0, "The longest wait between two attempts.", unit="s", gt=0)
    max_queued_messages: int = key(
        100_000,
        "Messages of QoS 1 and 2 that wait here for it.",
        unit="messages",
        ge=1,
    )
    max_queued_bytes: int | None = key(
        None,
        "Their topics and payloads; not set: as [limits] has it.",
        unit="bytes",
        example=1_000_000_000,
        ge=0,
    )
    queue_full: QueueFull = key(
        "drop-oldest", "What becomes of a message when so many wait; see queue_full of [limits]."
    )
    max_packet_size: int | None = key(
        None,
        "The largest packet that it takes; larger messages are not sent there. Not set: as [limits] has it "
        "here, or as a 5.0 broker says.",
        unit="bytes",
        example=4096,
        ge=128,
        le=268_435_460,
    )
    notifications: bool = key(
        True,
        "Tell the other side too whether we are connected: 1 or 0, retained, also by the will, under "
        "$SYS/broker/connection/CLIENT_ID/state.",
    )

    @field_validator("address", "alternatives")
    @classmethod
    def _is_an_address(cls, value: str | list[str]) -> str | list[str]:
        for address in [value] if isinstance(value, str) else value:
            parse_address(address)
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> Bridge:
        # [MQTT-3.1.2-22] of 3.1.1, which a bridge may have to speak.
        if self.password is not None and self.username is None:
            raise ValueError("password is given without username")
        if (self.certfile is None) != (self.keyfile is None):
            raise ValueError("certfile and keyfile go together")
        return self

    @property
    def addresses(self) -> list[str]:
        """In the order in which they are tried."""
        return [self.address, *self.alternatives]
