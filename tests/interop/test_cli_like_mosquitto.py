"""The same command lines through mosquitto_pub and mosquitto_sub and through ours, against Mosquitto: output
and exit code must be the same. Knows nothing of how our tools are made.
"""

import itertools
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import brokers

pytestmark = brokers.needs_mosquitto

DEADLINE_S = 20


@dataclass(frozen=True)
class Step:
    """One command. `tool` pub and sub are the tools under test, in turn; `check` is always mosquitto_sub."""

    tool: str
    argv: str  # split at blanks; {r} is the topic root of this run, {file} a file that holds "from a file"
    stdin: bytes = b""


EVERYTHING = "-V 5 -F %t|%p|%q|%r|%C|%R|%D|%P|%F"  # not %E: the seconds left depend on when one looks


def pub(argv: str, stdin: bytes = b"") -> Step:
    return Step("pub", argv, stdin)


def sub(argv: str) -> Step:
    return Step("sub", argv)


def check(argv: str) -> Step:
    return Step("check", argv)


SCENARIOS = {
    # midge pub, read back by mosquitto_sub
    "pub: -m, retained": [pub("-t {r} -m hello -r"), check("-t {r} -C 1 -q 2 " + EVERYTHING)],
    "pub: -m with a leading minus": [pub("-t {r} -m -5 -r"), check("-t {r} -C 1 " + EVERYTHING)],
    "pub: QoS 1": [pub("-t {r} -m hello -r -q 1"), check("-t {r} -C 1 -q 2 " + EVERYTHING)],
    "pub: QoS 2": [pub("-t {r} -m hello -r -q 2"), check("-t {r} -C 1 -q 2 " + EVERYTHING)],
    "pub: MQTT 3.1": [pub("-V 31 -t {r} -m hello -r"), check("-t {r} -C 1 " + EVERYTHING)],
    "pub: long names": [
        pub("--topic {r} --message hello --retain --qos 1 --id {r} --keepalive 30 --protocol-version mqttv5"),
        check("-t {r} -C 1 -q 1 " + EVERYTHING),
    ],
    "pub: -f": [pub("-t {r} -f {file} -r"), check("-t {r} -C 1 " + EVERYTHING)],
    "pub: -s": [pub("-t {r} -s -r", b"all\nof\nit\n"), check("-t {r} -C 1 -F %x")],
    "pub: -n deletes the retained message": [
        pub("-t {r} -m old -r"),
        pub("-t {r}/end -m end -r"),
        pub("-t {r} -n -r"),
        check("-t {r}/# -C 1 -v"),
    ],
    "pub: -l is a message for each line, empty ones too": [
        check("-t {r} -q 2 -i {r} -c -E"),
        pub("-t {r} -l -q 1", b"one\n\nthree\r\nlast without end"),
        check("-t {r} -q 2 -i {r} -c -C 4 -F %l:%x"),
    ],
    "pub: -l with QoS 2 and 5.0": [
        check("-t {r} -q 2 -i {r} -c -E"),
        pub("-t {r} -l -q 2 -V 5", b"".join(b"%d\n" % i for i in range(300))),
        check("-t {r} -q 2 -i {r} -c -C 300"),
    ],
    "pub: properties of PUBLISH": [
        pub(
            "-t {r} -m hello -r -D publish user-property k v -D publish user-property k2 v2 "
            "-D publish content-type text/plain -D publish message-expiry-interval 99 "
            "-D publish response-topic back -D publish correlation-data 17 "
            "-D publish payload-format-indicator 1"
        ),
        check("-t {r} -C 1 " + EVERYTHING),
    ],
    "pub: properties of CONNECT and DISCONNECT": [
        pub(
            "-t {r} -m hello -r -i {r} -D connect session-expiry-interval 9 -D connect receive-maximum 3 "
            "-D disconnect session-expiry-interval 0"
        ),
        check("-t {r} -C 1 " + EVERYTHING),
    ],
    "pub: from another address of ours": [pub("-t {r} -m hello -r -A 127.0.0.1"), check("-t {r} -C 1")],
    "pub: the will stays unsent after a good end": [
        pub("-t {r} -m hello -r --will-topic {r} --will-payload gone --will-qos 1 --will-retain"),
        check("-t {r} -C 1"),
    ],
    # midge sub
    "sub: payloads": [pub("-t {r} -m hello -r"), sub("-t {r} -C 1")],
    "sub: -v": [pub("-t {r} -m hello -r"), sub("-t {r} -C 1 -v")],
    "sub: -v of an empty message": [
        sub("-t {r} -q 1 -i {r} -c -E"),
        pub("-t {r} -n -q 1"),
        sub("-t {r} -q 1 -i {r} -c -C 1 -v"),
    ],
    "sub: -N": [pub("-t {r} -m hello -r"), sub("-t {r} -C 1 -N")],
    "sub: several topics, several messages": [
        pub("-t {r}/a -m 1 -r"),
        pub("-t {r}/b -m 2 -r"),
        sub("-t {r}/a -t {r}/b -C 2 -v"),
    ],
    "sub: -T": [
        pub("-t {r}/a -m 1 -r"),
        pub("-t {r}/b -m 2 -r"),
        sub("-t {r}/# -T {r}/a -T {r}/c/# -C 1 -v"),
    ],
    "sub: -R": [
        sub("-t {r}/# -q 1 -i {r} -c -E"),
        pub("-t {r}/a -m live -q 1 -r"),
        sub("-t {r}/# -q 1 -i {r} -c -R -C 1 -v"),
    ],
    "sub: --retained-only ends at the first other": [
        sub("-t {r}/live -q 1 -i {r} -c -E"),
        pub("-t {r}/live -m 1 -q 1"),
        sub("-t {r}/live -q 1 -i {r} -c --retained-only -v"),
    ],
    "sub: -U": [
        sub("-t {r} -q 1 -i {r} -c -E -U {r}"),
        pub("-t {r} -m 1 -q 1"),
        sub("-t {r}/other -q 1 -i {r} -c -W 1"),
    ],
    "sub: a persistent session holds QoS 1 and 2, not 0": [
        sub("-t {r} -q 2 -i {r} -c -E"),
        pub("-t {r} -m zero"),
        pub("-t {r} -m one -q 1"),
        pub("-t {r} -m two -q 2"),
        sub("-t {r} -q 2 -i {r} -c -C 2 -F %p|%q|%r"),
    ],
    "sub: a persistent session of 5.0": [
        sub("-t {r} -q 1 -i {r} -c -x 60 -V 5 -E"),
        pub("-t {r} -m one -q 1"),
        sub("-t {r} -q 1 -i {r} -c -x 60 -V 5 -C 1 -F %p|%q|%m"),
    ],
    "sub: QoS is lowered to the subscription's": [
        pub("-t {r} -m hello -r -q 2"),
        sub("-t {r} -q 1 -C 1 -F %q|%r|%m"),
    ],
    "sub: format, widths and escapes": [
        pub("-t {r}/x -m hello -r"),
        sub("-t {r}/x -C 1 -F [%12t][%-12t][%.2t][%06l][%-4l][%X]%%\\t@@"),
    ],
    "sub: properties": [
        pub("-t {r} -m hello -r -D publish content-type text/plain -D publish user-property k v"),
        sub("-t {r} -C 1 -D subscribe subscription-identifier 7 " + EVERYTHING),
    ],
    "sub: -W": [sub("-t {r} -W 1")],
    "sub: MQTT 3.1": [pub("-t {r} -m hello -r"), sub("-V mqttv31 -t {r} -C 1")],
    # command lines that are wrong
    "wrong: no topic": [pub("-m x"), sub("-C 1")],
    "wrong: no message": [pub("-t {r}")],
    "wrong: two kinds of message": [pub("-t {r} -m x -n")],
    "wrong: wildcard in a topic name": [pub("-t {r}/# -m x")],
    "wrong: filter": [sub("-t {r}/#/a -C 1"), sub("-t {r} -T a+ -C 1"), sub("-t {r} -U #a -C 1")],
    "wrong: QoS": [pub("-t {r} -m x -q 3"), sub("-t {r} -q 3")],
    "wrong: port": [pub("-t {r} -m x -p 70000")],
    "wrong: keep alive": [pub("-t {r} -m x -k 2"), sub("-t {r} -k 65536")],
    "wrong: version": [pub("-t {r} -m x -V 4")],
    "wrong: -c without an identifier": [pub("-t {r} -m x -c"), sub("-t {r} -c")],
    "wrong: -i and -I": [sub("-t {r} -i a -I b")],
    "wrong: -P alone": [pub("-t {r} -m x -P secret")],
    "wrong: will without topic": [pub("-t {r} -m x --will-payload x"), sub("-t {r} --will-retain")],
    "wrong: will topic": [pub("-t {r} -m x --will-topic #")],
    "wrong: -W 0 and -C 0": [sub("-t {r} -W 0"), sub("-t {r} -C 0")],
    "wrong: -R with --retained-only": [sub("-t {r} -R --retained-only")],
    "wrong: format": [sub("-t {r} -F %k"), sub("-t {r} -F %"), sub("-t {r} -F @"), sub("-t {r} -F \\q")],
    "wrong: unknown option": [pub("-t {r} -m x --nonsense"), sub("-t {r} -m x"), sub("-t {r} word")],
    "wrong: option without value": [pub("-t {r} -m"), sub("-t")],
    "wrong: property": [
        pub("-t {r} -m x -D publish colour red"),
        pub("-t {r} -m x -D nonsense user-property a b"),
        pub("-t {r} -m x -D publish receive-maximum 1"),
    ],
    "wrong: certificate without key": [pub("-t {r} -m x --cert a")],
    "wrong: no such certificates": [pub("-t {r} -m x --cafile /nonexistent")],
    "wrong: no such file": [pub("-t {r} -f /nonexistent")],
    "wrong: an address that isn't ours": [pub("-t {r} -m x -A 192.0.2.1")],
}


@pytest.fixture(scope="module")
def mosquitto() -> Iterator[brokers.RunningBroker]:
    with brokers.start_mosquitto() as running:
        yield running


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli") / "message"
    path.write_bytes(b"from a file")
    return path


_numbers = itertools.count(100)


def run_tool(command: list[str], stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(command, input=stdin, capture_output=True, timeout=DEADLINE_S, check=False)


def tool_command(tool: str, ours: bool, port: int) -> list[str]:
    if ours and tool != "check":
        return [sys.executable, "-m", "midge", tool, "-h", "127.0.0.1", "-p", str(port)]
    return ["mosquitto_pub" if tool == "pub" else "mosquitto_sub", "-h", "127.0.0.1", "-p", str(port)]


def play(steps: list[Step], ours: bool, port: int, file: Path) -> list[tuple[int, bytes]]:
    """Exit codes and outputs of all steps, with the run's topic root written as ROOT."""
    root = f"cli{next(_numbers)}"  # all of the same length, for the widths of formats
    results = []
    for step in steps:
        argv = [word.replace("{r}", root).replace("{file}", str(file)) for word in step.argv.split()]
        done = run_tool(tool_command(step.tool, ours, port) + argv, step.stdin)
        assert b"Traceback" not in done.stderr
        assert done.returncode == 0 or done.stderr, "an error without a word"
        results.append((done.returncode, done.stdout.replace(root.encode(), b"ROOT")))
    return results


@pytest.mark.parametrize("name", SCENARIOS)
def test_output_and_exit_code_are_mosquittos(name: str, mosquitto: brokers.RunningBroker, file: Path) -> None:
    steps = SCENARIOS[name]
    theirs = play(steps, False, mosquitto.port, file)
    if name in ("wrong: no topic", "wrong: no message"):
        theirs = [(code, b"") for code, _ in theirs]  # mosquitto_pub prints its whole help here
    assert play(steps, True, mosquitto.port, file) == theirs


# Refusals: also the words on stderr are the same, in the first line.


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[brokers.RunningBroker]:
    directory = tmp_path_factory.mktemp("guarded")
    passwords, acl = directory / "passwords", directory / "acl"
    create = ["mosquitto_passwd", "-c", "-b", str(passwords), "joe", "secret"]
    subprocess.run(create, check=True, timeout=DEADLINE_S)
    acl.write_text("user joe\ntopic readwrite allowed/#\n")
    conf = f"allow_anonymous false\npassword_file {passwords}\nacl_file {acl}"
    with brokers.start_mosquitto(conf) as running:
        yield running


REFUSALS = [
    "pub -t allowed/a -m x",
    "pub -t allowed/a -m x -V 5",
    "pub -t allowed/a -m x -V 31",
    "pub -t allowed/a -m x -u joe -P wrong",
    "pub -t allowed/a -m x -u joe -P wrong --quiet",
    "pub -t allowed/a -m x -u joe -P secret -q 1",
    "pub -t forbidden/a -m x -u joe -P secret -q 1",
    "pub -t forbidden/a -m x -u joe -P secret -q 1 -V 5",
    pytest.param(
        "pub -t forbidden/a -m x -u joe -P secret -q 2 -V 5",
        marks=pytest.mark.xfail(strict=True, reason="paho-mqtt 2 doesn't report the reason code of a PUBREC"),
    ),
    "sub -t allowed/a",
    "sub -t allowed/a -V 5",
    "sub -t allowed/a -u joe -P wrong",
    "sub -t allowed/a -u joe -P secret -E",
]


@pytest.mark.parametrize("line", REFUSALS)
def test_a_refusal_has_mosquittos_exit_code_and_words(line: str, guarded: brokers.RunningBroker) -> None:
    tool, *argv = line.split()
    theirs = run_tool(tool_command(tool, False, guarded.port) + argv)
    ours = run_tool(tool_command(tool, True, guarded.port) + argv)
    assert (ours.returncode, ours.stdout) == (theirs.returncode, theirs.stdout)
    assert ours.stderr.splitlines()[:1] == theirs.stderr.splitlines()[:1]


@pytest.mark.parametrize("tool", ["pub", "sub"])
def test_no_broker_has_mosquittos_exit_code_and_says_how_to_start_one(tool: str) -> None:
    port = brokers.free_port()
    argv = ["-t", "a", "-m", "x"] if tool == "pub" else ["-t", "a"]
    ours = run_tool(tool_command(tool, True, port) + argv)
    theirs = run_tool(tool_command(tool, False, port) + argv)
    assert ours.returncode == theirs.returncode == 1
    told = ours.stderr.decode()
    assert told.startswith(f"Error: connection refused by 127.0.0.1:{port}: is the broker running?")
    assert "midge broker" in told


@pytest.mark.parametrize("ours", [False, True], ids=["theirs", "ours"])
def test_sub_subscribes_again_when_the_broker_comes_back(ours: bool) -> None:
    with brokers.start_mosquitto() as first:
        port = first.port
        command = [*tool_command("sub", ours, port), "-t", "a", "-v", "-C", "1"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            first.wait_for_output("New client connected")
            first.stop()
            with brokers.start_mosquitto("log_type all", port) as second:
                second.wait_for_output("Sending SUBACK", DEADLINE_S)
                run_tool([*tool_command("pub", ours, port), "-t", "a", "-m", "again"])
                out, _ = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, out) == (0, b"a again\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("ours", [False, True], ids=["theirs", "ours"])
def test_a_signal_ends_sub_in_good_order(number: signal.Signals, ours: bool) -> None:
    with brokers.start_mosquitto("log_type all") as broker:
        command = [*tool_command("sub", ours, broker.port), "-t", "a", "--will-topic", "w"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            broker.wait_for_output("Sending SUBACK")
            process.send_signal(number)
            out, error = process.communicate(timeout=DEADLINE_S)
        broker.wait_for_output("Received DISCONNECT")
    assert (process.returncode, out, error) == (0, b"", b"")


def test_what_comes_after_the_last_wanted_message_stays_queued(mosquitto: brokers.RunningBroker) -> None:
    # mosquitto_sub acknowledges and drops them. We acknowledge what we printed.
    command = [*tool_command("sub", True, mosquitto.port), "-t", "stays", "-q", "1", "-i", "stays", "-c"]
    run_tool([*command, "-E"])
    lines = b"".join(b"%d\n" % i for i in range(9))
    run_tool([*tool_command("pub", True, mosquitto.port), "-t", "stays", "-q", "1", "-l"], lines)
    outputs = [run_tool([*command, "-C", "3"]).stdout for _ in range(3)]
    assert b"".join(outputs) == lines
