"""The configuration file: its keys, their defaults and checks, and errors that say what to do.
Knows the meaning of each key, not how the parts carry it out.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    field_validator,
    model_validator,
)

from midge.access import MAX_FAILED_LOGINS
from midge.core.limits import Limits
from midge.protocol.errors import ProtocolError
from midge.protocol.topics import check_topic_filter, check_topic_name

_DEFAULT_LIMITS = Limits()


class ConfigError(Exception):
    """The configuration can't be used; the message names file, key, value and what is allowed."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Listener(_Section):
    """`[[listener]]`"""

    type: Literal["tcp", "tls", "websocket", "unix"] = "tcp"
    bind: str = "127.0.0.1"
    # 0: the system chooses; default: 1883, of "tls" 8883, of "websocket" 9001
    port: Annotated[int, Field(ge=0, le=65_535)] = 1883
    path: str = ""  # of a Unix socket (relative to this file), or of a WebSocket ("/mqtt")
    certfile: str | None = None  # PEM, with the chain; relative to this file, as the next two
    keyfile: str | None = None  # PEM, without passphrase
    cafile: str | None = None  # PEM: the authorities that clients' certificates must come from
    require_certificate: bool = False  # a client must show a certificate
    use_identity_as_username: bool = False  # the certificate's common name is who the client is
    proxy_protocol: bool = False  # a proxy in front says who the client is (PROXY protocol, version 2)
    allow_anonymous: bool | None = None  # None: as [access] has it
    max_connections: Annotated[int, Field(ge=1)] | None = None  # None: only limits.max_connections

    @model_validator(mode="before")
    @classmethod
    def _fill_in_by_type(cls, data: Any) -> Any:
        if isinstance(data, dict):
            kind = data.get("type", "tcp")
            data = {"port": {"tls": 8883, "websocket": 9001}.get(kind, 1883), **data}
            if kind == "websocket" and not data.get("path"):
                data["path"] = "/mqtt"
        return data

    @model_validator(mode="after")
    def _fits_together(self) -> Listener:
        if self.type == "tls" and self.certfile is None:
            raise ValueError('type "tls" needs certfile and keyfile')
        if (self.certfile is None) != (self.keyfile is None):
            raise ValueError("certfile and keyfile go together")
        if self.certfile is not None and self.type not in ("tls", "websocket"):
            raise ValueError('certfile is for the types "tls" and "websocket"')
        if self.require_certificate and (self.cafile is None or self.certfile is None):
            raise ValueError("require_certificate needs certfile, keyfile and cafile")
        if self.use_identity_as_username and not self.require_certificate:
            raise ValueError("use_identity_as_username needs require_certificate")
        if self.type == "unix" and not self.path:
            raise ValueError('type "unix" needs path')
        if self.type == "websocket" and not self.path.startswith("/"):
            raise ValueError("the path of a WebSocket starts with /")
        if self.proxy_protocol and self.type not in ("tcp", "unix"):
            # In front of TLS the proxy would speak before it; then let the proxy end TLS.
            raise ValueError('proxy_protocol is for the types "tcp" and "unix"')
        return self


class StoreSection(_Section):
    """`[store]`"""

    path: str = "midge.db"  # relative to the data directory; ":memory:" keeps nothing
    durability: Literal["commit", "interval", "none"] = "commit"


class AccessSection(_Section):
    """`[access]`"""

    # None: if there is no password file, on listeners that only this machine can reach
    allow_anonymous: bool | None = None
    password_file: str | None = None  # Mosquitto's format; relative to this file
    acl_file: str | None = None  # Mosquitto's format; relative to this file
    # from one address in a minute; then logins from there are refused for the rest of it. 0: no limit
    max_failed_logins: Annotated[int, Field(ge=0)] = MAX_FAILED_LOGINS


class LimitsSection(_Section):
    """`[limits]`; see midge.core.limits for what each stands for."""

    max_packet_size: Annotated[int, Field(ge=128, le=268_435_460)] = _DEFAULT_LIMITS.max_packet_size
    max_queued_messages: Annotated[int, Field(ge=0)] = _DEFAULT_LIMITS.max_queued_messages
    max_queued_bytes: Annotated[int, Field(ge=0)] = _DEFAULT_LIMITS.max_queued_bytes
    max_inflight_messages: Annotated[int, Field(ge=1, le=65_535)] = _DEFAULT_LIMITS.max_inflight_messages
    receive_maximum: Annotated[int, Field(ge=1, le=65_535)] = _DEFAULT_LIMITS.receive_maximum
    topic_alias_maximum: Annotated[int, Field(ge=0, le=65_535)] = _DEFAULT_LIMITS.topic_alias_maximum
    max_keep_alive: Annotated[int, Field(ge=1, le=65_535)] = _DEFAULT_LIMITS.max_keep_alive
    connect_timeout: Annotated[int, Field(ge=1, le=3600)] = _DEFAULT_LIMITS.connect_timeout
    max_session_expiry: Annotated[int, Field(ge=0, le=0xFFFF_FFFF)] = _DEFAULT_LIMITS.max_session_expiry
    max_output_bytes: Annotated[int, Field(ge=1024)] = _DEFAULT_LIMITS.max_output_bytes
    max_connections: Annotated[int, Field(ge=1)] = _DEFAULT_LIMITS.max_connections


class BridgeTopic(_Section):
    """One entry of a bridge's `topics`: remote_prefix + topic there is local_prefix + topic here."""

    filter: str
    direction: Literal["in", "out", "both"] = "in"
    qos: Annotated[int, Field(ge=0, le=2)] = 1
    local_prefix: str = ""
    remote_prefix: str = ""

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


_ADDRESS = re.compile(r"mqtt://(?P<host>\[[0-9a-fA-F:.]+\]|[^:/@\[\]]+)(:(?P<port>\d{1,5}))?/?")


class Bridge(_Section):
    """`[[bridge]]`"""

    name: Annotated[str, Field(min_length=1, pattern=r"^[^/+#\x00]+$")]
    address: str  # mqtt://HOST[:PORT]
    topics: Annotated[list[BridgeTopic], Field(min_length=1)]
    client_id: str | None = (
        None  # as the remote broker sees us; default: this machine's name and the bridge's
    )
    username: str | None = None
    password: str | None = None
    keep_alive: Annotated[int, Field(ge=5, le=65_535)] = 60  # s
    reconnect_min: Annotated[float, Field(gt=0)] = 0.5  # s, the first wait after a failure; doubles
    reconnect_max: Annotated[float, Field(gt=0)] = 30.0  # s

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


class Config(_Section):
    """The whole file."""

    listener: Annotated[list[Listener], Field(min_length=1)] = [Listener()]
    store: StoreSection = StoreSection()
    access: AccessSection = AccessSection()
    limits: LimitsSection = LimitsSection()
    bridge: list[Bridge] = []
    _directory: Path = PrivateAttr(default=Path())  # where the file is

    def path(self, name: str) -> Path:
        """The file that a key names: relative to the configuration file."""
        return self._directory / name

    @field_validator("bridge")
    @classmethod
    def _names_are_unique(cls, value: list[Bridge]) -> list[Bridge]:
        names = [bridge.name for bridge in value]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two bridges are named {name!r}")
        return value

    def core_limits(self) -> Limits:
        return Limits(**self.limits.model_dump())


def load(path: Path) -> Config:
    """Read the file at *path*. ConfigError: it can't be read, isn't TOML, or a key is wrong."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    return parse(data, str(path), path.parent)


def parse(data: dict[str, Any], source: str, directory: Path = Path()) -> Config:
    """Check *data*, which came from *source* (for the errors), a file in *directory*."""
    try:
        config = Config.model_validate(data)
        config._directory = directory
        return config
    except ValidationError as error:
        lines = [f"{source}: {_where(item['loc'])}: {_explain(item)}" for item in error.errors()]
        raise ConfigError("\n".join(lines)) from None


def _where(location: tuple[int | str, ...]) -> str:
    """`bridge[1].topics[0].qos`, the bridges counted from 1 as a reader does."""
    text = ""
    for part in location:
        text += f"[{part + 1}]" if isinstance(part, int) else f".{part}" if text else part
    return text or "the file"


def _explain(item: Any) -> str:
    kind = item["type"]
    if kind == "extra_forbidden":
        allowed = _allowed_keys(item["loc"][:-1])
        return f"unknown key; allowed here: {', '.join(allowed)}"
    if kind == "missing":
        return "must be given"
    message = item["msg"].removeprefix("Value error, ")
    value = item["input"]
    shown = "" if isinstance(value, dict | list) else f"{value!r} is not allowed: "
    return f"{shown}{message[0].lower()}{message[1:]}"


def _allowed_keys(location: tuple[int | str, ...]) -> list[str]:
    sections: dict[tuple[str, ...], type[_Section]] = {
        (): Config,
        ("listener",): Listener,
        ("store",): StoreSection,
        ("access",): AccessSection,
        ("limits",): LimitsSection,
        ("bridge",): Bridge,
        ("bridge", "topics"): BridgeTopic,
    }
    names = tuple(part for part in location if isinstance(part, str))
    return list(sections[names].model_fields)
