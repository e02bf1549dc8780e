"""One MQTT connection of a command-line tool on paho-mqtt: opening it, driving it, and why it failed.
Knows nothing of what is published or printed. One thread: `step` waits for the socket and calls back.
"""

import importlib
import os
import select
import signal
import socket
import ssl
import sys
import time
from collections.abc import Callable
from functools import partial
from types import ModuleType

from midge.cli.options import Options, UsageError


def _import_lean() -> None:
    """Has paho left without what only its proxies need: that was a third of our start. --proxy puts it back."""
    hidden = {"urllib.request": ModuleType("urllib.request"), "socks": None}
    before = {name: sys.modules.get(name, sys) for name in hidden}  # sys: wasn't there
    sys.modules.update(hidden)  # type: ignore[arg-type]  # None: who imports it gets an ImportError
    importlib.import_module("paho.mqtt.client")
    for name, module in before.items():
        del sys.modules[name]
        if module is not sys:
            sys.modules[name] = module


_import_lean()

from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags  # noqa: E402
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion  # noqa: E402
from paho.mqtt.packettypes import PacketTypes  # noqa: E402
from paho.mqtt.properties import Properties  # noqa: E402
from paho.mqtt.reasoncodes import ReasonCode  # noqa: E402

from midge.cli.packet_properties import connect_properties, make_properties, new_properties  # noqa: E402

# Exit codes of mosquitto's tools (the MOSQ_ERR_* numbers of mosquitto.h).
EXIT_ERROR = 1
EXIT_CONNECTION_LOST = 7
EXIT_TLS = 8

_RECONNECT_DELAY_S = 1.0  # mosquitto_sub's
_CLOSE_DEADLINE_S = 1.0  # a broker closes at once after DISCONNECT, MQTT 3.1.1 §3.14.4

# paho tells refusals of every version by their 5.0 reason code. From it to the code of MQTT 3.1.1 table 3.1,
# and mosquitto's words for that.
_CONNACK_3 = {
    132: (1, "unacceptable protocol version"),
    133: (2, "identifier rejected"),
    136: (3, "broker unavailable"),
    134: (4, "bad user name or password"),
    135: (5, "not authorised"),
}

class Failure(Exception):
    """Ends the tool with this exit code and this text on stderr."""

    def __init__(self, exit_code: int, text: str) -> None:
        super().__init__(text)
        self.exit_code = exit_code


class Connection:
    """Set `on_ready` (called after each accepted CONNACK) before `open`; then call `step` until `closed`."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.connected = False
        self.was_connected = False  # set by the first accepted CONNACK
        self.closed = False  # set when the connection ended, cleared by `reconnect`
        self.closing = False  # set by `close`: we wanted the end
        self.on_ready: Callable[[], None] = lambda: None
        self._failure: Failure | None = None  # set in callbacks, raised by `step`
        self._connect_properties = connect_properties(options)
        self._disconnect_properties = make_properties(options, "disconnect")
        self.client = _make_client(options)
        self.client.on_connect = self._on_connect
        self.client.on_disconnect = self._on_disconnect
        if options.debug:
            self.client.on_log = lambda client, userdata, level, text: self.debug(text)

    def debug(self, text: str) -> None:
        if self.options.debug:
            print(f"Client {self.options.client_id or '(null)'} {text}", flush=True)

    def complain(self, text: str) -> None:
        if not self.options.quiet:
            print(text, file=sys.stderr, flush=True)

    def fail(self, failure: Failure) -> None:
        """From a callback: the next `step` raises it."""
        self._failure = failure

    def receive_at_most(self, count: int) -> None:
        """Before `open`: how many unacknowledged messages the broker may have on their way to us (MQTT 5.0)."""
        self._connect_properties = self._connect_properties or new_properties("connect")
        self._connect_properties.ReceiveMaximum = count

    def open(self) -> None:
        """Opens the socket and sends CONNECT; `Failure` says what to do if there is no broker."""
        options = self.options
        connect = partial(
            self.client.connect,
            options.unix_path or options.host,
            options.port,
            options.keep_alive_s,
            bind_address=options.bind_address,
        )
        try:
            if options.protocol_level == 5:
                connect(clean_start=options.clean_start, properties=self._connect_properties)
            else:
                connect()
        except (OSError, ValueError) as error:
            code = EXIT_TLS if isinstance(error, ssl.SSLError) else EXIT_ERROR
            raise Failure(code, f"Error: {explain(error, options)}") from None
        self._set_no_delay()

    def _set_no_delay(self) -> None:
        sock = self.client.socket()
        if self.options.no_delay and isinstance(sock, socket.socket) and self.options.unix_path is None:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def step(self, timeout_s: float, extra_fd: int | None = None) -> bool:
        """Waits at most `timeout_s` for the socket and handles what came. True if `extra_fd` is readable."""
        client, sock = self.client, self.client.socket()
        if sock is None:
            self.closed = True
            return False
        if isinstance(sock, ssl.SSLSocket) and sock.pending():
            timeout_s = 0.0  # decrypted bytes wait inside the TLS object, where select doesn't see them
        reads = [sock] if extra_fd is None else [sock, extra_fd]
        writes = [sock] if client.want_write() else []
        readable, writable, _ = select.select(reads, writes, [], timeout_s)
        if sock in readable or (isinstance(sock, ssl.SSLSocket) and sock.pending()):
            self._check_refused(client.loop_read())
        if sock in writable:
            client.loop_write()
        client.loop_misc()
        if self._failure is not None:
            raise self._failure
        return extra_fd in readable

    def close(self) -> None:
        """Sends DISCONNECT after what is queued; `step` on until `closed`."""
        if self.closing:
            return
        self.closing = True
        self.client.disconnect(properties=self._disconnect_properties)

    def finish(self, deadline_s: float = 5.0) -> None:
        """`close`, and steps until it's done or the deadline is over."""
        self.close()
        end = time.monotonic() + deadline_s
        while not self.closed and time.monotonic() < end:
            self.step(0.1)

    def reconnect(self) -> None:
        """After a lost connection: tries until the broker is there again."""
        while True:
            time.sleep(_RECONNECT_DELAY_S)
            try:
                self.client.reconnect()
            except (OSError, ValueError) as error:
                self.debug(f"can't reconnect: {explain(error, self.options)}")
                continue
            self._set_no_delay()
            self.closed = False
            return

    def _on_connect(
        self,
        _client: Client,
        _userdata: object,
        _flags: ConnectFlags,
        reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        if reason.is_failure:
            self._failure = refusal(reason, self.options.protocol_level)
            return
        self.connected = self.was_connected = True
        self.on_ready()

    def _on_disconnect(
        self,
        _client: Client,
        _userdata: object,
        flags: DisconnectFlags,
        reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        if flags.is_disconnect_packet_from_server and reason.is_failure:
            self.complain(f"Warning: the broker closed the connection: {reason}.")
        sock = self.client.socket()
        if self.closing and isinstance(sock, socket.socket):
            _wait_for_end(sock)
        self.connected = False
        self.closed = True

    def _check_refused(self, code: MQTTErrorCode) -> None:
        # Unless it may reconnect by itself, paho swallows the CONNACK code 1 of MQTT 3.1.1 and reports this.
        never_accepted = not self.connected and self._failure is None and not self.closing
        if code == MQTTErrorCode.MQTT_ERR_PROTOCOL and never_accepted and self.options.protocol_level == 4:
            self._failure = Failure(1, "Connection error: Connection Refused: unacceptable protocol version.")


def _wait_for_end(sock: socket.socket) -> None:
    """Reads until the broker closes. Closing a socket with unread messages in it would reset the connection,
    and the acknowledgements and the DISCONNECT that are still on their way would be lost."""
    end = time.monotonic() + _CLOSE_DEADLINE_S
    try:
        sock.shutdown(socket.SHUT_WR)
        while (left_s := end - time.monotonic()) > 0 and select.select([sock], [], [], left_s)[0]:
            if not sock.recv(65536):
                return
    except OSError:
        return  # the broker was faster


def refusal(reason: ReasonCode, protocol_level: int) -> Failure:
    """mosquitto's exit code is the number in the CONNACK, its message the same words."""
    if protocol_level < 5 and reason.value in _CONNACK_3:
        code, text = _CONNACK_3[reason.value]
        return Failure(code, f"Connection error: Connection Refused: {text}.")
    return Failure(reason.value, f"Connection error: {reason}")


def explain(error: OSError | ValueError, options: Options) -> str:
    """An error of connecting, in words that say what to do."""
    where = options.unix_path or f"{options.host}:{options.port}"
    if isinstance(error, FileNotFoundError) and options.unix_path:
        return f"no socket {where}: is the broker running, and does it listen there?"
    if isinstance(error, ConnectionRefusedError):
        return f"connection refused by {where}: is the broker running? start one with: midge broker"
    if isinstance(error, socket.gaierror):
        return f"no address found for host '{options.host}': check the name given with -h"
    if isinstance(error, ssl.SSLCertVerificationError):
        why = error.verify_message
        return f"the certificate of {where} isn't trusted ({why}): check --cafile and the host name"
    if isinstance(error, ssl.SSLError):
        return f"no TLS with {where} ({error.reason}): is this the broker's TLS port?"
    if isinstance(error, TimeoutError):
        return f"no answer from {where}: check the address, and that no firewall is between"
    if isinstance(error, OSError) and error.strerror:
        return f"can't connect to {where}: {error.strerror}"
    return f"can't connect to {where}: {error}"


class _Client(Client):
    """paho's, which passes over the reason code of a PUBREC: 0x80 and more means that the message was refused, and that
    no PUBREL follows (MQTT 5.0 §4.3.3). The names with an underscore are those of paho-mqtt 2.1 and 2.2."""

    def _handle_pubrec(self) -> MQTTErrorCode:
        packet = bytes(self._in_packet["packet"])
        if self._protocol != MQTTProtocolVersion.MQTTv5 or len(packet) < 3 or packet[2] < 0x80:
            return super()._handle_pubrec()
        mid = int.from_bytes(packet[:2], "big")
        with self._out_message_mutex:
            if mid not in self._out_messages:
                return MQTTErrorCode.MQTT_ERR_SUCCESS
            reason = ReasonCode(PacketTypes.PUBREC, identifier=packet[2])
            return self._do_on_publish(mid, reason, Properties(PacketTypes.PUBREC))  # type: ignore[no-untyped-call]


def _make_client(options: Options) -> Client:
    if options.id_prefix:
        options.client_id = f"{options.id_prefix}{os.getpid()}"
    elif not options.client_id and options.protocol_level < 5:
        # Brokers may refuse an empty identifier in 3.1.1, and 3.1 has none [MQTT-3.1.3-6].
        options.client_id = f"midge-{os.urandom(8).hex()}"
    is_5 = options.protocol_level == 5
    client = _Client(
        CallbackAPIVersion.VERSION2,
        client_id=options.client_id,
        clean_session=None if is_5 else options.clean_start,
        protocol=MQTTProtocolVersion(options.protocol_level),
        reconnect_on_failure=False,
        manual_ack=True,
        transport="tcp" if options.unix_path is None else "unix",
    )
    if options.username is not None or options.password is not None:
        client.username_pw_set(options.username, options.password)
    if options.will_topic is not None:
        client.will_set(
            options.will_topic,
            options.will_payload or b"",
            options.will_qos or 0,
            options.will_retain,
            make_properties(options, "will"),
        )
    if options.is_tls:
        from midge.cli.tls_context import make_context

        client.tls_set_context(make_context(options))
    if options.proxy is not None:
        _use_proxy(client, options.proxy)
    if options.in_flight_max:
        client.max_inflight_messages_set(options.in_flight_max)
    return client


def _use_proxy(client: Client, url: str) -> None:
    try:
        import socks  # PySocks, which paho calls
    except ImportError:
        raise UsageError("--proxy needs PySocks: pip install 'midge[tools]'") from None
    from urllib.parse import unquote, urlsplit

    import paho.mqtt.client

    paho.mqtt.client.socks = socks  # type: ignore[attr-defined]  # `_import_lean` kept it away
    parts = urlsplit(url)
    try:
        port = parts.port or 1080
    except ValueError:
        raise UsageError(f"Invalid proxy port in {url}") from None
    if not parts.hostname:
        raise UsageError(f"Invalid proxy: {url}")
    client.proxy_set(
        proxy_type=socks.SOCKS5,
        proxy_addr=parts.hostname,
        proxy_port=port,
        proxy_rdns=True,  # socks5h: the proxy resolves the broker's name
        proxy_username=unquote(parts.username) if parts.username else None,
        proxy_password=unquote(parts.password) if parts.password else None,
    )


def run_until_signal(connection: Connection, run: Callable[[], int]) -> int:
    """The exit code of *run*, or of its Failure, which is told; 0 if a signal ended it once it was connected.
    KeyboardInterrupt: a signal, before that."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return run()
    except Failure as failure:
        connection.complain(str(failure))
        return failure.exit_code
    except KeyboardInterrupt:
        if not connection.was_connected:
            raise
        connection.finish()
        return 0
