"""The command line of `midge pub`, `sub`, `rr` and `serve`: what is accepted, what is refused and how it is told."""

import sys
from pathlib import Path

import pytest

from midge.cli import pub, rr, serve, sub
from midge.cli.options import Options, UsageError, is_topic_filter, is_topic_name, parse
from midge.cli.shared_options import check


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where settings files are looked for: not the user's own."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    return tmp_path


def _parse_pub(*argv: str) -> Options:
    options = parse(list(argv), pub.OPTIONS, pub._COMMANDS, settings_of="pub")
    pub._check(options)
    return options


def _parse_sub(*argv: str) -> Options:
    options = parse(list(argv), sub.OPTIONS, sub._COMMANDS)
    sub._check(options)
    return options


def test_short_and_long_names_mean_the_same() -> None:
    short = _parse_pub(
        *("-h", "h", "-p", "9", "-t", "a", "-m", "x", "-q", "1", "-r"),
        *("-i", "me", "-c", "-V", "5"),
    )
    long = _parse_pub(
        *("--host", "h", "--port", "9", "--topic", "a", "--message", "x", "--qos", "1", "--retain"),
        *("--id", "me", "--disable-clean-session", "--protocol-version", "mqttv5"),
    )
    assert short == long
    assert (short.host, short.port, short.qos, short.clean_start) == ("h", 9, 1, False)


def test_defaults_are_mosquittos() -> None:
    options = _parse_pub("-t", "a", "-n")
    assert (options.host, options.port, options.qos, options.keep_alive_s) == ("localhost", 1883, 0, 60)
    assert (options.protocol_level, options.clean_start) == (4, True)


def test_tls_changes_the_default_port() -> None:
    assert _parse_sub("-t", "a", "--cafile", "ca.pem").port == 8883


@pytest.mark.parametrize("payload", ["-1", "--help", "-q", "", "ü"])
def test_an_option_takes_the_next_word_whatever_it_is(payload: str) -> None:
    assert _parse_pub("-t", "a", "-m", payload).source == ("m", payload)


def test_several_topics_filters_and_unsubscribes() -> None:
    options = _parse_sub("-t", "a", "-t", "b/#", "-T", "b/c", "-T", "b/d", "-U", "e")
    assert (options.topics, options.filters_out) == (["a", "b/#"], ["b/c", "b/d"])
    assert options.unsubscribes == ["e"]


def test_properties_make_it_mqtt_5() -> None:
    argv = ("-D", "publish", "user-property", "k", "v", "-D", "CONNECT", "receive-maximum", "3")
    options = _parse_pub("-t", "a", "-n", *argv)
    assert options.protocol_level == 5
    assert options.properties == [
        ("publish", "user-property", ("k", "v")),
        ("connect", "receive-maximum", ("3",)),
    ]


@pytest.mark.parametrize("given", ["-1", "∞", "4294967295"])
def test_session_expiry_may_be_for_ever(given: str) -> None:
    assert _parse_sub("-t", "a", "-V", "5", "-i", "me", "-x", given).session_expiry_s == 0xFFFF_FFFF


PUB_ERRORS = [
    (["-m", "x"], "Both topic and message must be supplied."),
    (["-t", "a"], "Both topic and message must be supplied."),
    (["-t", "a/#", "-m", "x"], "Invalid publish topic 'a/#'"),
    (["-t", "", "-m", "x"], "Invalid publish topic ''"),
    (["-t", "a", "-t", "b", "-m", "x"], "Only one topic"),
    (["-t", "a", "-m", "x", "-n"], "Only one type of message"),
    (["-t", "a", "-m"], "-m argument given but no value"),
    (["-t", "a", "-m", "x", "-q", "3"], "Invalid QoS given: 3"),
    (["-t", "a", "-m", "x", "-q", "x"], "Invalid QoS given: x"),
    (["-t", "a", "-m", "x", "-p", "70000"], "Invalid port given: 70000"),
    (["-t", "a", "-m", "x", "-k", "2"], "between 5 and 65535"),
    (["-t", "a", "-m", "x", "-V", "4"], "Invalid protocol version '4': 31, 311 or 5"),
    (["-t", "a", "-m", "x", "-V", "5", "-x", "soon"], "'soon' isn't a number"),
    (["-t", "a", "-m", "x", "-c"], "You must provide a client id"),
    (["-t", "a", "-m", "x", "-i", "a", "-I", "b"], "-i and -I"),
    (["-t", "a", "-m", "x", "-P", "secret"], "add -u"),
    (["-t", "a", "-m", "x", "--will-payload", "x"], "no will topic given"),
    (["-t", "a", "-m", "x", "--will-retain"], "no will topic given"),
    (["-t", "a", "-m", "x", "--will-qos", "1"], "no will topic given"),
    (["-t", "a", "-m", "x", "--will-topic", "+"], "Invalid will topic '+'"),
    (["-t", "a", "-m", "x", "--cert", "c"], "Both certfile and keyfile"),
    (["-t", "a", "-m", "x", "-V", "5", "-x", "-1"], "infinite session expiry"),
    (["-t", "a", "-m", "x", "-V", "5", "-c", "-I", "pre"], "infinite session expiry"),
    (["-t", "a", "-m", "x", "-D", "auth", "user-property", "a", "b"], "Invalid command 'auth'"),
    (["-t", "a", "-m", "x", "-D", "publish", "user-property", "a"], "not enough arguments"),
    (["-t", "a", "-m", "x", "--psk", "00"], "--psk-identity required"),
    (["-t", "a", "-m", "x", "--psk", "00", "--cafile", "x"], "Only one of --psk or --cafile"),
    (["-t", "a", "-m", "x", "--keyform", "engine"], "has no engines"),
    (["-t", "a", "-m", "x", "--keyform", "pem"], "keyfile must be also specified"),
    (["-t", "a", "-m", "x", "--tls-engine", "tpm"], "has no OpenSSL engines"),
    (["-t", "a", "-m", "x", "--tls-version", "1.2"], "tlsv1.3, tlsv1.2, tlsv1.1"),
    (["-t", "a", "-m", "x", "--tls-use-os-certs", "--ciphers", "none"], "OpenSSL knows none of them"),
    (["-t", "a", "-m", "x", "--proxy", "http://a"], "Unsupported proxy protocol"),
    (["-t", "a", "-m", "x", "--proxy", "socks5h://a:b"], "Invalid proxy port"),
    (["-t", "a", "-m", "x", "--repeat", "0"], "--repeat argument must be >0"),
    (["-t", "a", "-m", "x", "--repeat-delay", "-1"], "must be >=0.0"),
    (["-t", "a", "-m", "x", "--rate", "0"], "messages per second"),
    (["-t", "a", "-m", "x", "-M", "0"], "must be greater than 0"),
    (["-t", "a", "-m", "x", "-S"], "doesn't look up SRV records"),
    (["-t", "a", "-m", "x", "-o", "/nonexistent"], 'Unable to open options file "/nonexistent"'),
    (["ws://a/b", "-m", "x"], "WebSockets aren't there"),
    (["-L", "http://a/b", "-m", "x"], "Unsupported URL scheme: http://a/b"),
    (["mqtt://", "-m", "x"], "no host"),
    (["mqtt://a:b/c", "-m", "x"], "port b"),
    (["mqtt://a", "-m", "x"], "Both topic and message"),
    (["-t", "a", "-m", "x", "--qo", "1"], "Unknown option '--qo'."),
    (["-t", "a", "-m", "x", "word"], "Unknown option 'word'."),
]


@pytest.mark.parametrize(("argv", "text"), PUB_ERRORS)
def test_pub_refuses_and_says_why(argv: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert pub.run(argv) == 1
    assert text in capsys.readouterr().err


SUB_ERRORS = [
    ([], "You must specify a topic"),
    (["-t", "a/#/b"], "Invalid subscription topic 'a/#/b'"),
    (["-t", "a", "-T", "b+"], "Invalid filter topic 'b+'"),
    (["-t", "a", "-U", "#b"], "Invalid unsubscribe topic '#b'"),
    (["-t", "a", "-W", "0"], 'Invalid timeout "0".'),
    (["-t", "a", "-C", "0"], 'Invalid message count "0".'),
    (["-t", "a", "-R", "--retained-only"], "makes no sense"),
    (["-t", "a", "-m", "x"], "Unknown option '-m'."),
    (["-t", "a", "-F", "%k"], "Invalid format specifier 'k'."),
    (["-t", "a", "-D", "subscribe", "colour", "red"], "Invalid property name"),
    (["-t", "a", "-D", "subscribe", "receive-maximum", "3"], "does not apply"),
    (["-t", "a", "-D", "connect", "receive-maximum", "0"], "range 1-65535"),
    (["-t", "a", "-D", "connect", "session-expiry-interval", "4294967296"], "not within 0 and 4294967295"),
    (["-t", "a", "-D", "connect", "topic-alias-maximum", "3"], "doesn't resolve aliases"),
    (["-t", "a", "--cafile", "/nonexistent/ca.pem"], "/nonexistent/ca.pem"),
]


@pytest.mark.parametrize(("argv", "text"), SUB_ERRORS)
def test_sub_refuses_and_says_why(argv: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert sub.run(argv) == 1
    assert text in capsys.readouterr().err


RR_ERRORS = [
    (["-m", "x"], "Both topic and message"),
    (["-t", "a"], "Both topic and message"),
    (["-t", "a", "-m", "x", "-e", "b/#"], "Invalid response topic 'b/#'"),
    (["-t", "a", "-l"], "Unknown option '-l'"),
    (["-t", "a", "-m", "x", "-C", "1"], "Unknown option '-C'"),
    (["-t", "a", "-m", "x", "-D", "publish", "response-topic", "b"], "say -e instead"),
]


@pytest.mark.parametrize(("argv", "text"), RR_ERRORS)
def test_rr_refuses_and_says_why(argv: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert rr.run(argv) == 1
    assert text in capsys.readouterr().err


SERVE_ERRORS = [
    (["--", "date"], "a topic to answer on"),
    (["-t", "a"], "a command behind --"),
    (["-t", "a", "--"], "a command behind --"),
    (["-t", "a/#/b", "--", "date"], "Invalid subscription topic"),
    (["-t", "a", "--group", "a/b", "--", "date"], "Invalid group 'a/b'"),
    (["-t", "a", "-j", "0", "--", "date"], "Invalid number of jobs 0"),
    (["-t", "a", "--timeout", "0", "--", "date"], "Invalid timeout 0"),
]


@pytest.mark.parametrize(("argv", "text"), SERVE_ERRORS)
def test_serve_refuses_and_says_why(argv: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert serve.run(argv) == 1
    assert text in capsys.readouterr().err


def test_a_command_takes_all_that_stands_behind_the_dashes() -> None:
    options = parse(["-t", "a", "--", "sh", "-c", "-t", "--"], serve.OPTIONS, ())
    assert (options.topics, options.command) == (["a"], ["sh", "-c", "-t", "--"])


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="Python 3.13 has pre-shared keys")
def test_shared_keys_are_refused_where_python_has_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert pub.run(["-t", "a", "-m", "x", "--psk", "00", "--psk-identity", "me"]) == 1
    assert "has pre-shared keys from 3.13 on" in capsys.readouterr().err


URLS = [
    ("mqtt://h/a/b", ("h", 1883, None, None, "a/b", False)),
    ("mqtts://h/a", ("h", 8883, None, None, "a", True)),
    ("MQTT://h/a", ("h", 1883, None, None, "a", False)),
    ("mqtt://joe@h:9/a", ("h", 9, "joe", None, "a", False)),
    ("mqtt://joe:se%40cret@h/a/#", ("h", 1883, "joe", "se@cret", "a/#", False)),
    ("mqtt://[::1]:9/a%20b", ("::1", 9, None, None, "a%20b", False)),
    ("mqtt://h", ("h", 1883, None, None, None, False)),
    ("mqtt://h//a", ("h", 1883, None, None, "/a", False)),
]


@pytest.mark.parametrize(("url", "expected"), URLS)
def test_urls(url: str, expected: tuple[object, ...]) -> None:
    options = parse(["-L", url], pub.OPTIONS, ())
    found = (options.host, options.port, options.username, options.password, options.url_topic, options.is_tls)
    assert found == expected


def test_a_url_needs_no_option_before_it() -> None:
    options = _parse_sub("mqtt://h/a", "-t", "b")
    assert (options.host, options.topics) == ("h", ["b", "a"])


def test_an_option_wins_over_the_url_where_it_comes_later() -> None:
    assert _parse_pub("mqtt://h/a", "-p", "5", "-n").port == 5


def test_the_port_of_mqtt_over_tls_turns_it_on() -> None:
    assert _parse_pub("-t", "a", "-n", "-p", "8883").is_tls
    assert not _parse_pub("-t", "a", "-n", "-p", "8884").is_tls


def test_settings_come_from_mosquittos_file_and_the_command_line_wins(settings: Path) -> None:
    (settings / "mosquitto_pub").write_text("# mine\n-h broker.local\n\n-m a message\n-q 2\n-r\n")
    options = _parse_pub("-t", "a", "-q", "1")
    assert (options.host, options.source, options.qos, options.retain) == (
        "broker.local",
        ("m", "a message"),
        1,
        True,
    )


def test_settings_come_from_the_file_that_is_named(settings: Path) -> None:
    (settings / "mosquitto_pub").write_text("-h wrong\n")
    (settings / "mine").write_text("--host right\n")
    assert _parse_pub("-t", "a", "-n", "-o", str(settings / "mine")).host == "right"


def test_check_leaves_a_given_port_alone() -> None:
    options = Options()
    options.port = 5
    check(options)
    assert options.port == 5


@pytest.mark.parametrize("topic", ["a", "/", "a//b", "$SYS/x", "ü", " "])
def test_topic_names(topic: str) -> None:
    assert is_topic_name(topic)


@pytest.mark.parametrize("topic", ["", "a/+", "#", "a\0", "a" * 65536])
def test_no_topic_names(topic: str) -> None:
    assert not is_topic_name(topic)


@pytest.mark.parametrize("topic", ["#", "+", "a/#", "+/a/+", "/+/#", "a//#"])
def test_topic_filters(topic: str) -> None:
    assert is_topic_filter(topic)


@pytest.mark.parametrize("topic", ["", "#/a", "a#", "a/b#", "+a", "a/b+/c", "a\0"])
def test_no_topic_filters(topic: str) -> None:
    assert not is_topic_filter(topic)


def test_a_missing_file_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert pub.run(["-t", "a", "-f", "/nonexistent"]) == 1
    assert 'Unable to open file "/nonexistent": No such file' in capsys.readouterr().err


def test_usage_error_is_no_value_error() -> None:
    assert not issubclass(UsageError, ValueError)  # ValueErrors of paho's are caught around connecting
