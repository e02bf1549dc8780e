"""A board's settings: which keys there are, what each may be, and that a secret is never printed.
Knows nothing of how they get onto the board. midge_boot.py reads them there, from /midge.json.
"""

from __future__ import annotations

import getpass
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from midge.boards.simulate import BoardError


@dataclass(frozen=True)
class Key:
    kind: type
    text: str
    least: float | None = None
    most: float | None = None
    choices: tuple[str, ...] = ()
    is_secret: bool = False
    shortest: int = 0
    """characters"""


KEYS: dict[str, Key] = {
    "name": Key(str, "the board's name: its client identifier and the first level of its topics", shortest=1),
    "program": Key(str, "the module whose main() is run; default app"),
    "interval_s": Key(int, "between two reports, s; default 10", 1, 3600),
    # RP2's watchdog counts to 8,388 ms at most.
    "watchdog_s": Key(float, "the watchdog's time, s; 0: none; default 8", 0, 8.388),
    "wifi.ssid": Key(str, "the network to join", shortest=1),
    # WPA2: 8 to 63 characters (IEEE 802.11i).
    "wifi.password": Key(str, "its password", is_secret=True, shortest=8),
    "wifi.power": Key(str, "power save", choices=("none", "performance", "powersave")),
    "broker.host": Key(str, "the broker's address; default 192.168.4.1, a hub's access point", shortest=1),
    "broker.port": Key(int, "its port; default 1883; a hub's own", 1, 65_535),
    "broker.user": Key(str, "the name to log in with; of a hub: that its clients must give"),
    "broker.password": Key(str, "the password for it", is_secret=True),
    "broker.bind": Key(str, "a hub's own address; default all"),
    "broker.max_clients": Key(int, "of a hub", 1, 64),
    "broker.budget_bytes": Key(int, "memory that a hub's broker plans with", 20_000, 8_000_000),
    "ap.ssid": Key(str, "a hub's own network; default its name"),
    "ap.password": Key(str, "the password of a hub's own network", is_secret=True, shortest=8),
    "update.key": Key(str, "who has it may update over MQTT; else whoever may publish", is_secret=True, shortest=16),
    "update.trial_s": Key(int, "a new version must have connected after, s; default 120", 10, 3600),
    "uart": Key(int, "the UART of a board on a cable; default USB", 0, 9),
    "baud": Key(int, "of that UART; default 115200", 1200, 4_000_000),
    "led_pin": Key(int, "a hub's LED; default the board's own", 0, 64),
}

HIDDEN = "(set)"


def take(
    words: list[str],
    environ: Mapping[str, str] = os.environ,
    prompt: Callable[[str], str] = getpass.getpass,
) -> dict[str, Any]:
    """`KEY=VALUE`, `KEY=` (removes it), `KEY` (asks), `KEY=@FILE`, `KEY=env:NAME` as values by key; None removes.

    A secret in plain text on the command line is refused: it would stay in the shell's history.
    """
    taken: dict[str, Any] = {}
    for word in words:
        name, has_value, text = word.partition("=")
        key = find(name)
        if not has_value:
            text = prompt(f"{name}: ")
        elif text.startswith("@"):
            text = _read_secret(Path(text[1:]), name)
        elif text.startswith("env:"):
            if text[4:] not in environ:
                raise BoardError(f"{name}: the environment has no {text[4:]}")
            text = environ[text[4:]]
        elif key.is_secret and text:
            raise BoardError(
                f"{name} is a secret, and a command line is kept in the shell's history and seen by others. "
                f"Say '{name}' to be asked for it, '{name}=@FILE' or '{name}=env:NAME'"
            )
        taken[name] = None if has_value and not text else _convert(name, key, text)
    return taken


def find(name: str) -> Key:
    """The key *name*; those below `app.` are the program's own."""
    if name.startswith("app.") and len(name) > 4:
        return Key(str, "the program's own")
    if name not in KEYS:
        raise BoardError(f"there is no setting '{name}'; there are: {', '.join(KEYS)}, and app.NAME for your program")
    return KEYS[name]


def _read_secret(path: Path, name: str) -> str:
    try:
        return path.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise BoardError(f"{name}: {path}: {getattr(error, 'strerror', None) or error}") from None


def _convert(name: str, key: Key, text: str) -> Any:
    # Never the value of a secret in a message.
    shown = "what was given" if key.is_secret else f"'{text}'"
    if key.choices and text not in key.choices:
        raise BoardError(f"{name}: {shown} isn't one of {', '.join(key.choices)}")
    if key.kind is str:
        # A topic level of its own: MQTT 3.1.1 section 4.7.
        if name == "name" and any(character in text for character in "/+#"):
            raise BoardError(f"name: {shown} must be one topic level, without / + #")
        if len(text) < key.shortest:
            raise BoardError(f"{name}: must have {key.shortest} characters or more")
        return text
    try:
        value = key.kind(text)
    except ValueError:
        raise BoardError(f"{name}: {shown} isn't a number") from None
    if not (key.least is not None and key.most is not None and key.least <= value <= key.most):
        raise BoardError(f"{name}: must be {key.least:,} to {key.most:,}")
    return value


def merge(settings: dict[str, Any], taken: dict[str, Any]) -> dict[str, Any]:
    """*settings* with *taken* put in at their places."""
    merged = _copy(settings)
    for name, value in taken.items():
        *tables, last = name.split(".")
        table = merged
        for part in tables:
            if not isinstance(table.get(part), dict):
                table[part] = {}
            table = table[part]
        if value is None:
            table.pop(last, None)
        else:
            table[last] = value
    return {name: value for name, value in merged.items() if value != {}}


def show(settings: dict[str, Any], prefix: str = "") -> list[str]:
    """A line `KEY = VALUE` for each; a secret's value is not in it."""
    lines = []
    for name, value in sorted(settings.items()):
        path = prefix + name
        if isinstance(value, dict):
            lines += show(value, path + ".")
        else:
            lines.append(f"{path} = {HIDDEN if is_secret(path) else value}")
    return lines


def is_secret(name: str) -> bool:
    """Also of keys that aren't ours, by their name."""
    if name in KEYS:
        return KEYS[name].is_secret
    return any(word in name.lower() for word in ("password", "secret", "key", "token"))


def _copy(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: _copy(value) if isinstance(value, dict) else value for name, value in settings.items()}
