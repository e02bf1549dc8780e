"""The options that `midge pub`, `sub`, `rr` and `serve` share with mosquitto's tools, and the checks across them.
Knows nothing of a connection. What Python can't do is refused by name, never ignored.
"""

import sys
from urllib.parse import unquote

from midge.cli.options import (
    Option,
    Options,
    Table,
    UsageError,
    append_to,
    encode,
    fraction_of,
    is_topic_name,
    number_of,
    switch,
    text_of,
    value,
)

_PROTOCOLS = {"31": 3, "mqttv31": 3, "311": 4, "mqttv311": 4, "5": 5, "mqttv5": 5}
_TLS_VERSIONS = ("tlsv1.3", "tlsv1.2", "tlsv1.1")
_FOR_EVER_S = 0xFFFF_FFFF

_INT_MOST = 2**31 - 1
_KEEP_ALIVE_ERROR = "Invalid keepalive given ({}), it must be between 5 and 65535 inclusive."


def _set_protocol(options: Options, text: str) -> None:
    if text not in _PROTOCOLS:
        raise UsageError(f"Invalid protocol version '{text}': 31, 311 or 5.")
    options.protocol_level = _PROTOCOLS[text]


def _set_session_expiry(options: Options, text: str) -> None:
    if text in ("-1", "∞"):
        options.session_expiry_s = _FOR_EVER_S
        return
    error = "session-expiry-interval '{}' isn't a number of 0 to 4294967295."
    number_of("session_expiry_s", 0, _FOR_EVER_S, error)(options, text)


def _set_will_topic(options: Options, text: str) -> None:
    if not is_topic_name(text):
        raise UsageError(f"Invalid will topic '{text}', does it contain '+' or '#'?")
    options.will_topic = text


def _set_will_payload(options: Options, text: str) -> None:
    options.will_payload = encode(text)


def _set_url(options: Options, url: str) -> None:
    """`mqtt(s)://[user[:password]@]host[:port][/topic]`. The topic is taken as it stands: it may hold % and #."""
    scheme, _, rest = url.partition("://")
    if scheme.lower() not in ("mqtt", "mqtts"):
        kind = "WebSockets aren't there, only mqtt:// and mqtts://" if scheme in ("ws", "wss") else url
        raise UsageError(f"Unsupported URL scheme: {kind}.")
    authority, slash, topic = rest.partition("/")
    userinfo, _, location = authority.rpartition("@")
    if userinfo:
        name, colon, password = userinfo.partition(":")
        options.username = unquote(name)
        options.password = unquote(password) if colon else options.password
    host, port = _host_and_port(location, url)
    options.host, options.unix_path = host, None
    options.port = port or (8883 if scheme.lower() == "mqtts" else 1883)
    options.use_os_certs = options.use_os_certs or scheme.lower() == "mqtts"
    if slash and topic:
        options.url_topic = topic


def _host_and_port(location: str, url: str) -> tuple[str, int]:
    if location.startswith("["):  # an IPv6 address
        host, _, rest = location[1:].partition("]")
        port = rest.removeprefix(":")
    else:
        host, _, port = location.partition(":")
    if not host:
        raise UsageError(f"Invalid URL '{url}': no host.")
    if port and not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise UsageError(f"Invalid URL '{url}': port {port}.")
    return host, int(port or 0)


def _set_proxy(options: Options, text: str) -> None:
    if not text.startswith("socks5h://"):
        raise UsageError(f"Unsupported proxy protocol: {text}")
    options.proxy = text


def _set_tls_version(options: Options, text: str) -> None:
    if text not in _TLS_VERSIONS:
        raise UsageError(f"Unknown --tls-version '{text}': {', '.join(_TLS_VERSIONS)}.")
    options.tls_version = text


def _set_keyform(options: Options, text: str) -> None:
    if text != "pem":
        raise UsageError(f"--keyform {text}: Python's ssl module reads PEM files only, and has no engines.")
    options.keyform = text


def _refuse_engine(_options: Options, _text: str) -> None:
    raise UsageError("--tls-engine: Python's ssl module has no OpenSSL engines.")


def _ignore(_options: Options, _text: str) -> None:
    """-o was read before all others."""


CONNECTION = (
    value("-L --url", _set_url, "URL mqtt(s)://[user[:password]@]host[:port]/topic; the -L may be left out"),
    value("-h --host", text_of("host"), "HOST the broker's name or address (localhost)"),
    value("-p --port", number_of("port", 1, 65535, "Invalid port given: {}"), "PORT (1883, with TLS 8883)"),
    value("--unix", text_of("unix_path"), "PATH of the broker's Unix socket, instead of host and port", "file"),
    value("-A", text_of("bind_address"), "ADDR connect from this address of ours"),
    value("--proxy", _set_proxy, "URL socks5h://[user[:password]@]host[:port] of a proxy to go through"),
    switch("--nodelay", "no_delay", "send each packet at once (TCP_NODELAY)"),
    value("-i --id", text_of("client_id"), "ID client identifier (none: the broker chooses)"),
    value("-I --id-prefix", text_of("id_prefix"), "PREFIX client identifier is PREFIX and the process id"),
    switch("-c --disable-clean-session", "clean_start", "keep the session on the broker; needs -i", to=False),
    value("-x", _set_session_expiry, "SECONDS the broker keeps the session, -1 for ever (MQTT 5.0)"),
    value("-u --username", text_of("username"), "NAME user name"),
    value("-P --pw", text_of("password"), "PASSWORD; needs -u, except with MQTT 5.0"),
    value("-V --protocol-version", _set_protocol, "VERSION 31, 311 or 5 (311; rr and serve: 5)", "31 311 5"),
    value("-k --keepalive", number_of("keep_alive_s", 5, 65535, _KEEP_ALIVE_ERROR), "SECONDS (60)"),
    value("-q --qos", number_of("qos", 0, 2, "Invalid QoS given: {}"), "QOS 0, 1 or 2 (0; serve: 1)", "0 1 2"),
)  # fmt: skip

WILL = (
    value("--will-topic", _set_will_topic, "TOPIC of the message that the broker sends if we vanish"),
    value("--will-payload", _set_will_payload, "TEXT of it"),
    value("--will-qos", number_of("will_qos", 0, 2, "Invalid will QoS {}."), "QOS of it (0)", "0 1 2"),
    switch("--will-retain", "will_retain", "retain it"),
)

TLS = (
    value("--cafile", text_of("cafile"), "FILE with the certificates to trust (PEM)", "file"),
    value("--capath", text_of("capath"), "DIR with such files, named by `openssl rehash`", "directory"),
    switch("--tls-use-os-certs", "use_os_certs", "trust the system's certificates"),
    value("--cert", text_of("certfile"), "FILE with our certificate (PEM)", "file"),
    value("--key", text_of("keyfile"), "FILE with its private key (PEM)", "file"),
    value("--keyform", _set_keyform, "FORM of the key: pem, nothing else", "pem"),
    switch("--insecure", "insecure", "don't compare the certificate's name with the host's"),
    value("--tls-version", _set_tls_version, "VERSION this one or later: tlsv1.3, tlsv1.2, tlsv1.1",
          " ".join(_TLS_VERSIONS)),
    value("--tls-alpn", text_of("tls_alpn"), "PROTOCOL to ask for, where a port has several"),
    value("--ciphers", text_of("ciphers"), "LIST of ciphers, in OpenSSL's words"),
    value("--psk", text_of("psk"), "KEY shared key in hexadecimal (needs Python 3.13)"),
    value("--psk-identity", text_of("psk_identity"), "NAME of that key"),
    value("--tls-engine", _refuse_engine, "ID refused: Python's ssl module has no engines"),
    value("--tls-engine-kpass-sha1", _refuse_engine, "HASH refused: see --tls-engine"),
)  # fmt: skip

GENERAL = (
    value("-D --property", _ignore, "COMMAND IDENTIFIER VALUE a property (MQTT 5.0); user-property takes NAME VALUE"),
    value("-o", _ignore, "FILE with an option and its value in each line (~/.config/mosquitto_pub, _sub, _rr)", "file"),
    switch("-d --debug", "debug", "tell what is sent and received"),
    switch("--quiet", "quiet", "no error messages, exit codes only"),
    switch("--help", "help", "this text"),
    switch("--version", "version", "midge's version"),
)

COMMON: Table = (
    ("connection", CONNECTION),
    ("TLS (any of --cafile, --capath, --tls-use-os-certs, mqtts:// and port 8883 turns it on)", TLS),
    ("will", WILL),
    ("and", GENERAL),
)


def source(names: str, text: str, complete: str = "") -> Option:
    """An option that says what is published; one of them at most may be given."""
    kind = "json" if names == "--json" else names[1]

    def apply(options: Options, given: str) -> None:
        if options.source is not None:
            raise UsageError("Only one type of message can be sent at once.")
        options.source = kind, given

    return Option(names, apply, kind in ("m", "f"), text, complete)


SOURCES = (
    source("-m --message", "TEXT of the message"),
    source("-f --file", "FILE whose content is the message", "file"),
    source("-n --null-message", "an empty message (retained: deletes what is retained)"),
    source("-s --stdin-file", "stdin to its end is the message"),
)

_TIMEOUT_ERROR = 'Invalid timeout "{}".'

PRINTING = (
    value("-F", text_of("format"), "FORMAT of a line: %t topic, %p payload, %j JSON ... as mosquitto_sub's"),
    switch("-v --verbose", "verbose", "print the topic before the payload"),
    switch("-N", "end_of_line", "no end of line after a message", to=False),
    switch("--json", "json", "print a JSON object for each message, as `midge pub --json` reads it"),
    switch("--pretty", "pretty", "spread the JSON of %j, %J and --json over several lines"),
    value("-W", number_of("timeout_s", 1, _INT_MOST, _TIMEOUT_ERROR), "SECONDS to end after, exit code 27"),
    switch("-R", "skip_retained", "don't print retained messages"),
)

RATE = value(
    "--rate",
    fraction_of("per_second", 0.001, 1e9, "--rate needs a number of messages per second, not '{}'."),
    "N publish at most N messages each second",
)

TOPIC = value("-t --topic", append_to("topics"), "TOPIC to publish to")


def check(options: Options) -> None:
    """What single options can't see: combinations. Fills in what depends on others."""
    if options.properties:
        options.protocol_level = 5  # as with mosquitto's tools: -D means 5.0
    _check_session(options)
    if options.password is not None and options.username is None and options.protocol_level != 5:
        # MQTT 3.1.1 has no password without a user name [MQTT-3.1.2-22], 5.0 has.
        raise UsageError("A password needs a user name: add -u, or -V 5.")
    if options.will_topic is None:
        _refuse_will_without_topic(options)
    check_tls(options)
    options.port = options.port or (8883 if options.is_tls else 1883)


def _check_session(options: Options) -> None:
    if options.client_id and options.id_prefix:
        raise UsageError("-i and -I argument cannot be used together.")
    if options.protocol_level != 5:
        if not options.clean_start and not options.client_id:
            raise UsageError("You must provide a client id if you are using the -c option.")
        if options.session_expiry_s is not None and not options.quiet:
            print("Warning: -x is of MQTT 5.0 and means nothing without -V 5.", file=sys.stderr)
        return
    if options.session_expiry_s is None and not options.clean_start:
        options.session_expiry_s = _FOR_EVER_S  # -c without -x, as with mosquitto's tools
    if options.session_expiry_s == _FOR_EVER_S and not options.client_id:
        raise UsageError("You must provide a client id if you are using an infinite session expiry interval.")


def check_tls(options: Options) -> None:
    if (options.certfile is None) != (options.keyfile is None):
        raise UsageError("Both certfile and keyfile must be provided if one of them is set.")
    if options.keyform and not options.keyfile:
        raise UsageError("If keyform is set, keyfile must be also specified.")
    if options.psk is not None:
        if options.cafile or options.capath:
            raise UsageError("Only one of --psk or --cafile/--capath may be used at once.")
        if options.psk_identity is None:
            raise UsageError("--psk-identity required if --psk used.")
        if sys.version_info < (3, 13):
            running = f"{sys.version_info[0]}.{sys.version_info[1]}"
            raise UsageError(f"--psk: Python's ssl module has pre-shared keys from 3.13 on, this is {running}.")
    if options.port == 8883 and not options.is_tls and options.unix_path is None:
        options.use_os_certs = True


def _refuse_will_without_topic(options: Options) -> None:
    if options.will_payload is not None:
        raise UsageError("Will payload given, but no will topic given.")
    if options.will_retain:
        raise UsageError("Will retain given, but no will topic given.")
    if options.will_qos is not None:
        raise UsageError("Will QoS given, but no will topic given.")
    if any(command == "will" for command, _, _ in options.properties):
        raise UsageError("Will property given, but no will topic given.")
