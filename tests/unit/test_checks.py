"""`midge broker --check` and --print-config: everything that can be wrong is told at once, and nothing is touched."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from brokers import start_host
from midge.cli import broker
from midge.config import load


@pytest.fixture(autouse=True)
def leave_logging_alone() -> Iterator[None]:
    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


def check(config: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit code and what it prints, without the prefix of each line."""
    code = broker.run(["--check", "--config", str(config), "--data", str(data)])
    printed = capsys.readouterr()
    return code, (printed.out + printed.err).replace("midge broker: ", "")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """One with every kind of file, all of them in order."""
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    issued.private_key_pem.write_to_path(tmp_path / "server.key")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "server.pem")
    (tmp_path / "passwd").write_text("")
    (tmp_path / "acl").write_text("topic read a\n")
    path = tmp_path / "midge.toml"
    path.write_text(
        '[access]\npassword_file = "passwd"\nacl_file = "acl"\n[[listener]]\ntype = "tls"\n'
        'certfile = "server.pem"\nkeyfile = "server.key"\ncafile = "ca.pem"\n'
    )
    return path


def test_a_good_one_is_0_and_leaves_nothing(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data"
    assert check(config, data, capsys) == (0, f"{config} can be used\n")
    assert not data.exists()


def test_all_that_is_wrong_with_files_is_told(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "passwd").unlink()
    (tmp_path / "server.key").write_text("nonsense")
    bridge = '[[bridge]]\nname = "x"\naddress = "mqtts://x"\ncafile = "authority.pem"\ntopics = [{ filter = "#" }]\n'
    config.write_text(config.read_text() + bridge)
    (tmp_path / "midge.db").write_text("a diary")
    code, said = check(config, tmp_path, capsys)
    assert code == 2
    lines = said.splitlines()
    assert len(lines) == 4
    assert f"{tmp_path}/passwd: No such file or directory" in lines[0]
    assert f"{tmp_path}/server.pem: not a certificate and its key" in lines[1]
    assert lines[2] == f"{tmp_path}/authority.pem: No such file or directory"
    assert f"{tmp_path}/midge.db is not a store of midge" in lines[3]


def test_a_rule_that_is_wrong_has_its_line(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "acl").write_text("topic read a\n\nnonsense\n")
    code, said = check(config, tmp_path, capsys)
    assert code == 2 and f"{tmp_path}/acl:3: 'nonsense' is not allowed" in said


def test_a_network_without_authentication_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "midge.toml").write_text('[[listener]]\nbind = "0.0.0.0"\n')
    code, said = check(tmp_path / "midge.toml", tmp_path, capsys)
    assert code == 2 and said.startswith("refusing to listen on 0.0.0.0")


def test_a_store_of_a_newer_version_is_told(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    database = sqlite3.connect(tmp_path / "midge.db")
    database.execute("CREATE TABLE t (a)")
    database.execute("PRAGMA user_version=999")
    database.commit()
    database.close()
    code, said = check(config, tmp_path, capsys)
    assert code == 2 and f"{tmp_path}/midge.db was written by a newer midge (store version 999" in said


def test_a_running_broker_s_store_is_not_disturbed(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with start_host("--data", tmp_path) as running:
        before = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("midge.db*")}
        assert check(config, tmp_path, capsys)[0] == 0
        assert {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("midge.db*")} == before
        assert running.stop() == 0


def test_the_printed_configuration_can_be_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert broker.run(["--print-config"]) == 0
    path = tmp_path / "midge.toml"
    path.write_text(capsys.readouterr().out)
    load(path)
    assert check(path, tmp_path, capsys)[0] == 0


def bridge(name: str, *topics: str, address: str = "mqtt://Hub.local", more: str = "") -> str:
    return f'[[bridge]]\nname = "{name}"\naddress = "{address}"\n{more}\ntopics = [{", ".join(topics)}]\n'


@pytest.mark.parametrize(
    ("one", "other", "twice"),
    [
        (bridge("a", '{ filter = "#" }'), bridge("b", '{ filter = "x/+" }'), "bring '#' from"),
        (bridge("a", '{ filter = "x", direction = "out", local_prefix = "k/" }'),
         bridge("b", '{ filter = "+", direction = "both", local_prefix = "k/" }'), "take 'k/x' to"),
        (bridge("a", '{ filter = "#", remote_prefix = "x/", local_prefix = "k/x/" }'),
         bridge("b", '{ filter = "x/y", local_prefix = "k/" }'), "bring 'x/#' from"),
        (bridge("a", '{ filter = "#" }', address="mqtt://other", more='alternatives = ["mqtt://hub.LOCAL:1883"]'),
         bridge("b", '{ filter = "#" }'), "bring '#' from"),
        (bridge("a", '{ filter = "#" }'), bridge("b", '{ filter = "#", direction = "out" }'), ""),
        (bridge("a", '{ filter = "x/#" }'), bridge("b", '{ filter = "y/#" }'), ""),
        (bridge("a", '{ filter = "#" }'), bridge("b", '{ filter = "#", local_prefix = "b/" }'), ""),
        (bridge("a", '{ filter = "#" }'), bridge("b", '{ filter = "#" }', address="mqtt://hub.local:1884"), ""),
    ],
)  # fmt: skip
def test_two_bridges_that_carry_the_same_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], one: str, other: str, twice: str
) -> None:
    path = tmp_path / "midge.toml"
    path.write_text(one + other)
    code, printed = check(path, tmp_path, capsys)
    assert code == 0 and printed.startswith(f"{path} can be used\n")
    warned = printed.partition("\n")[2]
    assert warned.startswith(f"warning: the bridges 'a' and 'b' both {twice} hub.local:1883: ") if twice else not warned
