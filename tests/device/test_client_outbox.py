"""The outboxes: bounds, damage at every byte, and processes killed at random moments."""

import json
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # `import client_board`, with --import-mode=importlib

from client_board import ON_BOARD, Board

import brokers
from brokers import start_host

# `make soakclient` asks for 500; a seed found there: MIDGE_SEED=n.
KILLS = int(os.environ.get("MIDGE_KILLS", "30"))
SEED = int(os.environ.get("MIDGE_SEED") or random.randrange(1_000_000))


@pytest.fixture(params=["micropython", "cpython"])
def interpreter(request):
    return request.param


@pytest.fixture
def run(interpreter, tmp_path):
    boards = []

    def start(what, kind, heap="256k"):
        boards.append(Board(interpreter, "client_outbox.py", what, tmp_path / "outbox.log", kind, heap=heap))
        return boards[-1]

    yield start
    for board in boards:
        board.stop()


@pytest.mark.parametrize("kind", ["FileOutbox", "RTCOutbox"])
def test_damage_to_any_byte_loses_one_record_at_most(run, kind):
    said = run("damage", kind).said()
    assert said[0] == "checked", said
    assert said[1] > 500


@pytest.mark.parametrize("kind", ["FileOutbox", "RTCOutbox"])
def test_log_is_bounded_and_whole_after_compaction_and_after_its_interruption(run, kind):
    board = run("compaction", kind)
    board.says("bounded", True)
    for _ in range(5 if kind == "FileOutbox" else 1):
        board.says("same", True)
    board.has_ended()


@pytest.mark.parametrize("interpreter", ["micropython"], indirect=True)
@pytest.mark.parametrize("file_system", ["VfsLfs2", "VfsFat"])
def test_log_on_a_boards_file_systems_is_whole_whenever_power_goes(run, file_system):
    # Room enough that nothing is collected: closing a forgotten file calls the flash, which is Python's here.
    run("flash", file_system, heap="64m").says("same", 18)


@pytest.mark.parametrize("interpreter", ["micropython"], indirect=True)
def test_power_cut_before_any_write_to_the_flash_loses_nothing_that_put_returned_for(run):
    what, cuts = run("flash_writes", "VfsLfs2", heap="64m").said()
    assert (what, cuts > 100) == ("cuts", True), cuts


@pytest.mark.parametrize("kind", ["MemoryOutbox", "FileOutbox", "RTCOutbox"])
def test_full_outbox_refuses_or_drops_the_oldest_of_qos_0_then_of_qos_1(run, kind):
    board = run("full", kind)
    board.says("full", 3)
    for held, dropped in (([1], 0), ([1, 0], 0), ([1, 0, 2], 0), ([1, 2, 1], 1), ([2, 1, 1], 2), ([2, 1, 2], 3),
                          ([2, 2, 2], 4)):
        board.says(held, dropped)
    board.has_ended()


class Received:
    """What a subscriber of the broker's gets, in order."""

    def __init__(self, client):
        self.messages: list[tuple[str, str]] = []
        self.changed = threading.Condition()
        client.on_message = self._on_message

    def _on_message(self, _client, _data, message):
        with self.changed:
            self.messages.append((message.topic, message.payload.decode()))
            self.changed.notify_all()

    def wait_for(self, payload):
        with self.changed:
            assert self.changed.wait_for(lambda: any(text == payload for _, text in self.messages), 30)

    def of_topic(self, topic):
        return [text for name, text in self.messages if name == topic]


@pytest.fixture
def received(broker_for_kills):
    import paho.mqtt.client as paho

    client = paho.Client(paho.CallbackAPIVersion.VERSION2)
    subscribed = threading.Event()
    client.on_subscribe = lambda *_: subscribed.set()
    received = Received(client)
    client.connect("127.0.0.1", broker_for_kills.port)
    client.loop_start()
    client.subscribe("out/#", 2)
    assert subscribed.wait(20)
    yield received
    client.disconnect()
    client.loop_stop()


@pytest.fixture
def broker_for_kills():
    with start_host() as running:
        yield running


def start(interpreter, *arguments):
    command = [sys.executable, "-u"] if interpreter == "cpython" else [brokers.micropython(), "-X", "heapsize=512k"]
    return subprocess.Popen([*command, str(ON_BOARD / "client_outbox.py"), *map(str, arguments)],
                            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def answered_for(lines):
    """What the program said it had handed over, by QoS; a last line that was cut doesn't count."""
    said = {1: [], 2: []}
    for line in lines:
        try:
            what = json.loads(line)
        except ValueError:
            assert "Traceback" not in line, lines
            continue
        if what[0][0].isdigit():
            said[what[1]].append(what[0])
    return said


@pytest.mark.timeout(900)
@pytest.mark.parametrize("interpreter", ["micropython"], indirect=True)
@pytest.mark.parametrize("kind", ["FileOutbox", "RTCOutbox"])
def test_what_was_handed_over_arrives_though_the_process_is_killed(interpreter, tmp_path, broker_for_kills, received,
                                                                   kind):
    chance = random.Random(SEED)
    handed = {1: [], 2: []}
    for number in range(1, KILLS // 2 + 1):
        process = start(interpreter, "run", tmp_path / "outbox.log", kind, broker_for_kills.port, number)
        first = process.stdout.readline()  # the interpreter's start isn't what is to be killed
        time.sleep(chance.random() ** 2 * 0.15)
        process.kill()
        rest = process.stdout.readlines()
        process.wait()
        for qos, texts in answered_for([first, *rest]).items():
            handed[qos] += texts
    process = start(interpreter, "run", tmp_path / "outbox.log", kind, broker_for_kills.port, 0)
    lines = process.stdout.readlines()
    assert process.wait() == 0, lines
    assert json.loads(lines[-1]) == ["end", 0], lines
    for qos, texts in answered_for(lines).items():
        handed[qos] += texts
    received.wait_for(handed[1][-1])
    received.wait_for(handed[2][-1])
    once = received.of_topic("out/1")
    assert not set(handed[1]) - set(once), f"seed {SEED}"
    firsts = list(dict.fromkeys(once))
    assert firsts[:-len(answered_for(lines)[1])] == sorted(firsts[:-len(answered_for(lines)[1])]), f"seed {SEED}"
    twice = received.of_topic("out/2")
    assert not set(handed[2]) - set(twice), f"seed {SEED}"
    assert len(twice) == len(set(twice)), f"seed {SEED}"
    assert twice[:-len(answered_for(lines)[2])] == sorted(twice[:-len(answered_for(lines)[2])]), f"seed {SEED}"
    print(f"{kind}, {KILLS // 2} kills, seed {SEED}: QoS 1 {len(handed[1])} handed over, {len(once)} arrived; "
          f"QoS 2 {len(handed[2])} handed over, {len(twice)} arrived")
