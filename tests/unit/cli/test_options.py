"""The command line of `midge pub` and `midge sub`: what is accepted, what is refused and how it is told."""

import pytest

from midge.cli import pub, sub
from midge.cli.options import UsageError, check, is_topic_filter, is_topic_name, parse


def _parse_pub(*argv: str) -> pub.Options:
    options = parse(list(argv), pub.OPTIONS, ("connect", "publish", "disconnect", "will"))
    pub._check(options)
    return options


def _parse_sub(*argv: str) -> sub.Options:
    options = parse(list(argv), sub.OPTIONS, ("connect", "subscribe"))
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
    assert _parse_sub("-t", "a", "-V", "5", "-x", given).session_expiry_s == 0xFFFF_FFFF


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
    (["-t", "a", "-m", "x", "-x", "10"], "add -V 5"),
    (["-t", "a", "-m", "x", "-V", "5", "-x", "soon"], "'soon' isn't a number"),
    (["-t", "a", "-m", "x", "-c"], "You must provide a client id"),
    (["-t", "a", "-m", "x", "-i", "a", "-I", "b"], "-i and -I"),
    (["-t", "a", "-m", "x", "-P", "secret"], "add -u"),
    (["-t", "a", "-m", "x", "--will-payload", "x"], "no will topic given"),
    (["-t", "a", "-m", "x", "--will-retain"], "no will topic given"),
    (["-t", "a", "-m", "x", "--will-qos", "1"], "no will topic given"),
    (["-t", "a", "-m", "x", "--will-topic", "+"], "Invalid will topic '+'"),
    (["-t", "a", "-m", "x", "--cert", "c"], "Both certfile and keyfile"),
    (["-t", "a", "-m", "x", "--insecure"], "need --cafile"),
    (["-t", "a", "-m", "x", "-D", "subscribe", "user-property", "a", "b"], "Invalid command 'subscribe'"),
    (["-t", "a", "-m", "x", "-D", "publish", "user-property", "a"], "not enough arguments"),
    (["-t", "a", "-m", "x", "--psk", "00"], "'--psk': midge doesn't have this option"),
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


def test_check_leaves_a_given_port_alone() -> None:
    options = pub.Options(port=5)
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
