"""The command line of `midge pub`, `sub`, `rr` and `serve` as data: options, how they are read, how they are told.
Knows nothing of a connection, and not which tool has which option (`shared_options`, `pub`, `sub` ... do).

Plain classes: `dataclasses` would double the time that this module takes to import, and with it the start of each tool.
"""

import os
from collections.abc import Callable, Iterable

Property = tuple[str, str, tuple[str, ...]]  # command, identifier, and one value (two for user-property)

URL_SCHEMES = ("mqtt://", "mqtts://", "ws://", "wss://")
QUEUE_PREFIX = "$queue/"  # of the core, which would cost each start of a tool its import


class UsageError(Exception):
    """The command line is wrong; the text says how. Exit code 1, as with mosquitto's tools."""


class Options:
    """What the command line says, checked. Defaults are mosquitto's."""

    host = "localhost"
    port = 0  # 0 until `check` puts 1883, or 8883 with TLS
    unix_path: str | None = None
    bind_address = ""
    proxy: str | None = None
    no_delay = False
    qos = 0
    client_id = ""
    id_prefix = ""
    clean_start = True
    session_expiry_s: int | None = None
    keep_alive_s = 60
    username: str | None = None
    password: str | None = None
    protocol_level = 4
    debug = False
    quiet = False
    help = False
    version = False
    url_topic: str | None = None  # the path of the URL

    will_topic: str | None = None
    will_payload: bytes | None = None
    will_qos: int | None = None
    will_retain = False

    cafile: str | None = None
    capath: str | None = None
    use_os_certs = False
    certfile: str | None = None
    keyfile: str | None = None
    keyform: str | None = None
    insecure = False
    ciphers: str | None = None
    tls_version: str | None = None
    tls_alpn: str | None = None
    psk: str | None = None
    psk_identity: str | None = None

    # what sends: pub, rr
    retain = False
    source: tuple[str, str] | None = None  # which of -m, -f, -l, -n, -s, --json, and its value
    repeat = 1
    repeat_delay_s = 0.0
    in_flight_max = 0  # 0: the tool's own
    per_second = 0.0  # 0: as fast as it goes

    # what prints: sub, rr
    timeout_s = 0  # 0: no end
    format: str | None = None
    json = False
    pretty = False
    verbose = False
    end_of_line = True
    skip_retained = False

    # sub
    since: str | None = None
    count = 0  # 0: no end
    retained_only = False
    remove_retained = False
    retain_as_published = False
    random_percent = 100.0
    exit_when_subscribed = False
    show_rate = False

    # top
    once = False
    wait_s = 2.0

    # rr, serve
    response_topic: str | None = None
    group: str | None = None
    jobs = 4
    waiting_max = 1000
    command_timeout_s = 30.0
    content_type: str | None = None

    def __init__(self) -> None:
        self.topics: list[str] = []
        self.filters_out: list[str] = []
        self.unsubscribes: list[str] = []
        self.properties: list[Property] = []
        self.command: list[str] = []  # serve: what stands behind --

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Options) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]

    @property
    def is_tls(self) -> bool:
        return bool(self.cafile or self.capath or self.use_os_certs or self.psk)


class Option:
    """One option: its names, what it does with its value ('' for a switch), and what it is for.

    *complete* is what a shell may offer for the value: "file", "directory", or the values, divided by blanks.
    """

    __slots__ = ("apply", "complete", "names", "takes_value", "text")

    def __init__(
        self,
        names: str,
        apply: Callable[[Options, str], None],
        takes_value: bool,
        text: str,
        complete: str = "",
    ) -> None:
        self.names = tuple(names.split())
        self.apply = apply
        self.takes_value = takes_value
        self.text = text
        self.complete = complete


Table = tuple[tuple[str, tuple[Option, ...]], ...]  # options by the heading that they stand under in the help


def value(names: str, apply: Callable[[Options, str], None], text: str, complete: str = "") -> Option:
    return Option(names, apply, True, text, complete)


def switch(names: str, attribute: str, text: str, to: bool = True) -> Option:
    return Option(names, lambda options, _: setattr(options, attribute, to), False, text)


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


def fraction_of(attribute: str, least: float, most: float, error: str) -> Callable[[Options, str], None]:
    """Sets a number that needn't be whole; `error` has one `{}` for what was given."""

    def apply(options: Options, text: str) -> None:
        try:
            number = float(text)
        except ValueError:
            raise UsageError(error.format(text)) from None
        if not least <= number <= most:
            raise UsageError(error.format(text))
        setattr(options, attribute, number)

    return apply


_PROPERTY_NAMES = ("-D", "--property")
_SETTINGS_NAME = "-o"


def parse(
    argv: list[str],
    table: Table,
    commands: tuple[str, ...],
    options: Options | None = None,
    settings_of: str | None = None,
) -> Options:
    """Reads a command line in mosquitto's manner: each option is a word of its own and takes the next word
    whatever that begins with; there are no abbreviations. `commands` are those that -D may name. With
    *settings_of*, a tool's name, what its settings file says comes first."""
    by_name = {name: option for _, group in table for option in group for name in option.names}
    options = options or Options()
    if settings_of is not None:
        for line in _settings(settings_of, argv):
            _parse_words(line, by_name, commands, options)
    _parse_words(argv, by_name, commands, options)
    return options


def _parse_words(
    argv: list[str], by_name: dict[str, Option], commands: tuple[str, ...], options: Options
) -> None:
    words = list(reversed(argv))
    while words:
        name = words.pop()
        if name in _PROPERTY_NAMES:
            options.properties.append(_take_property(words, commands))
            continue
        if name == "--" and "--" in by_name:
            options.command = words[::-1]
            return
        option = by_name.get(name)
        if option is None and name.startswith(URL_SCHEMES) and "-L" in by_name:
            option = by_name["-L"]
            words.append(name)
        if option is None:
            raise UsageError(f"Unknown option '{name}'{_why_unknown(name)}.")
        if option.takes_value and not words:
            raise UsageError(f"{name} argument given but no value specified.")
        option.apply(options, words.pop() if option.takes_value else "")


def _settings(tool: str, argv: list[str]) -> Iterable[list[str]]:
    """The lines of -o FILE, else of $XDG_CONFIG_HOME/mosquitto_pub or ~/.config/mosquitto_pub: an option and its
    value in each."""
    if _SETTINGS_NAME in argv[:-1]:
        path = argv[argv.index(_SETTINGS_NAME) + 1]
    else:
        path = os.path.join(os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config"), f"mosquitto_{tool}")
        if not os.path.isfile(path):
            return
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            lines = file.read().splitlines()
    except OSError as error:
        raise UsageError(f'Unable to open options file "{path}": {error.strerror}.') from None
    for line in lines:
        if line.strip() and not line.startswith("#"):
            yield line.strip().split(" ", 1)


def _why_unknown(name: str) -> str:
    if name == "-S":
        return ": midge doesn't look up SRV records; `midge find` lists brokers that announce themselves"
    return ""


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


def help_text(tool: str, purpose: str, usage: str, table: Table, examples: str) -> str:
    """What `midge TOOL --help` prints: what it is for and examples first, then every option."""
    lines = [f"midge {tool}: {purpose}", "", f"usage: midge {tool} {usage}", "", examples]
    for heading, group in table:
        lines += ["", f"{heading}:"]
        lines += [f"  {' '.join(option.names):28} {option.text}" for option in group]
    return "\n".join(lines)
