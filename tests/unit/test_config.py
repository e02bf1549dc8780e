"""The configuration file: defaults, and errors that name file, key, value and what is allowed."""

from __future__ import annotations

from pathlib import Path

import pytest

from midge.config import ConfigError, load
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
    assert message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


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
    assert (bridge.host, bridge.port) == ("kitchen.local", 1883)
    assert [topic.direction for topic in bridge.topics] == ["in", "out"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[limits]\nmax_queued = 1",
            "limits.max_queued: unknown key; allowed here: max_packet_size, max_queued_mess",
        ),
        (
            "[store]\ndurability = 'always'",
            "store.durability: 'always' is not allowed: input should be 'commit', 'inter",
        ),
        (
            "[[listener]]\nport = 70000",
            "listener[1].port: 70000 is not allowed: input should be less than or equal to 65535",
        ),
        (
            "[[listener]]\ntype = 'carrier pigeon'",
            "listener[1].type: 'carrier pigeon' is not allowed: input should be 'tcp'",
        ),
        ("[[bridge]]\nname = 'a'\ntopics = [{filter='#'}]", "bridge[1].address: must be given"),
        (
            "[[bridge]]\nname = 'a'\naddress = 'kitchen'\ntopics = [{filter='#'}]",
            "bridge[1].address: 'kitchen' is not allowed: must be mqtt://HOST or mqtt://HOST:PORT",
        ),
        (
            "[[bridge]]\nname = 'a'\naddress = 'mqtt://h'\ntopics = [{filter='a#'}]",
            "bridge[1].topics[1].filter: 'a#' is not allowed: ",
        ),
        (
            "[[bridge]]\nname = 'a'\naddress = 'mqtt://h'\ntopics = [{filter='#', direction='up'}]",
            "bridge[1].topics[1].direction: 'up' is not allowed: input should be 'in', 'out' or 'both'",
        ),
        ("[[listener]]\ntype = 'tls'", "listener[1]: type \"tls\" needs certfile and keyfile"),
        ("[[listener]]\ntype = 'tls'\ncertfile = 'a'", "listener[1]: certfile and keyfile go together"),
        ("[[listener]]\ncertfile = 'a'\nkeyfile = 'b'", "listener[1]: certfile is for the types"),
        (
            "[[listener]]\ntype = 'tls'\ncertfile = 'a'\nkeyfile = 'b'\nrequire_certificate = true",
            "listener[1]: require_certificate needs certfile, keyfile and cafile",
        ),
        (
            "[[listener]]\nuse_identity_as_username = true",
            "listener[1]: use_identity_as_username needs require_certificate",
        ),
        ("[[listener]]\ntype = 'unix'", 'listener[1]: type "unix" needs path'),
        (
            "[[listener]]\ntype = 'websocket'\npath = 'mqtt'",
            "listener[1]: the path of a WebSocket starts with /",
        ),
        (
            "[[listener]]\ntype = 'websocket'\nproxy_protocol = true",
            'listener[1]: proxy_protocol is for the types "tcp" and "unix"',
        ),
        ("[limits", "not valid TOML: "),
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


def test_two_bridges_of_one_name_are_refused(tmp_path: Path) -> None:
    bridge = "[[bridge]]\nname = 'a'\naddress = 'mqtt://h'\ntopics = [{filter='#'}]\n"
    assert "two bridges are named 'a'" in error_of(tmp_path, bridge * 2)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere.toml: No such file"):
        load(tmp_path / "nowhere.toml")
