"""The keys of the configuration file, section by section, but the bridges'.
Knows what each means, its unit, default and bounds, not how the parts carry it out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import PrivateAttr, field_validator, model_validator

from midge.config.access import AccessSection, JwtSection
from midge.config.bridges import Bridge, parse_address
from midge.config.history import History
from midge.config.queues import Queue
from midge.config.section import Section, key
from midge.core.history import HistoryRule
from midge.core.limits import Limits, QueueFull
from midge.core.session_limits import SessionRule

_LIMITS = Limits()


class ListenerLimits(Section):
    """Bounds of one listener's connections, in place of those of [limits]; not set: as there."""

    max_packet_size: int | None = key(None, "A whole packet from a client.", unit="bytes", ge=128, le=268_435_460)
    receive_maximum: int | None = key(
        None, "Messages of QoS 1 and 2 under way to us (5.0).", unit="messages", ge=1, le=65_535
    )
    max_inflight_messages: int | None = key(
        None, "Messages of QoS 1 and 2 under way to one client.", unit="messages", ge=1, le=65_535
    )
    topic_alias_maximum: int | None = key(None, "Topic aliases, each way (5.0); 0: none.", ge=0, le=65_535)
    max_keep_alive: int | None = key(None, "The longest keep alive.", unit="s", ge=1, le=65_535)
    connect_timeout: int | None = key(
        None, "From a connection to its CONNECT, and until it is let in.", unit="s", ge=1, le=3600
    )
    max_packets_per_second: int | None = key(None, "Packets from one connection; 0: no limit.", ge=0)
    max_bytes_per_second: int | None = key(None, "Bytes from one connection; 0: no limit.", unit="bytes", ge=0)
    max_subscriptions: int | None = key(None, "Subscriptions of one session.", ge=0)


class Listener(Section):
    """Where clients come in. Several may stand here, each with its own [[listener]]."""

    type: Literal["tcp", "tls", "websocket", "unix", "serial"] = key("tcp", "What it listens to.")
    bind: str = key("127.0.0.1", 'The address to listen on; "0.0.0.0" and "::": all of this machine.')
    port: int = key(
        1883,
        'The TCP port; 0: the system chooses. Not set: 1883, for "tls" 8883, for "websocket" 9001.',
        ge=0,
        le=65_535,
    )
    path: str = key(
        "",
        'Of "unix" the socket, relative to this file; of "websocket" the path in the URL ("/mqtt" if not set).',
    )
    device: str = key(
        "auto",
        'Of "serial" the port: its path, "usb:SERIAL_NUMBER", or "auto", the first board on USB.',
    )
    baud: int = key(115_200, 'Of "serial" the bits a second.', ge=1200, le=4_000_000)
    certfile: str | None = key(
        None, "TLS: our certificate with its chain, PEM, relative to this file.", example="server.pem"
    )
    keyfile: str | None = key(
        None, "TLS: its key, PEM without a passphrase, relative to this file.", example="server.key"
    )
    cafile: str | None = key(
        None,
        "TLS: the authorities that clients' certificates must come from, PEM, relative to this file.",
        example="ca.pem",
    )
    require_certificate: bool = key(False, "TLS: a client must show a certificate.")
    crlfile: str | None = key(
        None, "TLS: which clients' certificates are revoked, PEM, relative to this file.", example="crl.pem"
    )
    use_identity_as_username: bool = key(False, "TLS: the certificate's common name is the user name.")
    use_subject_as_username: bool = key(
        False, 'TLS: the certificate\'s whole subject is the user name ("CN=anna,O=Example").'
    )
    proxy_protocol: bool = key(
        False, "A proxy in front says who the client is (PROXY protocol, version 2); nobody else gets in."
    )
    allow_anonymous: bool | None = key(
        None, "Let clients in without a user name; not set: as [access] has it.", example=False
    )
    password_file: str | None = key(
        None, 'Its users, in place of those of [access]; "": none.', example="boards.passwd"
    )
    acl_file: str | None = key(None, 'Its rules, in place of those of [access]; "": none.', example="boards.acl")
    jwt: JwtSection | Literal[False] | None = key(
        None,
        "Its tokens, in place of those of [access]; false: none.",
        example={"key_file": "jwt.pem", "algorithms": ["RS256"]},
    )
    auth_hook: str | None = key(None, 'Its hook, in place of the one of [access]; "": none.', example="ldap")
    max_connections: int | None = key(
        None, "Connections to this listener; not set: only [limits] counts.", example=100, ge=1
    )
    limits: ListenerLimits | None = key(
        None, "Bounds of its connections, in place of those of [limits].", example={"max_packet_size": 10_000}
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_in_by_type(cls, data: Any) -> Any:
        if isinstance(data, dict):
            kind = data.get("type", "tcp")
            ports = {"tls": 8883, "websocket": 9001}
            data = {"port": ports.get(kind, 1883) if isinstance(kind, str) else 1883, **data}
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
        for name in ("use_identity_as_username", "use_subject_as_username"):
            if getattr(self, name) and not self.require_certificate:
                raise ValueError(f"{name} needs require_certificate")
        if self.crlfile is not None and self.cafile is None:
            raise ValueError("crlfile needs cafile")
        if self.use_identity_as_username and self.use_subject_as_username:
            raise ValueError("one of use_identity_as_username and use_subject_as_username")
        if self.type == "unix" and not self.path:
            raise ValueError('type "unix" needs path')
        if self.type == "websocket" and not self.path.startswith("/"):
            raise ValueError("the path of a WebSocket starts with /")
        if self.proxy_protocol and self.type not in ("tcp", "unix"):
            # In front of TLS the proxy would speak before it; then let the proxy end TLS.
            raise ValueError('proxy_protocol is for the types "tcp" and "unix"')
        return self


class StoreSection(Section):
    """What must last: sessions, queued and retained messages."""

    path: str = key("midge.db", 'The file, relative to the data directory; ":memory:" keeps nothing.')
    durability: Literal["commit", "interval", "none"] = key(
        "commit",
        '"commit": acknowledged only when it is on disk, or all whom it was for have acknowledged it. '
        '"interval": written once a second, which a crash may cost. "none": written without waiting for the disk.',
    )


class LimitsSection(Section):
    """Bounds of everything that a client could otherwise make grow."""

    max_packet_size: int = key(
        _LIMITS.max_packet_size, "A whole packet from a client.", unit="bytes", ge=128, le=268_435_460
    )
    max_queued_messages: int = key(
        _LIMITS.max_queued_messages,
        "Messages of QoS 1 and 2 that wait for one session.",
        unit="messages",
        ge=0,
    )
    max_queued_bytes: int = key(_LIMITS.max_queued_bytes, "Their topics and payloads.", unit="bytes", ge=0)
    queue_full: QueueFull = key(
        _LIMITS.queue_full,
        'Messages for a session that has no room left. "drop-oldest": the oldest gives way and is counted. '
        '"reject": refused for all who would get it (5.0: reason 0x97; 3.1.1: no acknowledgement, and the '
        'connection is closed). "wait": acknowledged once there is room.',
    )
    max_message_memory: int = key(
        _LIMITS.max_message_memory,
        "Memory for queued and retained messages, half for each; what is beyond lives on disk only.",
        unit="bytes",
        ge=0,
    )
    max_inflight_messages: int = key(
        _LIMITS.max_inflight_messages,
        "Messages of QoS 1 and 2 under way to one client: sent, not yet acknowledged. To a bridge that names a Receive "
        "Maximum (5.0) it is that, up to our `receive_maximum`.",
        unit="messages",
        ge=1,
        le=65_535,
    )
    receive_maximum: int = key(
        _LIMITS.receive_maximum,
        "Messages of QoS 1 and 2 that a client may have under way to us (5.0).",
        unit="messages",
        ge=1,
        le=65_535,
    )
    topic_alias_maximum: int = key(
        _LIMITS.topic_alias_maximum,
        "Topic aliases of one connection, each way (5.0); 0: none.",
        ge=0,
        le=65_535,
    )
    max_keep_alive: int = key(
        _LIMITS.max_keep_alive,
        "The longest keep alive; a 5.0 client that asks for more is told this one.",
        unit="s",
        ge=1,
        le=65_535,
    )
    connect_timeout: int = key(
        _LIMITS.connect_timeout, "From a connection to its CONNECT, and until it is let in.", unit="s", ge=1, le=3600
    )
    max_session_expiry: int = key(
        _LIMITS.max_session_expiry,
        "How long the session of an absent client is kept at most; 4_294_967_295: for ever.",
        unit="s",
        ge=0,
        le=0xFFFF_FFFF,
    )
    max_output_bytes: int = key(
        _LIMITS.max_output_bytes,
        "Output that waits in memory for one slow connection; past it, messages of QoS 0 are dropped.",
        unit="bytes",
        ge=1024,
    )
    max_connections: int = key(_LIMITS.max_connections, "Connections in total.", unit="connections", ge=1)
    max_connections_per_address: int = key(
        _LIMITS.max_connections_per_address,
        "Of these, from one address (of IPv6, from one /64); this machine's own aren't counted.",
        unit="connections",
        ge=1,
    )
    max_packets_per_second: int = key(
        _LIMITS.max_packets_per_second,
        "Packets from one connection; who sends more is read from more slowly, and disconnected (0x96) when 10 s "
        "ahead. 0: no limit.",
        ge=0,
    )
    max_bytes_per_second: int = key(
        _LIMITS.max_bytes_per_second, "The same in bytes; 0: no limit.", unit="bytes", ge=0
    )
    max_subscriptions: int = key(
        _LIMITS.max_subscriptions, "Subscriptions of one session; more are refused (0x97).", ge=0
    )
    max_queues: int = key(
        _LIMITS.max_queues,
        "Durable queues that have no [[queue]]; what is published to more is refused (0x97; 3.1.1: the connection "
        "is closed).",
        unit="queues",
        ge=0,
    )
    max_topic_levels: int = key(
        _LIMITS.max_topic_levels,
        "Levels of a topic name or filter; a name with more ends the connection (0x90), a filter is refused (0x8F).",
        ge=1,
        le=65_535,
    )
    max_retained_messages: int = key(
        _LIMITS.max_retained_messages,
        "Retained messages; more are refused (0x97; 3.1.1: the connection is closed).",
        unit="messages",
        ge=0,
    )
    max_retained_bytes: int = key(
        _LIMITS.max_retained_bytes, "Their topics and payloads.", unit="bytes", ge=0
    )


class SessionSection(Section):
    """The queues of some sessions, in place of what [limits] says. Several may stand here; the first that fits
    counts. What is not set is as in [limits]."""

    client_id: str = key(
        ...,
        "Whose: a client identifier; * stands for any characters, ? for one, [ab] for one of these.",
        example="logger-*",
        min_length=1,
    )
    max_queued_messages: int | None = key(
        None, "Messages of QoS 1 and 2 that wait for one session.", unit="messages", example=100_000, ge=0
    )
    max_queued_bytes: int | None = key(
        None, "Their topics and payloads.", unit="bytes", example=1_000_000_000, ge=0
    )
    queue_full: QueueFull | None = key(None, "What becomes of a message when so many wait.", example="wait")


class SysSection(Section):
    """The $SYS/ topics, by which the broker tells of itself."""

    interval: int = key(
        10, "Between two updates (Mosquitto's sys_interval); 0: no $SYS/ topics.", unit="s", ge=0, le=86_400
    )


class DiscoverySection(Section):
    """The broker tells the network where it is (mDNS, _mqtt._tcp), so that boards and bridges find it by name."""

    announce: bool = key(True, "Announce the listeners that others can reach.")
    name: str | None = key(
        None,
        "The name to announce; not set: midge on and this machine's name.",
        example="workshop",
        allowed="a text of at most 63 bytes without dots",
        pattern=r"^[^.\x00-\x1f]{1,63}$",
    )
    interfaces: list[str] = key(
        [], "This machine's addresses on whose networks to announce; empty: all but the loopback."
    )


class HttpSection(Section):
    """For monitoring: /metrics (Prometheus), /healthz and /readyz. Off until a port is set; it asks nobody
    who they are, so bind it where only monitoring gets."""

    bind: str = key("127.0.0.1", "The address to listen on.")
    port: int | None = key(None, "The TCP port; 0: the system chooses; not set: off.", example=9883, ge=0, le=65_535)


class LogSection(Section):
    """The log, on standard error. The options --log-level and --log-format come before these."""

    level: Literal["debug", "info", "warning", "error"] = key("info", "What is worth a line.")
    format: Literal["text", "json"] = key("text", '"json": one object a line, for programs.')


class Config(Section):
    """The whole file."""

    listener: list[Listener] = key([Listener()], "", min_length=1)
    store: StoreSection = StoreSection()
    access: AccessSection = AccessSection()
    limits: LimitsSection = LimitsSection()
    session: list[SessionSection] = key([], "")
    sys: SysSection = SysSection()
    discovery: DiscoverySection = DiscoverySection()
    http: HttpSection = HttpSection()
    log: LogSection = LogSection()
    bridge: list[Bridge] = key([], "")
    history: list[History] = key([], "")
    queue: list[Queue] = key([], "")
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

    @field_validator("queue")
    @classmethod
    def _queues_are_unique(cls, value: list[Queue]) -> list[Queue]:
        names = [queue.name for queue in value]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two queues are named {name!r}")
        return value

    @model_validator(mode="after")
    def _histories_can_be_kept(self) -> Config:
        filters = [history.filter for history in self.history]
        for each in filters:
            if filters.count(each) > 1:
                raise ValueError(f"two histories have the filter {each!r}")
        if filters and self.store.path == ":memory:":
            raise ValueError('[[history]] needs a store, and store.path is ":memory:"')
        return self

    @model_validator(mode="after")
    def _cables_are_there(self) -> Config:
        devices = [listener.device for listener in self.listener if listener.type == "serial"]
        for bridge in self.bridge:
            for address in map(parse_address, bridge.addresses):
                if address.scheme == "serial" and address.host not in devices:
                    raise ValueError(
                        f'bridge {bridge.name!r} goes over the cable {address.host!r}: add a [[listener]] with type = '
                        f'"serial" and device = "{address.host}"'
                    )
        return self

    def history_rules(self) -> list[HistoryRule]:
        return [history.rule() for history in self.history]

    def core_limits(self) -> Limits:
        return Limits(**self.limits.model_dump())

    def session_rules(self) -> list[SessionRule]:
        return [SessionRule(**section.model_dump()) for section in self.session]
