"""The log: one line per event on standard error, as text or as JSON. Never a payload.
Knows how a line is written, not what is worth one.

Who logs about a connection says `extra=about(client, address, ...)`: the text begins with it, JSON has its fields.
About anything else it says `extra=fields(...)`: they are JSON's only, the text says it in its own words.
"""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback
from types import TracebackType
from typing import Any, Literal

Format = Literal["text", "json"]

_encode = json.JSONEncoder(default=str).encode  # json.dumps would make an encoder for each line


style: Format = "text"  # set by `set_up`


def about(client: str | None, address: str, **values: object) -> dict[str, object]:
    """For `extra=`: whom a line is about, and what more a program may want to know of it (JSON only)."""
    return {"about": {"client": client, "address": address, **values}}


def fields(**values: object) -> dict[str, object]:
    """For `extra=`: what a program may want to know of it."""
    return {"about": values}


def set_up(level: str, chosen: Format) -> None:
    """All that is logged goes to standard error from now on. May be called again, after a reload."""
    global style
    style = chosen
    # What no line shows needn't be found out for each (logging's documented switches, "Optimization").
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if style == "json" else TextFormatter())
    logging.root.handlers[:] = [handler]
    logging.root.setLevel(level.upper())


class _Clock:
    """UTC to the millisecond (RFC 3339). The second's text is made once a second."""

    def __init__(self) -> None:
        self._second = -1
        self._text = ""

    def text(self, when: float) -> str:
        second = int(when)
        if second != self._second:
            self._second = second
            self._text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._text}.{int((when - second) * 1000):03}Z"


class TextFormatter(logging.Formatter):
    """`2026-11-25T20:00:00.123Z INFO kitchen@192.0.2.1:50123: connected, ...`"""

    def __init__(self) -> None:
        super().__init__()
        self._clock = _Clock()

    def format(self, record: logging.LogRecord) -> str:
        known: dict[str, Any] = getattr(record, "about", {})
        text = record.getMessage()
        if "client" in known:
            client, address = known["client"], known["address"]
            text = f"{address}: {text}" if client is None else f"{client}@{address}: {text}"
        if record.exc_info is not None and record.exc_info[1] is not None:
            text += f": {_one_line(record.exc_info[1], record.exc_info[2])}"
        return f"{self._clock.text(record.created)} {record.levelname} {escape(text)}"


class JsonFormatter(logging.Formatter):
    """One object a line: time, level, message; client, address and more where it is about a connection."""

    def __init__(self) -> None:
        super().__init__()
        self._clock = _Clock()

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": self._clock.text(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        line.update(getattr(record, "about", {}))
        line["message"] = record.getMessage()
        if record.exc_info is not None and record.exc_info[1] is not None:
            line["error"] = _one_line(record.exc_info[1], record.exc_info[2])
        return _encode(line)


def escape(text: str) -> str:
    """What a terminal or a reader of lines would take for more than a character, written out: MQTT allows
    control characters in client identifiers, and none may forge a line or move the cursor."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _one_line(error: BaseException, at: TracebackType | None) -> str:
    """An error that nobody expected: what it is, and where, innermost first."""
    frames = traceback.extract_tb(at)
    places = " < ".join(f"{frame.filename}:{frame.lineno} {frame.name}" for frame in reversed(frames))
    return f"{type(error).__name__}: {error}" + (f" at {places}" if places else "")
