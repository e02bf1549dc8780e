"""Debian's `mosquitto_pub` and `mosquitto_sub` against the host's broker, the board's broker and Mosquitto.

Begins with the walk that a newcomer takes: two subscribers and two publishers, four processes in all.
"""

import contextlib
import os
import queue
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from brokers import BROKERS, ROOT, needs_mosquitto, start_board, start_host, start_mosquitto

pytestmark = needs_mosquitto

TIMEOUT_S = 15
MAX_QUEUED = 10


class Subscriber:
    """A `mosquitto_sub` process; its messages come as (topic, payload) in the order it printed them."""

    def __init__(self, broker, *args: str):
        # -d says when the subscription is granted, stdbuf that each line leaves at once, -F which lines are
        # messages.
        command = ["stdbuf", "-oL", "mosquitto_sub", "-p", str(broker.port), "-d", "-F", "MSG %t %p", *args]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                        env={**os.environ, "LC_ALL": "C"})
        self.lines: list[str] = []
        self._messages: queue.Queue[tuple[str, str]] = queue.Queue()
        self._subscribed = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if not self._subscribed.wait(TIMEOUT_S):
            self.stop()
            raise TimeoutError(f"no SUBACK: {self.lines}")

    def _read(self) -> None:
        for line in self.process.stdout:
            self.lines.append(line)
            if line.startswith("MSG "):
                _, topic, payload = line.rstrip("\n").split(" ", 2)
                self._messages.put((topic, payload))
            elif line.startswith("Subscribed"):
                self._subscribed.set()

    def receive(self, count: int) -> list[tuple[str, str]]:
        return [self._messages.get(timeout=TIMEOUT_S) for _ in range(count)]

    def receive_until(self, payload: str) -> list[tuple[str, str]]:
        """What came before a message with this payload."""
        received = []
        while (message := self._messages.get(timeout=TIMEOUT_S))[1] != payload:
            received.append(message)
        return received

    def stop(self) -> None:
        """Ctrl-C: `mosquitto_sub` sends DISCONNECT and ends."""
        self.process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> "Subscriber":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def publish(broker, topic: str, payload: str, *args: str) -> None:
    subprocess.run(["mosquitto_pub", "-p", str(broker.port), "-t", topic, "-m", payload, *args], check=True,
                   timeout=TIMEOUT_S)


def publish_in_a_loop(broker, times: int, *topics: str) -> subprocess.Popen:
    """`for i in ...; do mosquitto_pub -m Hello -t TOPIC; done`, as a person would type it."""
    one_turn = "; ".join(f"mosquitto_pub -p {broker.port} -m Hello -t {topic} || exit 1" for topic in topics)
    return subprocess.Popen(["sh", "-c", f"for i in $(seq {times}); do {one_turn}; done"])


def test_each_subscriber_sees_exactly_what_it_asked_for(broker):
    with Subscriber(broker, "-t", "#") as everything, Subscriber(broker, "-t", "test/simple") as simple:
        loops = [publish_in_a_loop(broker, 20, "test/simple"),
                 publish_in_a_loop(broker, 20, "test/simple", "test/other")]
        assert [loop.wait(30) for loop in loops] == [0, 0]
        seen_simple = simple.receive(40)
        seen_everything = everything.receive(60)
        publish(broker, "test/simple", "END")
        assert simple.receive_until("END") == []
        assert everything.receive_until("END") == []
    assert seen_simple == [("test/simple", "Hello")] * 40
    assert sorted(seen_everything) == [("test/other", "Hello")] * 20 + [("test/simple", "Hello")] * 40


def test_mosquitto_sub_asks_for_a_version_and_gets_it(broker):
    versions = ["mqttv31", "mqttv311", "mqttv5"]
    for version in versions:
        with Subscriber(broker, "-t", "a", "-V", version) as subscriber:
            publish(broker, "a", version, "-V", version, "-q", "1")
            assert subscriber.receive(1) == [("a", version)]


def test_every_line_of_a_file_is_a_message(broker):
    lines = [f"line {number}" for number in range(100)]
    with Subscriber(broker, "-t", "lines", "-q", "1") as subscriber:
        subprocess.run(["mosquitto_pub", "-p", str(broker.port), "-t", "lines", "-q", "1", "-l"],
                       input="\n".join(lines) + "\n", text=True, check=True, timeout=TIMEOUT_S)
        assert subscriber.receive(100) == [("lines", line) for line in lines]


def test_a_retained_message_is_there_for_a_later_mosquitto_sub(broker):
    publish(broker, "state", "on", "-r", "-q", "1")
    shown = subprocess.run(["mosquitto_sub", "-p", str(broker.port), "-t", "state", "-C", "1", "-F", "%r %p",
                            "-W", "10"], capture_output=True, text=True, timeout=TIMEOUT_S)
    assert shown.stdout == "1 on\n"


def go_away_and_return(broker, messages: int, subscriber_args: list[str], qos: str) -> list[str]:
    """What a subscriber gets on its return of the messages 1..N that were published while it was away."""
    args = ["-i", "absent", "-t", "news", *subscriber_args]
    with Subscriber(broker, *args):
        pass
    payloads = "".join(f"{number}\n" for number in range(1, messages + 1))
    subprocess.run(["mosquitto_pub", "-p", str(broker.port), "-t", "news", "-q", qos, "-l"], input=payloads,
                   text=True, check=True, timeout=TIMEOUT_S)
    with Subscriber(broker, *args) as returned:
        publish(broker, "news", "END", "-q", "1")
        return [payload for _, payload in returned.receive_until("END")]


def test_a_persistent_subscriber_gets_what_it_missed_in_order(broker):
    assert go_away_and_return(broker, 16, ["-c", "-q", "1"], "1") == [str(number) for number in range(1, 17)]


def test_qos_0_messages_do_not_wait_for_a_persistent_subscriber(broker):
    assert go_away_and_return(broker, 16, ["-c", "-q", "1"], "0") == []


def test_a_qos_0_subscription_does_not_wait_either(broker):
    assert go_away_and_return(broker, 16, ["-c", "-q", "0"], "1") == []


def test_a_clean_session_gets_nothing_of_what_it_missed(broker):
    assert go_away_and_return(broker, 16, ["-q", "1"], "1") == []


def start_with_a_queue_of_ten(kind: str, directory: Path):
    if kind == "mosquitto":
        return start_mosquitto(f"max_queued_messages {MAX_QUEUED}\nsys_interval 1")
    if kind == "host":
        config = directory / "midge.toml"
        config.write_text(f"[limits]\nmax_queued_messages = {MAX_QUEUED}\n[sys]\ninterval = 1\n")
        return start_host("--config", config)
    script = directory / "small_broker.py"
    script.write_text(
        "import asyncio, sys\n"
        f"sys.path.insert(0, {str(ROOT / 'device')!r})\n"
        "from midge_broker import Broker\n"
        f"broker = Broker(int(sys.argv[1]), sys.argv[2], max_queued_messages={MAX_QUEUED})\n"
        "broker.listen()\n"
        "print('listening on mqtt://%s:%d' % (sys.argv[2], broker.port))\n"
        "asyncio.run(broker.run())\n")
    return start_board(script=script)


def dropped(broker) -> int:
    """The broker's own count of messages that a full queue lost."""
    topic = "$SYS/broker/messages/dropped" if broker.kind == "board" else "$SYS/broker/publish/messages/dropped"
    shown = subprocess.run(["mosquitto_sub", "-p", str(broker.port), "-t", topic, "-C", "1", "-W", "12"],
                           capture_output=True, text=True, timeout=TIMEOUT_S)
    assert shown.stdout, f"{topic} says nothing: {shown.stderr}"
    return int(shown.stdout)


@pytest.mark.parametrize("kind", BROKERS)
def test_a_full_queue_loses_its_oldest_messages_and_counts_them(kind, tmp_path):
    with start_with_a_queue_of_ten(kind, tmp_path) as broker:
        args = ["-c", "-i", "absent", "-t", "news", "-q", "1"]
        with Subscriber(broker, *args):
            pass
        subprocess.run(["mosquitto_pub", "-p", str(broker.port), "-t", "news", "-q", "1", "-l"], check=True,
                       input="".join(f"{number}\n" for number in range(1, 26)), text=True, timeout=TIMEOUT_S)
        with Subscriber(broker, *args) as returned:
            # Mosquitto's rule is the opposite one: what finds the queue full is lost, the first ten are kept.
            kept = range(1, 11) if kind == "mosquitto" else range(16, 26)
            assert returned.receive(MAX_QUEUED) == [("news", str(number)) for number in kept]
        deadline = time.monotonic() + TIMEOUT_S
        while (count := dropped(broker)) != 15:  # $SYS is brought up to date at intervals
            assert time.monotonic() < deadline, f"15 messages are gone, the counter says {count}"


def test_will_options_of_mosquitto_sub_work_when_it_is_killed(broker):
    with Subscriber(broker, "-t", "will/#", "-q", "1") as watcher:
        dying = Subscriber(broker, "-t", "x", "--will-topic", "will/dying", "--will-payload", "gone", "--will-qos", "1")
        dying.process.kill()
        dying.process.wait()
        assert watcher.receive(1) == [("will/dying", "gone")]


