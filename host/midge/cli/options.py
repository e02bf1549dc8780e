"""The options that `midge pub` and `midge sub` share with mosquitto_pub and mosquitto_sub, and their checks.
Knows nothing of a connection. What those have and we don't is refused by name, never ignored.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

Property = tuple[str, str, tuple[str, ...]]  # command, identifier, and one value (two for user-property)

_PROTOCOLS = {"31": 3, "mqttv31": 3, "311": 4, "mqttv311": 4, "5": 5, "mqttv5": 5}

# Options of mosquitto_pub and mosquitto_sub 2.0 that are not here.
_ABSENT = frozenset(
    (
        "-L", "--url", "-M", "-S", "--capath", "--ciphers", "--keyform", "--nodelay", "--pretty",
        "--proxy", "--psk", "--psk-identity", "--random-filter", "--remove-retained", "--repeat",
        "--repeat-delay", "--retain-as-published", "--tls-alpn", "--tls-engine",
        "--tls-engine-kpass-sha1", "--tls-use-os-certs", "--tls-version", "--unix",
    )
)  # fmt: skip


class UsageError(Exception):
    """The command line is wrong; the text says how. Exit code 1, as with mosquitto's tools."""


@dataclass(slots=True)
class Options:
    """What the command line says, checked. Defaults are mosquitto's."""

    host: str = "localhost"
    port: int = 0  # 0 until `check` puts 1883, or 8883 with TLS
    bind_address: str = ""
    topics: list[str] = field(default_factory=list)
    qos: int = 0
    client_id: str = ""
    id_prefix: str = ""
    clean_start: bool = True
    session_expiry_s: int | None = None
    keep_alive_s: int = 60
    username: str | None = None
    password: str | None = None
    protocol_level: int = 4
    debug: bool = False
    quiet: bool = False
    help: bool = False
    version: bool = False
    properties: list[Property] = field(default_factory=list)

    will_topic: str | None = None
    will_payload: bytes | None = None
    will_qos: int | None = None
    will_retain: bool = False

    cafile: str | None = None
    certfile: str | None = None
    keyfile: str | None = None
    insecure: bool = False

    # midge pub
    retain: bool = False
    source: tuple[str, str] | None = None  # which of -m, -f, -l, -n, -s, and its value

    # midge sub
    count: int = 0  # 0: no end
    timeout_s: int = 0  # 0: no end
    format: str | None = None
    verbose: bool = False
    end_of_line: bool = True
    skip_retained: bool = False
    retained_only: bool = False
    exit_when_subscribed: bool = False
    filters_out: list[str] = field(default_factory=list)
    unsubscribes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Option:
    """One option: its names, what it does with its value ('' for a switch), and what it is for."""

    names: tuple[str, ...]
    apply: Callable[[Options, str], None]
    takes_value: bool
    text: str


def value(names: str, apply: Callable[[Options, str], None], text: str) -> Option:
    return Option(tuple(names.split()), apply, True, text)


def switch(names: str, attribute: str, text: str, to: bool = True) -> Option:
    return Option(tuple(names.split()), lambda options, _: setattr(options, attribute, to), False, text)


def text_of(attribute: str) -> Callable[[Options, str], None]:
    return lambda options, text: setattr(options, attribute, text)


def append_to(attribute: str) -> Callable[[Options, str], None]:
    def apply(options: Options, text: str) -> None:
        getattr(options, attribute).append(text)

    return apply


def number_of(attribute: str, least: int, most: int, error: str) -> Callable[[Options, str], None]:
    """Sets an integer; `error` has one `{}` for what was given."""

    def apply(options: Options, text: str) -> None:
        if not text.isascii() or not text.isdigit() or not least <= int(text) <= most:
            raise UsageError(error.format(text))
        setattr(options, attribute, int(text))

    return apply


def _set_protocol(options: Options, text: str) -> None:
    if text not in _PROTOCOLS:
        raise UsageError(f"Invalid protocol version '{text}': 31, 311 or 5.")
    options.protocol_level = _PROTOCOLS[text]


def _set_session_expiry(options: Options, text: str) -> None:
    if text in ("-1", "∞"):
        options.session_expiry_s = 0xFFFF_FFFF
        return
    error = "session-expiry-interval '{}' isn't a number of 0 to 4294967295."
    number_of("session_expiry_s", 0, 0xFFFF_FFFF, error)(options, text)


def _set_will_topic(options: Options, text: str) -> None:
    if not is_topic_name(text):
        raise UsageError(f"Invalid will topic '{text}', does it contain '+' or '#'?")
    options.will_topic = text


def _set_will_payload(options: Options, text: str) -> None:
    options.will_payload = encode(text)


_KEEP_ALIVE_ERROR = "Invalid keepalive given ({}), it must be between 5 and 65535 inclusive."

COMMON = (
    value("-h --host", text_of("host"), "HOST the broker's name or address (localhost)"),
    value("-p --port", number_of("port", 1, 65535, "Invalid port given: {}"), "PORT (1883, with TLS 8883)"),
    value("-A", text_of("bind_address"), "ADDR connect from this address of ours"),
    value("-i --id", text_of("client_id"), "ID client identifier (none: the broker chooses)"),
    value("-I --id-prefix", text_of("id_prefix"), "PREFIX client identifier is PREFIX and the process id"),
    switch("-c --disable-clean-session", "clean_start", "keep the session on the broker; needs -i", to=False),
    value("-x", _set_session_expiry, "SECONDS the broker keeps the session, -1 for ever (MQTT 5.0)"),
    value("-u --username", text_of("username"), "NAME user name"),
    value("-P --pw", text_of("password"), "PASSWORD; needs -u"),
    value("-V --protocol-version", _set_protocol, "VERSION 31, 311 or 5 (311)"),
    value("-k --keepalive", number_of("keep_alive_s", 5, 65535, _KEEP_ALIVE_ERROR), "SECONDS (60)"),
    value("-q --qos", number_of("qos", 0, 2, "Invalid QoS given: {}"), "QOS 0, 1 or 2 (0)"),
    value("--will-topic", _set_will_topic, "TOPIC of the message that the broker sends if we vanish"),
    value("--will-payload", _set_will_payload, "TEXT of it"),
    value("--will-qos", number_of("will_qos", 0, 2, "Invalid will QoS {}."), "QOS of it (0)"),
    switch("--will-retain", "will_retain", "retain it"),
    value("--cafile", text_of("cafile"), "FILE with the certificates to trust (PEM); turns TLS on"),
    value("--cert", text_of("certfile"), "FILE with our certificate (PEM)"),
    value("--key", text_of("keyfile"), "FILE with its private key (PEM)"),
    switch("--insecure", "insecure", "don't compare the certificate's name with the host's"),
    switch("-d --debug", "debug", "tell what is sent and received"),
    switch("--quiet", "quiet", "no error messages, exit codes only"),
    switch("--help", "help", "this text"),
    switch("--version", "version", "midge's version"),
)  # fmt: skip

_PROPERTY_NAMES = ("-D", "--property")


def parse(argv: list[str], table: tuple[Option, ...], commands: tuple[str, ...]) -> Options:
    """Reads a command line in mosquitto's manner: each option is a word of its own and takes the next word
    whatever that begins with; there are no abbreviations. `commands` are those that -D may name."""
    by_name = {name: option for option in table for name in option.names}
    options = Options()
    words = list(reversed(argv))
    while words:
        name = words.pop()
        if name in _PROPERTY_NAMES:
            options.properties.append(_take_property(words, commands))
            continue
        option = by_name.get(name)
        if option is None:
            raise UsageError(f"Unknown option '{name}'{_why_unknown(name)}.")
        if option.takes_value and not words:
            raise UsageError(f"{name} argument given but no value specified.")
        option.apply(options, words.pop() if option.takes_value else "")
    return options


def _why_unknown(name: str) -> str:
    return ": midge doesn't have this option of mosquitto's" if name in _ABSENT else ""


def _take_property(words: list[str], commands: tuple[str, ...]) -> Property:
    if len(words) < 3:
        raise UsageError("--property argument given but not enough arguments specified.")
    command, identifier = words.pop().lower(), words.pop()
    if command not in commands:
        raise UsageError(f"Invalid command '{command}' given in --property argument: {', '.join(commands)}.")
    if identifier != "user-property":
        return command, identifier, (words.pop(),)
    if len(words) < 2:
        raise UsageError("--property argument given but not enough arguments specified.")
    return command, identifier, (words.pop(), words.pop())


def check(options: Options) -> None:
    """What single options can't see: combinations. Fills in what depends on others."""
    if options.properties:
        options.protocol_level = 5  # as with mosquitto's tools: -D means 5.0
    if options.client_id and options.id_prefix:
        raise UsageError("-i and -I argument cannot be used together.")
    if not options.clean_start and not (options.client_id or options.id_prefix):
        raise UsageError("You must provide a client id if you are using the -c option.")
    if options.session_expiry_s is not None and options.protocol_level != 5:
        raise UsageError("-x is of MQTT 5.0: add -V 5.")
    if options.password is not None and options.username is None:
        raise UsageError("A password needs a user name: add -u.")
    if options.will_topic is None:
        _refuse_will_without_topic(options)
    if (options.certfile is None) != (options.keyfile is None):
        raise UsageError("Both certfile and keyfile must be provided if one of them is set.")
    if options.cafile is None and (options.certfile or options.insecure):
        raise UsageError("--cert, --key and --insecure need --cafile, which turns TLS on.")
    options.port = options.port or (1883 if options.cafile is None else 8883)


def _refuse_will_without_topic(options: Options) -> None:
    if options.will_payload is not None:
        raise UsageError("Will payload given, but no will topic given.")
    if options.will_retain:
        raise UsageError("Will retain given, but no will topic given.")
    if options.will_qos is not None:
        raise UsageError("Will QoS given, but no will topic given.")
    if any(command == "will" for command, _, _ in options.properties):
        raise UsageError("Will property given, but no will topic given.")


def is_topic_name(topic: str) -> bool:
    """[MQTT-3.3.2-2] no wildcards, [MQTT-4.7.3-1] at least one character, [MQTT-4.7.3-2] no U+0000."""
    return 0 < len(encode(topic)) <= 65535 and not any(character in topic for character in "+#\0")


def is_topic_filter(topic: str) -> bool:
    """[MQTT-4.7.1-2] `#` alone in the last level, [MQTT-4.7.1-3] `+` alone in its level."""
    if not 0 < len(encode(topic)) <= 65535 or "\0" in topic:
        return False
    *parents, last = topic.split("/")
    if any("#" in level for level in parents) or ("#" in last and last != "#"):
        return False
    return all(level == "+" or "+" not in level for level in (*parents, last))


def encode(text: str) -> bytes:
    """The bytes that the shell gave us: what isn't UTF-8 on the command line comes as surrogates."""
    return text.encode("utf-8", "surrogateescape")


def help_text(tool: str, purpose: str, table: tuple[Option, ...], examples: str) -> str:
    lines = [f"{' '.join(option.names):28} {option.text}" for option in table]
    lines.append(f"{' '.join(_PROPERTY_NAMES):28} COMMAND IDENTIFIER VALUE a property (MQTT 5.0)")
    return f"midge {tool}: {purpose}\n\noptions:\n  " + "\n  ".join(lines) + "\n\n" + examples
