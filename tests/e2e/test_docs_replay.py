"""docs/replay.md and docs/patterns.md: what they say is there, and each command does what it says."""

import re
import shlex
import subprocess
from pathlib import Path

from brokers import ROOT, host_python, needs_mosquitto, start_host
from midge.config.history import History
from midge.core.replay_from import PREFIX, parse_replay

REPLAY = (ROOT / "docs/replay.md").read_text(encoding="utf-8")
PATTERNS = (ROOT / "docs/patterns.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", REPLAY, re.MULTILINE | re.DOTALL)


@needs_mosquitto
def test_the_commands_of_the_replay_page_do_what_it_says(tmp_path: Path) -> None:
    (configuration,) = blocks("toml")
    (tmp_path / "history.toml").write_text(configuration)
    lines = [shlex.split(line, comments=True) for block in blocks("sh") for line in block.splitlines()]
    broker_line, publish, *reads = lines
    assert broker_line == [".venv/bin/midge", "broker", "--config", "history.toml"] and len(reads) == 3
    with start_host("--config", tmp_path / "history.toml", "--data", tmp_path) as broker:
        for words in (publish, *reads):
            if words[0] == ".venv/bin/midge":
                words[:1] = [host_python(), "-m", "midge"]
            ends = ["-p", str(broker.port)] + ([] if words == publish else ["-C", "1", "-W", "20"])
            run = subprocess.run([*words, *ends], capture_output=True, text=True, timeout=40)
            assert run.returncode == 0, run.stderr
            if words != publish:
                assert run.stdout == ("sensors/kitchen 21.5\n" if "-v" in words else "21.5\n"), words


def test_each_from_of_the_replay_page_is_one() -> None:
    table = REPLAY.partition("| FROM |")[2].partition("\n\n")[0]
    found = re.findall(r"`([^`$]+)`", table.replace("`after/N`", "`after/7`"))
    assert len(found) == 8
    for each in found:
        parse_replay(f"{PREFIX}{each}/sensors/#", 2e9)


def test_the_keys_of_a_history_are_on_its_page_with_their_defaults() -> None:
    section = REPLAY.partition("## What is kept")[2]
    rows = dict(re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| *([^|]*?) *\|", section, re.MULTILINE))
    assert [name for keys in rows for name in re.findall(r"\w+", keys)] == list(History.model_fields)
    limits = History(filter="a")
    assert (limits.age, limits.max_messages, limits.max_bytes) == ("30d", 10_000_000, 1_000_000_000)
    assert rows["`age`"] == '`"30d"`' and rows["`max_messages`, `max_bytes`"] == "10 million, 1 GB"


def test_the_pages_that_are_named_are_there() -> None:
    for text in (REPLAY, PATTERNS):
        for target in re.findall(r"\]\(([^)#]+)\)", text):
            assert (ROOT / "docs" / target).exists(), target
