"""`midge sim run`: real boards' programs, the real broker, links that lose; what the report says is what happened."""

import html
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest

import brokers

pytestmark = pytest.mark.timeout(180)  # a busy machine starts interpreters slowly
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed: apt-get install chromium")
MIDGE = [brokers.host_python(), "-m", "midge", "sim"]

FLEET = """\
[fleet]
duration_s = 300
speed = 60

[[link]]
name = "wifi"
delay_ms = 5
loss = 0.05
rto_ms = 100

[[boards]]
name = "a"
count = 2
link = "wifi"
interval_s = 60
messages = 2
commands_s = 100
timeout_ms = 800

[[boards]]
name = "file"
link = "wifi"
interval_s = 60
qos = 2
outbox = "file"
timeout_ms = 800

[[boards]]
name = "lamp"
profile = "controller"
link = "wifi"
interval_s = 20
commands_s = 40

[[boards]]
name = "cable"
profile = "serial"
interval_s = 30

[[boards]]
name = "hub"
profile = "hub"

[[boards]]
name = "shed"
via = "hub"
interval_s = 60
commands_s = 100

[[boards]]
name = "mine"
program = "mine.py"
interval_s = 60

[[outage]]
link = "wifi"
at_s = 100
for_s = 60

[[power_cut]]
boards = "file"
at_s = 200

[[power_cut]]
boards = "hub"
at_s = 200
"""

MINE = """\
import sys
import machine
from midge_client import wake
name, host, port = sys.argv[1:]
stats = wake(name, host, int(port), publish=[("mine/" + name, "here", 1)])
print("error", stats.error)
machine.deepsleep(30_000)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> dict:
    """One run of a fleet with everything in it: its figures, and what was printed."""
    brokers.micropython()
    directory = tmp_path_factory.mktemp("fleet")
    (directory / "fleet.toml").write_text(FLEET)
    (directory / "mine.py").write_text(MINE)
    done = subprocess.run([*MIDGE, "run", "fleet.toml", "--json", "report.json", "--html", "report.html"],
                          cwd=directory, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stdout + done.stderr
    return {"printed": done.stdout, "html": (directory / "report.html").read_text(encoding="utf-8"),
            **json.loads((directory / "report.json").read_text())}


def kind(run: dict, name: str) -> dict:
    return next(kind for kind in run["kinds"] if kind["name"] == name)


def test_each_kind_of_boards_is_heard_and_nothing_is_lost_without_an_explanation(run) -> None:
    for name in ("a", "file", "lamp", "cable", "shed"):
        messages = kind(run, name)["messages"]
        assert messages["arrived"] > 0, name
        assert "unexplained" not in messages["lost"]
    assert run["total"]["crashes"] == []
    assert run["fleet"]["boards"] == 8


def test_flash_keeps_what_a_power_cut_finds_and_qos_2_comes_once(run) -> None:
    messages = kind(run, "file")["messages"]
    assert kind(run, "file")["power_cuts"] == 1
    assert (messages["lost"], messages["doubled"]) == ({}, 0)
    assert messages["arrived"] == messages["made"]


def test_commands_reach_boards_that_sleep_and_boards_behind_a_hub_that_lost_its_power(run) -> None:
    for name in ("a", "lamp", "shed"):
        commands = kind(run, name)["commands"]
        assert commands["made"] == commands["arrived"] > 0, name
    assert kind(run, "hub")["boots"] == 2


def test_sleeping_boards_are_no_processes(run) -> None:
    # Of a sensor, as many starts as cycles, and the last wake-up; what is always on starts once.
    sleeping = kind(run, "a")
    assert sleeping["boots"] >= sleeping["cycles"] >= 4
    assert kind(run, "lamp")["boots"] == 1
    assert min(count for _, count in run["awake"]) < 8


def test_wake_cycles_are_counted_in_segments_and_round_trips(run) -> None:
    cycles = kind(run, "a")
    assert cycles["segments"]["up"] >= 2 * cycles["cycles"]
    assert cycles["round_trips"]["p50"] >= 2
    assert cycles["cycle_ms"]["count"] == cycles["cycles"]


def test_program_of_ones_own_runs_and_its_cycles_are_measured(run) -> None:
    mine = kind(run, "mine")
    assert run["other_topics"]["mine/mine"] >= mine["cycles"] > 4  # it chose 30 s itself
    assert mine["cycle_errors"] == {}


def test_report_is_printed_as_tables(run) -> None:
    assert re.search(r"│ shed +│ +\d+ │", run["printed"])
    assert "this machine: at most" in run["printed"]


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.outside: list[str] = []
        self.count: dict[str, int] = {}

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.count[tag] = self.count.get(tag, 0) + 1
        self.outside += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.count[tag] = self.count.get(tag, 0) + 1

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_is_whole_and_needs_nothing_from_outside(run) -> None:
    page = _Page()
    page.feed(run["html"])
    assert page.open == []
    assert page.outside == []
    assert page.count["svg"] >= 3
    assert page.count["polyline"] >= 5
    assert "url(" not in run["html"]


# Asks the page what a reader sees: plots that have a size, labels inside their plot, a body no wider than the window.
LOOK = """<script>
const boxes = [...document.querySelectorAll('svg')].map(svg => svg.getBoundingClientRect());
const out = [...document.querySelectorAll('svg text')].filter(text => {
  const box = text.getBoundingClientRect(), svg = text.closest('svg').getBoundingClientRect();
  return box.left < svg.left - 1 || box.right > svg.right + 1 || box.top < svg.top - 1 || box.bottom > svg.bottom + 1;
}).map(text => text.textContent);
document.title = JSON.stringify({
  plots: boxes.filter(box => box.width > 300 && box.height > 20).length, svgs: boxes.length, out: out,
  lines: [...document.querySelectorAll('polyline')].filter(line => line.getBoundingClientRect().width > 5).length,
  isWide: document.documentElement.scrollWidth > window.innerWidth,
  boards: JSON.parse(document.getElementById('figures').textContent).fleet.boards});
</script></body>"""


@needs_chromium
def test_page_is_drawn_whole_by_a_browser(run, tmp_path) -> None:
    page = tmp_path / "report.html"
    page.write_text(run["html"].replace("</body>", LOOK), encoding="utf-8")
    for width in (1100, 500):  # 500: the least that headless Chromium takes
        done = subprocess.run(
            [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
             f"--window-size={width},900", "--dump-dom", page.as_uri()],
            capture_output=True, text=True, timeout=90)  # fmt: skip
        title = re.search(r"<title>(.*?)</title>", done.stdout)
        assert title, done.stderr
        seen = json.loads(html.unescape(title[1]))
        assert seen["out"] == []
        assert seen["plots"] == seen["svgs"] >= 3
        assert seen["lines"] >= 5
        assert not seen["isWide"]
        assert seen["boards"] == 8


def _children(pid: int) -> set[int]:
    """Of a process and its children, and so on."""
    found: set[int] = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            if parent == pid:
                found |= {int(entry.name)} | _children(int(entry.name))
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_ctrl_c_ends_it_with_a_report_and_leaves_nothing_behind(tmp_path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "fleet.toml").write_text(FLEET.replace("duration_s = 300", "duration_s = 3000"))
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    process = subprocess.Popen([*MIDGE, "run", "fleet.toml", "--json", "report.json"], cwd=tmp_path,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                               env={**os.environ, "TMPDIR": str(temporary)})
    deadline = time.monotonic() + 40
    while len(_children(process.pid)) < 4 and time.monotonic() < deadline:  # broker, hub, lamp, cable
        time.sleep(0.1)
    left = _children(process.pid)
    assert len(left) >= 4
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=40)
    assert process.returncode == 0, printed
    if (tmp_path / "report.json").exists():  # it had begun
        assert json.loads((tmp_path / "report.json").read_text())["fleet"]["broken_off"]
    assert not [pid for pid in left if Path(f"/proc/{pid}").exists()]
    assert list(temporary.iterdir()) == []


def test_example_is_printed_and_written_but_never_over_a_file(tmp_path) -> None:
    printed = subprocess.run([*MIDGE, "init"], capture_output=True, text=True, timeout=30)
    assert printed.returncode == 0
    file = tmp_path / "fleet.toml"
    assert subprocess.run([*MIDGE, "init", file], timeout=30).returncode == 0
    assert file.read_text() == printed.stdout
    again = subprocess.run([*MIDGE, "init", file], capture_output=True, text=True, timeout=30)
    assert (again.returncode, again.stderr) == (1, f"midge sim: {file}: File exists\n")


def test_wrong_key_is_named_with_file_line_and_what_is_allowed(tmp_path) -> None:
    file = tmp_path / "fleet.toml"
    file.write_text("[[boards]]\nname = 'a'\nqos = 3\n")
    done = subprocess.run([*MIDGE, "run", file], capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert f"{file}:3: boards[1].qos: 3 is not allowed: a whole number, 0 to 2" in done.stderr
