"""The keys of `[[bridge]]`.
Knows what a bridge is told, not how it does it.
"""

from __future__ import annotations

import re
from typing import Literal

from pydantic import field_validator, model_validator

from midge.config.section import Section, key
from midge.protocol.errors import ProtocolError
from midge.protocol.topics import check_topic_filter, check_topic_name

_ADDRESS = re.compile(r"mqtt://(?P<host>\[[0-9a-fA-F:.]+\]|[^:/@\[\]]+)(:(?P<port>\d{1,5}))?/?")

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
        try:
            check_topic_filter(value)
        except ProtocolError as error:
            raise ValueError(error.message) from None
        return value

    @field_validator("local_prefix", "remote_prefix")
    @classmethod
    def _has_no_wildcard(cls, value: str) -> str:
        try:
            if value:
                check_topic_name(value)
        except ProtocolError as error:
            raise ValueError(error.message) from None
        return value


class Bridge(Section):
    """A link to another broker, which we dial: a board's, or anybody's that speaks MQTT 3.1.1."""

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
        "The other broker.",
        example="mqtt://kitchen.local:1883",
        allowed="mqtt://HOST or mqtt://HOST:PORT",
    )
    topics: list[BridgeTopic] = key(
        ..., "What goes through it, and which way.", example=_TOPICS_EXAMPLE, min_length=1
    )
    client_id: str | None = key(
        None,
        "Our client identifier there; not set: this machine's name and the bridge's.",
        example="laptop-kitchen",
    )
    username: str | None = key(None, "Our user name there.", example="laptop")
    password: str | None = key(None, "Our password there.", example="secret")
    keep_alive: int = key(60, "How often the link is checked when it is idle.", unit="s", ge=5, le=65_535)
    reconnect_min: float = key(0.5, "The first wait after a failure; it doubles.", unit="s", gt=0)
    reconnect_max: float = key(30.0, "The longest wait between two attempts.", unit="s", gt=0)

    @field_validator("address")
    @classmethod
    def _is_an_address(cls, value: str) -> str:
        match = _ADDRESS.fullmatch(value)
        if match is None or int(match["port"] or 0) > 65_535:
            raise ValueError("must be mqtt://HOST or mqtt://HOST:PORT")
        return value

    @model_validator(mode="after")
    def _password_needs_username(self) -> Bridge:
        # [MQTT-3.1.2-22] of 3.1.1, which is what bridges speak.
        if self.password is not None and self.username is None:
            raise ValueError("password is given without username")
        return self

    @property
    def host(self) -> str:
        match = _ADDRESS.fullmatch(self.address)
        assert match is not None
        return match["host"].strip("[]")

    @property
    def port(self) -> int:
        match = _ADDRESS.fullmatch(self.address)
        assert match is not None
        return int(match["port"] or 1883)
