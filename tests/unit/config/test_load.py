"""The configuration file: defaults, and errors that name file, line, key, value and what is allowed."""

from __future__ import annotations

from pathlib import Path

import pytest

from midge.config import ConfigError, load, parse_address
from midge.config.bridges import ADDRESSES
from midge.core.limits import Limits


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "midge.toml"
    path.write_text(text)
    return path


def error_of(tmp_path: Path, text: str) -> str:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}:")
    return message.removeprefix(f"{path}:")


def test_an_empty_file_is_all_defaults(tmp_path: Path) -> None:
    config = load(write(tmp_path, ""))
    assert (config.listener[0].bind, config.listener[0].port) == ("127.0.0.1", 1883)
    assert config.store.path == "midge.db"
    assert config.core_limits() == Limits()


def test_the_keys_that_other_programs_rely_on_are_read(tmp_path: Path) -> None:
    config = load(
        write(
            tmp_path,
            """
            [[listener]]
            type = "tcp"
            bind = "127.0.0.1"
            port = 1884
            [store]
            path = ":memory:"
            durability = "none"
            [access]
            allow_anonymous = true
            [limits]
            max_queued_messages = 10
            max_packet_size = 2_000_000
            max_keep_alive = 100
            [[bridge]]
            name = "kitchen"
            address = "mqtt://kitchen.local:1883"
            topics = [
              { filter = "#", direction = "in", qos = 1, local_prefix = "kitchen/" },
              { filter = "set/#", direction = "out", qos = 1, local_prefix = "kitchen/" },
            ]
            """,
        )
    )
    assert config.core_limits().max_queued_messages == 10
    (bridge,) = config.bridge
    assert parse_address(bridge.address)[1:3] == ("kitchen.local", 1883)
    assert [topic.direction for topic in bridge.topics] == ["in", "out"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[limits]\nmax_queued_byte = 1", "2: limits.max_queued_byte: unknown key; did you mean max_queued_bytes?"),
        ("[limit]\nx = 1", "1: limit: unknown key; did you mean limits?"),
        ("# one\n\nport = 1884", "3: port: unknown key here; it belongs in [[listener]]"),
        ("[store]\nzzz = 1", "2: store.zzz: unknown key; allowed here: path, durability"),
        (
            "[store]\ndurability = 'always'",
            '2: store.durability: "always" is not allowed: "commit", "interval" or "none"',
        ),
        ("[limits]\nmax_packet_size = 1", "2: limits.max_packet_size: 1 is not allowed: bytes, 128 to 268_435_460"),
        ("[[listener]]\nport = 70000", "2: listener[1].port: 70_000 is not allowed: a whole number, 0 to 65_535"),
        ("[[listener]]\nport = '1883'", '2: listener[1].port: "1883" is not allowed: a whole number, 0 to 65_535'),
        ("[[listener]]\nport = true", "2: listener[1].port: true is not allowed: a whole number, 0 to 65_535"),
        ("[[listener]]\n[[listener]]\nbind = 1", "3: listener[2].bind: 1 is not allowed: a text"),
        (
            "[[listener]]\ntype = 'carrier pigeon'",
            '2: listener[1].type: "carrier pigeon" is not allowed: "tcp", "tls", "websocket", "unix" or "serial"',
        ),
        ("[listener]\nport = 1", "1: listener: write [[listener]], with two brackets: there may be several"),
        ("[[store]]\npath = 'x'", "1: store: write [store], with one bracket: there is only one"),
        (
            "[[bridge]]\nname = 'a'\ntopics = [{filter='#'}]",
            f"1: bridge[1].address: must be given: {ADDRESSES}",
        ),
        (
            "[[bridge]]\nname = 'a'\naddress = 'kitchen'\ntopics = [{filter='#'}]",
            f'3: bridge[1].address: "kitchen" is not allowed: must be {ADDRESSES}',
        ),
        (
            "[[bridge]]\nname = 'a'\naddress = 'mqtt://h'\ntopics = [\n  {filter='a'},\n  {filter='a#'}]",
            '6: bridge[1].topics[2].filter: "a#" is not allowed: ',
        ),
        (
            "[[bridge]]\nname = 'a'\naddress = 'mqtt://h'\ntopics = [{filter='#', direction='up'}]",
            '4: bridge[1].topics[1].direction: "up" is not allowed: "in", "out" or "both"',
        ),
        (
            "[[bridge]]\nname = 'a/b'\naddress = 'mqtt://h'\ntopics = [{filter='#'}]",
            '2: bridge[1].name: "a/b" is not allowed: a text without /, + and #',
        ),
        ("[[listener]]\ntype = 'tls'", "1: listener[1]: type \"tls\" needs certfile and keyfile"),
        ("[[listener]]\ntype = 'tls'\ncertfile = 'a'", "1: listener[1]: certfile and keyfile go together"),
        ("[[listener]]\ncertfile = 'a'\nkeyfile = 'b'", "1: listener[1]: certfile is for the types"),
        (
            "[[listener]]\ntype = 'tls'\ncertfile = 'a'\nkeyfile = 'b'\nrequire_certificate = true",
            "1: listener[1]: require_certificate needs certfile, keyfile and cafile",
        ),
        (
            "[[listener]]\nuse_identity_as_username = true",
            "1: listener[1]: use_identity_as_username needs require_certificate",
        ),
        ("[[listener]]\ntype = 'unix'", '1: listener[1]: type "unix" needs path'),
        (
            "[[listener]]\ntype = 'websocket'\npath = 'mqtt'",
            "1: listener[1]: the path of a WebSocket starts with /",
        ),
        (
            "[[listener]]\ntype = 'websocket'\nproxy_protocol = true",
            '1: listener[1]: proxy_protocol is for the types "tcp" and "unix"',
        ),
        ("[limits", "1: not valid TOML: expected ']' at the end of a table declaration"),
        ("\n[limits]\nmax_packet_size = x\n", "3: not valid TOML: invalid value (column 19)"),
        ("[limits]\na = 1\n\na = 2", "4: not valid TOML: cannot overwrite a value"),
    ],
)
def test_an_error_says_where_and_what_is_allowed(tmp_path: Path, text: str, message: str) -> None:
    assert error_of(tmp_path, text).startswith(message)


def test_each_type_of_listener_has_its_port_and_path(tmp_path: Path) -> None:
    config = load(
        write(
            tmp_path,
            "[[listener]]\ntype = 'tls'\ncertfile = 'a'\nkeyfile = 'b'\n"
            "[[listener]]\ntype = 'websocket'\n[[listener]]\ntype = 'unix'\npath = 'socket'\n",
        )
    )
    assert [listener.port for listener in config.listener[:2]] == [8883, 9001]
    assert [listener.path for listener in config.listener] == ["", "/mqtt", "socket"]
    assert config.path("socket") == tmp_path / "socket"


def test_all_errors_are_told_at_once(tmp_path: Path) -> None:
    message = error_of(tmp_path, "[limits]\nmax_packet_size = 1\n[[listener]]\nport = -1\n")
    assert len(message.splitlines()) == 2


def test_a_password_is_never_told(tmp_path: Path) -> None:
    bridge = "[[bridge]]\nname = 'a'\naddress = 'mqtt://h'\ntopics = [{filter='#'}]\nusername = 'u'\npassword = 4711\n"
    assert error_of(tmp_path, bridge) == "6: bridge[1].password: its value is not allowed: a text"


def test_a_file_that_is_not_utf_8_is_told_its_line(tmp_path: Path) -> None:
    path = tmp_path / "midge.toml"
    path.write_bytes(b"# one\n# \xff\n")
    with pytest.raises(ConfigError, match=r"midge.toml:2: not valid TOML: not UTF-8"):
        load(path)


def test_two_bridges_of_one_name_are_refused(tmp_path: Path) -> None:
    bridge = "[[bridge]]\nname = 'a'\naddress = 'mqtt://h'\ntopics = [{filter='#'}]\n"
    assert "two bridges are named 'a'" in error_of(tmp_path, bridge * 2)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere.toml: No such file"):
        load(tmp_path / "nowhere.toml")
