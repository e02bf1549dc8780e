"""`midge sim battery`: what it measures of real programs, and docs/battery-life.md, which it wrote."""

import json
import re
import subprocess

import pytest

import brokers
from midge.boards.simulate import BoardError
from midge.sim.umqtt import fetch

pytestmark = pytest.mark.timeout(180)  # a busy machine starts interpreters slowly
COMMAND = [brokers.host_python(), "-m", "midge", "sim", "battery"]
PAGE = brokers.ROOT / "docs" / "battery-life.md"

MINE = """\
import sys
import machine
from midge_client import wake
stats = wake(sys.argv[1], sys.argv[2], int(sys.argv[3]), publish=[("battery/mine", "here", 1)])
machine.deepsleep(600_000)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> dict:
    """One run with one cycle of each program, after its first: its figures, and its page."""
    brokers.micropython()
    directory = tmp_path_factory.mktemp("battery")
    (directory / "mine.py").write_text(MINE)
    done = subprocess.run([*COMMAND, "--cycles", "1", "--delay", "20", "--program", "mine.py", "--json", "b.json",
                           "--markdown", "b.md"], cwd=directory, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stdout + done.stderr
    return {"page": (directory / "b.md").read_text("utf-8"), **json.loads((directory / "b.json").read_text())}


def choice(run: dict, label: str) -> dict:
    found = [one for one in run["choices"] if one["label"].startswith(label)]
    if not found:
        pytest.skip(f"{label} wasn't measured")
    return found[0]


def test_all_that_was_sent_has_arrived(run) -> None:
    for one in [*run["choices"], *run["lossy"]]:
        assert one["arrived"] == one["made"], one["label"]


def test_wake_takes_two_segments_and_qos_2_one_more(run) -> None:
    assert choice(run, "wake(), QoS 1")["segments"] == 2
    assert choice(run, "wake(), QoS 2")["segments"] == 3
    # A busy machine adds to times, and takes nothing from them.
    assert choice(run, "wake(), QoS 1")["round_trips"] >= 2
    assert choice(run, "wake(), QoS 2")["round_trips"] >= 3
    assert choice(run, "wake(), QoS 1")["ms"] >= 80
    assert choice(run, "wake(), QoS 1, TLS")["segments"] > 2
    phases = choice(run, "wake(), QoS 2")["phases_ms"]
    assert phases["connack_ms"] >= 80 and phases["exchange_ms"] >= 40
    assert choice(run, "mine.py")["phases_ms"].keys() == phases.keys()


def test_umqtt_simple_waits_for_each_acknowledgement(run) -> None:
    theirs = choice(run, "umqtt.simple, QoS 1, fetches")
    # The handshake, CONNECT, three publishes, each at least one.
    assert theirs["round_trips"] >= 5
    assert theirs["ms"] >= 200
    assert theirs["segments"] > choice(run, "wake(), QoS 1")["segments"]


def test_charge_is_told_by_parts_and_tls_has_a_part_of_its_own(run) -> None:
    for one in run["choices"]:
        assert ("TLS, computing" in one["mC"]) == one["tls"]
        day_mC = 144 * sum(one["mC"].values())
        assert one["mAh_per_day"] == pytest.approx(day_mC / 3600 + 0.24, abs=0.05)


def test_program_of_ones_own_is_measured_beside_them(run) -> None:
    mine = choice(run, "mine.py")
    assert mine["segments"] == 2
    assert mine["ms"] >= 80


def _structure(page: str) -> list[str]:
    """Headings, heads of tables and the first cell of each row, without numbers."""
    found = []
    for line in page.splitlines():
        if line.startswith("#"):
            found.append(line)
        elif line.startswith("| "):
            cells = line.split(" | ")
            found.append(re.sub(r"[\d.]+", "0", cells[0]) if "mine.py" not in cells[0] else "")
    return [text for text in found if text]


def test_page_in_the_docs_is_what_the_command_writes(run) -> None:
    try:
        from platformdirs import user_cache_path

        fetch(user_cache_path("midge") / "umqtt.simple")
    except BoardError as error:
        pytest.skip(f"the page compares umqtt.simple: {error}")
    assert _structure(PAGE.read_text("utf-8")) == _structure(run["page"])


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--board", "toaster"], "no board 'toaster'; there are: esp32,"),
        (["--board", "pico2-w"], "no source for active_mA"),
        (["--board", "pico"], "Raspberry Pi Pico has no radio"),
        (["--program", "nowhere.py"], "nowhere.py: no such file"),
    ],
)
def test_what_cannot_be_is_refused_in_words(options, error) -> None:
    done = subprocess.run([*COMMAND, *options], capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert error in done.stderr
