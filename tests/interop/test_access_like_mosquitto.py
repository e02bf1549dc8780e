"""One password file and one ACL file, real clients, and two brokers: ours does what Debian's Mosquitto does.

The table says what is expected of both. Where we differ on purpose stands in a test of its own.
"""

import shutil
import subprocess
from pathlib import Path

import paho.mqtt.client as mqtt
import pytest

from brokers import BrokerDidNotStart, needs_mosquitto, start_host, start_mosquitto
from paho_peer import Paho

pytestmark = [
    needs_mosquitto,
    pytest.mark.skipif(shutil.which("mosquitto_passwd") is None, reason="mosquitto_passwd is not installed"),
]

USERS = {"alice": "a", "bob": "b", "carol": "c", "dave": "d", "x+y": "x", "s/t": "s"}
ACL = """\
# what anonymous clients may
topic read anon/#
topic readwrite pub/+/x

user alice
topic a/#
topic deny a/secret/#
topic write w/#
topic read  r/two spaces
   topic indented/#
  topic  deny  indented/not \x20

user bob
topic #
topic done

user carol
topic deny p/carol/no
pattern p/%u/#
pattern read c/%c/x
pattern deny p/+/denied
pattern write pre%u/z
user dave
topic p/dave/denied
user alice
topic late/#
"""
TOPICS = [
    "a", "a/x", "a/secret/1", "anon/1", "pub/1/x", "pub/1/y", "w/1", "r/two spaces", "b/1", "late/1",
    "indented/1", "indented/not",
    "p/alice/1", "p/carol/1", "p/carol/no", "p/carol/denied", "p/dave/denied", "p/s/t/1", "p//1",
    "c/cid/x", "c/d/e/x", "prealice/z", "precarol/z", "z",
]  # fmt: skip

# user, client identifier: what of TOPICS it reads from "#", and what it publishes gets through
TABLE = [
    (None, "cid", ["anon/1", "pub/1/x", "c/cid/x"], ["pub/1/x"]),
    (None, "other", ["anon/1", "pub/1/x"], ["pub/1/x"]),
    ("alice", "cid", ["a", "a/x", "r/two spaces", "late/1", "indented/1", "p/alice/1", "c/cid/x"],
     ["a", "a/x", "w/1", "late/1", "indented/1", "p/alice/1", "prealice/z"]),
    ("carol", "cid", ["p/carol/1", "c/cid/x"], ["p/carol/1", "precarol/z"]),
    ("carol", "d/e", ["p/carol/1", "c/d/e/x"], ["p/carol/1", "precarol/z"]),
    ("carol", "c#d", [], []),
    ("dave", "cid", ["p/dave/denied", "c/cid/x"], ["p/dave/denied"]),
    ("x+y", "cid", [], []),
    ("s/t", "cid", ["p/s/t/1", "c/cid/x"], ["p/s/t/1"]),
    ("bob", "cid", TOPICS, TOPICS),
]  # fmt: skip

# user, password: whether it is let in, with allow_anonymous true and false
LOGINS = [
    (None, None, True, False),
    ("alice", "a", True, True),
    ("dave", "d", True, True),  # with spaces around it in the file
    ("alice", "wrong", False, False),
    ("alice", "", False, False),
    ("alice", None, False, False),
    ("nobody", "x", False, False),
    ("nohash", "", False, False),
    ("# comment", "x", False, False),
]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("access")
    for number, (user, password) in enumerate(USERS.items()):
        hashing = ["-H", "sha512"] if number % 2 else []
        create = [] if number else ["-c"]
        command = ["mosquitto_passwd", *hashing, *create, "-b", directory / "passwd", user, password]
        subprocess.run(command, check=True, timeout=10)
    with open(directory / "passwd", "a", encoding="utf-8") as file:
        file.write("nohash:\n# comment\n\n")
    text = (directory / "passwd").read_text()
    (directory / "passwd").write_text(text.replace("dave:", " dave : "))
    (directory / "acl").write_text(ACL)
    return directory


def start_ours(files: Path, anonymous: bool, name: str):
    config = files / f"{name}.toml"
    config.write_text(f'[access]\npassword_file = "passwd"\nacl_file = "acl"\n'
                      f"allow_anonymous = {str(anonymous).lower()}\nmax_failed_logins = 1000\n")  # fmt: skip
    return start_host("--config", config)


def start_theirs(files: Path, anonymous: bool, name: str):
    return start_mosquitto(f"password_file {files}/passwd\nacl_file {files}/acl\n"
                           f"allow_anonymous {str(anonymous).lower()}\n")  # fmt: skip


BOTH = pytest.mark.parametrize("start", [start_ours, start_theirs], ids=["host", "mosquitto"])


@BOTH
@pytest.mark.parametrize("anonymous", [True, False])
def test_who_is_let_in(files: Path, start, anonymous: bool) -> None:
    with start(files, anonymous, "logins") as broker:
        for version in (mqtt.MQTTv311, mqtt.MQTTv5):
            for user, password, with_anonymous, without in LOGINS:
                client = Paho(broker.port, username=user, password=password, version=version)
                is_let_in = not client.connect_reason.is_failure
                client.disconnect()
                assert is_let_in is (with_anonymous if anonymous else without), (user, password, version)


@BOTH
def test_who_may_read_and_publish_what(files: Path, start) -> None:
    with start(files, True, "table") as broker:
        bob = Paho(broker.port, "bob", username="bob", password=USERS["bob"])
        bob.subscribe("#", qos=1)
        for user, client_id, reads, writes in TABLE:
            client = Paho(broker.port, client_id, username=user, password=USERS.get(user))
            for topic in TOPICS:
                client.publish(topic, client_id, 1)
            client.disconnect()
            assert seen(bob) == writes, f"{user} as {client_id} publishes"
            client = Paho(broker.port, client_id, username=user, password=USERS.get(user))
            assert client.subscribe("#") == ([0] if reads else nothing_granted(broker))
            for topic in TOPICS:
                bob.publish(topic, "", 1)
            seen(bob)
            # All that bob's messages led to was sent before this client's next packet is answered.
            client.unsubscribe("#")
            got = [client.messages.get_nowait().topic for _ in range(client.messages.qsize())]
            client.disconnect()
            assert [topic for topic in got if topic != "done"] == reads, f"{user} as {client_id} reads"
        bob.disconnect()


def nothing_granted(broker) -> list[int]:
    """For a filter of which nothing can come: Mosquitto 2.0 grants every filter, we say 0x80."""
    return [0] if broker.kind == "mosquitto" else [0x80]


def seen(bob: Paho) -> list[str]:
    """The topics that came before a message of bob's own."""
    bob.publish("done", b"", 1)
    topics: list[str] = []
    while (message := bob.receive()).topic != "done":
        topics.append(message.topic)
    return topics


def exit_code(broker, *arguments: str) -> int:
    command = ["mosquitto_pub", "-p", str(broker.port), "-t", "a/x", "-m", "x", *arguments]
    return subprocess.run(command, capture_output=True, timeout=15).returncode


@BOTH
def test_the_command_line_clients_are_let_in_and_refused(files: Path, start) -> None:
    with start(files, False, "clients") as broker:
        assert exit_code(broker, "-u", "alice", "-P", "a") == 0
        assert exit_code(broker, "-u", "alice", "-P", "a", "-V", "5") == 0
        assert exit_code(broker) == 5
        assert exit_code(broker, "-u", "alice", "-P", "wrong") != 0
        assert exit_code(broker, "-u", "alice", "-P", "wrong", "-V", "5") != 0


@BOTH
def test_retained_messages_and_shared_subscriptions_keep_to_the_rules(files: Path, start) -> None:
    with start(files, True, "retained") as broker:
        bob = Paho(broker.port, username="bob", password=USERS["bob"])
        bob.publish("a/r", "x", 1, retain=True)
        bob.publish("a/secret/r", "x", 1, retain=True)
        alice = Paho(broker.port, username="alice", password=USERS["alice"], version=mqtt.MQTTv5)
        alice.subscribe("#", "$share/g/+/+/s")
        bob.publish("a/secret/s", "x", 1)
        bob.publish("a/b/s", "x", 1)
        bob.publish("late/end", "x", 1)
        got = []
        while (message := alice.receive()).topic != "late/end":
            got.append(message.topic)
        assert sorted(got) == ["a/b/s", "a/b/s", "a/r"]
        alice.disconnect()
        bob.disconnect()


def test_a_wrong_password_is_told_apart_from_a_missing_one(files: Path) -> None:
    """MQTT 5.0 §3.2.2.2, 3.1.1 §3.2.2.3. Mosquitto 2.0 says "not authorized" (0x87, 5) to both."""
    with start_ours(files, False, "codes") as broker:
        assert exit_code(broker, "-u", "alice", "-P", "wrong") == 4
        assert exit_code(broker, "-u", "alice", "-P", "wrong", "-V", "5") == 0x86
        assert exit_code(broker, "-V", "5") == 0x87


def test_who_guesses_is_refused_even_with_the_right_password(files: Path) -> None:
    config = files / "guesses.toml"
    config.write_text('[access]\npassword_file = "passwd"\nmax_failed_logins = 3\n')
    with start_host("--config", config) as broker:
        codes = [exit_code(broker, "-V", "5", "-u", "alice", "-P", word) for word in ("1", "2", "3", "a")]
        assert codes == [0x86, 0x86, 0x86, 0x9F]


def test_a_file_that_can_not_be_used_is_named_at_the_start(files: Path) -> None:
    config = files / "broken.toml"
    (files / "broken").write_text("user x\ntopic rw a\n")
    config.write_text('[access]\nacl_file = "broken"\n')
    with pytest.raises(BrokerDidNotStart, match=r"broken:2: 'rw' is not allowed: read, write, readwrite"):
        start_host("--config", config)
