"""Mosquitto's password files: hashes, lines that can't be used, and what writing leaves alone."""

from __future__ import annotations

import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from midge.access import passwords
from midge.access.errors import AccessFileError
from midge.cli.passwd import run

MOSQUITTO_PASSWD = shutil.which("mosquitto_passwd")
needs_mosquitto_passwd = pytest.mark.skipif(
    MOSQUITTO_PASSWD is None, reason="mosquitto_passwd is not installed: apt-get install mosquitto"
)


@pytest.mark.parametrize("kind", passwords.HASHES)
def test_a_hash_verifies_its_password_and_no_other(kind: str) -> None:
    stored = passwords.make_hash("pässword $:".encode(), kind)
    assert passwords.is_known(stored)
    assert passwords.verify(stored, "pässword $:".encode())
    for other in (b"", b"password", stored.encode()):
        assert not passwords.verify(stored, other)
    assert passwords.make_hash("pässword $:".encode(), kind) != stored  # salted


@pytest.mark.parametrize(
    "stored", ["", "plain", "$7$0$AAAA$AAAA", "$7$101$%$%", "$6$%$%", "$6$AAAA$", "$argon2id$v=19$x", "$5$a$b"]
)
def test_a_broken_hash_verifies_nothing(stored: str) -> None:
    assert not passwords.verify(stored, b"")
    assert not passwords.verify(stored, b"plain")


@needs_mosquitto_passwd
@pytest.mark.parametrize("kind", ["sha512-pbkdf2", "sha512"])
def test_what_mosquitto_passwd_wrote_is_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "passwd"
    for options, user, password in ((["-c"], "anna", "one two"), ([], "bert", "ü")):
        command = [str(MOSQUITTO_PASSWD), "-H", kind, *options, "-b", str(path), user, password]
        subprocess.run(command, check=True, timeout=10)
    users = passwords.load(path)
    assert list(users) == ["anna", "bert"]
    assert passwords.verify(users["anna"], b"one two") and passwords.verify(users["bert"], "ü".encode())
    assert not passwords.verify(users["anna"], "ü".encode())


def test_a_line_that_can_not_be_used_is_skipped_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "passwd"
    good = passwords.make_hash(b"x", "sha512")
    path.write_text(f"# comment\n\nnocolon\nplain:secret\nempty:\n:{good}\ngood:{good}\ngood:other\n")
    assert passwords.load(path) == {"good": good}
    assert [record.args[1] for record in caplog.records] == [3, 4, 5, 6, 8]  # type: ignore[index]
    assert "secret" not in caplog.text


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(AccessFileError, match=r"nowhere: No such file"):
        passwords.load(tmp_path / "nowhere")


def test_midge_passwd_creates_adds_replaces_and_removes(tmp_path: Path) -> None:
    path = tmp_path / "passwd"
    assert run(["-c", "-b", str(path), "anna", "1"]) == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o640)
    path.write_text("# ours\n" + path.read_text())
    assert run(["-b", str(path), "bert", "2"]) == 0
    assert run(["-b", str(path), "anna", "3"]) == 0
    users = passwords.load(path)
    assert passwords.verify(users["anna"], b"3") and passwords.verify(users["bert"], b"2")
    assert run(["-D", str(path), "anna"]) == 0
    assert list(passwords.load(path)) == ["bert"]
    assert path.read_text().startswith("# ours\n")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert list(tmp_path.iterdir()) == [path]


def test_midge_passwd_hashes_plain_passwords_and_leaves_hashes(tmp_path: Path) -> None:
    path = tmp_path / "passwd"
    hashed = passwords.make_hash(b"x", "sha512")
    path.write_text(f"anna:secret\nbert:{hashed}\n")
    assert run(["-U", "-I", "101", str(path)]) == 0
    users = passwords.load(path)
    assert passwords.verify(users["anna"], b"secret") and users["bert"] == hashed


def test_midge_passwd_asks_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "passwd"
    answers = iter(["secret", "secret", "one", "other"])
    monkeypatch.setattr("midge.cli.passwd.getpass", lambda prompt: next(answers))
    assert run(["-c", str(path), "anna"]) == 0
    assert run([str(path), "anna"]) == 1
    assert passwords.verify(passwords.load(path)["anna"], b"secret")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-b", "FILE", "a:b", "x"], "must not be empty, start with # or contain a colon"),
        (["-b", "FILE", "anna", ""], "the password is empty"),
        (["-D", "FILE", "nobody"], "user nobody is not in"),
        (["-b", "FILE/missing", "anna", "x"], "Not a directory"),
    ],
)
def test_midge_passwd_says_why_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    path = tmp_path / "passwd"
    path.write_text("")
    assert run([argument.replace("FILE", str(path)) for argument in arguments]) == 1
    assert said in capsys.readouterr().err
    assert path.read_text() == ""


def test_a_scram_line_is_written_with_its_own_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "passwd"
    assert run(["-b", "-c", "-H", "scram-sha-256", str(path), "anna", "secret"]) == 0
    assert run(["-b", "-H", "scram-sha-256", "-I", "5000", str(path), "bert", "b"]) == 0
    users = passwords.load(path)
    assert users["anna"].startswith("SCRAM-SHA-256$4096:") and users["bert"].startswith("SCRAM-SHA-256$5000:")
    assert passwords.verify(users["anna"], b"secret") and not passwords.verify(users["anna"], b"b")
    with pytest.raises(SystemExit) as caught:
        run(["-b", "-H", "scram-sha-256", "-I", "100", str(path), "carl", "c"])
    assert caught.value.code == 2 and "-I must be at least 4096" in capsys.readouterr().err
    assert run(["-b", "-H", "scram-sha-256", str(path), "carl", "bell\a"]) == 1  # RFC 4013 §2.3
    assert "not a password for scram-sha-256" in capsys.readouterr().err
    assert list(passwords.load(path)) == ["anna", "bert"]


def test_a_name_may_hold_what_python_takes_for_a_line_break(tmp_path: Path) -> None:
    path = tmp_path / "passwd"
    stored = passwords.make_hash(b"x", "sha512")
    for number, name in enumerate(("a\x85b", "c\u2028d")):
        passwords.set_password(path, name, stored, create=not number)
    assert list(passwords.load(path)) == ["a\x85b", "c\u2028d"]
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert list(passwords.load(path)) == ["a\x85b", "c\u2028d"]
