"""The same command lines through mosquitto_pub, mosquitto_sub and mosquitto_rr and through ours, against Mosquitto:
output and exit code must be the same. Knows nothing of how our tools are made.
"""

import contextlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

import brokers
from socks_proxy import SocksProxy

pytestmark = brokers.needs_mosquitto

DEADLINE_S = 20


@dataclass(frozen=True)
class Step:
    """One command. `tool` pub, sub and rr are the tools under test, in turn; `check` is always mosquitto_sub,
    so that what ours sends is seen by other eyes."""

    tool: str
    argv: str  # split at blanks; {r} is the topic root of this run, {p} the port, {file} holds "from a file"
    stdin: bytes = b""


EVERYTHING = "-V 5 -F %t|%p|%q|%r|%C|%R|%D|%P|%F"  # not %E: the seconds left depend on when one looks


def pub(argv: str, stdin: bytes = b"") -> Step:
    return Step("pub", argv, stdin)


def sub(argv: str) -> Step:
    return Step("sub", argv)


def rr(argv: str, stdin: bytes = b"") -> Step:
    return Step("rr", argv, stdin)


def check(argv: str) -> Step:
    return Step("check", argv)


def put(argv: str, stdin: bytes = b"") -> Step:
    """Always by mosquitto_pub, where it matters in which order properties are sent."""
    return Step("put", argv, stdin)


# Every conversion, plain, wide, wider than wide, padded with 0, left-aligned and cut, between bars.
CONVERSIONS = "".join(
    f"[%{flags}{letter}]"
    for letter in "ACDEFlmPpqRrStxX"
    for flags in ("", "3", "30", "030", "-30", ".2", "12.4", "-12.4", "012.40")
    if letter != "p" or not flags.startswith("-")  # see "sub: a payload on the left"
)
TIMES = "@Y-@m-@d@@@j@%%% %5%"
ALL_PROPERTIES = (
    "-D publish user-property k v -D publish user-property k2 v2 -D publish content-type text/plain "
    "-D publish response-topic back -D publish correlation-data 17 -D publish payload-format-indicator 1"
)


# Not here, since mosquitto 2.0.11 does something else than its manual says, and we what that says: --random-filter
# (100 prints one message in ten), mosquitto_rr -f and -s (send nothing) and -R with 5.0 (prints what is
# retained), mosquitto_sub --remove-retained with -C (never ends).
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
    "pub: --repeat": [
        check("-t {r} -q 1 -i {r} -c -E"),
        pub("-t {r} -m again -q 1 --repeat 3"),
        pub("-t {r} -f {file} -q 1 --repeat 2 --repeat-delay 0.05"),
        pub("-t {r} -n -q 1 --repeat 2"),
        check("-t {r} -q 1 -i {r} -c -C 7 -F %p"),
    ],
    "pub: -M, -k, --nodelay, -d's absence, --quiet": [
        check("-t {r} -q 1 -i {r} -c -E"),
        pub("-t {r} -l -q 1 -M 1 -k 5 --nodelay --quiet", b"".join(b"%d\n" % i for i in range(30))),
        check("-t {r} -q 1 -i {r} -c -C 30"),
    ],
    "pub: -L": [
        pub("-L mqtt://127.0.0.1:{p}/{r}/a -m url -r"),
        pub("--url mqtt://joe:secret@127.0.0.1:{p}/{r}/b -m url -r"),
        check("-t {r}/# -C 2 -v"),
    ],
    "pub: a will with properties": [
        pub(
            "-t {r} -m hello -r -V 5 -i {r} --will-topic {r}/will --will-payload gone --will-qos 2 --will-retain "
            "-D will will-delay-interval 1 -D will content-type x/y"
        ),
        check("-t {r} -C 1"),
    ],
    "pub: a password without a user name in 5.0": [pub("-t {r} -m hello -r -V 5 -P secret"), check("-t {r} -C 1")],
    "pub: options without effect": [
        pub("-t {r} -m hello -r -x 5 --insecure -D subscribe user-property a b"),
        check("-t {r} -C 1 " + EVERYTHING),
    ],
    "pub: -x and -I with 5.0": [pub("-t {r} -m hello -r -V 5 -I {r} -x 60"), check("-t {r} -C 1")],
    "pub: properties of all packets": [
        pub("-t {r} -m hello -r -D connect user-property a b -D disconnect user-property a b " + ALL_PROPERTIES),
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
    "sub: every conversion with all properties": [
        pub("-t {r}/x -m \u00fchello -r " + ALL_PROPERTIES),
        sub("-V 5 -q 1 -t {r}/x -C 1 -D subscribe subscription-identifier 70000 -F " + CONVERSIONS),
    ],
    "sub: every conversion without any": [
        pub("-t {r}/x -s -r", b"\x00\xffab"),
        sub("-t {r}/x -C 1 -F " + CONVERSIONS),
        sub("-V 5 -t {r}/x -C 1 -F " + CONVERSIONS),
    ],
    "sub: times and escapes": [
        pub("-t {r}/x -m hello -r"),
        sub("-t {r}/x -C 1 -F " + TIMES.replace(" ", "") + "\\\\|\\0|\\a|\\e|\\n|\\r|\\t|\\v|@n"),
    ],
    "sub: JSON": [
        put("-t {r}/a -s -r -q 1 " + ALL_PROPERTIES, b'say "\\ \t\x01 \xc3\xbc/"'),
        pub("-t {r}/b -s -r", b'{"b": [1, 2.50, 1e3, -0.1, true, null], "a": {"x": "\xc3\xbc"}, "a": []}'),
        pub("-t {r}/c -m hello -r"),
        sub("-V 5 -q 1 -t {r}/a -C 1 -F %j"),
        sub("-V 5 -q 1 -t {r}/a -C 1 -F %j --pretty"),
        sub("-t {r}/b -C 1 -F %J"),
        sub("-t {r}/b -C 1 -F %J --pretty"),
        sub("-t {r}/c -C 1 -F %J|"),
    ],
    "sub: JSON of an empty payload": [
        sub("-t {r} -q 1 -i {r} -c -E"),
        pub("-t {r} -n -q 1"),
        sub("-t {r} -q 1 -i {r} -c -C 1 -F %j%J"),
    ],
    "sub: -F wins over -v, -N goes with it": [
        pub("-t {r} -m hello -r"),
        sub("-t {r} -C 1 -v -F <%p>"),
        sub("-t {r} -C 1 -N -F <%p>"),
        sub("-t {r} -C 1 -N -v"),
    ],
    "sub: -L": [pub("-t {r}/a -m hello -r"), sub("-L mqtt://joe:secret@127.0.0.1:{p}/{r}/a -C 1 -v")],
    "sub: -L and -t": [
        pub("-t {r}/a -m 1 -r"),
        pub("-t {r}/b -m 2 -r"),
        sub("-t {r}/a -L mqtt://127.0.0.1:{p}/{r}/b -C 2 -v"),
    ],
    "sub: --remove-retained": [
        pub("-t {r}/a -m 1 -r"),
        pub("-t {r}/b -m 2 -r"),
        pub("-t {r}/c -m 3 -r"),
        sub("-t {r}/# -T {r}/b --remove-retained -W 1 -v"),
        check("-t {r}/# -W 1 -v"),
    ],
    "sub: --retain-as-published": [
        sub("-V 5 -t {r} -q 1 -i {r} -c --retain-as-published -E"),
        pub("-t {r} -m hello -q 1 -r"),
        sub("-V 5 -t {r} -q 1 -i {r} -c --retain-as-published -C 1 -F %r|%p"),
    ],
    "sub: -R isn't sent what is retained": [pub("-t {r} -m old -r"), sub("-V 5 -t {r} -R -W 1")],
    "sub: -E, -k, -d's absence, --nodelay, --quiet": [sub("-t {r} -E -k 5 --nodelay --quiet -q 2")],
    "sub: a will and properties of all packets": [
        sub(
            "-t {r} -E -i {r} -x 0 --will-topic {r} --will-payload x -D will user-property a b "
            "-D connect maximum-packet-size 1000 -D subscribe user-property a b -D unsubscribe user-property a b "
            "-D disconnect user-property a b -U {r}/x"
        )
    ],
    # midge rr
    "rr: -e with 5.0": [
        rr("-t {r} -e {r} -m hello"),
        rr("-t {r} -e {r} -m hello -v -q 2"),
        rr("-t {r} -e {r} -m hello -N -q 1"),
        rr("-t {r} -e {r} -n -v"),
    ],
    "rr: what the request carries": [
        rr("-t {r} -e {r} -m hello -D publish correlation-data 5 -F %t|%p|%q|%r|%R|%D|%C"),
    ],
    "rr: -e with 3.1.1": [rr("-V 311 -t {r} -e {r} -m hello -F %t|%p|%R")],
    "rr: -L": [rr("-L mqtt://127.0.0.1:{p}/{r} -e {r} -m hello")],
    "rr: nobody answers": [rr("-t {r}/a -e {r}/b -m hello -W 1")],
    "rr: a stale answer": [pub("-t {r}/b -m old -r"), rr("-t {r}/a -e {r}/b -m hello -W 1 -v")],
    "rr: other options": [rr("-t {r} -e {r} -m hello -k 5 -i {r} -c -x 60 --nodelay --quiet -W 5 --pretty")],
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
    "wrong: a session without end and without an identifier": [
        pub("-t {r} -m x -V 5 -x -1"),
        sub("-t {r} -c -I pre"),
        sub("-t {r} -c -I pre -V 5"),
    ],
    "wrong: -x": [pub("-t {r} -m x -V 5 -x soon"), sub("-t {r} -V 5 -x 99999999999")],
    "wrong: repetition": [
        pub("-t {r} -m x --repeat 0"),
        pub("-t {r} -m x --repeat-delay -1"),
        pub("-t {r} -m x -M 0"),
        sub("-t {r} --random-filter 0"),
    ],
    "wrong: URL": [
        pub("-L mqtt://127.0.0.1:{p} -m x"),
        pub("-L http://127.0.0.1/{r} -m x"),
        sub("-L mqtt://127.0.0.1/{r}/#/a"),
    ],
    "wrong: socket": [pub("-t {r} -m x --unix /nonexistent"), sub("-t {r} --unix /nonexistent")],
    "wrong: TLS": [
        pub("-t {r} -m x --psk 12"),
        pub("-t {r} -m x --psk 12 --psk-identity me --cafile x"),
        pub("-t {r} -m x --keyform pem"),
        pub("-t {r} -m x --tls-version tlsv9 --cafile {file}"),
        pub("-t {r} -m x --proxy http://127.0.0.1"),
    ],
    "wrong: rr": [
        rr("-m x -e {r}"),
        rr("-t {r} -e {r}"),
        rr("-t {r} -e {r}/# -m x"),
        rr("-t {r}/# -e {r} -m x"),
        rr("-t {r} -e {r} -l"),
        rr("-t {r} -e {r} -m x -C 1"),
        rr("-t {r} -e {r} -m x -r"),
        rr("-t {r} -e {r} -m x -n"),
    ],
    "wrong: options of the others": [
        pub("-t {r} -m x -C 1"),
        pub("-t {r} -m x -F %p"),
        pub("-t {r} -m x -v"),
        pub("-t {r} -m x -T {r}"),
        pub("-t {r} -m x -W 1"),
        sub("-t {r} -r"),
        sub("-t {r} -e {r}"),
        sub("-t {r} --repeat 1"),
        sub("-t {r} -S"),
    ],
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


def run_tool(
    command: list[str], stdin: bytes = b"", settings: str = "/nonexistent"
) -> subprocess.CompletedProcess[bytes]:
    """*settings*: the directory of the settings files that both have."""
    env = {**os.environ, "XDG_CONFIG_HOME": settings}
    return subprocess.run(command, input=stdin, capture_output=True, timeout=DEADLINE_S, check=False, env=env)


_ALWAYS_THEIRS = {"check": "sub", "put": "pub"}


def tool_command(tool: str, ours: bool, port: int) -> list[str]:
    where = ["-h", "127.0.0.1", "-p", str(port)]
    if ours and tool not in _ALWAYS_THEIRS:
        return [sys.executable, "-m", "midge", tool, *where]
    return [f"mosquitto_{_ALWAYS_THEIRS.get(tool, tool)}", *where]


@contextlib.contextmanager
def started(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()  # a test that failed must not wait for it


def play(steps: list[Step], ours: bool, port: int, file: Path, root: str) -> list[tuple[int, bytes]]:
    """Exit codes and outputs of all steps, with the run's topic root written as ROOT."""
    results = []
    for step in steps:
        argv = [
            word.replace("{r}", root).replace("{file}", str(file)).replace("{p}", str(port))
            for word in step.argv.split()
        ]
        done = run_tool(tool_command(step.tool, ours, port) + argv, step.stdin)
        assert b"Traceback" not in done.stderr
        assert done.returncode == 0 or done.stderr, "an error without a word"
        output = done.stdout.replace(root.encode(), b"ROOT").replace(root.encode().hex().encode(), b"ROOT_IN_HEX")
        # The time is another one, and mosquitto_sub 2.0 says Z and the offset.
        output = re.sub(rb'"tst":(\t?)"[-0-9]+T[:0-9]+[.][0-9]{6}Z?[+][0-9]{4}"', rb'"tst":\1"TIME"', output)
        results.append((done.returncode, output))
    return results


@pytest.mark.parametrize("name", SCENARIOS)
def test_output_and_exit_code_are_mosquittos(name: str, mosquitto: brokers.RunningBroker, file: Path) -> None:
    steps = SCENARIOS[name]
    roots = [f"cli{next(_numbers)}" for _ in range(2)]  # all of the same length, for the widths of formats
    with ThreadPoolExecutor(2) as pool:
        theirs, ours = pool.map(
            lambda ours: play(steps, bool(ours), mosquitto.port, file, roots[ours]), (False, True)
        )
    if name in ("wrong: no topic", "wrong: no message"):
        theirs = [(code, b"") for code, _ in theirs]  # mosquitto_pub prints its whole help here
    assert ours == theirs


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
    "rr -t allowed/a -e allowed/a -m x -W 5",
    "rr -t allowed/a -e allowed/a -m x -u joe -P wrong",
    "rr -t allowed/a -e allowed/a -m x -u joe -P secret -W 5",

    "pub -t allowed/a -m x",
    "pub -t allowed/a -m x -V 5",
    "pub -t allowed/a -m x -V 31",
    "pub -t allowed/a -m x -u joe -P wrong",
    "pub -t allowed/a -m x -u joe -P wrong --quiet",
    "pub -t allowed/a -m x -u joe -P secret -q 1",
    "pub -t forbidden/a -m x -u joe -P secret -q 1",
    "pub -t forbidden/a -m x -u joe -P secret -q 1 -V 5",
    "pub -t forbidden/a -m x -u joe -P secret -q 2 -V 5",
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
        with started(command) as process:
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
        with started(command) as process:
            broker.wait_for_output("Sending SUBACK", DEADLINE_S)
            run_tool([*tool_command("pub", False, broker.port), "-t", "a", "-m", "x"])
            assert process.stdout.readline() == b"x\n"
            wait_until_asleep(process.pid)
            process.send_signal(number)
            out, error = process.communicate(timeout=DEADLINE_S)
        broker.wait_for_output("Received DISCONNECT", DEADLINE_S)
    assert (process.returncode, out, error) == (0, b"", b"")


def wait_until_asleep(pid: int) -> None:
    """Until it waits for its socket: mosquitto_sub's signal handler hangs on a lock of the code that it interrupts."""
    deadline = time.monotonic() + DEADLINE_S
    while Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] != "S":
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_comes_after_the_last_wanted_message_stays_queued(mosquitto: brokers.RunningBroker) -> None:
    # mosquitto_sub acknowledges and drops them. We acknowledge what we printed.
    command = [*tool_command("sub", True, mosquitto.port), "-t", "stays", "-q", "1", "-i", "stays", "-c"]
    run_tool([*command, "-E"])
    lines = b"".join(b"%d\n" % i for i in range(9))
    run_tool([*tool_command("pub", True, mosquitto.port), "-t", "stays", "-q", "1", "-l"], lines)
    outputs = [run_tool([*command, "-C", "3"]).stdout for _ in range(3)]
    assert b"".join(outputs) == lines


# What the manual says and mosquitto 2.0.11 doesn't do, and what is ours alone, against Mosquitto all the same.


def ours(tool: str, port: int, *argv: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return run_tool([*tool_command(tool, True, port), *argv], stdin)


def test_rr_sends_a_file_and_stdin(mosquitto: brokers.RunningBroker, file: Path) -> None:
    assert ours("rr", mosquitto.port, "-t", "rr/f", "-e", "rr/f", "-f", str(file)).stdout == b"from a file\n"
    assert ours("rr", mosquitto.port, "-t", "rr/s", "-e", "rr/s", "-s", stdin=b"a\nb").stdout == b"a\nb\n"


def test_remove_retained_ends_when_all_are_gone(mosquitto: brokers.RunningBroker) -> None:
    port = mosquitto.port
    lines = b"".join(b'{"topic": "gone/%d", "payload": "x", "retain": true}\n' % i for i in range(50))
    assert ours("pub", port, "--json", stdin=lines).returncode == 0
    done = ours("sub", port, "-t", "gone/#", "--remove-retained", "-C", "50", "-v")
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 50)
    assert ours("sub", port, "-t", "gone/#", "-W", "1").stdout == b""


def test_a_random_filter_takes_about_its_share(mosquitto: brokers.RunningBroker) -> None:
    port, count = mosquitto.port, 400
    session = ("-t", "random", "-q", "1", "-i", "random", "-c")
    ours("sub", port, *session, "-E")
    ours("pub", port, "-t", "random", "-q", "1", "-m", "x", "--repeat", str(count))
    done = ours("sub", port, *session, "-C", str(count), "--random-filter", "50")
    assert 120 < len(done.stdout.splitlines()) < 280  # 8 standard deviations on either side


def test_what_sub_prints_as_json_pub_publishes_again(mosquitto: brokers.RunningBroker) -> None:
    port = mosquitto.port
    session = ("-t", "json/#", "-q", "2", "-i", "json", "-c", "-V", "5")
    ours("sub", port, *session, "-E")
    properties = "-D publish user-property k v -D publish content-type x/y"
    ours("pub", port, "-t", "json/a", "-s", "-V", "5", "-q", "2", *properties.split(), stdin=b"\xff\0")
    ours("pub", port, "-t", "json/b", "-m", "text", "-q", "1")
    recorded = ours("sub", port, *session, "-C", "2", "--json").stdout
    assert ours("pub", port, "--json", "-V", "5", stdin=recorded).returncode == 0
    again = ours("sub", port, *session, "-C", "2", "--json").stdout
    # QoS 2 takes a round trip more: what was published first may be printed second.
    told = [[json.loads(line) for line in lines.splitlines()] for lines in (recorded, again)]
    for messages in told:
        messages.sort(key=lambda message: message["topic"])
    for message in told[0] + told[1]:
        del message["time"]
    assert told[0] == told[1]
    assert [message["qos"] for message in told[0]] == [2, 1]


def test_a_rate_is_kept(mosquitto: brokers.RunningBroker) -> None:
    began = time.monotonic()
    lines = b"x\n" * 11
    assert ours("pub", mosquitto.port, "-t", "rate", "-l", "--rate", "10", stdin=lines).returncode == 0
    assert time.monotonic() - began >= 1  # ten intervals of 0.1 s


def test_sub_tells_rates_instead_of_messages(mosquitto: brokers.RunningBroker) -> None:
    port = mosquitto.port
    session = ("-t", "rates", "-q", "1", "-i", "rates", "-c")
    ours("sub", port, *session, "-E")
    ours("pub", port, "-t", "rates", "-q", "1", "-m", "12345", "--repeat", "20")
    lines = ours("sub", port, *session, "-W", "4", "--rate").stdout.decode().splitlines()
    told = [line for line in lines if line != "0.0 messages/s, 0 bytes/s, 0 topics"]
    assert len(told) < len(lines)
    assert all(re.fullmatch(r"[0-9.]+ messages/s, [0-9]+ bytes/s, 1 topic", line) for line in told)
    assert 1 <= len(told) <= 2


def test_a_unix_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "mqtt")
    with brokers.start_mosquitto(f"listener 0 {path}"):
        for tool in ("mosquitto_pub", "midge"):
            command = [tool] if tool != "midge" else [sys.executable, "-m", "midge", "pub"]
            assert run_tool([*command, "--unix", path, "-t", tool, "-m", "x", "-r"]).returncode == 0
        command = [sys.executable, "-m", "midge", "sub", "--unix", path, "-t", "#", "-C", "2"]
        assert run_tool(command).stdout == b"x\nx\n"


def test_a_socks_proxy(mosquitto: brokers.RunningBroker) -> None:
    with SocksProxy("joe", "secret") as proxy:
        url = f"socks5h://joe:secret@127.0.0.1:{proxy.port}"
        done = ours("pub", mosquitto.port, "--proxy", url, "-t", "socks", "-m", "x", "-q", "1")
        assert (done.returncode, done.stderr) == (0, b"")
        assert proxy.asked == [("127.0.0.1", mosquitto.port)]
        wrong = ours("pub", mosquitto.port, "--proxy", url.replace("secret", "no"), "-t", "socks", "-m", "x")
        assert wrong.returncode == 1
        assert b"Traceback" not in wrong.stderr
