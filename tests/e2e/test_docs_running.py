"""docs/running-the-broker.md, docs/configuration.md and host/packaging: what they say is there and is understood."""

import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from brokers import ROOT
from midge.cli import COMMANDS
from midge.cli.broker import _parser
from midge.config import Config, ConfigError, load, parse
from midge.config.section import sections_of
from midge.metrics import METRICS

RUNNING = (ROOT / "docs/running-the-broker.md").read_text(encoding="utf-8")
CONFIGURATION = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
UNIT = (ROOT / "host/packaging/midge.service").read_text(encoding="utf-8")
DOCKERFILE = (ROOT / "host/packaging/Dockerfile").read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def midge_commands() -> list[list[str]]:
    lines = [line for text in (RUNNING, CONFIGURATION) for block in blocks(text, "sh") for line in block.splitlines()]
    lines += [line.partition("=")[2] for line in UNIT.splitlines() if line.startswith(("ExecStart=", "ExecReload="))]
    found = []
    for line in lines:
        words = shlex.split(re.split(r" [|>] ", line)[0], comments=True)
        for at, word in enumerate(words):
            if word == "midge" or word.endswith("/bin/midge"):
                found.append(words[at + 1 :])
                break
    return found


def test_every_command_has_options_that_exist() -> None:
    commands = [words for words in midge_commands() if words and words[0] in COMMANDS]
    assert len(commands) >= 7
    for words in commands:
        if words[0] == "broker":
            _parser().parse_args(words[1:])


def test_every_piece_of_toml_is_a_configuration() -> None:
    pieces = blocks(RUNNING, "toml")
    assert len(pieces) == 2
    for piece in pieces:
        parse(tomllib.loads(piece), "the page")


def test_every_key_in_mosquitto_s_table_exists() -> None:
    sections = {name: section for name, (section, _) in sections_of(Config).items()}
    for name, key in re.findall(r"`(\w+)\.(\w+)`", RUNNING.partition("|---|---|\n| `listener")[2]):
        assert key in sections[name].model_fields
    for names, section in re.findall(r"^\| (.*?) \| the same names in `\[+(\w+)\]+` \|$", RUNNING, re.MULTILINE):
        for key in re.findall(r"`(\w+)`", names):
            assert key in sections[section].model_fields, key


def test_every_metric_that_is_named_exists() -> None:
    known = {f"midge_{metric.name}" for metric in METRICS} | {"midge_bridge_up", "midge_ready"}
    named = set(re.findall(r"`(midge_\w+)", RUNNING)) - {"midge_"}
    assert len(named) >= 6 and named <= known


def test_the_errors_on_the_page_are_those_that_are_printed(tmp_path: Path) -> None:
    shown = re.findall(r"^midge\.toml:\d+: (.*)$", CONFIGURATION, re.MULTILINE)
    (tmp_path / "midge.toml").write_text("[limits]\nmax_queued_bytes = -1\nmax_conections = 1\n")
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "midge.toml")
    assert [line.partition(": ")[2] for line in str(caught.value).splitlines()] == shown


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / "midge.service"
    unit.write_text(UNIT.replace("/opt/midge/bin/midge", shutil.which("true") or "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True, timeout=30)
    assert (done.returncode, [line for line in done.stderr.splitlines() if "midge" in line]) == (0, [])


def test_the_image_is_made_of_files_that_are_there_and_starts_with_options_that_exist() -> None:
    for line in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.MULTILINE):
        *sources, _ = line.split()
        for source in sources:
            assert (ROOT / source).exists(), source
    # What the build reads of the checkout is copied before it.
    for name in re.findall(r'^(?:readme = |path = )"(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE):
        assert name in DOCKERFILE
    arguments = re.search(r"^CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)
    assert arguments is not None
    _parser().parse_args(tomllib.loads(f"arguments = {arguments[1]}")["arguments"])
