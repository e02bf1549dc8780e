"""What docs/access.md tells its readers to do works as it stands there, section by section."""

import os
import re
import subprocess
import sys
import tomllib
from contextlib import ExitStack
from pathlib import Path

import pytest

from brokers import ROOT, RunningBroker, free_port

PAGE = (ROOT / "docs" / "access.md").read_text(encoding="utf-8")
BIN = Path(sys.executable).parent
SECTIONS = dict(re.findall(r"(?ms)^## ([^\n]+)\n(.*?)(?=^## |\Z)", PAGE))
BLOCK = re.compile(r"(?ms)^```(\w*)\n(.*?)^```")
LISTENING = re.compile(r"(?s)listening on")


def install(package: Path, target: Path) -> None:
    """What `pip install` does with a pure package, without a registry: its modules, and what it says of itself."""
    project = tomllib.loads((package / "pyproject.toml").read_text())
    info = target / "my_auth-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Name: {project['project']['name']}\nVersion: 1\n")
    for group, entries in project["project"]["entry-points"].items():
        lines = [f"[{group}]", *(f"{name} = {value}" for name, value in entries.items())]
        (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    for name in project["tool"]["setuptools"]["py-modules"]:
        (target / f"{name}.py").write_bytes((package / f"{name}.py").read_bytes())


class Reader:
    """Does what a section says, in a directory of its own, with ports of its own."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self.directory = directory
        self.stack = stack
        self.ports: dict[str, int] = {}
        self.ran: list[str] = []
        path = os.pathsep.join([str(BIN), os.environ.get("PATH", "")])
        self.env = {**os.environ, "PATH": path, "PYTHONPATH": str(directory / "site"), "PYTHONUNBUFFERED": "1"}

    def port(self, printed: str) -> str:
        return str(self.ports.setdefault(printed, free_port()))

    def write(self, text: str) -> None:
        name = re.match(r"# (\S+)\n", text)
        assert name is not None, f"a file without a name: {text[:40]}"
        path = self.directory / name[1]
        path.parent.mkdir(exist_ok=True)
        text = re.sub(r"(?m)^port = (\d+)", lambda found: f"port = {self.port(found[1])}", text)
        if path.name == "midge.toml" and "[[listener]]" not in text:
            text += f"[[listener]]\nport = {self.port('1883')}\n"
        path.write_text(text)

    def run(self, line: str) -> None:
        self.ran.append(line)
        words = line.split()
        if words[:2] == ["pip", "install"]:
            install(self.directory / words[2], self.directory / "site")
        elif line == "midge broker --config midge.toml":
            command = [BIN / "midge", "broker", "--data", ":memory:", "--config", self.directory / "midge.toml"]
            self.stack.enter_context(RunningBroker("host", command, LISTENING, env=self.env))
        else:
            self.run_to_its_end(line, words)

    def run_to_its_end(self, line: str, words: list[str]) -> None:
        if words[:2] == ["midge", "pub"]:
            line = re.sub(r"-p (\d+)", lambda found: f"-p {self.port(found[1])}", line)
            if "-p" not in words:
                line = line.replace("midge pub", f"midge pub -p {self.port('1883')}")
        expected = re.search(r"# exit (\d+)", line)
        done = subprocess.run(["bash", "-c", line], cwd=self.directory, env=self.env, capture_output=True, text=True,
                              timeout=30)  # fmt: skip
        assert done.returncode == int(expected[1] if expected else 0), (line, done.stdout, done.stderr)
        warning = re.search(r"# (Warning: .*)", line)
        assert (warning[1] if warning else "") in done.stderr


@pytest.mark.parametrize("title", [title for title, text in SECTIONS.items() if "```sh" in text])
def test_what_a_section_says_works(title: str, tmp_path: Path) -> None:
    with ExitStack() as stack:
        reader = Reader(tmp_path, stack)
        for language, text in BLOCK.findall(SECTIONS[title]):
            if language == "sh":
                for line in text.splitlines():
                    reader.run(line)
            else:
                reader.write(text)
        assert any(line.startswith("midge broker") for line in reader.ran)


def test_every_limit_is_named_and_its_default_is_right() -> None:
    from midge.core.limits import COUNTED_LIMITS, Limits

    rows = SECTIONS["Limits"]
    assert [name for name in COUNTED_LIMITS if f"`{name}`" not in rows] == []
    defaults = Limits()
    for names, shown in re.findall(r"(?m)^\| (`[^|]*) \| ([^|]*) \|", rows):
        for name, value in zip(re.findall(r"`(\w+)`", names), shown.split(", "), strict=False):
            number = re.match(r"[\d,]+", value)
            if number is None or not hasattr(defaults, name):
                continue
            factor = {"MB": 1_000_000, "GB": 1_000_000_000}.get(value.partition(" ")[2], 1)
            assert int(number[0].replace(",", "")) * factor == getattr(defaults, name), name


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#:]+)\)", PAGE))))
def test_every_link_leads_to_a_file(link: str) -> None:
    assert (ROOT / "docs" / link).exists()
