"""What `midge demo` shows: a table that stays in place on a terminal, plain lines anywhere else.
Knows nothing of brokers and boards, only of what it is told to show.
"""

import contextlib
import os
import shlex
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

# Rows of the terminal's table, and lines of what was said below it.
_TOPICS_MAX = 20
_EVENTS_MAX = 6
_REFRESHES_PER_S = 4


class View(Protocol):
    """Shows what happens."""

    def message(self, topic: str, payload: bytes) -> None:
        """A message arrived on the laptop."""

    def command(self, topic: str, payload: str) -> None:
        """The demo sent a command."""

    def line(self, name: str) -> Callable[[str], None]:
        """A function that takes the lines printed by the process `name`."""

    def note(self, text: str) -> None:
        """Something about the demo itself."""

    def refresh(self) -> None:
        """Called now and then, for what changes with time."""


def how_to_publish(port: int) -> list[str]:
    """The command lines that switch the controller's LED from another terminal."""
    midge = "midge" if shutil.which("midge") else _relative(Path(sys.executable).with_name("midge"))
    option = "" if port == 1883 else f" -p {port}"
    rest = f"{option} -q 1 -t hub/controller/set/led -m on"
    return [f"{shlex.quote(midge)} pub{rest}", f"mosquitto_pub{rest}"]


def _relative(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


@contextlib.contextmanager
def make_view(port: int) -> Iterator[View]:
    """The view that fits stdout, for a broker on `port`."""
    if sys.stdout.isatty() and os.environ.get("TERM") != "dumb":
        with LiveView(port) as view:
            yield view
    else:
        yield PlainView(port)


class PlainView:
    """One line for each message, for pipes and files."""

    def __init__(self, port: int) -> None:
        self._how_to_publish = how_to_publish(port)
        self._told = False
        _say(f"the broker will be on mqtt://127.0.0.1:{port}; starting the boards")

    def message(self, topic: str, payload: bytes) -> None:
        _say(f"{topic} {payload.decode('utf-8', 'replace')}")

    def command(self, topic: str, payload: str) -> None:
        _say(f"> {topic} {payload}")
        if not self._told:
            self._told = True
            _say("Your turn, in another terminal:")
            for command in self._how_to_publish:
                _say(f"    {command}")

    def line(self, name: str) -> Callable[[str], None]:
        def take(text: str) -> None:
            with contextlib.suppress(BrokenPipeError):  # the next message will tell
                _say(f"[{name}] {text}")

        return take

    def note(self, text: str) -> None:
        _say(text)

    def refresh(self) -> None:
        pass


def _say(text: str) -> None:
    print(text, flush=True)


class LiveView:
    """A table of topics with their latest payload, the last events, and how to publish."""

    def __init__(self, port: int) -> None:
        self._title = f"arriving on mqtt://127.0.0.1:{port}"
        self._how_to_publish = how_to_publish(port)
        self._topics: dict[str, tuple[str, int, float]] = {}  # payload, count, when
        self._events: deque[Text] = deque(maxlen=_EVENTS_MAX)
        self._live = Live(console=Console(), auto_refresh=False, transient=False)
        self._next_refresh = 0.0

    def __enter__(self) -> "LiveView":
        self._live.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._draw()
        self._live.stop()

    def message(self, topic: str, payload: bytes) -> None:
        _, count, _ = self._topics.get(topic, ("", 0, 0.0))
        self._topics[topic] = payload.decode("utf-8", "replace"), count + 1, time.monotonic()

    def command(self, topic: str, payload: str) -> None:
        self._events.append(Text.assemble(("sent       ", "bold green"), f"{topic} {payload}"))

    def line(self, name: str) -> Callable[[str], None]:
        return lambda text: self._events.append(Text.assemble((f"{name:11}", "dim"), text[:200]))

    def note(self, text: str) -> None:
        self._events.append(Text(text, style="bold"))
        self._draw()

    def refresh(self) -> None:
        if time.monotonic() >= self._next_refresh:
            self._draw()

    def _draw(self) -> None:
        now = time.monotonic()
        self._next_refresh = now + 1 / _REFRESHES_PER_S
        table = Table("topic", "payload", "messages", "seconds ago", title=self._title, title_justify="left")
        for topic in sorted(self._topics)[:_TOPICS_MAX]:
            payload, count, when = self._topics[topic]
            table.add_row(Text(topic), Text(payload[:60]), str(count), f"{now - when:.0f}")
        if len(self._topics) > _TOPICS_MAX:
            table.caption = f"and {len(self._topics) - _TOPICS_MAX} more topics: midge sub -v -t '#'"
        turn = Text("Your turn, in another terminal (Ctrl-C ends the demo):", style="bold")
        commands = (Text(f"    {command}") for command in self._how_to_publish)
        self._live.update(Group(table, *self._events, turn, *commands), refresh=True)
